"""t-SNE: what is alike lies together, the same every time, and odd input gives places all the same."""

import math

import pytest
import torch

from selfie_cli.evaluation.projection import _joint, tsne


def clusters(num_points: int, num_clusters: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(num_points) % num_clusters
    centres = 3 * torch.randn(num_clusters, 32, generator=generator)
    return centres[labels] + torch.randn(num_points, 32, generator=generator), labels


def test_clusters_stay_apart() -> None:
    vectors, labels = clusters(300, 6)
    places = tsne(vectors)
    assert places.shape == (300, 2)
    assert places.dtype == torch.float32
    assert places.abs().max() == pytest.approx(1)
    distance = torch.cdist(places, places).fill_diagonal_(math.inf)
    assert (labels[distance.topk(10, largest=False).indices] == labels[:, None]).float().mean() > 0.99
    centres = torch.stack([places[labels == c].mean(dim=0) for c in range(6)])
    widest = max((places[labels == c] - centres[c]).norm(dim=1).mean().item() for c in range(6))
    assert torch.pdist(centres).min() > 2 * widest


def test_it_is_deterministic_and_leaves_the_threads_alone() -> None:
    vectors, _ = clusters(60, 3)
    before = torch.get_num_threads()
    first = tsne(vectors)
    torch.set_num_threads(2)
    try:
        assert torch.equal(tsne(vectors), first)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    assert not torch.equal(tsne(vectors, seed=1), first)


def test_neighbourhoods_have_the_perplexity() -> None:
    """Against the definition (section 2), point by point, in Python's own floats."""
    vectors, _ = clusters(40, 2)
    x = torch.nn.functional.normalize(vectors, dim=1)
    joint = _joint(x, 8.0)
    assert joint.sum() == pytest.approx(1, abs=1e-5)
    assert torch.equal(joint, joint.T)
    squared = torch.cdist(x.double(), x.double()).square().tolist()
    conditional = []
    for i, row in enumerate(squared):
        low, high = 0.0, 1e6
        for _ in range(100):
            beta = (low + high) / 2
            weights = [
                0.0 if j == i else math.exp(-beta * (d - min(row[:i] + row[i + 1 :]))) for j, d in enumerate(row)
            ]
            p = [weight / sum(weights) for weight in weights]
            entropy = -sum(each * math.log(each) for each in p if each > 0)
            low, high = (beta, high) if entropy > math.log(8) else (low, beta)
        conditional.append(p)
    wanted = torch.tensor([[(conditional[i][j] + conditional[j][i]) / 80 for j in range(40)] for i in range(40)])
    torch.testing.assert_close(joint, wanted, atol=1e-6, rtol=1e-3)


@pytest.mark.parametrize("vectors", [torch.ones(20, 8), torch.zeros(5, 3), torch.randn(3, 64), torch.randn(2, 2)])
def test_odd_vectors_have_places(vectors: torch.Tensor) -> None:
    places = tsne(vectors)
    assert places.shape == (len(vectors), 2)
    assert places.isfinite().all()
