"""Labelled images, in a part to train on and a part to test on: folders of classes, tar shards, named sets."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from selfie_cli.data.named import NAMED, read_named
from selfie_cli.data.sources import (
    Files,
    Source,
    Subset,
    entries,
    list_images,
    named_source,
    named_tree,
    nothing_in,
    open_shards,
    split_folders,
)
from selfie_cli.data.splits import Labels, hash_test_part
from selfie_cli.errors import DataError
from selfie_cli.talk import Talk


@dataclass(frozen=True)
class Labelled:
    """Images, their labels (int64 [N], positions in `classes`), and the names of the classes."""

    source: Source
    labels: Labels
    classes: list[str]


@dataclass(frozen=True)
class LabelledSplits:
    """A labelled data set; `split_note` is a sentence that says where the test part comes from."""

    train: Labelled
    validation: Labelled | None
    test: Labelled
    name: str
    split_note: str


def open_labelled(dataset: str, *, data_root: Path, offline: bool, talk: Talk) -> LabelledSplits:
    """A folder with a subfolder a class (or train/ and test/ of such), tar shards with `.cls` members, or a named set.

    Where nothing says what the test part is, a hash of the names chooses it (`splits.hash_test_part`).

    Raises:
        DataError: if it is missing, empty, not laid out like this, cannot be downloaded, or has one class only.
    """
    if os.path.isdir(dataset):
        return _labelled_folder(dataset, os.path.basename(os.path.abspath(dataset)), talk)
    if dataset.lower().endswith(".tar"):
        return _labelled_shards(dataset, os.path.basename(dataset))
    if os.path.exists(dataset):
        raise DataError(f"{dataset} is a file: labelled data are a folder with a subfolder a class, or tar shards")
    if tree := named_tree(dataset, data_root):
        return _labelled_folder(tree, dataset, talk)
    return _labelled_named(dataset, data_root=data_root, offline=offline, talk=talk)


def _labelled_folder(folder: str, name: str, talk: Talk) -> LabelledSplits:
    parts = split_folders(folder)
    if not parts:
        whole = _class_folders(folder, talk)
        start = len(os.path.join(folder, ""))
        return _hash_split(whole, [path[start:].replace(os.sep, "/") for path in whole.source.names], name)
    train = _class_folders(os.path.join(folder, parts.pop("train")), talk)
    others = {part: _class_folders(os.path.join(folder, inside), talk, train.classes) for part, inside in parts.items()}
    if "test" in others:
        note = "The test part is the folder test/."
        return LabelledSplits(train, others.get("validation"), others["test"], name, note)
    note = f"The test part is the folder {parts['validation']}/, as there is no test/."
    return LabelledSplits(train, None, others["validation"], name, note)


def _class_folders(folder: str, talk: Talk, classes: list[str] | None = None) -> Labelled:
    """Read a subfolder a class. `classes` are those of the training part, once it has been read."""
    there = entries(folder)
    images = {name: list_images(os.path.join(folder, name)) for name, inside in there if inside}
    loose = len(there) - len(images)
    found = [name for name, paths in images.items() if paths]
    if not found and loose:
        raise DataError(f"{folder} has images but no subfolders: put the images of each class in a folder of its name")
    if not found:
        raise nothing_in(folder)
    if loose:
        talk.warn(f"{folder}: {loose} images lie outside the folders of the classes and are left out")
    if empty := [name for name in images if name not in found]:
        talk.warn(f"{folder}: folders without images are left out: {_some(empty)}")
    if classes is None:
        classes = _at_least_two(found, folder)
    elif unknown := [name for name in found if name not in classes]:
        raise DataError(f"{folder} has classes that the training part lacks: {_some(unknown)}")
    labels = np.repeat([classes.index(name) for name in found], [len(images[name]) for name in found])
    return Labelled(Files([path for name in found for path in images[name]]), labels.astype(np.int64), classes)


def _some(names: list[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def _at_least_two(classes: list[str], where: str) -> list[str]:
    if len(classes) < 2:
        raise DataError(f"only one class ({classes[0]}) in {where}: a classifier needs two or more")
    return classes


def _hash_split(whole: Labelled, names: Sequence[str], name: str) -> LabelledSplits:
    test = hash_test_part(names, whole.labels)
    if not test.any():
        raise DataError(f"{name} has one image a class: nothing is left to test on")
    note = f"The test part is {test.sum()} of {len(test)} images, chosen by a hash of their names."
    train_part, test_part = (
        Labelled(Subset(whole.source, indices), whole.labels[indices], whole.classes)
        for indices in (np.flatnonzero(~test), np.flatnonzero(test))
    )
    return LabelledSplits(train_part, None, test_part, name, note)


def _labelled_shards(pattern: str, name: str) -> LabelledSplits:
    shards = open_shards(pattern)
    if bare := [name for name, text in zip(shards.names, shards.classes, strict=True) if not text]:
        raise DataError(f"{len(bare)} images have no .cls file beside them, the first is {bare[0]}")
    numeric = all(text.isascii() and text.isdigit() for text in shards.classes)
    classes = _at_least_two(sorted(set(shards.classes), key=lambda text: (int(text) if numeric else 0, text)), pattern)
    position = {text: label for label, text in enumerate(classes)}
    labels = np.array([position[text] for text in shards.classes], np.int64)
    return _hash_split(Labelled(shards, labels, classes), shards.keys, name)


def _labelled_named(name: str, *, data_root: Path, offline: bool, talk: Talk) -> LabelledSplits:
    read: dict[str, Labelled] = {}
    for part in ("train", "validation", "test"):
        if part in NAMED[name].parts:
            found = read_named(name, part, data_root=data_root, offline=offline, talk=talk)
            read[part] = Labelled(named_source(found), found.labels, found.classes)
    train = read["train"]
    if "test" not in read:
        return _hash_split(train, ["/".join(Path(path).parts[-2:]) for path in train.source.names], name)
    return LabelledSplits(train, read.get("validation"), read["test"], name, "The test part is the data set's own.")
