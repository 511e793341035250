"""The terminal: progress, remarks, warnings and errors on stderr; results on stdout."""

import contextlib
import json
import os
import sys
import time
from collections.abc import Iterator
from datetime import timedelta
from importlib.util import find_spec
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, NamedTuple

from selfie_cli.errors import SelfieError, Stopped, is_out_of_memory
from selfie_cli.files import naming
from selfie_cli.signals import STOPPING, is_alone
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
        first: tuple[int, float] | None = None  # what was done at the first call, and when that was

        def advance(done: int, note: str) -> None:
            nonlocal shown, first
            now = time.monotonic()
            first = (done, now) if first is None else first
            is_end = done >= total and shown > begun
            if now - shown < PLAIN_SECONDS and not is_end:
                return
            shown = now
            left = ""
            if first[0] < done < total:
                left = f", {timedelta(seconds=round((total - done) / (done - first[0]) * (now - first[1])))} left"
            self.say(f"{what}: {done:,} of {total:,}{left}{', ' if note else ''}{note}")

        return advance


class Failure(NamedTuple):
    """The message and the exit code with which a command ends after an error."""

    message: str
    exit_code: int


def failure(error: BaseException) -> Failure | None:
    """Return what to tell the user about an error; None for a bug."""
    if isinstance(error, SelfieError):
        return Failure(str(error) + (how_to_resume() if isinstance(error, Stopped) else ""), error.exit_code)
    if isinstance(error, KeyboardInterrupt):
        return Failure(f"stopped{how_to_resume()}", 128 + (error.args or STOPPING)[0])
    if isinstance(error, RuntimeError | MemoryError | ImportError) and is_out_of_memory(error):
        remedy = "choose a smaller --batch-size, --image-size or --backbone, or allow more (ulimit -v)"
        return Failure(f"out of memory: {remedy}{how_to_resume()}", 1)
    if isinstance(error, OSError):
        return Failure(of_files(error), 1)
    if isinstance(error, RuntimeError) and not is_alone():
        from selfie_cli.training.distributed import is_lost_process

        if is_lost_process(error):
            return Failure(f"another process of this job has ended, see its error{how_to_resume()}", 1)
    return None


def of_files(error: OSError) -> str:
    try:
        sys.stdout.flush()
    except OSError:
        discard(sys.stdout)
    where = error.filename2 or error.filename  # with two files, the one being written
    line = f"{where or 'reading or writing failed'}: {error.strerror or error}"
    resume = how_to_resume()
    return line + (f". Nothing saved is lost{resume}" if resume else "")


def how_to_resume() -> str:
    """Return the end of a message, with the command that resumes this process's run; '' if there is no run."""
    runs = sys.modules.get("selfie_cli.runs")  # not imported here: memory may have run out
    if runs is None or (run := runs.begun()) is None:
        return ""
    if is_alone():
        return f". Resume with: {run.resume}"
    from selfie_cli.training.distributed import environment

    return f". Resume with: {environment().resume_command(run.verb, run.path)}"
