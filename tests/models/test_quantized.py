"""A network in 8 bits against itself in 32."""

import copy

import pytest
import torch
import torch.nn.functional as F
from test_lean import KINDS, network, pixels

from selfie_cli.models.quantized import Grid, QuantizedPooling, Seen, has_vnni

pytestmark = pytest.mark.skipif(not has_vnni(torch.device("cpu")), reason="no VNNI here")


def test_a_grid_spans_what_was_seen_and_holds_zero() -> None:
    grid = Grid.over(Seen(-1.0, 3.0, torch.Size()))
    values = torch.tensor([-1.0, 0.0, 1.234, 3.0, 9.0, -9.0])
    stored = grid.stored(values)
    assert stored.tolist()[:2] == [0, grid.zero]
    assert stored.tolist()[3:] == [255, 255, 0]
    assert grid.values(stored)[1] == 0
    assert (grid.values(stored) - values)[:4].abs().max() <= 0.5 * grid.scale + 1e-6


@pytest.mark.parametrize("side", [8, 7, 1])
def test_pooling_is_max_pooling(side: int) -> None:
    x = torch.randint(0, 256, (2, 5, side, side), dtype=torch.uint8)
    assert QuantizedPooling()(x).equal(F.max_pool2d(x.float(), 3, 2, 1).to(torch.uint8))


@pytest.mark.parametrize("kind", KINDS)
def test_int8_points_the_same_way(kind: str) -> None:
    make, features = KINDS[kind]
    exact = network(make(), features)
    before, expected = copy.deepcopy(exact.module.state_dict()), exact.vectors(pixels())
    coarse = exact.in_int8(pixels())
    for some in (pixels(), pixels()[:1]):
        found = coarse.vectors(some)
        assert found.dtype == torch.float32
        assert F.cosine_similarity(found, expected[: len(some)]).min() > 0.99
    assert all(tensor.equal(before[name]) for name, tensor in exact.module.state_dict().items())
