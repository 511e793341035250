"""What a long job tells its user while it works. Recipes call it, the command line's console shows it."""

import contextlib
from collections.abc import Callable, Iterator

Advance = Callable[[int, str], None]
"""Called with how many are done in all, and a short note to show beside the bar."""


def printable(text: str) -> str:
    """Without the control characters and half characters that a file's name may hold: they are written out."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


class Talk:
    """Says nothing: for programs that call recipes. `cli.console.Console` is the one that speaks, on stderr."""

    def say(self, line: str) -> None:
        """A line the user should read: a choice that was made, a default, an estimate."""

    def warn(self, line: str) -> None:
        """A line the user must not miss."""

    @contextlib.contextmanager
    def track(self, what: str, total: int) -> Iterator[Advance]:
        """Show progress towards `total` with the time left, for the length of a with block."""
        yield lambda done, note: None
