"""What several seeds of several arms come to: means, spreads, paired gains, and a sentence."""

from dataclasses import dataclass
from pathlib import Path

from selfie_cli.evaluation.metrics import mean_std, paired_interval


@dataclass(frozen=True, kw_only=True)
class Arm:
    """Accuracies (0..1) of one way to initialize, a seed each; `std` is None for a single seed."""

    name: str
    lr: float
    accuracies: list[float]
    mean: float
    std: float | None


@dataclass(frozen=True, kw_only=True)
class Finetuned:
    """What `finetune` found. `gains` are paired by seed: pretrained minus supervised, in 0..1."""

    run: Path
    dataset: str
    fraction: float
    num_labels: int
    num_test: int
    num_classes: int
    steps: int
    seeds: list[int]
    arms: list[Arm]
    gains: list[float] | None
    gain_mean: float | None
    gain_std: float | None
    gain_interval: tuple[float, float] | None
    sentence: str


def summarize(
    *,
    run: Path,
    dataset: str,
    fraction: float,
    num_labels: int,
    num_test: int,
    num_classes: int,
    steps: int,
    seeds: list[int],
    accuracies: dict[str, tuple[float, list[float]]],
) -> Finetuned:
    """Means, spreads, paired gains, and the sentence that says what they mean."""
    arms = []
    for name, (lr, values) in accuracies.items():
        mean, std = mean_std(values)
        arms.append(Arm(name=name, lr=lr, accuracies=values, mean=mean, std=std))
    gains = gain_mean = gain_std = interval = None
    if len(arms) == 2:
        gains = [after - before for before, after in zip(arms[0].accuracies, arms[1].accuracies, strict=True)]
        gain_mean, gain_std = mean_std(gains)
        interval = paired_interval(gains)
    return Finetuned(
        run=run,
        dataset=dataset,
        fraction=fraction,
        num_labels=num_labels,
        num_test=num_test,
        num_classes=num_classes,
        steps=steps,
        seeds=seeds,
        arms=arms,
        gains=gains,
        gain_mean=gain_mean,
        gain_std=gain_std,
        gain_interval=interval,
        sentence=verdict(arms, gain_mean, interval, fraction, len(seeds)),
    )


def verdict(
    arms: list[Arm], gain: float | None, interval: tuple[float, float] | None, fraction: float, num_seeds: int
) -> str:
    """One sentence for people who read nothing else."""
    share = f"{fraction * 100:.3g} % of the labels" if fraction < 1 else "all labels"
    name = arms[-1].name.capitalize()
    if gain is None:
        return f"{name} with {share}: {arms[-1].mean:.1%}; without a second arm there is nothing to compare."
    points = f"{gain * 100:+.1f} points"
    if interval is None:
        return (
            f"{name} with {share}: {points} in {num_seeds} seed{'s' * (num_seeds > 1)}; "
            "three seeds or more would say whether that is more than chance (--seeds 3)."
        )
    span = f"{points}, 95 % interval {interval[0] * 100:+.1f} to {interval[1] * 100:+.1f}, {num_seeds} seeds"
    if interval[0] > 0:
        return f"{name} helped with {share}: {span}."
    if interval[1] < 0:
        return f"{name} hurt with {share}: {span}."
    return f"No difference was found between {arms[-1].name} and no pretraining with {share}: {span}."
