"""Trains one network after another. A cell is one network of the grid of arms, shares and seeds, with its own run."""

import contextlib
import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from shlex import quote

import torch
from torch import Tensor

from selfie_cli import runs
from selfie_cli.comparison.arms import Arm
from selfie_cli.comparison.labels import Part, Share, take
from selfie_cli.comparison.results import Convergence
from selfie_cli.comparison.settings import Fitted, Training, batches, make_step
from selfie_cli.comparison.statistics import convergence
from selfie_cli.data import splits
from selfie_cli.data.augment import plain_view
from selfie_cli.data.batches import Prefetch, step_seed
from selfie_cli.data.pixels import SMALL
from selfie_cli.errors import Diverged, RunError, WeightsError
from selfie_cli.evaluation.metrics import topk_accuracy
from selfie_cli.files import read_json, write_json
from selfie_cli.inference import networks
from selfie_cli.methods.supervised import Supervised
from selfie_cli.models.hybrid import AnyClassifier
from selfie_cli.runs import Run
from selfie_cli.talk import Talk
from selfie_cli.training.distributed import group
from selfie_cli.training.hardware import warm_up
from selfie_cli.training.loop import Plan, train
from selfie_cli.training.step import Step


def known_accuracy(file: Path) -> float:
    """Return the accuracy of a finished cell, 0..1. Raise RunError if the file is damaged."""
    try:
        accuracy = read_json(file)["accuracy"]
        if not 0 <= accuracy <= 1:
            raise ValueError(f"an accuracy of {accuracy}")
        return float(accuracy)
    except (ValueError, LookupError, TypeError) as error:
        raise RunError(f"{file} is damaged ({error}): remove {file.parent}, and resume to train it again") from None


@contextlib.contextmanager
def start_anew_after_divergence(run: Run) -> Iterator[None]:
    """Add the command to Diverged: resuming does not help, as the rate stays so that networks can be compared."""
    try:
        yield
    except Diverged as error:
        raise Diverged(
            f"{error}. Start again: selfie {run.verb} --overwrite --out {quote(str(run.path))} ..."
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
    """Trains the cells of a run, and looks up those that are finished.

    `steps` holds a network of each kind of arm, and its training step: cells take turns on it, so that it is compiled
    once, and memory of CUDA graphs, which is never given back, is taken once.
    """

    run: Run
    training: Training
    fitted: Fitted
    talk: Talk
    steps: dict[str, tuple[AnyClassifier, Supervised, Step]] = dataclasses.field(default_factory=dict)

    def folder(self, cell: Cell) -> Path:
        return self.run.path / "cells" / cell.name

    def tune(self, arm: Arm, share: Share, steps: int, labelled: Part) -> tuple[float, Convergence | None]:
        """Choose an arm's learning rate, and find whether it has converged after `steps`.

        Both use held-out labels of `labelled`, the images of the share's first seed, and never test images.
        """
        rates, seed = self.training.rates, share.seeds[0]
        checked = self.training.check_length and steps > 1
        if len(rates) == 1 and not checked:
            return rates[0], None
        kept, held = (
            take(labelled, each) for each in splits.hold_out(labelled.labels.numpy(), splits.HELD_OUT_SHARE, seed)
        )
        if not len(held.labels):  # one label per class, for which several rates are refused
            return rates[0], convergence(steps, held.labels, held.labels)
        before = "search" if self.run.verb == "finetune" else f"search-f{share.fraction:g}"
        cells = [Cell(name=f"{before}-{arm.name}-lr{lr:g}", arm=arm, lr=lr, seed=seed, steps=steps) for lr in rates]
        scores = [self.train(cell, kept, held) for cell in cells]
        best = cells[scores.index(max(scores))]
        about = f"{share.percent}, {arm.name}"
        if len(rates) > 1:
            tried = ", ".join(f"{lr:g}: {score:.1%}" for lr, score in zip(rates, scores, strict=True))
            self.talk.say(f"{about}: learning rate {best.lr:g} (on held-out labels {tried})")
        if not checked:
            return best.lr, None
        half = dataclasses.replace(best, name=f"{best.name}-half", steps=steps // 2)
        self.train(half, kept, held)
        found = convergence(steps, self.correct(half, held), self.correct(best, held))
        self.talk.say(f"{about}: {found.words}")
        return best.lr, found

    def correct(self, cell: Cell, part: Part) -> Tensor:
        """Return which images of `part` a finished cell classifies correctly: bool [N]."""
        run = runs.open_run(self.folder(cell))
        network = networks.load_network(run, features=None, device=self.training.device)
        return networks.class_scores(network, part.pixels).argmax(dim=1) == part.labels

    def train(self, cell: Cell, labelled: Part, test: Part) -> float:
        """Train a network, continue an earlier attempt or look it up; return its accuracy on `test`, 0..1."""
        here, folder = group(), self.folder(cell)
        if here.from_first((folder / "results.json").is_file()):
            accuracy = known_accuracy(folder / "results.json")
            run = runs.open_run(folder)
            if here.first and (not run.finished or (folder / "state").exists()):  # killed before it was marked
                run.finish({"accuracy": accuracy})
            return accuracy
        asked = {"cell": cell.name, "lr": cell.lr, "seed": cell.seed}
        derived = {**cell.arm.shape, **dataclasses.asdict(self.fitted), "steps": cell.steps}
        if here.first and (folder / "config.json").is_file():
            runs.open_to_resume(str(folder), "finetune-cell")
        elif here.first:
            runs.create(folder, verb="finetune-cell", asked=asked, derived=derived)
        here.wait()
        run = runs.open_run(folder)
        module, step = self.trained(cell, labelled)
        here.share_buffers(module)  # the network that is kept is the one that is judged
        network = networks.Network(module.eval(), self.training.image_size, "penultimate", cell.arm.preprocessing)
        accuracy = here.from_first(topk_accuracy(networks.class_scores(network, test.pixels), test.labels))
        if here.first:
            networks.save_classifier(run, module, derived)
            write_json(folder / "results.json", {**asked, "accuracy": accuracy, "num_test": len(test.labels)})
            run.finish({"accuracy": accuracy, "micro_batch": step.micro_batch})
        here.wait()
        return accuracy

    def fresh(self, arm: Arm) -> tuple[AnyClassifier, Supervised, Step]:
        """Return a freshly initialized network of an arm, with a task and a training step on it."""
        made = arm.make().to(self.training.device)
        if arm.kind not in self.steps:
            self.steps[arm.kind] = made, *make_step(made, arm, self.training, self.fitted, self.talk)
        module, task, step = self.steps[arm.kind]
        module.load_state_dict(made.state_dict())
        step.forget()
        return module, task, step

    def trained(self, cell: Cell, labelled: Part) -> tuple[AnyClassifier, Step]:
        """Return a cell's network at the end of its training, and its training step."""
        training, run, preprocessing = self.training, self.run, cell.arm.preprocessing
        torch.manual_seed(step_seed(cell.seed, 0))
        is_new = cell.arm.kind not in self.steps
        module, task, step = self.fresh(cell.arm)
        if cell.arm.state is not None:
            try:
                module.take_over(cell.arm.state)
            except RuntimeError as error:
                raise WeightsError(str(error)) from None
            networks.estimate_batch_norm(
                module, lambda pixels: module(plain_view(pixels, training.image_size, preprocessing)), labelled.pixels
            )
        if labelled.pixels.numel() <= SMALL:
            labelled = dataclasses.replace(labelled, pixels=labelled.pixels.to(training.device))
        batch_of_step = batches(task, labelled, cell.seed, self.fitted)
        with (
            Prefetch(batch_of_step, device=training.device, end=cell.steps) as batch_of,
            start_anew_after_divergence(run),
        ):
            if is_new:
                warm_up(step, tuple(tensor.to(training.device) for tensor in batch_of(0)), self.talk)
            plan = Plan(
                folder=self.folder(cell),
                steps=cell.steps,
                lr=cell.lr,
                warmup=training.warmup_steps,
                seed=cell.seed,
                save_every=training.save_every,
                name=cell.name,
                resume_hint=group().resume_command(run.verb, run.path),
                tensorboard=training.tensorboard,
            )
            train(step, batch_of, plan, talk=self.talk)
        if step.micro_batch < self.fitted.micro_batch:  # memory ran out: the next cell tries anew
            del self.steps[cell.arm.kind]
        return module, step
