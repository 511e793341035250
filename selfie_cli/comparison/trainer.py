"""Trains one network after another. A cell is a network of an arm, a share of the labels and a seed, in its own run."""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from shlex import quote
from typing import Any

import torch
from torch import Tensor

from selfie_cli import runs
from selfie_cli.comparison.arms import Arm, learning_rates
from selfie_cli.comparison.labels import Part, Share, take
from selfie_cli.comparison.statistics import Convergence, convergence
from selfie_cli.config import LabelOptions
from selfie_cli.data import splits
from selfie_cli.data.augment import plain_view
from selfie_cli.data.batches import IMAGE_ORDER, Prefetch, SampleOrder, make_batches, step_seed
from selfie_cli.data.pixels import SMALL
from selfie_cli.errors import Diverged, RunError, UsageError, WeightsError
from selfie_cli.evaluation.metrics import topk_accuracy
from selfie_cli.files import read_json, write_json
from selfie_cli.inference import networks
from selfie_cli.methods.supervised import Supervised
from selfie_cli.models.hybrid import AnyClassifier
from selfie_cli.runs import Run
from selfie_cli.talk import Talk
from selfie_cli.training.distributed import group
from selfie_cli.training.hardware import Pace, compiles, duration, fit, micro_batch_for, precisions, warm_up
from selfie_cli.training.loop import train
from selfie_cli.training.optimizers import make_optimizer
from selfie_cli.training.schedule import num_steps, seconds
from selfie_cli.training.step import Batch, Step, check_pieces


def known_accuracy(file: Path) -> float:
    """The accuracy of a finished cell, 0..1. Raises RunError if the file is damaged."""
    try:
        accuracy = read_json(file)["accuracy"]
        if not 0 <= accuracy <= 1:
            raise ValueError(f"an accuracy of {accuracy}")
        return float(accuracy)
    except (ValueError, LookupError, TypeError) as error:
        raise RunError(f"{file} is damaged ({error}): remove {file.parent}, resuming trains it again") from None


@contextlib.contextmanager
def begun_anew(run: Run) -> Iterator[None]:
    """If a network diverges, say that resuming would not help: rates stay, so that networks can be compared."""
    try:
        yield
    except Diverged as error:
        raise Diverged(
            f"{error}. Start it anew: selfie {run.verb} --overwrite --out {quote(str(run.path))} ..."
        ) from None


@dataclass(frozen=True, kw_only=True)
class Cell:
    """A network to train: an arm with a seed, at a learning rate, for a number of steps."""

    name: str
    arm: Arm
    lr: float
    seed: int
    steps: int


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

    @property
    def rates(self) -> list[float]:
        return learning_rates(self.options.lr)

    def num_held_out(self) -> int:
        """Networks of each arm and share that are judged on held-out labels, in full length."""
        return len(self.rates) if len(self.rates) > 1 else int(self.options.check_length)

    def step_of(self, module: AnyClassifier, sizes: dict[str, Any]) -> tuple[Supervised, Step]:
        """A task to train `module` on, and a training step of it. The training loop sets the learning rate."""
        options, here = self.options, group()
        compiled = compiles(options.compile, self.device, deterministic=options.deterministic)
        if here.world > 1 and self.device.type == "cuda":
            torch.nn.SyncBatchNorm.convert_sync_batchnorm(module)
        task = Supervised(module, image_size=self.image_size, min_crop=options.min_crop)
        step = Step(
            module,
            task,
            make_optimizer("sgd", module, lr=0.0, weight_decay=options.weight_decay),
            micro_batch=sizes["micro_batch"],
            precision=sizes["precision"],
            compiled=compiled and sizes["compiles"],
            graphs=self.device.type == "cuda" and self.image_size <= 64 and sizes["micro_batch"] == self.batch_size,
            group=here,
            smallest=self.batch_size if options.deterministic else 2,
            talk=self.talk,
        )
        return task, step

    def batches(self, task: Supervised, part: Part, seed: int, sizes: dict[str, Any]) -> Callable[[int], Batch]:
        """This process's part of the batch of each step."""
        here, count, version = group(), len(part.labels), sizes["image_order"]
        order = SampleOrder(count, self.batch_size, seed, rank=here.rank, world=here.world, version=version)

        def take(rows: Tensor) -> Batch:
            return part.pixels.index_select(0, rows.to(part.pixels.device)), part.labels[rows]

        return make_batches(order, take, lambda size, generator: [task.draw(size, generator)])

    def plan(self, arms: list[Arm], part: Part, shares: list[Share]) -> tuple[dict[str, Any], list[int]]:
        """A micro-batch and a precision for all arms, and the steps for each share; says how long it will take.

        A budget is for all networks of all shares together.
        """
        sizes, seconds_a_step = self.fit(arms, part)
        size, checked = self.batch_size, int(self.options.check_length)
        an_arm = [len(share.seeds) + self.num_held_out() for share in shares]
        asked, steps, whole = self.options.steps, [], 0.0
        if self.options.budget:
            lengths = sum(an_arm) + len(shares) * checked / 2
            asked = Pace(len(arms) * seconds_a_step * lengths).steps(seconds(self.options.budget))
        for share, count in zip(shares, an_arm, strict=True):
            steps.append(
                num_steps(steps=asked, epochs=self.options.epochs, num_images=share.num_labels, batch_size=size)
            )
            each = steps[-1] * seconds_a_step
            in_all = each * len(arms) * (count + checked / 2)
            whole += in_all
            also = f" and {len(arms)} of half as many" if checked else ""
            self.talk.say(
                f"{share.fraction * 100:.3g} % of the labels: {count * len(arms)} networks of {steps[-1]:,} steps"
                f"{also} ({steps[-1] * size / share.num_labels:.0f} epochs) at {size / seconds_a_step:,.0f} "
                f"images/s: about {duration(each)} each, {duration(in_all)} in all"
            )
        if len(shares) > 1:
            self.talk.say(f"the whole curve: about {duration(whole)}")
        return sizes, steps

    def fit(self, arms: list[Arm], part: Part) -> tuple[dict[str, Any], float]:
        """Choose how all arms are trained on this machine; returns it with the seconds of a step, their mean over arms.

        Both come from a trial on a few batches of `part`.
        """
        size, world = self.batch_size, group().world
        if size % world:
            raise UsageError(f"a batch of {size} cannot be divided among {world} processes evenly")
        check_pieces(size // world, self.options.micro_batch or size // world, 2)
        # Arms of one kind are equally fast.
        kinds = [repr({**arm.shape, "pretraining": None, "pretrained_by": None}) for arm in arms]
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
        return sizes, sum(times[kind] for kind in kinds) / len(kinds)

    def tune(
        self, run: Run, arm: Arm, share: Share, sizes: dict[str, Any], first: Part
    ) -> tuple[float, Convergence | None]:
        """Choose an arm's learning rate, and learn whether it has converged after `sizes["steps"]`.

        Both on held-out labels of `first`, which has those of the first seed, and never on test images.
        """
        rates, steps, seed = self.rates, sizes["steps"], share.seeds[0]
        checked = self.options.check_length and steps > 1
        if len(rates) == 1 and not checked:
            return rates[0], None
        kept, held = (take(first, each) for each in splits.hold_out(first.labels.numpy(), splits.HELD_OUT_SHARE, seed))
        if not len(held.labels):  # one label a class, for which several rates are refused
            return rates[0], convergence(steps, held.labels, held.labels)
        before = "search" if run.verb == "finetune" else f"search-f{share.fraction:g}"
        cells = {lr: Cell(name=f"{before}-{arm.name}-lr{lr:g}", arm=arm, lr=lr, seed=seed, steps=steps) for lr in rates}
        scores = {lr: self.train(run, cell, sizes, kept, held) for lr, cell in cells.items()}
        lr = max(scores, key=lambda lr: scores[lr])
        about = f"{share.fraction * 100:.3g} %, {arm.name}"
        if len(rates) > 1:
            tried = ", ".join(f"{lr:g}: {score:.1%}" for lr, score in scores.items())
            self.talk.say(f"{about}: learning rate {lr:g} (on held-out labels {tried})")
        if not checked:
            return lr, None
        half = dataclasses.replace(cells[lr], name=f"{cells[lr].name}-half", steps=steps // 2)
        self.train(run, half, sizes, kept, held)
        found = convergence(steps, *(self.right(run, cell, held) for cell in (half, cells[lr])))
        self.talk.say(f"{about}: {found.words}")
        return lr, found

    def right(self, run: Run, cell: Cell, part: Part) -> Tensor:
        """Which images of `part` a finished cell classifies right: bool [N]."""
        there = runs.open_run(run.path / "cells" / cell.name)
        network = networks.load_network(there, features=None, device=self.device)
        return networks.class_scores(network, part.pixels).argmax(dim=1) == part.labels

    def train(self, run: Run, cell: Cell, sizes: dict[str, Any], labelled: Part, test: Part) -> float:
        """Train one network, or continue or look up an earlier attempt; returns its accuracy on `test`, 0..1."""
        here = group()
        folder = run.path / "cells" / cell.name
        sizes = {**sizes, "steps": cell.steps}
        if here.from_first((folder / "results.json").is_file()):
            accuracy = known_accuracy(folder / "results.json")
            there = runs.open_run(folder)
            if here.first and (not there.finished or (folder / "state").exists()):  # killed on its way there
                there.finish({"accuracy": accuracy})
            return accuracy
        asked = {"cell": cell.name, "lr": cell.lr, "seed": cell.seed}
        derived = {**cell.arm.shape, **sizes}
        if here.first and (folder / "config.json").is_file():
            runs.open_to_resume(str(folder), "finetune-cell")
        elif here.first:
            runs.create(folder, verb="finetune-cell", asked=asked, derived=derived)
        here.wait()
        there = runs.open_run(folder)
        module, step = self.trained(run, cell, sizes, labelled)
        here.share_buffers(module)  # the network that is kept is the one that is judged
        network = networks.Network(module.eval(), self.image_size, "penultimate")
        scores = networks.class_scores(network, test.pixels)
        accuracy = here.from_first(topk_accuracy(scores, test.labels))
        if here.first:
            networks.save_classifier(there, module, derived)
            write_json(folder / "results.json", {**asked, "accuracy": accuracy, "num_test": len(test.labels)})
            there.finish({"accuracy": accuracy, "micro_batch": step.micro_batch})
        here.wait()
        return accuracy

    def trained(self, run: Run, cell: Cell, sizes: dict[str, Any], labelled: Part) -> tuple[AnyClassifier, Step]:
        """The network of a cell at the end of its training, and the last of its steps."""
        torch.manual_seed(step_seed(cell.seed, 0))
        module = cell.arm.make().to(self.device)
        if cell.arm.state is not None:
            try:
                module.take_over(cell.arm.state)
            except RuntimeError as error:
                raise WeightsError(str(error)) from None
            networks.estimate_batch_norm(
                module, lambda pixels: module(plain_view(pixels, self.image_size)), labelled.pixels
            )
        task, step = self.step_of(module, sizes)
        if labelled.pixels.numel() <= SMALL:  # where it is needed
            labelled = dataclasses.replace(labelled, pixels=labelled.pixels.to(self.device))
        batches = self.batches(task, labelled, cell.seed, sizes)
        with Prefetch(batches, device=self.device, end=cell.steps) as batch_of, begun_anew(run):
            warm_up(step, tuple(tensor.to(self.device) for tensor in batch_of(0)), self.talk)
            train(
                step,
                batch_of,
                folder=run.path / "cells" / cell.name,
                total=cell.steps,
                lr=cell.lr,
                warmup=self.options.warmup_steps,
                seed=cell.seed,
                save_every=self.options.save_every,
                talk=self.talk,
                what=cell.name,
                resume_hint=group().resume_command(run.verb, run.path),
                tensorboard=self.options.log == "tensorboard",
            )
        return module, step
