import pytest
import torch

from selfie_cli.models.patches import cut, gather_places, num_masked, random_masks


@pytest.mark.parametrize(("size", "patch"), [(32, 8), (224, 32), (24, 8), (16, 8)])
def test_patches_are_plain_slices_row_by_row(size, patch):
    images = torch.randn(3, 3, size, size)
    slices = [
        image[:, top : top + patch, left : left + patch]
        for image in images
        for top in range(0, size, patch)
        for left in range(0, size, patch)
    ]
    assert cut(images, patch).equal(torch.stack(slices))


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_patches_are_channels_last(layout):
    images = torch.randn(2, 3, 32, 32).contiguous(memory_format=layout)
    patches = cut(images, 8)
    assert patches.shape == (32, 3, 8, 8)
    assert patches.is_contiguous(memory_format=torch.channels_last)


def test_masked_and_visible_places_are_all_places_of_an_image():
    masked, visible = random_masks(torch.rand(50, 49), 12)
    assert (masked.shape, visible.shape) == ((50, 12), (50, 37))
    assert torch.cat([masked, visible], dim=1).sort(dim=1).values.equal(torch.arange(49).expand(50, 49))


def test_the_lowest_scores_are_masked():
    scores = torch.tensor([[0.9, 0.1, 0.5, 0.2], [0.0, 0.7, 0.6, 0.8]])
    masked, visible = random_masks(scores, 2)
    assert [set(row) for row in masked.tolist()] == [{1, 3}, {0, 2}]
    assert [set(row) for row in visible.tolist()] == [{0, 2}, {1, 3}]


def test_every_image_has_its_own_mask_and_every_place_its_share():
    generator = torch.Generator().manual_seed(0)
    num_images = 16_000
    masked, _ = random_masks(torch.rand(num_images, 16, generator=generator), 4)
    different = {frozenset(row) for row in masked.tolist()}
    assert len(different) == 1820  # all ways to choose 4 of 16
    # Not only in all: each position in the list, too, says nothing about the place. Five standard deviations.
    for column in masked.T:
        counts = column.bincount(minlength=16).double()
        mean = num_images / 16
        assert (counts - mean).abs().max() < 5 * (mean * 15 / 16) ** 0.5


def test_places_are_gathered_for_each_image():
    vectors = torch.arange(2 * 4 * 3.0).view(2, 4, 3)
    places = torch.tensor([[3, 0], [1, 1]])
    expected = [[vectors[b, place].tolist() for place in row] for b, row in enumerate(places.tolist())]
    assert gather_places(vectors, places).tolist() == expected


@pytest.mark.parametrize(
    ("num_patches", "ratio", "expected"), [(16, 0.25, 4), (49, 0.25, 12), (4, 0.25, 2), (4, 0.99, 3), (16, 0.001, 2)]
)
def test_at_least_two_are_masked_and_one_is_visible(num_patches, ratio, expected):
    assert num_masked(num_patches, ratio) == expected
