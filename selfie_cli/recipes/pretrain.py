"""selfie pretrain: unlabelled images in, a pretrained network out."""

import contextlib
import dataclasses
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from selfie_cli.config import PretrainOptions
from selfie_cli.data.ahead import ReadAhead
from selfie_cli.data.augment import plain_view
from selfie_cli.data.duplicates import FILE_NAME, joined, load_marks, save_marks
from selfie_cli.data.mapped import MappedStore, open_store
from selfie_cli.data.sources import Subset, fingerprint
from selfie_cli.data.store import BadFile, Store, load_bad, report_bad, save_bad, storage_size
from selfie_cli.data.unlabelled import open_unlabelled
from selfie_cli.errors import Diverged, RunError, Stopped, UsageError
from selfie_cli.evaluation.collapse import collapse_warning, feature_spread
from selfie_cli.methods.method import Method
from selfie_cli.pretraining import called, shown
from selfie_cli.recipes import networks
from selfie_cli.recipes.beginning import MILDER, choose_out, has_diverged, run_to_resume, start, where_it_began
from selfie_cli.recipes.derivation import derive
from selfie_cli.recipes.report import report_at_end
from selfie_cli.runs import Run
from selfie_cli.talk import Talk
from selfie_cli.training.distributed import Group, group
from selfie_cli.training.loop import train
from selfie_cli.training.machine import (
    Pace,
    compiles,
    duration,
    fit,
    micro_batch_for,
    num_cores,
    precisions,
    prepare,
    warm_up,
)
from selfie_cli.training.optimizers import make_optimizer
from selfie_cli.training.schedule import SampleOrder, num_steps, seconds, step_generator, step_seed
from selfie_cli.training.state import room_for
from selfie_cli.training.step import Batch, Step, check_pieces
from selfie_cli.weights import save_weights

WATCHED = 256  # images whose features are looked at for collapse
BAD_FILES = "bad_files.jsonl"
FEWEST_WATCHED = 8  # fewer say nothing


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
        opened = open_store(
            source,
            size=storage_size(derived["image_size"]),
            workers=options.workers or num_cores(),
            max_bad=options.max_bad,
            talk=talk,
            folder=options.store,
            limit_gb=options.store_gb,
        )
        stack.callback(opened.close)
        if run is None and isinstance(opened, Store) and len(opened) < min(len(source), derived["batch_size"]):
            readable = Subset(source, opened.kept)
            derived = derive(dataclasses.replace(options, image_size=derived["image_size"]), readable)
            talk.say(f"{len(readable):,} of the images can be read: batch {divided(derived['batch_size'], here)}")
        # What is small lives where it is needed.
        store = opened.to(device) if isinstance(opened, Store) else opened
        method, step = make_step(derived, options, device, talk)
        watch = Watch(step, method, store, talk) if here.first else dict  # before anyone else takes from the store
        ahead = ReadAhead(batches(store, method, derived, options.seed), device=device)
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
            raise Diverged(f"{error}. Go on with: {resume_hint} --lr {lower:.2g}") from None
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


def take_up(run: Run, store: Store | MappedStore, derived: dict[str, Any], options: PretrainOptions) -> None:
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
    store: Store | MappedStore,
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


def keep_what_was_seen(run: Run, store: Store | MappedStore) -> list[BadFile]:
    """Write the marks of all images that any process has decoded; returns, and lists, those that cannot be read."""
    here = group()
    store.flush()
    bad = sorted({one for found in here.gather(store.bad) for one in found}, key=lambda one: one.name)
    marks = store.marks() if here.world == 1 else joined(here.gather(store.marks()))
    if here.first:
        save_marks(run.path / FILE_NAME, marks)
        if bad:
            save_bad(run.path / BAD_FILES, bad)
    here.wait()
    return bad


def make_step(
    derived: dict[str, Any], options: PretrainOptions, device: torch.device, talk: Talk
) -> tuple[Method, Step]:
    """The method on its device, freshly initialized, and a training step of it."""
    here = group()
    compiled = compiles(options.compile, device, deterministic=options.deterministic)
    torch.manual_seed(step_seed(options.seed, 0))
    method = networks.build_method(derived).to(device)
    if here.world > 1 and device.type == "cuda" and method.compares_images:
        method = torch.nn.SyncBatchNorm.convert_sync_batchnorm(method)
    method.encoder.checkpointed = derived.get("checkpointed", False)
    method.group = here
    micro_batch = derived.get("micro_batch", derived["batch_size"] // here.world)
    step = Step(
        method,
        method,
        make_optimizer(derived["optimizer"], method, lr=derived["lr"], weight_decay=derived["weight_decay"]),
        micro_batch=micro_batch,
        precision=derived.get("precision", "fp32"),
        compiled=compiled and derived.get("compiles", True),
        graphs=device.type == "cuda" and derived["image_size"] <= 64 and micro_batch == derived["batch_size"],
        group=here,
        after=method.after_step,
        smallest=derived["batch_size"] if options.deterministic else 1 + method.compares_images,
        talk=talk,
    )
    return method, step


def batches(store: Store | MappedStore, method: Method, derived: dict[str, Any], seed: int) -> Callable[[int], Batch]:
    """This process's part of the batch of each step: pixels, and what is drawn for them."""
    size, here = derived["batch_size"], group()
    version = derived.get("image_order", 1)
    order = SampleOrder(len(store), size, seed, block=store.block, rank=here.rank, world=here.world, version=version)
    mine = here.part(size)

    def batch_of(step: int) -> Batch:
        rows = order.batch(step)
        draws = method.draw(size, step_generator(seed, step))
        return (store.take(rows if len(rows) < size else rows[mine]), *(each[mine] for each in draws))

    return batch_of


class Watch:
    """Call it to learn whether the features of some images are still apart; warns when they have collapsed."""

    def __init__(self, step: Step, method: Method, store: Store | MappedStore, talk: Talk) -> None:
        self.step, self.method, self.talk = step, method, talk
        self.pixels = store.take(torch.arange(0, len(store), -(-len(store) // WATCHED))).to(step.device)
        self.alarms = 0

    def __call__(self) -> dict[str, float]:
        """Values for the log."""
        with torch.no_grad(), self.step.autocast():
            self.method.eval()
            views = (plain_view(part, self.method.image_size) for part in self.pixels.split(self.step.micro_batch))
            vectors = torch.cat([self.method.embeddings(view) for view in views])
        self.method.train()
        if not vectors.isfinite().all():
            return {}  # the loop sees to that
        std, rank = feature_spread(vectors)
        warning = collapse_warning(std, rank, vectors.shape[1])
        self.alarms = self.alarms + 1 if warning else 0
        if warning and self.alarms == 2 and len(vectors) >= FEWEST_WATCHED:  # once may be how a training begins
            self.talk.warn(warning)
        return {"feature_std": std, "effective_rank": rank}


def fit_to_machine(
    step: Step,
    method: Method,
    batch: Batch,
    options: PretrainOptions,
    derived: dict[str, Any],
    talk: Talk,
) -> float:
    """Set the micro-batch and the precision of `step`, and note them in `derived`; returns the seconds a step takes.

    Where the loss is over a batch as a whole, stages of the network are computed twice before the batch is cut.
    """
    size = len(batch[0])
    check_pieces(size, options.micro_batch or size, step.smallest)
    tried = precisions(step.device, options.precision, deterministic=options.deterministic)
    step.precision = tried[0]
    sample = tuple(tensor[:4] for tensor in batch)
    micro = options.micro_batch or (size if options.deterministic else micro_batch_for(step, sample, size))
    if micro < size and not options.micro_batch and method.compares_images:
        method.encoder.checkpointed = True
        micro = micro_batch_for(step, sample, size)
        talk.say("memory is short: activations within a stage are computed twice instead of kept")
    check_pieces(size, micro, step.smallest)
    step.set_micro_batch(micro)
    if step.group.world > 1 and step.device.type == "cpu" and method.compares_images:
        talk.warn(f"on a CPU, batch norm sees the {size} images of its own process only")
    wanted = step.compiled
    seconds = fit(step, batch, tried, talk)
    derived.update(
        micro_batch=step.micro_batch,
        precision=step.precision,
        compiles=step.compiled or not wanted,
        checkpointed=method.encoder.checkpointed,
        processes=step.group.world,
    )
    return seconds


def on_device(batch: Batch, device: torch.device) -> Batch:
    return tuple(tensor.to(device) for tensor in batch)


def pace_of(
    step_seconds: float,
    store: Store | MappedStore,
    batch_of: Callable[[int], Batch],
    batch_size: int,
    device: torch.device,
) -> Pace:
    """How long steps take with the decoding that a store does on the way, measured on two batches."""
    if isinstance(store, Store):
        return Pace(step_seconds)
    begun = time.perf_counter()
    for number in (1, 2):
        batch_of(number)
    decoding = group().longest((time.perf_counter() - begun) / 2)
    keeps_all = store.rows.capacity >= len(store)
    return decoding_pace(step_seconds, decoding, keeps_all, round(len(store) / batch_size), device)


def decoding_pace(
    step_seconds: float, decoding: float, keeps_all: bool, steps_an_epoch: int, device: torch.device
) -> Pace:
    """The pace where decoding a batch takes `decoding` seconds, in the first epoch or, unless all is kept, in each."""
    # A CPU does the one at the cost of the other.
    slower = step_seconds + decoding if device.type == "cpu" else max(step_seconds, decoding)
    return Pace(step_seconds if keeps_all else slower, slower, steps_an_epoch)


def divided(batch_size: int, here: Group) -> str:
    """'256', or '256 as 2 x 128' in a job of two processes."""
    return f"{batch_size}" if here.world == 1 else f"{batch_size} as {here.world} x {batch_size // here.world}"


def check_processes(derived: dict[str, Any], world: int) -> None:
    """Raises UsageError if the batch cannot be divided, or a run was started with another number of processes."""
    if derived.get("processes", world) != world:
        raise UsageError(
            f"this run was started with {derived['processes']} processes, not {world}: resume it with as many"
        )
    if derived["batch_size"] % world:
        raise UsageError(f"a batch of {derived['batch_size']} cannot be divided among {world} processes evenly")


def say_length(derived: dict[str, Any], num_images: int, pace: Pace, talk: Talk) -> None:
    steps, batch = derived["steps"], derived["batch_size"]
    estimate = pace.seconds(steps)
    whole = derived["micro_batch"] * derived["processes"] == batch
    pieces = "" if whole else f" in pieces of {derived['micro_batch']}"
    shorter = ". Shorter: --budget 20m, --steps, a smaller --backbone" if estimate > 3600 else ""
    talk.say(
        f"{steps:,} steps of {batch} images{pieces} ({steps * batch / num_images:.1f} epochs): "
        f"about {duration(estimate)} at {steps * batch / estimate:,.0f} images/s{shorter}"
    )
