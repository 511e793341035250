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

    `blur` is the share of odd views that are blurred (of even views, a tenth of it), `solarize` the share of even views
    that are solarized. Two views with `jitter` and `blur` 1 and `solarize` 0.2 are those of the paper's appendix B.
    `tau` is the target's decay at the start. Batch norm sees one micro-batch at a time.
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
        # One pass for each view, as in the authors' code, so that batch norm's statistics are of one kind of view.
        each = views[0].chunk(self.num_views)  # V of [B, 3, s, s]
        predictions = torch.stack([self.predictor(projection(self.encoder, self.projector, view)) for view in each])
        with torch.no_grad():
            targets = torch.stack([projection(self.target_encoder, self.target_projector, view) for view in each])
            # float32 even under autocast: near 1, where the cosine ends up, bf16 has no more than three digits.
            targets = F.normalize(targets.float(), dim=2)
            others = targets.sum(dim=0) - targets  # [V, B, D], in proportion to the mean of the other views'
        cosine = F.cosine_similarity(predictions.float(), others, dim=2).mean()
        return 4 - 4 * cosine, {"cosine": cosine.detach()}

    def start_from(self, encoder: dict[str, Tensor]) -> None:
        """Start the encoder as in every method, and the target's encoder as a copy of it."""
        super().start_from(encoder)
        self.target_encoder.load_state_dict(self.encoder.state_dict())

    @torch.no_grad()
    def after_step(self, done: float) -> None:
        """Move the target towards the online network by a share that falls from 1 - `tau` to 0 on a cosine.

        Only parameters are averaged. The target normalizes by its batch, as in the authors' code, so the running
        statistics of its batch norms are never used; averages of them would not fit averaged weights.
        """
        share = (1 - self.tau) * (math.cos(math.pi * done) + 1) / 2
        online = chain(self.encoder.parameters(), self.projector.parameters())
        target = chain(self.target_encoder.parameters(), self.target_projector.parameters())
        torch._foreach_lerp_(list(target), list(online), share)
