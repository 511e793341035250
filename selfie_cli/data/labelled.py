"""Labelled images, in a part to train on and a part to test on: folders of classes, tar shards, parquet files, named
sets."""

import os
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from selfie_cli.data.hub_sets import Found
from selfie_cli.data.named import NAMED, read_named
from selfie_cli.data.parquet import Parquet, parts_of
from selfie_cli.data.sources import (
    Files,
    Source,
    Subset,
    entries,
    expanded,
    list_images,
    named_source,
    named_tree,
    nothing_in,
    open_shards,
    packed_as,
    parquet_set,
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
    test: Labelled
    name: str
    split_note: str


def open_labelled(dataset: str, *, data_root: Path, offline: bool, talk: Talk) -> LabelledSplits:
    """A folder with a subfolder a class (or train/ and test/ of such), tar shards with `.cls` members, parquet files
    with a column of labels (or a folder of them, or `hf://datasets/owner/name`), or a named set.

    Where nothing says what the test part is, a hash of the names chooses it (`splits.hash_test_part`).

    Raises:
        DataError: if it is missing, empty, not laid out like this, cannot be downloaded, or has one class only.
    """
    if found := parquet_set(dataset, only_train=False, offline=offline, talk=talk):
        return _labelled_parquet(found, talk)
    if os.path.isdir(dataset):
        return _labelled_folder(dataset, os.path.basename(os.path.abspath(dataset)), talk)
    name = os.path.basename(dataset)
    if packed_as(dataset) == ".tar":
        return _labelled_shards(dataset, name)
    if packed_as(dataset) == ".parquet":
        paths = {os.path.abspath(path): path for path in expanded([dataset])}
        folder = os.path.commonpath([os.path.dirname(path) for path in paths])
        files = {os.path.relpath(path, folder).replace(os.sep, "/"): given for path, given in paths.items()}
        parts = parts_of(list(files), where=dataset, hint="name files of one of them", only_train=False, talk=talk)
        return _labelled_parquet(
            Found(name, {part: [files[each] for each in there] for part, there in parts.items()}, {}), talk
        )
    if os.path.exists(dataset):
        raise DataError(f"{dataset} is a file: labelled data are a folder of class folders, tar or parquet files")
    if tree := named_tree(dataset, data_root):
        return _labelled_folder(tree, dataset, talk)
    return _labelled_named(dataset, data_root=data_root, offline=offline, talk=talk)


def _labelled_folder(folder: str, name: str, talk: Talk) -> LabelledSplits:
    parts = split_folders(folder)
    if not parts:
        whole = _class_folders(folder, talk)
        start = len(os.path.join(folder, ""))
        return _hash_split(whole, [path[start:].replace(os.sep, "/") for path in whole.source.names], name)
    train = _class_folders(os.path.join(folder, parts["train"]), talk)
    tested = parts.get("test") or parts["validation"]
    test = _class_folders(os.path.join(folder, tested), talk, train.classes)
    note = f"The test part is the folder {tested}/{'' if 'test' in parts else ', as there is no test/'}."
    return LabelledSplits(train, test, name, note)


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
    source = Files([path for name in found for path in images[name]])
    return _labelled(source, [name for name in found for _ in images[name]], found, folder, train=classes)


def _labelled(source: Source, names: list[str], classes: list[str], where: str, *, train: list[str] | None) -> Labelled:
    """Images whose class's name is known. `classes` are those that there are, and `train` those of the training part,
    once it has been read."""
    if train is None and len(classes) < 2:
        raise DataError(f"only one class ({classes[0]}) in {where}: a classifier needs two or more")
    if unknown := [name for name in classes if name not in (train or classes)]:
        raise DataError(f"{where} has classes that the training part lacks: {_some(unknown)}")
    position = {name: label for label, name in enumerate(train or classes)}
    return Labelled(source, np.array([position[name] for name in names], np.int64), train or classes)


def _some(names: list[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def _hash_split(whole: Labelled, names: Sequence[str], name: str) -> LabelledSplits:
    test = hash_test_part(names, whole.labels)
    if not test.any():
        raise DataError(f"{name} has one image a class: nothing is left to test on")
    note = f"The test part is {test.sum()} of {len(test)} images, chosen by a hash of their names."
    train_part, test_part = (
        Labelled(Subset(whole.source, indices), whole.labels[indices], whole.classes)
        for indices in (np.flatnonzero(~test), np.flatnonzero(test))
    )
    return LabelledSplits(train_part, test_part, name, note)


def _labelled_shards(pattern: str, name: str) -> LabelledSplits:
    shards = open_shards(pattern)
    if bare := [name for name, text in zip(shards.names, shards.classes, strict=True) if not text]:
        raise DataError(f"{len(bare)} images have no .cls file beside them, the first is {bare[0]}")
    whole = _labelled(shards, shards.classes, _in_order(set(shards.classes)), pattern, train=None)
    return _hash_split(whole, shards.keys, name)


def _in_order(classes: Collection[str]) -> list[str]:
    numeric = all(text.isascii() and text.isdigit() for text in classes)
    return sorted(classes, key=lambda text: (int(text) if numeric else 0, text))


def _labelled_parquet(found: Found, talk: Talk) -> LabelledSplits:
    read: dict[str, Labelled] = {}
    for part in [part for part in ("all", "train", "test", "validation") if part in found.files]:
        rows = Parquet(found.files[part], found.pinned)
        source: Source = rows
        texts, known = rows.labels()
        there = {text for text in texts if text is not None}
        where = found.name if part == "all" else f"{part} of {found.name}"
        if not there and read:
            talk.warn(f"{where} has no labels and is left out")
            continue
        if None in texts:
            talk.warn(f"{where}: {texts.count(None)} images have no label and are left out")
            source = Subset(source, np.array([row for row, text in enumerate(texts) if text is not None], np.int64))
        if not there:
            raise DataError(f"{where} has no labels")
        classes = [each for each in known or _in_order(there) if each in there]
        train = next(iter(read.values())).classes if read else None
        read[part] = _labelled(source, [text for text in texts if text is not None], classes, where, train=train)
        if part == "test":
            break
    if len(read) == 1:
        (whole,) = read.values()
        return _hash_split(whole, ["/".join(name.split("/")[-2:]) for name in whole.source.names], found.name)
    if "test" in read:
        return LabelledSplits(read["train"], read["test"], found.name, "The test part is the data set's own.")
    note = "The test part is the data set's validation part, as there is no test part with labels."
    return LabelledSplits(read["train"], read["validation"], found.name, note)


def _labelled_named(name: str, *, data_root: Path, offline: bool, talk: Talk) -> LabelledSplits:
    read: dict[str, Labelled] = {}
    for part in ("train", "test"):
        if part in NAMED[name].parts:
            found = read_named(name, part, data_root=data_root, offline=offline, talk=talk)
            read[part] = Labelled(named_source(found), found.labels, found.classes)
    train = read["train"]
    if "test" not in read:
        return _hash_split(train, ["/".join(Path(path).parts[-2:]) for path in train.source.names], name)
    return LabelledSplits(train, read["test"], name, "The test part is the data set's own.")
