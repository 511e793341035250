"""The page of a run: one HTML file that contains everything it shows and loads nothing over the network.

Sections are macros of sections.html.jinja, which use those of pieces.html.jinja. `document` joins them, with a content
security policy that lets nothing else load or run. Names of files, classes and runs are escaped.
"""

import base64
import contextlib
import functools
import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from importlib import resources
from typing import Any, NamedTuple

from torch import Tensor

from selfie_cli.errors import RunError
from selfie_cli.recipes import called
from selfie_cli.reporting import charts as drawing
from selfie_cli.reporting.charts import Line
from selfie_cli.runs import Run
from selfie_cli.talk import printable
from selfie_cli.training.hardware import duration

COLOURS = ("#3b78d8", "#e07b10", "#2e9e63", "#d5445c", "#8f63d2", "#94713f", "#d764b4", "#7a828c", "#98a11a", "#139bb0")
MAP_WIDTH, MAP_HEIGHT = 1000, 860
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
    found.filters |= {"percent": percent, "count": "{:,}".format, "jpeg": drawing.jpeg, "sheet": drawing.sheet}
    found.filters |= {"called": called, "duration": duration, "digest": digest}
    found.globals |= {"MAP_WIDTH": MAP_WIDTH, "MAP_HEIGHT": MAP_HEIGHT, "FEW_CLASSES": FEW_CLASSES}
    found.policies["json.dumps_kwargs"] = {"allow_nan": False, "separators": (",", ":")}
    return found


def piece(name: str, *arguments: object, **named: object) -> str:
    """Return the markup that a macro of pieces.html.jinja makes."""
    made: str = getattr(templates().get_template("pieces.html.jinja").module, name)(*arguments, **named).strip()
    return made


def section(name: str, **values: object) -> str:
    """Return the markup that a macro of sections.html.jinja makes."""
    made: str = getattr(templates().get_template("sections.html.jinja").module, name)(**values)
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
        self.sections.append((name, title, section(macro, **values)))


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


def chart(page: Page, title: str, lines: Sequence[Line], **how: Any) -> str:
    """Return a chart with its title, and a line of text with the values under the pointer, at first the last ones."""
    drawn, stops = drawing.chart(lines, **how)
    page.data["charts"].append(stops)
    return piece("chart", drawn, title, stops[-1][1])


def curve_file(title: str, lines: Sequence[Line], **how: Any) -> str:
    """Return the text of an SVG file with the same chart and a legend."""
    drawn, _ = drawing.chart(lines, **how)
    return (
        piece("chart_file", drawn, title, [line.name for line in lines], colours(len(lines)) + resource("curve.css"))
        + "\n"
    )


def most_confused(classes: Sequence[str], counts: Sequence[Sequence[int]]) -> list[tuple[str, str, int, str]]:
    """Return the 20 most frequent confusions: true class, predicted class, images, and share of the true class."""
    pairs = [(count, i, j) for i, row in enumerate(counts) for j, count in enumerate(row) if i != j and count]
    pairs.sort(key=lambda pair: (-pair[0], pair[1:]))
    return [(classes[i], classes[j], count, f"{count / sum(counts[i]):.0%}") for count, i, j in pairs[:20]]
