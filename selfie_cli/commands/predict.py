"""selfie predict: label and probability for new photos."""

import contextlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from shlex import quote
from typing import Any

from selfie_cli import runs
from selfie_cli.config import PredictOptions
from selfie_cli.errors import RunError, UsageError
from selfie_cli.inference import networks
from selfie_cli.inference.networks import Network
from selfie_cli.inference.stream import (
    Emit,
    Result,
    check_out,
    conclude,
    expand,
    row_writer,
    run_through,
)
from selfie_cli.talk import Talk
from selfie_cli.training.hardware import prepare

SUFFIXES = (".csv", ".jsonl")


@dataclass(frozen=True, kw_only=True)
class Predicted:
    """The result of `predict`; `--json` prints it. `out` is None where rows went to `emit`. left_out: by kind."""

    out: Path | None
    images: int
    unreadable: int
    left_out: dict[str, int]


def predict(
    options: PredictOptions, *, stdin: Iterable[str], emit: Callable[[dict[str, Any]], Any], talk: Talk
) -> Predicted:
    """The likeliest class of every readable image and its probability, in input order."""
    out = check_out(options, SUFFIXES)
    if not options.run:
        raise UsageError("name a finetuned run's folder, then the images")
    run = runs.open_run(options.run, talk=talk)
    if "classes" not in run.derived:
        raise RunError(
            f"{run} is a run of selfie {run.verb} and knows no classes: "
            f"selfie finetune --from {quote(str(run))} --dataset FOLDER"
        )
    if not run.finished:
        raise RunError(f"{run.path} is not finished: selfie {run.verb} --resume {quote(str(run.path))}")
    names, left_out = expand(options.paths, stdin, talk)
    classes: list[str] = run.derived["classes"]
    device = prepare(options.device)
    network = networks.load_network(run, features=None, device=device)

    @contextlib.contextmanager
    def opened(precision: str) -> Iterator[Emit]:
        with contextlib.nullcontext(emit) if out is None else row_writer(out) as write:

            def write_row(result: Result) -> None:
                best = int(result.vector.argmax())
                probability = round(float(result.vector[best]), 6)
                write({"path": result.name, "label": classes[best], "probability": probability})

            yield write_row

    bad = run_through(names, network, Network.probabilities, opened, options=options, what="predicting", talk=talk)
    conclude(bad, len(names), out, left_out=left_out, strict=options.strict, talk=talk)
    return Predicted(out=out, images=len(names) - len(bad), unreadable=len(bad), left_out=left_out.counts)
