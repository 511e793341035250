"""What SimCLR and two-view Selfie have in common: of all views of a batch, find the other one of the same image.

B  images of this process      P  processes      D  width
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from selfie_cli.training.distributed import Group, of_all_processes


def score_views(queries: Tensor, keys: Tensor, temperature: float, group: Group) -> tuple[Tensor, Tensor]:
    """Cosines of each query with the keys of the group's P processes, over the temperature: float32 [2B, 2B * P].

    queries and keys: [2B, D], first those of all first views, then those of all second ones. A view is no candidate for
    itself: minus infinity. Also returns the column of each query's partner, int64 [2B].
    """
    with torch.autocast(queries.device.type, enabled=False):  # divided by a small temperature, bf16 is too coarse
        queries, keys = F.normalize(queries.float(), dim=1), F.normalize(keys.float(), dim=1)
        candidates, first = of_all_processes(keys, group)  # [2B * P, D]
        itself = first + torch.arange(len(queries), device=queries.device)
        scores = (queries @ candidates.T / temperature).scatter(1, itself[:, None], -torch.inf)
    return scores, itself.roll(len(queries) // 2)


def find_partner(scores: Tensor, partner: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """The cross entropy of the partner, its mean (NT-Xent; Chen et al. 2020, arXiv 2002.05709, section 2.1).

    Takes what `score_views` gives; logs the share of the views whose partner scores highest, and a guess's.
    """
    accuracy = (scores.detach().argmax(dim=1) == partner).float().mean()
    chance = torch.full_like(accuracy, 1 / (scores.shape[1] - 1))
    return F.cross_entropy(scores, partner), {"pretext_accuracy": accuracy, "chance": chance}
