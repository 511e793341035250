"""Vectors as places on a plane, like beside like: t-SNE (van der Maaten and Hinton 2008, "Visualizing data using
t-SNE").

    N points    D features

Sections are those of that paper. All of it is exact, N x N, which suits up to a few thousand points.
"""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

PERPLEXITY = 30.0  # about how many neighbours a point has; the paper says 5 to 50
STEPS, EARLY = 750, 250
# Belkina et al. 2019 ("Automated optimized parameters for t-SNE"): N / exaggeration, here over the gradient's 4.
EXAGGERATION = 12.0
SEARCHES = 40  # halvings: the width of each neighbourhood is then exact to rounding


@torch.no_grad()
def tsne(vectors: Tensor, *, perplexity: float = PERPLEXITY, seed: int = 0) -> Tensor:
    """Places of vectors, float [N, D]: float32 [N, 2] on the CPU, within -1..1, by the cosine distances of the vectors.

    The start are the two first principal components (Kobak and Berens 2019, "The art of using t-SNE"), with a little
    noise from `seed` that parts equal vectors. The same vectors give the same places, whatever the number of threads:
    one thread does all, which at these sizes is also the fastest way.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        x = F.normalize(vectors.detach().float().cpu(), dim=1)
        places = _descend(_joint(x, min(perplexity, (len(x) - 1) / 3)), _start(x, seed))
    finally:
        torch.set_num_threads(threads)
    places = places - (places.amax(dim=0) + places.amin(dim=0)) / 2
    return places / places.abs().max().clamp(min=1e-12)


def _start(x: Tensor, seed: int) -> Tensor:
    """[N, D] -> [N, 2]: of standard deviation 1e-4 along the first component."""
    centred = x - x.mean(dim=0)
    noise = torch.randn(len(x), 2, generator=torch.Generator().manual_seed(seed))
    _, _, directions = torch.linalg.svd(centred, full_matrices=False)
    two = directions[:2] * directions[:2].sum(dim=1, keepdim=True).sign()  # a singular vector's sign is arbitrary
    start = F.pad(centred @ two.T, (0, 2 - len(two)))
    return 1e-4 * (start / start[:, 0].std(correction=0).clamp(min=1e-6) + 0.01 * noise)


def _joint(x: Tensor, perplexity: float) -> Tensor:
    """p_ij, how much points want to be neighbours (sections 2 and 3.1): [N, D] -> [N, N], all together 1.

    Each point's own p_j|i is a Gaussian whose width is sought so that 2 to its entropy is the perplexity.
    """
    distance = (2 - 2 * x @ x.T).clamp_(min=0)  # of unit vectors, squared
    distance /= distance.mean().clamp(min=1e-12)
    distance.fill_diagonal_(torch.inf)  # a point is no neighbour of its own
    precision = torch.ones(len(x), 1)
    low, high = torch.zeros_like(precision), torch.full_like(precision, torch.inf)
    wanted = math.log(max(1.0, perplexity))
    p = torch.zeros_like(distance)
    for _ in range(SEARCHES if len(x) > 1 else 0):
        p = (-distance * precision).softmax(dim=1)
        too_wide = torch.special.entr(p).sum(dim=1, keepdim=True) > wanted
        low, high = torch.where(too_wide, precision, low), torch.where(too_wide, high, precision)
        precision = torch.where(high.isinf(), (2 * precision).clamp(max=1e30), (low + high) / 2)
    return (p + p.T) / (2 * len(x))


def _descend(p: Tensor, y: Tensor) -> Tensor:
    """Gradient descent on the Kullback-Leibler divergence, [N, N] and a start [N, 2] -> [N, 2].

    Equation 5, with momentum, early exaggeration and adaptive rates as in section 3.4.
    """
    rate = max(50.0, len(y) / EXAGGERATION / 4)
    velocity, gain = torch.zeros_like(y), torch.ones_like(y)
    near, pull = torch.empty_like(p), torch.empty_like(p)  # reused: allocating them costs more than the arithmetic
    for step in range(STEPS):
        early = step < EARLY
        square = y.square().sum(dim=1)
        torch.addmm(square[None], y, y.T, alpha=-2, out=near)
        near.add_(square[:, None] + 1).reciprocal_().fill_diagonal_(0)  # (1 + |y_i - y_j|^2)^-1
        torch.sub(p.mul(EXAGGERATION) if early else p, near, alpha=1 / max(near.sum().item(), 1e-12), out=pull)
        pull.mul_(near)  # (p_ij - q_ij) (1 + |y_i - y_j|^2)^-1
        gradient = 4 * (pull.sum(dim=1, keepdim=True) * y - pull @ y)
        gain = torch.where(gradient * velocity > 0, gain * 0.8, gain + 0.2).clamp_(min=0.01)
        velocity = (0.5 if early else 0.8) * velocity - rate * gain * gradient
        y = y + velocity
    return y
