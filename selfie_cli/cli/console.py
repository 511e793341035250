"""The terminal: progress, remarks and warnings on stderr; results on stdout."""

import contextlib
import json
import os
import sys
import time
from collections.abc import Iterator
from datetime import timedelta
from importlib.util import find_spec
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from selfie_cli.files import naming
from selfie_cli.talk import Advance, Talk, printable

if TYPE_CHECKING:
    from rich.console import RenderableType

PLAIN_SECONDS = 15.0
"""Seconds between two lines of progress if stderr is not a terminal."""
STDOUT = Path("standard output")


def put(line: str) -> None:
    """Print one line of results unchanged."""
    with naming(STDOUT):
        print(line)


def discard(stream: IO[str]) -> None:
    """Redirect a stream without a reader to /dev/null, so that flushing its buffer does not raise again."""
    with contextlib.suppress(OSError, ValueError):  # it may not be a file
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


class Console(Talk):
    def __init__(self, *, quiet: bool) -> None:
        from rich.console import Console as RichConsole

        class Stream(RichConsole):
            def on_broken_pipe(self) -> None:
                """Continue if the reader of stderr (such as `less`) has ended; rich would end the process."""
                if not self.stderr:
                    raise
                discard(sys.stderr)

        self.quiet = quiet
        plain: dict[str, Any] = {"highlight": False, "markup": False, "emoji": False}
        self.stderr = Stream(stderr=True, soft_wrap=True, **plain)
        self.stdout = Stream(width=None if sys.stdout.isatty() else 100, **plain)

    def say(self, line: str) -> None:
        if not self.quiet:
            self._print(printable(line))

    def warn(self, line: str) -> None:
        self._print(f"warning: {printable(line)}", style="yellow")

    def error(self, line: str) -> None:
        self._print(f"error: {printable(line)}", style="red")

    def _print(self, line: str, style: str | None = None) -> None:
        with contextlib.suppress(OSError):  # a log on a full disk must not stop the work
            self.stderr.print(line, style=style)

    def show(self, *parts: "RenderableType") -> None:
        """Print results for people. Lines are not wrapped: they may be pasted into a shell."""
        with naming(STDOUT):
            for part in parts:
                if isinstance(part, str):
                    self.stdout.print(printable(part), soft_wrap=True)
                else:
                    self.stdout.print(part)

    def json(self, value: Any) -> None:
        """Print results for programs: one JSON document."""
        put(json.dumps(value, indent=2, default=str, allow_nan=False))

    @contextlib.contextmanager
    def track(self, what: str, total: int) -> Iterator[Advance]:
        if self.quiet:
            yield lambda done, note: None
        elif self.stderr.is_terminal or (self.stderr.is_jupyter and find_spec("ipywidgets")):
            from rich import progress

            columns = (
                progress.TextColumn("{task.description}"),
                progress.BarColumn(bar_width=20),
                progress.MofNCompleteColumn(),
                progress.TimeRemainingColumn(),
                progress.TextColumn("{task.fields[note]}"),
            )
            with progress.Progress(*columns, console=self.stderr, transient=True) as bar:
                task = bar.add_task(what, total=total, note="")
                yield lambda done, note: bar.update(task, completed=done, note=note)
        else:
            yield self._lines(what, total)

    def _lines(self, what: str, total: int) -> Advance:
        """Return a function that prints a line of progress every PLAIN_SECONDS and, for long work, at the end."""
        begun = shown = time.monotonic()
        first: int | None = None

        def advance(done: int, note: str) -> None:
            nonlocal shown, first
            now = time.monotonic()
            first = done if first is None else first
            is_end = done >= total and shown > begun
            if now - shown < PLAIN_SECONDS and not is_end:
                return
            shown = now
            speed = (done - first) / (now - begun)
            left = ""
            if speed > 0 and done < total:
                left = f", {timedelta(seconds=round((total - done) / speed))} left"
            self.say(f"{what}: {done:,} of {total:,}{left}{', ' if note else ''}{note}")

        return advance
