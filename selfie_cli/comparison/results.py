"""The results of finetune and curve, as results.json keeps them. Accuracies, gains and fractions are in 0..1."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from selfie_cli.errors import RunError
from selfie_cli.files import read_json

RISING, FLAT, UNKNOWN = "still rising", "flat", "too few held-out labels to tell"
"""Verdicts on the convergence of an arm."""
Interval = tuple[float, float]


@dataclass(frozen=True, kw_only=True)
class Convergence:
    """Whether an arm still gains at the end of its training.

    Two networks of the first seed are trained on four fifths of its labels, one for half of the `steps`, one for all,
    and judged on the `num_held` labels that were held out. `half` and `whole` are their accuracies, `error` is the
    paired standard error of the difference. `words` say the same in one clause.
    """

    steps: int
    num_held: int
    half: float | None
    whole: float | None
    error: float | None
    verdict: str
    words: str


@dataclass(frozen=True, kw_only=True)
class ArmResult:
    """Accuracies of one arm, one per seed; `std` is None for a single seed.

    `lr` is the learning rate, None with frozen features; `strengths` are then those of the linear probes' L2 penalties,
    one per seed. `called` is its pretraining in words. `convergence` is None where it was not checked.
    """

    name: str
    lr: float | None
    accuracies: list[float]
    mean: float
    std: float | None
    called: str = ""
    convergence: Convergence | None = None
    strengths: list[float] = field(default_factory=list)

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

    @property
    def bounds(self) -> str:
        """'+2.2 to +4.0', in points; '' without an interval."""
        return "" if self.interval is None else " to ".join(f"{end * 100:+.1f}" for end in self.interval)


@dataclass(frozen=True, kw_only=True)
class Point:
    """The results with one share of the labels.

    `rates` are the learning rates that each arm chose from. `warnings` name the arms that have not converged. `notes`
    say how each arm was pretrained, and how it did with half of the steps. `frozen` says that no network was trained,
    only linear classifiers on frozen features; `steps` is then 0 and `rates` are empty.
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
        return f"{self.fraction * 100:.3g} %"


@dataclass(frozen=True, kw_only=True)
class Finetuned(Point):
    """The results of `finetune`. `gains` are those of the first comparison."""

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
    """The results of `curve`: one point per share of the labels, all with the same arms, and one sentence per arm.

    `remarks` name the arms whose network is another one than the supervised. `notes` are those of all points.
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
    """Build a dataclass; fields that only another version knows are left out."""
    names = kind.__dataclass_fields__  # type: ignore[attr-defined]
    return kind(**{name: value for name, value in values.items() if name in names})
