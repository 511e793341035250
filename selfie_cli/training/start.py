"""How a run begins: in a folder of its own, or where a stopped one left off."""

import contextlib
import dataclasses
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
from selfie_cli.training.tensorboard import check_log

MILDER = ("lr", "warmup_steps", "precision")
"""What a run that has diverged may be resumed with."""

AnyTraining = TypeVar("AnyTraining", bound=TrainingOptions)


def run_to_resume(options: AnyTraining, verb: str) -> tuple[Run | None, AnyTraining]:
    """The stopped run to continue, and its options; for a new one, none and `options` themselves.

    Raises UsageError where options do not go together, and as `stopped_run` does.
    """
    run = stopped_run(options, verb)
    if run is not None:
        options = option.resumed(options, run.config["asked"], also=MILDER if has_diverged(run) else ())
    check_length(steps=options.steps, epochs=options.epochs, budget=options.budget, deterministic=options.deterministic)
    check_log(options.log)
    return run, options


def stopped_run(options: TrainingOptions, verb: str) -> Run | None:
    """The run that --resume names, or what an earlier attempt has begun: `torchrun --max-restarts` starts the same
    command again, and finds in --out what was asked for with the same options.

    Raises NothingLeft where that attempt has finished it, UsageError without --out.
    """
    path = options.resume
    if environment_count("TORCHELASTIC_MAX_RESTARTS"):
        if not (path or options.out):
            raise UsageError("--max-restarts needs --out: restarted, a job would not know its own run without it")
        here = group()
        restarted = here.highest(environment_count("TORCHELASTIC_RESTART_COUNT"))[0] > 0  # machines count their own
        run = here.from_first(begun(options, verb) if restarted and here.first else None)
        if run is not None and run.finished:
            raise NothingLeft(f"{run} is finished: nothing is left to do for this restart")
        path = str(run) if run is not None else path
    return runs.open_to_resume(path, verb) if path else None


def choose_out(options: TrainingOptions, verb: str, name: str, sources: list[Run]) -> Path:
    """The folder of a new run. Raises RunError or UsageError if it is not free."""
    out = group().from_first(Path(options.out) if options.out else runs.default_folder(verb, name))
    if any(source.path.resolve().is_relative_to(out.resolve()) for source in sources):
        raise UsageError(f"--out {out} is, or holds, a run that --from names: choose another folder")
    if options.out or not out.exists():  # a name of ours that is taken becomes another one
        runs.check_free(out, overwrite=options.overwrite)
    return out


def start(out: Path | None, **config: Any) -> Run:
    """A new run in `out`, made by the first process; beside it where the name is ours, and taken by now."""
    assert out is not None
    here = group()
    if here.first:
        ours = config["asked"]["out"] is None
        out = runs.claimed(out) if ours else out
        try:
            runs.create(out, **config)
        except OSError:  # no room, say
            with contextlib.suppress(OSError):
                if ours:
                    out.rmdir()
            raise
    run = here.from_first(runs.open_run(out) if here.first else None)
    assert run is not None
    runs.hold(run.path)  # noted by every process, so that whichever is left can say how to go on
    return run


@contextlib.contextmanager
def where_it_began(run: Run | None) -> Iterator[None]:
    """What a resumed run names and is not found in here may be elsewhere from another folder: its error says so."""
    try:
        yield
    except (DataError, RunError) as error:
        if run is None or (not str(error).startswith("no run at") and "no such file or folder" not in str(error)):
            raise
        raise type(error)(
            f"{error}. Resume from the folder in which the run was started: its paths count from there"
        ) from None


def has_diverged(run: Run) -> bool:
    return bool(run.config["progress"].get("diverged"))


def begun(options: TrainingOptions, verb: str) -> Run | None:
    """What an earlier attempt of this very command has made, if it came that far."""
    with contextlib.suppress(RunError):
        run = runs.open_run(str(options.resume or options.out))
        asked = json.loads(json.dumps(dataclasses.asdict(options)))
        if run.verb == verb and (options.resume or run.config["asked"] == asked):
            return run
    return None


def environment_count(name: str) -> int:
    """A number that torchrun gives to the processes that it starts; 0 without it."""
    return int(os.environ.get(name) or 0)
