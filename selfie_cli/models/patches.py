"""Cutting images into patches, and choosing the ones to hide.

B  images      N  patches per image (g x g, row by row)     K  masked ones
S  image side, p  patch side, both in pixels                D  width
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def cut(images: Tensor, patch_size: int) -> Tensor:
    """Cut images [B, 3, S, S] into patches [B * N, 3, p, p], grouped by image, laid out channels-last."""
    b, c, s, _ = images.shape
    p, g = patch_size, s // patch_size
    x = images.permute(0, 2, 3, 1).reshape(b, g, p, g, p, c)  # [B, g, p, g, p, 3]
    x = x.transpose(2, 3).reshape(b * g * g, p, p, c)  # [B * N, p, p, 3]
    return x.permute(0, 3, 1, 2)  # [B * N, 3, p, p]


def encode(network: nn.Module, images: Tensor, patch_size: int, *, apart: bool) -> Tensor:
    """Encode images [B, 3, S, S] to a vector per patch, [B, N, D]. `network` returns feature maps [..., D, h, w].

    If `apart`, the network sees each patch by itself, and its maps are averaged over space, as in the paper. Otherwise
    it sees whole images, and its maps are averaged within each patch's cell.
    """
    b, g = images.shape[0], images.shape[-1] // patch_size
    if apart:
        h: Tensor = network(cut(images, patch_size)).mean(dim=(2, 3))  # [B * N, D]
        return h.view(b, g * g, -1)  # [B, N, D]
    maps = network(images)  # [B, D, h, h]
    whole, rest = divmod(maps.shape[-1], g)
    # Adaptive pooling has no deterministic backward pass on CUDA.
    cells = F.adaptive_avg_pool2d(maps, g) if rest or not whole else F.avg_pool2d(maps, whole)  # [B, D, g, g]
    return cells.flatten(2).transpose(1, 2)  # [B, N, D]


def random_masks(scores: Tensor, num_masked: int) -> tuple[Tensor, Tensor]:
    """Split the places of each image by its own random scores [B, N] into masked [B, K] and visible [B, N - K].

    Both are int64 indices of places. The masked ones are the K lowest scores in no particular order, so a position
    in the list does not tell where a patch came from.
    """
    order = scores.argsort(dim=1)
    return order[:, :num_masked], order[:, num_masked:]


def gather_places(vectors: Tensor, places: Tensor) -> Tensor:
    """Pick vectors [B, N, D], or [1, N, D] for all images, at places [B, K] (int64): [B, K, D]."""
    return torch.take_along_dim(vectors, places.unsqueeze(-1), dim=1)


def num_masked(num_patches: int, mask_ratio: float) -> int:
    """Number of hidden patches: at least two, so that there is a choice; at least one stays visible."""
    return max(2, min(num_patches - 1, round(num_patches * mask_ratio)))
