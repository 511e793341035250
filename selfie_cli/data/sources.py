"""Images in files, folders and memory, joined and chosen from."""

import bisect
import hashlib
import itertools
import os
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from selfie_cli.data.images import EXTENSIONS, open_image, read_file
from selfie_cli.data.layout import (
    LeftOut,
    is_ours,
    kind_of,
    parts_in,
)
from selfie_cli.data.names import Names
from selfie_cli.data.source import Source as Source
from selfie_cli.data.source import file_version
from selfie_cli.data.splits import Labels
from selfie_cli.errors import DataError, UnreadableImage


class Files(Source):
    """Image files, named by their paths."""

    def __init__(self, names: Iterable[str] = (), left_out: LeftOut | None = None) -> None:
        super().__init__(names)
        self.left_out = left_out or self.left_out

    def open(self, index: int) -> Image.Image:
        return open_image(self.names[index])

    def contents(self, index: int) -> bytes:
        return read_file(self.names[index])

    def sizes(self) -> Labels:
        return np.fromiter((os.path.getsize(name) if os.path.exists(name) else 0 for name in self.names), np.int64)

    def versions(self) -> Iterator[bytes]:
        return map(file_version, self.names)


class Folder(Files):
    """Every image below a folder, depth first, by name within each folder. `packed` are its parquet and tar
    files, `bare` the folders at the ends of its branches that hold no images.

    Links are followed, unless they lead to what is read anyway or to a folder that they lie in. A link that leads
    nowhere is kept: it is reported as an unreadable image. Raises DataError for a folder that cannot be read.
    """

    def __init__(self, folder: str) -> None:
        super().__init__()
        self.root = os.path.join(folder, "")
        self.packed: list[str] = []
        self.bare: list[str] = []
        self._runs: list[tuple[str, int]] = []  # folders, and how many images in a row lie in each
        self._roots = [os.path.realpath(folder)]
        self.names = Names(self._walk(self.root, is_root=True))

    def _walk(self, prefix: str, *, is_root: bool = False) -> Iterator[str]:
        try:
            with os.scandir(prefix) as found:
                # No stat a file: the folder itself says what each entry is.
                entries = sorted(found, key=lambda entry: entry.name)
        except OSError as error:
            raise DataError(f"cannot read the folder {prefix}: {error.strerror}") from error
        if not is_root and is_ours(prefix, {entry.name for entry in entries}):
            self.left_out.add("runs", os.path.relpath(prefix, self.root))
            return
        bare, folder = not is_root, os.path.dirname(prefix[len(self.root) :]).replace(os.sep, "/")
        for entry in entries:
            linked = entry.is_symlink()
            is_folder = os.path.isdir(entry.path) if linked else entry.is_dir()
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
        """Whether a link leads to what the walk does not reach otherwise."""
        real = os.path.realpath(link)
        if not is_folder and not os.path.isfile(real):
            return True
        for root in self._roots:
            below = os.path.relpath(real, root).split(os.sep)
            if below[0] == ".":
                return False
            if below[0] == "..":
                if root.startswith(os.path.join(real, "")):
                    return False
            elif all(kind_of(name, is_folder=True) == "folder" for name in below[:-1]) and (
                kind_of(below[-1], is_folder=is_folder) in ("image", "folder")
            ):
                return False
        if is_folder:
            self._roots.append(real)
        return True

    def folders(self) -> Iterator[str]:
        """The folder of each image below the root, with forward slashes."""
        return itertools.chain.from_iterable(itertools.starmap(itertools.repeat, self._runs))


def num_images_below(folder: str) -> int:
    names = itertools.chain.from_iterable(files for _, _, files in os.walk(folder))
    return sum(name[name.rfind(".") :].lower() in EXTENSIONS for name in names)


def is_image(path: str) -> bool:
    try:
        open_image(path).close()
    except UnreadableImage:
        return False
    return True


class Array(Source):
    """Decoded pixels, uint8 `[N, H, W, 3]`."""

    def __init__(self, pixels: NDArray[np.uint8], names: Iterable[str]) -> None:
        super().__init__(names)
        self.pixels = pixels

    def open(self, index: int) -> Image.Image:
        return Image.fromarray(self.pixels[index])

    def contents(self, index: int) -> bytes:
        return bytes(self.pixels[index].tobytes())

    def versions(self) -> Iterator[bytes]:
        return (hashlib.sha256(image.tobytes()).digest() for image in self.pixels)


class Joined(Source):
    """Several sources, one after another."""

    def __init__(self, sources: Sequence[Source]) -> None:
        super().__init__(itertools.chain.from_iterable(source.names for source in sources))
        self.sources = sources
        self.ends = list(itertools.accumulate(len(source) for source in sources))
        self.block = max(source.block for source in sources)
        self.pinned = {name: pin for source in sources for name, pin in source.pinned.items()}
        for source in sources:
            self.left_out.update(source.left_out)

    def open(self, index: int) -> Image.Image:
        source, own = self._place(index)
        return source.open(own)

    def contents(self, index: int) -> bytes:
        source, own = self._place(index)
        return source.contents(own)

    def _place(self, index: int) -> tuple[Source, int]:
        which = bisect.bisect_right(self.ends, index)
        return self.sources[which], index - self.ends[which] + len(self.sources[which])

    def versions(self) -> Iterator[bytes]:
        return itertools.chain.from_iterable(source.versions() for source in self.sources)


class Subset(Source):
    """The images of `source` at `indices`, int64 [M], in that order."""

    def __init__(self, source: Source, indices: Labels) -> None:
        super().__init__(map(source.names.__getitem__, indices.tolist()))
        self.source = source
        self.indices = indices
        self.block, self.pinned, self.left_out = source.block, source.pinned, source.left_out

    def open(self, index: int) -> Image.Image:
        return self.source.open(int(self.indices[index]))

    def contents(self, index: int) -> bytes:
        return self.source.contents(int(self.indices[index]))

    def sizes(self) -> Labels:
        return self.source.sizes()[self.indices]

    def versions(self) -> Iterator[bytes]:
        return self.source.versions()


def chosen(source: Source, indices: Labels) -> Source:
    """As Subset; files by themselves, whose versions are theirs alone. `source` if these are all of it."""
    if len(indices) == len(source):
        return source
    subset = Subset(source, indices)
    return Files(subset.names, source.left_out) if isinstance(source, Files) else subset


def fingerprint(source: Source) -> str:
    """16 hex digits over the number of images and their names below the folder that they share."""
    digest = hashlib.sha256(f"{len(source)}\n".encode())
    for names in source.names.below_shared_folder():
        digest.update(names)
    return digest.hexdigest()[:16]


def split_folders(folder: str) -> dict[str, str]:
    """The names of the folders right in `folder` that part a data set, by part; {} where there are none."""
    try:
        with os.scandir(folder) as entries:
            inside = [entry.name for entry in entries if os.path.isdir(entry.path)]  # a circle of links is none
    except OSError as error:
        raise DataError(f"cannot read the folder {folder}: {error.strerror}") from error
    return {part: name for name, part in parts_in(inside).items()}
