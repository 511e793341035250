"""Strongly augmented views, for methods that compare views: of a whole batch at once on its device.

    B  images      S  stored side, s  network's side, both in pixels

Brightness, contrast, saturation, hue and grayscale are all linear in an image's colours. So each image's jitter, in its
own order, is composed to one 3x4 matrix that is applied to the pixels in one pass. Two things differ from applying the
operations one by one: colours are clamped once, at the end, and the hue is rotated in YIQ, not in HSV.
"""

import functools
import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from selfie_cli.data.augment import OURS, Preprocessing, constants, crop, draw_boxes

LUMINANCE = torch.tensor([0.299, 0.587, 0.114])
RGB_TO_YIQ = torch.tensor([[0.299, 0.587, 0.114], [0.5959, -0.2746, -0.3213], [0.2115, -0.5227, 0.3112]])
YIQ_TO_RGB = torch.linalg.inv(RGB_TO_YIQ)


class ViewDraws(NamedTuple):
    """The random numbers of one view of B images, one row per image.

    boxes: see `draw_boxes`, float32 [B, 4]. colours, contrast: float32 [B, 3, 3] each; a colour becomes
    colours @ colour + contrast @ the image's mean colour. sigmas: of the blur, in pixels, 0 for none, float32 [B].
    solarized: bool [B].
    """

    boxes: Tensor
    colours: Tensor
    contrast: Tensor
    sigmas: Tensor
    solarized: Tensor


@dataclass(frozen=True, kw_only=True)
class View:
    """A random view of an image: cropped, mirrored, jittered, blurred (Grill et al. 2020, appendix B).

    min_crop, max_crop: limits of the crop's area, as shares of the image.
    jitter: strength; 1 is brightness, contrast .4, saturation .2, hue .1, applied to 80 % of the images.
    grayscale, blur, solarize: the share of the images that lose their colour, are blurred (sigma .1 to 2 px, kernel a
    tenth of the network's side), or are solarized (the bright half of their range is inverted).
    """

    min_crop: float
    max_crop: float = 1.0
    jitter: float
    grayscale: float = 0.2
    blur: float = 0.0
    solarize: float = 0.0

    def draw(self, num_images: int, generator: Generator) -> ViewDraws:
        """Draw the random numbers of a view of each image."""
        uniform = functools.partial(torch.rand, num_images, generator=generator)
        boxes = draw_boxes(num_images, generator, min_area=self.min_crop, max_area=self.max_crop)
        with torch.autocast("cpu", enabled=False):
            colours, contrast = draw_colours(num_images, generator, jitter=self.jitter, grayscale=self.grayscale)
        sigmas = torch.where(uniform() < self.blur, 0.1 + 1.9 * uniform(), 0.0)
        return ViewDraws(boxes, colours, contrast, sigmas, uniform() < self.solarize)

    def apply(self, pixels: Tensor, draws: ViewDraws, size: int, preprocessing: Preprocessing = OURS) -> Tensor:
        """Apply `draws`: uint8 [B, S, S, 3] -> float32 [B, 3, s, s], normalized, channels-last."""
        b = pixels.shape[0]
        x = crop(pixels.permute(0, 3, 1, 2).float() / 255, draws.boxes, size)  # [B, 3, s, s], 0..1
        flat = x.permute(0, 2, 3, 1).reshape(b, size * size, 3)
        with torch.autocast(x.device.type, enabled=False):  # colours in bf16 would have fewer shades than the pixels
            offsets = draws.contrast @ x.mean(dim=(2, 3)).unsqueeze(2)  # [B, 3, 1]
            flat = torch.baddbmm(offsets.mT, flat, draws.colours.mT).clamp_(0, 1)
        x = flat.view(b, size, size, 3).permute(0, 3, 1, 2)
        if self.blur:
            x = gaussian_blur(x, draws.sigmas)
        if self.solarize:
            x = torch.where(draws.solarized[:, None, None, None] & (x >= 0.5), 1 - x, x)
        mean, scale = (values.view(1, 3, 1, 1) for values in constants(x.device, preprocessing))
        return ((255 * x - mean) * scale).contiguous(memory_format=torch.channels_last)


def draw_colours(num_images: int, generator: Generator, *, jitter: float, grayscale: float) -> tuple[Tensor, Tensor]:
    """Draw the colour jitter of each image: `colours` and `contrast` of `ViewDraws`, float32 [B, 3, 3] each.

    Contrast is relative to the image's brightness at that point of the sequence. This is linear in the image's mean
    colour, which is not known here, so its contribution is kept as a matrix that is applied to the mean.
    """
    b = num_images
    uniform = functools.partial(torch.rand, b, generator=generator)
    factor = 1 + jitter * torch.tensor([0.4, 0.4, 0.2]) * (2 * uniform(3) - 1)
    angle = 2 * math.pi * jitter * 0.1 * (2 * uniform() - 1)
    zero, one = torch.zeros(b), torch.ones(b)
    turn = torch.stack([one, zero, zero, zero, angle.cos(), -angle.sin(), zero, angle.sin(), angle.cos()], dim=1)
    eye = torch.eye(3).expand(b, 3, 3)
    grey = LUMINANCE.expand(3, 3)
    brightness, contrast, saturation = factor[:, :, None, None].unbind(dim=1)
    linear = torch.stack(
        [
            eye * brightness,
            eye * contrast,
            eye * saturation + grey * (1 - saturation),
            YIQ_TO_RGB @ turn.view(b, 3, 3) @ RGB_TO_YIQ,
        ],
        dim=1,
    )  # [B, 4, 3, 3]
    order = uniform(4).argsort(dim=1)
    image = torch.arange(b)
    m, offset = eye, torch.zeros(b, 3, 3)
    for place in range(4):
        chosen = order[:, place]
        step = linear[image, chosen]  # [B, 3, 3]
        shift = torch.where((chosen == 1)[:, None, None], (1 - contrast) * (grey @ (m + offset)), 0.0)
        m, offset = step @ m, step @ offset + shift
    jittered = (uniform() < 0.8)[:, None, None]
    m, offset = torch.where(jittered, m, eye), torch.where(jittered, offset, 0.0)
    grey_too = (uniform() < grayscale)[:, None, None]
    return torch.where(grey_too, grey @ m, m), torch.where(grey_too, grey @ offset, offset)


def gaussian_blur(x: Tensor, sigmas: Tensor) -> Tensor:
    """Blur images [B, 3, s, s] by their own sigmas [B], in pixels; 0 leaves an image alone. Borders are reflected."""
    if x.device.type != "cpu" or torch.compiler.is_compiling():
        return blur_all(x, sigmas)  # to count images to blur, the CPU would wait for the GPU, and shapes would vary
    rows = sigmas.nonzero().squeeze(1)
    return x.index_copy(0, rows, blur_all(x[rows], sigmas[rows])) if len(rows) else x


def blur_all(x: Tensor, sigmas: Tensor) -> Tensor:
    b, side = len(x), x.shape[-1]
    reach = max(1, side // 20)
    taps = torch.arange(-reach, reach + 1, device=x.device)
    weights = torch.exp(-(taps**2) / (2 * sigmas[:, None] ** 2).clamp(min=1e-6))
    weights = weights / weights.sum(dim=1, keepdim=True)  # [B, taps]
    if torch.compiler.is_compiling():  # a sum of shifted images is fused with other operations
        for axis, padding in ((2, (0, 0, reach, reach)), (3, (reach, reach, 0, 0))):
            padded = F.pad(x, padding, mode="reflect")
            parts = (weights[:, tap, None, None, None] * padded.narrow(axis, tap, side) for tap in range(len(taps)))
            x = functools.reduce(torch.add, parts)
        return x
    weights = weights.repeat_interleave(3, dim=0)  # [B * 3, taps]
    x = F.pad(x, (reach,) * 4, mode="reflect").reshape(1, b * 3, side + 2 * reach, side + 2 * reach)
    with torch.autocast(x.device.type, enabled=False):
        x = F.conv2d(x, weights[:, None, :, None], groups=b * 3)
        x = F.conv2d(x, weights[:, None, None, :], groups=b * 3)
    return x.view(b, 3, side, side)
