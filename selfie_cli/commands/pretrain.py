"""selfie pretrain: unlabelled images in, a pretrained network out."""

import contextlib
import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from selfie_cli.commands.report import report_at_end
from selfie_cli.config import PretrainOptions
from selfie_cli.data.bad_files import BadFile, load_bad, report_bad, save_bad
from selfie_cli.data.batches import Prefetch
from selfie_cli.data.duplicates import FILE_NAME, joined, load_marks, save_marks
from selfie_cli.data.pixels import InMemory, Pixels, open_pixels, storage_size
from selfie_cli.data.sources import Subset, fingerprint
from selfie_cli.data.unlabelled import open_unlabelled
from selfie_cli.errors import Diverged, RunError, Stopped, UsageError
from selfie_cli.methods.method import Method
from selfie_cli.pretraining.settings import derive
from selfie_cli.pretraining.task import (
    Watch,
    batches,
    check_processes,
    divided,
    fit_to_machine,
    make_step,
    on_device,
    pace_of,
    say_length,
)
from selfie_cli.recipes import called, shown
from selfie_cli.runs import Run
from selfie_cli.talk import Talk
from selfie_cli.training.checkpoint import room_for
from selfie_cli.training.distributed import group
from selfie_cli.training.hardware import (
    num_cores,
    prepare,
    warm_up,
)
from selfie_cli.training.loop import train
from selfie_cli.training.schedule import num_steps, seconds
from selfie_cli.training.start import MILDER, choose_out, has_diverged, run_to_resume, start, where_it_began
from selfie_cli.training.step import Batch, Step
from selfie_cli.weights import save_weights

BAD_FILES = "bad_files.jsonl"


@dataclass(frozen=True, kw_only=True)
class Pretrained:
    """What `pretrain` came to. `last` holds the last logged values: loss, pretext_accuracy, chance, ..."""

    run: Path
    step: int
    seconds: float
    images_per_second: float
    data_wait: float
    last: dict[str, float]
    left_out: dict[str, int]


def pretrain(options: PretrainOptions, talk: Talk) -> Pretrained:
    """Pretrain as `options` say, or continue `options.resume`."""
    run, options = run_to_resume(options, "pretrain")
    if not options.data:
        raise UsageError("name the images: folders, files, lists, tar shards or a named set such as cifar10")
    device = prepare(options.device, deterministic=options.deterministic)
    here = group()
    out = None if run is not None else choose_out(options, "pretrain", options.method, [])

    pinned = run.config["data"].get("pinned", {}) if run is not None else {}
    asked_for = [pinned.get(one, one) for one in options.data]
    with where_it_began(run):
        source = open_unlabelled(asked_for, data_root=Path(options.data_root), offline=options.offline, talk=talk)
    data = {"images": len(source), "fingerprint": fingerprint(source), "pinned": dict(source.pinned)}
    data["left_out"] = source.left_out.counts
    if run is not None and run.config["data"].get("fingerprint") != data["fingerprint"]:
        raise RunError(f"the images have changed since {run.path} was started: start a new run")
    derived = derive(options, source) if run is None else derived_again(run, options)
    check_processes(derived, here.world)
    talk.say(
        f"{called(derived)}, recipe {derived['recipe']}: {derived['backbone']} on {len(source):,} images at "
        f"{derived['image_size']} px, {device}, batch {divided(derived['batch_size'], here)}, {derived['optimizer']}, "
        f"lr {derived['lr']:g}, seed {options.seed}"
    )
    talk.say(", ".join(f"{name} {shown(value)}" for name, value in derived[derived["method"]].items()))

    with contextlib.ExitStack() as stack:
        opened = open_pixels(
            source,
            size=storage_size(derived["image_size"]),
            workers=options.workers or num_cores(),
            max_bad=options.max_bad,
            talk=talk,
            folder=options.store,
            limit_gb=options.store_gb,
        )
        stack.callback(opened.close)
        if run is None and isinstance(opened, InMemory) and len(opened) < min(len(source), derived["batch_size"]):
            readable = Subset(source, opened.kept)
            derived = derive(dataclasses.replace(options, image_size=derived["image_size"]), readable)
            talk.say(f"{len(readable):,} of the images can be read: batch {divided(derived['batch_size'], here)}")
        store = opened.to(device)
        method, step = make_step(derived, options, device, talk)
        watch = Watch(step, method, store, talk) if here.first else dict  # before anyone else takes from the store
        ahead = Prefetch(batches(store, method, derived, options.seed), device=device)
        batch_of = stack.enter_context(ahead)
        if run is not None:
            take_up(run, store, derived, options)
            warm_up(step, on_device(batch_of(0), device), talk)
        else:
            room = fit_to_machine_and_length(step, method, store, batch_of, options, derived, talk)
            run = start(
                out,
                verb="pretrain",
                asked=dataclasses.asdict(options),
                overwrite=options.overwrite,
                room=room,
                derived=derived,
                data=data,
            )
            talk.say(f"run: {run.path}")
        if here.first:
            report_bad(store.bad, len(source), run.path / BAD_FILES, talk)

        resume_hint = here.resume_command("pretrain", run.path)
        num_bad = len(store.bad)
        ahead.end = derived["steps"]
        try:
            trained = train(
                step,
                batch_of,
                folder=run.path,
                total=derived["steps"],
                lr=derived["lr"],
                warmup=derived["warmup_steps"],
                seed=options.seed,
                save_every=options.save_every,
                talk=talk,
                what="pretraining",
                resume_hint=resume_hint,
                watch=watch,
                trace=run.path / "trace.json" if options.profile else None,
                tensorboard=options.log == "tensorboard",
            )
        except Stopped:
            keep_what_was_seen(run, store)
            raise
        except Diverged as error:
            keep_what_was_seen(run, store)
            if here.first:
                run.update(progress={"diverged": True})
            usual = derive(dataclasses.replace(options, lr=None, image_size=derived["image_size"]), source)["lr"]
            lower = min(derived["lr"] / 3, usual)
            raise Diverged(f"{error}. Resume with: {resume_hint} --lr {lower:.2g}") from None
        bad = keep_what_was_seen(run, store)
        if here.first:
            if len(bad) > num_bad:
                talk.warn(f"{len(bad)} of {len(source)} images cannot be read, see {run.path / BAD_FILES}")
            told = ("method", "recipe", "backbone", "stem", "image_size", "patch_size", "steps")
            save_weights(run.weights, method.export(), {key: derived[key] for key in told if key in derived})
            run.update(data={"unreadable": len(bad)})
            measured = {**dataclasses.asdict(trained), "device": str(device), "precision": step.precision}
            measured |= {"micro_batch": step.micro_batch, "compiled": step.compiled}
            run.finish({**measured, "threads": torch.get_num_threads()})
        here.wait()
    report_at_end(run, options, talk)
    return Pretrained(run=run.path, left_out=source.left_out.counts, **dataclasses.asdict(trained))


def take_up(run: Run, store: Pixels, derived: dict[str, Any], options: PretrainOptions) -> None:
    """Go on with a stopped run: note what its options are by now, and recall what is known of its images."""
    if group().first and has_diverged(run):
        asked = {name: getattr(options, name) for name in MILDER}
        run.update(asked=asked, derived=derived, progress={"diverged": False})
    there = (run.path / FILE_NAME).is_file()
    marks = load_marks(run.path / FILE_NAME) if there else None
    store.recall(marks=marks, bad=load_bad(run.path / BAD_FILES))


def fit_to_machine_and_length(
    step: Step,
    method: Method,
    store: Pixels,
    batch_of: Callable[[int], Batch],
    options: PretrainOptions,
    derived: dict[str, Any],
    talk: Talk,
) -> int:
    """Settle how a new run trains here, and for how many steps, in `derived`; returns the bytes that it will take."""
    step_seconds = fit_to_machine(step, method, on_device(batch_of(0), step.device), options, derived, talk)
    pace = pace_of(step_seconds, store, batch_of, derived["batch_size"], step.device)
    derived["steps"] = num_steps(
        steps=pace.steps(seconds(options.budget)) if options.budget else options.steps,
        epochs=options.epochs,
        num_images=len(store),
        batch_size=derived["batch_size"],
    )
    say_length(derived, len(store), pace, talk)
    return room_for(method, method.export(), pace.seconds(derived["steps"]), options.save_every)


def derived_again(run: Run, options: PretrainOptions) -> dict[str, Any]:
    """What was derived when the run was started, and MILDER options as they are now."""
    now = {name: getattr(options, name) for name in MILDER}
    return run.derived | {name: value for name, value in now.items() if value not in (None, "auto")}


def keep_what_was_seen(run: Run, store: Pixels) -> list[BadFile]:
    """Write the marks of all images that any process has decoded; returns, and lists, those that cannot be read."""
    here = group()
    bad = sorted({one for found in here.gather(store.bad) for one in found}, key=lambda one: one.name)
    marks = store.marks() if here.world == 1 else joined(here.gather(store.marks()))
    if here.first:
        save_marks(run.path / FILE_NAME, marks)
        if bad:
            save_bad(run.path / BAD_FILES, bad)
    here.wait()
    return bad
