"""Accuracies, and statistics over seeds. All are fractions, not percentages.

M rows    C classes
"""

import math
import statistics
from collections.abc import Sequence

import torch
from torch import Tensor

from selfie_cli.errors import DataError, TrainingError


def topk_accuracy(scores: Tensor, labels: Tensor, k: int = 1) -> float:
    """The share of rows of `scores` [M, C] whose label, int64 [M], is among the k highest; 1 if k is C or more.

    Of equal scores the lower class comes first, as in argmax. Raises DataError without rows, TrainingError on NaN.
    """
    if len(labels) == 0:
        raise DataError("There is nothing to measure: the test part holds no images.")
    if scores.isnan().any():
        raise TrainingError("The scores are not numbers: this network has diverged; use an earlier run.")
    highest = scores.argsort(dim=1, descending=True, stable=True)[:, :k]  # [M, k]
    return int((highest == labels[:, None]).sum()) / len(labels)


def confusion_matrix(predicted: Tensor, labels: Tensor, num_classes: int) -> Tensor:
    """Counts, int64 [C, C]: rows are the true class, columns the predicted one. Both arguments are int64 [M]."""
    return torch.bincount(labels * num_classes + predicted, minlength=num_classes**2).view(num_classes, num_classes)


def per_class_accuracy(confusion: Tensor) -> list[float | None]:
    """Share of each class's rows that are recognised, from a confusion matrix; None for a class without rows."""
    return [row[c] / sum(row) if sum(row) else None for c, row in enumerate(confusion.tolist())]


def majority_share(labels: Tensor) -> float:
    """Accuracy of always answering the most frequent class of `labels`, int64 [M], M at least 1."""
    return int(labels.bincount().max()) / len(labels)


def mean_std(values: Sequence[float]) -> tuple[float, float | None]:
    """Mean and sample standard deviation (n - 1 in the denominator); the latter is None for a single value."""
    return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None


def paired_interval(differences: Sequence[float]) -> tuple[float, float] | None:
    """Student's t interval for the mean of paired differences, one per seed; None below three."""
    if len(differences) < 3:
        return None
    from scipy.special import stdtrit

    mean, std = statistics.fmean(differences), statistics.stdev(differences)
    quantile = stdtrit(len(differences) - 1, 0.975)
    half = float(quantile) * std / math.sqrt(len(differences))
    return mean - half, mean + half
