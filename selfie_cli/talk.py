"""Messages and progress of long jobs. Commands call `Talk`; the console of the command line prints them."""

import contextlib
from collections.abc import Callable, Iterator

Advance = Callable[[int, str], None]
"""Called with the number done so far, and a short note to show beside the bar."""


def printable(text: str) -> str:
    """Escape control characters and lone surrogates, which may occur in file names."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


def counted(count: int, noun: str) -> str:
    """Return a count with its noun: '1 image', '2,000 images'."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


class Talk:
    """The messages of a command. This base class is silent; `cli.console.Console` writes to stderr."""

    def say(self, line: str) -> None:
        """Show a choice that was made, a default or an estimate."""

    def warn(self, line: str) -> None:
        """Show a warning."""

    @contextlib.contextmanager
    def track(self, what: str, total: int) -> Iterator[Advance]:
        """Show progress towards `total` with the time left, within a with block."""
        yield lambda done, note: None
