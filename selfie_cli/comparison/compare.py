"""The comparison: each arm is trained on each share of the labels, with each seed of that share.

With frozen arms, each image goes through each network only once, for all shares and seeds.
"""

import dataclasses
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from selfie_cli import runs
from selfie_cli.comparison.arms import Arm
from selfie_cli.comparison.labels import Data, Share, take
from selfie_cli.comparison.results import ArmResult, Curve, Finetuned, Gain, Point
from selfie_cli.comparison.trainer import Cell, Fitted, Trainer, Training
from selfie_cli.data.batches import step_seed
from selfie_cli.errors import RunError
from selfie_cli.evaluation.linear import LinearProbe, held_out_folds, linear_probe
from selfie_cli.evaluation.metrics import topk_accuracy
from selfie_cli.files import replacing, write_json, write_json_lines
from selfie_cli.inference import networks
from selfie_cli.inference.networks import Network, vectors_of
from selfie_cli.models.hybrid import AnyClassifier
from selfie_cli.runs import Run
from selfie_cli.talk import Talk, counted
from selfie_cli.training.distributed import group
from selfie_cli.training.hardware import Pace, duration, precisions
from selfie_cli.training.schedule import budget_seconds, num_steps
from selfie_cli.training.step import autocast

LEAST_IMAGES = 256_000
"""Default length with few labels, where a network without pretraining stops gaining (docs/results/index.md)."""


@dataclass(frozen=True, kw_only=True)
class Design:
    """The arms to train, the (arm, baseline) pairs to compare, and the number of seeds for each fraction.

    `kept` is one of the arms. Its network of the first seed with the most labels becomes the run's own.
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
    """The results of all arms on all shares."""

    run: Run
    data: Data
    points: list[Point]
    device: torch.device

    def facts(self) -> dict[str, Any]:
        """Return the facts about the run and its data for results.json."""
        return {
            "run": self.run.path,
            "dataset": self.data.name,
            "num_test": len(self.data.test.labels),
            "num_classes": len(self.data.classes),
            "left_out": self.data.left_out,
        }


def plan_steps(shares: list[Share], num_arms: int, seconds_a_step: float, training: Training, talk: Talk) -> list[int]:
    """Return the number of steps for each share, and report how long they take. A budget covers all networks.

    `seconds_a_step` is the time of a step of the largest batch.
    """
    steps, whole, sizes = training.steps, 0.0, training.batch_sizes
    times = [seconds_a_step * size / max(sizes) for size in sizes]
    networks = [num_arms * (len(share.seeds) + training.num_held_out) for share in shares]
    halves = num_arms * training.check_length  # per share
    if training.budget:
        step_of_all = sum(seconds * (count + halves / 2) for seconds, count in zip(times, networks, strict=True))
        steps = Pace(step_of_all).steps(budget_seconds(training.budget))
    found = []
    for share, count, size, seconds in zip(shares, networks, sizes, times, strict=True):
        length = num_steps(
            steps=steps,
            epochs=training.epochs,
            num_images=share.num_labels,
            batch_size=size,
            least_images=LEAST_IMAGES,
        )
        found.append(length)
        each = length * seconds
        in_all = each * (count + halves / 2)
        whole += in_all
        also = f" and {halves} of half as many" if halves else ""
        talk.say(
            f"{share.percent} of the labels: {counted(count, 'network')} of {counted(length, 'step')}{also} "
            f"({counted(round(length * size / share.num_labels), 'epoch')}) at {size / seconds:,.0f} images/s: "
            f"about {duration(each)} each, {duration(in_all)} in all"
        )
    if len(shares) > 1:
        talk.say(f"the whole curve: about {duration(whole)}")
    if whole > 3600 and not (training.steps or training.epochs or training.budget):
        talk.say("for a first look, give --steps 2000 --no-check-length: so early, a gain may be one of speed")
    return found


def point_at(
    share: Share,
    arms: list[ArmResult],
    pairs: Iterable[tuple[str, str]],
    *,
    steps: int = 0,
    rates: Sequence[float] = (),
) -> Point:
    """Return the results of `arms` and the paired gain of each (arm, baseline) in `pairs`. 0 steps: frozen features."""
    named = {arm.name: arm for arm in arms}
    checked = "; ".join(f"{arm.name} {arm.convergence.words}" for arm in arms if arm.convergence is not None)
    notes = [f"{arm.name}: {arm.called}." for arm in arms if arm.called]
    if checked:
        notes.append(f"Half of the steps and all of them, on held-out labels of the first seed: {checked}.")
    return Point(
        fraction=share.fraction,
        num_labels=share.num_labels,
        steps=steps,
        seeds=share.seeds,
        arms=arms,
        comparisons=[Gain.of(named[arm], named[baseline]) for arm, baseline in pairs],
        rates=list(rates),
        warnings=[arm.warning for arm in arms if arm.warning],
        notes=notes,
        frozen=not steps,
    )


def compare(design: Design, data: Data, shares: list[Share], training: Training, *, run: Run, talk: Talk) -> Comparison:
    """Train the unfinished cells of `run`, and return the results of all. The kept network becomes the run's own."""
    largest = trainer = Trainer(run=run, training=training, fitted=Fitted.of(run), talk=talk)
    lengths = run.derived.get("steps_of_shares", [run.derived["steps"]])  # older finetune runs lack them
    if not len(lengths) == len(shares) == len(training.batch_sizes):
        raise RunError(f"{run.path / 'config.json'} is damaged: start a new run")
    points = []
    for share, steps, size in zip(shares, lengths, training.batch_sizes, strict=True):
        if size != trainer.fitted.batch_size:
            trainer = largest.with_batch(size)
        write_labels(run, data, share)
        arms = train_share(trainer, design.arms, data, share, steps)
        points.append(point_at(share, arms, design.pairs, steps=steps, rates=training.rates))
        for line in points[-1].warnings:
            talk.warn(f"{share.percent}: {line}")
    if group().first:
        kept = runs.open_run(run.path / "cells" / shares[-1].cell(design.kept.name, shares[-1].seeds[0]))
        with replacing(run.weights) as temporary:
            shutil.copyfile(kept.weights, temporary)
    return Comparison(run=run, data=data, points=points, device=training.device)


def train_share(trainer: Trainer, arms: list[Arm], data: Data, share: Share, steps: int) -> list[ArmResult]:
    """Choose each arm's learning rate, and train all cells of a share."""
    first = take(data.train, share.subsets[share.seeds[0]])
    tuned = [trainer.tune(arm, share, steps, first) for arm in arms]
    accuracies: list[list[float]] = [[] for _ in arms]
    for seed in share.seeds:
        labelled = take(data.train, share.subsets[seed])
        for arm, (lr, _), found in zip(arms, tuned, accuracies, strict=True):
            cell = Cell(name=share.cell(arm.name, seed), arm=arm, lr=lr, seed=seed, steps=steps)
            found.append(trainer.train(cell, labelled, data.test))
            trainer.talk.say(f"{share.percent}, seed {seed}, {arm.name}: {found[-1]:.1%}")
    return [
        ArmResult.of(arm.name, found, lr=lr, called=arm.called, convergence=converged)
        for arm, (lr, converged), found in zip(arms, tuned, accuracies, strict=True)
    ]


def compare_frozen(
    design: Design, data: Data, shares: list[Share], *, device: torch.device, precision: str, run: Run, talk: Talk
) -> Comparison:
    """Fit a linear probe for each arm, share and seed. The kept arm's network and probe become the run's own."""
    results: list[list[ArmResult]] = [[] for _ in shares]
    rows = np.unique(np.concatenate([subset for share in shares for subset in share.subsets.values()]))
    labelled, test = take(data.train, rows), data.test
    for arm in design.arms:
        network = frozen_network(arm, data.train.pixels, seed=shares[0].seeds[0], device=device)
        with autocast(device, precisions(device, precision)[0])():
            before, after = (
                vectors_of(network, part.pixels, batch_size=networks.BATCH, talk=talk, what=f"{arm.name}: {what}")
                for what, part in (("labelled images", labelled), ("test images", test))
            )
        for share, found in zip(shares, results, strict=True):
            probes, accuracies = list[LinearProbe](), list[float]()
            for seed, subset in share.subsets.items():
                mine = torch.from_numpy(np.searchsorted(rows, subset))
                labels = labelled.labels[mine]
                folds = held_out_folds(labels, seed)
                probes.append(linear_probe(before[mine], labels, num_classes=len(data.classes), held_out=folds))
                accuracies.append(topk_accuracy(probes[-1].log_probabilities(after), test.labels))
                talk.say(f"{share.percent}, seed {seed}, {arm.name}: {accuracies[-1]:.1%}")
            strengths = [probe.strength for probe in probes]
            found.append(ArmResult.of(arm.name, accuracies, lr=None, called=arm.called, strengths=strengths))
        if arm.name == design.kept.name and group().first:
            module, kept = network.module, probes[0]  # first seed of the last share, which has the most labels
            assert isinstance(module, AnyClassifier)
            module.head.load_state_dict({"weight": kept.weight, "bias": kept.bias})
            networks.save_network(run, module.state_dict(), run.derived)
    for share in shares:
        write_labels(run, data, share)
    points = [point_at(share, arms, design.pairs) for share, arms in zip(shares, results, strict=True)]
    return Comparison(run=run, data=data, points=points, device=device)


def frozen_network(arm: Arm, pixels: Tensor, *, seed: int, device: torch.device) -> Network:
    """Return an arm's network, random without a state. `pixels`, uint8 [N, S, S, 3], set its batch-norm statistics."""
    torch.manual_seed(step_seed(seed, 0))
    module = arm.make().to(device).eval()
    if arm.state is not None:
        module.encoder.load_state_dict(arm.state)
    network = Network(module, arm.shape["image_size"], "penultimate", arm.preprocessing)
    networks.estimate_batch_norm(module, network.vectors, pixels)
    return network


def write_labels(run: Run, data: Data, share: Share) -> None:
    """Write the paths and classes of the images that each seed of a share trains on."""
    train = data.train
    for seed, subset in share.subsets.items() if group().first else ():
        names = [{"path": train.names[i], "class": data.classes[train.labels[i]]} for i in subset]
        write_json_lines(run.path / f"labels-f{share.fraction:g}-s{seed}.jsonl", names)


def conclude(found: Comparison, result: Finetuned | Curve) -> None:
    """Write results.json, and mark the run as finished."""
    if group().first:
        write_json(found.run.path / "results.json", {**dataclasses.asdict(result), "run": str(found.run.path)})
        found.run.finish({"device": str(found.device), "threads": torch.get_num_threads()})
