"""The start of a run: in a new folder, or where a stopped run left off."""

import contextlib
import datetime
import importlib.util
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar

from selfie_cli import option, runs
from selfie_cli.config import TrainingOptions
from selfie_cli.errors import DataError, RunError, UsageError
from selfie_cli.runs import Run
from selfie_cli.training.distributed import group
from selfie_cli.training.schedule import check_lengths

MILDER = ("lr", "warmup_steps", "precision")
"""Options that may change when a run that has diverged is resumed."""

AnyTraining = TypeVar("AnyTraining", bound=TrainingOptions)


def run_to_resume(options: AnyTraining, verb: str) -> tuple[Run | None, AnyTraining]:
    """The stopped run to continue and its options, or None and `options` for a new one.

    Raises UsageError for options that contradict each other, RunError for a run that cannot be continued.
    """
    run = runs.open_to_resume(options.resume, verb) if options.resume else None
    if run is not None:
        options = option.resumed(options, run.config["asked"], also=MILDER if run.diverged else ())
    check_lengths(
        steps=options.steps, epochs=options.epochs, budget=options.budget, deterministic=options.deterministic
    )
    if options.log == "tensorboard" and importlib.util.find_spec("tensorboard") is None:
        raise UsageError("--log tensorboard needs the extra: pip install 'selfie-cli[tensorboard]'")
    return run, options


def choose_out(options: TrainingOptions, verb: str, name: str, sources: list[Run]) -> Path:
    """The folder of a new run. Raises RunError or UsageError if it is not free."""
    default = runs.RUNS / f"{verb}-{name}-{datetime.datetime.now():%Y%m%d-%H%M%S}"
    out = group().from_first(Path(options.out) if options.out else default)
    if any(source.path.resolve().is_relative_to(out.resolve()) for source in sources):
        raise UsageError(f"--out {out} is, or holds, a run that --from names: choose another folder")
    if options.out or not out.exists():  # a default name that is taken gets a number in `start`
        runs.check_free(out, overwrite=options.overwrite)
    return out


def claimed(folder: Path) -> Path:
    """Create `folder`, or one with a number added if another process has created it in the same second."""
    for number in itertools.count(1):
        path = folder if number == 1 else folder.with_name(f"{folder.name}-{number}")
        with contextlib.suppress(FileExistsError):
            path.mkdir(parents=True)
            break
    return path


def start(out: Path | None, **config: Any) -> Run:
    """Create a run in `out`, in the first process. A default name that is taken gets a number."""
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
    """Add a hint to errors for missing paths of a resumed run: paths are relative to the folder of its start."""
    try:
        yield
    except (DataError, RunError) as error:
        if run is None or (not str(error).startswith("no run at") and "no such file or folder" not in str(error)):
            raise
        raise type(error)(
            f"{error}. Resume from the folder in which the run was started: its paths count from there"
        ) from None
