"""Selfie over many small views: Selfie's low cost (Trinh, Luong, Le 2019), with patches of any place and scale.

    B  images      V  views per image      E  width of the projection

The patch network sees each patch by itself, as in Selfie. Patches are small random crops instead of cells of a grid.
The loss pulls all patches of an image to their mean, the context. It needs no distractors, because a coding rate keeps
the images of a batch apart. It is the loss of EMP-SSL (Tong, Chen, Ma, LeCun 2023, "EMP-SSL: towards
self-supervised learning in one training epoch", arXiv 2304.03977), after MCR^2 (Yu et al. 2020, "Learning diverse and
discriminative representations via the principle of maximal coding rate reduction", arXiv 2006.08558).
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from selfie_cli.methods.joint import JointEmbedding
from selfie_cli.training.distributed import of_all_processes


class ManyViewSelfie(JointEmbedding):
    """The patch network, the projector, and the loss that trains them.

    `attraction` weighs the similarity of an image's views against the coding rate of the batch, `distortion` is the
    square of the distortion that the rate allows. With micro-batches, the coding rate is that of one micro-batch.
    """

    def __init__(self, *, attraction: float, distortion: float, blur: float, **network: Any) -> None:
        super().__init__(blur=0.5 * blur, **network)
        self.attraction = attraction
        self.distortion = distortion

    def loss(self, *views: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """attraction * (1 - mean cosine of views and their image's mean) - coding rate.

        Logs both terms, the share of the first views whose most similar second view is of the same image, and the
        share that a guess would have.
        """
        z = self.embeddings(*views)  # [V * B, E]
        with torch.autocast(z.device.type, enabled=False):  # sums over the batch are too coarse in bf16
            z = F.normalize(z.float(), dim=1)
            everyone, _ = of_all_processes(z, self.group)  # [P * V * B, E]
            num_images = len(z) // self.num_views
            z = everyone.view(-1, self.num_views, num_images, z.shape[1]).transpose(0, 1).flatten(1, 2)  # [V, P * B, E]
            similarity = F.cosine_similarity(z, z.mean(dim=0, keepdim=True), dim=2).mean()
            rate = coding_rate(z, self.distortion)
            loss = self.attraction * (1 - similarity) - rate
            accuracy, chance = picked(z[0].detach(), z[1].detach())
        logged = {"similarity": similarity.detach(), "coding_rate": rate.detach()}
        return loss, {**logged, "pretext_accuracy": accuracy, "chance": chance}


def coding_rate(z: Tensor, distortion: float) -> Tensor:
    """log det(I + E / (B distortion) Z^T Z) / 2, its mean over the views of unit vectors z float [V, B, E], in nats.

    Yu et al. 2020, equation 1, with the width E and the number B of the vectors; `distortion` is its epsilon^2.
    """
    b, e = z.shape[1:]
    identity = torch.eye(e, device=z.device, dtype=z.dtype)
    covariance = identity + e / (b * distortion) * (z.mT @ z)  # [V, E, E]
    # log det = 2 sum log diag L. `cholesky_ex` skips the check of its argument, which would wait for the GPU.
    factor, _ = torch.linalg.cholesky_ex(covariance)
    diagonal = (factor * identity).sum(dim=2)  # [V, E]; the compiler has no diagonal() without a warning
    rates: Tensor = diagonal.log().sum(dim=1)  # [V]
    return rates.mean()


def picked(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """Share of the first views [B, E] whose most similar second view [B, E] is of the same image, and a guess's."""
    best = (first @ second.T).argmax(dim=1)
    accuracy = (best == torch.arange(len(first), device=first.device)).float().mean()
    return accuracy, torch.full_like(accuracy, 1 / len(first))
