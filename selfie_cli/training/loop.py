"""The one training loop. It knows no method: it is given batches and a loss, and keeps time, state and order."""

import contextlib
import json
import math
import os
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

import torch
from torch import Tensor

from selfie_cli.data.batches import step_seed
from selfie_cli.errors import Diverged, RunError, Stopped
from selfie_cli.files import json_line, naming, replacing, write_json_lines
from selfie_cli.signals import handled, leave
from selfie_cli.talk import Talk
from selfie_cli.training.checkpoint import load_state, save_state, saved_states
from selfie_cli.training.distributed import Group
from selfie_cli.training.schedule import cosine_with_warmup
from selfie_cli.training.step import Batch, Step
from selfie_cli.training.tensorboard import events

WATCH_STEPS = 50  # between two looks at the network, at least: each costs about a step


@dataclass(frozen=True, kw_only=True)
class Trained:
    """What a training came to: `step` in all, and what was measured since it was started or resumed."""

    step: int
    seconds: float
    images_per_second: float
    data_wait: float
    last: dict[str, float]


@dataclass(kw_only=True)
class Since:
    """What has come together since the last line of metrics.jsonl, or since `begun`."""

    begun: float
    waited: float = 0.0
    steps: int = 0
    sums: dict[str, Tensor] = field(default_factory=dict)
    watched: dict[str, float] = field(default_factory=dict)

    def add(self, values: dict[str, Tensor]) -> None:
        """What a step gives to log. It stays on the device, and nobody waits for it."""
        self.steps += 1
        for name, value in values.items():
            self.sums[name] = self.sums[name] + value if name in self.sums else value

    def means(self) -> dict[str, float]:
        """Waits for the device."""
        return {name: (total / self.steps).item() for name, total in self.sums.items()}


@contextlib.contextmanager
def signals_noted() -> Iterator[list[int]]:
    """Collect SIGINT, SIGTERM and SIGHUP in a list instead of dying of them; a second one ends the process at once.

    One that follows within a second is the same one: a terminal tells a whole job, and torchrun tells its processes.
    """
    noted: list[int] = []
    first_at = 0.0

    def note(number: int, frame: FrameType | None) -> None:
        nonlocal first_at
        if not noted:
            noted.append(number)
            first_at = time.monotonic()
        elif time.monotonic() - first_at > 1:
            leave(number, frame)

    with handled(note):
        yield noted


def cut_metrics(file: Path, step: int) -> dict[str, float]:
    """Drop the lines of metrics.jsonl that lie past `step`, and a last line that a kill cut short; returns the last."""
    if not file.exists():
        return {}
    kept: list[dict[str, float]] = []
    for line in file.read_text(encoding="utf-8", errors="replace").splitlines():
        with contextlib.suppress(ValueError, LookupError, TypeError, OverflowError, RecursionError):
            values = json.loads(line)
            if values["step"] <= step and all(map(math.isfinite, values.values())):
                kept.append(values)
    write_json_lines(file, kept)
    return {name: value for name, value in kept[-1].items() if name != "step"} if kept else {}


def train(
    step_of: Step,
    batch_of: Callable[[int], Batch],
    *,
    folder: Path,
    total: int,
    lr: float,
    warmup: int,
    seed: int,
    save_every: float,
    talk: Talk,
    what: str,
    resume_hint: str,
    watch: Callable[[], dict[str, float]] = dict,
    trace: Path | None = None,
    tensorboard: bool = False,
) -> Trained:
    """Take steps up to `total`, continuing from `folder`/state if there is one.

    `batch_of(step)` gives this process's part of a batch, a tuple of tensors of equal length. `watch()` looks at the
    network some twenty times in a long run, and at its end, and gives values for the next line of metrics.jsonl.
    `trace` names a file for what torch's profiler sees of a few steps. `tensorboard` asks for what goes to
    metrics.jsonl in `folder`/tensorboard, too.

    Raises Diverged if the loss or the gradient is not finite, Stopped after SIGINT, SIGTERM or SIGHUP; in both cases
    the last good state is on disk. Raises TrainingError as `step_of` does.
    """
    module, optimizer, group = step_of.module, step_of.optimizer, step_of.group
    states = folder / "state"
    metrics_file = folder / "metrics.jsonl"
    step, micro_batch = load_state(states, module, optimizer, talk)
    if micro_batch:
        step_of.set_micro_batch(micro_batch)
    if len(set(group.gather(step))) > 1:
        raise RunError(f"not all processes see the states in {states}: the run's folder must be on a shared disk")
    last = cut_metrics(metrics_file, step) if group.first else {}
    begun = saved = time.perf_counter()
    since, waited_in_all, num_images = Since(begun=begun), 0.0, 0
    first_step, look_every = step, 1
    module.train()

    with contextlib.ExitStack() as stack:
        signals = stack.enter_context(signals_noted())
        advance = stack.enter_context(talk.track(what, total))
        log = (metrics_file if group.first else Path(os.devnull)).open("a")
        stack.callback(naming(metrics_file)(log.close))  # it tries once more what could not be written
        also_log = stack.enter_context(events(folder / "tensorboard" if tensorboard and group.first else None, step))
        profiled = stack.enter_context(profiler(trace if group.first else None, total - step, step_of.device, talk))
        while step < total:
            # What is drawn while computing is dropout; processes must not draw the same.
            torch.manual_seed(step_seed(seed, step, group.rank + 1))
            for each in optimizer.param_groups:
                each["lr"] = lr * cosine_with_warmup(step, total=total, warmup=warmup)

            asked_at = time.perf_counter()
            batch = batch_of(step)
            since.waited += time.perf_counter() - asked_at
            # Only now to the device: the copy queues behind the last step's work, which is no waiting for data.
            batch = tuple(tensor.to(step_of.device, non_blocking=step_of.device.type == "cuda") for tensor in batch)
            step += 1
            micro_batch = step_of.micro_batch
            since.add(step_of(batch, step / total))
            profiled()
            if (step % max(WATCH_STEPS, total // 20) == 0 or step == total) and group.first:
                since.watched = watch()
            images = len(batch[0]) * group.world
            num_images += images

            now = time.perf_counter()
            # The last step is kept by whoever called us; it needs a state only if we are asked to stop right there.
            stop = max(signals, default=0)
            # What was computed in larger pieces must not be so again, in smaller ones.
            due = step < total and (now - saved >= save_every or step_of.micro_batch < micro_batch)
            told = step == total or (step % 10 == 0 and now - since.begun >= 1)
            if group.world > 1:  # clocks and signals differ, what is done about them must not
                if step % look_every and step < total:
                    continue
                microseconds = int(1e6 * (now - begun) / (step - first_step))
                highest = group.highest(stop, due, told, microseconds)
                stop, due, told = highest[0], highest[1] > 0, highest[2] > 0
                look_every = 10 if highest[3] < 100_000 else 1  # whoever asks us to stop does not wait for long
            due = due or stop > 0
            if due or told:
                means = group.mean(since.means())
                waited = group.longest(since.waited)
                now = time.perf_counter()
                if (spoiled := int(step_of.num_spoiled)) or not all(map(math.isfinite, means.values())):
                    what = "the gradient" if math.isfinite(means["loss"]) else "the loss"
                    raise diverged(what, step - max(0, spoiled - 1), first_step, states, group)
                last = {
                    **means,
                    **since.watched,
                    "lr": optimizer.param_groups[0]["lr"],
                    "images_per_second": since.steps * images / (now - since.begun),
                    "data_wait": waited / (now - since.begun),
                }
                with naming(metrics_file):
                    log.write(json_line({"step": step, **last}) + "\n")
                    log.flush()
                also_log(step, last)
                advance(step, note_of(last))
                waited_in_all += waited
                since = Since(begun=now)
            if (due or step == total) and not all(bool(p.isfinite().all()) for p in module.parameters()):
                raise diverged("a weight", step, first_step, states, group)
            if due:
                if group.first:
                    save_state(states, step, module, optimizer, step_of.micro_batch)
                group.wait()
                saved = time.perf_counter()
            if stop:
                raise Stopped(f"stopped after step {step:,}, nothing is lost. Resume with: {resume_hint}", stop)

    seconds = time.perf_counter() - begun
    return Trained(
        step=step,
        seconds=seconds,
        images_per_second=num_images / seconds,
        data_wait=waited_in_all / seconds,
        last=last,
    )


@contextlib.contextmanager
def profiler(trace: Path | None, steps: int, device: torch.device, talk: Talk) -> Iterator[Callable[[], None]]:
    """A function to call after each step: the fourth to the eighth are traced into a file that browsers show."""
    if trace is not None and steps < 8:
        talk.warn(f"--profile traces the fourth to the eighth step, and there are {steps}: nothing is traced")
    if trace is None or steps < 8:
        yield lambda: None
        return
    os.environ.setdefault("KINETO_LOG_LEVEL", "5")  # it would tell of GPUs that are not there
    activities = [torch.profiler.ProfilerActivity.CPU]
    if device.type == "cuda":
        activities.append(torch.profiler.ProfilerActivity.CUDA)

    def write(profile: torch.profiler.profile) -> None:
        with replacing(trace) as temporary:
            profile.export_chrome_trace(str(temporary))
        key = "self_device_time_total" if device.type == "cuda" else "self_cpu_time_total"  # microseconds
        totals = {event.key: (getattr(event, key), event.count) for event in profile.key_averages()}
        totals = {name: found for name, found in totals.items() if not name.startswith("ProfilerStep")}
        whole = sum(time for time, _ in totals.values())
        for name, (spent, calls) in sorted(totals.items(), key=lambda item: -item[1][0])[:12]:
            talk.say(f"{spent / whole:6.1%} {spent / 5000:9.2f} ms a step, {calls / 5:6.0f} calls  {name[:80]}")
        talk.say(f"five steps are traced in {trace}: open it in https://ui.perfetto.dev or chrome://tracing")

    schedule = torch.profiler.schedule(wait=2, warmup=1, active=5, repeat=1)
    with torch.profiler.profile(activities=activities, schedule=schedule, on_trace_ready=write) as profile:
        yield profile.step


def diverged(what: str, step: int, first_step: int, states: Path, group: Group) -> Diverged:
    """The error for a number that is not finite in `step`. A state that led there at once is of no use, and removed."""
    useless = first_step > 0 and step == first_step + 1
    if useless and group.first:
        shutil.rmtree(states / f"{first_step:08d}")
    group.wait()
    kept = saved_states(states)
    if useless:
        then = f"at once from the state of step {first_step:,}, which is removed"
    else:
        then = f"the last good state is {kept[-1]}" if kept else "no state had been saved yet"
    milder = "try a lower --lr, a longer --warmup-steps or --precision fp32"
    return Diverged(f"{what} is not a finite number in step {step:,}, {then}: {milder}")


def note_of(values: dict[str, float]) -> str:
    """The numbers that a user watches, on one line."""
    parts = [f"loss {values['loss']:.3f}"]
    if "pretext_accuracy" in values:
        parts.append(f"pretext {values['pretext_accuracy']:.1%} (chance {values['chance']:.1%})")
    parts.append(f"{values['images_per_second']:,.0f} images/s")
    parts.append(f"data wait {values['data_wait']:.0%}")
    return ", ".join(parts)
