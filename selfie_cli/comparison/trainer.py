"""Training of the networks of a comparison, one after another, with settings that fit this machine.

A cell is one network of the grid of arms, shares and seeds. Each cell has its own run.
"""

import dataclasses
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from shlex import quote
from typing import Self

import torch
from torch import Tensor

from selfie_cli import runs
from selfie_cli.comparison.arms import Arm
from selfie_cli.comparison.labels import Part, Share, take
from selfie_cli.comparison.results import Convergence, known_fields
from selfie_cli.data import splits
from selfie_cli.data.batches import IMAGE_ORDER, Batch, Prefetch, SampleOrder, make_batches, step_seed
from selfie_cli.data.pixels import SMALL
from selfie_cli.errors import Diverged, WeightsError
from selfie_cli.evaluation.metrics import topk_accuracy
from selfie_cli.files import write_json
from selfie_cli.inference import networks
from selfie_cli.methods.supervised import Supervised
from selfie_cli.models.hybrid import AnyClassifier
from selfie_cli.runs import Run
from selfie_cli.talk import Talk
from selfie_cli.training.distributed import check_processes, group
from selfie_cli.training.hardware import compiles, fit, micro_batch_for, precisions, warm_up
from selfie_cli.training.loop import Plan, train
from selfie_cli.training.optimizers import make_optimizer
from selfie_cli.training.step import Step, check_pieces


@dataclass(frozen=True, kw_only=True)
class Training:
    """Training options of a comparison: all networks of a share get the same batch, schedule and augmentation.

    `batch_sizes` has one for each share. `rates` are the learning rates to choose from; if empty, each arm has its
    usual rate. `check_length`: whether to check if more steps would help.
    """

    image_size: int
    device: torch.device
    batch_sizes: list[int]
    micro_batch: int | None
    precision: str
    compile: str
    deterministic: bool
    steps: int | None
    epochs: float | None
    budget: str | None
    rates: list[float]
    weight_decay: float
    warmup_steps: int
    min_crop: float
    check_length: bool
    save_every: float
    log: str | None

    @property
    def num_held_out(self) -> int:
        """Number of networks per arm and share that are trained for all steps and evaluated on held-out labels."""
        return len(self.rates) if len(self.rates) > 1 else int(self.check_length)


@dataclass(frozen=True, kw_only=True)
class Fitted:
    """Training settings that fit this machine. A run's config keeps them under the same names."""

    batch_size: int
    micro_batch: int
    precision: str
    compiles: bool
    processes: int
    image_order: int = 1  # that of older runs, whose config lacks it

    @classmethod
    def of(cls, run: Run) -> Self:
        """Read the settings from a run's config. Raise UsageError if the number of processes has changed."""
        check_processes(run.derived)
        return known_fields(cls, run.derived)


def usual_batch_size(image_size: int, num_labels: int) -> int:
    """Return the default batch size, a multiple of the number of processes.

    It is the largest power of two up to a tenth of the labels, from 32 to 128, or to 512 for images above 64 px. With
    few labels, large batches only repeat them.
    """
    size = min(128 if image_size <= 64 else 512, max(32, 1 << max(1, num_labels // 10).bit_length() - 1))
    return max(2, size // group().world) * group().world


def make_step(
    module: AnyClassifier, arm: Arm, training: Training, fitted: Fitted, talk: Talk
) -> tuple[Supervised, Step]:
    """Return the task and the training step for an arm's `module`. The training loop sets the learning rate."""
    here, device, small = group(), training.device, training.image_size <= 64
    compiled = compiles(training.compile, device, deterministic=training.deterministic)
    if here.world > 1 and device.type == "cuda":
        torch.nn.SyncBatchNorm.convert_sync_batchnorm(module)
    task = Supervised(
        module, image_size=training.image_size, min_crop=training.min_crop, preprocessing=arm.preprocessing
    )
    step = Step(
        module,
        task,
        make_optimizer("sgd", module, lr=0.0, weight_decay=training.weight_decay),
        micro_batch=fitted.micro_batch,
        precision=fitted.precision,
        compiled=compiled and fitted.compiles,
        graphs=device.type == "cuda" and small and fitted.micro_batch == fitted.batch_size,
        group=here,
        smallest=fitted.batch_size if training.deterministic else 2,
        talk=talk,
    )
    return task, step


def batches(task: Supervised, part: Part, seed: int, fitted: Fitted) -> Callable[[int], Batch]:
    """Return a function that makes this process's part of a step's batch from the number of the step."""
    here = group()
    order = SampleOrder(
        len(part.labels), fitted.batch_size, seed, rank=here.rank, world=here.world, version=fitted.image_order
    )

    return make_batches(
        order,
        take=lambda rows: (part.pixels.index_select(0, rows.to(part.pixels.device)), part.labels[rows]),
        draw=lambda size, generator: [task.draw(size, generator)],
    )


def fit_to_machine(arms: list[Arm], part: Part, training: Training, talk: Talk) -> tuple[Fitted, float]:
    """Choose a micro-batch and a precision for all arms, by trial steps on the largest batch of all shares.

    Return the settings, and the seconds per step averaged over arms.
    """
    size, world, device = max(training.batch_sizes), group().world, training.device
    micro = training.micro_batch or size // world
    for each in training.batch_sizes:
        check_processes({"batch_size": each})
        check_pieces(each // world, min(micro, each // world), 2)
    tried = precisions(device, training.precision, deterministic=training.deterministic)
    fitted = Fitted(
        batch_size=size,
        micro_batch=size // world,
        precision=tried[0],
        compiles=True,
        processes=world,
        image_order=IMAGE_ORDER,
    )
    trials = {}
    for arm in {arm.kind: arm for arm in arms}.values():
        task, step = make_step(arm.make().to(device), arm, training, fitted, talk)
        trials[arm.kind] = step, step.on_device(batches(task, part, 0, fitted)(0))
    if not training.micro_batch and not training.deterministic:
        micro = min(micro_batch_for(step, batch) for step, batch in trials.values())
    times, wanted = {}, [step for step, _ in trials.values() if step.compiled]
    for kind, (step, batch) in trials.items():  # all kinds take the precision of the first
        step.set_micro_batch(micro)
        times[kind] = fit(step, batch, tried, talk)
        tried, micro = [step.precision], step.micro_batch
    if wanted:
        torch.compiler.reset()  # frees the memory of CUDA graphs
    compiling = all(step.compiled for step in wanted)
    fitted = dataclasses.replace(fitted, micro_batch=micro, precision=tried[0], compiles=compiling)
    return fitted, sum(times[arm.kind] for arm in arms) / len(arms)


def known_accuracy(folder: Path) -> float | None:
    """Return the accuracy of a finished cell, 0..1, else None. Raise RunError if its config is damaged."""
    if not (folder / "config.json").is_file():
        return None
    run = runs.open_run(folder)
    if run.finished:
        shutil.rmtree(folder / "state", ignore_errors=True)  # if it was killed before it removed them
    return run.config["measured"].get("accuracy") if run.finished else None


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
    """Trains the cells of a run, and looks up those that are finished.

    `steps` has a network and its training step for each kind of arm. Cells use it one after another, so that it is
    compiled only once, and takes memory for CUDA graphs, which is never freed, only once.
    """

    run: Run
    training: Training
    fitted: Fitted
    talk: Talk
    steps: dict[str, tuple[AnyClassifier, Supervised, Step]] = dataclasses.field(default_factory=dict)

    def with_batch(self, size: int) -> "Trainer":
        """Return a trainer with batches of `size`, up to its own. It compiles its steps anew."""
        micro = min(self.fitted.micro_batch, size // group().world)
        return dataclasses.replace(
            self, fitted=dataclasses.replace(self.fitted, batch_size=size, micro_batch=micro), steps={}
        )

    def folder(self, cell: Cell) -> Path:
        return self.run.path / "cells" / cell.name

    def tune(self, arm: Arm, share: Share, steps: int, labelled: Part) -> tuple[float, Convergence | None]:
        """Choose an arm's learning rate, and check whether the arm has converged after `steps`.

        Both use held-out labels of `labelled`, the images of the share's first seed, and never test images. Raise
        Diverged if no rate gives finite numbers.
        """
        rates, seed = self.training.rates or [arm.usual_rate(share.num_labels)], share.seeds[0]
        checked = self.training.check_length and steps > 1
        if len(rates) == 1 and not checked:
            return rates[0], None
        kept, held = (
            take(labelled, each) for each in splits.hold_out(labelled.labels.numpy(), splits.HELD_OUT_SHARE, seed)
        )
        if not len(held.labels):  # one label per class: `take_share` has refused several rates
            return rates[0], Convergence.of(steps, held.labels, held.labels)
        before = "search" if self.run.verb == "finetune" else f"search-f{share.fraction:g}"
        cells = [Cell(name=f"{before}-{arm.name}-lr{lr:g}", arm=arm, lr=lr, seed=seed, steps=steps) for lr in rates]
        about, scores = f"{share.percent}, {arm.name}", list[float]()
        for cell in cells:
            try:
                scores.append(self.train(cell, kept, held))
            except Diverged:
                if cell is cells[-1] and max(scores, default=-1) < 0:
                    raise
                scores.append(-1)
        best = cells[scores.index(max(scores))]
        if len(rates) > 1:
            told = ["diverged" if score < 0 else f"{score:.1%}" for score in scores]
            tried = ", ".join(f"{lr:g}: {score}" for lr, score in zip(rates, told, strict=True))
            self.talk.say(f"{about}: learning rate {best.lr:g} (on held-out labels {tried})")
        if not checked:
            return best.lr, None
        half = dataclasses.replace(best, name=f"{best.name}-half", steps=steps // 2)
        self.train(half, kept, held)
        found = Convergence.of(steps, self.correct(half, held), self.correct(best, held))
        self.talk.say(f"{about}: {found.words}")
        return best.lr, found

    def correct(self, cell: Cell, part: Part) -> Tensor:
        """Return which images of `part` a finished cell classifies correctly: bool [N]."""
        run = runs.open_run(self.folder(cell))
        network = networks.load_network(run, features=None, device=self.training.device)
        return networks.class_scores(network, part.pixels).argmax(dim=1) == part.labels

    def train(self, cell: Cell, labelled: Part, test: Part) -> float:
        """Train or resume a cell, unless it is finished. Return its accuracy on `test`, 0..1."""
        here, folder = group(), self.folder(cell)
        known = here.from_first(known_accuracy(folder) if here.first else None)
        if known is not None:
            return known
        asked = {"cell": cell.name, "lr": cell.lr, "seed": cell.seed}
        derived = {**cell.arm.shape, **dataclasses.asdict(self.fitted), "steps": cell.steps}
        if here.first and (folder / "config.json").is_file():
            runs.open_to_resume(str(folder), "finetune-cell")
        elif here.first:
            runs.create(folder, verb="finetune-cell", asked=asked, derived=derived)
        here.wait()
        run = runs.open_run(folder)
        module, step = self.trained(cell, labelled)
        for buffer in module.buffers():  # evaluate the network that is saved
            here.copied_from_first(buffer)
        network = networks.Network(module.eval(), self.training.image_size, "penultimate", cell.arm.preprocessing)
        accuracy = here.from_first(topk_accuracy(networks.class_scores(network, test.pixels), test.labels))
        if here.first:
            networks.save_network(run, module.state_dict(), derived)
            write_json(folder / "results.json", {**asked, "accuracy": accuracy, "num_test": len(test.labels)})
            run.finish({"accuracy": accuracy, "micro_batch": step.micro_batch})
        here.wait()
        return accuracy

    def trained(self, cell: Cell, labelled: Part) -> tuple[AnyClassifier, Step]:
        """Train a cell's network, and return it with its training step."""
        training, run, arm = self.training, self.run, cell.arm
        torch.manual_seed(step_seed(cell.seed, 0))
        made, is_new = arm.make().to(training.device), arm.kind not in self.steps
        if is_new:
            self.steps[arm.kind] = made, *make_step(made, arm, training, self.fitted, self.talk)
        module, task, step = self.steps[arm.kind]
        module.load_state_dict(made.state_dict())
        step.forget()
        if arm.state is not None:
            try:
                module.take_over(arm.state)
            except RuntimeError as error:
                raise WeightsError(str(error)) from None
        if labelled.pixels.numel() <= SMALL:
            labelled = dataclasses.replace(labelled, pixels=labelled.pixels.to(training.device))
        batch_of_step = batches(task, labelled, cell.seed, self.fitted)
        with Prefetch(batch_of_step, device=training.device, end=cell.steps) as batch_of:
            if is_new:
                warm_up(step, batch_of(0), self.talk)
            plan = Plan(
                folder=self.folder(cell),
                steps=cell.steps,
                lr=cell.lr,
                warmup_steps=training.warmup_steps,
                seed=cell.seed,
                save_every=training.save_every,
                name=cell.name,
                log=training.log,
            )
            try:
                train(step, batch_of, plan, talk=self.talk)
            except Diverged as error:  # resuming cannot lower the rate, as networks would no longer be comparable
                again = f"selfie {run.verb} --overwrite --out {quote(str(run.path))} ..."
                raise Diverged(f"{error}. Start again: {again}") from None
        if step.micro_batch < self.fitted.micro_batch:  # memory ran out: the next cell tries the full micro-batch
            del self.steps[arm.kind]
        return module, step
