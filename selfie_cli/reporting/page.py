"""The page of a run: one HTML file that contains everything it shows and loads nothing over the network.

Sections are macros of sections.html.jinja, which use those of pieces.html.jinja. `document` joins them, with a content
security policy that lets nothing else load or run. Names of files, classes and runs are escaped.
"""

import base64
import contextlib
import functools
import hashlib
import io
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from importlib import resources
from typing import Any, NamedTuple

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from selfie_cli.errors import RunError
from selfie_cli.recipes import called
from selfie_cli.runs import Run
from selfie_cli.talk import printable
from selfie_cli.training.hardware import duration

COLOURS = ("#3b78d8", "#e07b10", "#2e9e63", "#d5445c", "#8f63d2", "#94713f", "#d764b4", "#7a828c", "#98a11a", "#139bb0")
MAP_WIDTH, MAP_HEIGHT = 1000, 860
WIDTH, HEIGHT = 360, 200
LEFT, RIGHT, TOP, BOTTOM = 50, 22, 10, 26
FRAME = {"width": WIDTH, "height": HEIGHT, "left": LEFT, "right": WIDTH - RIGHT, "top": TOP, "bottom": HEIGHT - BOTTOM}
FEW_CLASSES = 30
"""Largest number of classes for which the confusion matrix is shown as a table."""


def percent(value: float, digits: int = 1) -> str:
    return f"{value * 100:.{digits}f} %"


def environment(package: str, **options: Any) -> Any:
    """Return an environment of the Jinja templates in a package's folder. Undefined names are errors."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    options |= {"undefined": StrictUndefined, "trim_blocks": True, "lstrip_blocks": True}
    return Environment(loader=PackageLoader(package, ""), **options)


@functools.cache
def templates() -> Any:
    """Return the templates beside this file. Their output is printable, and escaped unless a macro made it."""
    from markupsafe import Markup

    def shown(value: object) -> object:
        if value is None:
            return ""
        return printable(value) if isinstance(value, str) and not isinstance(value, Markup) else value

    found = environment("selfie_cli.reporting", autoescape=True, finalize=shown)
    found.filters |= {"percent": percent, "count": "{:,}".format, "jpeg": jpeg, "sheet": sheet}
    found.filters |= {"called": called, "duration": duration, "digest": digest}
    found.globals |= {"MAP_WIDTH": MAP_WIDTH, "MAP_HEIGHT": MAP_HEIGHT, "FEW_CLASSES": FEW_CLASSES}
    found.policies["json.dumps_kwargs"] = {"allow_nan": False, "separators": (",", ":")}
    return found


def markup(template: str, macro: str, *arguments: object, **named: object) -> str:
    """Return what a macro of a template makes."""
    made: str = getattr(templates().get_template(template).module, macro)(*arguments, **named).strip()
    return made


@contextlib.contextmanager
def describing(run: Run) -> Iterator[None]:
    """Turn errors from missing or wrongly typed values in the block into RunError: the run's files are at fault."""
    from jinja2 import UndefinedError

    try:
        yield
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError, UndefinedError) as error:
        raise RunError(f"a file in {run.path} is damaged, or of another version of selfie: {error!r}") from error


class Picture(NamedTuple):
    """An image, uint8 [S, S, 3], and lines of text below. `right` frames it and marks the first line right or wrong."""

    pixels: Tensor
    lines: Sequence[str]
    alt: str
    right: bool | None = None


@dataclass
class Page:
    """Sections (id, title, markup) in order, and the data that the page's script reads."""

    sections: list[tuple[str, str, str]] = field(default_factory=list)
    data: dict[str, Any] = field(default_factory=lambda: {"charts": []})
    num_colours: int = len(COLOURS)

    def add(self, name: str, title: str, macro: str, **values: object) -> None:
        """Append the section that a macro of sections.html.jinja makes from `values`."""
        self.sections.append((name, title, markup("sections.html.jinja", macro, **values)))


def document(page: Page, *, title: str, header: str, footer: str) -> str:
    """Return the whole page as HTML."""
    template = templates().get_template("page.html.jinja")
    style, script = colours(page.num_colours) + resource("page.css"), resource("page.js")
    made: str = template.render(page=page, title=title, header=header, footer=footer, style=style, script=script)
    return made


def resource(name: str) -> str:
    return (resources.files("selfie_cli.reporting") / name).read_text(encoding="utf-8")


def digest(text: str) -> str:
    """Return the hash with which a content security policy allows an inline style or script."""
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"


def colours(count: int) -> str:
    """Return CSS with a colour per class. After the hand-picked colours, hues are a golden angle apart."""
    more = (f"hsl({137.508 * number % 360:.0f} 60% 52%)" for number in range(len(COLOURS), count))
    return "".join(f".c{number}{{--c:{colour}}}" for number, colour in enumerate((*COLOURS, *more))) + "\n"


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


def drawn_chart(
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


def chart(page: Page, title: str, lines: Sequence[Line], **how: Any) -> str:
    """Return a chart with its title, and a line of text with the values under the pointer, at first the last ones."""
    drawn, stops = drawn_chart(lines, **how)
    page.data["charts"].append(stops)
    return markup("pieces.html.jinja", "chart", drawn, title, stops[-1][1])


def curve_file(title: str, lines: Sequence[Line], **how: Any) -> str:
    """Return the text of an SVG file with the same chart and a legend."""
    drawn, _ = drawn_chart(lines, **how)
    names, style = [line.name for line in lines], colours(len(lines)) + resource("curve.css")
    return markup("pieces.html.jinja", "chart_file", drawn, title, names, style) + "\n"


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


def to_pixels(views: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Undo the normalization of images, float [B, 3, s, s] -> uint8 [B, s, s, 3]."""
    x = views.float().cpu().permute(0, 2, 3, 1) * torch.tensor(std) + torch.tensor(mean)
    return (x.clamp(0, 1) * 255).round().to(torch.uint8)


def most_confused(classes: Sequence[str], counts: Sequence[Sequence[int]]) -> list[tuple[str, str, int, str]]:
    """Return the 20 most frequent confusions: true class, predicted class, images, and share of the true class."""
    pairs = [(count, i, j) for i, row in enumerate(counts) for j, count in enumerate(row) if i != j and count]
    pairs.sort(key=lambda pair: (-pair[0], pair[1:]))
    return [(classes[i], classes[j], count, f"{count / sum(counts[i]):.0%}") for count, i, j in pairs[:20]]
