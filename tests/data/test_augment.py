import pytest
import torch
import torch.nn.functional as F

from selfie_cli.data.augment import (
    MEAN,
    STD,
    centre_crop,
    crop,
    draw_boxes,
    draw_crops,
    draw_shifts,
    normalize,
    pad_crop,
    plain_view,
    training_view,
)
from selfie_cli.data.batches import step_generator


def noise_images(num_images, side):
    generator = torch.Generator().manual_seed(0)
    return torch.randint(1, 256, (num_images, side, side, 3), dtype=torch.uint8, generator=generator)


def coordinate_images(num_images, side=256):
    """Red is the column, green the row: what a view shows tells where it was taken."""
    ramp = torch.arange(side, dtype=torch.uint8)
    image = torch.stack(
        [ramp.expand(side, side), ramp.unsqueeze(1).expand(side, side), torch.zeros_like(ramp.expand(side, side))]
    )
    return image.permute(1, 2, 0).expand(num_images, side, side, 3)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def resized_crop(pixels, size, **how):
    """A random box of each image."""
    return crop(normalize(pixels), draw_boxes(len(pixels), seeded(), **how), size)


def denormalize(view):
    return (view * torch.tensor(STD).view(3, 1, 1) + torch.tensor(MEAN).view(3, 1, 1)) * 255


def boxes(view):
    """Left, right, top, bottom of each view's box in pixels of a coordinate image, and whether it is mirrored."""
    columns, rows = denormalize(view)[:, 0].mean(dim=1), denormalize(view)[:, 1].mean(dim=2)  # [B, s]

    def ends(values):
        # The outermost sample may lie within half a pixel of the edge, where there is no neighbour to blend it with.
        inner = values[:, 1:-1]
        step = (inner[:, -1] - inner[:, 0]) / (inner.shape[1] - 1)
        assert (inner.diff(dim=1) - step[:, None]).abs().max() < 0.05  # straight, so nothing beyond the edge is seen
        return inner[:, 0] - 1.5 * step + 0.5, inner[:, -1] + 1.5 * step + 0.5

    left, right = ends(columns)
    top, bottom = ends(rows)
    return torch.minimum(left, right), torch.maximum(left, right), top, bottom, left > right


def test_normalization_is_that_of_imagenet():
    pixels = noise_images(2, 8)
    expected = (pixels.permute(0, 3, 1, 2) / 255 - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)
    views = normalize(pixels)
    torch.testing.assert_close(views, expected, atol=1e-6, rtol=1e-5)
    assert views.is_contiguous(memory_format=torch.channels_last)


def test_pad_crop_is_a_slice_of_the_padded_image_or_its_mirror():
    pixels = noise_images(600, 12)
    shifts = draw_shifts(600, seeded())
    found = []
    for image, cropped in zip(pixels, pad_crop(pixels, shifts), strict=True):
        padded = torch.zeros(20, 20, 3, dtype=torch.uint8)
        padded[4:16, 4:16] = image
        matches = [
            (top, left, mirrored)
            for top in range(9)
            for left in range(9)
            for mirrored in (False, True)
            if cropped.equal(
                padded[top : top + 12, left : left + 12].flip(1)
                if mirrored
                else padded[top : top + 12, left : left + 12]
            )
        ]
        assert len(matches) == 1
        found += matches
    assert found == [(top, left, bool(mirrored)) for top, left, mirrored in shifts.tolist()]
    tops, lefts, mirrors = zip(*found, strict=True)
    assert set(tops) == set(lefts) == set(range(9))
    assert sum(mirrors) / 600 == pytest.approx(0.5, abs=0.1)


def test_pad_crop_without_flip_mirrors_nothing():
    shifts = draw_shifts(100, seeded(), flip=False)
    assert not shifts[:, 2].any()
    assert len(shifts.unique(dim=0)) > 30
    in_place = torch.tensor([[4, 4, 0]]).expand(100, 3)
    pixels = noise_images(100, 12)
    assert pad_crop(pixels, in_place).equal(pixels)
    in_place = torch.tensor([[4, 4, 1]]).expand(100, 3)
    assert pad_crop(pixels, in_place).equal(pixels.flip(2))


@pytest.mark.parametrize("min_area", [0.2, 0.5])
def test_boxes_of_the_resized_crop(min_area):
    left, right, top, bottom, mirrored = boxes(resized_crop(coordinate_images(400), 32, min_area=min_area))
    assert torch.stack([left, top]).min() > -0.1
    assert torch.stack([right, bottom]).max() < 256.1
    width, height = (right - left) / 256, (bottom - top) / 256
    area, aspect = width * height, width / height
    assert min_area - 0.01 < area.min() < min_area + 0.05
    assert 0.9 < area.max() < 1.01
    assert 0.75 - 0.01 < aspect.min() < 0.8
    assert 1.25 < aspect.max() < 4 / 3 + 0.01
    assert mirrored.float().mean().item() == pytest.approx(0.5, abs=0.1)
    # Boxes lie anywhere: as often at one end as at the other.
    slack = (left / (256 - right + left).clamp(min=1))[width < 0.9]
    assert slack.mean().item() == pytest.approx(0.5, abs=0.06)
    assert slack.min() < 0.05
    assert slack.max() > 0.95


def test_the_resized_crop_without_flip_mirrors_nothing():
    *_, mirrored = boxes(resized_crop(coordinate_images(50), 32, min_area=0.5, flip=False))
    assert not mirrored.any()


def test_the_whole_image_is_resized_bilinearly():
    pixels = noise_images(2, 40)
    expected = F.interpolate(normalize(pixels), 32, mode="bilinear", align_corners=False)
    found = resized_crop(pixels, 32, min_area=1.0, flip=False)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


def test_small_images_are_shifted_and_large_ones_cropped():
    shifts = draw_crops(3, 32, seeded(), flip=True, min_crop=0.5)
    assert shifts.equal(draw_shifts(3, seeded()))
    small = training_view(noise_images(3, 32), shifts, 32)
    assert small.equal(normalize(pad_crop(noise_images(3, 32), shifts)))

    drawn = draw_crops(3, 224, seeded(), flip=True, min_crop=0.5)
    assert drawn.equal(draw_boxes(3, seeded(), min_area=0.5))
    large = training_view(noise_images(3, 256), drawn, 224)
    assert large.equal(resized_crop(noise_images(3, 256), 224, min_area=0.5))
    for view, side in ((small, 32), (large, 224)):
        assert view.shape == (3, 3, side, side)
        assert view.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("size", [32, 96])
def test_crops_are_a_function_of_seed_step_and_row(size):
    def drawn(seed, step):
        return draw_crops(64, size, step_generator(seed, step), flip=True, min_crop=0.5)

    torch.manual_seed(1)
    crops = drawn(0, 7)
    torch.manual_seed(2)  # the default generator has no part in it
    assert drawn(0, 7).equal(crops)
    assert len(crops) == 64
    assert len(crops.unique(dim=0)) > 32
    for other in (drawn(1, 7), drawn(0, 8)):
        assert (other != crops).any(dim=1).sum() > 56


@pytest.mark.parametrize("size", [32, 96])
def test_parts_of_a_batch_are_augmented_as_the_whole(size):
    pixels = noise_images(10, size + 8 * (size > 64))
    crops = draw_crops(10, size, seeded(), flip=True, min_crop=0.5)
    whole = training_view(pixels, crops, size)
    for part in (slice(0, 5), slice(5, 10), slice(3, 4)):
        assert training_view(pixels[part], crops[part], size).equal(whole[part])


def test_evaluation_looks_at_the_centre():
    pixels = noise_images(2, 256)
    assert centre_crop(pixels, 224).equal(pixels[:, 16:240, 16:240])
    assert plain_view(pixels, 224).equal(normalize(pixels[:, 16:240, 16:240]))
    assert centre_crop(pixels, 256).equal(pixels)
