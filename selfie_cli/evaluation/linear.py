"""The linear probe: multinomial logistic regression on frozen features, by L-BFGS over all rows at once.

N training rows    M rows to score    D features    C classes
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from selfie_cli.errors import DataError, TrainingError

STRENGTHS = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0)
ITERATIONS = 100


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


@torch.inference_mode(False)  # features are often made, and probes therefore fitted, where gradients are off
def fit_linear_probe(
    features: Tensor,
    labels: Tensor,
    *,
    num_classes: int,
    held_out: Tensor,
    strengths: Sequence[float] = STRENGTHS,
) -> LinearProbe:
    """Minimise, from zero weights, the mean cross-entropy + strength / 2 * |weight|^2; the bias is not penalised.

    `features` [N, D] are floats and `labels` [N] int64, on one device; all of them are training data. True in the bool
    mask `held_out` [N] marks the rows (a stratified fifth, say) on which the strength is chosen: highest accuracy, then
    lowest cross-entropy. The path is walked from the strongest penalty to the weakest, each starting where the last
    ended, with at most ITERATIONS of L-BFGS each, until two in a row are no better than the best so far;
    the chosen strength is refitted on all rows. With nothing held out (one image a class), or one strength, there is
    no choice: the middle strength is taken.

    Nothing is drawn at random. Raises DataError if no rows remain to fit on, TrainingError where a feature is not
    finite.
    """
    if bool(held_out.all()):
        raise DataError("A linear probe needs at least one labelled training image that is not held out.")
    std, mean = torch.std_mean(features.float(), dim=0, correction=0)  # [D]
    if not (std.isfinite().all() and mean.isfinite().all()):
        raise TrainingError("The features are not finite numbers: this network has diverged; use an earlier run.")
    # Constant but for the last digit (1e-7 in float32; the batch's shape decides it): dividing would make it a feature.
    std = std.masked_fill(std <= 1e-6 * mean.abs(), torch.inf)
    features = (features.float() - mean).div_(std)  # [N, D]
    labels = labels.clone()  # autograd refuses to keep tensors that were made in inference mode
    weight = torch.zeros(num_classes, features.shape[1], device=features.device, requires_grad=True)
    bias = torch.zeros(num_classes, device=features.device, requires_grad=True)

    path = sorted(strengths, reverse=True)
    chosen = path[len(path) // 2]
    if len(path) > 1 and bool(held_out.any()):
        fit_features, fit_labels = features[~held_out], labels[~held_out]
        held_features, held_labels = features[held_out], labels[held_out]
        best, failures = (-1.0, 0.0), 0
        start = weight.detach(), bias.detach()
        for strength in path:
            _minimise(weight, bias, fit_features, fit_labels, strength)
            with torch.no_grad():
                logits = F.linear(held_features, weight, bias)  # [held out, C]
                accuracy = (logits.argmax(dim=1) == held_labels).double().mean().item()
                merit = (accuracy, -F.cross_entropy(logits, held_labels).item())
            if merit > best:
                best, failures, chosen = merit, 0, strength
                start = weight.detach().clone(), bias.detach().clone()
            else:
                failures += 1
                if failures == 2:  # the weakest penalties are the slowest to fit
                    break
        with torch.no_grad():
            weight.copy_(start[0])
            bias.copy_(start[1])
    _minimise(weight, bias, features, labels, chosen)
    return LinearProbe(weight=weight.detach(), bias=bias.detach(), mean=mean, std=std, strength=chosen)


def _minimise(weight: Tensor, bias: Tensor, features: Tensor, labels: Tensor, strength: float) -> None:
    """Move `weight` and `bias` in place to the minimum of the penalised loss."""
    # float32 knows the loss to about 1e-7: beyond these tolerances the line search would chase rounding.
    optimizer: torch.optim.Optimizer = torch.optim.LBFGS(
        [weight, bias],
        max_iter=ITERATIONS,
        tolerance_grad=1e-6,
        tolerance_change=1e-7,
        history_size=10,
        line_search_fn="strong_wolfe",
    )

    def closure() -> float:
        optimizer.zero_grad()
        loss = F.cross_entropy(F.linear(features, weight, bias), labels) + strength / 2 * weight.square().sum()
        torch.autograd.backward(loss)
        return loss.item()

    optimizer.step(closure)
