"""selfie finetune: a share of the labels, with and without pretraining, over several seeds, and what came of it."""

import dataclasses
from typing import Any

from selfie_cli import runs
from selfie_cli.commands.report import report_at_end
from selfie_cli.comparison.arms import (
    FRESH,
    SUPERVISED,
    Arm,
    begin,
    load_pretrained,
    network_shape,
    origins,
    tell_of_labels,
)
from selfie_cli.comparison.compare import Plan, compare, conclude
from selfie_cli.comparison.statistics import Finetuned, summarize
from selfie_cli.config import FinetuneOptions
from selfie_cli.errors import UsageError
from selfie_cli.inference import networks
from selfie_cli.methods.selfie import Selfie
from selfie_cli.models.hybrid import AnyClassifier
from selfie_cli.recipes import called
from selfie_cli.talk import Talk
from selfie_cli.training.start import choose_out, where_it_began


def finetune(options: FinetuneOptions, talk: Talk) -> Finetuned:
    """Finetune as `options` say, or continue `options.resume` without repeating what is finished."""
    run, options = begin(options, "finetune")
    asked = options.from_
    if run is not None:
        asked = next((each["path"] for each in origins(run, offline=options.offline, talk=talk)), "none")
    with where_it_began(run):
        source, line = runs.resolve_from(asked, offline=options.offline, talk=talk)
    talk.say(line)
    sources = [source] if source is not None else []
    tell_of_labels(sources, talk)
    pretrained = None if source is None else load_pretrained(source, options)
    if source is None and not options.baseline:
        raise UsageError("--from none --no-baseline leaves nothing to train")
    if options.arch == "hybrid" and not isinstance(pretrained, Selfie):
        what = "none" if source is None else f"{source} ({called(source.derived)})"
        raise UsageError(f"--arch hybrid needs a run of Selfie with --recipe paper, not {what}: name one with --from")
    arms = arms_of(options, network_shape(options, source), pretrained)
    out = None if run is not None else choose_out(options, "finetune", arms[-1].name, sources)
    *others, last = arms
    found = compare(
        options,
        "finetune",
        Plan(
            arms=arms,
            counts={options.fraction: options.seeds},
            kept=last,
            pairs=[(last.name, other.name) for other in reversed(others)],  # the most alike first
        ),
        run=run,
        out=out,
        sources=sources,
        talk=talk,
    )
    data = found.data
    result = summarize(
        found.points[0],
        run=found.run.path,
        dataset=data.name,
        num_test=len(data.test.labels),
        num_classes=len(data.classes),
    )
    result = dataclasses.replace(result, left_out=data.record["left_out"])
    conclude(found, result)
    report_at_end(found.run, options, talk)
    return result


def arms_of(
    options: FinetuneOptions, shape: dict[str, Any], pretrained: networks.Pretrained | AnyClassifier | None
) -> list[Arm]:
    """What to train side by side; the last one is what a user would take."""
    fresh = shape | FRESH
    arms = [Arm(name=SUPERVISED, shape=fresh, state=None)] if options.baseline or pretrained is None else []
    if options.arch == "hybrid":
        assert isinstance(pretrained, Selfie)
        hybrid = {"arch": "hybrid", "hybrid": hybrid_shape(pretrained)}
        if options.baseline:
            arms.append(Arm(name="hybrid", shape={**fresh, **hybrid}, state=None))
        arms.append(Arm(name="hybrid-selfie", shape={**shape, **hybrid}, state=pretrained.state_dict()))
    elif pretrained is not None:
        arms.append(Arm(name=shape["pretraining"], shape=shape, state=pretrained.encoder.state_dict()))
    return arms


def hybrid_shape(pretrained: Selfie) -> dict[str, Any]:
    """Patches are cut and seen as in pretraining."""
    return {
        "patch_size": pretrained.patch_size,
        "factorized_positions": pretrained.positions.factorized,
        "encoder_positions": pretrained.encoder_positions,
        "final_norm": getattr(pretrained.patch_network, "norm", None) is not None,
        "apart": pretrained.apart,
    }
