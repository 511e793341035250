"""Crops and normalization of batches, against references written another way."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from pictures import noise, seeded
from scipy.ndimage import map_coordinates

from selfie_cli.data import augment
from selfie_cli.data.augment import MEAN, STD, crop, draw_boxes, draw_crops, draw_shifts, pad_crop, training_view


def test_evaluation_looks_at_the_centre_normalized_as_for_imagenet():
    pixels = noise(2, 256)
    centre = pixels[:, 16:240, 16:240].permute(0, 3, 1, 2) / 255
    views = augment.plain_view(pixels, 224)
    expected = (centre - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)
    torch.testing.assert_close(views, expected, atol=1e-6, rtol=1e-5)
    assert views.is_contiguous(memory_format=torch.channels_last)
    assert augment.centre_crop(pixels, 256).equal(pixels)


def test_pad_crop_is_a_slice_of_the_padded_image_or_its_mirror():
    pixels, shifts = noise(600, 12), draw_shifts(600, seeded())
    padded = F.pad(pixels, (0, 0, 4, 4, 4, 4))
    for image, cropped, (top, left, mirrored) in zip(padded, pad_crop(pixels, shifts), shifts.tolist(), strict=True):
        expected = image[top : top + 12, left : left + 12]
        assert cropped.equal(expected.flip(1) if mirrored else expected)
    assert set(shifts[:, 0].tolist()) == set(shifts[:, 1].tolist()) == set(range(9))
    assert shifts[:, 2].float().mean().item() == pytest.approx(0.5, abs=0.1)
    assert not draw_shifts(100, seeded(), flip=False)[:, 2].any()


@pytest.mark.parametrize("min_area", [0.08, 0.3])
def test_boxes_have_the_area_and_lie_inside(min_area):
    x, y, width, height = draw_boxes(4000, seeded(), min_area=min_area).unbind(dim=1)
    mirrored, width = width < 0, width.abs()
    assert (x.abs() + width).max() <= 1 + 1e-6
    assert (y.abs() + height).max() <= 1 + 1e-6
    area, aspect = width * height, width / height
    room = 1 - min_area
    assert min_area - 1e-6 <= area.min() < min_area + 0.01 * room
    assert 1 - 0.01 * room < area.max() <= 1 + 1e-6
    assert area.mean().item() == pytest.approx((min_area + 1) / 2, abs=0.02)
    assert 3 / 4 - 1e-5 <= aspect.min() < 0.77
    assert 1.3 < aspect.max() <= 4 / 3 + 1e-5
    assert mirrored.float().mean().item() == pytest.approx(0.5, abs=0.04)
    assert (draw_boxes(100, seeded(), min_area=min_area, flip=False)[:, 2] > 0).all()


@pytest.mark.parametrize("mirror", [False, True])
def test_a_box_is_sampled_bilinearly_as_scipy_does(mirror):
    """Half a pixel beyond the image is its edge."""
    side, size = 9, 7
    images = torch.rand(4, 3, side, side, generator=seeded())
    boxes = torch.tensor([[0.1, -0.2, 0.5, 0.6], [0.4, 0.3, 0.6, 0.7], [0.0, 0.0, 1.0, 1.0], [-0.5, 0.5, 0.3, 0.25]])
    if mirror:
        boxes[:, 2] *= -1
    for image, box, result in zip(images, boxes.tolist(), crop(images, boxes, size), strict=True):
        # From the box's own -1..1 (pixels' centres) to the image's, and to places of its pixels.
        centres = (2 * np.arange(size) + 1) / size - 1
        x, y = (((box[axis] + box[axis + 2] * centres) + 1) / 2 * side - 0.5 for axis in (0, 1))
        places = np.meshgrid(y, x, indexing="ij")
        expected = [map_coordinates(channel, places, order=1, mode="nearest") for channel in image.numpy()]
        np.testing.assert_allclose(result.numpy(), expected, atol=1e-5)


@pytest.mark.parametrize(("size", "numbers"), [(32, 3), (96, 4)])
def test_parts_of_a_batch_are_augmented_as_the_whole(size, numbers):
    """Small images are shifted, by 3 numbers each, and large ones cropped, by 4."""
    pixels = noise(10, size + 8 * (size > 64))
    crops = draw_crops(10, size, seeded(), flip=True, min_crop=0.5)
    whole = training_view(pixels, crops, size)
    assert (crops.shape, whole.shape) == ((10, numbers), (10, 3, size, size))
    assert whole.is_contiguous(memory_format=torch.channels_last)
    for part in (slice(0, 5), slice(5, 10), slice(3, 4)):
        assert training_view(pixels[part], crops[part], size).equal(whole[part])
