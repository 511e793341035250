"""Named data sets: a table of them, and torchvision's readers, whose downloads are made complete or not at all."""

import contextlib
import fcntl
import functools
import importlib
import os
import shutil
import sys
import tarfile
import time
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.error import URLError

import numpy as np
from numpy.typing import NDArray

from selfie_cli.data.sources import Array, Files, Source
from selfie_cli.errors import DataError
from selfie_cli.files import temporary_beside
from selfie_cli.talk import Talk


@dataclass(frozen=True)
class NamedSet:
    """A reader in torchvision.datasets, where it downloads from, and the arguments that select each part."""

    reader: str
    host: str
    size: str
    parts: Mapping[str, Mapping[str, Any]]


def _parts(**splits: str) -> dict[str, dict[str, Any]]:
    return {part: {"split": split} for part, split in splits.items()}


TRAIN_OR_TEST: dict[str, dict[str, Any]] = {"train": {"train": True}, "test": {"train": False}}
TRAIN_TEST = _parts(train="train", test="test")
IMAGENETTE = {part: {"split": split, "size": "320px"} for part, split in (("train", "train"), ("test", "val"))}
FASHION_HOST = "fashion-mnist.s3-website.eu-central-1.amazonaws.com"

# Only sets whose reader unpickles nothing, or (the two CIFARs) checks the file's checksum before it does. The legacy
# .pt files that the FashionMNIST reader would prefer are refused below.
NAMED = {
    "cifar10": NamedSet("CIFAR10", "www.cs.toronto.edu", "170 MB", TRAIN_OR_TEST),
    "cifar100": NamedSet("CIFAR100", "www.cs.toronto.edu", "170 MB", TRAIN_OR_TEST),
    "stl10": NamedSet("STL10", "ai.stanford.edu", "2.6 GB", TRAIN_TEST | _parts(unlabelled="train+unlabeled")),
    "fashionmnist": NamedSet("FashionMNIST", FASHION_HOST, "30 MB", TRAIN_OR_TEST),
    "food101": NamedSet("Food101", "data.vision.ee.ethz.ch", "5 GB", TRAIN_TEST),
    "oxfordiiitpet": NamedSet("OxfordIIITPet", "www.robots.ox.ac.uk", "0.8 GB", _parts(train="trainval", test="test")),
    "dtd": NamedSet("DTD", "www.robots.ox.ac.uk", "0.6 GB", TRAIN_TEST),
    "eurosat": NamedSet("EuroSAT", "huggingface.co", "95 MB", {"train": {}}),
    "imagenette": NamedSet("Imagenette", "s3.amazonaws.com", "330 MB", IMAGENETTE),
    "fgvcaircraft": NamedSet("FGVCAircraft", "www.robots.ox.ac.uk", "2.8 GB", TRAIN_TEST),
}


def read_named(name: str, part: str, *, data_root: Path, offline: bool, talk: Talk) -> Source:
    """The part `part` of a named set (`train` if it has none of that name), downloaded first if it is missing.

    Raises:
        DataError: if it is missing and `offline`, or cannot be downloaded.
    """
    part = part if part in NAMED[name].parts else "train"
    dataset = _reader(name, part, data_root, offline, talk)

    def first(*attributes: str) -> Any:
        return next((value for each in attributes if (value := getattr(dataset, each, None)) is not None), None)

    # The reader's own items are not used: our own reading is parallel, decodes JPEGs at reduced scale and keeps to our
    # list of formats.
    if samples := first("samples", "_samples"):
        paths, labels = zip(*samples, strict=True)
    else:
        paths, labels = first("_image_files", "_images"), first("targets", "labels", "_labels")
    if (pixels := first("data")) is None:
        source: Source = Files(map(os.fspath, paths))
    else:
        source = Array(_channels_last(np.asarray(pixels)), (f"{name}/{part}/{row:06d}" for row in range(len(pixels))))
    source.classes = [each if isinstance(each, str) else each[0] for each in dataset.classes]
    source.texts = [source.classes[label] for label in labels]
    return source


def _reader(name: str, part: str, data_root: Path, offline: bool, talk: Talk) -> Any:
    """torchvision's data set of that part, downloaded if it is missing."""
    known = NAMED[name]
    reader = getattr(importlib.import_module("torchvision.datasets"), known.reader)
    legacy = data_root / known.reader / "processed"
    if name == "fashionmnist" and legacy.exists():
        raise DataError(f"{legacy} holds pickled files of an old torchvision: remove it")

    def there() -> Any:
        with contextlib.suppress(RuntimeError, OSError):  # torchvision raises these if it is missing
            return reader(str(data_root), download=False, **known.parts[part])

    if (dataset := there()) is not None:
        return dataset
    if offline:
        raise DataError(
            f"{name} is not in {data_root}: run once without --offline to download it from {known.host} "
            f"({known.size}), or lay it out as {data_root / name}/{{train,test}}/<class>/"
        )
    talk.say(f"downloading {name} ({known.size}) from {known.host} to {data_root}")
    try:
        data_root.mkdir(parents=True, exist_ok=True)
        with (data_root / ".lock").open("ab") as lock:  # closing it unlocks
            with contextlib.suppress(OSError):  # a disk without locks
                fcntl.flock(lock, fcntl.LOCK_EX)
            if there() is None:  # else another process has downloaded it
                _download(functools.partial(reader, **known.parts[part]), data_root / name, talk)
    except (URLError, OSError, EOFError, RuntimeError, tarfile.TarError, zipfile.BadZipFile) as error:
        raise DataError(f"{name} could not be downloaded from {known.host}: {error}") from error
    return reader(str(data_root), download=False, **known.parts[part])


def _download(reader: Any, place: Path, talk: Talk) -> None:
    """Download into a temporary folder first: torchvision takes a half-extracted data set for a complete one."""
    folder, before = temporary_beside(place), tarfile.TarFile.extraction_filter
    folder.mkdir()
    # The default before Python 3.14 follows members and links out of the folder, and torchvision names no filter.
    tarfile.TarFile.extraction_filter = staticmethod(tarfile.data_filter)
    try:
        with contextlib.redirect_stdout(sys.stderr):
            reader(str(folder), download=True)
        for entry in os.listdir(folder):
            put(folder / entry, place.with_name(entry), talk)
    finally:
        tarfile.TarFile.extraction_filter = before
        shutil.rmtree(folder, ignore_errors=True)


def put(entry: Path, place: Path, talk: Talk) -> None:
    """Move `entry` to `place`. A folder at `place` is renamed, not removed: it may be the user's."""
    if place.is_dir():
        aside = place.with_name(f"{place.name}-old-{time.strftime('%Y%m%d-%H%M%S')}")
        os.rename(place, aside)
        talk.warn(f"{place} was damaged or incomplete and has been moved to {aside}: remove that if you do not need it")
    os.replace(entry, place)


def _channels_last(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """View [N, H, W] grey, [N, 3, H, W] or [N, H, W, 3] as [N, H, W, 3]."""
    if pixels.ndim == 3:
        return np.broadcast_to(pixels[..., None], (*pixels.shape, 3))
    return pixels.transpose(0, 2, 3, 1) if pixels.shape[1] == 3 else pixels
