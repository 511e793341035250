"""Settings shared by all networks of a comparison: options, the fit to this machine, and the number of steps."""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass

import torch

from selfie_cli.comparison.arms import Arm
from selfie_cli.comparison.labels import Part, Share
from selfie_cli.data.batches import IMAGE_ORDER, Batch, SampleOrder, make_batches
from selfie_cli.errors import UsageError
from selfie_cli.methods.supervised import Supervised
from selfie_cli.models.hybrid import AnyClassifier
from selfie_cli.runs import Run
from selfie_cli.talk import Talk
from selfie_cli.training.distributed import group
from selfie_cli.training.hardware import Pace, compiles, duration, fit, micro_batch_for, precisions
from selfie_cli.training.optimizers import make_optimizer
from selfie_cli.training.schedule import budget_seconds, num_steps
from selfie_cli.training.step import Step, check_pieces


@dataclass(frozen=True, kw_only=True)
class Training:
    """Training options of a comparison: all networks get the same batch, schedule and augmentation.

    `rates` are the learning rates to choose from. `check_length` asks whether more steps would help.
    """

    image_size: int
    device: torch.device
    batch_size: int
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
    tensorboard: bool

    @property
    def num_held_out(self) -> int:
        """Number of networks per arm and share that take all steps and are judged on held-out labels."""
        return len(self.rates) if len(self.rates) > 1 else int(self.check_length)


@dataclass(frozen=True, kw_only=True)
class Fitted:
    """Training settings that fit this machine. A run's config keeps them under the same names."""

    batch_size: int
    micro_batch: int
    precision: str
    compiles: bool
    processes: int
    image_order: int = 1  # of runs that do not say

    @classmethod
    def of(cls, run: Run) -> "Fitted":
        """Read it from a run's config. Raise UsageError if the run was started with more or fewer processes."""
        derived, names = run.derived, [field.name for field in dataclasses.fields(cls)]
        found = cls(**{name: derived[name] for name in names if name in derived})
        if found.processes != group().world:
            raise UsageError(f"{run.path} was started with {found.processes} processes: resume it with as many")
        return found


def usual_batch_size(image_size: int) -> int:
    """The default batch size: 128 up to 64 px, 512 above, and a multiple of the number of processes."""
    world = group().world
    return max(2, (128 if image_size <= 64 else 512) // world) * world


def make_step(
    module: AnyClassifier, arm: Arm, training: Training, fitted: Fitted, talk: Talk
) -> tuple[Supervised, Step]:
    """Return a task to train an arm's `module` on, and its training step. The training loop sets the learning rate."""
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
    """Return a function that gives this process's part of the batch of a step."""
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
    """Choose a micro-batch and a precision for all arms, by a trial on a batch of `part`.

    Also return the seconds that a step takes, their mean over arms.
    """
    size, world, device = training.batch_size, group().world, training.device
    if size % world:
        raise UsageError(f"a batch of {size} cannot be divided among {world} processes evenly")
    micro = training.micro_batch or size // world
    check_pieces(size // world, micro, 2)
    tried = precisions(device, training.precision, deterministic=training.deterministic)
    fitted = Fitted(
        batch_size=size,
        micro_batch=size // world,
        precision=tried[0],
        compiles=True,
        processes=world,
        image_order=IMAGE_ORDER,
    )
    kinds = [arm.kind for arm in arms]
    trials = {}
    for arm in {arm.kind: arm for arm in arms}.values():
        task, step = make_step(arm.make().to(device), arm, training, fitted, talk)
        batch = tuple(tensor.to(device) for tensor in batches(task, part, 0, fitted)(0))
        trials[arm.kind] = step, batch
    if not training.micro_batch and not training.deterministic:
        few = [(step, tuple(tensor[:4] for tensor in batch)) for step, batch in trials.values()]
        micro = min(micro_batch_for(step, sample, size // world) for step, sample in few)
    times, wanted = {}, [step for step, _ in trials.values() if step.compiled]
    for kind, (step, batch) in trials.items():  # all kinds take the precision of the first
        step.set_micro_batch(micro)
        times[kind] = fit(step, batch, tried, talk)
        tried, micro = [step.precision], step.micro_batch
    compiling = all(step.compiled for step in wanted)
    if wanted:
        torch.compiler.reset()  # gives back the memory of CUDA graphs
    fitted = dataclasses.replace(fitted, micro_batch=micro, precision=tried[0], compiles=compiling)
    return fitted, sum(times[kind] for kind in kinds) / len(kinds)


def plan_steps(shares: list[Share], num_arms: int, seconds_a_step: float, training: Training, talk: Talk) -> list[int]:
    """Return the number of steps for each share, and tell how long they take. A budget is for all networks together."""
    size, checked, steps, whole = training.batch_size, int(training.check_length), training.steps, 0.0
    networks = [num_arms * (len(share.seeds) + training.num_held_out) for share in shares]
    halves = num_arms * checked  # of each share
    if training.budget:
        lengths = sum(networks) + len(shares) * halves / 2
        steps = Pace(seconds_a_step * lengths).steps(budget_seconds(training.budget))
    found = []
    for share, count in zip(shares, networks, strict=True):
        length = num_steps(steps=steps, epochs=training.epochs, num_images=share.num_labels, batch_size=size)
        found.append(length)
        each = length * seconds_a_step
        in_all = each * (count + halves / 2)
        whole += in_all
        also = f" and {halves} of half as many" if checked else ""
        talk.say(
            f"{share.percent} of the labels: {count} networks of {length:,} steps{also} "
            f"({length * size / share.num_labels:.0f} epochs) at {size / seconds_a_step:,.0f} images/s: "
            f"about {duration(each)} each, {duration(in_all)} in all"
        )
    if len(shares) > 1:
        talk.say(f"the whole curve: about {duration(whole)}")
    return found
