"""The results of finetune and curve, as results.json keeps them: means, spreads, paired gains, convergence.

Accuracies, gains and fractions are in 0..1.
"""

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self, TypeVar

from torch import Tensor

from selfie_cli.errors import RunError
from selfie_cli.evaluation.metrics import mean_std, paired_interval
from selfie_cli.files import read_json

RISING, FLAT, UNKNOWN = "still rising", "flat", "too few held-out labels to tell"
"""Verdicts on the convergence of an arm."""
LEAST_GAIN = 0.005
"""Smallest gain in accuracy from twice the steps that counts as rising."""
WIDEST_ERROR, FEWEST_HELD = 0.02, 50
"""Largest standard error of that gain, and fewest held-out labels, for the verdict `FLAT`."""
Interval = tuple[float, float]


def in_percent(share: float) -> str:
    """Return '5 %' for 0.05, with at most three digits, as messages, tables and plots name a share of the labels."""
    return f"{share * 100:.3g} %"


@dataclass(frozen=True, kw_only=True)
class Convergence:
    """Whether an arm still gains at the end of its training.

    Two networks of the first seed are trained on four fifths of its labels, one for half of `steps` and one for all,
    and evaluated on the `num_held` held-out labels. `half` and `whole` are their accuracies, `error` is the paired
    standard error of the difference. `words` summarizes this in one clause.
    """

    steps: int
    num_held: int
    half: float | None
    whole: float | None
    error: float | None
    verdict: str
    words: str

    @classmethod
    def of(cls, steps: int, half: Tensor, whole: Tensor) -> Self:
        """half, whole: bool [N], whether each network classifies a held-out image correctly."""
        count = len(half)
        known = {"steps": steps, "num_held": count}
        if count < 2:
            return cls(**known, half=None, whole=None, error=None, verdict=UNKNOWN, words=UNKNOWN)
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
        return cls(**known, half=before, whole=after, error=error, verdict=verdict, words=words)


@dataclass(frozen=True, kw_only=True)
class ArmResult:
    """Accuracies of one arm, one per seed; `std` is None for a single seed.

    `lr` is the learning rate. With frozen features it is None, and `strengths` has the L2 strength of each seed's
    linear probe. `called` is the pretraining in words. `convergence` is None if it was not checked.
    """

    name: str
    lr: float | None
    accuracies: list[float]
    mean: float
    std: float | None
    called: str = ""
    convergence: Convergence | None = None
    strengths: list[float] = field(default_factory=list)

    @classmethod
    def of(cls, name: str, accuracies: list[float], *, lr: float | None, **known: Any) -> Self:
        mean, std = mean_std(accuracies)
        return cls(name=name, lr=lr, accuracies=accuracies, mean=mean, std=std, **known)

    @property
    def warning(self) -> str | None:
        """A sentence if the arm still gained at the end of its training, else None."""
        found = self.convergence
        if found is None or found.verdict != RISING:
            return None
        gained = ((found.whole or 0) - (found.half or 0)) * 100
        return (
            f"not converged: {self.name} still gained {gained:+.1f} points from {found.steps // 2:,} to "
            f"{found.steps:,} steps; the gain may be one of speed. "
            f"Train longer: selfie finetune --steps {2 * found.steps}"
        )

    @property
    def tuned(self) -> str:
        """The learning rate, or the strength of the L2 penalty: '0.01', or '0.01 to 1' if seeds differ."""
        values = self.strengths if self.lr is None else [self.lr]
        return " to ".join(f"{each:g}" for each in sorted({min(values), max(values)}))


@dataclass(frozen=True, kw_only=True)
class Gain:
    """An arm's accuracies minus a baseline's, paired by seed. An interval needs three seeds."""

    arm: str
    baseline: str
    gains: list[float]
    mean: float
    std: float | None
    interval: Interval | None

    @classmethod
    def of(cls, arm: ArmResult, baseline: ArmResult) -> Self:
        gains = [after - before for before, after in zip(baseline.accuracies, arm.accuracies, strict=True)]
        mean, std = mean_std(gains)
        interval = paired_interval(gains)
        return cls(arm=arm.name, baseline=baseline.name, gains=gains, mean=mean, std=std, interval=interval)

    @property
    def bounds(self) -> str:
        """The interval in points, such as '+2.2 to +4.0'; '' if there is none."""
        return "" if self.interval is None else " to ".join(f"{end * 100:+.1f}" for end in self.interval)


@dataclass(frozen=True, kw_only=True)
class Point:
    """The results with one share of the labels.

    `rates` are the learning rates that were asked for. `warnings` name the arms that have not converged. `notes` say
    how each arm was pretrained, and how accurate it was after half of the steps. `frozen`: only linear classifiers on
    frozen features were trained; `steps` is then 0 and `rates` is empty.
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
    frozen: bool = False

    @property
    def share(self) -> str:
        return in_percent(self.fraction)


@dataclass(frozen=True, kw_only=True)
class Finetuned(Point):
    """The results of `finetune`. The gains are those of the first comparison."""

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

    @property
    def points(self) -> list[Point]:
        """Itself as the only point, as in `Curve.points`."""
        return [self]

    @property
    def sentences(self) -> list[str]:
        return [self.sentence]


@dataclass(frozen=True, kw_only=True)
class Curve:
    """The results of `curve`: one point per share of the labels, all with the same arms.

    `remarks` name the arms whose network differs from that of the first arm. `sentences` has one for each other arm.
    `notes` are those of all points.
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


AnyResult = TypeVar("AnyResult")


def read_results(file: Path) -> Finetuned | Curve:
    """Read results.json. Raise RunError if it holds something else."""
    try:
        values = read_json(file)
        values["run"] = Path(values["run"])
        if "points" in values:
            return known_fields(Curve, {**values, "points": [point_of(Point, each) for each in values["points"]]})
        return point_of(Finetuned, values)
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        message = f"{file} is damaged or of another version: remove it, or repeat what wrote it"
        raise RunError(message) from None


def point_of(kind: type[AnyResult], values: dict[str, Any]) -> AnyResult:
    arms = []
    for arm in values["arms"]:
        found = arm.get("convergence")
        arms.append(known_fields(ArmResult, {**arm, "convergence": found and known_fields(Convergence, found)}))
    gains = [known_fields(Gain, gain) for gain in values["comparisons"]]
    return known_fields(kind, {**values, "arms": arms, "comparisons": gains})


def known_fields(kind: type[AnyResult], values: dict[str, Any]) -> AnyResult:
    """Build a dataclass, ignoring fields of other versions."""
    names = kind.__dataclass_fields__  # type: ignore[attr-defined]
    return kind(**{name: value for name, value in values.items() if name in names})
