"""One network after another: a cell is a network of an arm, a share of the labels and a seed, and a run of its own."""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from shlex import quote
from typing import Any

import torch

from selfie_cli import runs
from selfie_cli.config import LabelOptions
from selfie_cli.data import splits
from selfie_cli.data.ahead import ReadAhead
from selfie_cli.data.augment import plain_view
from selfie_cli.data.mapped import SMALL
from selfie_cli.errors import Diverged, RunError, UsageError, WeightsError
from selfie_cli.evaluation.metrics import topk_accuracy
from selfie_cli.files import read_json, write_json, write_json_lines
from selfie_cli.methods.supervised import Supervised
from selfie_cli.models.hybrid import AnyClassifier
from selfie_cli.recipes import networks
from selfie_cli.recipes.arms import Arm, learning_rates, origin, room_for
from selfie_cli.recipes.beginning import start
from selfie_cli.recipes.comparison import Accuracies, Curve, Finetuned, Point, point
from selfie_cli.recipes.labels import Data, Part, Share, read_data, take, take_share
from selfie_cli.runs import Run
from selfie_cli.talk import Talk
from selfie_cli.training.distributed import group
from selfie_cli.training.loop import train
from selfie_cli.training.machine import Pace, compiles, duration, fit, micro_batch_for, precisions, prepare, warm_up
from selfie_cli.training.optimizers import make_optimizer
from selfie_cli.training.schedule import IMAGE_ORDER, SampleOrder, num_steps, seconds, step_generator, step_seed
from selfie_cli.training.step import Batch, Step, check_pieces

SIZES = ("batch_size", "micro_batch", "precision", "compiles", "processes", "image_order", "steps")


def sizes_of(run: Run) -> dict[str, Any]:
    """What `Trainer.plan` found. Raises UsageError if it was for another number of processes."""
    sizes = {"image_order": 1} | {name: run.derived[name] for name in SIZES if name in run.derived}
    if sizes["processes"] != group().world:
        raise UsageError(f"{run.path} was started with {sizes['processes']} processes: resume it with as many")
    return sizes


def cells_of(shares: list[Share], rates: list[float]) -> int:
    """How many networks of each arm are trained, and kept: of every seed, and where rates are chosen, of every rate."""
    return sum(len(share.seeds) + (len(rates) if len(rates) > 1 else 0) for share in shares)


def known_accuracy(file: Path) -> float:
    """What a finished cell has come to, 0..1. Raises RunError if the file is damaged."""
    try:
        accuracy = read_json(file)["accuracy"]
        if not 0 <= accuracy <= 1:
            raise ValueError(f"an accuracy of {accuracy}")
        return float(accuracy)
    except (ValueError, LookupError, TypeError) as error:
        raise RunError(f"{file} is damaged ({error}): remove {file.parent}, resuming trains it again") from None


@contextlib.contextmanager
def begun_anew(run: Run) -> Iterator[None]:
    """Where a network diverges, say that resuming would not help: rates stay, so that networks can be compared."""
    try:
        yield
    except Diverged as error:
        raise Diverged(
            f"{error}. Start it anew: selfie {run.verb} --overwrite --out {quote(str(run.path))} ..."
        ) from None


@dataclass(frozen=True, kw_only=True)
class Trainer:
    """Trains one network after another, all with the same batch, schedule and augmentation."""

    options: LabelOptions
    image_size: int
    device: torch.device
    talk: Talk

    @property
    def batch_size(self) -> int:
        usual = 128 if self.image_size <= 64 else 512
        return self.options.batch_size or max(2, usual // group().world) * group().world

    def step_of(self, module: AnyClassifier, sizes: dict[str, Any]) -> tuple[Supervised, Step]:
        """What `module` is trained with, and a step of it. The training loop sets the learning rate."""
        task = Supervised(module, image_size=self.image_size, min_crop=self.options.min_crop)
        here = group()
        compiled = compiles(self.options.compile, self.device, deterministic=self.options.deterministic)
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
            smallest=self.batch_size if self.options.deterministic else 2,
            talk=self.talk,
        )
        return task, step

    def batches(self, task: Supervised, part: Part, seed: int, sizes: dict[str, Any]) -> Callable[[int], Batch]:
        """This process's part of the batch of each step."""
        order = SampleOrder(len(part.labels), self.batch_size, seed, version=sizes["image_order"])
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
        check_pieces(size // world, self.options.micro_batch or size // world, 2)
        kinds = [repr({**arm.shape, "pretraining": None}) for arm in arms]  # arms of one kind are equally fast
        tried = precisions(self.device, self.options.precision, deterministic=self.options.deterministic)
        sizes = {"batch_size": size, "micro_batch": size // world, "precision": tried[0]}
        sizes |= {"compiles": True, "processes": world, "image_order": IMAGE_ORDER}
        trials = {}
        for kind, arm in zip(kinds, arms, strict=True):
            if kind not in trials:
                task, step = self.step_of(arm.make().to(self.device), sizes)
                batch = tuple(tensor.to(self.device) for tensor in self.batches(task, part, 0, sizes)(0))
                trials[kind] = step, batch
        micro = self.options.micro_batch or size // world
        if not self.options.micro_batch and not self.options.deterministic:
            few = [(step, tuple(tensor[:4] for tensor in batch)) for step, batch in trials.values()]
            micro = min(micro_batch_for(step, sample, size // world) for step, sample in few)
        times, wanted = {}, [step for step, _ in trials.values() if step.compiled]
        for kind, (step, batch) in trials.items():  # the first kind's precision is the others', too
            step.set_micro_batch(micro)
            times[kind] = fit(step, batch, tried, self.talk)
            tried, micro = [step.precision], step.micro_batch
        sizes |= {"micro_batch": micro, "precision": tried[0], "compiles": all(step.compiled for step in wanted)}
        of_all_arms = sum(times[kind] for kind in kinds)
        an_arm = [len(share.seeds) + searched for share in shares]
        asked, steps, whole = self.options.steps, [], 0.0
        if self.options.budget:
            asked = Pace(of_all_arms * sum(an_arm)).steps(seconds(self.options.budget))
        for share, count in zip(shares, an_arm, strict=True):
            steps.append(
                num_steps(steps=asked, epochs=self.options.epochs, num_images=share.num_labels, batch_size=size)
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
        searched: str,
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
                name, lr = share.cell(arm.name, seed), chosen[arm.name]
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
            accuracy = known_accuracy(folder / "results.json")
            cell = runs.open_run(folder)
            if here.first and (not cell.finished or (folder / "state").exists()):  # killed on its way there
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
        batches = self.batches(task, labelled, seed, sizes)
        with ReadAhead(batches, device=self.device, end=sizes["steps"]) as batch_of, begun_anew(run):
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
                resume_hint=here.resume_command(run.verb, run.path),
                tensorboard=self.options.log == "tensorboard",
            )
        here.share_buffers(module)  # the network that is kept is the one that is judged
        network = networks.Network(module.eval(), self.image_size, "penultimate")
        scores = networks.class_scores(network, test.pixels)
        accuracy = here.from_first(topk_accuracy(scores, test.labels))
        if here.first:
            networks.save_classifier(cell, module, {**arm.shape, **sizes})
            write_json(folder / "results.json", {**asked, "accuracy": accuracy, "num_test": len(test.labels)})
            cell.finish({"accuracy": accuracy, "micro_batch": step.micro_batch})
        here.wait()
        return accuracy


@dataclass(frozen=True, kw_only=True)
class Compared:
    """What all arms came to on all shares; the network of `cell` becomes the run's own."""

    run: Run
    data: Data
    points: list[Point]
    cell: str
    device: torch.device


def compare(
    options: LabelOptions,
    verb: str,
    *,
    run: Run | None,
    out: Path | None,
    arms: list[Arm],
    sources: list[Run],
    counts: dict[float, int],
    kept: Arm,
    pairs: list[tuple[str, str]],
    talk: Talk,
) -> Compared:
    """Train the networks of all arms on all shares, in a new run in `out`, or go on with `run`.

    `counts` says how many seeds each share gets, smallest share first; of `kept`, one of the arms, the first network
    with the most labels is kept as the run's own; `pairs` are the arms and baselines to compare.
    """
    rates = learning_rates(options.lr)
    device = prepare(options.device, deterministic=options.deterministic)
    image_size = kept.shape["image_size"]
    data = read_data(options, image_size, run, sources, talk)
    arms, kept = [arm.for_classes(data.classes) for arm in arms], kept.for_classes(data.classes)
    shares = [
        take_share(data, fraction, range(options.seed, options.seed + count), len(rates))
        for fraction, count in counts.items()
    ]
    trainer = Trainer(options=options, image_size=image_size, device=device, talk=talk)
    percents = ", ".join(f"{share.fraction * 100:.3g} %" for share in shares)
    numbers = ", ".join(f"{share.num_labels:,}" for share in shares)
    talk.say(
        f"{numbers} labels of {len(data.train.labels):,} ({percents} of each class), {len(data.classes)} classes, "
        f"{len(data.test.labels):,} test images; {', '.join(arm.name for arm in arms)}: {kept.shape['backbone']} at "
        f"{image_size} px, {device}, batch {trainer.batch_size}"
    )
    if run is None:
        sizes, steps = trainer.plan(arms, data.train, shares, len(rates))
        run = start(
            out,
            verb=verb,
            asked=dataclasses.asdict(options),
            overwrite=options.overwrite,
            room=room_for(arms, cells_of(shares, rates)),
            derived={**kept.shape, **sizes, "steps": steps[-1], "steps_of_shares": steps},
            data=data.record,
            **{"from": [origin(source) for source in sources]},
        )
        talk.say(f"run: {run.path}")
    data.report(run, talk)

    steps = run.derived.get("steps_of_shares", [run.derived["steps"]])  # finetune did not always note them
    if len(steps) != len(shares) or not all(type(each) is int and each > 0 for each in steps):
        raise RunError(f"{run.path / 'config.json'} is damaged: start a new run")
    points = []
    for share, steps_here in zip(shares, steps, strict=True):
        searched = "search" if verb == "finetune" else f"search-f{share.fraction:g}"
        sizes = {**sizes_of(run), "steps": steps_here}
        points.append(
            point(
                fraction=share.fraction,
                num_labels=share.num_labels,
                steps=steps_here,
                seeds=share.seeds,
                accuracies=trainer.share(run, arms, data, share, sizes, rates, searched=searched),
                pairs=pairs,
            )
        )
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
