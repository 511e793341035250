"""The labelled images that finetune and curve train and test on, and eval judges by, decoded; shares of the labels."""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from selfie_cli.comparison.seen import counts_of, look_for_seen
from selfie_cli.config import DataOptions, LabelOptions
from selfie_cli.data import splits
from selfie_cli.data.bad_files import BadFile, report_bad, too_many
from selfie_cli.data.labelled import LabelledSplits, open_labelled
from selfie_cli.data.pixels import open_pixels, storage_size
from selfie_cli.data.sources import Labelled, fingerprint
from selfie_cli.data.splits import Labels
from selfie_cli.errors import RunError, UsageError
from selfie_cli.files import write_json_lines
from selfie_cli.runs import Run
from selfie_cli.talk import Talk
from selfie_cli.training.distributed import group
from selfie_cli.training.hardware import num_cores
from selfie_cli.training.start import where_it_began


@dataclass(frozen=True, kw_only=True)
class Part:
    """Decoded images and their labels. pixels: uint8 [N, S, S, 3]; labels: int64 [N]; names: N."""

    pixels: Tensor
    labels: Tensor
    names: list[str]


@dataclass(frozen=True, kw_only=True)
class Data:
    """A labelled data set, decoded. `record` is what a run's config keeps of it.

    `seen` names the test images that a pretraining has seen; if they were to be left out, they are not in `test`.
    """

    name: str
    classes: list[str]
    train: Part
    test: Part
    record: dict[str, Any]
    bad: list[BadFile]
    num_images: int
    seen: list[dict[str, Any]]

    def report(self, run: Run, talk: Talk) -> None:
        """Write bad_files.jsonl and seen_test_images.jsonl, where there is anything to tell."""
        if not group().first:
            return
        report_bad(self.bad, self.num_images, run.path / "bad_files.jsonl", talk)
        if self.seen:
            write_json_lines(run.path / "seen_test_images.jsonl", self.seen)


@dataclass(frozen=True, kw_only=True)
class Share:
    """A share of the labels: for each seed, which images of the training part, int64 [M], sorted."""

    fraction: float
    subsets: dict[int, Labels]

    @property
    def seeds(self) -> list[int]:
        return list(self.subsets)

    @property
    def num_labels(self) -> int:
        return len(self.subsets[self.seeds[0]])

    def cell(self, arm: str, seed: int) -> str:
        """The name of the cell of an arm of that name."""
        return f"{arm}-f{self.fraction:g}-s{seed}"


def read_data(options: LabelOptions, image_size: int, run: Run | None, sources: list[Run], talk: Talk) -> Data:
    """Both parts of --dataset, decoded; test images are looked for among those that `sources` were pretrained on.

    Raises RunError if they are not what `run` was started with, DataError if no test image is left.
    """
    assert options.dataset is not None
    pinned = run.config["data"].get("pinned", {}) if run is not None else {}
    dataset = pinned.get(options.dataset, options.dataset)
    with where_it_began(run):
        found = open_labelled(dataset, data_root=Path(options.data_root), offline=options.offline, talk=talk)
    talk.say(found.split_note)
    marks = {"train": fingerprint(found.train.source), "test": fingerprint(found.test.source)}
    marks["labels"] = mark_of_labels(found)
    if run is not None and {"labels": marks["labels"], **run.config["data"].get("fingerprints", {})} != marks:
        raise RunError(f"the images have changed, or their labels, since {run.path} was started: start a new run")
    train_part, test_part, bad = read_parts(found, size=storage_size(image_size), options=options, talk=talk)
    rows, seen = look_for_seen(
        sources, train_part.pixels, test_part.pixels, test_part.names, exclude=options.exclude_seen, talk=talk
    )
    num_seen, num_like_train = counts_of(seen)
    return Data(
        name=found.name,
        classes=found.train.classes,
        train=train_part,
        test=take(test_part, rows.numpy()),
        record={
            "fingerprints": marks,
            "pinned": dict(found.train.source.pinned),
            "left_out": found.left_out.counts,
            "unreadable": len(bad),
            "split": found.split_note,
            "seen_test_images": num_seen,
            "like_training_images": num_like_train,
        },
        bad=bad,
        num_images=len(found.train.source) + len(found.test.source),
        seen=seen,
    )


def mark_of_labels(found: LabelledSplits) -> str:
    """16 hex digits over the classes and every label; names do not tell of those in tar shards and parquet files."""
    digest = hashlib.sha256(repr(found.train.classes).encode())
    for part in (found.train, found.test):
        digest.update(part.labels.tobytes())
    return digest.hexdigest()[:16]


def read_parts(
    found: LabelledSplits, *, size: int, options: DataOptions, talk: Talk
) -> tuple[Part, Part, list[BadFile]]:
    """The training part, the test part, and what cannot be read of both; names classes of which nothing can."""
    parts: list[Part] = []
    bad: list[BadFile] = []
    num_images = len(found.train.source) + len(found.test.source)
    for labelled in (found.train, found.test):
        part, unreadable = read_part(labelled, size=size, options=options, talk=talk)
        parts.append(part)
        bad += unreadable
        for label in np.setdiff1d(labelled.labels, part.labels.numpy()).tolist():
            kind = "test" if labelled is found.test else "training"
            talk.warn(f"class {labelled.classes[label]}: none of its {kind} images can be read")
            found.left_out.add("lost_classes", f"{labelled.classes[label]} ({kind})")
    if len(bad) > options.max_bad * num_images:
        raise too_many(bad, num_images, options.max_bad)
    return parts[0], parts[1], bad


def read_part(part: Labelled, *, size: int, options: DataOptions, talk: Talk) -> tuple[Part, list[BadFile]]:
    store = open_pixels(
        part.source,
        size=size,
        workers=options.workers or num_cores(),
        max_bad=1,  # of both parts together, see `read_parts`
        talk=talk,
        folder=options.store,
        limit_gb=options.store_gb,
    ).in_memory()
    names = part.source.names
    labels = torch.from_numpy(part.labels[store.kept])
    return Part(pixels=store.pixels, labels=labels, names=[names[i] for i in store.kept]), store.bad


def take(part: Part, indices: Labels) -> Part:
    """Its images at `indices`, int64 [M], ascending; itself, if that is all of them."""
    if len(indices) == len(part.labels):
        return part
    rows = torch.from_numpy(indices)
    return Part(
        pixels=part.pixels.index_select(0, rows), labels=part.labels[rows], names=[part.names[i] for i in indices]
    )


def take_share(data: Data, fraction: float, seeds: range, num_rates: int) -> Share:
    """A subset for each seed. Raises UsageError if it leaves nothing to choose among `num_rates` with."""
    labels = data.train.labels.numpy()
    share = Share(fraction=fraction, subsets={seed: splits.fraction_indices(labels, fraction, seed) for seed in seeds})
    if num_rates > 1 and share.num_labels <= len(data.classes):
        raise UsageError("one label a class leaves none to choose a rate with: give one --lr, or a larger --fraction")
    return share
