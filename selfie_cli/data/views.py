"""Strongly augmented views, as SimCLR and BYOL use them, made for a whole batch at once where the batch is.

    B  images      S  stored side, s  network's side, both in pixels

Brightness, contrast, saturation, hue and grayscale are all linear in an image's colours. So each image's jitter, in its
own order, is composed to one 3x4 matrix on the CPU, and the pixels are passed over once, whatever was drawn. Two
things differ from applying the operations one by one: colours are clamped once, at the end, and the hue is turned in
YIQ, not in HSV.

Random numbers are drawn on the CPU from torch's default generator, as everywhere.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from selfie_cli.data.augment import MEAN, STD, crop, random_boxes

LUMINANCE = torch.tensor([0.299, 0.587, 0.114])
RGB_TO_YIQ = torch.tensor([[0.299, 0.587, 0.114], [0.5959, -0.2746, -0.3213], [0.2115, -0.5227, 0.3112]])
YIQ_TO_RGB = torch.linalg.inv(RGB_TO_YIQ)


def random_view(
    pixels: Tensor,
    size: int,
    *,
    min_area: float,
    jitter: float,
    grayscale: float = 0.2,
    blur: float = 0.0,
    solarize: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """Crop, mirror, jitter and blur each image by its own random numbers (Grill et al. 2020, appendix B).

    Args:
        pixels: uint8 [B, S, S, 3].
        min_area: smallest area of the crop, a share of the image.
        jitter: strength; 1 is brightness, contrast .4, saturation .2, hue .1, applied to 80 % of the images.
        grayscale, blur, solarize: the share of the images that lose their colour, are blurred (sigma .1 to 2 px,
            kernel a tenth of `size`), have the bright half of their range inverted.

    Returns:
        The views, float32 [B, 3, s, s], normalized, channels-last, and the boxes they show, as `random_boxes` has them.
    """
    b = pixels.shape[0]
    boxes = random_boxes(b, min_area=min_area)
    x = crop(pixels.permute(0, 3, 1, 2).float() / 255, boxes, size)  # [B, 3, s, s], 0..1
    flat = x.permute(0, 2, 3, 1).reshape(b, size * size, 3)
    with torch.autocast(x.device.type, enabled=False):  # colours in bf16 would have fewer shades than the pixels
        matrices = colour_matrices(x.mean(dim=(2, 3)).cpu(), jitter=jitter, grayscale=grayscale).to(x.device)
        flat = torch.baddbmm(matrices[:, None, :, 3], flat, matrices[:, :, :3].transpose(1, 2)).clamp_(0, 1)
    x = flat.view(b, size, size, 3).permute(0, 3, 1, 2)
    if blur:
        x = gaussian_blur(x, torch.where(torch.rand(b) < blur, 0.1 + 1.9 * torch.rand(b), 0.0))
    if solarize:
        chosen = (torch.rand(b) < solarize).to(x.device)[:, None, None, None]
        x = torch.where(chosen & (x >= 0.5), 1 - x, x)
    mean, std = (torch.tensor(values, device=x.device).view(1, 3, 1, 1) for values in (MEAN, STD))
    return ((x - mean) / std).contiguous(memory_format=torch.channels_last), boxes


def colour_matrices(means: Tensor, *, jitter: float, grayscale: float) -> Tensor:
    """For each image one affine map of its colours, out = M[:, :3] rgb + M[:, 3]: float32 [B, 3, 4].

    means: the images' mean colours, float32 [B, 3], 0..1, on the CPU; contrast is about their brightness.
    """
    b = means.shape[0]
    factor = 1 + jitter * torch.tensor([0.4, 0.4, 0.2]) * (2 * torch.rand(b, 3) - 1)
    angle = 2 * math.pi * jitter * 0.1 * (2 * torch.rand(b) - 1)
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
    order = torch.rand(b, 4).argsort(dim=1)
    image = torch.arange(b)
    m, offset = eye, torch.zeros(b, 3)
    for place in range(4):
        chosen = order[:, place]
        step = linear[image, chosen]  # [B, 3, 3]
        now = ((m @ means[:, :, None]).squeeze(2) + offset) @ LUMINANCE  # the image's brightness so far, [B]
        shift = torch.where(chosen == 1, (1 - factor[:, 1]) * now, 0.0)
        m, offset = step @ m, (step @ offset[:, :, None]).squeeze(2) + shift[:, None]
    jittered = (torch.rand(b) < 0.8)[:, None]
    m, offset = torch.where(jittered[:, :, None], m, eye), torch.where(jittered, offset, 0.0)
    grey_too = (torch.rand(b) < grayscale)[:, None]
    m = torch.where(grey_too[:, :, None], grey @ m, m)
    offset = torch.where(grey_too, (offset @ LUMINANCE)[:, None], offset)
    return torch.cat([m, offset[:, :, None]], dim=2)


def gaussian_blur(x: Tensor, sigmas: Tensor) -> Tensor:
    """Blur images [B, 3, s, s] by their own sigmas [B], in pixels; 0 leaves an image alone. Borders are reflected."""
    chosen = sigmas.nonzero().squeeze(1)
    if not len(chosen):
        return x
    reach = max(1, x.shape[-1] // 20)
    taps = torch.arange(-reach, reach + 1)
    weights = torch.exp(-(taps**2) / (2 * sigmas[chosen, None] ** 2))
    weights = (weights / weights.sum(dim=1, keepdim=True)).to(x.device)  # [b, taps]
    rows = chosen.to(x.device)
    part = x[rows]
    for dim, pad in ((2, (0, 0, reach, reach)), (3, (reach, reach, 0, 0))):
        padded = F.pad(part, pad, mode="reflect")
        part = sum(
            (weights[:, tap, None, None, None] * padded.narrow(dim, tap, x.shape[dim]) for tap in range(len(taps))),
            torch.zeros_like(part),
        )
    return x.index_copy(0, rows, part)
