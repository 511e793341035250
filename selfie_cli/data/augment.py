"""Augmentation of whole batches where they are, and the way from stored uint8 pixels to what a network takes.

    B  images      S  stored side, s  network's side, both in pixels

Random numbers are few, so they are drawn on the CPU from torch's default generator (the training loop seeds it for
each step) and are the same whatever the device.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

# Channel means and standard deviations of ImageNet's training images, in units of 0..1, as torchvision documents them.
MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)


def normalize(pixels: Tensor) -> Tensor:
    """uint8 [B, s, s, 3] -> float32 [B, 3, s, s] with about zero mean and unit variance, laid out channels-last."""
    mean = torch.tensor(MEAN, device=pixels.device) * 255
    scale = 1 / (torch.tensor(STD, device=pixels.device) * 255)
    return ((pixels.float() - mean) * scale).permute(0, 3, 1, 2)


def centre_crop(pixels: Tensor, size: int) -> Tensor:
    """uint8 [B, S, S, 3] -> uint8 [B, s, s, 3]."""
    margin = (pixels.shape[1] - size) // 2
    return pixels[:, margin : margin + size, margin : margin + size]


def pad_crop(pixels: Tensor, *, padding: int = 4, flip: bool = True) -> Tensor:
    """Pad with black, crop back at a random place, mirror half of the images: uint8 [B, S, S, 3] -> the same."""
    b, s = pixels.shape[:2]
    padded = F.pad(pixels, (0, 0, padding, padding, padding, padding))
    offsets = torch.randint(0, 2 * padding + 1, (b, 2))
    mirrored = torch.rand(b, 1) < (0.5 if flip else 0.0)
    side = torch.arange(s).expand(b, s)
    rows = (side + offsets[:, :1]).to(pixels.device)  # [B, S]
    columns = (torch.where(mirrored, s - 1 - side, side) + offsets[:, 1:]).to(pixels.device)  # [B, S]
    image = torch.arange(b, device=pixels.device)
    return padded[image[:, None, None], rows[:, :, None], columns[:, None, :]]


def random_boxes(num_images: int, *, min_area: float, flip: bool = True) -> Tensor:
    """A random box for each image, of area min_area..1 and aspect 3/4..4/3 as far as it fits, half of them mirrored.

    float32 [B, 4], on the CPU: centre x, centre y (-1..1 across the image), half width, half height (0..1 of the
    image's half); a mirrored box has a negative half width.
    """
    area = min_area + (1 - min_area) * torch.rand(num_images)
    widest = torch.minimum(torch.tensor(4 / 3), 1 / area)  # what still fits into the square at this area
    aspect = widest ** (2 * torch.rand(num_images) - 1)
    width = (area * aspect).sqrt()
    height = (area / aspect).sqrt()
    x = (2 * torch.rand(num_images) - 1) * (1 - width)
    y = (2 * torch.rand(num_images) - 1) * (1 - height)
    mirror = torch.where(torch.rand(num_images) < (0.5 if flip else 0.0), -1.0, 1.0)
    return torch.stack([x, y, width * mirror, height], dim=1)


def crop(images: Tensor, boxes: Tensor, size: int) -> Tensor:
    """What the boxes [B, 4] show of images, float [B, 3, S, S], resized: [B, 3, s, s].

    Bilinear without antialiasing: the store is at most 8/7 of the network's side and crops are smaller still, so little
    is scaled down; most for two-view Selfie above 64 px, by 1.5 at the widest crop.
    """
    x, y, width, height = boxes.unbind(dim=1)
    zero = torch.zeros_like(x)
    affine = torch.stack([width, zero, x, zero, height, y], dim=1).view(-1, 2, 3).to(images.device)
    with torch.autocast(images.device.type, enabled=False):  # places in bf16 would be off by half a pixel
        grid = F.affine_grid(affine, [len(boxes), 3, size, size], align_corners=False)
    return F.grid_sample(images, grid, padding_mode="reflection", align_corners=False)


def random_resized_crop(pixels: Tensor, size: int, *, min_area: float, flip: bool = True) -> Tensor:
    """A random box of each image, resized: uint8 [B, S, S, 3] -> float32 [B, 3, s, s], normalized."""
    return crop(normalize(pixels), random_boxes(len(pixels), min_area=min_area, flip=flip), size)


def training_view(pixels: Tensor, size: int, *, flip: bool, min_crop: float) -> Tensor:
    """The field's usual augmentation: pad and crop up to 64 px, random resized crop above; mirrored half of the time.

    uint8 [B, S, S, 3] -> float32 [B, 3, s, s], normalized, laid out channels-last.
    """
    if size <= 64:
        return normalize(pad_crop(pixels, flip=flip))
    view = random_resized_crop(pixels, size, min_area=min_crop, flip=flip)
    return view.contiguous(memory_format=torch.channels_last)


def plain_view(pixels: Tensor, size: int) -> Tensor:
    """What evaluation looks at: the centre. uint8 [B, S, S, 3] -> float32 [B, 3, s, s], normalized, channels-last."""
    return normalize(centre_crop(pixels, size))
