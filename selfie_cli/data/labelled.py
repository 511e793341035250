"""Labelled images, in a part to train on and a part to test on: folders of classes, tar shards, parquet files, named
sets."""

import functools
import os
from collections import defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from selfie_cli.data import hub_sets
from selfie_cli.data.folders import Folder, Tree, without_part
from selfie_cli.data.layout import LeftOut, in_order, part_of
from selfie_cli.data.lists import expanded
from selfie_cli.data.named import NAMED, read_named
from selfie_cli.data.packed import PackedSet, PackedSource, packed_as, parts_of_files
from selfie_cli.data.sources import Labelled, Source, Subset, chosen
from selfie_cli.data.splits import hash_test_part
from selfie_cli.data.unlabelled import named_tree, open_folder
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


@dataclass(frozen=True)
class Piece:
    """A part of a data set. texts: the class of each image, or None; keys: gives the names that the hash split uses.

    known: all classes in their order, if the files name them. title: the name of the part there.
    """

    source: Source
    texts: Sequence[str | None]
    known: list[str] | None
    keys: Callable[[], Sequence[str]]
    title: str


@dataclass(frozen=True)
class Pieces:
    """The parts of a labelled data set, each read when it is asked for."""

    name: str
    parts: Mapping[str, Callable[[], Piece]]
    left_out: LeftOut


def open_labelled(dataset: str, *, data_root: Path, offline: bool, talk: Talk) -> LabelledSplits:
    """Open the labelled images that `finetune`, `curve` and `eval` train and test on; see `open_pieces`.

    Where nothing says what the test part is, a hash of the names chooses it (`splits.hash_test_part`). One line says
    what is left out. Raises DataError as `open_pieces` does, and if there is one class only.
    """
    pieces = open_pieces(dataset, data_root=data_root, offline=offline, talk=talk)
    try:
        return assemble(pieces, talk)
    finally:
        if pieces.left_out:
            talk.warn(str(pieces.left_out))


def is_named(dataset: str, data_root: Path) -> bool:
    """Whether it is a named set that does not lie there as a folder. Raises DataError for what is not there at all."""
    there = os.path.exists(dataset) or hub_sets.is_address(dataset) or packed_as(dataset)
    return not there and named_tree(dataset, data_root) is None


def open_pieces(dataset: str, *, data_root: Path, offline: bool, talk: Talk) -> Pieces:
    """A folder with a subfolder a class (or train/ and test/ of such), tar shards with `.cls` members or such folders,
    parquet files with a column of labels (or a folder of them, or `hf://datasets/owner/name`), or a named set.

    Raises:
        DataError: if it is missing, empty, not laid out like this, or cannot be downloaded.
    """
    if is_named(dataset, data_root):
        read_named_part = functools.partial(_named_piece, dataset, data_root=data_root, offline=offline, talk=talk)
        named = {part: functools.cache(functools.partial(read_named_part, part)) for part in NAMED[dataset].parts}
        return Pieces(dataset, named, LeftOut())
    tree = dataset if os.path.isdir(dataset) else None
    if hub_sets.is_address(dataset):
        opened: Folder | PackedSet = hub_sets.fetch(dataset, only_train=False, offline=offline, talk=talk)
    elif tree is None and packed_as(dataset):
        opened = _packed_by_name(dataset, talk)
    elif tree is None and os.path.exists(dataset):
        raise Unlabelled(f"{dataset} is a file: labelled images are class folders, tar files or parquet files")
    else:
        opened = open_folder(tree or named_tree(dataset, data_root) or dataset, only_train=False, talk=talk)
    if isinstance(opened, Folder):
        name = os.path.basename(os.path.abspath(opened.root))
        for folder in opened.bare:
            opened.left_out.add("empty", folder)
        pieces = _pieces_of(opened, opened.root, opened.left_out, talk)
    elif len(opened.files) == 1:
        name = opened.name
        pieces = _pieces_of(opened.open(next(iter(opened.files))), dataset, opened.left_out, talk)
    else:

        def read(part: str) -> Piece:
            return _piece(opened.open(part), part)

        name, pieces = opened.name, {part: functools.partial(read, part) for part in opened.files}
    return Pieces(name, {part: functools.cache(read) for part, read in pieces.items()}, opened.left_out)


def _named_piece(name: str, part: str, *, data_root: Path, offline: bool, talk: Talk) -> Piece:
    found = read_named(name, part, data_root=data_root, offline=offline, talk=talk)
    texts = [found.classes[label] for label in found.labels.tolist()]

    def keys() -> list[str]:
        return ["/".join(Path(path).parts[-2:]) for path in found.source.names]

    return Piece(found.source, texts, found.classes, keys, "own")


def _packed_by_name(dataset: str, talk: Talk) -> PackedSet:
    """Tar shards or parquet files by the parts in their names."""
    paths = {os.path.abspath(path): path for path in expanded([dataset])}
    folder = os.path.commonpath([os.path.dirname(path) for path in paths])
    files = {os.path.relpath(path, folder).replace(os.sep, "/"): given for path, given in paths.items()}
    parts = parts_of_files(list(files), where=dataset, hint="name files of one of them", only_train=False, talk=talk)
    by_part = {part: [files[each] for each in there] for part, there in parts.items()}
    return PackedSet(os.path.basename(dataset), by_part)


def _piece(source: Folder | PackedSource, title: str) -> Piece:
    return Piece(source, *source.labels(), source.keys, title)


def _pieces_of(
    source: Folder | PackedSource, where: str, left_out: LeftOut, talk: Talk
) -> dict[str, Callable[[], Piece]]:
    """The parts of one source, by its folders; "all" where these tell none."""
    whole = _piece(source, "")
    if not isinstance(source, Tree):
        return {"all": lambda: whole}
    parted = {place.part for place in source.places.values()} != {""}
    if not source.has_texts:
        taken = {folder: part for folder, (part, _) in source.places.items() if part in ("", "train")}
        below = {without_part(folder, part) for folder, part in taken.items()}
        train = source.title("train")
        inside = train if any(f"{folder}/".startswith(train) for folder in taken) else ""
        path = os.path.join(where, os.path.commonpath(source.places) or os.path.commonpath(taken))
        check_classes(below, os.path.join(where, inside), path, talk)
    if not parted:
        return {"all": lambda: whole}
    rows: dict[str, list[int]] = defaultdict(list)
    for row, folder in enumerate(source.folders()):
        part, label = source.places[folder]
        if part == "apart" or not (part or label):
            left_out.add("apart", folder.split("/")[0])
        else:
            rows[part].append(row)
    if "" in rows:
        first = source.names[rows[""][0]]
        raise DataError(f"{where}: some classes are split into train and test, others are not, such as that of {first}")

    def read(part: str) -> Piece:
        def keys() -> list[str]:
            known = whole.keys()
            return [known[row] for row in rows[part]]

        texts = [whole.texts[row] for row in rows[part]]
        return Piece(chosen(source, np.array(rows[part], np.int64)), texts, None, keys, source.title(part))

    return {part: functools.partial(read, part) for part in rows}


def check_classes(folders: Collection[str], where: str, path: str, talk: Talk) -> None:
    """Refuse folders that look like parts and not like classes, and a folder that holds the classes in its only folder.

    `folders` hold images; none of them is in a part. All of them lie in `path`. Warns where folders may be meant
    otherwise.
    """
    inside: dict[str, set[str]] = defaultdict(set)
    for folder in folders:
        top, _, below = folder.partition("/")
        inside[top].add(below.partition("/")[0])
    inside.pop("", None)
    deep = [name for name, below in inside.items() if "" not in below]
    parts = [name for name in inside if part_of(name, is_folder=True)]
    alike = {name: part for name in deep if (part := part_of(name, is_folder=False))}
    if len(inside) > 1 and (set(parts) & set(deep) or ("train" in alike.values() and len(set(alike.values())) > 1)):
        suspects = ", ".join(f"{name}/" for name in sorted({*parts, *alike}))
        raise DataError(
            f"{where}: {suspects} look like parts of a data set, but the parts are not clear: call the folders train/ "
            "and test/ (val/ for validation), or give a folder that holds the classes alone"
        )
    for name in parts:
        talk.warn(f"{where}: the folder {name}/ is taken for a class, though it is called like a part of a data set")
    shared = set.intersection(*inside.values()) if inside else set()
    if len(inside) > 1 and len(deep) == len(inside) and len(shared) > 1:
        talk.warn(
            f"{where}: the classes are its folders {some(sorted(inside))}, each of which holds {some(sorted(shared))}: "
            "if those are the classes, give one of these folders, or call them train/ and test/"
        )
    for name in deep if len(deep) < len(inside) else ():
        if len(inside[name]) > 1:
            talk.warn(
                f"{where}: {name} is taken for one class, though it holds folders alone "
                f"({some(sorted(inside[name]))}): if those are the classes, give {os.path.join(where, name)}"
            )
    if len(inside) == 1 and deep:
        raise Unlabelled(f"only one class ({deep[0]}) in {where}: if the classes are in {path}, give that")


def assemble(pieces: Pieces, talk: Talk) -> LabelledSplits:
    """Number the classes, leave out what has no label, and choose what to test on."""
    name, left_out = pieces.name, pieces.left_out
    read = parts_with_labels(pieces)
    if len(read) == 1:
        ((whole, piece),) = read.values()
        keys = [key for key, text in zip(piece.keys(), piece.texts, strict=True) if text]
        return _hash_split(whole, keys, name, left_out, talk)
    tested = "test" if "test" in read else "validation"
    title = read[tested][1].title
    own = f"the folder {title}" if title.endswith("/") else f"the data set's {title} part"
    unused = " The validation part is not used." * (tested == "test" and "validation" in pieces.parts)
    note = f"The test part is {own}{'' if tested == 'test' else ', as there is no test part with labels'}.{unused}"
    return LabelledSplits(read["train"][0], read[tested][0], name, note, left_out)


def parts_with_labels(pieces: Pieces) -> dict[str, tuple[Labelled, Piece]]:
    """The parts to train and test on, or all images if there are no parts, with numbered classes; notes what is left
    out. Raises DataError if the first part has no labels or one class only, or another part has classes of its own."""
    name, left_out = pieces.name, pieces.left_out
    read: dict[str, tuple[Labelled, Piece]] = {}
    for part in [part for part in ("all", "train", "test", "validation") if part in pieces.parts]:
        if part == "validation" and "test" in read:
            break
        piece = pieces.parts[part]()
        where = name if part == "all" else f"{piece.title.rstrip('/') or part} of {name}"
        there = {text for text in piece.texts if text}
        one_folder = len(there) == 1 and piece.title.endswith("/")  # test/images/ or test/unknown/, which is no class
        if read and (not there or (one_folder and there.isdisjoint(read["train"][0].classes))):
            left_out.add("unlabelled_parts", piece.title or part)
            continue
        if not there:
            raise Unlabelled(f"{where} {piece.source.no_labels}")
        left_out.add("unlabelled", count=sum(text is None for text in piece.texts))
        left_out.add("outside", count=sum(text == "" for text in piece.texts))
        classes = [each for each in piece.known or in_order(there) if each in there]
        if read:
            train = next(iter(read.values()))[0].classes
            check_known(classes, train, where)
            classes = train
        elif len(classes) < 2:  # photos in one folder are no data set of one class
            kind = Unlabelled if part == "all" and isinstance(piece.source, Folder) else DataError
            raise kind(f"only one class ({classes[0]}) in {where}: a classifier needs two or more")
        position = {text: label for label, text in enumerate(classes)}
        labels = np.array([position[text] for text in piece.texts if text], np.int64)
        rows = np.flatnonzero([bool(text) for text in piece.texts])
        read[part] = Labelled(chosen(piece.source, rows), labels, classes), piece
    return read


def check_known(classes: list[str], train: list[str], where: str) -> None:
    """Raise DataError if there is a class that is not among those of the training part."""
    if unknown := [name for name in classes if name not in train]:
        alike = {name.casefold().strip(): name for name in train}
        spelled = next(((name, alike[key]) for name in unknown if (key := name.casefold().strip()) in alike), None)
        hint = f" ({spelled[0]!r} is {spelled[1]!r} there)" if spelled else ""
        raise DataError(f"{where} has classes that the training part lacks: {some(unknown)}{hint}")


def some(names: list[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def _hash_split(whole: Labelled, keys: Sequence[str], name: str, left_out: LeftOut, talk: Talk) -> LabelledSplits:
    test = hash_test_part(keys, whole.labels, same=whole.source.first_of_same(talk))
    if not test.any():
        raise DataError(f"{name} has one image per class, or copies of one: nothing is left to test on")
    note = f"The test part is {test.sum()} of {len(test)} images, chosen by a hash of their names."
    train_part, test_part = (
        Labelled(Subset(whole.source, indices), whole.labels[indices], whole.classes)
        for indices in (np.flatnonzero(~test), np.flatnonzero(test))
    )
    return LabelledSplits(train_part, test_part, name, note, left_out)
