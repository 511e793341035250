"""Rules of data layouts: parts, classes, labels, images, and what is left out.

docs/guide/data.md states the same rules in one table. Folders, tar shards, parquet files, lists and stdin follow them.
"""

import contextlib
import os
import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from selfie_cli.config import PACKED, PACKED_FILES
from selfie_cli.data.images import EXTENSIONS
from selfie_cli.files import read_json

PARTS = {
    "train": ("train", "training", "trainval"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing", "eval", "evaluation"),
}
"""Folder names of each part, in any case. If two folders match one part, the name listed first is taken."""
PART_OF = {name: part for part, names in PARTS.items() for name in names}
_BESIDE_PART = "set data dataset image images img imgs photo photos picture pictures part split"
BESIDE_PART = frozenset(_BESIDE_PART.split())
"""Words that may stand beside a part's name in a folder's name: `train_images`, `test set`, `val2017`."""
_NO_CLASSES = """
image images img imgs jpegimages mask masks label labels annotation annotations trimaps segmentation segmentations
segmentationclass segmentationobject thumbnails thumbs unlabeled unlabelled unsorted
"""
NO_CLASSES = frozenset(_NO_CLASSES.split())
"""Names, in lower case, of folders that are not classes, in data sets whose classes are not given by folders."""
NOT_READ = """
.heic .heif .hif .jp2 .j2k .jpx .jxl .jxr .avif .psd .psb .xcf .svg .svgz .eps .ai .emf .wmf .ico .icns .cur .tga .pcx
.dds .exr .hdr .pfm .qoi .raw .dng .cr2 .cr3 .crw .nef .nrw .arw .srf .sr2 .raf .orf .rw2 .pef .srw .x3f .3fr .dcm
.dicom .nii .fits .svs .ndpi .czi .mrxs .mov .mp4 .m4v .avi .mkv .webm .wmv .3gp .mpg .mpeg
"""
"""Suffixes of images and films that are not among EXTENSIONS."""
ARCHIVES = (".tgz", ".gz", ".bz2", ".xz", ".zst", ".zip", ".rar", ".7z", ".arrow", ".tfrecord", ".lmdb", ".h5", ".hdf5")
KIND_OF_SUFFIX = {
    **dict.fromkeys(ARCHIVES, "archives"),
    **dict.fromkeys(NOT_READ.split(), "formats"),
    **dict.fromkeys(PACKED, "packed"),
    **dict.fromkeys(EXTENSIONS, "image"),
}
VERSIONS = (".git", ".hg", ".svn", ".dvc")
"""Folders of version control, whose files are copies of checked-out files, or targets of links."""
_SYSTEM = """
@eadir,@tmp,@recycle,@recently-snapshot,#recycle,#snapshot,$recycle.bin,recycler,recycled,found.000,lost+found,
system volume information,network trash folder,temporary items,__macosx,__pycache__,node_modules,site-packages,
thumbs.db,ehthumbs.db,ehthumbs_vista.db
"""
SYSTEM = frozenset(_SYSTEM.replace("\n", "").split(","))
"""Folders and files, in lower case, that systems, network disks, archives and notebooks leave beside photos."""
KINDS = {
    "formats": ("file of a format that is not read", "files of formats that are not read"),
    "archives": ("archive", "archives"),
    "packed": (f"{PACKED_FILES} beside the images", f"{PACKED_FILES}s beside the images"),
    "pictures": (f"image beside the {PACKED_FILES}s", f"images beside the {PACKED_FILES}s"),
    "system": ("system file", "system files"),
    "hidden": ("hidden image", "hidden images"),
    "runs": ("folder of a selfie run or demo", "folders of selfie runs and demos"),
    "links": ("link to what is read already", "links to what is read already"),
    "repeated": ("image that is named twice", "images that are named twice"),
    "companions": ("image beside the one that a .cls labels", "images beside those that a .cls labels"),
    "unlabelled": ("image without a label", "images without a label"),
    "outside": ("image outside the folders of the classes", "images outside the folders of the classes"),
    "apart": ("image outside the parts", "images outside the parts"),
    "empty": ("folder without images", "folders without images"),
    "unlabelled_parts": ("part without labels", "parts without labels"),
    "lost_classes": ("class without a readable image", "classes without a readable image"),
}
"""Kinds of left-out files and images, and their singular and plural in messages."""
SHOWN = 3  # names of each kind, at most


class LeftOut:
    """Images and files that are left out: a count of each kind, and some names."""

    def __init__(self) -> None:
        self.counts: dict[str, int] = {}
        self.names: dict[str, dict[str, None]] = defaultdict(dict)

    def add(self, kind: str, name: str = "", count: int = 1) -> None:
        """Count left-out files of a kind; `name` may stand for many files of one suffix or folder."""
        if count:
            self.counts[kind] = self.counts.get(kind, 0) + count
            name = os.path.splitext(name)[1].lower() or name if kind == "formats" else name
            if name and len(self.names[kind]) <= SHOWN:
                self.names[kind][name] = None

    def update(self, other: "LeftOut") -> None:
        for kind, count in other.counts.items():
            self.add(kind, "", count)
            self.names[kind].update(other.names[kind])

    def __bool__(self) -> bool:
        return bool(self.counts)

    def described(self, kind: str) -> str:
        """Describe a kind: '30 files of formats that are not read'."""
        count = self.counts[kind]
        return f"{count:,} {KINDS[kind][count > 1]}"

    def __str__(self) -> str:
        """Describe all: 'left out: 30 files of formats that are not read (.heic), 2 system folders (@eaDir)'."""
        told = []
        for kind in filter(self.counts.get, KINDS):
            names = ", ".join([*list(self.names[kind])[:SHOWN], *["..."] * (len(self.names[kind]) > SHOWN)])
            told.append(self.described(kind) + (f" ({names})" if names else ""))
        return f"left out: {', '.join(told)}"


MARKS = {"config.json": {"format", "verb", "progress"}, "demo.json": {"images", "seeds"}}
"""Files that identify the folder of a run or a demo, and keys of their JSON."""


def is_ours(folder: str, names: Iterable[str]) -> bool:
    """Whether `folder`, with entries called `names`, was written by a run or a demo."""
    for name in MARKS.keys() & names:
        with contextlib.suppress(OSError, ValueError):
            noted = read_json(Path(folder, name))
            if isinstance(noted, dict) and noted.keys() >= MARKS[name]:
                return True
    return False


def kind_of(name: str, *, is_folder: bool) -> str:
    """'folder', 'image', 'packed', a kind of LeftOut, or '' for what holds no images of its own."""
    kind = "folder" if is_folder else KIND_OF_SUFFIX.get(name[name.rfind(".") :].lower(), "")
    if name.startswith("."):
        if is_folder and name in VERSIONS:
            return ""
        return "hidden" if kind in ("folder", "image") else ""
    return "system" if name.casefold() in SYSTEM else kind


def part_of(name: str, *, is_folder: bool) -> str | None:
    """The part that the name of a folder or a file stands for, or None.

    A file may have other words in its name (`birds-train-00000.tar`). A folder with other words may be a class (`train
    station`), so only words in BESIDE_PART are allowed beside the part's name.
    """
    words = re.findall(r"[^\W\d_]+", re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name).casefold())  # TrainImages
    parts = [PART_OF.get(word) or PART_OF.get(word.removesuffix("set")) for word in words]
    if is_folder and any(part is None and word not in BESIDE_PART for part, word in zip(parts, words, strict=True)):
        return None
    found = set(filter(None, parts))
    return found.pop() if len(found) == 1 else None


def parts_in(folders: Iterable[str]) -> dict[str, str]:
    """The folders among sibling `folders` that are parts, by part: train and another, or train alone; else {}.

    If two folders match one part, the second is left out.
    """
    preference = {name: place for place, name in enumerate(PART_OF)}
    names = sorted(folders, key=lambda name: (preference.get(name.casefold(), 99), name))
    found: dict[str, str] = {}
    for name in names:
        if part := part_of(name, is_folder=True):
            found.setdefault(part, name)
    parted = "train" in found and (len(found) > 1 or len(names) == 1)
    return found if parted else {}


class Place(NamedTuple):
    """Part and class of images. The part is "" if folders give none, and "apart" for images beside the parts."""

    part: str
    label: str


def arrange(folders: Iterable[str]) -> dict[str, Place]:
    """The place of the images in each folder, given as a path relative to the data set, with slashes.

    The class is the first folder that is not a part, "" for images outside such folders.
    """
    paths = {folder: folder.split("/") if folder else [] for folder in folders}
    inside: dict[str, set[str]] = defaultdict(set)
    for names in paths.values():
        for depth, name in enumerate(names):
            inside["/".join(names[:depth])].add(name)
    parts = {above: {name: part for part, name in parts_in(names).items()} for above, names in inside.items()}
    places = {}
    for folder, names in paths.items():
        part, label = "apart" if not names and parts.get("") else "", ""
        for depth, name in enumerate(names):
            above = "/".join(names[:depth])
            again = part and len(inside[above]) == 1 and part_of(name, is_folder=True) == part  # test/test/
            if parts[above] and not part:
                part = parts[above].get(name, "apart")
            elif not label and not again:
                label = name
        places[folder] = Place(part, class_name(label))
    return places


def class_name(text: str) -> str:
    """Normalize names that look the same to one spelling: Unicode's composed form (NFC)."""
    return unicodedata.normalize("NFC", text)


def label_of(value: Any) -> str | None:
    """The class that a label stands for; None for no label, which is None, NaN, -1 or empty text.

    Raises ValueError for anything but text, a whole number or a boolean.
    """
    if isinstance(value, float):
        if value != value:
            return None
        if not value.is_integer():
            raise ValueError(f"{value:g} is not a whole number")
        value = int(value)
    if value is not None and not isinstance(value, bool | int | str):
        raise ValueError(f"{str(value)[:40]} is neither text nor a whole number")
    text = "" if value is None else class_name(str(value).strip())
    return None if text in ("", "-1") else text


def in_order(classes: Iterable[str]) -> list[str]:
    """Sort class names, by value if all of them are whole numbers."""
    classes = set(classes)
    numeric = all(text.isascii() and text.isdigit() for text in classes)
    return sorted(classes, key=lambda text: (int(text) if numeric else 0, text))
