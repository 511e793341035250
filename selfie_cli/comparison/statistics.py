"""Statistics over seeds: means, spreads, paired gains, whether longer training helps, and sentences about them."""

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor

from selfie_cli.evaluation.metrics import mean_std, paired_interval

Interval = tuple[float, float]

RISING, FLAT, UNKNOWN = "still rising", "flat", "too few held-out labels to tell"
LEAST_GAIN = 0.005
"""A smaller gain from twice the steps counts as none."""
WIDEST_ERROR, FEWEST_HELD = 0.02, 50
"""With a larger standard error of that gain, or fewer held-out labels, no gain found does not mean flat."""


@dataclass(frozen=True, kw_only=True)
class Convergence:
    """Whether an arm still gains at the end of its training.

    Two networks of the first seed are trained on four fifths of its labels, one for half of the `steps`, one for all,
    and judged on the `num_held` labels that were held out. `half` and `whole` are their accuracies (0..1), `error` is
    the paired standard error of the difference. `words` say the same in one clause.
    """

    steps: int
    num_held: int
    half: float | None
    whole: float | None
    error: float | None
    verdict: str
    words: str


def convergence(steps: int, half: Tensor, whole: Tensor) -> Convergence:
    """`half`, `whole`: bool [N], whether each held-out label was found after half of the steps, and after all."""
    count = len(half)
    if count < 2:
        nothing = {"half": None, "whole": None, "error": None}
        return Convergence(steps=steps, num_held=count, verdict=UNKNOWN, words=UNKNOWN, **nothing)
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
    return Convergence(steps=steps, num_held=count, half=before, whole=after, error=error, verdict=verdict, words=words)


@dataclass(frozen=True, kw_only=True)
class ArmResult:
    """Accuracies (0..1) of one way to initialize, a seed each; `std` is None for a single seed.

    `called` says in words what pretrained it. `convergence` is None where it was not checked.
    """

    name: str
    lr: float
    accuracies: list[float]
    mean: float
    std: float | None
    called: str = ""
    convergence: Convergence | None = None


@dataclass(frozen=True, kw_only=True)
class Gain:
    """An arm's accuracies minus a baseline's, paired by seed, in 0..1; an interval needs three seeds."""

    arm: str
    baseline: str
    gains: list[float]
    mean: float
    std: float | None
    interval: Interval | None


@dataclass(frozen=True, kw_only=True)
class Point:
    """The results with one share of the labels.

    `rates` are the learning rates that each arm chose from. `warnings` name the arms that have not converged. `notes`
    say in words what pretrained each arm, and how it did with half of the steps.
    """

    fraction: float
    num_labels: int
    steps: int
    seeds: list[int]
    arms: list[ArmResult]
    comparisons: list[Gain]
    rates: list[float] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class Finetuned(Point):
    """What `finetune` found. `gains` are the first of the comparisons: pretrained minus the same network without."""

    run: Path
    dataset: str
    num_test: int
    num_classes: int
    left_out: dict[str, int] = field(default_factory=dict)
    gains: list[float] | None
    gain_mean: float | None
    gain_std: float | None
    gain_interval: Interval | None
    sentence: str


@dataclass(frozen=True, kw_only=True)
class Curve:
    """What `curve` found: a point for each share of the labels, all with the same arms, and a sentence for each arm.

    `remarks` say of an arm what its reader must know: that it is another network. `notes` are those of all points.
    """

    run: Path
    dataset: str
    num_test: int
    num_classes: int
    left_out: dict[str, int]
    points: list[Point]
    remarks: dict[str, str]
    sentences: list[str]
    plots: list[str]
    notes: list[str] = field(default_factory=list)


def arm_result(name: str, lr: float, accuracies: list[float], called: str, found: Convergence | None) -> ArmResult:
    mean, std = mean_std(accuracies)
    return ArmResult(name=name, lr=lr, accuracies=accuracies, mean=mean, std=std, called=called, convergence=found)


def point(
    *,
    fraction: float,
    num_labels: int,
    steps: int,
    seeds: list[int],
    rates: list[float],
    arms: list[ArmResult],
    pairs: Iterable[tuple[str, str]],
) -> Point:
    """The results of `arms`, and the paired gains of each (arm, baseline) in `pairs`."""
    accuracies = {arm.name: arm.accuracies for arm in arms}
    comparisons = []
    for arm, baseline in pairs:
        gains = [after - before for before, after in zip(accuracies[baseline], accuracies[arm], strict=True)]
        mean, std = mean_std(gains)
        interval = paired_interval(gains)
        comparisons.append(Gain(arm=arm, baseline=baseline, gains=gains, mean=mean, std=std, interval=interval))
    return Point(
        fraction=fraction,
        num_labels=num_labels,
        steps=steps,
        seeds=seeds,
        arms=arms,
        comparisons=comparisons,
        rates=rates,
        warnings=unconverged(arms),
        notes=[*(f"{arm.name}: {arm.called}." for arm in arms if arm.called), *lengths(arms)],
    )


def unconverged(arms: list[ArmResult]) -> list[str]:
    """A line for each arm that still gained at the end of its training."""
    found = [(arm.name, arm.convergence) for arm in arms if arm.convergence and arm.convergence.verdict == RISING]
    return [
        f"not converged: {name} still gained {((each.whole or 0) - (each.half or 0)) * 100:+.1f} points from "
        f"{each.steps // 2:,} to {each.steps:,} steps; the gain may be one of speed. Train longer: "
        f"--steps {2 * each.steps}"
        for name, each in found
    ]


def notes_of(points: list[Point]) -> list[str]:
    """The warnings and notes of all shares, each once, with the shares that it is about."""
    shares: dict[str, list[str]] = {}
    for each in points:
        for note in [*each.warnings, *each.notes]:
            shares.setdefault(note, []).append(share_of(each))
    return [note if len(of) == len(points) else f"At {', '.join(of)}: {note}" for note, of in shares.items()]


def lengths(arms: list[ArmResult]) -> list[str]:
    """A line that says how each arm did with half of the steps."""
    words = "; ".join(f"{arm.name} {arm.convergence.words}" for arm in arms if arm.convergence is not None)
    return [f"Half of the steps and all of them, on held-out labels of the first seed: {words}."] if words else []


def conditions(points: list[Point], index: int | None = None) -> str:
    """The length of training, the search of rates and convergence in one sentence, as results are quoted alone.

    It is about all arms, or about those of comparison `index`.
    """
    lengths = sorted({each.steps for each in points})
    steps = " to ".join(f"{each:,}" for each in dict.fromkeys((lengths[0], lengths[-1])))
    gain = None if index is None else points[0].comparisons[index]
    arms = [(p, arm) for p in points for arm in p.arms if gain is None or arm.name in (gain.arm, gain.baseline)]
    tried = f"learning rate {arms[0][1].lr:g}, not searched"
    if len(rates := points[0].rates) > 1:
        tried = f"each arm's learning rate chosen among {', '.join(f'{lr:g}' for lr in rates)} on held-out labels"
    of: dict[str, list[str]] = {}
    for p, arm in arms:
        name = arm.name if len(points) == 1 else f"{arm.name} at {share_of(p)}"
        of.setdefault(arm.convergence.verdict if arm.convergence else "", []).append(name)
    if RISING in of:
        converged = f"not converged: {', '.join(of[RISING])} still rose, so the gain may be one of speed"
    elif "" in of:
        converged = "whether more steps would help was not checked"
    elif UNKNOWN in of:
        converged = f"convergence: {UNKNOWN}"
    else:
        converged = "no arm was found to gain from the last doubling of the steps"
    return f"{steps} steps per network; {tried}; {converged}."


def share_of(found: Point) -> str:
    return f"{found.fraction * 100:.3g} %"


def summarize(found: Point, *, run: Path, dataset: str, num_test: int, num_classes: int) -> Finetuned:
    """With the sentences that say what the comparisons mean."""
    first = found.comparisons[0] if found.comparisons else None
    return Finetuned(
        **vars(found),
        run=run,
        dataset=dataset,
        num_test=num_test,
        num_classes=num_classes,
        gains=first.gains if first else None,
        gain_mean=first.mean if first else None,
        gain_std=first.std if first else None,
        gain_interval=first.interval if first else None,
        sentence=f"{verdict(found)} {conditions([found])}",
    )


def verdict(found: Point) -> str:
    """A sentence for each comparison, for people who read nothing else."""
    share = f"{found.fraction * 100:.3g} % of the labels" if found.fraction < 1 else "all labels"
    arm = found.arms[-1]
    if not found.comparisons:
        return f"{titled(arm.name)} with {share}: {arm.mean:.1%}; without a second arm there is nothing to compare."
    sentences = []
    for gain in found.comparisons:
        several = len(found.comparisons) > 1
        over = f" over {gain.baseline}" if several else ""
        if gain.interval is None:
            sentences.append(
                f"{titled(arm.name)} with {share}{over}: {span(gain)}; "
                "three seeds or more would say whether that is more than chance (--seeds 3)."
            )
        elif effect := effect_of(gain.interval):
            sentences.append(f"{titled(arm.name)} {effect} with {share}{over}: {span(gain)}.")
        else:
            other = gain.baseline if several else "no pretraining"
            sentences.append(f"No difference was found between {arm.name} and {other} with {share}: {span(gain)}.")
    return " ".join(sentences)


def curve_sentence(points: list[Point], index: int, remark: str = "") -> str:
    """What was found of comparison `index` at each point, in one sentence; `remark` is what its reader must know."""
    clauses = []
    for each in points:
        gain, at = each.comparisons[index], f"at {each.fraction * 100:.3g} %"
        if gain.interval is None:
            clauses.append(f"{at} {span(gain)}, too few to say whether that is chance")
        elif effect := effect_of(gain.interval):
            clauses.append(f"{at} it {effect} ({span(gain)})")
        else:
            clauses.append(f"{at} no difference was found ({span(gain)})")
    arm = titled(points[0].comparisons[index].arm)
    return f"{arm}{f' ({remark})' if remark else ''}: {'; '.join(clauses)}. {conditions(points, index)}"


def spreads(points: list[Point]) -> dict[str, list[tuple[float, float | None]]]:
    """For each arm its mean and standard deviation at each point."""
    names = [arm.name for arm in points[0].arms]
    return {name: [(each.arms[i].mean, each.arms[i].std) for each in points] for i, name in enumerate(names)}


def effect_of(interval: Interval) -> str:
    """'' where the interval holds zero."""
    return "helped" if interval[0] > 0 else "hurt" if interval[1] < 0 else ""


def span(gain: Gain) -> str:
    """'+3.1 points, 95 % interval +2.2 to +4.0, 5 seeds'."""
    points, seeds = f"{gain.mean * 100:+.1f} points", f"{len(gain.gains)} seed{'s' * (len(gain.gains) > 1)}"
    if gain.interval is None:
        return f"{points} in {seeds}"
    low, high = gain.interval
    return f"{points}, 95 % interval {low * 100:+.1f} to {high * 100:+.1f}, {seeds}"


def titled(name: str) -> str:
    """An arm's name where a sentence begins; methods are written as their papers do."""
    return {"byol": "BYOL", "simclr": "SimCLR"}.get(name, name[:1].upper() + name[1:])
