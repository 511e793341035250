"""Labelled images with a training and a test part: class folders, tar shards, parquet files, named sets."""

import functools
import os
from collections import defaultdict
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from selfie_cli.data.folders import Folder, Tree, parted, without_part
from selfie_cli.data.layout import NO_CLASSES, LeftOut, in_order, part_of
from selfie_cli.data.lists import expanded
from selfie_cli.data.named import NAMED, read_named
from selfie_cli.data.packed import by_name, packed_as, packed_set
from selfie_cli.data.sources import DataSet, Labelled, Subset, chosen
from selfie_cli.data.splits import hash_test_part
from selfie_cli.data.unlabelled import open_set, place_of
from selfie_cli.errors import DataError, Unlabelled
from selfie_cli.talk import Talk


@dataclass(frozen=True)
class LabelledSplits:
    """A labelled data set; `split_note` is a sentence that says where the test part comes from."""

    train: Labelled
    test: Labelled
    name: str
    split_note: str
    left_out: LeftOut = field(default_factory=LeftOut)


def open_labelled(dataset: str, *, data_root: Path, offline: bool, talk: Talk) -> LabelledSplits:
    """Open the labelled images that `finetune`, `curve` and `eval` train and test on; see `open_parts`.

    If the data name no test part, a hash of the names chooses one (`splits.hash_test_part`). One line reports what is
    left out. Raises DataError as `open_parts` does, and if there is only one class.
    """
    found = open_parts(dataset, data_root=data_root, offline=offline, talk=talk)
    try:
        splits = assemble(found, talk)
        if untested := np.setdiff1d(splits.train.labels, splits.test.labels).tolist():
            names = some([splits.train.classes[label] for label in untested])
            talk.warn(f"no test image of {names}: the accuracy does not say how well these are recognized")
        return splits
    finally:
        if found.left_out:
            talk.warn(str(found.left_out))


def open_parts(dataset: str, *, data_root: Path, offline: bool, talk: Talk) -> DataSet:
    """Open a folder with a subfolder per class (or with train/ and test/ of such), tar shards with `.cls` members or
    such folders, parquet files with labels (or a folder of them, or `hf://datasets/owner/name`), or a named set.

    Raises:
        DataError: if it is missing, empty, in another layout, or cannot be downloaded.
    """
    where = place_of(dataset, data_root)
    if not where:
        read = functools.partial(read_named, dataset, data_root=data_root, offline=offline, talk=talk)
        return DataSet(dataset, dict.fromkeys(NAMED[dataset].parts, "own"), functools.cache(read))
    if packed_as(where):
        paths = expanded([where])
        files = by_name(paths, os.path.commonpath([os.path.dirname(os.path.abspath(path)) for path in paths]))
        found: DataSet | None = packed_set(
            os.path.basename(where),
            files,
            lambda names: [files[each] for each in names],
            where=where,
            hint="name files of one of them",
            talk=talk,
        )
    else:
        found = open_set(where, offline=offline, talk=talk)
    if found is None:
        raise Unlabelled(
            f"{dataset} is a file: labelled images are class folders, tar files or parquet files. If it is a "
            "table, put each image, or a link to it, into a folder named after its class"
        )
    source = found.open("all") if "all" in found.parts else None
    if isinstance(source, Folder):
        for folder in source.bare:
            found.left_out.add("empty", folder)
    if isinstance(source, Tree) and not source.has_texts:
        check_folders(source, where, talk)
    return parted(found)


def check_folders(source: Tree, where: str, talk: Talk) -> None:
    """Check the class folders with `check_classes`, and that all or none of them are split into parts."""
    taken = {folder: part for folder, (part, _) in source.places.items() if part in ("", "train")}
    below = {without_part(folder, part) for folder, part in taken.items()}
    train = source.title("train")
    inside = train if any(f"{folder}/".startswith(train) for folder in taken) else ""
    path = os.path.join(where, os.path.commonpath(source.places) or os.path.commonpath(taken))
    check_classes(below, os.path.join(where, inside), path, talk)
    if train and (whole := [label for part, label in source.places.values() if label and not part]):
        raise DataError(
            f"{where}: some classes are split into train and test, others are not, such as {whole[0]}: split all, or "
            "none"
        )


def check_classes(folders: Collection[str], where: str, path: str, talk: Talk) -> None:
    """Raise DataError if folders look like parts and not like classes, or if the classes lie one folder deeper.

    `folders` hold images; none of them is in a part. All of them lie in `path`. Warns if folders are ambiguous.
    """
    inside: dict[str, set[str]] = defaultdict(set)
    for folder in folders:
        top, _, below = folder.partition("/")
        inside[top].add(below.partition("/")[0])
    inside.pop("", None)
    deep = [name for name, below in inside.items() if "" not in below]
    named = [name for name in inside if name.casefold() in NO_CLASSES]
    parts = [name for name in inside if part_of(name, is_folder=True)]
    alike = {name: part for name in inside if (part := part_of(name, is_folder=False))}
    if len(alike) < len(inside):  # one of images alone may be a class, `train station`
        alike = {name: part for name, part in alike.items() if name in deep}
    if len(inside) > 1 and (set(parts) & set(deep) or ("train" in alike.values() and len(set(alike.values())) > 1)):
        suspects = ", ".join(f"{name}/" for name in sorted({*parts, *alike}))
        raise DataError(
            f"{where}: {suspects} look like parts of a data set, but the parts are not clear: call the folders train/ "
            "and test/ (val/ for validation), or give a folder that holds the classes alone"
        )
    no_classes = sorted({*parts, *named})
    if len(no_classes) == len(inside) > 1:
        raise DataError(
            f"{where}: {some(no_classes)} are called like parts of a data set, not like classes: give a folder that "
            "holds nothing but classes"
        )
    for name in no_classes if len(inside) > 1 else ():
        talk.warn(f"{where}: the folder {name}/ is taken for a class, though it is called like a part of a data set")
    if len(inside) > 1 and len(deep) == len(inside) and max(map(len, inside.values())) > 1:
        shared = set.intersection(*inside.values())
        instead = "give one of these folders, or call them train/ and test/" if shared else "put them side by side"
        talk.warn(
            f"{where}: the classes are its folders {some(sorted(inside))}, not the folders inside those "
            f"({some(sorted(set.union(*inside.values())))}): if those are the classes, {instead}"
        )
    for name in deep if len(deep) < len(inside) else ():
        if len(inside[name]) > 1:
            talk.warn(
                f"{where}: {name} is taken for one class, though it holds folders alone "
                f"({some(sorted(inside[name]))}): if those are the classes, give {os.path.join(where, name)}"
            )
    if len(inside) == 1 and deep:
        raise Unlabelled(f"only one class ({deep[0]}) in {where}: if the classes are in {path}, give that")


def assemble(found: DataSet, talk: Talk) -> LabelledSplits:
    """Number the classes, leave out images without a label, and choose the test part."""
    read = parts_with_labels(found)
    spelled: dict[str, str] = {}
    for name in next(iter(read.values())).classes:
        if (other := spelled.setdefault(name.casefold().strip(), name)) != name:
            two = f"the classes {other!r} and {name!r}"
            talk.warn(f"{found.name}: {two} are told apart: if they are one, give both the same name")
    if len(read) == 1:
        ((_, whole),) = read.items()
        return _hash_split(whole, found, talk)
    tested = "test" if "test" in read else "validation"
    title = found.parts[tested]
    own = f"the folder {title}" if title.endswith("/") else f"the data set's {title} part"
    unused = " The validation part is not used." * (tested == "test" and "validation" in found.parts)
    note = f"The test part is {own}{'' if tested == 'test' else ', as there is no test part with labels'}.{unused}"
    return LabelledSplits(read["train"], read[tested], found.name, note, found.left_out)


def parts_with_labels(found: DataSet) -> dict[str, Labelled]:
    """Return the parts to train and test on, or all images if there are no parts, with numbered classes; note what is
    left out. Raise DataError if the first part has no labels or one class only, or another part has other classes."""
    left_out = found.left_out
    read: dict[str, Labelled] = {}
    for part in [part for part in ("all", "train", "test", "validation") if part in found.parts]:
        if part == "validation" and "test" in read:
            break
        source, title = found.open(part), found.parts[part] or part
        where = found.name if part == "all" else f"{title.rstrip('/')} of {found.name}"
        texts, known = source.labels()
        there = {text for text in texts if text}
        one_folder = len(there) == 1 and title.endswith("/")  # test/images/ or test/unknown/, which is no class
        if read and (not there or (one_folder and there.isdisjoint(read["train"].classes))):
            left_out.add("unlabelled_parts", title)
            continue
        if not there:
            raise Unlabelled(f"{where} {source.no_labels}")
        left_out.add("unlabelled", count=sum(text is None for text in texts))
        left_out.add("outside", count=sum(text == "" for text in texts))
        classes = [each for each in known or in_order(there) if each in there]
        if read:
            train = next(iter(read.values())).classes
            check_known(classes, train, where)
            classes = train
        elif len(classes) < 2:  # photos in a single folder are unlabelled
            kind = Unlabelled if isinstance(source, Folder) or title.endswith("/") else DataError
            raise kind(f"only one class ({classes[0]}) in {where}: a classifier needs two or more")
        position = {text: label for label, text in enumerate(classes)}
        labels = np.array([position[text] for text in texts if text], np.int64)
        rows = np.flatnonzero([bool(text) for text in texts])
        read[part] = Labelled(chosen(source, rows), labels, classes)
    return read


def check_known(classes: list[str], train: list[str], where: str) -> None:
    """Raise DataError for a class that the training part lacks."""
    if unknown := [name for name in classes if name not in train]:
        alike = {name.casefold().strip(): name for name in train}
        spelled = next(((name, alike[key]) for name in unknown if (key := name.casefold().strip()) in alike), None)
        hint = f" ({spelled[0]!r} is {spelled[1]!r} there)" if spelled else ""
        raise DataError(
            f"{where} has classes that the training part lacks: {some(unknown)}{hint}. Rename them or move them out, "
            "or add images of them to the training part"
        )


def some(names: list[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def _hash_split(whole: Labelled, found: DataSet, talk: Talk) -> LabelledSplits:
    test = hash_test_part(whole.source.keys(), whole.labels, whole.source.first_of_same(talk))
    if not test.any():
        raise DataError(f"{found.name} has one image per class, or copies of one: nothing is left to test on")
    note = f"The test part is {test.sum()} of {len(test)} images, chosen by a hash of their names."
    train_part, test_part = (
        Labelled(Subset(whole.source, indices), whole.labels[indices], whole.classes)
        for indices in (np.flatnonzero(~test), np.flatnonzero(test))
    )
    return LabelledSplits(train_part, test_part, found.name, note, found.left_out)
