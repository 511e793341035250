"""selfie doctor: images looked at before training on them, and what this machine makes of them."""

import dataclasses
import itertools
import shlex
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from shutil import disk_usage

import numpy as np
import torch
from numpy.typing import NDArray

from selfie_cli.config import Backbone, DoctorOptions, PretrainOptions
from selfie_cli.data.cache import MOST, cache_folder
from selfie_cli.data.examination import Examination, Finding
from selfie_cli.data.images import FORMATS
from selfie_cli.data.inspection import inspect_all
from selfie_cli.data.labelled import assemble, is_named, open_pieces
from selfie_cli.data.layout import LeftOut
from selfie_cli.data.memory import available_memory, shared_memory
from selfie_cli.data.pixels import is_small, read_pixels, storage_size
from selfie_cli.data.sources import Files, Joined, Source, Subset
from selfie_cli.data.unlabelled import open_unlabelled
from selfie_cli.errors import DataError, Unlabelled, UsageError
from selfie_cli.files import nearest
from selfie_cli.option import flag_of
from selfie_cli.pretraining.settings import derive, patch_size_for, suggested_size
from selfie_cli.pretraining.task import batches, decoding_pace, fit_to_machine, make_step, on_device
from selfie_cli.talk import Talk
from selfie_cli.training.distributed import group
from selfie_cli.training.hardware import Pace, num_cores, prepare
from selfie_cli.training.schedule import num_steps

PATIENCE = 3600  # seconds of pretraining above which the small network is measured as well; where pretrain hints at it
BACKBONES: tuple[Backbone, ...] = ("resnetv2_50", "resnetv2_10_w32")  # the default, and what suits a laptop


@dataclass(frozen=True)
class Spread:
    smallest: int
    median: int
    largest: int


@dataclass(frozen=True, kw_only=True)
class Machine:
    """Bytes where nothing else is said. `disk` is what is free where decoded images are kept."""

    cores: int
    device: str
    gpu: str | None
    gpu_memory: int | None
    memory: int
    shared_memory: int | None
    disk: int | None
    store: str | None


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What `selfie pretrain` would do here.

    reading: seconds before the first step. seconds: those of all steps; None if nothing was timed.
    pixels: bytes of all decoded images.
    """

    command: str
    backbone: str
    image_size: int
    batch_size: int
    micro_batch: int | None
    precision: str | None
    steps: int
    seconds: float | None
    reading: float
    pixels: int
    in_memory: bool


@dataclass(frozen=True, kw_only=True)
class Checkup:
    """What `doctor` found. `images` and `classes` are by part ("train", "test", ...; "" where there are none);
    `images_per_second` is the speed at which `workers` threads read and decode."""

    data: list[str]
    healthy: bool
    problems: list[Finding]
    remarks: list[Finding]
    images: dict[str, int]
    classes: dict[str, dict[str, int]]
    formats: dict[str, int]
    short_side: Spread | None
    long_side: Spread | None
    file_bytes: Spread | None
    all_bytes: int
    left_out: dict[str, int]
    workers: int
    images_per_second: float
    machine: Machine
    plans: list[Plan]


def doctor(options: DoctorOptions, talk: Talk) -> Checkup:
    """Look at every image of `options.data`, once, and at this machine. Nothing is written."""
    if not options.data:
        raise UsageError("name the images: folders, files, lists, tar shards or a named set such as cifar10")
    if group().world > 1:
        raise UsageError("doctor looks at one machine by itself: start it without torchrun")
    device = prepare(options.device)
    workers = options.workers or num_cores()
    try:
        opened = open_parts(options, talk)
    except DataError as error:
        opened = Opened(parts={"": Files()}, labels=[], left_out=LeftOut(), refusal=error)
    parts = opened.parts
    train = next(iter(parts.values()))
    image_size = sized(train)
    source = Joined(list(parts.values()))
    seen = inspect_all(source, size=storage_size(image_size), workers=workers, talk=talk)

    found = Examination(parts, opened.labels, seen)
    readable = Subset(train, found.good_of(found.train))
    if not len(source):
        found.add("no images", str(opened.refusal), [(", ".join(options.data), "")], problem=True)
    elif refusal := opened.refusal or found.unreadable_part():
        unlabelled = isinstance(refusal, Unlabelled)
        found.add("finetune stops", str(refusal), [(", ".join(options.data), "")], problem=not unlabelled)
    found.add("finetune warns", "of how it reads the folders", [(line, "") for line in opened.warned])
    found.look_for_bad(options.max_bad)
    few = [(f"{len(readable)} of {len(train)}", "can be read")] if len(train) and len(readable) < 2 else []
    found.add("too few images", "pretraining needs two at least", few, problem=True)
    found.look_at_classes()
    found.look_for_copies(workers, talk)
    found.look_for_oddities(patch_size_for(PretrainOptions(), image_size, cut=False))
    found.look_at_left_out(opened.left_out)
    speed = len(found.good) / seen.seconds
    plans = plans_for(options, readable, image_size, speed, device, talk) if len(readable) > 1 else []

    records = seen.records[found.good]
    formats = Counter(FORMATS[each] if each >= 0 else "pixels" for each in records["format"].tolist())
    return Checkup(
        data=list(options.data),
        healthy=not found.problems,
        problems=found.problems,
        remarks=found.remarks,
        images={part: len(each) for part, each in parts.items()},
        classes={part: dict(sorted(counts.items())) for part, counts in found.classes.items()},
        formats=dict(formats.most_common()),
        short_side=spread(np.minimum(records["width"], records["height"])),
        long_side=spread(np.maximum(records["width"], records["height"])),
        file_bytes=spread(records["bytes"]),
        all_bytes=int(records["bytes"].sum()),
        left_out=opened.left_out.counts,
        workers=workers,
        images_per_second=speed,
        machine=machine(device),
        plans=plans,
    )


class Noting(Talk):
    """Keeps what is warned of."""

    def __init__(self) -> None:
        self.warned: list[str] = []

    def warn(self, line: str) -> None:
        self.warned.append(line)


@dataclass(frozen=True, kw_only=True)
class Opened:
    """The images that pretraining reads, first, and the parts that are kept for evaluation.

    labels: of each image its class, "" outside the folders of the classes, None without any. refusal: why finetune
    stops. warned: what it would warn of.
    """

    parts: dict[str, Source]
    labels: list[str | None]
    left_out: LeftOut
    refusal: DataError | None = None
    warned: Sequence[str] = ()


def open_parts(options: DoctorOptions, talk: Talk) -> Opened:
    """Open the data as pretrain does and, if it is one set, as finetune does. Raises DataError as pretrain does."""
    root, offline, one = Path(options.data_root), options.offline, options.data[0]
    read = open_unlabelled(options.data, data_root=root, offline=offline, talk=talk)
    unlabelled = Opened(parts={"": read}, labels=[None] * len(read), left_out=read.left_out)
    if len(options.data) > 1 or is_named(one, root):
        return unlabelled
    noting = Noting()
    try:
        pieces = open_pieces(one, data_root=root, offline=offline, talk=noting)
        made = {part: piece() for part, piece in pieces.parts.items()}
    except DataError as error:
        return dataclasses.replace(unlabelled, refusal=error)
    first = made.pop("train", None) or made.pop("all")
    labels = list(first.texts)
    if len(labels) != len(read):  # finetune takes others: parts without labels, say
        known = dict(zip(first.source.names, labels, strict=True))
        labels = [known.get(name) for name in read.names]
    parts = {"train" if made else "": read} | {part: piece.source for part, piece in made.items()}
    labels += itertools.chain.from_iterable(piece.texts for piece in made.values())
    refusal = None
    try:
        assemble(pieces, talk)
    except DataError as error:
        refusal = error
    return Opened(parts=parts, labels=labels, left_out=pieces.left_out, refusal=refusal, warned=noting.warned)


def sized(source: Source) -> int:
    """The image size that pretrain takes; where it finds nothing that can be read, the smallest."""
    try:
        return suggested_size(source) if len(source) else 32
    except DataError:
        return 32


def spread(values: NDArray[np.int64]) -> Spread | None:
    return Spread(*(int(each) for each in np.percentile(values, [0, 50, 100]))) if len(values) else None


def machine(device: torch.device) -> Machine:
    gpu = torch.cuda.get_device_properties(device) if device.type == "cuda" else None
    store = cache_folder(None)
    return Machine(
        cores=num_cores(),
        device=str(device),
        gpu=gpu.name if gpu else None,
        gpu_memory=gpu.total_memory if gpu else None,
        memory=available_memory(),
        shared_memory=shared_memory(),
        store=str(store) if store else None,
        disk=disk_usage(nearest(store)).free if store else None,
    )


def plans_for(
    options: DoctorOptions, source: Source, image_size: int, speed: float, device: torch.device, talk: Talk
) -> list[Plan]:
    """What pretraining does by default, and if that takes long, the same with the small network; timed on some of the
    images, two at least, as pretraining does it itself."""
    size = storage_size(image_size)
    pixels = len(source) * size * size * 3
    in_memory, store = is_small(source, size), cache_folder(None)
    keeps_all = store is not None and pixels <= min(MOST, disk_usage(nearest(store)).free // 2)
    plans: list[Plan] = []
    for backbone in [options.backbone] if options.backbone else BACKBONES:
        asked = {name: getattr(options, name) for name in ("data_root", "offline", "device", "precision", "workers")}
        pretraining = PretrainOptions(data=options.data, image_size=image_size, backbone=backbone, **asked)
        derived = derive(pretraining, source)
        batch_size = derived["batch_size"]
        steps = num_steps(steps=None, epochs=None, num_images=len(source), batch_size=batch_size)
        seconds = None
        if options.time:
            talk.say(f"taking some steps: {backbone} at {image_size} px, batch {batch_size}")
            count = min(batch_size, len(source))  # neighbours where they lie together, else from all over
            rows = np.arange(count) if source.block > 1 else np.linspace(0, len(source) - 1, count).astype(np.int64)
            workers = options.workers or num_cores()
            sample = read_pixels(Subset(source, rows), size=size, workers=workers, max_bad=1, talk=Talk())
            method, step = make_step(derived, pretraining, device, Talk())
            batch = on_device(batches(sample, method, derived, 0)(0), device)
            pace = Pace(fit_to_machine(step, method, batch, pretraining, derived, talk))
            if not in_memory:
                epoch = round(len(source) / batch_size)
                pace = decoding_pace(pace.later, batch_size / speed, keeps_all, epoch, device)
            seconds = pace.seconds(steps)
        given = {**asked, "backbone": backbone}
        flags = [(flag_of(name), value) for name, value in given.items() if value != getattr(PretrainOptions(), name)]
        words = [word for flag, value in flags for word in ([flag] if value is True else [flag, str(value)])]
        plans.append(
            Plan(
                command=shlex.join(["selfie", "pretrain", *options.data, *words]),
                backbone=backbone,
                image_size=image_size,
                batch_size=batch_size,
                micro_batch=derived.get("micro_batch"),
                precision=derived.get("precision"),
                steps=steps,
                seconds=seconds,
                reading=len(source) / speed if in_memory else 0.0,
                pixels=pixels,
                in_memory=in_memory,
            )
        )
        if seconds is None or seconds <= PATIENCE:
            break
    return plans
