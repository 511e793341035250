"""The linear probe: multinomial logistic regression on frozen features, by scikit-learn's L-BFGS.

N training rows    M rows to score    D features    C classes
"""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from selfie_cli.errors import DataError, TrainingError

STRENGTHS = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0)
ITERATIONS = 100
NEVER = -1e4
"""The logit of a class without training rows."""


@dataclass(frozen=True, kw_only=True, eq=False)
class LinearProbe:
    weight: Tensor  # [C, D], on standardised features
    bias: Tensor  # [C]
    mean: Tensor  # [D]
    std: Tensor  # [D], infinite where a feature was constant in training: such a feature counts for nothing
    strength: float  # of the L2 penalty, as chosen

    def scores(self, features: Tensor) -> Tensor:
        """Logits, float32 [M, C], of `features`, float [M, D]."""
        return F.linear((features.float() - self.mean) / self.std, self.weight, self.bias)


def fit_linear_probe(
    features: Tensor,
    labels: Tensor,
    *,
    num_classes: int,
    held_out: Tensor,
    strengths: Sequence[float] = STRENGTHS,
) -> LinearProbe:
    """Minimise the mean cross-entropy + strength / 2 * |weight|^2; the bias is not penalised.

    `features` [N, D] are floats and `labels` [N] int64, on one device; all of them are training data. True in the bool
    mask `held_out` [N] marks the rows (a stratified fifth, say) on which the strength is chosen: highest accuracy, then
    lowest cross-entropy. From the strongest penalty to the weakest, until two in a row are no better than the best so
    far; the chosen strength is then fitted on all rows. With nothing held out (one image per class), or one
    strength, there is no choice: the middle strength is taken.

    Nothing is drawn at random. Raises DataError if no rows remain to fit on, TrainingError where a feature is not
    finite.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import log_loss

    if bool(held_out.all()):
        raise DataError("A linear probe needs at least one labelled training image that is not held out.")
    std, mean = torch.std_mean(features.float(), dim=0, correction=0)  # [D]
    if not (std.isfinite().all() and mean.isfinite().all()):
        raise TrainingError("The features are not finite numbers: this network has diverged; use an earlier run.")
    # Constant but for the last digit (1e-7 in float32; the batch's shape decides it): dividing would make it a feature.
    std = std.masked_fill(std <= 1e-6 * mean.abs(), torch.inf)
    x, y, held = ((features.float() - mean) / std).cpu().numpy(), labels.cpu().numpy(), held_out.cpu().numpy()

    held = held & np.isin(y, y[~held])  # not the only image of a class

    path = sorted(strengths, reverse=True)
    strength = path[len(path) // 2]
    model = LogisticRegression(max_iter=ITERATIONS, tol=1e-6, warm_start=True)
    weight, bias = np.zeros((num_classes, x.shape[1]), np.float32), np.full(num_classes, NEVER, np.float32)
    present = np.unique(y)
    bias[present] = 0  # of a single class, scikit-learn fits nothing
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # the weakest penalties need not converge
        if len(path) > 1 and held.any() and len(present) > 1:
            merits: list[tuple[float, float]] = []
            for each in path:  # each starts where the last one ended; the weakest penalties are the slowest to fit
                model.set_params(C=1 / (each * int((~held).sum()))).fit(x[~held], y[~held])
                loss = log_loss(y[held], model.predict_proba(x[held]), labels=model.classes_)
                merits.append((model.score(x[held], y[held]), -loss))
                best = merits.index(max(merits))
                if len(merits) - best > 2:
                    break
            strength = path[best]
        if len(present) > 1:
            model.set_params(C=1 / (strength * len(y)), warm_start=False).fit(x, y)
            if len(present) == 2:  # scikit-learn has one row of weights, for the second class
                weight[present[1:]], bias[present[1]] = model.coef_, model.intercept_[0]
            else:
                weight[present], bias[present] = model.coef_, model.intercept_
    return LinearProbe(
        weight=torch.from_numpy(weight).to(features.device),
        bias=torch.from_numpy(bias).to(features.device),
        mean=mean,
        std=std,
        strength=strength,
    )
