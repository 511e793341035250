"""The page of a run: one HTML file with all that it shows inside it, which asks nothing of any network.

Each function makes a piece of markup with a macro of pieces.html.jinja; `document` puts them together under a policy
that lets nothing else load or run. Names of files, classes and runs are shown, never read as markup.
"""

import base64
import functools
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from typing import Any

import torch
from torch import Tensor

from selfie_cli.reporting import charts as drawing
from selfie_cli.reporting.charts import Line
from selfie_cli.talk import printable

COLOURS = ("#3b78d8", "#e07b10", "#2e9e63", "#d5445c", "#8f63d2", "#94713f", "#d764b4", "#7a828c", "#98a11a", "#139bb0")
MAP_WIDTH, MAP_HEIGHT = 1000, 860
FEW_CLASSES = 30  # a confusion matrix of more is no table any more
CURVE_STYLE = """
svg { background: #fff; font: 11px sans-serif; fill: #444; font-variant-numeric: tabular-nums; }
.title { font-size: 13px; fill: #000; } .middle { text-anchor: middle; } .end { text-anchor: end; }
.grid { stroke: #ddd; } .line * { stroke: var(--c); stroke-width: 1.5; } .line polyline { fill: none; }
.line circle { fill: var(--c); } .d1 polyline { stroke-dasharray: 7 3; } .d2 polyline { stroke-dasharray: 2 2; }
.d3 polyline { stroke-dasharray: 9 3 2 3; }
"""


@functools.cache
def templates() -> Any:
    """The templates beside this file: in their output, text is printable, and escaped unless it is markup."""
    from jinja2 import Environment, PackageLoader, StrictUndefined
    from markupsafe import Markup

    def shown(value: object) -> object:
        if value is None:
            return ""
        return printable(value) if isinstance(value, str) and not isinstance(value, Markup) else value

    found = Environment(
        loader=PackageLoader("selfie_cli", "reporting"),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=shown,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    found.policies["json.dumps_kwargs"] = {"allow_nan": False, "separators": (",", ":")}
    return found


def piece(name: str, *arguments: object, **named: object) -> str:
    """Markup, by a macro of pieces.html.jinja."""
    made: str = getattr(templates().get_template("pieces.html.jinja").module, name)(*arguments, **named).strip()
    return made


@dataclass
class Page:
    """What `document` needs beside the markup: grown by the pieces as they are made."""

    sections: list[tuple[str, str, str]] = field(default_factory=list)
    """Of each its id, its title, and all of it."""
    data: dict[str, Any] = field(default_factory=lambda: {"charts": []})
    num_colours: int = len(COLOURS)

    def add(self, name: str, title: str, *inside: str | None) -> None:
        self.sections.append((name, title, piece("section", name, title, inside)))


def document(page: Page, *, title: str, header: str, footer: str) -> str:
    """The whole page, ASCII but for what it tells."""
    style, script = colours(page.num_colours) + resource("page.css"), resource("page.js")
    return str(
        templates()
        .get_template("page.html.jinja")
        .render(
            style=style,
            style_digest=digest(style),
            script=script,
            script_digest=digest(script),
            title=title,
            header=header,
            sections=page.sections,
            footer=footer,
            data=page.data,
        )
    )


def resource(name: str) -> str:
    return (resources.files("selfie_cli.reporting") / name).read_text(encoding="utf-8")


def digest(text: str) -> str:
    """As a content security policy names what it allows."""
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"


def colours(count: int) -> str:
    """A colour per class; beyond those chosen by hand they are a golden angle apart."""
    more = (f"hsl({137.508 * number % 360:.0f} 60% 52%)" for number in range(len(COLOURS), count))
    return "".join(f".c{number}{{--c:{colour}}}" for number, colour in enumerate((*COLOURS, *more))) + "\n"


def percent(value: float, digits: int = 1) -> str:
    return f"{value * 100:.{digits}f} %"


def chart(page: Page, title: str, lines: Sequence[Line], **how: Any) -> str:
    """A chart with its title and a line that says what is pointed at; at first, where it ended."""
    drawn, stops = drawing.chart(lines, **how)
    page.data["charts"].append(stops)
    return piece("chart", drawn, title, stops[-1][1])


def curve_file(title: str, lines: Sequence[Line], **how: Any) -> str:
    """The text of an SVG file with the same chart, and a legend."""
    drawn, _ = drawing.chart(lines, **how)
    return piece("chart_file", drawn, title, [line.name for line in lines], colours(len(lines)) + CURVE_STYLE) + "\n"


def settings(values: Mapping[str, Any]) -> str:
    """Options and the like, nested ones by dotted names."""

    def flat(values: Mapping[str, Any], before: str = "") -> list[tuple[str, str]]:
        rows: list[tuple[str, str]] = []
        for name, value in values.items():
            if isinstance(value, Mapping):
                rows += flat(value, f"{before}{name}.")
            else:
                text = ", ".join(map(str, value[:100])) if isinstance(value, list) else "" if value is None else value
                rows.append((f"{before}{name}", str(text)))
        return rows

    return piece("table", [], flat(values), kind="plain")


def picture(pixels: Tensor, *lines: str, alt: str, right: bool | None = None) -> str:
    """uint8 [S, S, 3] with lines of text below; framed, and the first line marked, if it is right or wrong."""
    return piece("picture", drawing.jpeg(pixels), pixels.shape[0], lines, alt, right)


def puzzle(number: int, pixels: Tensor, name: str, grid: int, masked: list[int], probabilities: Tensor) -> str:
    """The paper's game on one image, uint8 [S, S, 3], of grid x grid patches: what was seen, what was picked for each
    hidden place, and all that could be picked. probabilities: float [K, K], a row per place."""
    picks = probabilities.argmax(dim=1).tolist()
    source = drawing.jpeg(pixels)
    return piece("puzzle", f"image{number}", source, name, grid, masked, picks, probabilities.tolist())


def chart_map(
    page: Page,
    places: Tensor,
    thumbs: Tensor,
    names: Sequence[str],
    labels: Sequence[int] | None,
    classes: Sequence[str],
) -> str:
    """Points at float [N, 2], coloured by label; uint8 [N, t, t, 3] are shown beside what is pointed at."""
    low, high = places.amin(dim=0), places.amax(dim=0)
    room = torch.tensor([MAP_WIDTH, MAP_HEIGHT]) - 60
    at = ((places - low) / (high - low).clamp(min=1e-6) * room + 30).round(decimals=1).tolist()
    columns, side = max(1, round(len(at) ** 0.5)), thumbs.shape[1]
    page.data["map"] = {
        "names": [printable(name) for name in names],
        "labels": labels,
        "classes": [printable(name) for name in classes],
        "columns": columns,
        "side": side,
        "view": MAP_WIDTH,
    }
    page.num_colours = max(page.num_colours, len(classes))
    radius = 8 if len(at) < 400 else 6.5
    sheet = drawing.sheet(thumbs, columns)
    return piece("map", at, labels, classes, MAP_WIDTH, MAP_HEIGHT, radius, sheet, side < 64)


def confusion(classes: Sequence[str], counts: Sequence[Sequence[int]]) -> str:
    """Rows are true, columns predicted. Of many classes, the pairs that are confused most."""
    if len(classes) <= FEW_CLASSES:
        return piece("heat", list(classes), counts)
    pairs = sorted(
        ((count, i, j) for i, row in enumerate(counts) for j, count in enumerate(row) if i != j and count),
        key=lambda pair: (-pair[0], pair[1:]),
    )[:20]
    rows = [(classes[i], classes[j], count, f"{count / sum(counts[i]):.0%}") for count, i, j in pairs]
    return piece("table", ["true class", "taken for", "images", "of that class"], rows, caption="Confused most")
