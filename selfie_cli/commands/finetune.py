"""selfie finetune: train with and without pretraining on a share of the labels, over several seeds, and compare."""

import dataclasses
import math
from typing import Any, TypeVar

from selfie_cli.commands.report import report_at_end
from selfie_cli.comparison.arms import Arm, arms_of, freeze, hybrid_arms, open_sources, origin, room_for
from selfie_cli.comparison.compare import Comparison, Design, compare, compare_frozen, conclude, plan_steps
from selfie_cli.comparison.labels import Data, Reading, Share, read_data, take_share
from selfie_cli.comparison.results import Finetuned
from selfie_cli.comparison.summary import summarize
from selfie_cli.comparison.trainer import Training, fit_to_machine, usual_batch_size
from selfie_cli.config import FinetuneOptions, LabelOptions
from selfie_cli.data.bad_files import BAD_FILES
from selfie_cli.errors import UsageError
from selfie_cli.option import as_typed, pick
from selfie_cli.runs import Run
from selfie_cli.talk import Talk
from selfie_cli.training.distributed import group
from selfie_cli.training.hardware import prepare
from selfie_cli.training.start import choose_out, run_to_resume, start

Number = TypeVar("Number", int, float)
FROZEN_TOO = {"image_size", "device", "precision", "deterministic"}
ONLY_TRAINING = {each.name for each in dataclasses.fields(Training)} - FROZEN_TOO | {"lr", "arch", "batch_size"}
"""Options that --frozen refuses."""


def finetune(options: FinetuneOptions, talk: Talk) -> Finetuned:
    """Finetune as `options` say, or resume `options.resume` without repeating finished cells."""
    run, options = run_to_resume(options, "finetune")
    refuse_training_options(options)
    sources = open_sources(run, [options.from_], backbone=options.backbone, offline=options.offline, talk=talk)
    arms = chosen_arms(options, sources[0] if sources else None)
    *others, last = arms
    pairs = [(last.name, other.name) for other in reversed(others)]  # the most similar pair first
    design = Design(arms=arms, kept=last, pairs=pairs, num_seeds={options.fraction: options.seeds})
    found = train_arms(options, "finetune", design, run=run, sources=sources, talk=talk)
    result = summarize(found.points[0], **found.facts())
    conclude(found, result)
    report_at_end(found.run, options, talk, found.data)
    return result


def chosen_arms(options: FinetuneOptions, source: Run | None) -> list[Arm]:
    """Return the arms to train; the last one gives the network to use."""
    if source is None and not options.baseline:
        raise UsageError("--from none --no-baseline leaves nothing to train")
    make = hybrid_arms if options.arch == "hybrid" else arms_of
    arms = make([source] if source else [], backbone=options.backbone, image_size=options.image_size)
    arms = arms if options.baseline else arms[-1:]
    return freeze(arms) if options.frozen else arms


def refuse_training_options(options: LabelOptions) -> None:
    """Raise UsageError for an option of training with --frozen."""
    for field in dataclasses.fields(options) if options.frozen else ():
        if field.name in ONLY_TRAINING and options.asks_for(field.name):
            flag = as_typed(field, getattr(options, field.name))
            raise UsageError(f"{flag} has no meaning with --frozen, which trains no network: leave it out")


def train_arms(
    options: LabelOptions, verb: str, design: Design, *, run: Run | None, sources: list[Run], talk: Talk
) -> Comparison:
    """Read the labelled images and train all arms on all shares of the labels, in `run` or a new run."""
    out = None if run is not None else choose_out(options, verb, design.arms[-1].name, sources)
    image_size = design.kept.shape["image_size"]
    if run is None and image_size <= 64 and options.asks_for("min_crop"):
        raise UsageError(f"--min-crop has no meaning at {image_size} px, which pads and crops instead: leave it out")
    device, rates = prepare(options.device, deterministic=options.deterministic), learning_rates(options.lr)
    data = read_data(
        pick(Reading, options), image_size, preprocessing=design.kept.preprocessing, run=run, sources=sources, talk=talk
    )
    design = design.for_classes(data.classes)
    shares = [
        take_share(data.train, fraction, range(options.seed, options.seed + count), len(rates), talk)
        for fraction, seeds in design.num_seeds.items()
        for count in [1 if options.frozen and fraction == 1 else seeds]  # all seeds would have the same labels
    ]
    sizes = [options.batch_size or usual_batch_size(image_size, share.num_labels) for share in shares]
    if run is not None and "batch_size" in run.derived:  # older runs have one for all shares
        sizes = run.derived.get("batch_sizes", [run.derived["batch_size"]] * len(shares))
    training = pick(
        Training,
        options,
        image_size=image_size,
        device=device,
        batch_sizes=sizes,
        rates=rates,
    )
    say_what_is_trained(design, data, shares, training, options.frozen, talk)
    if run is None:
        derived, room = dict[str, Any](), room_for([design.kept], 0)
        if not options.frozen:
            derived, room = plan(design, data, shares, training, talk)
        run = start(
            out,
            verb=verb,
            asked=dataclasses.asdict(options),
            overwrite=options.overwrite,
            room=room,
            derived=design.kept.shape | derived,
            data=data.record(),
            **{"from": [origin(source) for source in sources]},
        )
        talk.say(f"run: {run.path}")
    if group().first:
        data.report(run.path / BAD_FILES, run.path / "seen_test_images.jsonl", talk)
    if options.frozen:
        return compare_frozen(design, data, shares, device=device, precision=options.precision, run=run, talk=talk)
    return compare(design, data, shares, training, run=run, talk=talk)


def say_what_is_trained(
    design: Design, data: Data, shares: list[Share], training: Training, frozen: bool, talk: Talk
) -> None:
    batch = f"batch {', '.join(str(size) for size in sorted(set(training.batch_sizes)))}"
    talk.say("; ".join(f"{arm.name}: {arm.called}" for arm in design.arms))
    talk.say(
        f"{', '.join(f'{share.num_labels:,}' for share in shares)} labels of {len(data.train.labels):,} "
        f"({', '.join(share.percent for share in shares)} of each class), {len(data.classes)} classes, "
        f"{len(data.test.labels):,} test images; {design.kept.shape['backbone']} at {training.image_size} px, "
        f"{training.device}, {'frozen features' if frozen else batch}"
    )


def plan(design: Design, data: Data, shares: list[Share], training: Training, talk: Talk) -> tuple[dict[str, Any], int]:
    """Return the settings that fit this machine, for the run's config, and the bytes that all networks take."""
    fitted, step_seconds = fit_to_machine(design.arms, data.train, training, talk)
    steps = plan_steps(shares, len(design.arms), step_seconds, training, talk)
    held_out = training.num_held_out + training.check_length
    room = room_for(design.arms, sum(len(share.seeds) + held_out for share in shares))
    of_shares = {"steps_of_shares": steps, "batch_sizes": training.batch_sizes}
    return dataclasses.asdict(fitted) | {"steps": steps[-1]} | of_shares, room


def learning_rates(text: str | None) -> list[float]:
    """Parse --lr: rates in ascending order, as the search takes the first of equally good ones. An empty list stands
    for each arm's usual rate."""
    if text is None:
        return []
    rates = numbers(text, float)
    if not rates or not all(0 < rate < math.inf for rate in rates) or not all_different(rates):
        raise UsageError(f"--lr {text!r}: expected a positive number, or several different ones like 0.03,0.1,0.3")
    return sorted(rates)


def numbers(text: str, kind: type[Number]) -> list[Number]:
    """Parse a list of numbers such as '0.05,0.2,1'; return an empty list for any other text."""
    try:
        return [kind(part) for part in text.split(",")]
    except ValueError:
        return []


def all_different(values: list[float]) -> bool:
    """Return whether all values differ as they are written in the names of cells."""
    return len({f"{each:g}" for each in values}) == len(values)
