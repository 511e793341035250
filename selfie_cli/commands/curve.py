"""selfie curve: several shares of the labels, several ways to initialize, several seeds; what pretraining is worth."""

from collections.abc import Sequence
from pathlib import Path

from selfie_cli import runs
from selfie_cli.commands.report import report_at_end
from selfie_cli.comparison.arms import (
    FRESH,
    SUPERVISED,
    Arm,
    begin,
    load_pretrained,
    network_shape,
    origins,
    tell_of_labels,
)
from selfie_cli.comparison.compare import Plan, compare, conclude
from selfie_cli.comparison.imagenet import imagenet_arm
from selfie_cli.comparison.statistics import Curve, Point, curve_sentence, notes_of, spreads
from selfie_cli.config import MOST_SEEDS, CurveOptions
from selfie_cli.errors import UsageError
from selfie_cli.files import write_text
from selfie_cli.reporting.charts import Line
from selfie_cli.reporting.facts import share
from selfie_cli.reporting.page import curve_file, percent
from selfie_cli.runs import Run
from selfie_cli.talk import Talk
from selfie_cli.training.distributed import group
from selfie_cli.training.start import choose_out, where_it_began


def curve(options: CurveOptions, talk: Talk) -> Curve:
    """Train all cells as `options` say, or continue `options.resume` without repeating what is finished."""
    run, options = begin(options, "curve")
    counts = seed_counts(options.fractions, options.seeds)
    asked: Sequence[str | None] = options.from_ or [None]
    if run is not None:
        asked = [each["path"] for each in origins(run, offline=options.offline, talk=talk)] or ["none"]
    with where_it_began(run):
        sources, lines = open_sources(asked, offline=options.offline, talk=talk)
    for line in lines:
        talk.say(line)
    tell_of_labels(sources, talk)
    arms = arms_of(options, sources)
    out = None if run is not None else choose_out(options, "curve", arms[-1].name, sources)
    if options.compare == "imagenet":
        arms.append(imagenet_arm(arms[0].shape, offline=options.offline, talk=talk))
    found = compare(
        options,
        "curve",
        Plan(
            arms=arms,
            counts=counts,
            kept=arms[1 if sources else 0],
            pairs=[(arm.name, SUPERVISED) for arm in arms[1:]],
        ),
        run=run,
        out=out,
        sources=sources,
        talk=talk,
    )
    data, points, shape = found.data, found.points, arms[0].shape
    others = [arm for arm in arms if any(arm.shape[key] != shape[key] for key in ("backbone", "stem"))]
    remarks = {
        arm.name: f"another network than supervised: {arm.shape['backbone']}, stem {arm.shape['stem']}"
        for arm in others
    }
    result = Curve(
        run=found.run.path,
        dataset=data.name,
        num_test=len(data.test.labels),
        num_classes=len(data.classes),
        left_out=data.record["left_out"],
        points=points,
        remarks=remarks,
        sentences=[curve_sentence(points, index, remarks.get(arm.name, "")) for index, arm in enumerate(arms[1:])],
        notes=notes_of(points),
        plots=draw(found.run.path, data.name, points) if group().first else [],
    )
    conclude(found, result)
    report_at_end(found.run, options, talk)
    return result


def seed_counts(fractions: str, seeds: str) -> dict[float, int]:
    """How many seeds each fraction gets, the smallest fraction first. Raises UsageError for what is no such list."""
    try:
        shares = [float(part) for part in fractions.split(",")]
    except ValueError:
        shares = []
    if not shares or not all(0 < share <= 1 for share in shares) or len({f"{each:g}" for each in shares}) < len(shares):
        raise UsageError(f"--fractions {fractions!r}: expected different numbers above 0, up to 1, like 0.05,0.2,1")
    try:
        counts = [int(part) for part in seeds.split(",")]
    except ValueError:
        counts = []
    if len(counts) not in (1, len(shares)) or not 1 <= min(counts) <= max(counts) <= MOST_SEEDS:
        allowed = f"a number from 1 to {MOST_SEEDS:,}, or one for each of {len(shares)} fractions"
        raise UsageError(f"--seeds {seeds[:30]!r}: expected {allowed}")
    return dict(sorted(zip(shares, counts * (len(shares) // len(counts)), strict=True)))


def open_sources(asked: Sequence[str | None], *, offline: bool, talk: Talk) -> tuple[list[Run], list[str]]:
    """The runs that --from names, and a line on each; none for 'none', which stands alone."""
    if "none" in asked and len(asked) > 1:
        raise UsageError("--from none must be used alone: a network without pretraining is always included")
    found = [runs.resolve_from(each, offline=offline, talk=talk) for each in asked]
    return [run for run, _ in found if run is not None], [line for _, line in found]


def arms_of(options: CurveOptions, sources: list[Run]) -> list[Arm]:
    """The supervised arm, then one for each run, named after its method; after its folder where two share a method."""
    states = [load_pretrained(source, options).encoder.state_dict() for source in sources]
    methods = [str(source.derived["method"]) for source in sources]
    fresh = network_shape(options, sources[0] if sources else None) | FRESH
    arms = [Arm(name=SUPERVISED, shape=fresh, state=None)]
    for source, method, state in zip(sources, methods, states, strict=True):
        name = source.name if methods.count(method) > 1 else method
        if name in [arm.name for arm in arms]:
            raise UsageError(f"--from gives two runs the name {name!r}: give each run once, or rename a folder")
        arm = Arm(name=name, shape=network_shape(options, source), state=state)
        for key in ("backbone", "stem", "image_size"):
            if arm.shape[key] != fresh[key]:
                raise UsageError(
                    f"{source} has {key} {arm.shape[key]}, {sources[0]} has {fresh[key]}: "
                    "a curve compares runs of one network, so use another curve for the rest"
                )
        arms.append(arm)
    return arms


def draw(folder: Path, dataset: str, points: list[Point]) -> list[str]:
    """Write curve.svg; returns its name."""
    fractions = [each.fraction for each in points]
    lines = [
        Line(name, [(x, mean) for x, (mean, _) in zip(fractions, arm, strict=True)], [std or 0.0 for _, std in arm])
        for name, arm in spreads(points).items()
    ]
    how = {"show": percent, "show_x": share, "x_ticks": fractions, "log": True}
    write_text(folder / "curve.svg", curve_file(f"{dataset}: test accuracy", lines, **how))
    return ["curve.svg"]
