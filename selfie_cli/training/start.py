"""The beginning of a run: in a new folder, or where a stopped one left off."""

import contextlib
import dataclasses
import datetime
import importlib.util
import itertools
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar

from selfie_cli import option, runs
from selfie_cli.config import TrainingOptions
from selfie_cli.errors import DataError, NothingLeft, RunError, UsageError
from selfie_cli.runs import Run
from selfie_cli.training.distributed import group
from selfie_cli.training.schedule import check_length

MILDER = ("lr", "warmup_steps", "precision")
"""Options that may change when a run that has diverged is resumed."""

AnyTraining = TypeVar("AnyTraining", bound=TrainingOptions)


def run_to_resume(options: AnyTraining, verb: str) -> tuple[Run | None, AnyTraining]:
    """The stopped run to continue and its options, or None and `options` for a new one.

    Raises UsageError for options that contradict each other, and as `stopped_run` does.
    """
    run = stopped_run(options, verb)
    if run is not None:
        options = option.resumed(options, run.config["asked"], also=MILDER if run.diverged else ())
    check_length(steps=options.steps, epochs=options.epochs, budget=options.budget, deterministic=options.deterministic)
    if options.log == "tensorboard" and importlib.util.find_spec("tensorboard") is None:
        raise UsageError("--log tensorboard needs the extra: pip install 'selfie-cli[tensorboard]'")
    return run, options


def stopped_run(options: TrainingOptions, verb: str) -> Run | None:
    """The run that --resume names. For a job that torchrun restarts, which runs the same command again: the run in
    --out that the same options have begun.

    Raises NothingLeft if that run is finished, UsageError without --out.
    """
    path = options.resume
    if environment_count("TORCHELASTIC_MAX_RESTARTS"):
        if not (path or options.out):
            raise UsageError("--max-restarts needs --out, by which a restarted job finds its run")
        here = group()
        restarted = here.highest(environment_count("TORCHELASTIC_RESTART_COUNT"))[0] > 0  # machines count their own
        run = here.from_first(begun(options, verb) if restarted and here.first else None)
        if run is not None and run.finished:
            raise NothingLeft(f"{run} is finished: nothing is left to do for this restart")
        path = str(run) if run is not None else path
    return runs.open_to_resume(path, verb) if path else None


def begun(options: TrainingOptions, verb: str) -> Run | None:
    """The run that an earlier attempt of the same command has begun, if there is one."""
    with contextlib.suppress(RunError):
        run = runs.open_run(str(options.resume or options.out))
        asked = json.loads(json.dumps(dataclasses.asdict(options)))
        if run.verb == verb and (options.resume or run.config["asked"] == asked):
            return run
    return None


def environment_count(name: str) -> int:
    """A number that torchrun gives to its processes; 0 without torchrun."""
    return int(os.environ.get(name) or 0)


def choose_out(options: TrainingOptions, verb: str, name: str, sources: list[Run]) -> Path:
    """The folder of a new run. Raises RunError or UsageError if it is not free."""
    out = group().from_first(Path(options.out) if options.out else default_folder(verb, name))
    if any(source.path.resolve().is_relative_to(out.resolve()) for source in sources):
        raise UsageError(f"--out {out} is, or holds, a run that --from names: choose another folder")
    if options.out or not out.exists():  # a default name that is taken gets a number in `start`
        runs.check_free(out, overwrite=options.overwrite)
    return out


def default_folder(verb: str, method: str) -> Path:
    return runs.RUNS / f"{verb}-{method}-{datetime.datetime.now():%Y%m%d-%H%M%S}"


def claimed(folder: Path) -> Path:
    """Make `folder`, or one with a number added: another process may have made it in the same second."""
    for number in itertools.count(1):
        path = folder if number == 1 else folder.with_name(f"{folder.name}-{number}")
        with contextlib.suppress(FileExistsError):
            path.mkdir(parents=True)
            break
    return path


def start(out: Path | None, **config: Any) -> Run:
    """A new run in `out`, made by the first process. A default name that is taken gets a number."""
    assert out is not None
    here = group()
    if here.first:
        out = claimed(out) if config["asked"]["out"] is None else out
        runs.create(out, **config)
    run = here.from_first(runs.open_run(out) if here.first else None)
    assert run is not None
    runs.hold(run.path)  # in every process, so that each can say how to resume
    return run


@contextlib.contextmanager
def where_it_began(run: Run | None) -> Iterator[None]:
    """Add to the error for a missing path of a resumed run: paths count from the folder in which it was started."""
    try:
        yield
    except (DataError, RunError) as error:
        if run is None or (not str(error).startswith("no run at") and "no such file or folder" not in str(error)):
            raise
        raise type(error)(
            f"{error}. Resume from the folder in which the run was started: its paths count from there"
        ) from None
