"""The networks of all arms, shares and seeds of finetune and curve, trained in one run, and their results."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from selfie_cli import runs
from selfie_cli.comparison.arms import Arm, origin, room_for
from selfie_cli.comparison.labels import Data, Share, read_data, take, take_share
from selfie_cli.comparison.statistics import ArmResult, Curve, Finetuned, Point, arm_result, point, share_of
from selfie_cli.comparison.trainer import Cell, Trainer
from selfie_cli.config import LabelOptions
from selfie_cli.errors import RunError, UsageError
from selfie_cli.files import write_json, write_json_lines
from selfie_cli.inference import networks
from selfie_cli.runs import Run
from selfie_cli.talk import Talk
from selfie_cli.training.distributed import group
from selfie_cli.training.hardware import prepare
from selfie_cli.training.start import start

SIZES = ("batch_size", "micro_batch", "precision", "compiles", "processes", "image_order", "steps")


def sizes_of(run: Run) -> dict[str, Any]:
    """What `Trainer.plan` found. Raises UsageError if it was for another number of processes."""
    sizes = {"image_order": 1} | {name: run.derived[name] for name in SIZES if name in run.derived}
    if sizes["processes"] != group().world:
        raise UsageError(f"{run.path} was started with {sizes['processes']} processes: resume it with as many")
    return sizes


def train_share(
    trainer: Trainer, run: Run, arms: list[Arm], data: Data, share: Share, sizes: dict[str, Any]
) -> list[ArmResult]:
    """All cells of a share. The lists of labels are written first. `sizes` are what `plan` found, and the steps."""
    for seed, subset in share.subsets.items() if group().first else ():
        names = [{"path": data.train.names[i], "class": data.classes[data.train.labels[i]]} for i in subset]
        write_json_lines(run.path / f"labels-f{share.fraction:g}-s{seed}.jsonl", names)
    first = take(data.train, share.subsets[share.seeds[0]])
    tuned = [trainer.tune(run, arm, share, sizes, first) for arm in arms]
    accuracies: list[list[float]] = [[] for _ in arms]
    for seed in share.seeds:
        labelled = take(data.train, share.subsets[seed])
        for arm, (lr, _), found in zip(arms, tuned, accuracies, strict=True):
            cell = Cell(name=share.cell(arm.name, seed), arm=arm, lr=lr, seed=seed, steps=sizes["steps"])
            found.append(trainer.train(run, cell, sizes, labelled, data.test))
            trainer.talk.say(f"{share.fraction * 100:.3g} %, seed {seed}, {arm.name}: {found[-1]:.1%}")
    return [
        arm_result(arm.name, lr, found, arm.called, length)
        for arm, (lr, length), found in zip(arms, tuned, accuracies, strict=True)
    ]


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The comparison to make.

    `counts` says how many seeds each share gets, smallest share first. `kept` is one of the arms: its first network
    with the most labels becomes the run's own. `pairs` are the arms and baselines to compare.
    """

    arms: list[Arm]
    counts: dict[float, int]
    kept: Arm
    pairs: list[tuple[str, str]]


@dataclass(frozen=True, kw_only=True)
class Compared:
    """What all arms came to on all shares; the network of `cell` becomes the run's own."""

    run: Run
    data: Data
    points: list[Point]
    cell: str
    device: torch.device


def compare(
    options: LabelOptions, verb: str, plan: Plan, *, run: Run | None, out: Path | None, sources: list[Run], talk: Talk
) -> Compared:
    """Train the networks of all arms on all shares, in a new run in `out`, or go on with `run`."""
    device = prepare(options.device, deterministic=options.deterministic)
    image_size = plan.kept.shape["image_size"]
    data = read_data(options, image_size, run, sources, talk)
    arms, kept = [arm.for_classes(data.classes) for arm in plan.arms], plan.kept.for_classes(data.classes)
    trainer = Trainer(options=options, image_size=image_size, device=device, talk=talk)
    shares = [
        take_share(data, fraction, range(options.seed, options.seed + count), len(trainer.rates))
        for fraction, count in plan.counts.items()
    ]
    percents = ", ".join(f"{share.fraction * 100:.3g} %" for share in shares)
    numbers = ", ".join(f"{share.num_labels:,}" for share in shares)
    talk.say("; ".join(f"{arm.name}: {arm.called}" for arm in arms))
    talk.say(
        f"{numbers} labels of {len(data.train.labels):,} ({percents} of each class), {len(data.classes)} classes, "
        f"{len(data.test.labels):,} test images; {kept.shape['backbone']} at {image_size} px, {device}, "
        f"batch {trainer.batch_size}"
    )
    if run is None:
        sizes, steps = trainer.plan(arms, data.train, shares)
        more = trainer.num_held_out() + options.check_length
        run = start(
            out,
            verb=verb,
            asked=dataclasses.asdict(options),
            overwrite=options.overwrite,
            room=room_for(arms, sum(len(share.seeds) + more for share in shares)),
            derived={
                **kept.shape,
                **sizes,
                "steps": steps[-1],
                "steps_of_shares": steps,
            },
            data=data.record,
            **{"from": [origin(source) for source in sources]},
        )
        talk.say(f"run: {run.path}")
    data.report(run, talk)

    lengths = run.derived.get("steps_of_shares", [run.derived["steps"]])  # finetune did not always note them
    if len(lengths) != len(shares) or not all(type(each) is int and each > 0 for each in lengths):
        raise RunError(f"{run.path / 'config.json'} is damaged: start a new run")
    points = []
    for share, length in zip(shares, lengths, strict=True):
        results = train_share(trainer, run, arms, data, share, {**sizes_of(run), "steps": length})
        found = point(
            fraction=share.fraction,
            num_labels=share.num_labels,
            steps=length,
            seeds=share.seeds,
            rates=trainer.rates,
            arms=results,
            pairs=plan.pairs,
        )
        points.append(found)
        for line in found.warnings:
            talk.warn(f"{share_of(found)}: {line}")
    cell = shares[-1].cell(kept.name, options.seed)
    return Compared(run=run, data=data, points=points, cell=cell, device=device)


def conclude(found: Compared, result: Finetuned | Curve) -> None:
    """Write what was found; the network of a cell becomes the run's own, for predict and embed."""
    if not group().first:
        return
    run = found.run
    networks.copy_weights(runs.open_run(run.path / "cells" / found.cell), run)
    write_json(run.path / "results.json", {**dataclasses.asdict(result), "run": str(run.path)})
    run.finish({"device": str(found.device), "threads": torch.get_num_threads()})
