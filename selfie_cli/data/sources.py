"""Where images come from: folders, files, lists, tar shards, named data sets; with labels or without."""

import bisect
import contextlib
import hashlib
import importlib
import io
import itertools
import os
import re
import sys
import tarfile
import tempfile
import threading
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol
from urllib.error import URLError

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from selfie_cli.data.images import EXTENSIONS, open_image
from selfie_cli.data.splits import Labels, hash_test_part
from selfie_cli.errors import DataError, UnreadableImage
from selfie_cli.files import TEMPORARY
from selfie_cli.talk import Talk

LISTS = (".txt", ".lst")
ARCHIVES = (".tgz", ".gz", ".bz2", ".xz", ".zst", ".zip", ".rar", ".7z")
LOOKED_FOR = f"looked for {', '.join(sorted(EXTENSIONS))}"


class Source(Protocol):
    """Images in a fixed order. `open` may be called from several threads."""

    @property
    def names(self) -> list[str]:
        """One an image, as its user knows it."""

    def __len__(self) -> int: ...

    def open(self, index: int) -> Image.Image:
        """The header of an image, to be decoded and closed by the caller; raises UnreadableImage."""


class Files:
    """Image files, named by their paths."""

    def __init__(self, names: list[str]) -> None:
        self.names = names

    def __len__(self) -> int:
        return len(self.names)

    def open(self, index: int) -> Image.Image:
        return open_image(self.names[index])


class Shards:
    """Images inside uncompressed tar files, named `shard.tar/member`, read in place and never extracted.

    The headers are read once, in order. `keys` and `classes` follow the WebDataset layout: a member's key is its name
    up to the first dot of its last part, and its class the text of the member `<key>.cls` of its shard, else None.
    """

    def __init__(self, paths: Sequence[str]) -> None:
        self.paths = list(paths)
        self.names: list[str] = []
        self.keys: list[str] = []
        self.classes: list[str | None] = []
        where: list[tuple[int, int, int]] = []
        for shard, path in enumerate(self.paths):
            texts: dict[str, str] = {}
            keys = []
            for name, start, size, text in _members(path):
                folder, _, file = name.rpartition("/")
                key = f"{folder}/{file.partition('.')[0]}"
                if text is not None:
                    texts[key] = text
                else:
                    self.names.append(f"{path}/{name}")
                    keys.append(key)
                    where.append((shard, start, size))
            self.keys += [f"{os.path.basename(path)}/{key}" for key in keys]
            self.classes += [texts.get(key) for key in keys]
        self.where = np.array(where, np.int64).reshape(-1, 3)  # [N, 3]: shard, first byte, bytes

    def __len__(self) -> int:
        return len(self.names)

    def open(self, index: int) -> Image.Image:
        shard, start, size = self.where[index].tolist()
        try:
            with open(self.paths[shard], "rb", buffering=0) as file:
                file.seek(start)
                data = file.read(size)
        except OSError as error:
            raise UnreadableImage(f"{self.paths[shard]}: {error.strerror}") from error
        return open_image(io.BytesIO(data))


def _members(path: str) -> Iterator[tuple[str, int, int, str | None]]:
    """Name, first byte and size of each image, and of each `.cls` file with its text."""
    try:
        with tarfile.open(path, "r:", errors="surrogateescape") as tar:
            while (member := tar.next()) is not None:
                tar.members = []  # type: ignore[attr-defined]  # it would keep every header it has read
                if not member.isreg() or member.issparse() or os.path.basename(member.name).startswith("."):
                    continue
                suffix = os.path.splitext(member.name)[1].lower()
                if suffix in EXTENSIONS:
                    yield member.name, member.offset_data, member.size, None
                elif suffix == ".cls" and (file := tar.extractfile(member)) is not None:
                    yield member.name, 0, 0, file.read(1024).decode("utf-8", "surrogateescape").strip()
    except (OSError, tarfile.TarError) as error:
        reason = getattr(error, "strerror", None) or error
        raise DataError(f"cannot read the shard {path} (an uncompressed tar file is expected): {reason}") from error


class Array:
    """Decoded pixels, uint8 `[N, H, W, 3]`."""

    def __init__(self, pixels: NDArray[np.uint8], names: list[str]) -> None:
        self.pixels = pixels
        self.names = names

    def __len__(self) -> int:
        return len(self.names)

    def open(self, index: int) -> Image.Image:
        return Image.fromarray(self.pixels[index])


class Named:
    """A data set object of torchvision's kind: item i is a pair whose first part is a PIL image."""

    def __init__(self, dataset: Any, names: list[str]) -> None:
        self.dataset = dataset
        self.names = names
        self.lock = threading.Lock()  # nothing promises that a reader's items may be read from several threads

    def __len__(self) -> int:
        return len(self.names)

    def open(self, index: int) -> Image.Image:
        try:
            with self.lock:
                image = self.dataset[index][0]
        except (OSError, ValueError, SyntaxError) as error:
            raise UnreadableImage(str(error)) from error
        assert isinstance(image, Image.Image)
        return image


class Joined:
    """Several sources, one after another."""

    def __init__(self, sources: Sequence[Source]) -> None:
        self.sources = list(sources)
        self.ends = list(itertools.accumulate(len(source) for source in self.sources))
        self.names = [name for source in self.sources for name in source.names]

    def __len__(self) -> int:
        return len(self.names)

    def open(self, index: int) -> Image.Image:
        which = bisect.bisect_right(self.ends, index)
        return self.sources[which].open(index - self.ends[which] + len(self.sources[which]))


class Subset:
    """The images of `source` at `indices`, int64 [M], in that order."""

    def __init__(self, source: Source, indices: Labels) -> None:
        self.source = source
        self.indices = indices
        self.names = [source.names[index] for index in indices.tolist()]

    def __len__(self) -> int:
        return len(self.names)

    def open(self, index: int) -> Image.Image:
        return self.source.open(int(self.indices[index]))


def fingerprint(source: Source) -> str:
    """16 hex digits over the number of images and their names below the folder that they share."""
    names = source.names
    shared = os.path.commonprefix([min(names), max(names)]) if names else ""  # noqa: RUF071 - cut at a slash below
    start = shared.rfind("/") + 1
    digest = hashlib.sha256(f"{len(names)}\n".encode())
    for name in names:
        digest.update(name[start:].encode("utf-8", "surrogateescape") + b"\0")
    return digest.hexdigest()[:16]


def _entries(folder: str) -> list[tuple[str, bool]]:
    """Sorted (name, whether a folder) of what is neither hidden nor something else than a file, link or folder."""
    try:
        with os.scandir(folder) as entries:  # no stat a file: the folder itself says what each entry is
            found = [(entry.name, _is_folder(entry), entry) for entry in entries if not entry.name.startswith(".")]
    except OSError as error:
        raise DataError(f"cannot read the folder {folder}: {error.strerror}") from error
    # A link that leads nowhere stays in: it is reported as an unreadable image, not silently left out.
    kept = [(name, inside) for name, inside, entry in found if inside or entry.is_symlink() or entry.is_file()]
    kept.sort()
    return kept


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def _is_image(name: str) -> bool:
    return name[name.rfind(".") :].lower() in EXTENSIONS


def list_images(folder: str) -> list[str]:
    """Paths of the images below `folder`, depth first, by name within each folder; hidden ones are skipped.

    Links are followed; one that leads back to a folder it lies in is not.

    Raises:
        DataError: if a folder cannot be read.
    """
    found: list[str] = []
    ancestors: list[tuple[int, int]] = []

    def walk(folder: str) -> None:
        status = os.stat(folder)
        identity = (status.st_dev, status.st_ino)
        if identity in ancestors:
            return
        ancestors.append(identity)
        prefix = os.path.join(folder, "")
        for name, inside in _entries(folder):
            if inside:
                walk(prefix + name)
            elif _is_image(name):
                found.append(prefix + name)
        ancestors.pop()

    try:
        walk(folder)
    except OSError as error:
        raise DataError(f"cannot read the folder {error.filename}: {error.strerror}") from error
    return found


def _subfolders(folder: str) -> list[str]:
    return [name for name, inside in _entries(folder) if inside]


def _split_folders(folder: str) -> dict[str, str]:
    """The names of the folders that part a data set: train and validation, test or both; {} where there is none."""
    subfolders = set(_subfolders(folder))
    parts = {"train": "train", "test": "test", "validation": "validation" if "validation" in subfolders else "val"}
    parts = {part: name for part, name in parts.items() if name in subfolders}
    return parts if "train" in parts and len(parts) > 1 else {}


def _nothing_in(folder: str) -> DataError:
    others = sum(len(files) for _, _, files in os.walk(folder))
    return DataError(f"no images in {folder} ({LOOKED_FOR}); {others} other files were found")


def open_unlabelled(data: Sequence[str], *, data_root: Path, offline: bool, talk: Talk) -> Source:
    """Every image of `data`, each of which is one of:

    a folder (its train/ alone where it is parted), an image, a list (.txt, .lst: a path a line, relative to the list),
    a tar shard or a brace pattern of them (`train-{0000..0099}.tar`), or the name of a known data set.

    Raises:
        DataError: if one of them is missing, empty or cannot be downloaded; the message says what to do.
    """
    sources = [_open_one(one, data_root=data_root, offline=offline, talk=talk) for one in data]
    if not sources:
        raise DataError("no data: name a folder of images, a file, a list, a tar shard or a data set")
    return sources[0] if len(sources) == 1 else Joined(sources)


def _open_one(one: str, *, data_root: Path, offline: bool, talk: Talk) -> Source:
    if os.path.isdir(one):
        return _unlabelled_folder(one, talk)
    suffix = os.path.splitext(one)[1].lower()
    if os.path.exists(one):
        if suffix in LISTS:
            return _listed(one)
        if suffix in ARCHIVES:
            raise DataError(f"{one} is compressed: unpack it, and give the folder or the tar file inside")
        return _shards([one]) if suffix == ".tar" else Files([one])
    if suffix == ".tar":
        return _shards(_existing_shards(one))
    if one in NAMED:
        if tree := _tree(one, data_root):
            return _unlabelled_folder(str(tree), talk)
        return _read_named(one, "unlabelled", data_root, offline, talk)[0]
    raise _unknown(one)


def _unknown(one: str) -> DataError:
    return DataError(f"{one}: no such file or folder, and none of the named sets ({', '.join(NAMED)})")


def _unlabelled_folder(folder: str, talk: Talk) -> Source:
    if parts := _split_folders(folder):
        others = " and ".join(f"{name}/" for part, name in parts.items() if part != "train")
        talk.say(f"{folder}: only train/ is read, {others} is kept for evaluation")
        folder = os.path.join(folder, "train")
    if not (paths := list_images(folder)):
        raise _nothing_in(folder)
    return Files(paths)


def _listed(path: str) -> Source:
    folder = os.path.dirname(path)
    # Only "\n" ends a line: names may hold the other characters that str.splitlines would cut at.
    try:
        with open(path, encoding="utf-8-sig", errors="surrogateescape", newline="\n") as file:
            lines = [line.rstrip("\r\n") for line in file]
    except OSError as error:
        raise DataError(f"cannot read the list {path}: {error.strerror}") from error
    paths = [os.path.join(folder, line) for line in lines if line.strip() and not line.startswith("#")]
    if not paths:
        raise DataError(f"no paths in the list {path}: it should name an image a line")
    return Files(paths)


def expand_braces(pattern: str) -> list[str]:
    """`a-{08..10}.tar` or `{a,b}.tar` as a shell would expand them; zeros in front are kept."""
    if not (match := re.search(r"\{(?:(\d+)\.\.(\d+)|([^{}]*,[^{}]*))\}", pattern)):
        return [pattern]
    first, last, listed = match.groups()
    if listed is not None:
        middles = listed.split(",")
    else:
        width = len(first) if first.startswith("0") else 0
        middles = [str(number).zfill(width) for number in range(int(first), int(last) + 1)]
    head, tail = pattern[: match.start()], pattern[match.end() :]
    return [head + middle + rest for middle in middles for rest in expand_braces(tail)]


def _existing_shards(pattern: str) -> list[str]:
    paths = expand_braces(pattern)
    missing = [path for path in paths if not os.path.isfile(path)]
    if missing:
        raise DataError(f"{len(missing)} of {len(paths)} shards are missing, the first is {missing[0]}")
    return paths


def _shards(paths: list[str]) -> Shards:
    shards = Shards(paths)
    if not len(shards):
        raise DataError(f"no images in {paths[0]}{' and the shards after it' * (len(paths) > 1)} ({LOOKED_FOR})")
    return shards


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
        return _labelled_shards([dataset] if os.path.exists(dataset) else _existing_shards(dataset), dataset)
    if os.path.exists(dataset):
        raise DataError(f"{dataset} is a file: labelled data are a folder with a subfolder a class, or tar shards")
    if dataset not in NAMED:
        raise _unknown(dataset)
    if tree := _tree(dataset, data_root):
        return _labelled_folder(str(tree), dataset, talk)
    return _labelled_named(dataset, data_root=data_root, offline=offline, talk=talk)


def _labelled_folder(folder: str, name: str, talk: Talk) -> LabelledSplits:
    parts = _split_folders(folder)
    if not parts:
        whole = _class_folders(folder, None, talk)
        start = len(os.path.join(folder, ""))
        names = [path[start:].replace(os.sep, "/") for path in whole.source.names]
        return _hash_split(whole, names, name)
    train = _class_folders(os.path.join(folder, parts["train"]), None, talk)
    read = {
        part: _class_folders(os.path.join(folder, parts[part]), train.classes, talk)
        for part in ("validation", "test")
        if part in parts
    }
    if "test" in read:
        return LabelledSplits(train, read.get("validation"), read["test"], name, "The test part is the folder test/.")
    note = f"The test part is the folder {parts['validation']}/, as there is no test/."
    return LabelledSplits(train, None, read["validation"], name, note)


def _class_folders(folder: str, classes: list[str] | None, talk: Talk) -> Labelled:
    """Read a subfolder a class. `classes` are those of the training part, once it has been read."""
    entries = _entries(folder)
    images = {name: list_images(os.path.join(folder, name)) for name, inside in entries if inside}
    loose = sum(not inside and _is_image(name) for name, inside in entries)
    found = [name for name, paths in images.items() if paths]
    if not found and loose:
        raise DataError(f"{folder} has images but no subfolders: put the images of each class in a folder of its name")
    if not found:
        raise _nothing_in(folder)
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


def _select(labelled: Labelled, chosen: NDArray[np.bool_]) -> Labelled:
    indices = np.flatnonzero(chosen)
    return Labelled(Subset(labelled.source, indices), labelled.labels[indices], labelled.classes)


def _hash_split(whole: Labelled, names: Sequence[str], name: str) -> LabelledSplits:
    test = hash_test_part(names, whole.labels)
    if not test.any():
        raise DataError(f"{name} has one image a class: nothing is left to test on")
    note = f"The test part is {test.sum()} of {len(test)} images, chosen by a hash of their names."
    return LabelledSplits(_select(whole, ~test), None, _select(whole, test), name, note)


def _labelled_shards(paths: list[str], name: str) -> LabelledSplits:
    shards = _shards(paths)
    found = [text for text in shards.classes if text]
    if len(found) < len(shards):
        bare = next(name for name, text in zip(shards.names, shards.classes, strict=True) if not text)
        raise DataError(f"{len(shards) - len(found)} images have no .cls file beside them, the first is {bare}")
    numeric = all(text.isascii() and text.isdigit() for text in found)
    classes = _at_least_two(sorted(set(found), key=lambda text: (int(text) if numeric else 0, text)), name)
    position = {text: label for label, text in enumerate(classes)}
    labels = np.array([position[text] for text in found], np.int64)
    return _hash_split(Labelled(shards, labels, classes), shards.keys, name)


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
TRAIN_VAL_TEST = _parts(train="train", validation="val", test="test")
IMAGENETTE = {part: {"split": split, "size": "320px"} for part, split in (("train", "train"), ("test", "val"))}

# Only sets whose reader unpickles nothing, or (the two CIFARs) checks the file's checksum before it does. The legacy
# .pt files that the FashionMNIST reader would prefer are refused below.
NAMED = {
    "cifar10": NamedSet("CIFAR10", "www.cs.toronto.edu", "170 MB", TRAIN_OR_TEST),
    "cifar100": NamedSet("CIFAR100", "www.cs.toronto.edu", "170 MB", TRAIN_OR_TEST),
    "stl10": NamedSet("STL10", "ai.stanford.edu", "2.6 GB", TRAIN_TEST | _parts(unlabelled="train+unlabeled")),
    "fashionmnist": NamedSet(
        "FashionMNIST", "fashion-mnist.s3-website.eu-central-1.amazonaws.com", "30 MB", TRAIN_OR_TEST
    ),
    "food101": NamedSet("Food101", "data.vision.ee.ethz.ch", "5 GB", TRAIN_TEST),
    "oxfordiiitpet": NamedSet("OxfordIIITPet", "www.robots.ox.ac.uk", "0.8 GB", _parts(train="trainval", test="test")),
    "dtd": NamedSet("DTD", "www.robots.ox.ac.uk", "0.6 GB", TRAIN_VAL_TEST),
    "eurosat": NamedSet("EuroSAT", "huggingface.co", "95 MB", {"train": {}}),
    "imagenette": NamedSet("Imagenette", "s3.amazonaws.com", "330 MB", IMAGENETTE),
    "fgvcaircraft": NamedSet("FGVCAircraft", "www.robots.ox.ac.uk", "2.8 GB", TRAIN_VAL_TEST),
}


def _tree(name: str, data_root: Path) -> Path | None:
    """An image tree `<data_root>/<name>/{train,test}/<class>/` serves as the set of that name."""
    tree = data_root / name
    return tree if tree.is_dir() and _split_folders(str(tree)) else None


def _labelled_named(name: str, *, data_root: Path, offline: bool, talk: Talk) -> LabelledSplits:
    read: dict[str, Labelled] = {}
    for part in ("train", "validation", "test"):
        if part in NAMED[name].parts:
            source, dataset = _read_named(name, part, data_root, offline, talk)
            classes = [each if isinstance(each, str) else each[0] for each in dataset.classes]
            read[part] = Labelled(source, _labels_of(dataset), classes)
    if "test" in read:
        return LabelledSplits(
            read["train"], read.get("validation"), read["test"], name, "The test part is the data set's own."
        )
    whole = read["train"]
    return _hash_split(whole, ["/".join(Path(path).parts[-2:]) for path in whole.source.names], name)


def _labels_of(dataset: Any) -> Labels:
    samples = getattr(dataset, "samples", None) or getattr(dataset, "_samples", None)
    if samples:
        return np.array([label for _, label in samples], np.int64)
    found = (getattr(dataset, attribute, None) for attribute in ("targets", "labels", "_labels"))
    return np.asarray(next(labels for labels in found if labels is not None), np.int64)


def _read_named(name: str, part: str, data_root: Path, offline: bool, talk: Talk) -> tuple[Source, Any]:
    """A part of a named set, downloaded first if it is not there, and torchvision's object for it."""
    known = NAMED[name]
    part = part if part in known.parts else "train"
    arguments = known.parts[part]
    reader = getattr(importlib.import_module("torchvision.datasets"), known.reader)  # slow to import, seldom needed
    legacy = data_root / known.reader / "processed"
    if name == "fashionmnist" and legacy.exists():
        raise DataError(f"{legacy} holds pickled files of an old torchvision: remove it")
    try:
        dataset = reader(str(data_root), download=False, **arguments)
    except (RuntimeError, OSError):  # torchvision's way to say that it is not there
        if offline:
            raise DataError(
                f"{name} is not in {data_root}: run once without --offline to download it from {known.host} "
                f"({known.size}), or lay it out as {data_root / name}/{{train,test}}/<class>/"
            ) from None
        _download(reader, arguments, name, data_root, talk)
        dataset = reader(str(data_root), download=False, **arguments)
    if (pixels := getattr(dataset, "data", None)) is not None:
        names = [f"{name}/{part}/{index:06d}" for index in range(len(pixels))]
        return Array(_channels_last(np.asarray(pixels)), names), dataset
    # Reading the files ourselves is parallel, decodes JPEGs at reduced scale and keeps to our list of formats.
    samples = getattr(dataset, "samples", None) or getattr(dataset, "_samples", None)
    paths = [path for path, _ in samples] if samples else None
    paths = paths or getattr(dataset, "_image_files", None) or getattr(dataset, "_images", None)
    if paths:
        return Files([os.fspath(path) for path in paths]), dataset
    return Named(dataset, [f"{name}/{part}/{index:06d}" for index in range(len(dataset))]), dataset


def _channels_last(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """[N, H, W] grey, [N, 3, H, W] or [N, H, W, 3] as [N, H, W, 3]; a view."""
    if pixels.ndim == 3:
        return np.broadcast_to(pixels[..., None], (*pixels.shape, 3))
    return pixels.transpose(0, 2, 3, 1) if pixels.shape[1] == 3 else pixels


def _download(reader: Any, arguments: Mapping[str, Any], name: str, data_root: Path, talk: Talk) -> None:
    known = NAMED[name]
    talk.say(f"downloading {name} ({known.size}) from {known.host} to {data_root}")
    try:
        data_root.mkdir(parents=True, exist_ok=True)
        # Into a folder of its own first: torchvision takes a half-extracted one for the whole.
        with tempfile.TemporaryDirectory(prefix=TEMPORARY, dir=data_root) as folder:
            with contextlib.redirect_stdout(sys.stderr):
                reader(folder, download=True, **arguments)
            for entry in os.listdir(folder):
                os.replace(os.path.join(folder, entry), data_root / entry)
    except (URLError, OSError, EOFError, RuntimeError, tarfile.TarError, zipfile.BadZipFile) as error:
        raise DataError(f"{name} could not be downloaded from {known.host}: {error}") from error
