import math

import pytest
import torch

from selfie_cli.errors import DataError
from selfie_cli.evaluation.knn import knn_predict


def naive(train, train_labels, test, num_classes, k, temperature):
    """The same in plain Python: sort every similarity, add the votes of the first k."""

    def cosine(a, b):
        return sum(x * y for x, y in zip(a, b, strict=True)) / (math.hypot(*a) * math.hypot(*b))

    rows = []
    for query in test.tolist():
        labelled = zip(train.tolist(), train_labels.tolist(), strict=True)
        nearest = sorted(((cosine(query, row), label) for row, label in labelled), reverse=True)[:k]
        votes = [0.0] * num_classes
        for similarity, label in nearest:
            votes[label] += math.exp(similarity / temperature)
        rows.append([vote / sum(votes) for vote in votes])
    return torch.tensor(rows)


@pytest.fixture
def data():
    generator = torch.Generator().manual_seed(0)
    train, test = torch.randn(40, 5, generator=generator), torch.randn(17, 5, generator=generator)
    return train, torch.randint(4, (40,), generator=generator), test


@pytest.mark.parametrize("k", [1, 7, 40])
@pytest.mark.parametrize("temperature", [0.07, 1.0])
def test_agrees_with_the_naive_reference(data, k, temperature):
    scores = knn_predict(*data, num_classes=5, k=k, temperature=temperature)
    torch.testing.assert_close(scores, naive(*data, 5, k, temperature), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(scores.sum(dim=1), torch.ones(17))
    assert scores[:, 4].eq(0).all()  # a class that no training row has


@pytest.mark.parametrize("chunk", [1, 40, 100, 680])
def test_chunks_change_nothing(data, chunk):
    torch.testing.assert_close(knn_predict(*data, num_classes=4, chunk=chunk), knn_predict(*data, num_classes=4))


def test_k_is_capped_at_the_training_rows(data):
    train, labels, test = data
    few = (train[:6], labels[:6], test)
    assert knn_predict(*few, num_classes=4, k=20).equal(knn_predict(*few, num_classes=4, k=6))


def test_without_training_rows_there_is_no_neighbour(data):
    train, labels, test = data
    with pytest.raises(DataError, match="at least one"):
        knn_predict(train[:0], labels[:0], test, num_classes=4)
