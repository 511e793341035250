"""The linear probe: multinomial logistic regression on frozen features, by scikit-learn's L-BFGS.

N training rows    M rows to score    D features    C classes
"""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from selfie_cli.data.splits import fold_numbers
from selfie_cli.errors import TrainingError

Array = NDArray[Any]
STRENGTHS = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0)
NUM_FOLDS = 5
ENOUGH = 500
"""Number of held-out rows that suffice to choose a strength. With fewer, chance would decide."""
SMALL = 2**22
"""Number of values in the features below which one thread is as fast: several on shared cores wait for each other."""
ITERATIONS = 100
NEVER = -1e4
"""The log probability of a class without training rows."""


@dataclass(frozen=True)
class LinearProbe:
    """A linear classifier of raw features. weight: float32 [C, D]; bias: float32 [C]; strength: of the L2 penalty."""

    weight: Tensor
    bias: Tensor
    strength: float

    def log_probabilities(self, rows: Tensor) -> Tensor:
        """Features, float [M, D] -> float32 [M, C], on the CPU."""
        return F.linear(rows.float().cpu(), self.weight, self.bias).log_softmax(dim=1)


def held_out_folds(labels: Tensor, seed: int) -> list[Tensor]:
    """Stratified fifths of `labels`, int64 [N], on which to choose a strength, as bool masks [N].

    All five are returned, for cross-validation, or only the first if it has enough rows.
    """
    numbers = torch.from_numpy(fold_numbers(labels.numpy(), NUM_FOLDS, seed))
    folds = [numbers == each for each in range(NUM_FOLDS)]
    return folds[:1] if folds[0].sum() >= ENOUGH else folds


def linear_probe(
    features: Tensor,
    labels: Tensor,
    *,
    num_classes: int,
    held_out: Sequence[Tensor],
    strengths: Sequence[float] = STRENGTHS,
) -> LinearProbe:
    """Fit a probe to `features`, float [N, D], and `labels`, int64 [N], and choose the strength of its L2 penalty.

    The probe minimises the mean cross-entropy + strength / 2 * |weight|^2 on standardised features; the bias is not
    penalised. A feature that is constant in training is ignored.

    Each bool mask [N] of `held_out` has True for rows that are held out together, to choose the strength on them (see
    `held_out_folds`): highest accuracy over all masks, then lowest cross-entropy. Strengths are tried in descending
    order, until two in a row are no better than the best so far; the best is then fitted on all rows. With nothing held
    out (one image per class), or only one strength, the middle strength is taken. The standardisation becomes part of
    the weights.

    Raises TrainingError if a feature is not finite.
    """
    from sklearn.exceptions import ConvergenceWarning
    from threadpoolctl import threadpool_limits

    std, mean = torch.std_mean(features.float(), dim=0, correction=0)  # [D]
    if not (std.isfinite().all() and mean.isfinite().all()):
        raise TrainingError("The features are not finite numbers: this network has diverged; use an earlier run.")
    # Dividing would blow up features that are constant up to rounding (1e-7 in float32; the batch's shape decides it).
    std = std.masked_fill(std <= 1e-6 * mean.abs(), torch.inf)
    x, y = ((features.float() - mean) / std).cpu().numpy(), labels.cpu().numpy()
    present = np.unique(y)
    weight, bias = torch.zeros(num_classes, features.shape[1]), torch.full((num_classes,), NEVER)
    path = sorted(strengths, reverse=True)
    if len(present) == 1:  # scikit-learn fits no single class
        bias[present] = 0
        return LinearProbe(weight, bias, path[len(path) // 2])
    with warnings.catch_warnings(), threadpool_limits(1 if x.size < SMALL else None):
        warnings.simplefilter("ignore", ConvergenceWarning)  # the weakest penalties need not converge
        strength = choose_strength(x, y, [fold.cpu().numpy() for fold in held_out], path)
        model = logistic_regression(strength, len(y)).fit(x, y)
    rows, offsets = model.coef_, model.intercept_  # [C, D], [C]; of two classes, only those of the second
    if len(present) == 2:
        rows, offsets = (np.concatenate([0 * each, each]) for each in (rows, offsets))
    folded = torch.from_numpy(rows).double() / std.double().cpu()
    weight[present] = folded.float()
    bias[present] = (torch.from_numpy(offsets).double() - folded @ mean.double().cpu()).float()
    return LinearProbe(weight, bias, strength)


def choose_strength(x: Array, y: Array, held_out: Sequence[Array], path: Sequence[float]) -> float:
    """Return the strength of `path` that does best on held-out rows, as `linear_probe` says."""
    from sklearn.metrics import log_loss

    folds = [(~held, held & np.isin(y, y[~held])) for held in held_out]  # not the only image of a class
    folds = [(rest, held) for rest, held in folds if held.any()]
    if len(path) == 1 or not folds:
        return path[len(path) // 2]
    models = [logistic_regression(path[0], 1, warm_start=True) for _ in folds]
    merits: list[tuple[float, float]] = []
    for strength in path:  # each fit starts where the last one ended; the weakest penalties are the slowest to fit
        right = loss = 0.0
        for model, (rest, held) in zip(models, folds, strict=True):
            model.set_params(C=1 / (strength * int(rest.sum()))).fit(x[rest], y[rest])
            probabilities = model.predict_proba(x[held])
            right += (model.classes_[probabilities.argmax(axis=1)] == y[held]).sum()
            loss += log_loss(y[held], probabilities, labels=model.classes_, normalize=False)
        merits.append((right, -loss))
        best = merits.index(max(merits))
        if len(merits) - best > 2:
            break
    return path[best]


def logistic_regression(strength: float, num_rows: int, *, warm_start: bool = False) -> Any:
    """Return a scikit-learn model whose penalty is of this strength relative to the mean cross-entropy of its rows."""
    from sklearn.linear_model import LogisticRegression

    return LogisticRegression(C=1 / (strength * num_rows), max_iter=ITERATIONS, tol=1e-6, warm_start=warm_start)
