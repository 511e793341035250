"""What several seeds of several arms come to: means, spreads, paired gains, and sentences."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from selfie_cli.evaluation.metrics import mean_std, paired_interval

Interval = tuple[float, float]
Accuracies = dict[str, tuple[float, list[float]]]
"""arm -> its learning rate and its accuracies (0..1), a seed each."""


@dataclass(frozen=True, kw_only=True)
class ArmResult:
    """Accuracies (0..1) of one way to initialize, a seed each; `std` is None for a single seed."""

    name: str
    lr: float
    accuracies: list[float]
    mean: float
    std: float | None


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
    """What was found with one share of the labels."""

    fraction: float
    num_labels: int
    steps: int
    seeds: list[int]
    arms: list[ArmResult]
    comparisons: list[Gain]


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

    `remarks` say of an arm what its reader must know: that it is another network.
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


def point(
    *,
    fraction: float,
    num_labels: int,
    steps: int,
    seeds: list[int],
    accuracies: Accuracies,
    pairs: Iterable[tuple[str, str]],
) -> Point:
    """Means, spreads, and the paired gains of each (arm, baseline) in `pairs`."""
    arms = []
    for name, (lr, values) in accuracies.items():
        mean, std = mean_std(values)
        arms.append(ArmResult(name=name, lr=lr, accuracies=values, mean=mean, std=std))
    comparisons = []
    for arm, baseline in pairs:
        before, after = accuracies[baseline][1], accuracies[arm][1]
        gains = [b - a for a, b in zip(before, after, strict=True)]
        mean, std = mean_std(gains)
        interval = paired_interval(gains)
        comparisons.append(Gain(arm=arm, baseline=baseline, gains=gains, mean=mean, std=std, interval=interval))
    return Point(fraction=fraction, num_labels=num_labels, steps=steps, seeds=seeds, arms=arms, comparisons=comparisons)


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
        sentence=verdict(found),
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
    return f"{arm}{f' ({remark})' if remark else ''}: {'; '.join(clauses)}."


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
