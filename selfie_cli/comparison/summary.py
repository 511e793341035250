"""Sentences and tables about a comparison, shared by the terminal, the page and the model card."""

from dataclasses import dataclass
from typing import Any

from selfie_cli.comparison.results import RISING, UNKNOWN, Curve, Finetuned, Gain, Interval, Point
from selfie_cli.recipes import titled
from selfie_cli.talk import counted

FROZEN = (
    "Frozen features: no network was trained on the labels. One that is, even without pretraining, may do better than "
    "all of these: the same command without --frozen compares."
)


def notes_of(points: list[Point]) -> list[str]:
    """Return the warnings and notes of all shares, each only once, with the shares that it applies to."""
    shares: dict[str, list[str]] = {}
    for point in points:
        for note in [*point.warnings, *point.notes]:
            shares.setdefault(note, []).append(point.share)
    return [note if len(of) == len(points) else f"At {', '.join(of)}: {note}" for note, of in shares.items()]


def conditions(points: list[Point], index: int | None = None) -> str:
    """Return a sentence on steps, learning rates and convergence, so that a quoted result includes its conditions.

    It covers all arms, or only those of comparison `index`.
    """
    if points[0].frozen:
        chosen = "the strength of its L2 penalty chosen on held-out labels where a class has two or more"
        return f"A linear classifier on frozen features, {chosen}; no network was trained."
    lengths = sorted({point.steps for point in points})
    steps = " to ".join(f"{each:,}" for each in dict.fromkeys((lengths[0], lengths[-1])))
    gain = None if index is None else points[0].comparisons[index]
    arms = [(p, arm) for p in points for arm in p.arms if gain is None or arm.name in (gain.arm, gain.baseline)]
    trained = dict.fromkeys(arm.name for _, arm in arms)
    usual = {name: " to ".join(dict.fromkeys(arm.tuned for _, arm in arms if arm.name == name)) for name in trained}
    same = len(set(usual.values())) == 1
    listed = usual[arms[0][1].name] if same else ", ".join(f"{lr} for {name}" for name, lr in usual.items())
    tried = f"learning rate {listed}, not searched"
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
    return f"{steps} step{'s' * (lengths[-1] > 1)} per network; {tried}; {converged}."


def summarize(point: Point, **facts: Any) -> Finetuned:
    """Return the results of finetune, with a sentence for each comparison. facts: about the run and its data."""
    first = point.comparisons[0] if point.comparisons else None
    return Finetuned(
        **vars(point),
        **facts,
        gains=first.gains if first else None,
        gain_mean=first.mean if first else None,
        gain_std=first.std if first else None,
        gain_interval=first.interval if first else None,
        sentence=f"{verdict(point)} {conditions([point])}",
    )


def verdict(point: Point) -> str:
    """Return a sentence for each comparison, for people who read nothing else."""
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
    """Return one sentence on comparison `index` at all points."""
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
    """Return 'helped' or 'hurt'; '' if the interval contains zero."""
    return "helped" if interval[0] > 0 else "hurt" if interval[1] < 0 else ""


def span(gain: Gain) -> str:
    """Return a gain as in '+3.1 points, 95 % interval +2.2 to +4.0, 5 seeds'."""
    points, seeds = f"{gain.mean * 100:+.1f} points", counted(len(gain.gains), "seed")
    if gain.interval is None:
        return f"{points} in {seeds}"
    return f"{points}, 95 % interval {gain.bounds}, {seeds}"


@dataclass(frozen=True, kw_only=True)
class Table:
    """Text of a table. A line follows the first `num_arms` rows. The column `left` is aligned to the left."""

    title: str
    columns: list[str]
    rows: list[list[str]]
    left: str = ""
    num_arms: int = 0


def spread(mean: float, std: float | None, *, signed: bool = False, single: str = "") -> str:
    """Return '59.1 ± 0.4', in percent or points. `single` is appended to a value without a standard deviation."""
    sign = "+" if signed else ""
    return f"{mean * 100:{sign}.1f}" + (single if std is None else f" ± {std * 100:.1f}")


def percent(value: float | None) -> str:
    """Return '59.1' for 0.591; '' for None."""
    return "" if value is None else f"{value * 100:.1f}"


def evaluation_rows(found: dict[str, Any]) -> list[list[str]]:
    """Return a row per measure of eval: its name, then this network, the untrained one and guessing, in percent."""
    trained, untrained, classified = found["trained"], found["untrained"], found.get("classified")
    knn = f"kNN (k {found['k']:,}, temperature {found['temperature']:g})"
    rows = [
        (knn, trained["knn"], untrained["knn"], found["majority"]),
        ("linear probe", trained["linear"], untrained["linear"], found["majority"]),
    ]
    for key, how in (("pretext_accuracy", "cropped as in training"), ("pretext_accuracy_plain", "plain images")):
        if trained.get(key) is not None:
            rows.append((f"pretext task, {how}", trained[key], untrained[key], found["chance"]))
    if classified:
        rows.append(("top-1", classified["top1"], None, found["majority"]))
        if len(classified["per_class"]) > 5:
            rows.append(("top-5", classified["top5"], None, None))
    return [[what, *map(percent, values)] for what, *values in rows]


def over(point: Point, baseline: str) -> str:
    """Return ' over supervised' if there is more than one comparison, else ''."""
    return f" over {baseline}" if len(point.comparisons) > 1 else ""


def finetuned_table(result: Finetuned, *, most_seeds: int | None = None) -> Table:
    """Return the table of arms and paired gains, with a column per seed unless there are more than `most_seeds`."""
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
    """Return the table of accuracies and, if there are several arms, the table of gains over the first arm."""
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
    """Return the lines below the tables: the number of test images, and the meaning of ± and of the intervals."""
    if isinstance(result, Finetuned):
        steps = "" if result.frozen else f", {counted(result.steps, 'step')} for every network"
        return [
            f"{counted(result.num_test, 'test image')}{steps}.",
            *[FROZEN] * result.frozen,
            *(
                f"95 % paired t-interval of the gain{over(result, gain.baseline)}: {gain.bounds} points."
                for gain in result.comparisons
                if gain.interval is not None
            ),
        ]
    note = f"{counted(result.num_test, 'test image')}; ± is the standard deviation over seeds."
    if any(gain.interval for point in result.points for gain in point.comparisons):
        note += " Each interval stands for itself: of twenty such, one misses by chance."
    return [
        *(f"{name}: {remark}." for name, remark in result.remarks.items()),
        note,
        *[FROZEN] * result.points[0].frozen,
    ]
