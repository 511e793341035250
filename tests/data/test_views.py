"""Strong views of batches, against one operation after another on one image."""

import math

import numpy as np
import pytest
import torch
from pictures import noise, seeded
from scipy.ndimage import gaussian_filter

from selfie_cli.data.augment import MEAN, STD, crop, draw_boxes
from selfie_cli.data.views import RGB_TO_YIQ, View, gaussian_blur

GREY = (0.299, 0.587, 0.114)


def view_and_crops(pixels, size, *, seed=0, **how):
    """A view of each image, in colours 0..1 again, and the crops before anything is done to their colours."""
    view = View(**how)
    draws = view.draw(len(pixels), seeded(seed))
    normalized = view.apply(pixels, draws, size)
    shown = normalized * torch.tensor(STD).view(3, 1, 1) + torch.tensor(MEAN).view(3, 1, 1)
    return shown, crop(pixels.permute(0, 3, 1, 2).float() / 255, draws.boxes, size)


# Colours once more: one image and one operation after the other, in double precision.


def brightness(rgb):
    return GREY[0] * rgb[0] + GREY[1] * rgb[1] + GREY[2] * rgb[2]


def turned(rgb, angle):
    """Hue: the colour's two coordinates beside its brightness are turned about it."""
    y, i, q = np.einsum("ij,jhw->ihw", RGB_TO_YIQ.double().numpy(), rgb)
    i, q = i * math.cos(angle) - q * math.sin(angle), i * math.sin(angle) + q * math.cos(angle)
    return np.linalg.solve(RGB_TO_YIQ.double().numpy(), np.stack([y, i, q]).reshape(3, -1)).reshape(rgb.shape)


def naive_colours(rgb, factors, angle, order, jittered, grey):
    if jittered:
        for chosen in order:
            if chosen == 0:
                rgb = rgb * factors[0]
            elif chosen == 1:
                rgb = factors[1] * rgb + (1 - factors[1]) * brightness(rgb).mean()
            elif chosen == 2:
                rgb = factors[2] * rgb + (1 - factors[2]) * brightness(rgb)
            else:
                rgb = turned(rgb, angle)
    if grey:
        rgb = np.stack([brightness(rgb)] * 3)
    return rgb.clip(0, 1)


@pytest.mark.parametrize("jitter", [0.0, 1.0, 2.0])
def test_colours_agree_with_one_operation_after_the_other(jitter):
    """And with the random numbers of each image: 80 % are jittered, 20 % lose their colour."""
    view, crops = view_and_crops(noise(40, 12), 8, seed=1, min_crop=0.3, jitter=jitter)
    again = seeded(1)
    draw_boxes(40, again, min_area=0.3)
    spread = 2 * torch.rand(40, 3, generator=again) - 1
    factors = 1 + jitter * spread * torch.tensor([0.4, 0.4, 0.2])
    angles = (2 * torch.rand(40, generator=again) - 1) * jitter * 0.1 * 2 * math.pi
    orders = torch.rand(40, 4, generator=again).argsort(dim=1)
    jittered, grey = torch.rand(40, generator=again) < 0.8, torch.rand(40, generator=again) < 0.2
    assert 0 < jittered.sum() < 40 > grey.sum() > 0  # some of each
    for image, rgb in enumerate(crops.double().numpy()):
        drawn = (each[image].tolist() for each in (factors, angles, orders, jittered, grey))
        np.testing.assert_allclose(view[image].numpy(), naive_colours(rgb, *drawn), atol=1e-5)


@pytest.mark.parametrize(("side", "reach"), [(8, 1), (50, 2)])
def test_blur_agrees_with_scipys(side, reach):
    images = torch.rand(3, 3, side, side, generator=torch.Generator().manual_seed(0))
    sigmas = torch.tensor([0.7, 0.0, 2.0])
    blurred = gaussian_blur(images, sigmas)
    assert blurred[1].equal(images[1])
    for image, found, sigma in zip(images[::2], blurred[::2], sigmas[::2].tolist(), strict=True):
        expected = gaussian_filter(image.double().numpy(), sigma, radius=reach, mode="mirror", axes=(1, 2))
        np.testing.assert_allclose(found.numpy(), expected, atol=1e-5)


def test_the_bright_half_is_inverted():
    how = {"min_crop": 0.5, "jitter": 0.0, "grayscale": 0.0}
    after, before = view_and_crops(noise(200, 8), 8, solarize=0.4, **how)
    chosen = (after - before).abs().amax(dim=(1, 2, 3)) > 1e-4
    assert chosen.float().mean().item() == pytest.approx(0.4, abs=0.17)  # five standard deviations
    expected = torch.minimum(before, 1 - before)
    torch.testing.assert_close(after[chosen], expected[chosen], atol=1e-5, rtol=0)
    assert view_and_crops(noise(200, 8), 8, solarize=1.0, **how)[0].max() < 0.5 + 1e-5


@pytest.mark.parametrize("size", [24, 224])
def test_autocast_leaves_views_precise_and_pixels_and_the_default_generator_alone(size):
    """Places and colours in bf16 would be off by a quarter of a pixel and a shade. That goes for what is drawn, too."""
    everything, pixels = View(min_crop=0.3, jitter=1.0, blur=0.5, solarize=0.5), noise(4, size + 8)

    def augmented():
        return everything.apply(pixels, everything.draw(4, seeded(5)), size)

    before, state = pixels.clone(), torch.get_rng_state()
    view = augmented()
    assert pixels.equal(before)
    assert torch.get_rng_state().equal(state)
    assert view.shape == (4, 3, size, size)
    assert view.is_contiguous(memory_format=torch.channels_last)
    with torch.autocast("cpu", torch.bfloat16):
        same = augmented()
    assert same.dtype == torch.float32
    assert same.equal(view)
