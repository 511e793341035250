"""Collapse: a network that gives nearly the same vector to all images.

N images    D features

Measure the vectors that the loss is computed from. Vectors before a projector do not show a collapse: after a batch
norm at the encoder's end, they stay apart while their projections collapse.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

# Measured on 8 to 256 photographs. Healthy: untrained encoders have at least 0.054 and rank 3.6 (8 images, fresh batch
# norms), trained ones 0.12 and 4.3, Selfie's pooled vectors 0.043 and 2.8. BYOL that collapses, without its predictor
# and slow target: 0.023 and 2.3 after 70 steps, 0.017 and 1.9 after 150.
LEAST_STD = 0.03
LEAST_RANK = 2.0
ROUNDING = 1e-6  # of the vectors' norm: smaller variation is float32 rounding


def feature_spread(vectors: Tensor) -> tuple[float, float]:
    """Spread and effective rank of vectors, float [N, D], finite; N should be at least 8, better 256.

    The spread is the standard deviation over images of the vectors at length 1, averaged over features, times sqrt(D):
    0 if all are the same, 1 if they point in all directions equally (Chen and He 2021, "Exploring simple siamese
    representation learning", section 4.1). Networks that end in a ReLU have 0.1 to 0.6: their vectors share a mean.

    The effective rank of the centred vectors is 0 (no variation) or 1 to min(N - 1, D): exp of the entropy of the
    singular values divided by their sum (Roy and Vetterli 2007, "The effective rank"; RankMe, Garrido et al. 2023,
    does not centre, but here the mean would outweigh everything else).
    """
    vectors = vectors.detach().cpu().double()
    std = F.normalize(vectors, dim=1).std(dim=0, correction=0).mean() * vectors.shape[1] ** 0.5
    values = torch.linalg.svdvals(vectors - vectors.mean(dim=0))  # [min(N, D)]
    values = values[values > ROUNDING * vectors.norm()]
    rank = torch.special.entr(values / values.sum()).sum().exp().item() if len(values) else 0.0
    return std.item(), rank


def collapse_warning(std: float, rank: float, width: int) -> str | None:
    """A warning about the `feature_spread` of vectors with `width` features; None if they are healthy."""
    if std >= LEAST_STD and rank >= LEAST_RANK:
        return None
    alike = "nearly the same vector" if std < LEAST_STD else "vectors that differ in hardly more than one way"
    return (
        f"the network gives all images {alike} (spread {std:.3f}, where 0.1 to 1 is healthy; {rank:.1f} of {width} "
        "directions in use). This is called collapse: the loss may look good, but nothing about the images is being "
        "learnt. If it lasts for some hundred steps, stop, look whether the images are too much alike, and start again "
        "with a third of --lr, a larger --batch-size, or --method selfie, whose task has no such way out"
    )
