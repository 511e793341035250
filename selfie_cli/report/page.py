"""The page of a run: one HTML file with all that it shows inside it, which asks nothing of any network.

Every function gives a piece of markup; `document` puts them together under a policy that lets nothing else load or run.
"""

import base64
import hashlib
import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from typing import Any

import torch
from torch import Tensor

from selfie_cli.report import drawing
from selfie_cli.report.drawing import RIGHT_SIGN, WRONG_SIGN, Line
from selfie_cli.report.markup import Markup, as_data, joined, shown, tag
from selfie_cli.talk import printable

COLOURS = ("#3b78d8", "#e07b10", "#2e9e63", "#d5445c", "#8f63d2", "#94713f", "#d764b4", "#7a828c", "#98a11a", "#139bb0")
MAP_WIDTH, MAP_HEIGHT = 1000, 860
FEW_CLASSES = 30  # a confusion matrix of more is no table any more


@dataclass
class Page:
    """What `document` needs beside the markup: grown by the pieces as they are made."""

    sections: list[tuple[str, str, Markup]] = field(default_factory=list)
    """Of each its id, its title, and all of it."""
    data: dict[str, Any] = field(default_factory=lambda: {"charts": []})
    num_colours: int = len(COLOURS)

    def add(self, name: str, title: str, *inside: Markup | None) -> None:
        self.sections.append((name, title, tag("section", tag("h2", title), *inside, id=name)))


def document(page: Page, *, title: str, header: Markup, footer: str) -> str:
    """The whole page, ASCII but for what it tells."""
    style, script = colours(page.num_colours) + resource("page.css"), resource("page.js")
    links = [tag("a", each, href=f"#{name}") for name, each, _ in page.sections]
    return string.Template(resource("page.html")).substitute(
        style=style,
        style_digest=digest(style),
        script=script,
        script_digest=digest(script),
        title=shown(title),
        header=header,
        links=joined(links),
        sections=joined([markup for _, _, markup in page.sections]),
        footer=shown(footer),
        data=as_data(page.data),
    )


def resource(name: str) -> str:
    return (resources.files("selfie_cli.report") / name).read_text(encoding="utf-8")


def digest(text: str) -> str:
    """As a content security policy names what it allows."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def colours(count: int) -> str:
    """A colour a class; beyond those chosen by hand they are a golden angle apart."""
    more = (f"hsl({137.508 * number % 360:.0f} 60% 52%)" for number in range(len(COLOURS), count))
    return "".join(f".c{number}{{--c:{colour}}}" for number, colour in enumerate((*COLOURS, *more))) + "\n"


def heading(
    kicker: str, title: str, verdict: Sequence[str], notes: Sequence[str], facts: Sequence[tuple[str, str, str]]
) -> Markup:
    """`facts` are a name, a value and a remark each."""
    cells = [
        tag("div", tag("dt", name), tag("dd", value, tag("small", remark) if remark else None))
        for name, value, remark in facts
    ]
    return tag(
        "header",
        tag("p", kicker, class_="kicker"),
        tag("h1", title),
        *(tag("p", sentence, class_="verdict") for sentence in verdict),
        *(tag("p", note, class_="verdict note") for note in notes),
        tag("dl", *cells, class_="facts"),
    )


def percent(value: float, digits: int = 1) -> str:
    return f"{value * 100:.{digits}f} %"


def paragraph(text: str) -> Markup:
    return tag("p", text, class_="soft")


def chart(page: Page, title: str, lines: Sequence[Line], **how: Any) -> Markup:
    """A chart with its title and a line that says what is pointed at; at first, where it ended."""
    drawn, stops = drawing.chart(lines, title=f"{title}: {len(lines[0].points)} points. Arrow keys read them.", **how)
    page.data["charts"].append(stops)
    caption = tag("figcaption", tag("h3", title), tag("output", stops[-1][1]))
    return tag("figure", caption, drawn)


def legend(names: Sequence[str]) -> Markup | None:
    """Which line is whose: by colour and dashes."""
    if len(names) < 2:
        return None

    def sample(number: int) -> Markup:
        line = tag("g", tag("polyline", points="0,5 30,5"), class_=f"line c{number} d{number % 4}")
        return tag("svg", line, width=30, height=10, aria_hidden="true")

    return tag("ul", *(tag("li", sample(number), name) for number, name in enumerate(names)), class_="legend")


def table(
    head: Sequence[str], rows: Sequence[Sequence[object]], *, caption: str = "", strong: int = -1, kind: str = ""
) -> Markup:
    """The first column names its row. `strong` is a row to stress."""
    top = tag("thead", tag("tr", *(tag("th", each, scope="col") for each in head))) if head else None
    lines = []
    for number, row in enumerate(rows):
        cells = tag("th", row[0], scope="row"), *(tag("td", each) for each in row[1:])
        lines.append(tag("tr", *cells, class_="strong" if number == strong else None))
    whole = tag("table", tag("caption", caption) if caption else None, top, tag("tbody", *lines), class_=kind or None)
    return tag("div", whole, class_="scroll", tabindex=0 if head else None)


def folded(title: str, *inside: Markup | None) -> Markup:
    return tag("details", tag("summary", title), *inside)


def settings(values: Mapping[str, Any]) -> Markup:
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

    return table([], flat(values), kind="plain")


def picture(pixels: Tensor, *lines: str, alt: str, right: bool | None = None) -> Markup:
    """uint8 [S, S, 3] with lines of text below; framed, and the first line marked, if it is right or wrong."""
    kind, sign = None, ""
    if right is not None:
        kind, sign = ("right", f"{RIGHT_SIGN} ") if right else ("wrong", f"{WRONG_SIGN} ")
    side, framed = pixels.shape[0], f"framed {kind}" if kind else None
    image = tag("img", src=drawing.jpeg(pixels), alt=alt, width=side, height=side, class_=framed)
    first = tag("span", sign + lines[0], class_=f"sign {kind}" if kind else None)
    rest = [part for line in lines[1:] for part in (tag("br"), line)]
    return tag("figure", image, tag("figcaption", first, *rest))


def puzzle(number: int, pixels: Tensor, name: str, grid: int, masked: list[int], probabilities: Tensor) -> Markup:
    """The paper's game on one image, uint8 [S, S, 3], of grid x grid patches: what was seen, what was picked for each
    hidden place, and all that could be picked. probabilities: float [K, K], a row a place."""
    ident = f"image{number}"
    picks = probabilities.argmax(dim=1).tolist()
    right = sum(pick == place for place, pick in enumerate(picks))
    seen = drawing.panel(ident, grid, drawing.holes(masked, grid), label="What the network saw: hidden patches hatched")
    whole = drawing.panel(ident, grid, label=f"The image {name}")
    answer = drawing.panel(
        ident,
        grid,
        drawing.answers(ident, grid, masked, picks, probabilities),
        label=f"What it picked for each hidden place: {right} of {len(masked)} right",
        dim=True,
    )
    choices = [drawing.cell(ident, place, grid, role="img", aria_label="a hidden patch") for place in masked]
    return tag(
        "figure",
        drawing.base(ident, pixels, grid),
        tag("div", tag("div", whole, seen), answer, class_="trio"),
        tag("div", *choices, class_="choices"),
        tag("figcaption", tag("b", f"{right} of {len(masked)} right"), f" · {name}"),
        class_="puzzle",
    )


def group(kind: str, parts: Sequence[Markup], *, pixels: bool) -> Markup:
    """`pixels`: what is shown is so small that its pixels are to be seen."""
    return tag("div", *parts, class_=f"{kind} pixels" if pixels else kind)


def row(*figures: Markup) -> Markup:
    return tag("div", *figures, class_="row even" if len(figures) % 3 == 0 else "row")


def chart_map(
    page: Page,
    places: Tensor,
    thumbs: Tensor,
    names: Sequence[str],
    labels: Sequence[int] | None,
    classes: Sequence[str],
) -> Markup:
    """Points at float [N, 2], coloured by label; uint8 [N, t, t, 3] are shown beside what is pointed at."""
    low, high = places.amin(dim=0), places.amax(dim=0)
    room = torch.tensor([MAP_WIDTH, MAP_HEIGHT]) - 60
    at = ((places - low) / (high - low).clamp(min=1e-6) * room + 30).round(decimals=1).tolist()
    radius = 8 if len(at) < 400 else 6.5
    points = [
        tag("circle", cx=f"{x:g}", cy=f"{y:g}", r=radius, class_=f"c{labels[i]}" if labels else None)
        for i, (x, y) in enumerate(at)
    ]
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
    buttons = []
    for one in sorted(set(labels or ())):
        name = tag("i", class_=f"c{one}"), classes[one]
        buttons.append(tag("li", tag("button", *name, type="button", data_class=one, aria_pressed="false")))
    window = tag("div", tag("img", src=drawing.sheet(thumbs, columns), alt=""), class_="window")
    kind = "tip pixels" if side < 64 else "tip"
    tip = tag("div", window, tag("b"), tag("span"), class_=kind, hidden=True, aria_live="polite")
    told = f"Map of {len(at)} images. Arrow keys go from image to image."
    box = f"0 0 {MAP_WIDTH} {MAP_HEIGHT}"
    drawn = tag("svg", *points, viewBox=box, tabindex=0, role="application", aria_label=told)
    return joined([tag("ul", *buttons, class_="legend") if buttons else Markup(), tag("div", drawn, tip, class_="map")])


def bars(rows: Sequence[tuple[str, float, str]]) -> Markup:
    """A name, a share (0..1) and what to say of it, each."""
    lines = []
    for name, share, told in rows:
        drawn = [tag("rect", width=100, height=11), tag("rect", width=round(100 * share, 1), height=11)]
        bar = tag("svg", *drawn, viewBox="0 0 100 11", preserveAspectRatio="none", aria_hidden="true")
        lines.append(tag("li", tag("span", name, title=name), bar, tag("span", told)))
    return tag("ul", *lines, class_="bars")


def confusion(classes: Sequence[str], counts: Sequence[Sequence[int]]) -> Markup:
    """Rows are true, columns predicted. Of many classes, the pairs that are confused most."""
    if len(classes) > FEW_CLASSES:
        pairs = sorted(
            ((count, i, j) for i, row in enumerate(counts) for j, count in enumerate(row) if i != j and count),
            key=lambda pair: (-pair[0], pair[1:]),
        )[:20]
        rows = [(classes[i], classes[j], count, f"{count / sum(counts[i]):.0%}") for count, i, j in pairs]
        return table(["true class", "taken for", "images", "of that class"], rows, caption="Confused most")
    lines = []
    for i, row in enumerate(counts):
        cells = []
        for j, count in enumerate(row):
            kind = f"h{round(10 * count / max(1, sum(row)))}{' own' if i == j else ''}"
            cells.append(tag("td", count or "·", class_=kind, title=f"{classes[i]} taken for {classes[j]}: {count}"))
        lines.append(tag("tr", tag("th", classes[i], scope="row"), *cells))
    head = tag("tr", *(tag("th", each, scope="col") for each in ("true ↓ predicted →", *classes)))
    caption = tag("caption", "How many test images of each class (row) were taken for which (column)")
    whole = tag("table", caption, tag("thead", head), tag("tbody", *lines), class_="heat")
    return tag("div", whole, class_="scroll", tabindex=0)
