"""The length of a training in steps, and the learning rate at each step."""

import math
import re

from selfie_cli.errors import UsageError

MOST_SECONDS = 1e9
"""Longest budget: 30 years."""


def cosine_with_warmup(step: int, *, total: int, warmup: int) -> float:
    """Share of the maximum learning rate at a step (0-based): linear up in the warm-up, then a cosine to 0."""
    warmup = warmup_of(warmup, total)
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, total - warmup)))


def warmup_of(asked: int, total: int) -> int:
    """Number of warm-up steps: as asked, but at most half of all steps."""
    return min(asked, total // 2)


def check_lengths(*, steps: int | None, epochs: float | None, budget: str | None, deterministic: bool = False) -> None:
    """Raise UsageError for more than one length, a budget that is not a time, or a budget in a deterministic run."""
    if budget is not None and deterministic:
        raise UsageError("--budget depends on measured speed: with --deterministic give --steps")
    if sum(length is not None for length in (steps, epochs, budget)) > 1:
        raise UsageError("give one length: --steps, --epochs or --budget")
    if budget is not None:
        budget_seconds(budget)


def num_steps(
    *, steps: int | None, epochs: float | None, num_images: int, batch_size: int, least_images: int = 0
) -> int:
    """Length in steps: as asked, or 100 epochs, but at least 2,000 steps and `least_images`, at most 120,000 steps."""
    if steps is not None:
        return steps
    if epochs is not None:
        return max(1, round(epochs * num_images / batch_size))
    return min(120_000, max(2_000, round(max(100 * num_images, least_images) / batch_size)))


def budget_seconds(budget: str) -> float:
    """'90s', '20m', '2h' or '1.5h' in seconds."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([smh])\s*", budget)
    found = float(match[1]) * {"s": 1, "m": 60, "h": 3600}[match[2]] if match else 0
    if not 0 < found <= MOST_SECONDS:
        raise UsageError(f"--budget {budget[:30]!r}: expected a time such as 90s, 20m or 2h")
    return found
