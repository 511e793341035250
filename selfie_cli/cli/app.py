"""The program `selfie`: a command per verb, which calls the verb's function and shows its result or its error.

Nothing heavy is imported before a command runs: `selfie --help` needs no torch.
"""

import contextlib
import dataclasses
import functools
import io
import os
import sys
from collections.abc import Iterator
from typing import Annotated, Any

import typer

from selfie_cli import __version__
from selfie_cli.cli.console import STDOUT, Console, discard, failure, put
from selfie_cli.cli.options import VerbCommand, command
from selfie_cli.commands import VERBS, call
from selfie_cli.files import json_line, naming
from selfie_cli.option import build
from selfie_cli.signals import give_up, handled, is_alone, is_first
from selfie_cli.talk import Talk

app = typer.Typer(
    name="selfie",
    help="Pretrain an image network on your own unlabelled pictures, finetune it on few labels, and see if it helped.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def execute(verb: str, values: dict[str, Any], typed: list[str]) -> None:
    """Run a verb with values from the command line; `typed` names the options that were given.

    A SelfieError prints one line and sets the exit code. SELFIE_DEBUG=1 shows its traceback. A bug always shows one.
    """
    first = is_first()  # other processes of a job print errors only
    console = Console(quiet=values["quiet"])
    try:
        with handled(give_up) if is_alone() else contextlib.nullcontext():
            options = build(VERBS[verb], values, typed)
            ask = functools.partial(typer.confirm, default=None, err=True)  # on stderr, without a default answer
            streams = {"stdin": lines_on_stdin(), "emit": lambda row: put(as_line(verb, row))}
            streams["ask"] = ask if sys.stdin.isatty() and sys.stderr.isatty() else None
            result = call(verb, options, console if first else Talk(), **streams)
            if first:
                show(verb, result, options, console)
        with naming(STDOUT):
            sys.stdout.flush()
        if not is_alone():
            from selfie_cli.training.distributed import leave_group

            leave_group()
    except BrokenPipeError:  # the reader of our output has closed the pipe
        discard(sys.stdout)
        raise typer.Exit(0) from None
    except (Exception, KeyboardInterrupt) as error:
        found = failure(error)
        debugging = os.environ.get("SELFIE_DEBUG") == "1" and not isinstance(error, KeyboardInterrupt)
        if found is None or debugging:
            raise
        console.error(found.message if first else f"process {os.environ['RANK']}: {found.message}")
        raise typer.Exit(found.exit_code) from None
    finally:
        if runs := sys.modules.get("selfie_cli.runs"):
            runs.let_go_of_all()
    if verb == "doctor" and not result.healthy:
        raise typer.Exit(1)


def as_line(verb: str, row: Any) -> str:
    """Return a row of embed or predict as a line of JSON."""
    if verb == "embed":
        from selfie_cli.inference.vector_files import as_row

        row = as_row(row)
    return json_line(row)


def show(verb: str, result: Any, options: Any, console: Console) -> None:
    """Print a result to stdout: its fields as one document with --json, else lines and tables."""
    if verb in ("embed", "predict") and result.out is None:
        return  # the rows have been printed
    if options.json:
        console.json(dataclasses.asdict(result))
        return
    from selfie_cli.cli.render import rendered

    console.show(*rendered(verb, result, options))


def lines_on_stdin() -> Iterator[str]:
    """Yield the paths on stdin, which may have any encoding. stdin is read when the first path is requested."""
    from selfie_cli.data.lists import decoded_lines

    yield from decoded_lines(sys.stdin.buffer.read())


for name, kind in VERBS.items():
    app.command(name, cls=VerbCommand)(command(kind, functools.partial(execute, name)))


def show_version(value: bool) -> None:
    if value:
        print(f"selfie {__version__}")
        raise typer.Exit


@app.callback()
def top(
    version: Annotated[
        bool, typer.Option("--version", callback=show_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    pass


def main() -> None:
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:  # the parent process has closed it
            setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115 - open as long as the process
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # the locale may be unable to encode our characters
    try:
        try:
            app()
        finally:
            sys.stdout.flush()
    except OSError as error:  # from printing help or version
        discard(sys.stdout)
        sys.exit(0 if isinstance(error, BrokenPipeError) else f"error: standard output: {error.strerror or error}")
    finally:
        try:
            sys.stderr.flush()
        except OSError:
            discard(sys.stderr)
