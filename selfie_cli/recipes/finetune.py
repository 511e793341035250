"""selfie finetune: a share of the labels, with and without pretraining, over several seeds, and what came of it."""

import dataclasses
import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from selfie_cli import config, runs
from selfie_cli.config import FinetuneOptions
from selfie_cli.data import splits
from selfie_cli.data.augment import plain_view, training_view
from selfie_cli.data.labelled import Labelled, open_labelled
from selfie_cli.data.sources import fingerprint
from selfie_cli.data.store import read_store, report_bad, storage_size
from selfie_cli.errors import RunError, UsageError, WeightsError
from selfie_cli.evaluation.metrics import topk_accuracy
from selfie_cli.files import read_json, write_json, write_json_lines
from selfie_cli.methods.selfie import Selfie
from selfie_cli.models.classifier import Classifier
from selfie_cli.models.resnet import stem_for
from selfie_cli.recipes import networks
from selfie_cli.recipes.comparison import Finetuned, summarize
from selfie_cli.runs import Run
from selfie_cli.talk import Talk
from selfie_cli.training.loop import LossOf, train
from selfie_cli.training.machine import Autocast, duration, micro_batch_for, num_cores, prepare, seconds_a_step
from selfie_cli.training.schedule import SampleOrder, check_length, num_steps, step_seed

SUPERVISED = "supervised"


@dataclass(frozen=True, kw_only=True)
class Part:
    """Decoded images and their labels. pixels: uint8 [N, S, S, 3]; labels: int64 [N]; names: N."""

    pixels: Tensor
    labels: Tensor
    names: list[str]


def finetune(options: FinetuneOptions, talk: Talk) -> Finetuned:
    """Finetune as `options` say, or continue `options.resume` without repeating what is finished."""
    run = None
    if options.resume:
        run = runs.open_to_resume(options.resume, "finetune")
        options = config.resumed(options, run.config["asked"])
    if options.dataset is None:
        raise UsageError("--dataset is missing: a folder with a subfolder a class, or a named set such as cifar10")
    rates = learning_rates(options.lr)
    source_run, line = runs.resolve_from(run.config.get("from", {}).get("path") if run is not None else options.from_)
    talk.say(line)
    pretrained = None if source_run is None else load_pretrained(source_run, options)
    method = SUPERVISED if source_run is None else str(source_run.derived["method"])
    if source_run is None and not options.baseline:
        raise UsageError("--from none --no-baseline leaves nothing to train")
    out = Path(options.out) if options.out else runs.default_folder("finetune", method)
    if run is None:
        if source_run is not None and out.resolve() == source_run.path.resolve():
            raise UsageError(f"--out {out} is the run that --from names: choose another folder")
        runs.check_free(out, overwrite=options.overwrite)
    check_length(steps=options.steps, epochs=options.epochs, budget=options.budget)
    device, autocast, precision = prepare(options.device, options.precision)

    data = open_labelled(options.dataset, data_root=Path(options.data_root), offline=options.offline, talk=talk)
    talk.say(data.split_note)
    marks = {"train": fingerprint(data.train.source), "test": fingerprint(data.test.source)}
    if run is not None and run.config["data"].get("fingerprints") != marks:
        raise RunError(f"the images have changed since {run.path} was started: start a new run")
    shape = run.derived if run is not None else derive(options, source_run, data.train.classes)
    read = functools.partial(read_part, size=storage_size(shape["image_size"]), options=options, talk=talk)
    train_part, bad = read(data.train)
    test_part, bad_test = read(data.test)
    bad += bad_test
    seeds = list(range(options.seed, options.seed + options.seeds))
    subsets = {seed: splits.fraction_indices(train_part.labels.numpy(), options.fraction, seed) for seed in seeds}
    num_labels = len(subsets[seeds[0]])
    num_classes = len(shape["classes"])
    if len(rates) > 1 and num_labels <= num_classes:
        raise UsageError("one label a class leaves none to choose a rate with: give one --lr, or a larger --fraction")
    talk.say(
        f"{num_labels:,} labels of {len(train_part.labels):,} ({options.fraction * 100:.3g} % of each class), "
        f"{num_classes} classes, {len(test_part.labels):,} test images; "
        f"{shape['backbone']} at {shape['image_size']} px, {device} in {precision}, batch {shape['batch_size']}, "
        f"seeds {seeds[0]} to {seeds[-1]}"
    )
    arms: dict[str, dict[str, Tensor] | None] = {SUPERVISED: None} if options.baseline or pretrained is None else {}
    if pretrained is not None:
        arms[method] = pretrained

    make = functools.partial(Classifier, shape["backbone"], stem=shape["stem"], num_classes=num_classes)
    trainer = Trainer(make=make, shape=shape, options=options, device=device, autocast=autocast, talk=talk)
    if run is None:
        num_cells = len(arms) * (len(seeds) + (len(rates) if len(rates) > 1 else 0))
        shape |= trainer.sizes(train_part, num_labels, num_cells)
        run = runs.create(
            out,
            verb="finetune",
            asked=dataclasses.asdict(options),
            overwrite=options.overwrite,
            derived=shape,
            data={"fingerprints": marks, "unreadable": len(bad), "split": data.split_note},
            **{"from": {"path": from_path(source_run), "line": line}},
        )
        talk.say(f"run: {run.path}")
    for seed, subset in subsets.items():
        names = [{"path": train_part.names[i], "class": shape["classes"][train_part.labels[i]]} for i in subset]
        write_json_lines(run.path / f"labels-f{options.fraction:g}-s{seed}.jsonl", names)
    report_bad(bad, len(data.train.source) + len(data.test.source), run.path / "bad_files.jsonl", talk)

    chosen = {name: rates[0] for name in arms}
    if len(rates) > 1:
        first = subsets[seeds[0]]
        kept, held = splits.hold_out(train_part.labels.numpy()[first], splits.HELD_OUT_SHARE, seeds[0])
        for name, state in arms.items():
            scores = {
                lr: trainer.cell(
                    run,
                    f"search-{name}-lr{lr:g}",
                    state,
                    lr,
                    seeds[0],
                    take(train_part, first[kept]),
                    take(train_part, first[held]),
                )
                for lr in rates
            }
            chosen[name] = max(scores, key=lambda lr: scores[lr])
            tried = ", ".join(f"{lr:g}: {score:.1%}" for lr, score in scores.items())
            talk.say(f"{name}: learning rate {chosen[name]:g} (on held-out labels {tried})")

    accuracies: dict[str, list[float]] = {name: [] for name in arms}
    for seed in seeds:
        labelled = take(train_part, subsets[seed])
        for name, state in arms.items():
            cell = f"{name}-f{options.fraction:g}-s{seed}"
            accuracies[name].append(trainer.cell(run, cell, state, chosen[name], seed, labelled, test_part))
            talk.say(f"seed {seed}, {name}: {accuracies[name][-1]:.1%}")

    result = summarize(
        run=run.path,
        dataset=data.name,
        fraction=options.fraction,
        num_labels=num_labels,
        num_test=len(test_part.labels),
        num_classes=num_classes,
        steps=shape["steps"],
        seeds=seeds,
        accuracies={name: (chosen[name], values) for name, values in accuracies.items()},
    )
    first_cell = runs.open_run(run.path / "cells" / f"{list(arms)[-1]}-f{options.fraction:g}-s{seeds[0]}")
    networks.copy_weights(first_cell, run)
    write_json(run.path / "results.json", {**dataclasses.asdict(result), "run": str(run.path)})
    run.finish({"device": str(device), "precision": precision, "threads": torch.get_num_threads()})
    return result


def from_path(source_run: Run | None) -> str:
    """What --from would have to be to mean this run again."""
    if source_run is None:
        return "none"
    return "bundled" if source_run.path == runs.bundled_folder() else str(source_run.path.resolve())


def learning_rates(text: str) -> list[float]:
    """'0.1' or '0.03,0.1,0.3'. Raises UsageError for anything else."""
    try:
        rates = [float(part) for part in text.split(",")]
    except ValueError:
        rates = []
    if not rates or not all(0 < rate < math.inf for rate in rates):
        raise UsageError(f"--lr {text!r}: expected a positive number, or several like 0.03,0.1,0.3")
    return rates


def load_pretrained(run: Run, options: FinetuneOptions) -> dict[str, Tensor]:
    """The state of the first three stages (Selfie) or of a whole backbone (a finetuned run)."""
    for name, asked in (("backbone", options.backbone), ("image-size", options.image_size)):
        there = run.derived[name.replace("-", "_")]
        if asked is not None and asked != there:
            raise UsageError(f"--{name} {asked} conflicts with {run.path}, which has {there}: leave it out")
    module = networks.load_module(run)
    return module.patch_network.state_dict() if isinstance(module, Selfie) else module.backbone.state_dict()


def derive(options: FinetuneOptions, source_run: Run | None, classes: list[str]) -> dict[str, Any]:
    """The shape of the networks to train: the pretrained run's, or what was asked."""
    there = source_run.derived if source_run is not None else {}
    image_size = int(there.get("image_size") or options.image_size or 32)
    return {
        "method": "finetune",
        "pretraining": there.get("method", "none"),
        "backbone": there.get("backbone") or options.backbone or "resnetv2_50",
        "stem": there.get("stem") or stem_for(8 if image_size <= 64 else 32),
        "image_size": image_size,
        "batch_size": options.batch_size or (128 if image_size <= 64 else 512),
        "classes": classes,
    }


def read_part(part: Labelled, *, size: int, options: FinetuneOptions, talk: Talk) -> tuple[Part, list[Any]]:
    store = read_store(
        part.source, size=size, workers=options.workers or num_cores(), max_bad=options.max_bad, talk=talk
    )
    names = part.source.names
    labels = torch.from_numpy(part.labels[store.kept])
    return Part(pixels=store.pixels, labels=labels, names=[names[i] for i in store.kept]), store.bad


def take(part: Part, indices: np.ndarray[Any, np.dtype[np.int64]]) -> Part:
    rows = torch.from_numpy(indices)
    return Part(
        pixels=part.pixels.index_select(0, rows), labels=part.labels[rows], names=[part.names[i] for i in indices]
    )


@dataclass(frozen=True, kw_only=True)
class Trainer:
    """Trains one classifier after another, all of the same shape, length and schedule."""

    make: Callable[[], Classifier]
    shape: dict[str, Any]
    options: FinetuneOptions
    device: torch.device
    autocast: Autocast
    talk: Talk

    def loss_of(self, module: nn.Module) -> LossOf:
        def loss(pixels: Tensor, labels: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
            images = training_view(pixels, self.shape["image_size"], flip=True, min_crop=self.options.min_crop)
            logits = module(images).float()
            accuracy = (logits.detach().argmax(dim=1) == labels).float().mean()
            return nn.functional.cross_entropy(logits, labels), {"train_accuracy": accuracy}

        return loss

    def sizes(self, part: Part, num_labels: int, num_cells: int) -> dict[str, int]:
        """Micro-batch and steps for every cell, and the estimate of the time, from a trial on a few batches."""
        module = self.make().to(self.device)
        order = SampleOrder(len(part.labels), self.shape["batch_size"], 0).batch(0)
        batch = (part.pixels.index_select(0, order).to(self.device), part.labels[order].to(self.device))
        with self.autocast():
            micro = self.options.micro_batch or micro_batch_for(
                module, self.loss_of(module), (batch[0][:4], batch[1][:4]), self.shape["batch_size"], self.device
            )
            step_seconds = seconds_a_step(module, self.loss_of, batch, micro)
        steps = num_steps(
            steps=self.options.steps,
            epochs=self.options.epochs,
            budget=self.options.budget,
            num_images=num_labels,
            batch_size=self.shape["batch_size"],
            step_seconds=step_seconds * num_cells,
        )
        each, size = steps * step_seconds, self.shape["batch_size"]
        self.talk.say(
            f"{num_cells} networks of {steps:,} steps ({steps * size / num_labels:.0f} epochs) at "
            f"{size / step_seconds:,.0f} images/s: about {duration(each)} each, {duration(each * num_cells)} in all"
        )
        return {"micro_batch": micro, "steps": steps}

    def cell(
        self, run: Run, name: str, state: dict[str, Tensor] | None, lr: float, seed: int, labelled: Part, test: Part
    ) -> float:
        """Train one network, or continue or look up an earlier attempt; returns its accuracy on `test`, 0..1."""
        folder = run.path / "cells" / name
        if (folder / "results.json").is_file():
            accuracy = float(read_json(folder / "results.json")["accuracy"])
            cell = runs.open_run(folder)
            if not cell.finished:  # killed between the two
                cell.finish({"accuracy": accuracy})
            return accuracy
        asked = {"cell": name, "lr": lr, "seed": seed}
        if (folder / "config.json").is_file():
            cell = runs.open_to_resume(str(folder), "finetune-cell")
        else:
            cell = runs.create(folder, verb="finetune-cell", asked=asked, derived=self.shape)
        torch.manual_seed(step_seed(seed, 0))
        module = self.make().to(self.device)
        if state is not None:
            try:
                module.take_over(state)
            except RuntimeError as error:
                raise WeightsError(str(error)) from None
            networks.estimate_batch_norm(
                module, lambda pixels: module(plain_view(pixels, self.shape["image_size"])), labelled.pixels
            )
        order = SampleOrder(len(labelled.labels), self.shape["batch_size"], seed)

        def batch_of(step: int) -> tuple[Tensor, ...]:
            indices = order.batch(step)
            return labelled.pixels.index_select(0, indices), labelled.labels[indices]

        train(
            module,
            torch.optim.SGD(
                module.parameters(), lr=lr, momentum=0.9, nesterov=True, weight_decay=self.options.weight_decay
            ),
            self.loss_of(module),
            batch_of,
            folder=folder,
            total=self.shape["steps"],
            lr=lr,
            warmup=self.options.warmup_steps,
            seed=seed,
            micro_batch=self.shape["micro_batch"],
            save_every=self.options.save_every,
            autocast=self.autocast,
            talk=self.talk,
            what=name,
            resume_hint=f"selfie finetune --resume {run.path}",
        )
        scores = networks.class_scores(module, test.pixels, self.shape["image_size"], self.device)
        accuracy = topk_accuracy(scores, test.labels)
        networks.save_classifier(cell, module, self.shape)
        write_json(folder / "results.json", {**asked, "accuracy": accuracy, "num_test": len(test.labels)})
        cell.finish({"accuracy": accuracy})
        return accuracy
