"""The commands. Each turns its options into a recipe's result and shows it; nothing heavy is imported before that."""

import contextlib
import dataclasses
import io
import os
import shlex
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import Annotated, Any

import typer

from selfie_cli import __version__, config
from selfie_cli.cli.console import abandon
from selfie_cli.cli.options import build, command
from selfie_cli.errors import SelfieError, is_out_of_memory
from selfie_cli.signals import STOPPING, give_up, handled, is_alone

app = typer.Typer(
    name="selfie",
    help="Pretrain an image network on your own unlabelled pictures, finetune it on few labels, and see if it helped.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def verb(kind: type) -> Callable[[Callable[[Any, Any], None]], Callable[[Any, Any], None]]:
    """Register a command: its options are `kind`'s, and it is given them with a console.

    A SelfieError ends as one line and its exit code. SELFIE_DEBUG=1 shows its traceback; a bug always shows one.
    """

    def register(body: Callable[[Any, Any], None]) -> Callable[[Any, Any], None]:
        def run(values: dict[str, Any], typed: list[str]) -> None:
            from selfie_cli.cli.console import STDOUT, Console, Silent
            from selfie_cli.files import naming

            # Threads that wait for the next operation give way to those that decode; read when torch is loaded.
            os.environ.setdefault("GOMP_SPINCOUNT", "1000")
            os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # of a lost connection it would show C++ stacks
            console = Console(quiet=values["quiet"]) if is_first_process() else Silent(quiet=True)
            try:
                with handled(give_up) if is_alone() else contextlib.nullcontext():
                    body(build(kind, values, typed), console)
                with naming(STDOUT):
                    sys.stdout.flush()
                if not is_alone():
                    from selfie_cli.training.distributed import leave

                    leave()
            except BrokenPipeError:  # whoever read our output has seen enough
                abandon(sys.stdout)
                raise typer.Exit(0) from None
            except (Exception, KeyboardInterrupt) as error:
                debugged = os.environ.get("SELFIE_DEBUG") == "1" and not isinstance(error, KeyboardInterrupt)
                if debugged or (found := told(error)) is None:
                    raise
                line, code = found
                (console.error if code else console.say)(line)
                raise typer.Exit(code) from None
            finally:
                if runs := sys.modules.get("selfie_cli.runs"):
                    runs.let_go_of_all()

        run.__name__, run.__doc__ = body.__name__, body.__doc__
        app.command(name=body.__name__.rstrip("_"))(command(kind, run))
        return body

    return register


@verb(config.PretrainOptions)
def pretrain(options: config.PretrainOptions, console: Any) -> None:
    """Pretrain on unlabelled images: nested folders, files, lists, tar shards, named data sets."""
    from selfie_cli.cli import render
    from selfie_cli.commands.pretrain import pretrain

    show(pretrain(options, console), options, console, render.pretrained)


@verb(config.FinetuneOptions)
def finetune(options: config.FinetuneOptions, console: Any) -> None:
    """Finetune on a share of the labels, beside the same network without pretraining, and compare."""
    from selfie_cli.cli import render
    from selfie_cli.commands.finetune import finetune

    show(finetune(options, console), options, console, render.finetuned)


@verb(config.EmbedOptions)
def embed(options: config.EmbedOptions, console: Any) -> None:
    """Turn images into vectors, to stdout or a file."""
    from selfie_cli.cli.console import put
    from selfie_cli.commands.embed import embed
    from selfie_cli.files import json_line
    from selfie_cli.inference.vector_files import as_row

    result = embed(options, stdin=lines_on_stdin(), emit=lambda result: put(json_line(as_row(result))), talk=console)
    if result.out is not None:
        show(result, options, console, lambda result: [f"{result.out}: {result.images:,} vectors"])


@verb(config.EvalOptions)
def eval_(options: config.EvalOptions, console: Any) -> None:
    """Judge a run on labelled images: kNN, linear probe, pretext or test accuracy, beside the untrained network."""
    from selfie_cli.cli import render
    from selfie_cli.commands.eval import evaluate

    show(evaluate(options, console), options, console, render.evaluated)


@verb(config.DemoOptions)
def demo(options: config.DemoOptions, console: Any) -> None:
    """The whole story on images drawn by this program: offline, in minutes, on a laptop's CPU."""
    from selfie_cli.cli import render
    from selfie_cli.commands.demo import demo

    show(demo(options, console), options, console, render.told)


@verb(config.PredictOptions)
def predict(options: config.PredictOptions, console: Any) -> None:
    """Label new photos with a finetuned run."""
    from selfie_cli.cli.console import put
    from selfie_cli.commands.predict import predict
    from selfie_cli.files import json_line

    result = predict(options, stdin=lines_on_stdin(), emit=lambda row: put(json_line(row)), talk=console)
    if result.out is not None:
        show(result, options, console, lambda result: [f"{result.out}: {result.images:,} predictions"])


@verb(config.CurveOptions)
def curve(options: config.CurveOptions, console: Any) -> None:
    """Finetune on several shares of the labels, from every run you name, and draw what each is worth."""
    from selfie_cli.cli import render
    from selfie_cli.commands.curve import curve

    show(curve(options, console), options, console, render.curve)


@verb(config.SimilarOptions)
def similar(options: config.SimilarOptions, console: Any) -> None:
    """Find the images most like a photo, or near-duplicates, among those that selfie embed has seen."""
    from selfie_cli.cli import render
    from selfie_cli.commands.similar import similar

    show(
        similar(options, stdin=lines_on_stdin(), talk=console),
        options,
        console,
        lambda result: render.similar(result, options.top),
    )


@verb(config.DoctorOptions)
def doctor(options: config.DoctorOptions, console: Any) -> None:
    """Look through images before training on them: what is broken, double, tiny or odd, and how long it will take."""
    from selfie_cli.cli.checkup import lines_of
    from selfie_cli.commands.doctor import doctor

    result = doctor(options, console)
    show(result, options, console, lines_of)
    if not result.healthy:
        raise typer.Exit(1)


@verb(config.ReportOptions)
def report(options: config.ReportOptions, console: Any) -> None:
    """Draw a run as one page of HTML: what was learned, on real images, beside chance and baseline."""
    from selfie_cli.commands.report import report

    show(report(options, console), options, console, lambda result: [f"{result.out}"])


@verb(config.ExportOptions)
def export(options: config.ExportOptions, console: Any) -> None:
    """Write a run's network for timm, torchvision, ONNX Runtime or any reader of safetensors, and how to load it."""
    from selfie_cli.commands.export import export

    show(export(options, console), options, console, lambda result: result.code.rstrip().split("\n"))


@verb(config.PushOptions)
def push(options: config.PushOptions, console: Any) -> None:
    """Share a run on the Hugging Face Hub: weights, config, and a card of measured results."""
    from selfie_cli.cli import render
    from selfie_cli.commands.push import push

    someone = sys.stdin.isatty() and sys.stderr.isatty()
    show(push(options, console, ask=ask if someone else None), options, console, render.pushed)


@verb(config.PullOptions)
def pull(options: config.PullOptions, console: Any) -> None:
    """Get a run from the Hugging Face Hub into a folder, checked."""
    from selfie_cli.cli import render
    from selfie_cli.commands.pull import pull

    show(pull(options, console), options, console, render.pulled)


def show(result: Any, options: Any, console: Any, draw: Callable[[Any], Iterable[Any]]) -> None:
    """A recipe's result on stdout: with --json a document of its fields, else lines and tables, as `draw` has them."""
    if options.json:
        console.json(dataclasses.asdict(result))
    else:
        console.show(*draw(result))


def told(error: BaseException) -> tuple[str, int] | None:
    """The line that tells the user of an error, and the exit code; None for a bug."""
    if isinstance(error, SelfieError):
        return str(error), error.exit_code
    if isinstance(error, KeyboardInterrupt):
        return f"stopped{how_to_go_on()}", 128 + (error.args or STOPPING)[0]
    if isinstance(error, RuntimeError | MemoryError | ImportError) and is_out_of_memory(error):
        remedy = "choose a smaller --batch-size, --image-size or --backbone, or allow more (ulimit -v)"
        return f"out of memory: {remedy}{how_to_go_on()}", 1
    if isinstance(error, OSError):
        try:
            sys.stdout.flush()
        except OSError:
            abandon(sys.stdout)
        where = error.filename2 or error.filename  # of two, what is written to
        line = f"{where or 'reading or writing failed'}: {error.strerror or error}"
        go_on = how_to_go_on()
        return line + (f". Nothing saved is lost{go_on}" if go_on else ""), 1
    if isinstance(error, RuntimeError) and not is_alone():
        from selfie_cli.training.distributed import is_lost_process

        if is_lost_process(error):
            return f"another process of this job has ended, see its error{how_to_go_on()}", 1
    return None


def how_to_go_on() -> str:
    """The command that resumes the run of this process, for the end of a message; nothing if there is no run."""
    runs = sys.modules.get("selfie_cli.runs")  # there may be no memory to load it
    if runs is None or (run := runs.begun()) is None:
        return ""
    if is_alone():
        return f". Go on with: selfie {run.verb} --resume {shlex.quote(str(run.path))}"
    from selfie_cli.training.distributed import environment

    return f". Go on with: {environment().resume_command(run.verb, run.path)}"


def is_first_process() -> bool:
    """Whether this is a job of one process, or the one that talks for all."""
    return is_alone() or os.environ.get("RANK", "0") == "0"


def ask(question: str) -> bool:
    """A question on the terminal, on stderr; there is no answer by default."""
    return typer.confirm(question, default=None, err=True)


def lines_on_stdin() -> Iterator[str]:
    """Paths of any bytes, as file systems have them; read when they are asked for."""
    from selfie_cli.data.lists import decoded_lines

    yield from decoded_lines(sys.stdin.buffer.read())


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
        if getattr(sys, name) is None:  # closed by whoever started us
            setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115 - for as long as we run
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # the locale may lack what we print
    try:
        try:
            app()
        finally:
            sys.stdout.flush()
    except OSError as error:  # of what is printed where no verb begins
        abandon(sys.stdout)
        sys.exit(0 if isinstance(error, BrokenPipeError) else f"error: standard output: {error.strerror or error}")
    finally:
        try:
            sys.stderr.flush()
        except OSError:
            abandon(sys.stderr)
