"""Images in folder trees: the names of folders give parts and classes."""

import functools
import itertools
import os
from abc import abstractmethod
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from selfie_cli.data.images import EXTENSIONS, open_image
from selfie_cli.data.layout import Place, arrange, is_ours, kind_of, part_of, parts_in
from selfie_cli.data.sources import DataSet, Files, Source, chosen
from selfie_cli.errors import DataError, UnreadableImage


class Tree(Source):
    """Images in folders whose names give parts and classes. has_texts: whether classes come from elsewhere."""

    has_texts = False

    @abstractmethod
    def folders(self) -> Iterator[str]:
        """The folder of each image, relative to the root, with forward slashes."""

    @functools.cached_property
    def places(self) -> dict[str, Place]:
        """The part and the class of the images in each folder; see `layout.arrange`."""
        return arrange(set(self.folders()))

    def labels(self) -> tuple[Sequence[str | None], list[str] | None]:
        return [self.places[folder].label for folder in self.folders()], None

    def title(self, part: str) -> str:
        """The folder names of a part, such as 'valid/'."""
        folders = (folder for folder, place in self.places.items() if place.part == part)
        names = {name for folder in folders for name in folder.split("/") if part_of(name, is_folder=True) == part}
        return ", ".join(f"{name}/" for name in sorted(names))


def parted(found: DataSet) -> DataSet:
    """Split one source into the parts that its folder names give, or return `found` if they give none.

    Images beside the folders of parts are left out; other images outside parts are for training.
    """
    source = found.open("all") if "all" in found.parts else None
    if not isinstance(source, Tree) or not any(place.part for place in source.places.values()):
        return found
    rows: dict[str, list[int]] = defaultdict(list)
    for row, folder in enumerate(source.folders()):
        rows[source.places[folder].part or "train"].append(row)
    for folder, count in Counter(source.folders()).items():
        if source.places[folder].part == "apart":
            found.left_out.add("apart", folder.split("/")[0], count)
    parts = {part: source.title(part) for part in rows if part != "apart"}
    opened = functools.cache(lambda part: chosen(source, np.array(rows[part], np.int64)))
    return DataSet(found.name, parts, opened, found.left_out)


class Folder(Files, Tree):
    """Every image below a folder, depth first, by name within each folder.

    packed: its parquet and tar files. bare: leaf folders without images. split: see `split_folders`.

    Links are followed, unless their target is read anyway or contains the link. A broken link is kept: it is reported
    as an unreadable image. Raises DataError for a folder that cannot be read.
    """

    no_labels = "has images but no subfolders: put the images of each class in a folder of its name"

    def __init__(self, folder: str) -> None:
        super().__init__()
        self.root = os.path.join(folder, "")
        self.packed: list[str] = []
        self.bare: list[str] = []
        self.split: dict[str, str] = {}
        self._runs: list[tuple[str, int]] = []  # folders, and the number of consecutive images in each
        self._roots = [os.path.realpath(folder)]
        self.names = list(self._walk(self.root))

    def _walk(self, prefix: str) -> Iterator[str]:
        is_root = prefix == self.root
        entries = scanned(prefix)
        if is_root:
            self.split = split_folders(entries)
        if not is_root and is_ours(prefix, (entry.name for entry in entries)):
            self.left_out.add("runs", os.path.relpath(prefix, self.root))
            return
        bare, folder = not is_root, os.path.dirname(prefix[len(self.root) :])
        for entry in entries:
            linked, is_folder = entry.is_symlink(), leads_to_folder(entry)
            kind = kind_of(entry.name, is_folder=is_folder)
            if linked and kind in ("image", "folder") and not self._leads_out(entry.path, is_folder):
                kind = "links"
            bare &= kind not in ("folder", "image", "packed")
            if kind == "folder":
                yield from self._walk(os.path.join(entry.path, ""))
            elif kind == "image" and (linked or entry.is_file()):
                count = self._runs.pop()[1] if self._runs and self._runs[-1][0] is folder else 0
                self._runs.append((folder, count + 1))
                yield entry.path
            elif kind == "packed":
                self.packed.append(entry.path)
            elif kind in ("system", "hidden") and is_folder:
                self.left_out.add(kind, entry.name, count=num_images_below(entry.path))
            elif kind and kind != "image":
                self.left_out.add(kind, entry.name)
            elif not kind and "." not in entry.name and os.path.isfile(entry.path) and is_image(entry.path):
                self.left_out.add("formats", "no suffix")
        if bare:
            self.bare.append(os.path.relpath(prefix, self.root))

    def _leads_out(self, link: str, is_folder: bool) -> bool:
        """Whether the walk reaches the target of a link by no other path."""
        real = os.path.realpath(link)
        if not is_folder and not os.path.isfile(real):
            return True
        for root in self._roots:
            *above, name = os.path.relpath(real, root).split(os.sep)
            if name == ".":
                return False
            if (above or [name])[0] == "..":
                if root.startswith(os.path.join(real, "")):
                    return False
            elif all(kind_of(each, is_folder=True) == "folder" for each in above) and (
                kind_of(name, is_folder=is_folder) in ("image", "folder")
            ):
                return False
        if is_folder:
            self._roots.append(real)
        return True

    def folders(self) -> Iterator[str]:
        return itertools.chain.from_iterable(itertools.starmap(itertools.repeat, self._runs))

    def keys(self) -> list[str]:
        """The path of each image below the root, without its part."""
        places = map(self.places.__getitem__, self.folders())
        inside = (name[len(self.root) :] for name in self.names)
        return [without_part(path, place.part) for path, place in zip(inside, places, strict=True)]


def split_folders(entries: Iterable[os.DirEntry[str]]) -> dict[str, str]:
    """The folders among `entries` that are parts of a data set, as in `layout.parts_in`."""
    return parts_in(entry.name for entry in entries if leads_to_folder(entry))


def scanned(folder: str) -> list[os.DirEntry[str]]:
    """The entries of a folder, sorted by name. Their types need no stat per file."""
    try:
        with os.scandir(folder) as entries:
            return sorted(entries, key=lambda entry: entry.name)
    except OSError as error:
        raise DataError(f"cannot read the folder {folder}: {error.strerror}") from error


def leads_to_folder(entry: os.DirEntry[str]) -> bool:
    """Whether an entry is a folder or a link to one, but not a circular link."""
    return os.path.isdir(entry.path) if entry.is_symlink() else entry.is_dir()


def without_part(path: str, part: str) -> str:
    return "/".join(each for each in path.split("/") if not part or part_of(each, is_folder=True) != part)


def num_images_below(folder: str) -> int:
    names = itertools.chain.from_iterable(files for _, _, files in os.walk(folder))
    return sum(name[name.rfind(".") :].lower() in EXTENSIONS for name in names)


def is_image(path: str) -> bool:
    try:
        open_image(path).close()
    except UnreadableImage:
        return False
    return True
