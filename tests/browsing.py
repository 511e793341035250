"""A page looked at in a real browser: what it says on the console, what it asks of a network, what is on the screen."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any


@contextlib.contextmanager
def looking_at(
    browser: Any, file: Path, *, width: int = 1280, dark: bool = False, touch: bool = False
) -> Iterator[Any]:
    """The open page. At the end it must have been silent, opened no dialog, and loaded nothing but itself."""
    noise: list[str] = []
    asked: list[str] = []
    context = browser.new_context(
        viewport={"width": width, "height": 900}, color_scheme="dark" if dark else "light", has_touch=touch
    )
    page = context.new_page()
    page.on("console", lambda message: noise.append(message.text))
    page.on("pageerror", lambda error: noise.append(str(error)))
    page.on("dialog", lambda dialog: (noise.append(dialog.message), dialog.dismiss()))
    page.on("request", lambda request: asked.append(request.url))
    try:
        page.goto(file.absolute().as_uri())
        yield page
        assert noise == []
        assert [url for url in asked if not url.startswith("data:")] == [file.absolute().as_uri()]
    finally:
        context.close()
