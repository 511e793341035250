"""SimCLR (Chen et al. 2020, "A simple framework for contrastive learning of visual representations", arXiv 2002.05709).

    B  images      D  width of the projection      s  network's side

Two views of each image. Every view must find its partner among all other views of the batch.
"""

from typing import Any

import torch
from torch import Tensor

from selfie_cli.methods.contrastive import find_partner, score_views
from selfie_cli.methods.joint import JointEmbedding


class SimCLR(JointEmbedding):
    """The encoder, the projector, and the contrastive loss NT-Xent that trains them.

    The batch is part of the task: with micro-batches, a view's negatives are those of its own piece. If `blur` is 1,
    half of the views are blurred. `jitter` is BYOL's: 1 stands for the paper's at strength 0.5, except that the
    saturation then varies by .2, not .4.
    """

    def __init__(self, *, temperature: float, blur: float, **network: Any) -> None:
        super().__init__(blur=(0.5 * blur, 0.5 * blur), **network)
        self.temperature = temperature

    def loss(self, *views: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """NT-Xent: cross entropy of each view's partner among the 2 B - 1 other views of the batch.

        Takes two views of the same images, float [B, 3, s, s], in the same order. Logs the share of the views whose
        partner scores highest and `chance`, that share for a guess.
        """
        z = self.embeddings(torch.cat(views))  # [2B, D]
        return find_partner(*score_views(z, z, self.temperature, self.group))
