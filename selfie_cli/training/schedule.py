"""How long, how fast, in which order."""

import math
import re

import numpy as np
import torch
from torch import Tensor

from selfie_cli.errors import UsageError


def cosine_with_warmup(step: int, *, total: int, warmup: int) -> float:
    """Share of the maximum learning rate at a step (0-based): linear up over `warmup` steps, then a cosine to 0.

    A run shorter than two warm-ups warms up over half of its length.
    """
    warmup = min(warmup, total // 2)
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, total - warmup)))


def check_length(*, steps: int | None, epochs: float | None, budget: str | None) -> None:
    """Raises UsageError if more than one length is given, or the budget is no time."""
    if sum(length is not None for length in (steps, epochs, budget)) > 1:
        raise UsageError("give one length: --steps, --epochs or --budget")
    if budget is not None:
        seconds(budget)


def num_steps(
    *,
    steps: int | None,
    epochs: float | None,
    budget: str | None,
    num_images: int,
    batch_size: int,
    step_seconds: float,
) -> int:
    """Length in steps: as asked, or 100 epochs but at least 2,000 and at most 120,000 steps.

    A `budget` of time is fitted to `step_seconds`. Raises UsageError as `check_length` does.
    """
    check_length(steps=steps, epochs=epochs, budget=budget)
    if budget is not None:
        return max(1, int(seconds(budget) / step_seconds))
    if steps is not None:
        return max(1, steps)
    if epochs is not None:
        return max(1, round(epochs * num_images / batch_size))
    return min(120_000, max(2_000, round(100 * num_images / batch_size)))


def seconds(budget: str) -> float:
    """'90s', '20m', '2h' or '1.5h' in seconds."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([smh])\s*", budget)
    if match is None or float(match[1]) == 0:
        raise UsageError(f"--budget {budget!r}: expected a time such as 90s, 20m or 2h")
    return float(match[1]) * {"s": 1, "m": 60, "h": 3600}[match[2]]


def step_seed(seed: int, step: int) -> int:
    """A 63-bit seed for all random draws of one step."""
    return int(np.random.SeedSequence([seed, step]).generate_state(1, np.uint64)[0] >> 1)


class SampleOrder:
    """Which images a step sees: an endless row of shuffles of all images, cut into batches.

    A function of (seed, step), so a run can be resumed anywhere. Every image comes equally often, and a set smaller
    than a batch simply comes several times in it.
    """

    def __init__(self, num_images: int, batch_size: int, seed: int) -> None:
        self.num_images = num_images
        self.batch_size = batch_size
        self.seed = seed
        self._epoch = -1
        self._order = np.empty(0, dtype=np.int64)

    def _shuffled(self, epoch: int) -> np.ndarray:
        if epoch != self._epoch:
            self._order = np.random.default_rng([self.seed, epoch, 0x0DE5]).permutation(self.num_images)
            self._epoch = epoch
        return self._order

    def batch(self, step: int) -> Tensor:
        """Indices of the images of a step: int64 [batch_size]."""
        position, end = step * self.batch_size, (step + 1) * self.batch_size
        parts = []
        while position < end:
            epoch, offset = divmod(position, self.num_images)
            count = min(end - position, self.num_images - offset)
            parts.append(self._shuffled(epoch)[offset : offset + count])
            position += count
        return torch.from_numpy(np.concatenate(parts))
