"""Drawings for the page: charts and puzzles as SVG, images as JPEG inside the page. Colours are the style sheet's."""

import base64
import io
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from selfie_cli.report.markup import Markup, joined, tag
from selfie_cli.talk import printable

WIDTH, HEIGHT = 360, 200
LEFT, RIGHT, TOP, BOTTOM = 50, 12, 10, 26
RIGHT_SIGN, WRONG_SIGN = "✓", "✗"


def jpeg(pixels: Tensor, quality: int = 82) -> str:
    """uint8 [H, W, 3] -> a data URI. Small pictures keep their colours at full resolution."""
    file = io.BytesIO()
    subsampling = 0 if min(pixels.shape[:2]) <= 64 else 2
    Image.fromarray(pixels.numpy()).save(file, "JPEG", quality=quality, subsampling=subsampling, optimize=True)
    return f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode('ascii')}"


def scaled(pixels: Tensor, side: int) -> Tensor:
    """uint8 [B, S, S, 3] -> uint8 [B, side, side, 3]."""
    x = F.interpolate(pixels.permute(0, 3, 1, 2), (side, side), mode="bicubic", antialias=True)
    return x.permute(0, 2, 3, 1).contiguous()


def sheet(pictures: Tensor, columns: int) -> str:
    """Pictures, uint8 [N, S, S, 3], row by row as one data URI."""
    n, side = pictures.shape[:2]
    rows = -(-n // columns)
    whole = torch.zeros(rows * columns, side, side, 3, dtype=torch.uint8)
    whole[:n] = pictures
    whole = whole.view(rows, columns, side, side, 3).transpose(1, 2).reshape(rows * side, columns * side, 3)
    return jpeg(whole, 74)


@dataclass(frozen=True)
class Line:
    """Points (x, y) from left to right; `spread` is a length to either side of each y."""

    name: str
    points: list[tuple[float, float]]
    spread: list[float] | None = None

    def told(self, x: float, show: Callable[[float], str]) -> str:
        """The value at the point nearest to x, in words."""
        at = min(range(len(self.points)), key=lambda index: abs(self.points[index][0] - x))
        return show(self.points[at][1]) + (f" ± {show(self.spread[at])}" if self.spread else "")


def ticks(low: float, high: float, most: int = 4) -> list[float]:
    """Round numbers within low..high, at most `most` + 1 of them."""
    rough = (high - low) / most
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough * (1 - 1e-9))
    return [number * step for number in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]


def chart(
    lines: Sequence[Line],
    *,
    title: str,
    show: Callable[[float], str],
    show_x: Callable[[float], str],
    guide: tuple[float, str] | None = None,
    from_zero: bool = False,
    x_ticks: Sequence[float] | None = None,
    log: bool = False,
    at: str = "at",
) -> tuple[Markup, list[tuple[float, str]]]:
    """Lines over x, and what to say at each x of the longest line: its place in the drawing, and a text.

    `guide` is a level to compare with, and its name. `log` draws x on a logarithmic axis; `at` stands before
    an x in words.
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
    first, last = along(min(xs)), along(max(xs))
    room = 0.06 * (last - first) if log else 0.0
    first, last = first - room, (last if last > first else first + 1) + room

    def across(x: float) -> float:
        return round(LEFT + (along(x) - first) / (last - first) * (WIDTH - LEFT - RIGHT), 1)

    def down(y: float) -> float:
        return round(TOP + (high - y) / (high - low) * (HEIGHT - TOP - BOTTOM), 1)

    parts = []
    for y in ticks(low, high):
        parts.append(tag("line", x1=LEFT, x2=WIDTH - RIGHT, y1=down(y), y2=down(y), class_="grid"))
        parts.append(tag("text", show(y).replace(".0 %", " %"), x=LEFT - 6, y=down(y) + 4, class_="end"))
    for x in x_ticks or ticks(min(xs), max(max(xs), min(xs) + 1), 4):
        parts.append(tag("text", show_x(x), x=across(x), y=HEIGHT - 8, class_="middle"))
    if guide:
        parts.append(tag("line", x1=LEFT, x2=WIDTH - RIGHT, y1=down(guide[0]), y2=down(guide[0]), class_="guide"))
        parts.append(tag("text", guide[1], x=WIDTH - RIGHT, y=down(guide[0]) - 4, class_="end"))
    for number, line in enumerate(lines):
        aside = 4 * (number - (len(lines) - 1) / 2) if line.spread else 0.0  # so that bars do not hide each other
        places = [(across(x) + aside, down(y)) for x, y in line.points]
        drawn = [tag("polyline", points=" ".join(f"{x:g},{y:g}" for x, y in places))]
        if line.spread:
            for (x, _), (_, value), spread in zip(places, line.points, line.spread, strict=True):
                drawn.append(tag("line", x1=x, x2=x, y1=down(value - spread), y2=down(value + spread)))
        if line.spread or len(places) == 1:
            drawn += [tag("circle", cx=x, cy=y, r=3.5) for x, y in places]
        parts.append(tag("g", *drawn, class_=f"line c{number} d{number % 4}"))
    parts.append(tag("line", x1=0, x2=0, y1=TOP, y2=HEIGHT - BOTTOM, class_="cursor"))
    box = f"0 0 {WIDTH} {HEIGHT}"
    drawing = tag("svg", *parts, viewBox=box, class_="chart", role="img", tabindex=0, aria_label=title)
    stops = []
    for x, _ in max(lines, key=lambda line: len(line.points)).points:
        names = (f"{printable(line.name)} " if len(lines) > 1 else "" for line in lines)
        told = ", ".join(name + line.told(x, show) for name, line in zip(names, lines, strict=True))
        stops.append((across(x), f"{told} {at} {show_x(x)}"))
    return drawing, stops


def cell(image: str, place: int, grid: int, **box: object) -> Markup:
    """One patch of the picture with the id `image`, which is `grid` units wide."""
    row, column = divmod(place, grid)
    return tag("svg", tag("use", href=f"#{image}"), viewBox=f"{column} {row} 1 1", **box)


def base(image: str, pixels: Tensor, grid: int) -> Markup:
    """The picture of uint8 [S, S, 3] under the id `image`, for others to use; itself not seen."""
    picture = tag("image", href=jpeg(pixels), width=grid, height=grid, id=image)
    return tag("svg", tag("defs", picture), class_="defs", aria_hidden="true", width=0, height=0)


def panel(image: str, grid: int, *parts: Markup, label: str, dim: bool = False) -> Markup:
    """A whole picture with something drawn over it."""
    whole = tag("use", href=f"#{image}", class_="dim" if dim else None)
    return tag("svg", whole, *parts, viewBox=f"0 0 {grid} {grid}", class_="panel", role="img", aria_label=label)


def holes(places: Sequence[int], grid: int) -> Markup:
    return joined([tag("rect", x=p % grid, y=p // grid, width=1, height=1, class_="hole") for p in places])


def place_of(place: int, grid: int) -> str:
    return f"row {place // grid + 1}, column {place % grid + 1}"


def answers(image: str, grid: int, masked: Sequence[int], picks: Sequence[int], probabilities: Tensor) -> Markup:
    """At each masked place the patch that was picked for it, framed, marked as right or wrong, with its probability.

    `picks` are positions in `masked`; probabilities: float [K, K], a row a place.
    """
    parts = []
    for number, (place, pick) in enumerate(zip(masked, picks, strict=True)):
        right, sure = number == pick, float(probabilities[number, pick])
        x, y = place % grid, place // grid
        told = f"the right patch, {sure:.0%}"
        if not right:
            told = f"took the patch of {place_of(masked[pick], grid)} with {sure:.0%}, "
            told += f"gave the right one {float(probabilities[number, number]):.0%}"
        drawn = (
            tag("title", f"{place_of(place, grid)}: {told}"),
            cell(image, masked[pick], grid, x=x, y=y, width=1, height=1),
            tag("rect", x=x + 0.03, y=y + 0.03, width=0.94, height=0.94),
            tag("text", f"{RIGHT_SIGN if right else WRONG_SIGN} {100 * sure:.0f}", x=x + 0.5, y=y + 0.9),
        )
        parts.append(tag("g", *drawn, class_="right" if right else "wrong"))
    return joined(parts)


def to_pixels(views: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Normalized images, float [B, 3, s, s] -> uint8 [B, s, s, 3]."""
    x = views.float().cpu().permute(0, 2, 3, 1) * torch.tensor(std) + torch.tensor(mean)
    return torch.from_numpy((x.clamp(0, 1) * 255).round().numpy().astype(np.uint8))
