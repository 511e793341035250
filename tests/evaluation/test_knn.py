import numpy as np
import pytest
import torch
from sklearn.neighbors import KNeighborsClassifier

from selfie_cli.errors import DataError
from selfie_cli.evaluation.knn import knn_predict


@pytest.fixture
def data():
    generator = torch.Generator().manual_seed(0)
    train, test = torch.randn(40, 5, generator=generator), torch.randn(17, 5, generator=generator)
    return train, torch.randint(4, (40,), generator=generator), test


@pytest.mark.parametrize("k", [1, 7, 40])
@pytest.mark.parametrize("temperature", [0.07, 1.0])
def test_agrees_with_scikit_learn(data, k, temperature):
    scores = knn_predict(*data, num_classes=5, k=k, temperature=temperature)
    model = KNeighborsClassifier(k, metric="cosine", weights=lambda away: np.exp((1 - away) / temperature))
    train, labels, test = (each.numpy() for each in data)
    expected = torch.from_numpy(model.fit(train, labels).predict_proba(test)).float()
    torch.testing.assert_close(scores[:, :4], expected, atol=1e-5, rtol=1e-4)
    assert scores[:, 4].eq(0).all()  # a class that no training row has
    for chunk in (1, 40, 100, 680):
        parts = knn_predict(*data, num_classes=5, k=k, temperature=temperature, chunk=chunk)
        torch.testing.assert_close(parts, scores)


def test_k_is_capped_at_the_training_rows_of_which_there_must_be_one(data):
    (train, labels, test), how = data, {"num_classes": 4, "temperature": 0.07}
    few = (train[:6], labels[:6], test)
    assert knn_predict(*few, k=20, **how).equal(knn_predict(*few, k=6, **how))
    with pytest.raises(DataError, match="at least one"):
        knn_predict(train[:0], labels[:0], test, k=1, **how)
