"""selfie predict: label and probability for new photos."""

import contextlib
from collections.abc import Callable, Iterable
from shlex import quote
from typing import Any

from selfie_cli import runs
from selfie_cli.config import PredictOptions
from selfie_cli.errors import RunError, UsageError
from selfie_cli.inference.networks import Network, load_network
from selfie_cli.inference.outputs import Written, check_out, conclude, row_writer
from selfie_cli.inference.stream import Stream, named_images
from selfie_cli.option import pick
from selfie_cli.talk import Talk
from selfie_cli.training.distributed import group
from selfie_cli.training.hardware import prepare


def predict(
    options: PredictOptions, *, stdin: Iterable[str], emit: Callable[[dict[str, Any]], Any], talk: Talk
) -> Written:
    """Predict the likeliest class of every readable image, with its probability, in input order."""
    out = check_out(options.out, (".csv", ".jsonl"), overwrite=options.overwrite, json=options.json)
    if not options.run:
        raise UsageError("name a finetuned run's folder, then the images")
    run = runs.open_run(options.run, also_foreign=True, talk=talk)
    if "classes" not in run.derived:
        raise RunError(f"{run} has no classes: selfie finetune --from {quote(str(run))} --dataset FOLDER")
    run.check_finished()
    names, left_out = named_images(options.paths, stdin, talk)
    classes: list[str] = run.derived["classes"]
    network = load_network(run, features=None, device=prepare(options.device))
    how = {"names": names, "network": network, "compute": Network.probabilities, "what": "predicting"}
    with pick(Stream, options, **how, in_parts=False, talk=talk) as stream, contextlib.ExitStack() as stack:
        write = emit
        if out is not None and group().first:
            write = stack.enter_context(row_writer(out))
        for result in stream:
            if group().first:
                best = int(result.vector.argmax())
                probability = round(float(result.vector[best]), 6)
                write({"path": result.name, "label": classes[best], "probability": probability})
    return conclude(stream.bad, len(names), out, left_out=left_out, strict=options.strict, talk=talk)
