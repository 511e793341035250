"""t-SNE: what is alike lies together, the same every time, and odd input gives places all the same."""

import pytest
import torch

from selfie_cli.reporting.examples import tsne


def clusters(num_points: int, num_clusters: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(num_points) % num_clusters
    centres = 3 * torch.randn(num_clusters, 32, generator=generator)
    return centres[labels] + torch.randn(num_points, 32, generator=generator), labels


def test_only_the_seed_decides_and_the_number_of_threads_stays() -> None:
    vectors, _ = clusters(60, 3)
    before, first = torch.get_num_threads(), tsne(vectors)
    torch.set_num_threads(2)
    try:
        assert torch.equal(tsne(vectors), first)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    assert not torch.equal(tsne(vectors, seed=1), first)


@pytest.mark.parametrize("vectors", [torch.ones(20, 8), torch.zeros(5, 3), torch.randn(3, 64), torch.randn(2, 2)])
def test_odd_vectors_have_places(vectors: torch.Tensor) -> None:
    places = tsne(vectors)
    assert places.shape == (len(vectors), 2)
    assert places.isfinite().all()
