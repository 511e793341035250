import math

import numpy as np
import pytest
import torch
from sklearn.metrics import top_k_accuracy_score

from selfie_cli.errors import DataError, TrainingError
from selfie_cli.evaluation import metrics
from selfie_cli.evaluation.metrics import mean_std, paired_interval, topk_accuracy


@pytest.mark.parametrize("k", [1, 2, 5, 6, 10])
def test_topk_accuracy_counts_labels_among_the_highest(k):
    generator = torch.Generator().manual_seed(0)
    scores, labels = torch.randn(50, 6, generator=generator), torch.randint(6, (50,), generator=generator)
    expected = top_k_accuracy_score(labels, scores, k=k, labels=range(6)) if k < 6 else 1  # where scikit-learn warns
    assert topk_accuracy(scores, labels, k) == pytest.approx(expected)


def test_equal_scores_go_to_the_lower_class_as_in_argmax_and_no_scores_are_refused():
    scores, labels = torch.zeros(20, 4), torch.arange(20) % 4
    assert scores.argmax(dim=1).eq(0).all()
    assert [topk_accuracy(scores, labels, k) for k in (1, 2, 4)] == [0.25, 0.5, 1.0]
    with pytest.raises(DataError, match="no images"):
        topk_accuracy(scores[:0], labels[:0])
    with pytest.raises(TrainingError, match="diverged"):
        topk_accuracy(torch.tensor([[0.0, torch.nan]]), labels[:1])


def test_confusion_matrix_counts_true_rows_and_predicted_columns():
    true, predicted = torch.tensor([0, 1, 2, 0, 4]), torch.tensor([0, 0, 2, 3, 4])
    confusion = metrics.confusion_matrix(predicted, true, 6)
    assert confusion.dtype == torch.int64
    assert confusion.nonzero().tolist() == [[0, 0], [0, 3], [1, 0], [2, 2], [4, 4]]
    assert metrics.per_class_accuracy(confusion) == [0.5, 0.0, 1.0, None, 1.0, None]  # None: no image of that class
    assert metrics.confusion_matrix(true[:0], true[:0], 3).tolist() == [[0] * 3] * 3


def test_mean_std_divides_by_n_minus_one():
    values = [0.5, 0.25, 0.75, 0.3]
    mean, std = mean_std(values)
    assert mean == pytest.approx(np.mean(values))
    assert std == pytest.approx(np.std(values, ddof=1))
    assert mean_std([0.5]) == (0.5, None)


def test_paired_interval():
    low, high = paired_interval([0.01, 0.02, 0.06])
    half = 4.302653 * np.std([0.01, 0.02, 0.06], ddof=1) / math.sqrt(3)
    assert (low, high) == pytest.approx((0.03 - half, 0.03 + half), abs=1e-6)
    assert paired_interval([0.01, 0.02]) is None
