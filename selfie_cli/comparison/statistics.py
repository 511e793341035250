"""Statistics over seeds: means, spreads, paired gains, and whether longer training helps."""

import math
from collections.abc import Iterable, Sequence
from typing import Any

from torch import Tensor

from selfie_cli.comparison.labels import Share
from selfie_cli.comparison.results import FLAT, RISING, UNKNOWN, ArmResult, Convergence, Gain, Point
from selfie_cli.evaluation.metrics import mean_std, paired_interval

LEAST_GAIN = 0.005
"""A smaller gain from twice the steps counts as none."""
WIDEST_ERROR, FEWEST_HELD = 0.02, 50
"""With a larger standard error of that gain, or fewer held-out labels, no gain found does not mean flat."""


def convergence(steps: int, half: Tensor, whole: Tensor) -> Convergence:
    """Compare the network of half of the steps with the one of all.

    half, whole: bool [N], whether each classifies a held-out image correctly.
    """
    count = len(half)
    known = {"steps": steps, "num_held": count}
    if count < 2:
        return Convergence(**known, half=None, whole=None, error=None, verdict=UNKNOWN, words=UNKNOWN)
    difference = whole.double() - half.double()
    gain, error = difference.mean().item(), difference.std().item() / math.sqrt(count)
    before, after = half.double().mean().item(), whole.double().mean().item()
    if gain > max(LEAST_GAIN, error) and count >= FEWEST_HELD:
        verdict = RISING
    else:
        verdict = UNKNOWN if error > WIDEST_ERROR or count < FEWEST_HELD else FLAT
    words = (
        f"{verdict}: {before:.1%} after {steps // 2:,} steps, {after:.1%} after {steps:,} "
        f"({gain * 100:+.1f} ± {error * 100:.1f} points on {count:,} held-out labels)"
    )
    return Convergence(**known, half=before, whole=after, error=error, verdict=verdict, words=words)


def arm_result(name: str, accuracies: list[float], *, lr: float | None, **known: Any) -> ArmResult:
    mean, std = mean_std(accuracies)
    return ArmResult(name=name, lr=lr, accuracies=accuracies, mean=mean, std=std, **known)


def point_at(
    share: Share,
    arms: list[ArmResult],
    pairs: Iterable[tuple[str, str]],
    *,
    steps: int = 0,
    rates: Sequence[float] = (),
) -> Point:
    """The results of `arms` and the paired gains of each (arm, baseline) in `pairs`. Without steps: frozen features."""
    accuracies = {arm.name: arm.accuracies for arm in arms}
    checked = "; ".join(f"{arm.name} {arm.convergence.words}" for arm in arms if arm.convergence is not None)
    notes = [f"{arm.name}: {arm.called}." for arm in arms if arm.called]
    if checked:
        notes.append(f"Half of the steps and all of them, on held-out labels of the first seed: {checked}.")
    return Point(
        fraction=share.fraction,
        num_labels=share.num_labels,
        steps=steps,
        seeds=share.seeds,
        arms=arms,
        comparisons=[paired_gain(arm, baseline, accuracies) for arm, baseline in pairs],
        rates=list(rates),
        warnings=[warning for arm in arms if (warning := not_converged(arm))],
        notes=notes,
        frozen=not steps,
    )


def paired_gain(arm: str, baseline: str, accuracies: dict[str, list[float]]) -> Gain:
    gains = [after - before for before, after in zip(accuracies[baseline], accuracies[arm], strict=True)]
    mean, std = mean_std(gains)
    return Gain(arm=arm, baseline=baseline, gains=gains, mean=mean, std=std, interval=paired_interval(gains))


def not_converged(arm: ArmResult) -> str | None:
    """A warning, if an arm still gained at the end of its training."""
    found = arm.convergence
    if found is None or found.verdict != RISING:
        return None
    gained = ((found.whole or 0) - (found.half or 0)) * 100
    return (
        f"not converged: {arm.name} still gained {gained:+.1f} points from {found.steps // 2:,} to {found.steps:,} "
        f"steps; the gain may be one of speed. Train longer: --steps {2 * found.steps}"
    )
