"""selfie pretrain: pretrain a network on unlabelled images."""

import contextlib
import dataclasses
import itertools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from selfie_cli.commands.report import report_at_end
from selfie_cli.comparison.arms import load_pretrained, open_sources, origin
from selfie_cli.comparison.labels import unmarked
from selfie_cli.config import PretrainOptions
from selfie_cli.data.augment import Preprocessing
from selfie_cli.data.bad_files import BAD_FILES, BadFile, load_bad, report_bad, save_bad
from selfie_cli.data.batches import Batch, Prefetch
from selfie_cli.data.duplicates import FILE_NAME, Marks, joined, load_marks, save_marks
from selfie_cli.data.pixels import Pixels, check_readable, is_small, open_pixels
from selfie_cli.data.sources import Source, Subset, fingerprint
from selfie_cli.data.unlabelled import open_unlabelled
from selfie_cli.errors import Diverged, RunError, Stopped, UsageError
from selfie_cli.inference import networks
from selfie_cli.methods.method import Method
from selfie_cli.models.resnet import ResNet
from selfie_cli.pretraining.settings import derive
from selfie_cli.pretraining.task import Watch, batches, divided, fit_to_machine, make_step, pace_of, say_length
from selfie_cli.recipes import called, shown
from selfie_cli.runs import Run
from selfie_cli.talk import Talk
from selfie_cli.training.checkpoint import room_for, saved_states
from selfie_cli.training.distributed import check_processes, decoded_once, group
from selfie_cli.training.hardware import num_cores, prepare, warm_up
from selfie_cli.training.loop import Plan, Trained, train
from selfie_cli.training.schedule import budget_seconds, num_steps
from selfie_cli.training.start import MILDER, choose_out, run_to_resume, start, where_it_began
from selfie_cli.training.step import Step


@dataclass(frozen=True, kw_only=True)
class Pretrained(Trained):
    """The result of `pretrain`. `last` holds the last logged values: loss, pretext_accuracy, chance, ..."""

    run: Path
    left_out: dict[str, int]


def pretrain(options: PretrainOptions, talk: Talk) -> Pretrained:
    """Pretrain as `options` say, or resume `options.resume`."""
    run, options = run_to_resume(options, "pretrain")
    device = prepare(options.device, deterministic=options.deterministic)
    here = group()
    origins = open_origins(run, options, talk)
    encoders = [load_pretrained(each, backbone=options.backbone, image_size=None).encoder for each in origins]
    began = origins[0].derived if origins else {}
    out = None if run is not None else choose_out(options, "pretrain", options.method, origins)
    source, data = open_data(options, run, talk)
    derived = derive(options, source, began) if run is None else derived_again(run, options)
    check_processes(derived)
    say_settings(derived, len(source), device, options.seed, talk)

    with contextlib.ExitStack() as stack:
        pixels = open_images(source, derived, options, talk)
        stack.callback(pixels.close)
        if run is None and len(pixels) < min(len(source), derived["batch_size"]):  # some are unreadable
            readable = Subset(source, pixels.in_memory().kept)
            derived = derive(dataclasses.replace(options, image_size=derived["image_size"]), readable, began)
            talk.say(f"{len(readable):,} of the images can be read: batch {divided(derived['batch_size'])}")
        pixels = pixels.to(device)
        method, step = make_step(
            derived, device, seed=options.seed, compile=options.compile, deterministic=options.deterministic, talk=talk
        )
        for found, encoder in zip(origins, encoders, strict=True):
            start_from(found, encoder, method, talk)
            data["unmarked"] = unmarked(found)
        watch = Watch(step, method, pixels, talk) if here.first else dict  # reads pixels before the prefetch thread
        batch_of = stack.enter_context(Prefetch(batches(pixels, method, derived, options.seed), device=device))
        if run is not None:
            take_up(run, pixels, derived, options)
            warm_up(step, batch_of(0), talk)
        else:
            room = fit_to_machine_and_length(step, method, pixels, batch_of, options, derived, talk)
            config: dict[str, Any] = {"asked": dataclasses.asdict(options), "derived": derived, "data": data}
            config["from"] = [origin(found) for found in origins]
            run = start(out, verb="pretrain", overwrite=options.overwrite, room=room, **config)
            talk.say(f"run: {run.path}")
        batch_of.end = derived["steps"]
        num_bad = len(pixels.bad)
        if here.first:
            for marks in itertools.chain.from_iterable(map(marks_in, origins)):  # the origins' images count as seen
                save_marks(run.path / FILE_NAME, marks)
            report_bad(pixels.bad, len(source), run.path / BAD_FILES, talk)
        try:
            trained = train(step, batch_of, plan_of(run, derived, options), talk=talk, watch=watch)
        except (Stopped, Diverged) as error:
            keep_what_was_seen(run, pixels)
            if isinstance(error, Diverged):
                raise with_advice(error, run, derived, options, source) from None
            raise
        bad = keep_what_was_seen(run, pixels)
        if here.first:
            if len(bad) > num_bad:
                talk.warn(f"{len(bad)} of {len(source)} images cannot be read, see {run.path / BAD_FILES}")
            finish(run, method, step, trained, len(bad))
        here.wait()
    report_at_end(run, options, talk)
    return Pretrained(run=run.path, left_out=source.left_out.counts, **dataclasses.asdict(trained))


def open_origins(run: Run | None, options: PretrainOptions, talk: Talk) -> list[Run]:
    """Open the run that --from names. Return [] for 'none', or if a stopped `run` has saved states with all weights."""
    if options.from_ == "none" or (run is not None and saved_states(run.path / "state")):
        return []
    return open_sources(run, [options.from_], backbone=options.backbone, offline=options.offline, talk=talk)


def start_from(source: Run, encoder: ResNet, method: Method, talk: Talk) -> None:
    """Load the encoder of the run `source` into the method, and report which parts were taken."""
    method.start_from(encoder.state_dict())
    there, here = encoder.num_stages, method.encoder.num_stages
    heads = [name.replace("_", " ") for name, part in method.named_children() if not isinstance(part, ResNet)]
    fresh = ", ".join(["fourth stage", *heads] if here > there else heads)
    talk.say(f"from {source}: {min(here, there)} of {there} stages; fresh: {fresh}")


def marks_in(run: Run) -> list[Marks]:
    """Return a list with the marks of the images that a run has seen; an empty list if it has none."""
    file = run.path / FILE_NAME
    return [load_marks(file)] if file.is_file() else []


def open_data(options: PretrainOptions, run: Run | None, talk: Talk) -> tuple[Source, dict[str, Any]]:
    """Return the images and the `data` section of a config. Raise RunError if `run` was started with other images."""
    if not options.data:
        raise UsageError("name the images: folders, files, lists, tar shards or a named set such as cifar10")
    pinned = run.config["data"].get("pinned", {}) if run is not None else {}
    asked_for = [pinned.get(one, one) for one in options.data]
    with where_it_began(run):
        source = open_unlabelled(asked_for, data_root=Path(options.data_root), offline=options.offline, talk=talk)
    mark = fingerprint(source)
    if run is not None and run.config["data"].get("fingerprint") != mark:
        raise RunError(f"the images have changed since {run.path} was started: start a new run")
    pinned = dict(source.pinned)
    return source, {"images": len(source), "fingerprint": mark, "pinned": pinned, "left_out": source.left_out.counts}


def open_images(source: Source, derived: dict[str, Any], options: PretrainOptions, talk: Talk) -> Pixels:
    """Open the pixels to train on. If there are several processes, the first one decodes a small set for all of them,
    with all cores of its machine."""
    preprocessing, here = Preprocessing.of(derived), group()
    size = preprocessing.storage_size(derived["image_size"])
    once = here.world > 1 and is_small(source, size)

    def opened() -> Pixels:
        return open_pixels(
            source,
            size=size,
            interpolation=preprocessing.interpolation,
            workers=options.workers or num_cores() * (here.local_world if once else 1),
            max_bad=1 if once else options.max_bad,
            talk=talk,
            folder=options.store,
            limit_gb=options.store_gb,
        )

    if not once:
        return opened()
    pixels = decoded_once(source, opened)
    check_readable(pixels.unreadable, source, options.max_bad)
    return pixels


def say_settings(derived: dict[str, Any], num_images: int, device: torch.device, seed: int, talk: Talk) -> None:
    talk.say(
        f"{called(derived)}, recipe {derived['recipe']}: {derived['backbone']} on {num_images:,} images at "
        f"{derived['image_size']} px, {device}, batch {divided(derived['batch_size'])}, "
        f"{derived['optimizer']}, lr {derived['lr']:g}, seed {seed}"
    )
    talk.say(", ".join(f"{name} {shown(value)}" for name, value in derived[derived["method"]].items()))


def take_up(run: Run, pixels: Pixels, derived: dict[str, Any], options: PretrainOptions) -> None:
    """Prepare to resume a run: record milder options if it diverged, and load its marks and its list of bad files."""
    if group().first and run.diverged:
        asked = {name: getattr(options, name) for name in MILDER}
        run.update(asked=asked, derived=derived, progress={"diverged": False})
    pixels.recall(marks=next(iter(marks_in(run)), None), bad=load_bad(run.path / BAD_FILES))


def fit_to_machine_and_length(
    step: Step,
    method: Method,
    pixels: Pixels,
    batch_of: Callable[[int], Batch],
    options: PretrainOptions,
    derived: dict[str, Any],
    talk: Talk,
) -> int:
    """Store a new run's number of steps and settings for this machine in `derived`; return the bytes that it needs."""
    asked: Any = {name: getattr(options, name) for name in ("micro_batch", "precision", "deterministic")}
    step_seconds = fit_to_machine(step, method, batch_of(0), derived, **asked, talk=talk)
    pace = pace_of(step_seconds, pixels, batch_of, derived["batch_size"], step.device)
    derived["steps"] = num_steps(
        steps=pace.steps(budget_seconds(options.budget)) if options.budget else options.steps,
        epochs=options.epochs,
        num_images=len(pixels),
        batch_size=derived["batch_size"],
    )
    say_length(derived, len(pixels), pace, talk)
    return room_for(method, method.export(), pace.seconds(derived["steps"]), options.save_every)


def derived_again(run: Run, options: PretrainOptions) -> dict[str, Any]:
    """Return the settings derived when the run was started, with the MILDER options of this invocation."""
    now = {name: getattr(options, name) for name in MILDER}
    return run.derived | {name: value for name, value in now.items() if value not in (None, "auto")}


def plan_of(run: Run, derived: dict[str, Any], options: PretrainOptions) -> Plan:
    return Plan(
        folder=run.path,
        steps=derived["steps"],
        lr=derived["lr"],
        warmup_steps=derived["warmup_steps"],
        seed=options.seed,
        save_every=options.save_every,
        name="pretraining",
        log=options.log,
    )


def with_advice(
    error: Diverged, run: Run, derived: dict[str, Any], options: PretrainOptions, source: Source
) -> Diverged:
    """Mark the run as diverged; return the error with the command that resumes it at a lower learning rate."""
    if group().first:
        run.update(progress={"diverged": True})
    usual = derive(dataclasses.replace(options, lr=None, image_size=derived["image_size"]), source, derived)["lr"]
    resume = group().resume_command("pretrain", run.path)
    return Diverged(f"{error}. Resume with: {resume} --lr {min(derived['lr'] / 3, usual):.2g}")


def keep_what_was_seen(run: Run, pixels: Pixels) -> list[BadFile]:
    """Write the marks of all decoded images and the list of unreadable ones, from all processes; return that list."""
    here = group()
    bad = sorted({one for found in here.gather(pixels.bad) for one in found}, key=lambda one: one.name)
    marks = here.gather(pixels.marks())
    if here.first:
        if run.config.get("from"):
            marks = [*marks_in(run), *marks]  # with those of the origins
        save_marks(run.path / FILE_NAME, marks[0] if len(marks) == 1 else joined(marks))
        if bad:
            save_bad(run.path / BAD_FILES, bad)
    here.wait()
    return bad


def finish(run: Run, method: Method, step: Step, trained: Trained, num_bad: int) -> None:
    """Write the weights, and mark the run as finished."""
    networks.save_network(run, method.export(), run.derived)
    run.update(data={"unreadable": num_bad})
    used = {"precision": step.precision, "micro_batch": step.micro_batch, "compiled": step.compiled}
    threads = torch.get_num_threads()
    run.finish({**dataclasses.asdict(trained), "device": str(step.device), **used, "threads": threads})
