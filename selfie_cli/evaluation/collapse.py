"""Whether features have collapsed: all images at one place, or along few directions."""

import torch
from torch import Tensor


def feature_spread(vectors: Tensor) -> tuple[float, float]:
    """Spread of features, float32 [N, D]: standard deviation of the L2-normalized ones, and their effective rank.

    The former is the mean over dimensions, times sqrt(D): 1 for isotropic features, 0 for equal ones (Chen & He 2021,
    section 4.1). The latter is exp of the entropy of the normalized singular values of the centred features (Roy &
    Vetterli 2007).
    """
    unit = torch.nn.functional.normalize(vectors.float(), dim=1)
    std = unit.std(dim=0).mean().item() * vectors.shape[1] ** 0.5
    values = torch.linalg.svdvals(vectors.float() - vectors.float().mean(dim=0))
    shares = values / values.sum().clamp(min=1e-12)
    rank = torch.exp(-(shares * shares.clamp(min=1e-12).log()).sum()).item()
    return std, rank


def collapse_warning(std: float, rank: float, width: int) -> str | None:
    if rank >= 2 and std >= 0.01:
        return None
    return f"the features have collapsed (spread {std:.3f}, {rank:.1f} effective dimensions of {width}): try a lower --lr"
