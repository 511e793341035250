"""Drawings for the page: charts in SVG units, and images as JPEG data URIs."""

import base64
import io
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from selfie_cli.talk import printable

WIDTH, HEIGHT = 360, 200
LEFT, RIGHT, TOP, BOTTOM = 50, 22, 10, 26
FRAME = {"width": WIDTH, "height": HEIGHT, "left": LEFT, "right": WIDTH - RIGHT, "top": TOP, "bottom": HEIGHT - BOTTOM}


def jpeg(pixels: Tensor, quality: int = 82) -> str:
    """Return an image, uint8 [H, W, 3], as a data URI. Small images keep their colours at full resolution."""
    file = io.BytesIO()
    subsampling = 0 if min(pixels.shape[:2]) <= 64 else 2
    Image.fromarray(pixels.numpy()).save(file, "JPEG", quality=quality, subsampling=subsampling, optimize=True)
    return f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode('ascii')}"


def scaled(pixels: Tensor, side: int) -> Tensor:
    """Resize images, uint8 [B, S, S, 3] -> uint8 [B, side, side, 3]."""
    x = F.interpolate(pixels.permute(0, 3, 1, 2), (side, side), mode="bicubic", antialias=True)
    return x.permute(0, 2, 3, 1).contiguous()


def columns_of(num_pictures: int) -> int:
    """Number of columns of a `sheet`."""
    return max(1, round(math.sqrt(num_pictures)))


def sheet(pictures: Tensor) -> str:
    """Return a grid of pictures, uint8 [N, s, s, 3], as one data URI."""
    from torchvision.utils import make_grid

    grid = make_grid(pictures.permute(0, 3, 1, 2), nrow=columns_of(len(pictures)), padding=0)
    return jpeg(grid.permute(1, 2, 0).contiguous(), quality=74)


@dataclass(frozen=True)
class Line:
    """Points (x, y) from left to right. `spread` is the length of each y's error bar to either side."""

    name: str
    points: list[tuple[float, float]]
    spread: list[float] | None = None

    def told(self, x: float, show: Callable[[float], str]) -> str:
        """Return the value at the point nearest to x as text."""
        at = min(range(len(self.points)), key=lambda index: abs(self.points[index][0] - x))
        return show(self.points[at][1]) + (f" ± {show(self.spread[at])}" if self.spread and self.spread[at] else "")


def ticks(low: float, high: float, most: int = 4) -> list[float]:
    """Return at most `most` + 1 round numbers within low..high."""
    rough = (high - low) / most
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough * (1 - 1e-9))
    return [number * step for number in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]


def chart(
    lines: Sequence[Line],
    *,
    show: Callable[[float], str],
    show_x: Callable[[float], str],
    guide: tuple[float, str] | None = None,
    from_zero: bool = False,
    x_ticks: Sequence[float] | None = None,
    log: bool = False,
    at: str = "at",
) -> tuple[dict[str, Any], list[tuple[float, str]]]:
    """Return the lines in drawing units for the macro `chart_parts`, and the position and text of the values at each x
    of the longest line.

    `guide` is a level to compare with, and its name. The x axis starts at 0 or, with `log`, is logarithmic. `at`
    precedes an x in the texts.
    """
    xs = [x for line in lines for x, _ in line.points]
    ends = [guide[0]] if guide else []
    for line in lines:
        for (_, y), spread in zip(line.points, line.spread or [0.0] * len(line.points), strict=True):
            ends += [y - spread, y + spread]
    low, high = min(ends + ([0.0] if from_zero else [])), max(ends)
    pad = (high - low) * 0.06 or abs(high) * 0.1 or 1.0
    low, high = (low if from_zero and low == 0 else low - pad), high + pad
    along = math.log10 if log else float
    start, end = min(xs) if log else 0.0, max(xs)
    first, last = along(start), along(end)
    room = 0.06 * (last - first) if log else 0.0
    first, last = first - room, (last if last > first else first + 1) + room

    def across(x: float) -> float:
        return round(LEFT + (along(x) - first) / (last - first) * (WIDTH - LEFT - RIGHT), 1)

    def down(y: float) -> float:
        return round(TOP + (high - y) / (high - low) * (HEIGHT - TOP - BOTTOM), 1)

    drawn = []
    for number, line in enumerate(lines):
        aside = 4 * (number - (len(lines) - 1) / 2) if line.spread else 0.0  # so that bars do not hide each other
        places = [(across(x) + aside, down(y)) for x, y in line.points]
        bars = zip(line.points, line.spread or (), strict=False)
        drawn.append(
            {"places": places, "bars": [(across(x) + aside, down(y - by), down(y + by)) for (x, y), by in bars]}
        )
    drawing = {
        **FRAME,
        "rows": [(down(y), show(y).replace(".0 %", " %")) for y in ticks(low, high)],
        "columns": [(across(x), show_x(x)) for x in x_ticks or ticks(start, max(end, start + 1))],
        "guide": guide and (down(guide[0]), guide[1]),
        "lines": drawn,
    }
    stops = []
    for x, _ in max(lines, key=lambda line: len(line.points)).points:
        told = [(f"{printable(line.name)} " if len(lines) > 1 else "") + line.told(x, show) for line in lines]
        stops.append((across(x), f"{', '.join(told)} {at} {show_x(x)}"))
    return drawing, stops


def to_pixels(views: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Undo the normalization of images, float [B, 3, s, s] -> uint8 [B, s, s, 3]."""
    x = views.float().cpu().permute(0, 2, 3, 1) * torch.tensor(std) + torch.tensor(mean)
    return torch.from_numpy((x.clamp(0, 1) * 255).round().numpy().astype(np.uint8))
