"""The one training loop. It knows no method: it is given batches and a loss, and keeps time, state and order."""

import contextlib
import json
import math
import os
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

import torch
from torch import Tensor, nn

from selfie_cli.errors import Stopped, TrainingError
from selfie_cli.files import json_line, write_json_lines
from selfie_cli.talk import Talk
from selfie_cli.training.schedule import cosine_with_warmup, step_seed
from selfie_cli.training.state import load_state, save_state

Batch = tuple[Tensor, ...]
LossOf = Callable[..., tuple[Tensor, dict[str, Tensor]]]


@dataclass(frozen=True, kw_only=True)
class Trained:
    """What a training came to: `step` in all, and what was measured since it was started or resumed."""

    step: int
    seconds: float
    images_per_second: float
    data_wait: float
    last: dict[str, float]


@contextlib.contextmanager
def signals_noted() -> Iterator[list[int]]:
    """Collect SIGINT and SIGTERM in a list instead of dying of them; a second one ends the process at once."""
    noted: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        noted.append(number)
        if len(noted) > 1:
            os._exit(128 + number)

    try:
        before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    except ValueError:  # not in the main thread: whoever runs us there handles signals
        yield noted
        return
    try:
        yield noted
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def cut_metrics(file: Path, step: int) -> dict[str, float]:
    """Drop the lines of metrics.jsonl that lie past `step`, and a last line that a kill cut short; returns the last."""
    if not file.exists():
        return {}
    kept: list[dict[str, float]] = []
    for line in file.read_text(encoding="utf-8").splitlines():
        with contextlib.suppress(ValueError):
            values = json.loads(line)
            if values["step"] <= step:
                kept.append(values)
    write_json_lines(file, kept)
    return {name: value for name, value in kept[-1].items() if name != "step"} if kept else {}


def train(
    module: nn.Module,
    optimizer: torch.optim.Optimizer,
    loss_of: LossOf,
    batch_of: Callable[[int], Batch],
    *,
    folder: Path,
    total: int,
    lr: float,
    warmup: int,
    seed: int,
    micro_batch: int,
    save_every: float,
    autocast: Callable[[], contextlib.AbstractContextManager[object]],
    talk: Talk,
    what: str,
    resume_hint: str,
    after_step: Callable[[float], None] = lambda done: None,
    watch: Callable[[], dict[str, float]] = dict,
) -> Trained:
    """Train `module` in place up to step `total`, continuing from `folder`/state if there is one.

    `batch_of(step)` gives a tuple of CPU tensors of equal length; `loss_of(*batch)` takes them on the module's device
    and gives a scalar mean loss and detached scalars to log. A batch larger than `micro_batch` goes through in pieces
    whose gradients are averaged. `after_step(share done)` follows each step of the optimizer; `watch()` looks at the
    network some twenty times and gives values for the next line of metrics.jsonl.

    Raises TrainingError if the loss is not finite, Stopped after SIGINT or SIGTERM; in both cases the last good state
    is on disk.
    """
    states = folder / "state"
    metrics_file = folder / "metrics.jsonl"
    step = load_state(states, module, optimizer, talk)
    last = cut_metrics(metrics_file, step)
    begun = saved = logged = time.perf_counter()
    waited = waited_in_all = 0.0
    sums: dict[str, Tensor] = {}
    watched: dict[str, float] = {}
    summed = num_images = 0
    device = next(module.parameters()).device
    module.train()

    with signals_noted() as signals, talk.track(what, total) as advance, metrics_file.open("a") as log:
        while step < total:
            torch.manual_seed(step_seed(seed, step))
            for group in optimizer.param_groups:
                group["lr"] = lr * cosine_with_warmup(step, total=total, warmup=warmup)

            asked_at = time.perf_counter()
            batch = batch_of(step)
            waited += time.perf_counter() - asked_at
            # Only now to the device: the copy queues behind the last step's work, which is no waiting for data.
            batch = tuple(tensor.to(device, non_blocking=True) for tensor in batch)

            optimizer.zero_grad(set_to_none=True)
            pieces = list(zip(*(tensor.split(micro_batch) for tensor in batch), strict=True))
            for piece in pieces:
                share = len(piece[0]) / len(batch[0])
                with autocast():
                    loss, extra = loss_of(*piece)
                (loss * share).backward()
                for name, value in {"loss": loss.detach(), **extra}.items():
                    sums[name] = sums.get(name, torch.zeros_like(value)) + value * share
            optimizer.step()
            step += 1
            after_step(step / total)
            if step % max(1, total // 20) == 0:
                watched = watch()
            summed += 1
            num_images += len(batch[0])

            now = time.perf_counter()
            # The last step is kept by whoever called us; it needs a state only if we are asked to stop right there.
            due = bool(signals) or (step < total and now - saved >= save_every)
            if due or step == total or (step % 10 == 0 and now - logged >= 1):
                means = {name: (value / summed).item() for name, value in sums.items()}  # waits for the device
                now = time.perf_counter()
                if not all(map(math.isfinite, means.values())):
                    raise TrainingError(not_finite("the loss", step, states))
                last = {
                    **means,
                    **watched,
                    "lr": optimizer.param_groups[0]["lr"],
                    "images_per_second": summed * len(batch[0]) / (now - logged),
                    "data_wait": waited / (now - logged),
                }
                log.write(json_line({"step": step, **last}) + "\n")
                log.flush()
                advance(step, note_of(last))
                waited_in_all += waited
                logged, waited, sums, watched, summed = now, 0.0, {}, {}, 0
            if (due or step == total) and not all(bool(p.isfinite().all()) for p in module.parameters()):
                raise TrainingError(not_finite("a weight", step, states))
            if due:
                save_state(states, step, module, optimizer)
                saved = time.perf_counter()
            if signals:
                raise Stopped(f"stopped after step {step:,}, nothing is lost. Go on with: {resume_hint}", signals[0])

    seconds = time.perf_counter() - begun
    return Trained(
        step=step,
        seconds=seconds,
        images_per_second=num_images / seconds,
        data_wait=waited_in_all / seconds,
        last=last,
    )


def not_finite(what: str, step: int, states: Path) -> str:
    kept = f"The last good state is in {states}" if states.exists() else "No state had been saved yet"
    return f"{what} is not a finite number by step {step}: try a lower --lr. {kept}"


def note_of(values: dict[str, float]) -> str:
    """The numbers that a user watches, on one line."""
    parts = [f"loss {values['loss']:.3f}"]
    if "pretext_accuracy" in values:
        parts.append(f"pretext {values['pretext_accuracy']:.1%} (chance {values['chance']:.1%})")
    parts.append(f"{values['images_per_second']:,.0f} images/s")
    parts.append(f"data wait {values['data_wait']:.0%}")
    return ", ".join(parts)
