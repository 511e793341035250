"""Tables of a comparison, and what stands below them: the same on the terminal, on the page and on the model card."""

from dataclasses import dataclass

from selfie_cli.comparison.results import Curve, Finetuned, Point

FROZEN = (
    "Frozen features: no network was trained on the labels. One that is, even without pretraining, may do better than "
    "all of these: the same command without --frozen compares."
)


@dataclass(frozen=True, kw_only=True)
class Table:
    """Text of a table. Below the first `num_arms` rows there is a line. The column `left` is aligned to the left."""

    title: str
    columns: list[str]
    rows: list[list[str]]
    left: str = ""
    num_arms: int = 0


def spread(mean: float, std: float | None, *, signed: bool = False, single: str = "") -> str:
    """'59.1 ± 0.4', in percent or points; `single` follows a single value."""
    sign = "+" if signed else ""
    return f"{mean * 100:{sign}.1f}" + (single if std is None else f" ± {std * 100:.1f}")


def over(point: Point, baseline: str) -> str:
    """' over supervised', if there is more than one comparison."""
    return f" over {baseline}" if len(point.comparisons) > 1 else ""


def finetuned_table(result: Finetuned, *, most_seeds: int | None = None) -> Table:
    """Arms and their paired gains; each seed by itself, unless there are more than `most_seeds`."""
    count = len(result.seeds) if most_seeds is None or len(result.seeds) <= most_seeds else 0
    single = " (no spread)"
    rows = []
    for arm in result.arms:
        values = [f"{value * 100:.1f}" for value in arm.accuracies[:count]]
        rows.append([arm.name, spread(arm.mean, arm.std, single=single), arm.tuned, *values])
    for gain in result.comparisons:
        values = [f"{value * 100:+.1f}" for value in gain.gains[:count]]
        name = f"paired gain{over(result, gain.baseline)}"
        rows.append([name, spread(gain.mean, gain.std, signed=True, single=single), "", *values])
    return Table(
        title=f"{result.dataset}: test accuracy in % with {result.num_labels:,} labels ({result.share})",
        columns=[
            "",
            "mean ± std",
            "L2 strength" if result.frozen else "learning rate",
            *(f"seed {seed}" for seed in result.seeds[:count]),
        ],
        rows=rows,
        num_arms=len(result.arms),
    )


def curve_tables(result: Curve) -> list[Table]:
    """The accuracies of all arms and, if there are several, their gains over the first."""
    accuracies, gains = [], []
    first = result.points[0]
    frozen = first.frozen
    for point in result.points:
        means = [spread(arm.mean, arm.std) for arm in point.arms]
        steps = [] if frozen else [f"{point.steps:,}"]
        accuracies.append([point.share, f"{point.num_labels:,}", str(len(point.seeds)), *steps, *means])
        for gain in point.comparisons:
            gains.append([point.share, gain.arm, spread(gain.mean, gain.std, signed=True), gain.bounds])
    tables = [
        Table(
            title=f"{result.dataset}: test accuracy in %, mean ± std",
            columns=["share", "labels", "seeds", *["steps"] * (not frozen), *(arm.name for arm in first.arms)],
            rows=accuracies,
        ),
        Table(
            title=f"Gain over {first.arms[0].name} in points, paired by seed",
            columns=["share", "arm", "mean ± std", "95 % interval"],
            rows=gains,
            left="arm",
        ),
    ]
    return tables if gains else tables[:1]


def explanations(result: Finetuned | Curve) -> list[str]:
    """Lines below the tables: how many test images there are, what ± and the intervals mean."""
    if isinstance(result, Finetuned):
        steps = "" if result.frozen else f", {result.steps:,} steps for every network"
        return [
            f"{result.num_test:,} test images{steps}.",
            *[FROZEN] * result.frozen,
            *(
                f"95 % paired t-interval of the gain{over(result, gain.baseline)}: {gain.bounds} points."
                for gain in result.comparisons
                if gain.interval is not None
            ),
        ]
    note = f"{result.num_test:,} test images; ± is the standard deviation over seeds."
    if any(gain.interval for point in result.points for gain in point.comparisons):
        note += " Each interval stands for itself: of twenty such, one misses by chance."
    return [
        *(f"{name}: {remark}." for name, remark in result.remarks.items()),
        note,
        *[FROZEN] * result.points[0].frozen,
    ]
