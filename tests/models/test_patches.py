import pytest
import torch

from selfie_cli.models.patches import cut, num_masked, random_masks


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_patches_are_channels_last(layout):
    images = torch.randn(2, 3, 32, 32).contiguous(memory_format=layout)
    patches = cut(images, 8)
    assert patches.shape == (32, 3, 8, 8)
    assert patches.is_contiguous(memory_format=torch.channels_last)


def test_every_image_has_its_own_mask_and_every_place_its_share():
    scores = torch.rand(16_000, 16, generator=torch.Generator().manual_seed(0))
    masked, _ = random_masks(scores, 4)
    assert len({frozenset(row) for row in masked.tolist()}) == 1820  # all ways to choose 4 of 16
    for column in masked.T:  # 1,000 expected of each place; within five standard deviations
        assert (column.bincount(minlength=16) - 1000).abs().max() < 5 * (1000 * 15 / 16) ** 0.5


@pytest.mark.parametrize(
    ("num_patches", "ratio", "expected"), [(16, 0.25, 4), (49, 0.25, 12), (4, 0.25, 2), (4, 0.99, 3), (16, 0.001, 2)]
)
def test_at_least_two_are_masked_and_one_is_visible(num_patches, ratio, expected):
    assert num_masked(num_patches, ratio) == expected
