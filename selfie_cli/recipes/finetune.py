"""selfie finetune: a share of the labels, with and without pretraining, over several seeds, and what came of it."""

import dataclasses
from typing import Any

from selfie_cli import runs
from selfie_cli.config import FinetuneOptions
from selfie_cli.errors import UsageError
from selfie_cli.methods.selfie import SelfieNetwork
from selfie_cli.models.hybrid import AnyClassifier
from selfie_cli.recipes import networks
from selfie_cli.recipes.arms import (
    SUPERVISED,
    Arm,
    begin,
    choose_out,
    conclude,
    learning_rates,
    load_pretrained,
    network_shape,
    origin,
    origins,
    room_for,
    start,
    tell_of_labels,
)
from selfie_cli.recipes.cells import Trainer, cells_of, sizes_of
from selfie_cli.recipes.comparison import Finetuned, summarize
from selfie_cli.recipes.labels import read_data, take_share
from selfie_cli.recipes.report import report_at_end
from selfie_cli.talk import Talk
from selfie_cli.training.machine import prepare


def finetune(options: FinetuneOptions, talk: Talk) -> Finetuned:
    """Finetune as `options` say, or continue `options.resume` without repeating what is finished."""
    run, options = begin(options, "finetune")
    rates = learning_rates(options.lr)
    asked = options.from_
    if run is not None:
        asked = next((each["path"] for each in origins(run, offline=options.offline, talk=talk)), "none")
    source, line = runs.resolve_from(asked, offline=options.offline, talk=talk)
    talk.say(line)
    tell_of_labels([source] if source else [], talk)
    pretrained = None if source is None else load_pretrained(source, options)
    if source is None and not options.baseline:
        raise UsageError("--from none --no-baseline leaves nothing to train")
    if options.arch == "hybrid" and not isinstance(pretrained, SelfieNetwork):
        what = "none" if source is None else f"{source}, a run of {source.derived['method']}"
        raise UsageError(f"--arch hybrid needs a pretrained Selfie run, not {what}: name one with --from")
    arms = arms_of(options, network_shape(options, source), pretrained)
    out = None if run is not None else choose_out(options, "finetune", arms[-1].name, [source] if source else [])
    device, _, _ = prepare(options.device, options.precision, deterministic=options.deterministic)

    shape = arms[-1].shape
    data = read_data(options, shape["image_size"], run, [source] if source else [], talk)
    arms = [arm.for_classes(data.classes) for arm in arms]
    seeds = range(options.seed, options.seed + options.seeds)
    share = take_share(data, options.fraction, seeds, len(rates))
    trainer = Trainer(options=options, image_size=shape["image_size"], device=device, talk=talk)
    talk.say(
        f"{share.num_labels:,} labels of {len(data.train.labels):,} ({options.fraction * 100:.3g} % of each class), "
        f"{len(data.classes)} classes, {len(data.test.labels):,} test images; "
        f"{shape['backbone']} at {shape['image_size']} px, {device}, batch {trainer.batch_size}, "
        f"seeds {seeds[0]} to {seeds[-1]}"
    )
    if run is None:
        sizes, (steps,) = trainer.plan(arms, data.train, [share], len(rates))
        run = start(
            out,
            verb="finetune",
            asked=dataclasses.asdict(options),
            overwrite=options.overwrite,
            room=room_for(arms, cells_of([share], rates)),
            derived={**arms[-1].shape, **sizes, "steps": steps},
            data=data.record,
            **{"from": [origin(source)] if source else []},
        )
        talk.say(f"run: {run.path}")
    data.report(run, talk)

    sizes = sizes_of(run)
    accuracies = trainer.share(run, arms, data, share, sizes, rates)
    result = summarize(
        run=run.path,
        dataset=data.name,
        fraction=options.fraction,
        num_labels=share.num_labels,
        num_test=len(data.test.labels),
        num_classes=len(data.classes),
        steps=sizes["steps"],
        seeds=share.seeds,
        accuracies=accuracies,
    )
    conclude(run, result, share.cell(arms[-1].name, seeds[0]), {"device": str(device)})
    report_at_end(run, options, talk)
    return result


def arms_of(
    options: FinetuneOptions, shape: dict[str, Any], pretrained: networks.Pretrained | AnyClassifier | None
) -> list[Arm]:
    """What to train side by side; the last one is what a user would take."""
    fresh = {**shape, "pretraining": "none"}
    arms = [Arm(name=SUPERVISED, shape=fresh, state=None)] if options.baseline or pretrained is None else []
    if options.arch == "hybrid":
        assert isinstance(pretrained, SelfieNetwork)
        hybrid = {"arch": "hybrid", "hybrid": hybrid_shape(pretrained)}
        if options.baseline:
            arms.append(Arm(name="hybrid", shape={**fresh, **hybrid}, state=None))
        arms.append(Arm(name="hybrid-selfie", shape={**shape, **hybrid}, state=pretrained.state_dict()))
    elif pretrained is not None:
        arms.append(Arm(name=shape["pretraining"], shape=shape, state=pretrained.encoder.state_dict()))
    return arms


def hybrid_shape(pretrained: SelfieNetwork) -> dict[str, Any]:
    """Patches are cut and seen as in pretraining."""
    return {
        "patch_size": pretrained.patch_size,
        "factorized_positions": pretrained.positions.factorized,
        "encoder_positions": pretrained.encoder_positions,
        "final_norm": getattr(pretrained.patch_network, "norm", None) is not None,
        "apart": pretrained.apart,
    }
