"""SimCLR (Chen et al. 2020, "A simple framework for contrastive learning of visual representations", arXiv 2002.05709).

    B  images of this process      V  views per image      P  processes      D  width of the projection

Every view must find the other views of its image among all views of the batch.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from selfie_cli.methods.joint import JointEmbedding
from selfie_cli.training.distributed import Group, of_all_processes


class SimCLR(JointEmbedding):
    """The encoder, the projector, and the contrastive loss NT-Xent that trains them.

    The batch is part of the task: with micro-batches, a view's negatives are those of its micro-batch. If `blur` is 1,
    half of the views are blurred. `jitter` is BYOL's: 1 stands for the paper's at strength 0.5, except that the
    saturation then varies by .2, not .4.
    """

    def __init__(self, *, temperature: float, blur: float, **network: Any) -> None:
        super().__init__(blur=0.5 * blur, **network)
        self.temperature = temperature

    def loss(self, *views: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """NT-Xent over every pair of views of an image."""
        return nt_xent(self.embeddings(*views), self.num_views, self.temperature, self.group)


def nt_xent(z: Tensor, num_views: int, temperature: float, group: Group) -> tuple[Tensor, dict[str, Tensor]]:
    """The mean cross entropy of each positive among itself and all negatives (Chen et al. 2020, section 2.1).

    z: the projections [V * B, D], the first view of every image first. The positives of a view are the other views of
    its image, its negatives all views of the other images of all processes. With two views this is the paper's loss.

    Logs the share of the views whose most similar view is of the same image, and that of a guess.
    """
    with torch.autocast(z.device.type, enabled=False):  # divided by a small temperature, bf16 is too coarse
        z = F.normalize(z.float(), dim=1)
        candidates, first = of_all_processes(z, group)  # [V * B * P, D]
        scores = z @ candidates.T / temperature  # [V * B, V * B * P]
    num_images = len(z) // num_views
    row = torch.arange(len(z), device=z.device)[:, None]
    column = torch.arange(len(candidates), device=z.device) - first
    here = (column >= 0) & (column < len(z))
    itself = row == column
    positive = here & (row % num_images == column % num_images) & ~itself
    negatives = scores.masked_fill(positive | itself, -torch.inf).logsumexp(dim=1, keepdim=True)  # [V * B, 1]
    losses = F.softplus(negatives - scores)  # -log(e^s / (e^s + sum of the negatives'))
    loss = torch.where(positive, losses, 0).sum() / positive.sum()
    best = scores.detach().masked_fill(itself, -torch.inf).argmax(dim=1, keepdim=True)
    accuracy = positive.gather(1, best).float().mean()
    chance = torch.full_like(accuracy, (num_views - 1) / (len(candidates) - 1))
    return loss, {"pretext_accuracy": accuracy, "chance": chance}
