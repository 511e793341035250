"""BYOL (Grill et al. 2020, "Bootstrap your own latent: a new approach to self-supervised learning", arXiv 2006.07733).

    B  images      D  width of the projection      s  network's side

Two views of each image. The online network predicts from either view what the target network, a slowly moving average
of it, makes of the other one.
"""

import copy
import math
from itertools import chain
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from selfie_cli.methods.joint import JointEmbedding, projection
from selfie_cli.models.encoder import mlp


class Byol(JointEmbedding):
    """The online encoder, projector and predictor, and the target's own encoder and projector.

    The views are those of the paper's appendix B if `jitter` and `blur` are 1 and `solarize` is 0.2: `blur` is the
    share of the first views that are blurred (a tenth of it of the second), `solarize` that of the second views that
    are solarized. `tau` is where the target's decay starts. With micro-batches, batch norm sees a piece at a time.
    """

    def __init__(self, *, tau: float, blur: float, solarize: float, hidden: int, width: int, **network: Any) -> None:
        super().__init__(blur=(blur, 0.1 * blur), solarize=(0.0, solarize), hidden=hidden, width=width, **network)
        self.tau = tau
        self.predictor = mlp(width, hidden, width)
        self.target_encoder = copy.deepcopy(self.encoder).requires_grad_(False)
        self.target_projector = copy.deepcopy(self.projector).requires_grad_(False)

    def loss(self, *views: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """2 - 2 cos(prediction, target), its mean over the images, summed over both directions: 0..8.

        Takes two views of the same images, float [B, 3, s, s], in the same order; logs the mean `cosine`.
        """
        view1, view2 = views
        # One pass for each view, as the authors do it: batch norm's statistics are of one kind of view at a time.
        prediction1 = self.predictor(projection(self.encoder, self.projector, view1))  # [B, D]
        prediction2 = self.predictor(projection(self.encoder, self.projector, view2))  # [B, D]
        with torch.no_grad():
            target1 = projection(self.target_encoder, self.target_projector, view1)  # [B, D]
            target2 = projection(self.target_encoder, self.target_projector, view2)  # [B, D]
        # In float32 under autocast, too: near 1, where it ends up, a cosine has no more than three digits in bf16.
        cosine1 = F.cosine_similarity(prediction1.float(), target2.float()).mean()
        cosine2 = F.cosine_similarity(prediction2.float(), target1.float()).mean()
        cosine = (cosine1 + cosine2) / 2
        return 4 - 4 * cosine, {"cosine": cosine.detach()}

    @torch.no_grad()
    def after_step(self, done: float) -> None:
        """Move the target towards the online network by 1 - tau, which falls from its base to 0 on a cosine.

        Parameters only. The target normalizes by its batch, as in the authors' code, so the statistics that its batch
        norms gather on the way are used nowhere; they stay its own, since an average of weights would not have them.
        """
        share = (1 - self.tau) * (math.cos(math.pi * done) + 1) / 2
        online = chain(self.encoder.parameters(), self.projector.parameters())
        target = chain(self.target_encoder.parameters(), self.target_projector.parameters())
        torch._foreach_lerp_(list(target), list(online), share)
