"""The linear probe: multinomial logistic regression on frozen features, by scikit-learn's L-BFGS.

N training rows    M rows to score    D features    C classes
"""

import warnings
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from selfie_cli.errors import DataError, TrainingError

STRENGTHS = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0)
ITERATIONS = 100
NEVER = -1e4
"""The log probability of a class without training rows."""


def linear_probe(
    features: Tensor,
    labels: Tensor,
    test: Tensor,
    *,
    num_classes: int,
    held_out: Tensor,
    strengths: Sequence[float] = STRENGTHS,
) -> tuple[Tensor, float]:
    """Log probabilities of the rows of `test`, float32 [M, C], and the strength of the L2 penalty, as chosen.

    The probe minimises the mean cross-entropy + strength / 2 * |weight|^2 on standardised features; the bias is not
    penalised. A feature that is constant in training counts for nothing.

    `features` [N, D] and `test` [M, D] are floats, `labels` [N] int64. True in the bool mask `held_out` [N] marks the
    rows (a stratified fifth, say) on which the strength is chosen: highest accuracy, then lowest cross-entropy. From
    the strongest penalty to the weakest, until two in a row are no better than the best so far; the chosen strength is
    then fitted on all rows. With nothing held out (one image per class), or one strength, there is no choice: the
    middle strength is taken.

    Raises DataError if no rows remain to fit on, TrainingError where a feature is not finite.
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
    x, unseen = (((rows.float() - mean) / std).cpu().numpy() for rows in (features, test))
    y, held = labels.cpu().numpy(), held_out.cpu().numpy()
    held = held & np.isin(y, y[~held])  # not the only image of a class
    present = np.unique(y)
    scores = torch.full((len(test), num_classes), NEVER)
    path = sorted(strengths, reverse=True)
    strength = path[len(path) // 2]
    if len(present) == 1:  # scikit-learn fits no single class
        scores[:, present] = 0
        return scores, strength
    model = LogisticRegression(max_iter=ITERATIONS, tol=1e-6, warm_start=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # the weakest penalties need not converge
        if len(path) > 1 and held.any():
            merits: list[tuple[float, float]] = []
            for each in path:  # each starts where the last one ended; the weakest penalties are the slowest to fit
                model.set_params(C=1 / (each * int((~held).sum()))).fit(x[~held], y[~held])
                loss = log_loss(y[held], model.predict_proba(x[held]), labels=model.classes_)
                merits.append((model.score(x[held], y[held]), -loss))
                best = merits.index(max(merits))
                if len(merits) - best > 2:
                    break
            strength = path[best]
        model.set_params(C=1 / (strength * len(y)), warm_start=False).fit(x, y)
    if len(test):
        scores[:, present] = torch.from_numpy(model.predict_log_proba(unseen)).float()
    return scores, strength
