"""Images that a run's page shows: which ones, whether the network was trained on them, and their vectors."""

import contextlib
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from selfie_cli.comparison.labels import Data
from selfie_cli.data.augment import Preprocessing, centre_crop
from selfie_cli.data.bad_files import BadFile, too_many
from selfie_cli.data.labelled import assemble, open_labelled, open_parts, parts_with_labels
from selfie_cli.data.named import NAMED
from selfie_cli.data.pixels import InMemory, read_pixels
from selfie_cli.data.sources import Array, Source, Subset, below_shared_folder
from selfie_cli.data.splits import Integers
from selfie_cli.data.unlabelled import open_unlabelled
from selfie_cli.errors import DataError, TrainingError
from selfie_cli.hub import is_address
from selfie_cli.inference.networks import Network, check_classes, images_at_once
from selfie_cli.models.hybrid import AnyClassifier
from selfie_cli.reporting.page import scaled
from selfie_cli.runs import Run
from selfie_cli.talk import Talk

IMAGES = 1000
"""Largest number of images whose vectors are kept, without --images."""
SECONDS = 10.0
"""Seconds after which embedding ends, without --images."""
FIRST = 32
"""Number of images that are embedded even if it takes longer than SECONDS."""


@dataclass(frozen=True, kw_only=True)
class Images:
    """Images to show. labels: int64 [N], positions in `classes`, or None; `note` says where they come from."""

    source: Source
    labels: Integers | None
    classes: list[str]
    note: str
    image_size: int
    preprocessing: Preprocessing
    workers: int

    @property
    def small(self) -> bool:
        """Whether images are so small that the page shows single pixels."""
        return self.image_size <= 64

    def pixels(self, rows: Integers) -> Tensor:
        """Return pixels as stored for the network, uint8 [B, S, S, 3], of images that are known to be readable."""
        return self.read(rows).pixels

    def read(self, rows: Integers) -> InMemory:
        """Read the images of `rows`; skip unreadable ones."""
        size, interpolation = self.preprocessing.storage_size(self.image_size), self.preprocessing.interpolation
        part, workers = Subset(self.source, rows), self.workers
        return read_pixels(part, size=size, workers=workers, max_bad=None, talk=Talk(), interpolation=interpolation)

    def pictures(self, rows: Integers, side: int) -> Tensor:
        """Return pixels as the network sees them, scaled to at most `side` px: uint8 [B, s, s, 3]."""
        seen = centre_crop(self.pixels(rows), self.image_size)
        return scaled(seen, side) if self.image_size > side else seen

    def names(self, rows: Integers) -> list[str]:
        """Return names relative to the folder that all of `rows` share."""
        return list(below_shared_folder(Subset(self.source, rows).names))

    def label(self, row: int) -> str | None:
        return None if self.labels is None else self.classes[self.labels[row]]


@dataclass(frozen=True, kw_only=True)
class Embedded:
    """Outputs of a network for N random images, the first M <= N of which are kept for the map and the neighbours.

    rows: int64 [N], indices of the images; vectors: float32 [M, D]; thumbs: uint8 [M, t, t, 3]; predicted: int64 [N]
    and confidence: float32 [N], empty if the network is no classifier. bad: the images that cannot be read. whole:
    whether the network has seen all images.
    """

    rows: Integers
    vectors: Tensor
    thumbs: Tensor
    predicted: Tensor
    confidence: Tensor
    bad: list[BadFile]
    whole: bool


def open_images(run: Run, dataset: str | None, *, data_root: Path, offline: bool, workers: int, talk: Talk) -> Images:
    """Return images of `dataset` or of the run's own data: the test or validation part, if there is one.

    The run's own data are never downloaded. Raise DataError if images are missing, or if they have classes that a
    finetuned network does not know.
    """
    asked, offline = run.config["asked"], offline or not dataset
    if not dataset:
        check_own(run)
    source: Source
    labels: Integers | None
    if classes := run.derived.get("classes"):
        name = dataset or asked.get("dataset")
        if name is None:
            raise DataError("its config names none")
        found = open_labelled(str(name), data_root=data_root, offline=offline, talk=talk)
        check_classes(found.train.classes, classes)
        place = np.array([classes.index(each) for each in found.train.classes])
        source, labels = found.test.source, place[found.test.labels]
        note = f"From {found.name}{'' if dataset else ', not used in training'}. {found.split_note}"
    else:
        pinned = {} if dataset else run.config["data"].get("pinned", {})
        names = [pinned.get(each, each) for each in ([dataset] if dataset else asked.get("data", []))]
        source, labels, classes, note = choose(names, data_root, offline=offline, own=not dataset, talk=talk)
    return Images(
        source=source,
        labels=labels,
        classes=classes,
        note=note,
        image_size=int(run.derived["image_size"]),
        preprocessing=Preprocessing.of(run.derived),
        workers=workers,
    )


def tested_on(run: Run, data: Data) -> Images:
    """Return the images on which the networks of a run were tested. They are decoded already."""
    return Images(
        source=Array(data.test.pixels.numpy(), data.test.names),
        labels=data.test.labels.numpy(),
        classes=data.classes,
        note=f"From {data.name}, not used in training. {data.split}",
        image_size=int(run.derived["image_size"]),
        preprocessing=Preprocessing.of(run.derived),
        workers=1,
    )


def check_own(run: Run) -> None:
    """Raise DataError if a run from the Hub names images that are not a known set. A stranger's config must not choose
    which files of this machine a page shows."""
    asked, pinned = run.config["asked"], run.config["data"].get("pinned", {})
    named = [asked.get("dataset")] if "classes" in run.derived else asked.get("data", [])
    from_hub = is_address(run.address or "") or "hub" in run.config
    if from_hub and not all(each in NAMED and each not in pinned for each in named):
        raise DataError("it comes from the Hub, and its images are not known here")


def choose(
    asked: list[str], root: Path, *, offline: bool, own: bool, talk: Talk
) -> tuple[Source, Integers | None, list[str], str]:
    """Return images, labels and classes if the layout has any, and a sentence on the images. `own`: whether the run was
    pretrained on them."""
    trained = "These are images that the network was pretrained on: the data have no test part."
    if len(asked) == 1:
        held = None
        with contextlib.suppress(DataError):  # no classes; missing images raise below
            found = open_parts(asked[0], data_root=root, offline=offline, talk=Talk())
            held = next((part for part in ("test", "validation") if part in found.parts), None)
            if own and not held:  # use all: to split off a test part would read all of them
                (whole,) = parts_with_labels(found).values()
                return whole.source, whole.labels, whole.classes, trained
            split = assemble(found, Talk())
            note = f"{'Held-out images' if own else 'Images'} of {split.name}. {split.split_note}"
            return split.test.source, split.test.labels, split.test.classes, note
        if held is not None:
            return found.open(held), None, [], f"Held-out images of {found.parts[held]}, without labels."
    told = Talk() if own else talk  # pretraining has told what it left out
    source = open_unlabelled(asked, data_root=root, offline=offline, talk=told)
    return source, None, [], trained if own else f"Images of {', '.join(asked)}, without labels."


def embed(
    images: Images, network: Network, *, limit: int | None, bf16: bool, max_bad: float, exclude: set[str], talk: Talk
) -> Embedded:
    """Run the network on a random part of the images, the same each time, without those that `exclude` names.

    A classifier sees all images, but only `limit` vectors are kept. Without `limit`, embedding ends after SECONDS.
    Raise DataError if more than the share `max_bad` of the images cannot be read, or if none is left.
    """
    order = np.random.default_rng(0).permutation(len(images.source))
    if exclude:
        names = images.source.names
        order = np.array([i for i in order if names[i] not in exclude], np.int64)
    kept = limit or IMAGES
    wanted = len(order) if isinstance(network.module, AnyClassifier) else min(kept, len(order))
    lean = network.lean(torch.bfloat16 if bf16 else torch.float32)
    side = min(images.image_size, 64)
    at_once = max(FIRST, images_at_once(network.device, network.image_size))
    rows: list[Integers] = []
    vectors, thumbs = torch.empty(0), torch.empty(0, dtype=torch.uint8)
    predicted, confidence = torch.empty(0, dtype=torch.int64), torch.empty(0)
    bad: list[BadFile] = []
    begun, done = time.monotonic(), 0
    with talk.track("looking at images", wanted) as advance, torch.no_grad():
        while done < wanted and (done < FIRST or limit or time.monotonic() - begun < SECONDS):
            part = order[done : min(wanted, done + (at_once if done else FIRST))]
            done += len(part)
            store = images.read(part)
            bad += store.bad
            if not len(store):
                continue
            each = lean.vectors(store.pixels.to(network.device))
            if not each.isfinite().all():
                raise TrainingError("the features are not finite numbers: this network has diverged, use another run")
            if isinstance(lean.module, AnyClassifier):
                sure, best = lean.module.head(each).float().softmax(dim=1).max(dim=1)
                predicted, confidence = torch.cat([predicted, best.cpu()]), torch.cat([confidence, sure.cpu()])
            if len(vectors) < kept:
                small = scaled(centre_crop(store.pixels, images.image_size), side)
                vectors, thumbs = torch.cat([vectors, each.cpu()]), torch.cat([thumbs, small])
            rows.append(part[store.kept])
            advance(done, f"{len(bad)} unreadable" if bad else "")
    if not done:
        raise DataError("no images are left to show")
    if not rows or len(bad) > max_bad * done:
        raise too_many(bad, done, max_bad)
    return Embedded(
        rows=np.concatenate(rows),
        vectors=vectors[:kept],
        thumbs=thumbs[:kept],
        predicted=predicted,
        confidence=confidence,
        bad=bad,
        whole=done == len(order),
    )
