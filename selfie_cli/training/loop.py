"""The training loop of pretraining and finetuning. It knows no methods: it takes batches and a step."""

import contextlib
import math
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

import torch

from selfie_cli.data.batches import Batch, step_seed
from selfie_cli.errors import Diverged, RunError, Stopped
from selfie_cli.signals import give_up, handled, is_alone, leave
from selfie_cli.talk import Talk
from selfie_cli.training.checkpoint import Saver, load_state, saved_states
from selfie_cli.training.distributed import Group
from selfie_cli.training.metrics import Metrics, open_metrics
from selfie_cli.training.schedule import cosine_with_warmup
from selfie_cli.training.step import Step

WATCH_STEPS = 50  # steps between two calls of `watch`, at least: each costs about a step


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A training of `steps` steps, whose states and metrics are in `folder`.

    The learning rate rises to `lr` over `warmup_steps`. `save_every` is in seconds. `name` is shown beside the progress
    bar. `log` is "tensorboard" or None.
    """

    folder: Path
    steps: int
    lr: float
    warmup_steps: int
    seed: int
    save_every: float
    name: str
    log: str | None = None


@dataclass(frozen=True, kw_only=True)
class Trained:
    """The number of steps, and what was measured since the training was started or resumed."""

    step: int
    seconds: float
    images_per_second: float
    data_wait: float
    last: dict[str, float]


def train(
    step_of: Step,
    batch_of: Callable[[int], Batch],
    plan: Plan,
    *,
    talk: Talk,
    watch: Callable[[], dict[str, float]] = dict,
) -> Trained:
    """Train as planned, continuing from the newest saved state if there is one.

    `batch_of(step)` returns this process's part of a batch, a tuple of tensors of equal length. `watch()` is called
    about twenty times in a long run, and at its end; it returns values for the next line of metrics.jsonl.

    Raises Diverged if the loss or the gradient is not finite, Stopped after SIGINT, SIGTERM or SIGHUP; in both cases
    the last good state is on disk. Raises TrainingError as `step_of` does.
    """
    group = step_of.group
    first_step = restore(step_of, plan, talk)
    timetable = Timetable(plan, group, first_step)
    step_of.module.train()
    with contextlib.ExitStack() as stack:
        signals = stack.enter_context(signals_noted())
        advance = stack.enter_context(talk.track(plan.name, plan.steps))
        metrics = stack.enter_context(
            open_metrics(plan.folder, first_step, group=group, advance=advance, tensorboard=plan.log == "tensorboard")
        )
        saver = stack.enter_context(Saver(plan.folder / "state"))
        for step in range(first_step + 1, plan.steps + 1):
            micro_batch = step_of.micro_batch
            take_step(step_of, batch_of, plan, step, metrics)
            if group.first and (step % max(WATCH_STEPS, plan.steps // 20) == 0 or step == plan.steps):
                metrics.watched = watch()
            stop, save, log = timetable.due(step, signals, metrics.begun, smaller=step_of.micro_batch < micro_batch)
            if log:
                means = metrics.means()
                check_finite(step_of, step, means, first_step, saver)
                metrics.write(step, means, step_of.optimizer.param_groups[0]["lr"])
                saver.check()
            if save or step == plan.steps:
                largest = torch.nn.utils.get_total_norm(step_of.module.parameters(), math.inf)  # one pass over weights
                if not largest.isfinite():
                    raise diverged("a weight", step, first_step, saver, group)
            if save:
                if group.first:
                    saver.save(step, step_of.module, step_of.optimizer, step_of.micro_batch)
                timetable.saved = time.perf_counter()
            if stop:
                saver.check(wait=True)
                group.wait()
                raise Stopped(f"stopped after step {step:,}, nothing is lost", stop)

    seconds = time.perf_counter() - timetable.begun
    return Trained(
        step=plan.steps,
        seconds=seconds,
        images_per_second=metrics.images / seconds,
        data_wait=metrics.data_wait / seconds,
        last=metrics.last,
    )


def take_step(step_of: Step, batch_of: Callable[[int], Batch], plan: Plan, step: int, metrics: Metrics) -> None:
    for each in step_of.optimizer.param_groups:
        each["lr"] = plan.lr * cosine_with_warmup(step - 1, total=plan.steps, warmup=plan.warmup_steps)
    # Dropout draws on the device while computing; processes must not draw the same numbers.
    torch.manual_seed(step_seed(plan.seed, step - 1, step_of.group.rank + 1))
    begun = time.perf_counter()
    batch = batch_of(step - 1)
    waited = time.perf_counter() - begun
    batch = step_of.on_device(batch)  # on a GPU it is there already, see `Prefetch`
    metrics.add(step_of(batch, step / plan.steps), len(batch[0]) * step_of.group.world, waited)


def restore(step_of: Step, plan: Plan, talk: Talk) -> int:
    """Load the newest saved state; returns its step, 0 if there is none."""
    states = plan.folder / "state"
    step, micro_batch = load_state(states, step_of.module, step_of.optimizer, talk)
    if micro_batch:
        step_of.set_micro_batch(micro_batch)
    if len(set(step_of.group.gather(step))) > 1:
        raise RunError(f"not all processes see the states in {states}: the run's folder must be on a shared disk")
    return step


class Timetable:
    """Decides when to stop, save and log: alike in all processes, although their clocks and signals differ."""

    def __init__(self, plan: Plan, group: Group, first_step: int) -> None:
        self.plan, self.group, self.first_step = plan, group, first_step
        self.begun = self.saved = time.perf_counter()
        self.agree_every = 1

    def due(self, step: int, signals: list[int], logged: float, *, smaller: bool) -> tuple[int, bool, bool]:
        """The signal to stop for (or 0), whether to save a state, and whether to log.

        `logged` is the time of the last log. `smaller` says that memory ran out: a state is saved, so that a resumed
        run uses smaller micro-batches from there on. At the end, one is saved if five seconds could be lost.
        """
        now, ends = time.perf_counter(), step == self.plan.steps
        stop = max(signals, default=0)
        save_every = min(5.0, self.plan.save_every) if ends else self.plan.save_every
        save = smaller or now - self.saved >= save_every
        log = ends or (step % 10 == 0 and now - logged >= 1)
        if self.group.world > 1:
            if step % self.agree_every and not ends:
                return 0, False, False
            found = self.group.gather((stop, save, log, (now - self.begun) / (step - self.first_step)))
            stop, save, log, slowest = map(max, zip(*found, strict=True))
            self.agree_every = 10 if slowest < 0.1 else 1  # a signal is answered within about a second
        return stop, save or stop > 0, log or save or stop > 0


def check_finite(step_of: Step, step: int, means: dict[str, float], first_step: int, saver: Saver) -> None:
    """Raise Diverged if a loss or a gradient since the last line of metrics was not finite."""
    spoiled = int(step_of.num_spoiled)
    if spoiled or not all(map(math.isfinite, means.values())):
        what = "the gradient" if math.isfinite(means["loss"]) else "the loss"
        raise diverged(what, step - max(0, spoiled - 1), first_step, saver, step_of.group)


def diverged(what: str, step: int, first_step: int, saver: Saver, group: Group) -> Diverged:
    """The error for a number that is not finite. A state whose next step is not finite is removed."""
    saver.check(wait=True)
    useless = first_step > 0 and step == first_step + 1
    if useless and group.first:
        shutil.rmtree(saver.folder / f"{first_step:08d}")
    group.wait()
    kept = saved_states(saver.folder)
    if useless:
        then = f"at once from the state of step {first_step:,}, which is removed"
    else:
        then = f"the last good state is {kept[-1]}" if kept else "no state had been saved yet"
    milder = "try a lower --lr, a longer --warmup-steps or --precision fp32"
    return Diverged(f"{what} is not a finite number in step {step:,}, {then}: {milder}")


@contextlib.contextmanager
def signals_noted() -> Iterator[list[int]]:
    """Collect SIGINT, SIGTERM and SIGHUP in a list; a second one ends the process at once.

    In other processes than the command line's, such as a notebook's, the second one raises KeyboardInterrupt instead. A
    repetition within a second is ignored: a terminal signals a whole job, and torchrun signals its processes again.
    """
    noted: list[int] = []
    first_at = 0.0
    is_ours = signal.getsignal(signal.SIGINT) is give_up or not is_alone()

    def note(number: int, frame: FrameType | None) -> None:
        nonlocal first_at
        if not noted:
            noted.append(number)
            first_at = time.monotonic()
        elif time.monotonic() - first_at > 1:
            if is_ours:
                leave(number, frame)
            raise KeyboardInterrupt(number)

    with handled(note):
        yield noted
