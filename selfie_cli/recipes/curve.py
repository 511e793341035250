"""selfie curve: several shares of the labels, several ways to initialize, several seeds; what pretraining is worth."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from selfie_cli import runs
from selfie_cli.config import CurveOptions
from selfie_cli.errors import RunError, UsageError
from selfie_cli.recipes.arms import (
    SUPERVISED,
    Arm,
    begin,
    choose_out,
    conclude,
    learning_rates,
    load_pretrained,
    network_shape,
    origin,
    origins,
    room_for,
    start,
    tell_of_labels,
)
from selfie_cli.recipes.cells import Trainer, cells_of, sizes_of
from selfie_cli.recipes.comparison import Curve, Point, curve_sentence, point, spreads
from selfie_cli.recipes.imagenet import imagenet_arm
from selfie_cli.recipes.labels import read_data, take_share
from selfie_cli.recipes.report import report_at_end
from selfie_cli.report import plots
from selfie_cli.runs import Run
from selfie_cli.talk import Talk
from selfie_cli.training.distributed import group
from selfie_cli.training.machine import prepare


def curve(options: CurveOptions, talk: Talk) -> Curve:
    """Train all cells as `options` say, or continue `options.resume` without repeating what is finished."""
    run, options = begin(options, "curve")
    rates = learning_rates(options.lr)
    counts = seed_counts(options.fractions, options.seeds)
    asked: Sequence[str | None] = options.from_ or [None]
    if run is not None:
        asked = [each["path"] for each in origins(run, offline=options.offline, talk=talk)] or ["none"]
    sources, lines = open_sources(asked, offline=options.offline, talk=talk)
    for line in lines:
        talk.say(line)
    tell_of_labels(sources, talk)
    arms = arms_of(options, sources)
    out = None if run is not None else choose_out(options, "curve", arms[-1].name, sources)
    if options.compare == "imagenet":
        arms.append(imagenet_arm(arms[0].shape, offline=options.offline, talk=talk))
    device, _, _ = prepare(options.device, options.precision, deterministic=options.deterministic)

    shape = arms[0].shape
    data = read_data(options, shape["image_size"], run, sources, talk)
    arms = [arm.for_classes(data.classes) for arm in arms]
    seeds = {fraction: range(options.seed, options.seed + count) for fraction, count in counts.items()}
    shares = [take_share(data, fraction, seeds[fraction], len(rates)) for fraction in seeds]
    trainer = Trainer(options=options, image_size=shape["image_size"], device=device, talk=talk)
    talk.say(
        f"{', '.join(arm.name for arm in arms)}; {len(data.classes)} classes, {len(data.test.labels):,} test images; "
        f"{shape['backbone']} at {shape['image_size']} px, {device}, batch {trainer.batch_size}"
    )
    kept = arms[1 if sources else 0]  # its first network with the most labels becomes the run's own
    if run is None:
        sizes, steps = trainer.plan(arms, data.train, shares, len(rates))
        run = start(
            out,
            verb="curve",
            asked=dataclasses.asdict(options),
            overwrite=options.overwrite,
            room=room_for(arms, cells_of(shares, rates)),
            derived={**kept.shape, **sizes, "steps": steps[-1], "steps_of_shares": steps},
            data=data.record,
            **{"from": [origin(source) for source in sources]},
        )
        talk.say(f"run: {run.path}")
    data.report(run, talk)

    steps = run.derived.get("steps_of_shares", [])
    if len(steps) != len(shares) or not all(type(each) is int and each > 0 for each in steps):
        raise RunError(f"{run.path / 'config.json'} is damaged: start a new run")
    points = []
    for share, steps_here in zip(shares, steps, strict=True):
        sizes = {**sizes_of(run), "steps": steps_here}
        searched = f"search-f{share.fraction:g}"
        points.append(
            point(
                fraction=share.fraction,
                num_labels=share.num_labels,
                steps=steps_here,
                seeds=share.seeds,
                accuracies=trainer.share(run, arms, data, share, sizes, rates, searched=searched),
                pairs=[(arm.name, SUPERVISED) for arm in arms[1:]],
            )
        )
    others = [arm for arm in arms if any(arm.shape[key] != shape[key] for key in ("backbone", "stem"))]
    remarks = {
        arm.name: f"another network than supervised: {arm.shape['backbone']}, stem {arm.shape['stem']}"
        for arm in others
    }
    result = Curve(
        run=run.path,
        dataset=data.name,
        num_test=len(data.test.labels),
        num_classes=len(data.classes),
        points=points,
        remarks=remarks,
        sentences=[curve_sentence(points, index, remarks.get(arm.name, "")) for index, arm in enumerate(arms[1:])],
        plots=draw(run.path, data.name, points, talk) if group().first else [],
    )
    conclude(run, result, shares[-1].cell(kept.name, options.seed), {"device": str(device)})
    report_at_end(run, options, talk)
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
    if len(counts) not in (1, len(shares)) or min(counts) < 1:
        raise UsageError(f"--seeds {seeds!r}: expected a number from 1 up, or one for each of {len(shares)} fractions")
    return dict(sorted(zip(shares, counts * (len(shares) // len(counts)), strict=True)))


def open_sources(asked: Sequence[str | None], *, offline: bool, talk: Talk) -> tuple[list[Run], list[str]]:
    """The runs that --from names, and a line on each; none for 'none', which stands alone."""
    if "none" in asked and len(asked) > 1:
        raise UsageError("--from none stands alone: the arm without pretraining is always there")
    found = [runs.resolve_from(each, offline=offline, talk=talk) for each in asked]
    return [run for run, _ in found if run is not None], [line for _, line in found]


def arms_of(options: CurveOptions, sources: list[Run]) -> list[Arm]:
    """The supervised arm, then one for each run, named after its method; after its folder where two share a method."""
    states = [load_pretrained(source, options).encoder.state_dict() for source in sources]
    methods = [str(source.derived["method"]) for source in sources]
    fresh = {**network_shape(options, sources[0] if sources else None), "pretraining": "none"}
    arms = [Arm(name=SUPERVISED, shape=fresh, state=None)]
    for source, method, state in zip(sources, methods, states, strict=True):
        name = source.name if methods.count(method) > 1 else method
        if name in [arm.name for arm in arms]:
            raise UsageError(f"--from names two arms {name!r}: name every run once, or rename a folder")
        arm = Arm(name=name, shape=network_shape(options, source), state=state)
        for key in ("backbone", "stem", "image_size"):
            if arm.shape[key] != fresh[key]:
                raise UsageError(
                    f"{source} has {key} {arm.shape[key]}, {sources[0]} has {fresh[key]}: "
                    "one curve compares runs of one network, draw another for the rest"
                )
        arms.append(arm)
    return arms


def draw(folder: Path, dataset: str, points: list[Point], talk: Talk) -> list[str]:
    """curve.png and curve.svg, if matplotlib is there; returns their names."""
    files = [folder / "curve.png", folder / "curve.svg"]
    ticks = [
        f"{each.fraction * 100:.3g} %\n{each.num_labels:,} labels\n{len(each.seeds)} seed{'s' * (len(each.seeds) > 1)}"
        for each in points
    ]
    try:
        plots.draw(files, dataset, [each.fraction for each in points], spreads(points), ticks)
    except ImportError:
        talk.say("for a plot as PNG and SVG: pip install 'selfie-cli[plot]'")
        return []
    return [file.name for file in files]
