"""What finetune and curve share: labelled images, arms, and training one network after another, each a run of its own.

An arm is one way to initialize a network; a cell is one network of an arm: a share of the labels and a seed.
"""

import dataclasses
import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from selfie_cli import option, runs
from selfie_cli.config import LabelOptions
from selfie_cli.data import splits
from selfie_cli.data.ahead import ReadAhead
from selfie_cli.data.augment import plain_view
from selfie_cli.data.labelled import Labelled, open_labelled
from selfie_cli.data.mapped import SMALL, read_all
from selfie_cli.data.sources import fingerprint
from selfie_cli.data.splits import Labels
from selfie_cli.data.store import BadFile, report_bad, storage_size
from selfie_cli.errors import RunError, UsageError, WeightsError
from selfie_cli.evaluation.metrics import topk_accuracy
from selfie_cli.files import read_json, write_json, write_json_lines
from selfie_cli.methods.supervised import Supervised
from selfie_cli.models.hybrid import AnyClassifier
from selfie_cli.models.resnet import stem_for
from selfie_cli.recipes import networks
from selfie_cli.recipes.comparison import Accuracies, Curve, Finetuned
from selfie_cli.recipes.seen import look_for_seen
from selfie_cli.runs import Run
from selfie_cli.talk import Talk
from selfie_cli.training.distributed import group
from selfie_cli.training.loop import train
from selfie_cli.training.machine import duration, fit, micro_batch_for, num_cores, precisions, warm_up
from selfie_cli.training.optimizers import make_optimizer
from selfie_cli.training.schedule import SampleOrder, num_steps, step_generator, step_seed
from selfie_cli.training.step import Batch, Step
from selfie_cli.training.tensorboard import check_log

SUPERVISED = "supervised"
SIZES = ("batch_size", "micro_batch", "precision", "compiles", "processes", "steps")

AnyLabels = TypeVar("AnyLabels", bound=LabelOptions)


@dataclass(frozen=True, kw_only=True)
class Arm:
    """`shape` describes the network as a run's config does; `state` is what it starts from, None for from scratch."""

    name: str
    shape: dict[str, Any]
    state: dict[str, Tensor] | None

    def make(self) -> AnyClassifier:
        module = networks.build(self.shape)
        assert isinstance(module, AnyClassifier)
        return module

    def for_classes(self, classes: list[str]) -> "Arm":
        return dataclasses.replace(self, shape={**self.shape, "classes": classes})


@dataclass(frozen=True, kw_only=True)
class Part:
    """Decoded images and their labels. pixels: uint8 [N, S, S, 3]; labels: int64 [N]; names: N."""

    pixels: Tensor
    labels: Tensor
    names: list[str]


@dataclass(frozen=True, kw_only=True)
class Data:
    """A labelled data set, decoded. `record` is what a run's config keeps of it.

    `seen` names the test images that a pretraining has seen; if they were to be left out, they are not in `test`.
    """

    name: str
    classes: list[str]
    train: Part
    test: Part
    record: dict[str, Any]
    bad: list[BadFile]
    num_images: int
    seen: list[dict[str, Any]]

    def report(self, run: Run, talk: Talk) -> None:
        """Write bad_files.jsonl and seen_test_images.jsonl, where there is anything to tell."""
        if not group().first:
            return
        report_bad(self.bad, self.num_images, run.path / "bad_files.jsonl", talk)
        if self.seen:
            write_json_lines(run.path / "seen_test_images.jsonl", self.seen)


@dataclass(frozen=True, kw_only=True)
class Share:
    """A share of the labels: for each seed, which images of the training part, int64 [M], sorted."""

    fraction: float
    subsets: dict[int, Labels]

    @property
    def seeds(self) -> list[int]:
        return list(self.subsets)

    @property
    def num_labels(self) -> int:
        return len(self.subsets[self.seeds[0]])

    def cell(self, arm: Arm, seed: int) -> str:
        return f"{arm.name}-f{self.fraction:g}-s{seed}"


def begin(options: AnyLabels, verb: str) -> tuple[Run | None, AnyLabels]:
    """The run that --resume names and its options, or none and `options` themselves."""
    run = None
    if options.resume:
        run = runs.open_to_resume(options.resume, verb)
        options = option.resumed(options, run.config["asked"])
    check_log(options.log)
    if options.dataset is None:
        raise UsageError("--dataset is missing: a folder with a subfolder a class, or a named set such as cifar10")
    return run, options


def learning_rates(text: str) -> list[float]:
    """'0.1' or '0.03,0.1,0.3'. Raises UsageError for anything else."""
    try:
        rates = [float(part) for part in text.split(",")]
    except ValueError:
        rates = []
    if not rates or not all(0 < rate < math.inf for rate in rates) or len({f"{rate:g}" for rate in rates}) < len(rates):
        raise UsageError(f"--lr {text!r}: expected a positive number, or several different ones like 0.03,0.1,0.3")
    return rates


def load_pretrained(run: Run, options: LabelOptions) -> networks.Pretrained | AnyClassifier:
    """The run's network, whose backbone and image size rule; an option that says otherwise is refused."""
    for name, asked in (("backbone", options.backbone), ("image-size", options.image_size)):
        there = run.derived.get(name.replace("-", "_"))
        if asked is not None and asked != there:
            raise UsageError(f"--{name} {asked} conflicts with {run}, which has {there}: leave it out")
    return networks.load_module(run)


def choose_out(options: LabelOptions, verb: str, name: str, sources: list[Run]) -> Path:
    """The folder of a new run. Raises RunError or UsageError if it is not free."""
    out = group().from_first(Path(options.out) if options.out else runs.default_folder(verb, name))
    if any(out.resolve() == source.path.resolve() for source in sources):
        raise UsageError(f"--out {out} is a run that --from names: choose another folder")
    runs.check_free(out, overwrite=options.overwrite)
    return out


def sizes_of(run: Run) -> dict[str, Any]:
    """What `Trainer.plan` found. Raises UsageError if it was for another number of processes."""
    sizes = {name: run.derived.get(name) for name in SIZES}
    if sizes["processes"] != group().world:
        raise UsageError(f"{run.path} was started with {sizes['processes']} processes: resume it with as many")
    return sizes


def start(out: Path | None, **config: Any) -> Run:
    """A new run in `out`, made by the first process."""
    assert out is not None
    if group().first:
        runs.create(out, **config)
    group().wait()
    return runs.open_run(out)


def conclude(run: Run, result: Finetuned | Curve, cell: str, measured: dict[str, Any]) -> None:
    """Write what was found; the network of `cell` becomes the run's own, for predict and embed."""
    if not group().first:
        return
    networks.copy_weights(runs.open_run(run.path / "cells" / cell), run)
    write_json(run.path / "results.json", {**dataclasses.asdict(result), "run": str(run.path)})
    run.finish({**measured, "threads": torch.get_num_threads()})


def origin(source: Run) -> dict[str, str]:
    """What --from would have to be to mean this run again, and the hash of the weights that it meant."""
    path = source.address or str(source.path.resolve())
    return {"path": path, "sha256": hashlib.sha256(source.weights.read_bytes()).hexdigest()}


def origins(run: Run, *, offline: bool, talk: Talk) -> list[dict[str, str]]:
    """Where the arms of a stopped run came from. Raises RunError if its config does not say, or the weights changed."""
    found = run.config.get("from")
    if not isinstance(found, list) or not all(isinstance(each, dict) and "path" in each for each in found):
        raise RunError(
            f"{run.path / 'config.json'} is damaged, it does not say where weights came from: start a new run"
        )
    for each in found:
        source = runs.open_run(each["path"], offline=offline, talk=talk)
        if origin(source) != each:
            raise RunError(f"the weights of {each['path']} have changed since {run.path} was started: start a new run")
    return found


def tell_of_labels(sources: list[Run], talk: Talk) -> None:
    """A network that was finetuned knows labels, maybe those that others are tested on or denied here."""
    for source in sources:
        if "classes" in source.derived:
            talk.warn(
                f"{source.name} was finetuned on labels: if they are of this data set, that alone puts it ahead "
                "of the other arms"
            )


def network_shape(options: LabelOptions, source: Run | None) -> dict[str, Any]:
    """The networks to train, but for their classes: the pretrained run's, or what was asked."""
    there = source.derived if source is not None else {}
    image_size = int(there.get("image_size") or options.image_size or 32)
    return {
        "method": "finetune",
        "arch": "resnet",
        "pretraining": there.get("method", "none"),
        "backbone": there.get("backbone") or options.backbone or "resnetv2_50",
        "stem": there.get("stem") or stem_for(8 if image_size <= 64 else 32),
        "image_size": image_size,
    }


def read_data(options: LabelOptions, image_size: int, run: Run | None, sources: list[Run], talk: Talk) -> Data:
    """Both parts of --dataset, decoded; test images are looked for among those that `sources` were pretrained on.

    Raises RunError if they are not what `run` was started with, DataError if no test image is left.
    """
    assert options.dataset is not None
    pinned = run.config["data"].get("pinned", {}) if run is not None else {}
    dataset = pinned.get(options.dataset, options.dataset)
    found = open_labelled(dataset, data_root=Path(options.data_root), offline=options.offline, talk=talk)
    talk.say(found.split_note)
    marks = {"train": fingerprint(found.train.source), "test": fingerprint(found.test.source)}
    if run is not None and run.config["data"].get("fingerprints") != marks:
        raise RunError(f"the images have changed since {run.path} was started: start a new run")
    train_part, bad = read_part(found.train, size=storage_size(image_size), options=options, talk=talk)
    test_part, bad_test = read_part(found.test, size=storage_size(image_size), options=options, talk=talk)
    bad = bad + bad_test
    rows, seen = look_for_seen(sources, test_part.pixels, test_part.names, exclude=options.exclude_seen, talk=talk)
    return Data(
        name=found.name,
        classes=found.train.classes,
        train=train_part,
        test=test_part if len(rows) == len(test_part.labels) else take(test_part, rows.numpy()),
        record={
            "fingerprints": marks,
            "pinned": dict(found.train.source.pinned),
            "unreadable": len(bad),
            "split": found.split_note,
            "seen_test_images": len({each["path"] for each in seen}),
        },
        bad=bad,
        num_images=len(found.train.source) + len(found.test.source),
        seen=seen,
    )


def read_part(part: Labelled, *, size: int, options: LabelOptions, talk: Talk) -> tuple[Part, list[BadFile]]:
    store = read_all(
        part.source,
        size=size,
        workers=options.workers or num_cores(),
        max_bad=options.max_bad,
        talk=talk,
        folder=options.store,
        limit_gb=options.store_gb,
    )
    names = part.source.names
    labels = torch.from_numpy(part.labels[store.kept])
    return Part(pixels=store.pixels, labels=labels, names=[names[i] for i in store.kept]), store.bad


def take(part: Part, indices: np.ndarray[Any, np.dtype[np.int64]]) -> Part:
    rows = torch.from_numpy(indices)
    return Part(
        pixels=part.pixels.index_select(0, rows), labels=part.labels[rows], names=[part.names[i] for i in indices]
    )


def take_share(data: Data, fraction: float, seeds: range, num_rates: int) -> Share:
    """A subset for each seed. Raises UsageError if it leaves nothing to choose among `num_rates` with."""
    labels = data.train.labels.numpy()
    share = Share(fraction=fraction, subsets={seed: splits.fraction_indices(labels, fraction, seed) for seed in seeds})
    if num_rates > 1 and share.num_labels <= len(data.classes):
        raise UsageError("one label a class leaves none to choose a rate with: give one --lr, or a larger --fraction")
    return share


@dataclass(frozen=True, kw_only=True)
class Trainer:
    """Trains one network after another, all with the same batch, schedule and augmentation."""

    options: LabelOptions
    image_size: int
    device: torch.device
    talk: Talk

    @property
    def batch_size(self) -> int:
        return self.options.batch_size or (128 if self.image_size <= 64 else 512)

    def step_of(self, module: AnyClassifier, sizes: dict[str, Any]) -> tuple[Supervised, Step]:
        """What `module` is trained with, and a step of it. The training loop sets the learning rate."""
        task = Supervised(module, image_size=self.image_size, min_crop=self.options.min_crop)
        here = group()
        compiled = self.options.compile == "on" or (self.options.compile == "auto" and self.device.type == "cuda")
        if here.world > 1 and self.device.type == "cuda":
            torch.nn.SyncBatchNorm.convert_sync_batchnorm(module)
        step = Step(
            module,
            task,
            make_optimizer("sgd", module, lr=0.0, weight_decay=self.options.weight_decay),
            micro_batch=sizes["micro_batch"],
            precision=sizes["precision"],
            compiled=compiled and sizes["compiles"],
            graphs=self.device.type == "cuda" and self.image_size <= 64 and sizes["micro_batch"] == self.batch_size,
            group=here,
        )
        return task, step

    def batches(self, task: Supervised, part: Part, seed: int) -> Callable[[int], Batch]:
        """This process's part of the batch of each step."""
        order = SampleOrder(len(part.labels), self.batch_size, seed)
        mine = group().part(self.batch_size)

        def batch_of(step: int) -> Batch:
            rows = order.batch(step)[mine]
            crops = task.draw(self.batch_size, step_generator(seed, step))[mine]
            return part.pixels.index_select(0, rows.to(part.pixels.device)), part.labels[rows], crops

        return batch_of

    def plan(
        self, arms: list[Arm], part: Part, shares: list[Share], num_rates: int
    ) -> tuple[dict[str, Any], list[int]]:
        """A micro-batch and a precision for all arms, and the steps for each share; says how long it will take.

        Speeds come from a trial on a few batches. A budget is for all networks of all shares together.
        """
        size, searched = self.batch_size, num_rates if num_rates > 1 else 0
        world = group().world
        if size % world:
            raise UsageError(f"a batch of {size} cannot be divided among {world} processes evenly")
        kinds = [repr({**arm.shape, "pretraining": None}) for arm in arms]  # arms of one kind are equally fast
        tried = precisions(self.device, self.options.precision)
        sizes = {"batch_size": size, "micro_batch": size // world, "precision": tried[0]}
        sizes |= {"compiles": True, "processes": world}
        trials = {}
        for kind, arm in zip(kinds, arms, strict=True):
            if kind not in trials:
                task, step = self.step_of(arm.make().to(self.device), sizes)
                batch = tuple(tensor.to(self.device) for tensor in self.batches(task, part, 0)(0))
                trials[kind] = step, batch
        micro = self.options.micro_batch or min(
            micro_batch_for(step, tuple(tensor[:4] for tensor in batch), size // world)
            for step, batch in trials.values()
        )
        seconds, wanted = {}, [step for step, _ in trials.values() if step.compiled]
        for kind, (step, batch) in trials.items():  # the first kind's precision is the others', too
            step.micro_batch = micro
            if micro < size // world:
                step.leave_graphs()
            seconds[kind] = fit(step, batch, tried, self.talk)
            tried = [step.precision]
        sizes |= {"micro_batch": micro, "precision": tried[0], "compiles": all(step.compiled for step in wanted)}
        of_all_arms = sum(seconds[kind] for kind in kinds)
        an_arm = [len(share.seeds) + searched for share in shares]
        steps, whole = [], 0.0
        for share, count in zip(shares, an_arm, strict=True):
            steps.append(
                num_steps(
                    steps=self.options.steps,
                    epochs=self.options.epochs,
                    budget=self.options.budget,
                    num_images=share.num_labels,
                    batch_size=size,
                    step_seconds=of_all_arms * sum(an_arm),
                )
            )
            each, count = steps[-1] * of_all_arms / len(arms), count * len(arms)
            whole += each * count
            self.talk.say(
                f"{share.fraction * 100:.3g} % of the labels: {count} networks of {steps[-1]:,} steps "
                f"({steps[-1] * size / share.num_labels:.0f} epochs) at {size * len(arms) / of_all_arms:,.0f} "
                f"images/s: about {duration(each)} each, {duration(each * count)} in all"
            )
        if len(shares) > 1:
            self.talk.say(f"the whole curve: about {duration(whole)}")
        return sizes, steps

    def share(
        self,
        run: Run,
        arms: list[Arm],
        data: Data,
        share: Share,
        sizes: dict[str, Any],
        rates: list[float],
        *,
        searched: str = "search",
    ) -> Accuracies:
        """All cells of a share: each arm's rate is chosen on held-out labels of the first seed, never on test images.

        `sizes` are what `plan` found, and the steps. The lists of labels are written first. `searched` begins the names
        of the cells that try a rate.
        """
        percent = f"{share.fraction * 100:.3g} %"
        for seed, subset in share.subsets.items() if group().first else ():
            names = [{"path": data.train.names[i], "class": data.classes[data.train.labels[i]]} for i in subset]
            write_json_lines(run.path / f"labels-f{share.fraction:g}-s{seed}.jsonl", names)
        chosen = {arm.name: rates[0] for arm in arms}
        if len(rates) > 1:
            seed = share.seeds[0]
            first = take(data.train, share.subsets[seed])
            kept, held = (
                take(first, each) for each in splits.hold_out(first.labels.numpy(), splits.HELD_OUT_SHARE, seed)
            )
            for arm in arms:
                cells = {lr: f"{searched}-{arm.name}-lr{lr:g}" for lr in rates}
                scores = {lr: self.cell(run, name, arm, sizes, lr, seed, kept, held) for lr, name in cells.items()}
                chosen[arm.name] = max(scores, key=lambda lr: scores[lr])
                tried = ", ".join(f"{lr:g}: {score:.1%}" for lr, score in scores.items())
                self.talk.say(f"{percent}, {arm.name}: learning rate {chosen[arm.name]:g} (on held-out labels {tried})")
        found: Accuracies = {arm.name: (chosen[arm.name], []) for arm in arms}
        for seed in share.seeds:
            labelled = take(data.train, share.subsets[seed])
            for arm in arms:
                name, lr = share.cell(arm, seed), chosen[arm.name]
                found[arm.name][1].append(self.cell(run, name, arm, sizes, lr, seed, labelled, data.test))
                self.talk.say(f"{percent}, seed {seed}, {arm.name}: {found[arm.name][1][-1]:.1%}")
        return found

    def cell(
        self, run: Run, name: str, arm: Arm, sizes: dict[str, Any], lr: float, seed: int, labelled: Part, test: Part
    ) -> float:
        """Train one network, or continue or look up an earlier attempt; returns its accuracy on `test`, 0..1."""
        here = group()
        folder = run.path / "cells" / name
        if here.from_first((folder / "results.json").is_file()):
            accuracy = float(read_json(folder / "results.json")["accuracy"])
            cell = runs.open_run(folder)
            if not cell.finished and here.first:  # killed between the two
                cell.finish({"accuracy": accuracy})
            return accuracy
        asked = {"cell": name, "lr": lr, "seed": seed}
        if here.first and (folder / "config.json").is_file():
            runs.open_to_resume(str(folder), "finetune-cell")
        elif here.first:
            runs.create(folder, verb="finetune-cell", asked=asked, derived={**arm.shape, **sizes})
        here.wait()
        cell = runs.open_run(folder)
        torch.manual_seed(step_seed(seed, 0))
        module = arm.make().to(self.device)
        if arm.state is not None:
            try:
                module.take_over(arm.state)
            except RuntimeError as error:
                raise WeightsError(str(error)) from None
            networks.estimate_batch_norm(
                module, lambda pixels: module(plain_view(pixels, self.image_size)), labelled.pixels
            )
        task, step = self.step_of(module, sizes)
        if labelled.pixels.numel() <= SMALL:  # where it is needed
            labelled = dataclasses.replace(labelled, pixels=labelled.pixels.to(self.device))
        with ReadAhead(self.batches(task, labelled, seed), device=self.device) as batch_of:
            warm_up(step, tuple(tensor.to(self.device) for tensor in batch_of(0)), self.talk)
            train(
                step,
                batch_of,
                folder=folder,
                total=sizes["steps"],
                lr=lr,
                warmup=self.options.warmup_steps,
                seed=seed,
                save_every=self.options.save_every,
                talk=self.talk,
                what=name,
                resume_hint=f"{here.command} {run.verb} --resume {run.path}",
                tensorboard=self.options.log == "tensorboard",
            )
        scores = networks.class_scores(module, test.pixels, self.image_size, self.device)
        accuracy = here.from_first(topk_accuracy(scores, test.labels))
        if here.first:
            networks.save_classifier(cell, module, {**arm.shape, **sizes})
            write_json(folder / "results.json", {**asked, "accuracy": accuracy, "num_test": len(test.labels)})
            cell.finish({"accuracy": accuracy})
        here.wait()
        return accuracy
