"""selfie predict: label and probability for new photos."""

import contextlib
import csv
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from selfie_cli import runs
from selfie_cli.config import PredictOptions
from selfie_cli.data.store import BadFile
from selfie_cli.errors import RunError, UsageError
from selfie_cli.files import json_line
from selfie_cli.recipes import networks
from selfie_cli.recipes.inference import Result, check_out, conclude, expand, line_writer, run_through
from selfie_cli.recipes.networks import Network
from selfie_cli.talk import Talk
from selfie_cli.training.distributed import group
from selfie_cli.training.machine import prepare

SUFFIXES = (".csv", ".jsonl")


@dataclass(frozen=True, kw_only=True)
class Predicted:
    """What `predict` did. `out` is None where rows went to `emit`."""

    out: Path | None
    num_images: int
    classes: list[str]
    bad: list[BadFile]


def predict(
    options: PredictOptions, *, stdin: Iterable[str], emit: Callable[[dict[str, Any]], Any], talk: Talk
) -> Predicted:
    """The likeliest class of every readable image and its probability, in input order."""
    out = check_out(options, SUFFIXES)
    if not options.run:
        raise UsageError("name a finetuned run's folder, then the images")
    run = runs.open_run(options.run)
    if "classes" not in run.derived:
        raise RunError(
            f"{run.path} is a run of selfie {run.verb} and knows no classes: selfie finetune --from {run.path}"
        )
    if not run.finished:
        raise RunError(f"{run.path} is not finished: selfie {run.verb} --resume {run.path}")
    names = expand(options.paths, stdin)
    classes: list[str] = run.derived["classes"]
    device, _, _ = prepare(options.device, options.precision)
    network = networks.load_network(run, features=None, device=device)

    def row(result: Result) -> dict[str, Any]:
        best = int(result[1].argmax())
        return {"path": result[0], "label": classes[best], "probability": round(float(result[1][best]), 6)}

    with contextlib.nullcontext(emit) if out is None or not group().first else writing(out) as write:
        bad = run_through(
            names,
            network,
            Network.probabilities,
            lambda result: write(row(result)),
            options=options,
            what="predicting",
            talk=talk,
        )
    conclude(bad, len(names), out, strict=options.strict, talk=talk)
    return Predicted(out=out, num_images=len(names) - len(bad), classes=classes, bad=bad)


@contextlib.contextmanager
def writing(out: Path) -> Iterator[Callable[[dict[str, Any]], Any]]:
    """A writer of rows as .csv or .jsonl; the file appears whole, at the end, or not at all."""
    with line_writer(out) as file:
        if out.suffix == ".csv":
            table = csv.DictWriter(file, ["path", "label", "probability"])
            table.writeheader()
            yield table.writerow
        else:
            yield lambda row: file.write(json_line(row) + "\n")
