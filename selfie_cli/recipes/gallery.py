"""The images that a run's page shows: which, whether the network has trained on them, and what it makes of them."""

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from selfie_cli.config import ReportOptions
from selfie_cli.data.augment import centre_crop
from selfie_cli.data.labelled import Labelled, open_labelled
from selfie_cli.data.named import NAMED
from selfie_cli.data.sources import (
    Files,
    Joined,
    Source,
    Subset,
    list_images,
    named_tree,
    open_unlabelled,
    split_folders,
)
from selfie_cli.data.splits import Labels
from selfie_cli.data.store import BadFile, read_store, storage_size
from selfie_cli.errors import DataError
from selfie_cli.hub import is_address
from selfie_cli.models.hybrid import AnyClassifier
from selfie_cli.recipes.eval import check_known
from selfie_cli.recipes.networks import Network, images_at_once
from selfie_cli.report.drawing import scaled
from selfie_cli.runs import Run
from selfie_cli.talk import Talk
from selfie_cli.training.machine import num_cores

IMAGES = 1000
SECONDS = 10.0
"""What embedding may take where --images does not say how many."""
FIRST = 32  # images that are embedded however long they take
LABELLED_DATA = ("finetune", "curve")


@dataclass(frozen=True, kw_only=True)
class Gallery:
    """Images to show. labels: int64 [N], positions in `classes`, or None; `note` says where they come from."""

    source: Source
    labels: Labels | None
    classes: list[str]
    note: str
    image_size: int

    def pixels(self, indices: Sequence[int], workers: int) -> Tensor:
        """As they are stored for the network: uint8 [B, S, S, 3]. All of them have been read before."""
        chosen = Subset(self.source, np.array(indices, np.int64))
        return read_store(chosen, size=storage_size(self.image_size), workers=workers, max_bad=1, talk=Talk()).pixels

    def pictures(self, indices: Sequence[int], workers: int, side: int) -> Tensor:
        """As the network sees them, uint8 [B, s, s, 3], at most `side` large."""
        seen = centre_crop(self.pixels(indices, workers), self.image_size)
        return scaled(seen, side) if self.image_size > side else seen

    def label(self, index: int) -> str | None:
        return None if self.labels is None else self.classes[self.labels[index]]


@dataclass(frozen=True, kw_only=True)
class Embedded:
    """What a network makes of a random part of a gallery; N images, M <= N of them for map and neighbours.

    rows: int64 [N], their indices in the gallery; vectors: float32 [M, D]; thumbs: uint8 [M, t, t, 3]; predicted,
    int64 [N], with confidence, float32 [N]: of a classifier only. bad: what could not be read. whole: nothing else
    is in the gallery.
    """

    rows: Labels
    vectors: Tensor
    thumbs: Tensor
    predicted: Tensor | None
    confidence: Tensor | None
    bad: list[BadFile]
    whole: bool


def open_gallery(run: Run, options: ReportOptions, talk: Talk) -> Gallery:
    """--dataset, or what the run was made with: its test part, or validation, where there is one.

    Raises DataError where it is not there, or has classes that a finetuned network does not know.
    """
    root, size = Path(options.data_root), int(run.derived["image_size"])
    if not options.dataset:
        check_own(run)
    if run.verb in LABELLED_DATA:
        name = options.dataset or str(run.config["asked"]["dataset"])
        found = open_labelled(name, data_root=root, offline=options.offline or not options.dataset, talk=talk)
        check_known(found.train.classes, run.derived["classes"])
        known = np.array([run.derived["classes"].index(each) for each in found.train.classes])
        return Gallery(
            source=found.test.source,
            labels=known[found.test.labels],
            classes=run.derived["classes"],
            note=f"Images of {found.name} that were not trained on. {found.split_note}",
            image_size=size,
        )
    if options.dataset:
        asked, offline = [options.dataset], options.offline
        own = False
    else:
        pinned = run.config["data"].get("pinned", {})
        asked, offline, own = [pinned.get(one, one) for one in run.config["asked"].get("data", [])], True, True
    source, labelled, note = _choose(asked, root, offline, own, talk)
    labels, classes = (labelled.labels, labelled.classes) if labelled else (None, [])
    return Gallery(source=source, labels=labels, classes=classes, note=note, image_size=size)


def check_own(run: Run) -> None:
    """Raises DataError if a run from the Hub names other images than a known set: a stranger's config must not choose
    which files of this machine a page shows."""
    asked = run.config["asked"]
    named = [asked.get("dataset")] if run.verb in LABELLED_DATA else asked.get("data", [])
    from_hub = is_address(run.address or "") or "hub" in run.config
    if from_hub and not all(each in NAMED for each in named):
        raise DataError("it comes from the Hub, and its images are not known here")


def _choose(asked: list[str], root: Path, offline: bool, own: bool, talk: Talk) -> tuple[Source, Labelled | None, str]:
    """Images, their labels if the layout has any, and a sentence on them. `own`: the run was pretrained on them."""
    trained = "These are images that the network was pretrained on: the data have no test part."
    if len(asked) == 1:
        name = asked[0]
        parts = split_folders(name) if os.path.isdir(name) else {}
        try:
            found = open_labelled(name, data_root=root, offline=offline, talk=Talk())
        except DataError:  # no classes there; whether there are images at all is found out below
            found = None
        held_out = parts or (name in NAMED and ("test" in NAMED[name].parts or named_tree(name, root)))
        if found is not None and (held_out or not own):
            what = "Held-out images" if own else "Images"
            return found.test.source, found.test, f"{what} of {found.name}. {found.split_note}"
        if found is not None:
            both = Joined([found.train.source, found.test.source])
            labels = np.concatenate([found.train.labels, found.test.labels])
            return both, Labelled(both, labels, found.train.classes), trained
        if part := parts.get("test") or parts.get("validation"):
            images = Files(list_images(os.path.join(name, part)))
            if len(images):
                return images, None, f"Held-out images of the folder {part}/, without labels."
    source = open_unlabelled(asked, data_root=root, offline=offline, talk=talk)
    return source, None, trained if own else f"Images of {', '.join(asked)}, without labels."


def embed(
    gallery: Gallery, network: Network, options: ReportOptions, talk: Talk, *, exclude: frozenset[str] = frozenset()
) -> Embedded:
    """A random part of the gallery, the same each time, less what `exclude` names.

    A classifier is shown all of them, and M of them are kept. Without --images it ends after some SECONDS. Raises
    DataError if more than --max-bad of them cannot be read, or none is left.
    """
    order = np.random.default_rng(0).permutation(len(gallery.source))
    if exclude:
        names = gallery.source.names
        order = np.array([i for i in order if names[i] not in exclude], np.int64)
    kept = options.images or IMAGES
    classifier = isinstance(network.module, AnyClassifier)
    wanted = len(order) if classifier else min(kept, len(order))
    lean = network.lean(torch.bfloat16 if options.precision == "bf16" else torch.float32)
    side = min(gallery.image_size, 64)
    at_once = max(FIRST, images_at_once(network.device, network.image_size))
    rows: list[Labels] = []
    vectors: list[Tensor] = []
    thumbs: list[Tensor] = []
    predicted: list[Tensor] = []
    confidence: list[Tensor] = []
    bad: list[BadFile] = []
    begun, done = time.monotonic(), 0
    with talk.track("looking at images", wanted) as advance, torch.no_grad():
        while done < wanted and (done < FIRST or options.images or time.monotonic() - begun < SECONDS):
            part = order[done : min(wanted, done + (at_once if done else FIRST))]
            done += len(part)
            store = read_store(
                Subset(gallery.source, part),
                size=storage_size(gallery.image_size),
                workers=options.workers or num_cores(),
                max_bad=1,
                talk=Talk(),
            )
            bad += store.bad
            pixels = store.pixels.to(network.device)
            each = lean.vectors(pixels)
            if isinstance(lean.module, AnyClassifier):
                sure, best = lean.module.head(each).float().softmax(dim=1).max(dim=1)
                predicted.append(best.cpu())
                confidence.append(sure.cpu())
            if sum(len(each) for each in vectors) < kept:
                vectors.append(each.cpu())
                thumbs.append(scaled(centre_crop(store.pixels, gallery.image_size), side))
            rows.append(part[store.kept])
            advance(done, f"{len(bad)} unreadable" if bad else "")
    if not rows:
        raise DataError("no images are left to show")
    if len(bad) > options.max_bad * done:
        raise DataError(
            f"{len(bad)} of {done} images cannot be read, the first is {bad[0].name}: {bad[0].reason}. Mend or remove "
            "them, or allow more with --max-bad"
        )
    return Embedded(
        rows=np.concatenate(rows),
        vectors=torch.cat(vectors)[:kept],
        thumbs=torch.cat(thumbs)[:kept],
        predicted=torch.cat(predicted) if predicted else None,
        confidence=torch.cat(confidence) if confidence else None,
        bad=bad,
        whole=done == len(order),
    )
