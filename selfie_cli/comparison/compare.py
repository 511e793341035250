"""The comparison itself: every arm trained on every share of the labels, with every seed of that share."""

import dataclasses
from dataclasses import dataclass
from typing import Any

import torch

from selfie_cli import runs
from selfie_cli.comparison.arms import Arm
from selfie_cli.comparison.labels import Data, Share, take
from selfie_cli.comparison.results import ArmResult, Curve, Finetuned, Point
from selfie_cli.comparison.settings import Fitted, Training
from selfie_cli.comparison.statistics import make_arm_result, make_point
from selfie_cli.comparison.trainer import Cell, Trainer
from selfie_cli.errors import RunError
from selfie_cli.files import write_json, write_json_lines
from selfie_cli.inference import networks
from selfie_cli.runs import Run
from selfie_cli.talk import Talk
from selfie_cli.training.distributed import group


@dataclass(frozen=True, kw_only=True)
class Design:
    """The arms to train, the pairs of an arm and its baseline to compare, and the number of seeds for each fraction.

    `kept` is one of the arms: its first network with the most labels becomes the run's own.
    """

    arms: list[Arm]
    kept: Arm
    pairs: list[tuple[str, str]]
    num_seeds: dict[float, int]

    def for_classes(self, classes: list[str]) -> "Design":
        arms = [arm.for_classes(classes) for arm in self.arms]
        return dataclasses.replace(self, arms=arms, kept=self.kept.for_classes(classes))


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """The results of all arms on all shares. `kept` names the cell whose network becomes the run's own, if not None."""

    run: Run
    data: Data
    points: list[Point]
    kept: str | None
    device: torch.device

    def facts(self) -> dict[str, Any]:
        """Return what results.json says of the run and its data."""
        return {
            "run": self.run.path,
            "dataset": self.data.name,
            "num_test": len(self.data.test.labels),
            "num_classes": len(self.data.classes),
            "left_out": self.data.left_out,
        }


def compare(design: Design, data: Data, shares: list[Share], training: Training, *, run: Run, talk: Talk) -> Comparison:
    """Train all cells of `run` that are not finished."""
    trainer = Trainer(run=run, training=training, fitted=Fitted.of(run), talk=talk)
    lengths = run.derived.get("steps_of_shares", [run.derived["steps"]])  # finetune did not always note them
    if len(lengths) != len(shares) or not all(type(each) is int and each > 0 for each in lengths):
        raise RunError(f"{run.path / 'config.json'} is damaged: start a new run")
    points = []
    for share, steps in zip(shares, lengths, strict=True):
        point = make_point(
            fraction=share.fraction,
            num_labels=share.num_labels,
            steps=steps,
            seeds=share.seeds,
            rates=training.rates,
            arms=train_share(trainer, design.arms, data, share, steps),
            pairs=design.pairs,
        )
        points.append(point)
        for line in point.warnings:
            talk.warn(f"{share.percent}: {line}")
    kept = shares[-1].cell(design.kept.name, shares[-1].seeds[0])
    return Comparison(run=run, data=data, points=points, kept=kept, device=training.device)


def train_share(trainer: Trainer, arms: list[Arm], data: Data, share: Share, steps: int) -> list[ArmResult]:
    """Write the lists of labels of a share, then train all its cells."""
    train = data.train
    write_labels(trainer.run, data, share)
    first = take(train, share.subsets[share.seeds[0]])
    tuned = [trainer.tune(arm, share, steps, first) for arm in arms]
    accuracies: list[list[float]] = [[] for _ in arms]
    for seed in share.seeds:
        labelled = take(train, share.subsets[seed])
        for arm, (lr, _), found in zip(arms, tuned, accuracies, strict=True):
            cell = Cell(name=share.cell(arm.name, seed), arm=arm, lr=lr, seed=seed, steps=steps)
            found.append(trainer.train(cell, labelled, data.test))
            trainer.talk.say(f"{share.percent}, seed {seed}, {arm.name}: {found[-1]:.1%}")
    return [
        make_arm_result(arm.name, lr, found, arm.called, converged)
        for arm, (lr, converged), found in zip(arms, tuned, accuracies, strict=True)
    ]


def write_labels(run: Run, data: Data, share: Share) -> None:
    """Write which images and labels each seed of a share has."""
    train = data.train
    for seed, subset in share.subsets.items() if group().first else ():
        names = [{"path": train.names[i], "class": data.classes[train.labels[i]]} for i in subset]
        write_json_lines(run.path / f"labels-f{share.fraction:g}-s{seed}.jsonl", names)


def conclude(found: Comparison, result: Finetuned | Curve) -> None:
    """Write results.json, and make the kept network the run's own, for predict and embed."""
    if group().first:
        run = found.run
        if found.kept is not None:
            networks.copy_weights(runs.open_run(run.path / "cells" / found.kept), run)
        write_json(run.path / "results.json", {**dataclasses.asdict(result), "run": str(run.path)})
        run.finish({"device": str(found.device), "threads": torch.get_num_threads()})
