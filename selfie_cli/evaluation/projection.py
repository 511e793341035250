"""Vectors as places on a plane, similar ones close together: t-SNE by scikit-learn.

N points    D features
"""

import torch
from torch import Tensor
from torch.nn import functional as F

PERPLEXITY = 30.0  # about how many neighbours a point has


def tsne(vectors: Tensor, *, seed: int = 0) -> Tensor:
    """Places of vectors, float [N, D], N and D at least 2: float32 [N, 2] on the CPU, by the cosine distances of the
    vectors.

    It starts from the two first principal components (Kobak and Berens 2019, "The art of using t-SNE"), with a little
    noise from `seed` that separates equal vectors. It runs in one thread: otherwise the order of sums, and so the
    places, would depend on the number of threads.
    """
    from sklearn.manifold import TSNE
    from threadpoolctl import threadpool_limits

    x = F.normalize(vectors.detach().float().cpu(), dim=1)
    x = x + 1e-4 * torch.randn(x.shape, generator=torch.Generator().manual_seed(seed))
    perplexity = min(PERPLEXITY, (len(x) - 1) / 3)
    with threadpool_limits(1):
        found = TSNE(perplexity=perplexity, init="pca", random_state=seed, n_jobs=1).fit_transform(x.numpy())
    return torch.from_numpy(found).float()
