"""selfie doctor: check images before training on them, and estimate the time of pretraining on this machine."""

import dataclasses
import itertools
import shlex
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from shutil import disk_usage
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from selfie_cli.config import Backbone, DoctorOptions, PretrainOptions
from selfie_cli.data.augment import OURS
from selfie_cli.data.cache import MOST, cache_folder
from selfie_cli.data.examination import Examination, Finding
from selfie_cli.data.images import FORMATS
from selfie_cli.data.labelled import assemble
from selfie_cli.data.labelled import open_parts as open_labelled_parts
from selfie_cli.data.layout import LeftOut
from selfie_cli.data.memory import available_memory
from selfie_cli.data.pixels import is_small, read_pixels
from selfie_cli.data.sources import Files, Source, Subset
from selfie_cli.data.unlabelled import open_unlabelled, place_of
from selfie_cli.errors import DataError, Unlabelled, UsageError
from selfie_cli.files import nearest
from selfie_cli.option import flags
from selfie_cli.pretraining.settings import derive, patch_size_for, suggested_size
from selfie_cli.pretraining.task import batches, decoding_pace, fit_to_machine, make_step
from selfie_cli.talk import Talk
from selfie_cli.training.distributed import group
from selfie_cli.training.hardware import Pace, num_cores, prepare
from selfie_cli.training.schedule import num_steps

LONG_TRAINING = 3600
"""Seconds of pretraining above which the small network is timed as well."""
BACKBONES: tuple[Backbone, ...] = ("resnetv2_50", "resnetv2_10_w32")
"""The default network, and the one for laptops."""


@dataclass(frozen=True)
class Spread:
    smallest: int
    median: int
    largest: int


@dataclass(frozen=True, kw_only=True)
class Machine:
    """This machine. `gpu_memory`, `memory` and `disk` are in bytes; `disk` is free space where images are cached."""

    cores: int
    device: str
    gpu: str | None
    gpu_memory: int | None
    memory: int
    disk: int | None
    store: str | None


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A pretraining as `selfie pretrain` would run it on this machine.

    reading: seconds before the first step. seconds: time of all steps, None if not measured. pixels: bytes of all
    decoded images.
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
class Diagnosis:
    """The result of `doctor`; `--json` prints it.

    `images` and `classes` are by part ("train", "test", ...; "" if there are no parts). `images_per_second` is the
    speed at which `workers` threads read and decode.
    """

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


def doctor(options: DoctorOptions, talk: Talk) -> Diagnosis:
    """Read every image of `options.data` once, and measure this machine. Nothing is written."""
    if not options.data:
        raise UsageError("name the images: folders, files, lists, tar shards or a named set such as cifar10")
    if group().world > 1:
        raise UsageError("doctor checks one machine: start it without torchrun")
    device = prepare(options.device)
    workers = options.workers or num_cores()
    opened = open_parts(options, talk)
    train = next(iter(opened.parts.values()))
    image_size = size_for(train)
    size = OURS.storage_size(image_size)
    found = Examination(opened.parts, opened.labels, size=size, workers=workers, talk=talk)
    examine(found, opened, options, image_size)
    readable = Subset(train, found.good_of(found.train))
    speed = len(found.good) / found.seconds
    records = found.records[found.good]
    formats = Counter(FORMATS[each] if each >= 0 else "pixels" for each in records["format"].tolist())
    return Diagnosis(
        data=list(options.data),
        healthy=not found.problems,
        problems=found.problems,
        remarks=found.remarks,
        images={part: len(each) for part, each in opened.parts.items()},
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
        plans=plans_for(options, readable, image_size, speed, device, talk) if len(readable) > 1 else [],
    )


@dataclass(kw_only=True)
class Opened:
    """The part that pretraining reads, then the parts kept for evaluation.

    labels: the class of each image, "" outside the class folders, None without classes. refusal: the error that would
    stop finetune. warned: the warnings that finetune would print. unopened: parts that cannot be opened but that
    finetune does not read, with the reason.
    """

    parts: dict[str, Source] = field(default_factory=lambda: {"": Files()})
    labels: list[str | None] = field(default_factory=list)
    left_out: LeftOut = field(default_factory=LeftOut)
    refusal: DataError | None = None
    warned: Sequence[str] = ()
    unopened: Sequence[tuple[str, str]] = ()


class Warnings(Talk):
    """Keeps warnings instead of printing them."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def warn(self, line: str) -> None:
        self.lines.append(line)


def open_parts(options: DoctorOptions, talk: Talk) -> Opened:
    """Open the data as pretrain does and, if it is one set, as finetune does."""
    opened, root, one = Opened(), Path(options.data_root), options.data[0]
    try:
        read = open_unlabelled(options.data, data_root=root, offline=options.offline, talk=talk)
        opened.parts, opened.labels, opened.left_out = {"": read}, [None] * len(read), read.left_out
        if len(options.data) == 1 and place_of(one, root):
            add_labels(opened, one, root, options.offline)
    except DataError as error:
        opened.refusal = error
    return opened


def add_labels(opened: Opened, name: str, data_root: Path, offline: bool) -> None:
    """Add the parts and the classes that finetune reads. Raise DataError as finetune does."""
    warnings, made, texts, unopened = Warnings(), dict[str, Source](), dict[str, Sequence[str | None]](), []
    found = open_labelled_parts(name, data_root=data_root, offline=offline, talk=warnings)
    for part in found.parts:
        try:
            source = found.open(part)
            texts[part], made[part] = source.labels()[0], source
        except DataError as error:
            if part != "validation" or "test" not in found.parts:
                raise
            unopened.append((part, str(error)))
    read, first = opened.parts[""], "train" if "train" in made else "all"
    labels, names = list(texts.pop(first)), made.pop(first).names
    if len(labels) != len(read):  # finetune reads different images, such as only the labelled ones
        known = dict(zip(names, labels, strict=True))
        labels = [known.get(name) for name in read.names]
    opened.parts = {"train" if made else "": read} | made
    opened.labels = [*labels, *itertools.chain.from_iterable(texts[part] for part in made)]
    opened.left_out, opened.warned, opened.unopened = found.left_out, warnings.lines, unopened
    assemble(found, warnings)


def examine(found: Examination, opened: Opened, options: DoctorOptions, image_size: int) -> None:
    """Collect the findings about the images."""
    data = [(", ".join(options.data), "")]
    num_train, num_readable = len(found.rows[found.train]), len(found.good_of(found.train))
    if not len(found.names):
        found.add("no images", str(opened.refusal), data, problem=True)
    elif refusal := opened.refusal or found.unreadable_part():
        found.add("finetune stops", str(refusal), data, problem=not isinstance(refusal, Unlabelled))
    for line in opened.warned:
        found.add("finetune warns", line, data)
    found.add("unused part", "cannot be opened; finetune tests on the test part", opened.unopened)
    found.look_for_bad(options.max_bad)
    few = [(f"{num_readable} of {num_train}", "readable")] if num_train and num_readable < 2 else []
    found.add("too few images", "pretraining needs at least two", few, problem=True)
    found.look_at_classes()
    found.look_for_copies()
    found.look_for_oddities(patch_size_for(PretrainOptions(), image_size, {}, cut=False))
    found.look_at_left_out(opened.left_out)


def size_for(source: Source) -> int:
    """Return the image size that pretrain would choose; 32 if no image can be read."""
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
        store=str(store) if store else None,
        disk=disk_usage(nearest(store)).free if store else None,
    )


def plans_for(
    options: DoctorOptions, source: Source, image_size: int, decoding: float, device: torch.device, talk: Talk
) -> list[Plan]:
    """Return the plan of default pretraining and, if that takes long, a plan with the small network.

    decoding: images per second.
    """
    names = ("data", "data_root", "offline", "device", "precision", "workers")
    given = {name: getattr(options, name) for name in names}
    given["max_bad"] = max(options.max_bad, PretrainOptions().max_bad)
    num_images, size = len(source), OURS.storage_size(image_size)
    in_memory = is_small(source, size)
    plans: list[Plan] = []
    for backbone in [options.backbone] if options.backbone else BACKBONES:
        asked = PretrainOptions(backbone=backbone, **given)
        derived = derive(dataclasses.replace(asked, image_size=image_size), source)
        pace = measured_pace(asked, derived, source, decoding, device, talk) if options.time else None
        steps = num_steps(steps=None, epochs=None, num_images=num_images, batch_size=derived["batch_size"])
        words = map(shlex.quote, options.data)
        plan = Plan(
            command=" ".join(["selfie pretrain", *words, *flags(PretrainOptions(), dataclasses.asdict(asked))]),
            backbone=derived["backbone"],
            image_size=image_size,
            batch_size=derived["batch_size"],
            micro_batch=derived.get("micro_batch"),
            precision=derived.get("precision"),
            steps=steps,
            seconds=pace.seconds(steps) if pace else None,
            reading=num_images / decoding if in_memory else 0.0,
            pixels=num_images * size * size * 3,
            in_memory=in_memory,
        )
        plans.append(plan)
        if (plan.seconds or 0) <= LONG_TRAINING:
            break
    return plans


def measured_pace(
    options: PretrainOptions, derived: dict[str, Any], source: Source, decoding: float, device: torch.device, talk: Talk
) -> Pace:
    """Time a few steps on some of the images, as pretrain does; store micro-batch and precision in `derived`."""
    num_images, batch_size, size = len(source), derived["batch_size"], OURS.storage_size(derived["image_size"])
    talk.say(f"timing a few steps: {options.backbone} at {derived['image_size']} px, batch {batch_size}")
    count = min(batch_size, num_images)
    # Adjacent images if they are read in blocks, else evenly spaced images.
    rows = np.arange(count) if source.block > 1 else np.linspace(0, num_images - 1, count).astype(np.int64)
    workers = options.workers or num_cores()
    sample = read_pixels(Subset(source, rows), size=size, workers=workers, max_bad=1, talk=Talk())
    method, step = make_step(derived, device, seed=0, compile="auto", deterministic=False, talk=Talk())
    batch = batches(sample, method, derived, 0)(0)
    asked: Any = {"micro_batch": None, "precision": options.precision, "deterministic": False}
    seconds = fit_to_machine(step, method, batch, derived, **asked, talk=talk)
    if is_small(source, size):
        return Pace(seconds)
    store = cache_folder(None)
    room = min(MOST, disk_usage(nearest(store)).free // 2) if store else -1
    keeps_all = num_images * size * size * 3 <= room
    return decoding_pace(seconds, batch_size / decoding, keeps_all, round(num_images / batch_size), device)
