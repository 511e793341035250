"""BYOL (Grill et al. 2020, "Bootstrap your own latent: a new approach to self-supervised learning", arXiv 2006.07733).

    B  images      V  views per image      D  width of the projection      s  side of a view

The online network predicts from each view the projection that the target network, a slowly moving average of it, makes
of the other views of the same image.
"""

import copy
import math
from itertools import chain
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from selfie_cli.methods.joint import JointEmbedding, mlp, projection


class Byol(JointEmbedding):
    """The online encoder, projector and predictor, and the target's own encoder and projector.

    The views are those of the paper's appendix B if there are two, `jitter` and `blur` are 1 and `solarize` is 0.2:
    `blur` is the share of the odd views that are blurred (a tenth of it of the even ones), `solarize` that of the even
    views that are solarized. `tau` is where the target's decay starts. With micro-batches, batch norm sees a piece at a
    time.
    """

    def __init__(self, *, tau: float, blur: float, solarize: float, hidden: int, width: int, **network: Any) -> None:
        super().__init__(blur=(blur, 0.1 * blur), solarize=(0.0, solarize), hidden=hidden, width=width, **network)
        self.tau = tau
        self.predictor = mlp(width, hidden, width)
        self.target_encoder = copy.deepcopy(self.encoder).requires_grad_(False)
        self.target_projector = copy.deepcopy(self.projector).requires_grad_(False)

    def loss(self, *views: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """2 - 2 cos(prediction, mean target of the other views), averaged over images and views, times two: 0..8.

        With two views this is the paper's loss, summed over both directions. Logs the mean `cosine`.
        """
        # One pass for each view, as the authors do it: batch norm's statistics are of one kind of view at a time.
        each = views[0].chunk(self.num_views)  # V of [B, 3, s, s]
        predictions = torch.stack([self.predictor(projection(self.encoder, self.projector, view)) for view in each])
        with torch.no_grad():
            targets = torch.stack([projection(self.target_encoder, self.target_projector, view) for view in each])
            # In float32 under autocast, too: near 1, where it ends up, a cosine has no more than three digits in bf16.
            targets = F.normalize(targets.float(), dim=2)
            others = targets.sum(dim=0) - targets  # [V, B, D], in proportion to the mean of the other views'
        cosine = F.cosine_similarity(predictions.float(), others, dim=2).mean()
        return 4 - 4 * cosine, {"cosine": cosine.detach()}

    def start_from(self, encoder: dict[str, Tensor]) -> None:
        """As for every method; the target starts equal to the online network."""
        super().start_from(encoder)
        self.target_encoder.load_state_dict(self.encoder.state_dict())

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
