"""What a person sees: progress, remarks and warnings on stderr; results on stdout."""

import contextlib
import json
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from selfie_cli.files import naming
from selfie_cli.talk import Advance, Talk, printable

if TYPE_CHECKING:
    from rich.console import RenderableType

# Between two lines of progress where there is no terminal to draw a bar on.
PLAIN_SECONDS = 15.0


STDOUT = Path("standard output")


def put(line: str) -> None:
    """A line of results, as it is."""
    with naming(STDOUT):
        print(line)


def abandon(stream: IO[str]) -> None:
    """Let go of a stream that nobody reads: what waits to be written there would be tried, and told of, again."""
    with contextlib.suppress(OSError, ValueError):  # it may be no file
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def time_left(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}"


class Console(Talk):
    def __init__(self, *, quiet: bool) -> None:
        from rich.console import Console as RichConsole

        class Talking(RichConsole):
            def on_broken_pipe(self) -> None:
                """Whoever read it has gone, `less` say: what is worked on goes on. rich would end the process."""
                abandon(sys.stderr)

        class Telling(RichConsole):
            def on_broken_pipe(self) -> None:
                """Whoever read it has seen enough."""
                raise

        self.quiet = quiet
        self.stderr = Talking(stderr=True, highlight=False, markup=False, emoji=False, soft_wrap=True)
        wide = None if sys.stdout.isatty() else 100
        self.stdout = Telling(highlight=False, markup=False, emoji=False, width=wide)

    def say(self, line: str) -> None:
        if not self.quiet:
            self._tell(printable(line))

    def warn(self, line: str) -> None:
        self._tell(f"warning: {printable(line)}", style="yellow")

    def error(self, line: str) -> None:
        self._tell(f"error: {printable(line)}", style="red")

    def _tell(self, line: str, style: str | None = None) -> None:
        with contextlib.suppress(OSError):  # a log on a full disk: what is worked on goes on
            self.stderr.print(line, style=style)

    def show(self, *tables: "RenderableType") -> None:
        """Results for eyes. Lines are not broken: what they hold may be pasted into a shell."""
        with naming(STDOUT):
            for table in tables:
                if isinstance(table, str):
                    self.stdout.print(printable(table), soft_wrap=True)
                else:
                    self.stdout.print(table)

    def json(self, value: Any) -> None:
        """Results for programs: one JSON document."""
        put(json.dumps(value, indent=2, default=str, allow_nan=False))

    @contextlib.contextmanager
    def track(self, what: str, total: int) -> Iterator[Advance]:
        if self.quiet:
            yield lambda done, note: None
        elif self.stderr.is_terminal:
            with self._bar(what, total) as advance:
                yield advance
        else:
            yield self._lines(what, total)

    @contextlib.contextmanager
    def _bar(self, what: str, total: int) -> Iterator[Advance]:
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

    def _lines(self, what: str, total: int) -> Advance:
        begun = shown = time.monotonic()
        first: int | None = None

        def advance(done: int, note: str) -> None:
            nonlocal shown, first
            now = time.monotonic()
            first = done if first is None else first
            if now - shown < PLAIN_SECONDS and done < total:
                return
            if shown == begun and done >= total and now - begun < PLAIN_SECONDS:
                return  # too short to talk about
            shown = now
            speed = (done - first) / (now - begun)
            left = f", {time_left((total - done) / speed)} left" if speed > 0 and done < total else ""
            self.say(f"{what}: {done:,} of {total:,}{left}{', ' if note else ''}{note}")

        return advance


class Silent(Console):
    """For the processes of a job that leave talking to the first one; what ends one of them is still said."""

    def warn(self, line: str) -> None:
        pass

    def error(self, line: str) -> None:
        super().error(f"process {os.environ.get('RANK')}: {line}")

    def show(self, *tables: "RenderableType") -> None:
        pass

    def json(self, value: Any) -> None:
        pass
