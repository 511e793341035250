"""HTML and SVG from text that nobody vouches for: names of files, classes and runs are shown, never read as markup."""

import html
import json
from typing import Any

from selfie_cli.talk import printable


class Markup(str):
    """Text that is markup already. Any other text is escaped where it becomes part of a page."""


VOID = frozenset({"img", "br"})


def shown(text: object) -> str:
    """Escaped for text and attributes."""
    return text if isinstance(text, Markup) else html.escape(printable(str(text)))


def tag(element: str, /, *inside: object, **attributes: object) -> Markup:
    """An element. Of attributes, None and False are left out, True stands alone, `class_` and `data_x` lose their
    underscores; what is None inside is left out."""
    given = {key.rstrip("_").replace("_", "-"): value for key, value in attributes.items()}
    given = {key: value for key, value in given.items() if value is not None and value is not False}
    head = "".join(f" {key}" if value is True else f' {key}="{shown(value)}"' for key, value in given.items())
    if element in VOID:
        return Markup(f"<{element}{head}>")
    return Markup(f"<{element}{head}>{''.join(shown(each) for each in inside if each is not None)}</{element}>")


def joined(parts: list[Markup]) -> Markup:
    return Markup("".join(parts))


def as_data(value: Any) -> Markup:
    """JSON that may stand in a script element: nothing in it can end one, or begin a comment."""
    text = json.dumps(value, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Markup(text)
