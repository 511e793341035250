"""Statistics over seeds: means, spreads, paired gains, whether longer training helps, and sentences about them."""

import math
from collections.abc import Iterable
from pathlib import Path

from torch import Tensor

from selfie_cli.comparison.results import ArmResult, Convergence, Finetuned, Gain, Interval, Point
from selfie_cli.evaluation.metrics import mean_std, paired_interval
from selfie_cli.recipes import titled

RISING, FLAT, UNKNOWN = "still rising", "flat", "too few held-out labels to tell"
LEAST_GAIN = 0.005
"""A smaller gain from twice the steps counts as none."""
WIDEST_ERROR, FEWEST_HELD = 0.02, 50
"""With a larger standard error of that gain, or fewer held-out labels, no gain found does not mean flat."""


def convergence(steps: int, half: Tensor, whole: Tensor) -> Convergence:
    """Compare the network of half of the steps with the one of all.

    half, whole: bool [N], whether each classifies a held-out image correctly.
    """
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


def make_arm_result(
    name: str, lr: float | None, accuracies: list[float], called: str = "", converged: Convergence | None = None
) -> ArmResult:
    mean, std = mean_std(accuracies)
    return ArmResult(name=name, lr=lr, accuracies=accuracies, mean=mean, std=std, called=called, convergence=converged)


def make_point(
    *,
    fraction: float,
    num_labels: int,
    steps: int,
    seeds: list[int],
    rates: list[float],
    arms: list[ArmResult],
    pairs: Iterable[tuple[str, str]],
    frozen: bool = False,
) -> Point:
    """The results of `arms`, and the paired gains of each (arm, baseline) in `pairs`."""
    accuracies = {arm.name: arm.accuracies for arm in arms}
    checked = "; ".join(f"{arm.name} {arm.convergence.words}" for arm in arms if arm.convergence is not None)
    notes = [f"{arm.name}: {arm.called}." for arm in arms if arm.called]
    if checked:
        notes.append(f"Half of the steps and all of them, on held-out labels of the first seed: {checked}.")
    return Point(
        fraction=fraction,
        num_labels=num_labels,
        steps=steps,
        seeds=seeds,
        arms=arms,
        comparisons=[paired_gain(arm, baseline, accuracies) for arm, baseline in pairs],
        rates=rates,
        warnings=[warning for arm in arms if (warning := not_converged(arm))],
        notes=notes,
        frozen=frozen,
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


def notes_of(points: list[Point]) -> list[str]:
    """The warnings and notes of all shares, each once, with the shares that it is about."""
    shares: dict[str, list[str]] = {}
    for point in points:
        for note in [*point.warnings, *point.notes]:
            shares.setdefault(note, []).append(point.share)
    return [note if len(of) == len(points) else f"At {', '.join(of)}: {note}" for note, of in shares.items()]


def conditions(points: list[Point], index: int | None = None) -> str:
    """The number of steps, the search of rates and convergence in one sentence, because results are quoted alone.

    It is about all arms, or about those of comparison `index`.
    """
    if points[0].frozen:
        chosen = "the strength of its L2 penalty chosen on held-out labels where a class has two or more"
        return f"A linear classifier on frozen features, {chosen}; no network was trained."
    lengths = sorted({point.steps for point in points})
    steps = " to ".join(f"{each:,}" for each in dict.fromkeys((lengths[0], lengths[-1])))
    gain = None if index is None else points[0].comparisons[index]
    arms = [(p, arm) for p in points for arm in p.arms if gain is None or arm.name in (gain.arm, gain.baseline)]
    tried = f"learning rate {arms[0][1].lr:g}, not searched"
    if len(rates := points[0].rates) > 1:
        tried = f"each arm's learning rate chosen among {', '.join(f'{lr:g}' for lr in rates)} on held-out labels"
    verdicts = [arm.convergence.verdict if arm.convergence else None for _, arm in arms]
    if RISING in verdicts:
        rising = [pair for pair, verdict in zip(arms, verdicts, strict=True) if verdict == RISING]
        names = ", ".join(arm.name if len(points) == 1 else f"{arm.name} at {point.share}" for point, arm in rising)
        converged = f"not converged: {names} still rose, so the gain may be one of speed"
    elif None in verdicts:
        converged = "whether more steps would help was not checked"
    elif UNKNOWN in verdicts:
        converged = f"convergence: {UNKNOWN}"
    else:
        converged = "no arm was found to gain from the last doubling of the steps"
    return f"{steps} steps per network; {tried}; {converged}."


def summarize(
    point: Point, *, run: Path, dataset: str, num_test: int, num_classes: int, left_out: dict[str, int]
) -> Finetuned:
    """The results of finetune, with a sentence for each comparison."""
    first = point.comparisons[0] if point.comparisons else None
    return Finetuned(
        **vars(point),
        run=run,
        dataset=dataset,
        num_test=num_test,
        num_classes=num_classes,
        left_out=left_out,
        gains=first.gains if first else None,
        gain_mean=first.mean if first else None,
        gain_std=first.std if first else None,
        gain_interval=first.interval if first else None,
        sentence=f"{verdict(point)} {conditions([point])}",
    )


def verdict(point: Point) -> str:
    """A sentence for each comparison, for people who read nothing else."""
    share = f"{point.share} of the labels" if point.fraction < 1 else "all labels"
    arm = point.arms[-1]
    name = titled(arm.name) + " (frozen features)" * point.frozen
    if not point.comparisons:
        return f"{name} with {share}: {arm.mean:.1%}; without a second arm there is nothing to compare."
    sentences = []
    several = len(point.comparisons) > 1 or point.frozen
    for gain in point.comparisons:
        over = f" over {gain.baseline}" if several else ""
        if gain.interval is None:
            more = "three seeds or more would say whether that is more than chance (--seeds 3)"
            if point.frozen and point.fraction == 1:
                more = (
                    "all seeds would have the same labels, so there is one (--fraction 0.5 --seeds 3 tells of chance)"
                )
            sentences.append(f"{name} with {share}{over}: {span(gain)}; {more}.")
        elif effect := effect_of(gain.interval):
            sentences.append(f"{name} {effect} with {share}{over}: {span(gain)}.")
        else:
            other = gain.baseline if several else "no pretraining"
            sentences.append(f"No difference was found between {arm.name} and {other} with {share}: {span(gain)}.")
    return " ".join(sentences)


def curve_sentence(points: list[Point], index: int, remark: str = "") -> str:
    """Comparison `index` at each point, in one sentence."""
    clauses = []
    for point in points:
        gain = point.comparisons[index]
        if gain.interval is None:
            clauses.append(f"at {point.share} {span(gain)}, too few to say whether that is chance")
        elif effect := effect_of(gain.interval):
            clauses.append(f"at {point.share} it {effect} ({span(gain)})")
        else:
            clauses.append(f"at {point.share} no difference was found ({span(gain)})")
    arm = titled(points[0].comparisons[index].arm)
    if points[0].frozen:
        remark = f"frozen features, over {points[0].comparisons[index].baseline}{', ' * bool(remark)}{remark}"
    return f"{arm}{f' ({remark})' if remark else ''}: {'; '.join(clauses)}. {conditions(points, index)}"


def effect_of(interval: Interval) -> str:
    """'helped' or 'hurt'; '' where the interval holds zero."""
    return "helped" if interval[0] > 0 else "hurt" if interval[1] < 0 else ""


def span(gain: Gain) -> str:
    """'+3.1 points, 95 % interval +2.2 to +4.0, 5 seeds'."""
    points, seeds = f"{gain.mean * 100:+.1f} points", f"{len(gain.gains)} seed{'s' * (len(gain.gains) > 1)}"
    if gain.interval is None:
        return f"{points} in {seeds}"
    return f"{points}, 95 % interval {gain.bounds}, {seeds}"
