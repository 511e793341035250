"""Accuracy in its several forms, and what several seeds together say. All in fractions, none in percent.

M rows    C classes
"""

import math
import statistics
from collections.abc import Sequence

import torch
from torch import Tensor

from selfie_cli.errors import DataError, TrainingError


def topk_accuracy(scores: Tensor, labels: Tensor, k: int = 1) -> float:
    """The share of rows of `scores` [M, C] whose label, int64 [M], is among the k highest; 1 where k reaches C.

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
    both = torch.cat([predicted, labels])
    if ((both < 0) | (both >= num_classes)).any():
        raise ValueError(f"classes must lie in 0..{num_classes - 1}")
    return torch.bincount(labels * num_classes + predicted, minlength=num_classes**2).view(num_classes, num_classes)


def per_class_accuracy(confusion: Tensor) -> list[float | None]:
    """Each class's share of its own rows that were recognised, from a confusion matrix; None for a class without."""
    return [row[c] / sum(row) if sum(row) else None for c, row in enumerate(confusion.tolist())]


def majority_share(labels: Tensor) -> float:
    """What always answering the most frequent class of `labels`, int64 [M], would score on them."""
    if len(labels) == 0:
        raise DataError("There is nothing to measure: the test part holds no images.")
    return int(labels.bincount().max()) / len(labels)


def mean_std(values: Sequence[float]) -> tuple[float, float | None]:
    """Mean and sample standard deviation (n - 1 in the denominator); the latter is None for a single value."""
    return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None


def paired_interval(differences: Sequence[float], confidence: float = 0.95) -> tuple[float, float] | None:
    """Student's t interval for the mean of paired differences (a seed each); None below three, where it says little."""
    if len(differences) < 3:
        return None
    mean, std = statistics.fmean(differences), statistics.stdev(differences)
    half = t_quantile(confidence, len(differences) - 1) * std / math.sqrt(len(differences))
    return mean - half, mean + half


def t_quantile(confidence: float, df: int) -> float:
    """The t between -t and +t of which Student's distribution with `df` degrees of freedom holds `confidence`.

    For whole df the probability is a finite sum in theta = atan(t / sqrt(df)) (Abramowitz and Stegun, 26.7.3 and
    26.7.4), and it grows with theta: bisection finds the quantile to rounding.
    """
    if not 0 < confidence < 1 or df < 1:
        raise ValueError("confidence must lie between 0 and 1, and df be at least 1")
    low, high = 0.0, math.pi / 2
    for _ in range(60):
        theta = (low + high) / 2
        if _probability_within(theta, df) < confidence:
            low = theta
        else:
            high = theta
    return math.sqrt(df) * math.tan(low)


def _probability_within(theta: float, df: int) -> float:
    sine, cosine = math.sin(theta), math.cos(theta)
    if df == 1:
        return 2 / math.pi * theta
    term = cosine if df % 2 else 1.0
    total = term
    for j in range(2 + df % 2, df - 1, 2):
        term *= cosine**2 * (j - 1) / j
        total += term
    return 2 / math.pi * (theta + sine * total) if df % 2 else sine * total
