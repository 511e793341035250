"""selfie curve: finetune each arm on several shares of the labels with several seeds, and measure the gains."""

from selfie_cli.commands.finetune import all_different, numbers, refuse_training_options, train_arms
from selfie_cli.commands.report import report_at_end
from selfie_cli.comparison.arms import arms_of, freeze, open_sources
from selfie_cli.comparison.compare import Design, conclude
from selfie_cli.comparison.results import Curve
from selfie_cli.comparison.summary import curve_sentence, notes_of
from selfie_cli.config import MOST_SEEDS, CurveOptions
from selfie_cli.errors import UsageError
from selfie_cli.files import write_text
from selfie_cli.reporting.page import curve_file
from selfie_cli.reporting.record import accuracy_lines
from selfie_cli.talk import Talk
from selfie_cli.training.distributed import group
from selfie_cli.training.start import run_to_resume


def curve(options: CurveOptions, talk: Talk) -> Curve:
    """Train all cells as `options` say, or resume `options.resume` without repeating finished cells."""
    run, options = run_to_resume(options, "curve")
    refuse_training_options(options)
    num_seeds = seeds_of_fractions(options.fractions, options.seeds)
    if "none" in options.from_ and len(options.from_) > 1:
        raise UsageError("--from none must be used alone: a network without pretraining is always included")
    asked = options.from_ or [None]
    sources = open_sources(run, asked, backbone=options.backbone, offline=options.offline, talk=talk)
    arms = arms_of(sources, backbone=options.backbone, image_size=options.image_size)
    kept = 1 if sources else 0
    arms = freeze(arms) if options.frozen else arms
    fresh, *others = arms
    design = Design(arms=arms, kept=arms[kept], pairs=[(arm.name, fresh.name) for arm in others], num_seeds=num_seeds)
    found = train_arms(options, "curve", design, run=run, sources=sources, talk=talk)
    remarks = {
        arm.name: f"another network than {fresh.name}: {arm.shape['backbone']}, stem {arm.shape['stem']}"
        + (f", {arm.shape['frozen']['num_stages']} stages" if options.frozen else "")
        for arm in others
        if any(arm.shape.get(key) != fresh.shape.get(key) for key in ("backbone", "stem", "frozen"))
    }
    points = found.points
    result = Curve(
        **found.facts(),
        points=points,
        remarks=remarks,
        sentences=[curve_sentence(points, index, remarks.get(arm.name, "")) for index, arm in enumerate(others)],
        notes=notes_of(points),
        plots=["curve.svg"],
    )
    if group().first:
        lines, how = accuracy_lines(points)
        write_text(found.run.path / "curve.svg", curve_file(f"{found.data.name}: test accuracy", lines, **how))
    conclude(found, result)
    report_at_end(found.run, options, talk, found.data)
    return result


def seeds_of_fractions(fractions: str, seeds: str) -> dict[float, int]:
    """Return the number of seeds for each fraction, the smallest fraction first."""
    shares = numbers(fractions, float)
    if not shares or not all(0 < share <= 1 for share in shares) or not all_different(shares):
        raise UsageError(f"--fractions {fractions!r}: expected different numbers above 0, up to 1, like 0.05,0.2,1")
    counts = numbers(seeds, int)
    if len(counts) not in (1, len(shares)) or not 1 <= min(counts) <= max(counts) <= MOST_SEEDS:
        allowed = f"a number from 1 to {MOST_SEEDS:,}, or one for each of {len(shares)} fractions"
        raise UsageError(f"--seeds {seeds[:30]!r}: expected {allowed}")
    return dict(sorted(zip(shares, counts * (len(shares) // len(counts)), strict=True)))
