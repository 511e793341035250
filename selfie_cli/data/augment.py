"""Augmentation of whole batches on their device: from stored uint8 pixels to the input of a network.

    B  images      S  stored side, s  network's side, both in pixels

Separate functions, named draw_..., draw the random numbers: small tensors on the CPU, one row per image, from the
generator of a step (`batches.step_generator`). So an image is augmented the same way on every device, and however a
batch is divided among processes or micro-batches.
"""

import functools
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

# Channel means and standard deviations of ImageNet's training images, in units of 0..1, from torchvision.
MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)
PADDING = 4
"""Black pixels added on every side of small images before they are cropped back."""


@dataclass(frozen=True)
class Preprocessing:
    """Preparation of images for a network. The defaults are those of networks pretrained here.

    mean, std: per channel, in units of 0..1. crop: side of the centre crop, as a share of the stored side; None means
    7/8. interpolation: bicubic or bilinear, used to resize an image to the stored side.
    """

    mean: tuple[float, ...] = MEAN
    std: tuple[float, ...] = STD
    crop: float | None = None
    interpolation: str = "bicubic"

    @classmethod
    def of(cls, derived: dict[str, Any]) -> "Preprocessing":
        """Return the preprocessing that a run's config names, or the default if it names none."""
        found: dict[str, Any] = derived.get("preprocessing", {})
        return cls(**found | {name: tuple(found[name]) for name in ("mean", "std") if name in found})

    def record(self) -> dict[str, Any]:
        """Return it as a run's config stores it."""
        found = {"mean": list(self.mean), "std": list(self.std), "crop": self.crop, "interpolation": self.interpolation}
        return {name: value for name, value in found.items() if value is not None}

    def storage_size(self, image_size: int) -> int:
        """Return the stored side S for a network that sees `image_size`: above 64 px, it leaves room for cropping."""
        if image_size <= 64:
            return image_size
        return round(image_size * 8 / 7) if self.crop is None else int(image_size / self.crop)  # as timm rounds


OURS = Preprocessing()


def normalize(pixels: Tensor, preprocessing: Preprocessing = OURS) -> Tensor:
    """uint8 [B, s, s, 3] -> float32 [B, 3, s, s] with about zero mean and unit variance, channels-last."""
    b, s = pixels.shape[:2]
    mean, scale = constants(pixels.device, preprocessing)
    # Work on rows of 3 s values: inner loops over 3 channels are slow.
    rows = pixels.reshape(b, s, 3 * s).float()
    torch.addcmul((-mean * scale).repeat(s), rows, scale.repeat(s), out=rows)
    return rows.view(b, s, s, 3).permute(0, 3, 1, 2)


def constants(device: torch.device, preprocessing: Preprocessing = OURS) -> tuple[Tensor, Tensor]:
    """Mean and 1 / standard deviation in units of 0..255, float32 [3].

    They are made on the device: a copy would wait for the GPU, and could not be part of a CUDA graph.
    """
    both = (preprocessing.mean, preprocessing.std)
    mean, std = (torch.stack([torch.full((), each, device=device) for each in values]) for values in both)
    return mean * 255, 1 / (std * 255)


def centre_crop(pixels: Tensor, size: int) -> Tensor:
    """uint8 [B, S, S, 3] -> uint8 [B, s, s, 3]."""
    margin = (pixels.shape[1] - size) // 2
    return pixels[:, margin : margin + size, margin : margin + size]


def draw_shifts(num_images: int, generator: Generator, *, flip: bool = True) -> Tensor:
    """Draw shifts for `pad_crop`, int64 [B, 3]: down and right in 0..2 PADDING, then 1 for mirrored images (half)."""
    offsets = torch.randint(0, 2 * PADDING + 1, (num_images, 2), generator=generator)
    mirrored = torch.rand(num_images, 1, generator=generator) < (0.5 if flip else 0.0)
    return torch.cat([offsets, mirrored.long()], dim=1)


def pad_crop(pixels: Tensor, shifts: Tensor) -> Tensor:
    """Pad with black, then crop at the `shifts` [B, 3] of `draw_shifts`: uint8 [B, S, S, 3] -> the same shape."""
    b, s = pixels.shape[:2]
    w = s + 2 * PADDING
    padded = F.pad(pixels, (0, 0, PADDING, PADDING, PADDING, PADDING))  # [B, w, w, 3]
    down, right, mirrored = shifts.int().unsqueeze(2).unbind(dim=1)  # [B, 1] each
    side = torch.arange(s, dtype=torch.int32, device=pixels.device)
    rows = side + down + w * torch.arange(b, dtype=torch.int32, device=pixels.device)[:, None]  # [B, S]
    columns = torch.where(mirrored == 1, s - 1 - side, side) + right  # [B, S]
    places = w * rows[:, :, None] + columns[:, None, :]  # [B, S, S]
    return padded.view(-1, 3).index_select(0, places.view(-1)).view(b, s, s, 3)


def draw_boxes(
    num_images: int, generator: Generator, *, min_area: float, max_area: float = 1.0, flip: bool = True
) -> Tensor:
    """Draw a random box per image: area min_area..max_area, aspect 3/4..4/3 as far as it fits, half of them mirrored.

    float32 [B, 4]: centre x, centre y (-1..1 across the image), half width, half height (0..1 of the image's half); a
    mirrored box has a negative half width.
    """
    uniform = functools.partial(torch.rand, num_images, generator=generator)
    area = min_area + (max_area - min_area) * uniform()
    widest = torch.minimum(torch.tensor(4 / 3), 1 / area)  # the largest that fits into the square at this area
    aspect = widest ** (2 * uniform() - 1)
    width = (area * aspect).sqrt()
    height = (area / aspect).sqrt()
    x = (2 * uniform() - 1) * (1 - width)
    y = (2 * uniform() - 1) * (1 - height)
    mirror = torch.where(uniform() < (0.5 if flip else 0.0), -1.0, 1.0)
    return torch.stack([x, y, width * mirror, height], dim=1)


def crop(images: Tensor, boxes: Tensor, size: int) -> Tensor:
    """Cut the boxes [B, 4] out of images, float [B, 3, S, S], and resize them: [B, 3, s, s].

    Bilinear without antialiasing. Stored images are at most 8/7 of the network's side, and crops are smaller, so images
    shrink little: by up to 1.9, for the widest crop of the default recipe's small views.
    """
    x, y, width, height = boxes.unbind(dim=1)
    zero = torch.zeros_like(x)
    affine = torch.stack([width, zero, x, zero, height, y], dim=1).view(-1, 2, 3)
    with torch.autocast(images.device.type, enabled=False):  # bf16 coordinates would be off by half a pixel
        grid = F.affine_grid(affine, [len(boxes), 3, size, size], align_corners=False)
    return F.grid_sample(images, grid, padding_mode="reflection", align_corners=False)


def draw_crops(num_images: int, size: int, generator: Generator, *, flip: bool, min_crop: float) -> Tensor:
    """Draw the crops of `training_view`: shifts [B, 3] up to 64 px, boxes [B, 4] above."""
    if size <= 64:
        return draw_shifts(num_images, generator, flip=flip)
    return draw_boxes(num_images, generator, min_area=min_crop, flip=flip)


def training_view(pixels: Tensor, crops: Tensor, size: int, preprocessing: Preprocessing = OURS) -> Tensor:
    """Augment by pad and crop up to 64 px, by a random resized crop above; half of the images are mirrored.

    uint8 [B, S, S, 3] and the result of `draw_crops` -> float32 [B, 3, s, s], normalized, channels-last.
    """
    if size <= 64:
        return normalize(pad_crop(pixels, crops), preprocessing)
    return crop(normalize(pixels, preprocessing), crops, size).contiguous(memory_format=torch.channels_last)


def plain_view(pixels: Tensor, size: int, preprocessing: Preprocessing = OURS) -> Tensor:
    """Crop the centre, for evaluation. uint8 [B, S, S, 3] -> float32 [B, 3, s, s], normalized, channels-last."""
    return normalize(centre_crop(pixels, size), preprocessing)
