"""Labelled images for finetune, curve and eval: decoding, test images seen before, and shares of the labels."""

import dataclasses
import functools
import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from selfie_cli.comparison.results import in_percent
from selfie_cli.data import splits
from selfie_cli.data.augment import Preprocessing
from selfie_cli.data.bad_files import BadFile, report_bad, too_many
from selfie_cli.data.duplicates import FILE_NAME, MOST_PAIRS, Seen, find_seen, load_marks, marks_of
from selfie_cli.data.labelled import LabelledSplits, open_labelled
from selfie_cli.data.pixels import open_pixels
from selfie_cli.data.sources import fingerprint, warn_of_size
from selfie_cli.data.splits import Integers
from selfie_cli.errors import DataError, RunError, UsageError
from selfie_cli.files import write_json_lines
from selfie_cli.inference.networks import check_classes
from selfie_cli.runs import Run
from selfie_cli.talk import Talk, counted
from selfie_cli.training.distributed import decoded_once, group
from selfie_cli.training.hardware import num_cores
from selfie_cli.training.start import where_it_began


@dataclass(frozen=True, kw_only=True)
class Reading:
    """Options for reading labelled images. Each field has the name of its option."""

    dataset: str | None
    data_root: str
    offline: bool
    exclude_seen: bool
    max_bad: float
    workers: int | None
    store: str | None
    store_gb: float | None


@dataclass(frozen=True, kw_only=True)
class Part:
    """Decoded images and their labels. pixels: uint8 [N, S, S, 3]; labels: int64 [N]; names: N."""

    pixels: Tensor
    labels: Tensor
    names: list[str]


@dataclass(frozen=True)
class SeenImage:
    """A test image with a copy or near-duplicate in the pretraining images of `run`, or in the training part (None)."""

    path: str
    run: str | None
    kind: str
    bits: int


@dataclass(frozen=True, kw_only=True)
class Data:
    """A labelled data set, decoded.

    `fingerprints` are hashes that detect a changed data set. `seen` lists test images with a copy or near-duplicate in
    a run's pretraining images or in the training part; with --exclude-seen, `test` does not include them.
    """

    name: str
    classes: list[str]
    train: Part
    test: Part
    split: str
    fingerprints: dict[str, str]
    pinned: dict[str, str]
    left_out: dict[str, int]
    bad: list[BadFile]
    num_images: int
    seen: list[SeenImage]

    @property
    def num_seen(self) -> int:
        """Number of test images with a copy or near-duplicate in pretraining."""
        return len({each.path for each in self.seen if each.run is not None})

    @property
    def num_like_train(self) -> int:
        """Number of test images with a copy or near-duplicate in the training part."""
        return len({each.path for each in self.seen if each.run is None})

    def record(self) -> dict[str, Any]:
        """Return the `data` section of a run's config."""
        return {
            "fingerprints": self.fingerprints,
            "pinned": self.pinned,
            "left_out": self.left_out,
            "unreadable": len(self.bad),
            "split": self.split,
            "seen_test_images": self.num_seen,
            "like_training_images": self.num_like_train,
        }

    def report(self, bad: Path, seen: Path, talk: Talk) -> None:
        """Report unreadable images, and write the lists of unreadable and seen images unless they are empty."""
        report_bad(self.bad, self.num_images, bad, talk)
        if self.seen:
            write_json_lines(seen, [dataclasses.asdict(each) for each in self.seen])


def read_data(
    reading: Reading,
    image_size: int,
    *,
    preprocessing: Preprocessing,
    run: Run | None = None,
    sources: list[Run],
    known: list[str] | None = None,
    talk: Talk,
) -> Data:
    """Decode the training and the test part of a labelled data set.

    Args:
        run: the stopped run to resume, if any. sources: runs whose pretraining may have seen the test images.
        known: the only classes that the data set may have, if not None.

    Raise RunError if `run` was started with other images or labels, DataError if too many images are unreadable or no
    test image is left.
    """
    dataset = reading.dataset
    if dataset is None:
        raise UsageError(
            "--dataset is missing: give a folder with a subfolder per class, or a named set such as cifar10"
        )
    if run is not None:
        dataset = run.config["data"].get("pinned", {}).get(dataset, dataset)
    with where_it_began(run):
        found = open_labelled(dataset, data_root=Path(reading.data_root), offline=reading.offline, talk=talk)
    talk.say(found.split_note)
    if run is None and image_size <= 64 and (not sources or any(source.address == "bundled" for source in sources)):
        advice = {} if sources else {"advice": "give --image-size 224"}
        warn_of_size(found.train.source, image_size, talk, **advice)
    if known is not None:
        check_classes(found.train.classes, known)
    labels = hashlib.sha256(repr(found.train.classes).encode())  # names in shards and tables do not include labels
    for part in (found.train, found.test):
        labels.update(part.labels.tobytes())
    marks = {"train": fingerprint(found.train.source), "test": fingerprint(found.test.source)}
    marks["labels"] = labels.hexdigest()[:16]
    if run is not None and {"labels": marks["labels"], **run.config["data"].get("fingerprints", {})} != marks:
        raise RunError(f"the images have changed, or their labels, since {run.path} was started: start a new run")
    size = preprocessing.storage_size(image_size)
    (train, test), bad = read_parts(found, size, preprocessing.interpolation, reading=reading, talk=talk)
    if run is not None and run.config["data"].get("unreadable", len(bad)) != len(bad):
        raise RunError(f"the images that can be read have changed since {run.path} was started: start a new run")
    rows, seen = look_for_seen(sources, train, test, exclude=reading.exclude_seen, talk=talk)
    return Data(
        name=found.name,
        classes=found.train.classes,
        train=train,
        test=take(test, rows),
        split=found.split_note,
        fingerprints=marks,
        pinned=dict(found.train.source.pinned),
        left_out=found.left_out.counts,
        bad=bad,
        num_images=len(found.train.source) + len(found.test.source),
        seen=seen,
    )


def read_parts(
    found: LabelledSplits, size: int, interpolation: str, *, reading: Reading, talk: Talk
) -> tuple[list[Part], list[BadFile]]:
    """Decode both parts, warn about classes without a readable image. Raise DataError if too many are unreadable.

    If there are several processes, the first one decodes, with all cores of its machine.
    """
    parts: list[Part] = []
    bad: list[BadFile] = []
    for kind, labelled in (("training", found.train), ("test", found.test)):
        source = labelled.source
        opened = functools.partial(
            open_pixels,
            source,
            size=size,
            interpolation=interpolation,
            workers=reading.workers or num_cores() * group().local_world,
            max_bad=1,  # checked below, for both parts together
            talk=talk,
            folder=reading.store,
            limit_gb=reading.store_gb,
        )
        store = decoded_once(source, opened)
        labels, names = torch.from_numpy(labelled.labels[store.kept]), [source.names[i] for i in store.kept]
        parts.append(Part(pixels=store.pixels, labels=labels, names=names))
        bad += store.bad
        for label in np.setdiff1d(labelled.labels, labels.numpy()).tolist():
            talk.warn(f"class {labelled.classes[label]}: none of its {kind} images can be read")
            found.left_out.add("lost_classes", f"{labelled.classes[label]} ({kind})")
    num_images = len(found.train.source) + len(found.test.source)
    if len(bad) > reading.max_bad * num_images:
        raise too_many(bad, num_images, reading.max_bad)
    return parts, bad


def take(part: Part, indices: Integers) -> Part:
    """Return the images at `indices`, int64 [M], ascending; `part` itself if these are all images."""
    if len(indices) == len(part.labels):
        return part
    rows = torch.from_numpy(indices)
    return Part(
        pixels=part.pixels.index_select(0, rows), labels=part.labels[rows], names=[part.names[i] for i in indices]
    )


def unmarked(run: Run) -> str | None:
    """Return the name of `run`, or of a run it started from, that has no record of its pretraining images, or None."""
    if not (run.path / FILE_NAME).is_file():
        return run.name
    unknown: str | None = run.config.get("data", {}).get("unmarked")
    return unknown


def look_for_seen(
    sources: Iterable[Run], train: Part, test: Part, *, exclude: bool, talk: Talk
) -> tuple[Integers, list[SeenImage]]:
    """Compare test images with training images, and with the pretraining images of the runs `sources`.

    The pretraining images of a run without marks (the bundled network, a finetuned one) are unknown.

    Return the rows of the test images to keep, int64 [M], ascending: all or, with `exclude`, those not seen before.
    Also return a record for each seen image and each run that has seen it.

    Raise UsageError if `exclude` needs marks that a run does not have, DataError if it leaves no test image.
    """
    names, marks = test.names, marks_of(test.pixels)
    if len(train.names) * len(names) > MOST_PAIRS:
        talk.say("too many test images to search for near-duplicates of training images: only copies are reported")
    compared: list[tuple[str | None, Seen]] = [(None, find_seen(marks, marks_of(train.pixels), pairs=MOST_PAIRS))]
    for source in sources:
        if marked := (source.path / FILE_NAME).is_file():
            compared.append((source.name, find_seen(marks, load_marks(source.path / FILE_NAME))))
        elif exclude:
            raise UsageError(f"--exclude-seen: {source.name} has no record of the images that it was pretrained on")
        if unknown := unmarked(source):
            first = "" if not marked else f", which {source.name} started from,"
            talk.say(
                f"{unknown}{first} has no record of its training images: test images among them would not be noticed"
            )
    records: list[SeenImage] = []
    for run, found in compared:
        near, copies = int(found.near.sum()), int(found.exact.sum())
        if near:
            seen = f"were seen when {run} was pretrained" if run else "are like training images"
            talk.warn(
                f"{near:,} of {len(names):,} test images ({near / len(names):.1%}) {seen}: "
                f"{copies:,} {'copy' if copies == 1 else 'copies'}, {counted(near - copies, 'near-duplicate')}"
                + (", left out" if exclude else "; --exclude-seen leaves them out")
            )
        for i in np.flatnonzero(found.near):
            kind = "copy" if found.exact[i] else "near-duplicate"
            records.append(SeenImage(names[i], run, kind, int(found.distance[i])))
    keep = np.ones(len(names), dtype=np.bool_)
    if exclude:
        keep = ~np.logical_or.reduce([found.near for _, found in compared])
    if len(keep) and not keep.any():
        raise DataError(
            "every test image was seen in pretraining or is similar to a training image: without --exclude-seen, "
            "all are kept, with a warning"
        )
    return np.flatnonzero(keep), records


@dataclass(frozen=True, kw_only=True)
class Share:
    """A share of the labels. subsets: seed -> rows of the training part, int64 [M], sorted."""

    fraction: float
    subsets: dict[int, Integers]

    @property
    def seeds(self) -> list[int]:
        return list(self.subsets)

    @property
    def num_labels(self) -> int:
        return len(self.subsets[self.seeds[0]])

    @property
    def percent(self) -> str:
        return in_percent(self.fraction)

    def cell(self, arm: str, seed: int) -> str:
        """Return the name of the cell of an arm with a seed."""
        return f"{arm}-f{self.fraction:g}-s{seed}"


def take_share(part: Part, fraction: float, seeds: range, num_rates: int, talk: Talk) -> Share:
    """Draw a subset for each seed; warn if the fraction is less than an image of some class.

    Raise UsageError if the subset is too small to choose among `num_rates` learning rates.
    """
    labels = part.labels.numpy()
    share = Share(fraction=fraction, subsets={seed: splits.fraction_indices(labels, fraction, seed) for seed in seeds})
    if np.unique(labels, return_counts=True)[1].min() * fraction < 0.5:
        in_all = counted(share.num_labels, "label")
        talk.warn(f"with {share.percent}, some classes would have no image: they get one each, {in_all} in all")
    if num_rates > 1 and share.num_labels <= len(np.unique(labels)):
        raise UsageError(
            "one label per class leaves none to choose --lr with: give a single --lr, or a larger --fraction"
        )
    return share
