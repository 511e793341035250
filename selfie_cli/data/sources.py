"""Sources of images: files, arrays, files of many images; joined sources and subsets. Folders are in `folders`."""

import bisect
import contextlib
import hashlib
import io
import itertools
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from selfie_cli.data.images import open_image, read_file, what_is
from selfie_cli.data.layout import LeftOut
from selfie_cli.data.splits import Integers
from selfie_cli.errors import DataError, UnreadableImage, one_line
from selfie_cli.talk import Talk


class Source(ABC):
    """Images in a fixed order, each with a name that users know it by. Methods may be called from several threads.

    block: number of consecutive images that are best read together, 1 if it does not matter. in_files: whether each
    image is a file. pinned: for names whose meaning may change, names that always mean these images. left_out: files
    and images that are not read. no_labels: the message if labels are needed and missing. texts, classes: see `labels`.
    """

    block: int = 1
    in_files = False
    pinned: Mapping[str, str] = MappingProxyType({})
    no_labels = "has no labels"
    texts: Sequence[str | None] = ()
    classes: list[str] | None = None

    def __init__(self, names: Iterable[str] = (), left_out: LeftOut | None = None) -> None:
        self.left_out = LeftOut() if left_out is None else left_out
        self.names = list(names)

    def __len__(self) -> int:
        return len(self.names)

    def open(self, index: int) -> Image.Image:
        """Open an image: its header is read, and the caller decodes and closes it. Raises UnreadableImage."""
        return open_image(io.BytesIO(self.contents(index)))

    @abstractmethod
    def contents(self, index: int) -> bytes:
        """The bytes of an encoded image. Raises UnreadableImage."""

    def labels(self) -> tuple[Sequence[str | None], list[str] | None]:
        """The class of each image ("" outside the class folders, None without a label), and all classes in order, if
        the data name them."""
        return self.texts or [None] * len(self), self.classes

    def keys(self) -> list[str]:
        """Names for the hash split that do not depend on where the data set is: folder, and file or row."""
        return ["/".join(name.split("/")[-2:]) for name in self.names]

    def sizes(self) -> Integers:
        """The number of bytes of each image, int64 [N], where it is known without reading; else zeros."""
        return np.zeros(len(self), np.int64)

    def first_of_same(self, talk: Talk) -> Integers:
        """For each image the first one with the same contents, int64 [N]. Only images of the same size are read."""
        first = np.arange(len(self))
        _, inverse, counts = np.unique(self.sizes(), return_inverse=True, return_counts=True)
        known: dict[bytes, int] = {}
        alike = np.flatnonzero(counts[inverse] > 1).tolist()
        with talk.track("looking for copies", len(alike)) as advance:
            for done, index in enumerate(alike, 1):
                with contextlib.suppress(UnreadableImage):
                    first[index] = known.setdefault(hashlib.blake2b(self.contents(index)).digest(), index)
                advance(done, "")
        return first

    @abstractmethod
    def versions(self) -> Iterator[bytes]:
        """Yield, for each file that holds images, bytes that change when the file does. May take a while."""


@dataclass(frozen=True)
class Labelled:
    """Images, their labels (int64 [N], positions in `classes`), and the names of the classes."""

    source: Source
    labels: Integers
    classes: list[str]


class Packed(Source):
    """Images in packed files: tar shards or parquet files of many images."""

    paths: Sequence[str]

    @abstractmethod
    def read(self, first: int, end: int) -> Sequence[bytes | UnreadableImage]:
        """The bytes of images `first` .. `end` - 1, or the error of each. Raises UnreadableImage if a file fails."""

    def contents(self, index: int) -> bytes:
        return checked(self.read(index, index + 1)[0])

    def versions(self) -> Iterator[bytes]:
        return map(file_version, self.paths)


def checked(data: bytes | UnreadableImage) -> bytes:
    """Return the bytes, or raise the UnreadableImage."""
    if isinstance(data, UnreadableImage):
        raise UnreadableImage(str(data))
    return data


def file_version(path: str) -> bytes:
    """Size and modification time of a file."""
    try:
        known = os.stat(path)
    except (OSError, ValueError):  # it will turn out to be unreadable
        return b"absent"
    return f"{known.st_size} {known.st_mtime_ns};".encode()


def unreadable(path: str, expected: str, error: Exception) -> DataError:
    """The error for a file of many images that cannot be read."""
    told = ""
    with contextlib.suppress(OSError), open(path, "rb") as file:
        told = what_is(file.read(512))
    if not told.startswith(("a Git LFS pointer", "a web page")):
        told = one_line(error)
    return DataError(f"cannot read {path} ({expected} is expected): {told}")


class Files(Source):
    """Image files, named by their paths."""

    in_files = True

    def contents(self, index: int) -> bytes:
        return read_file(self.names[index])

    def sizes(self) -> Integers:
        return np.fromiter((os.path.getsize(name) if os.path.exists(name) else 0 for name in self.names), np.int64)

    def versions(self) -> Iterator[bytes]:
        return map(file_version, self.names)


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
        return (hashlib.sha256(self.contents(index)).digest() for index in range(len(self)))


class Joined(Source):
    """Several sources, one after another."""

    def __init__(self, sources: Sequence[Source]) -> None:
        super().__init__(itertools.chain.from_iterable(source.names for source in sources))
        self.sources = sources
        self.ends = list(itertools.accumulate(len(source) for source in sources))
        self.block = max(source.block for source in sources)
        self.in_files = all(source.in_files for source in sources)
        self.pinned = {name: pin for source in sources for name, pin in source.pinned.items()}
        for source in sources:
            self.left_out.update(source.left_out)

    def _place(self, index: int) -> tuple[Source, int]:
        """The source of an image, and its row there."""
        which = bisect.bisect_right(self.ends, index)
        return self.sources[which], index - self.ends[which] + len(self.sources[which])

    def open(self, index: int) -> Image.Image:
        source, row = self._place(index)
        return source.open(row)

    def contents(self, index: int) -> bytes:
        source, row = self._place(index)
        return source.contents(row)

    def versions(self) -> Iterator[bytes]:
        return itertools.chain.from_iterable(source.versions() for source in self.sources)


class Subset(Source):
    """The images of `source` at `indices`, int64 [M], in that order."""

    def __init__(self, source: Source, indices: Integers) -> None:
        super().__init__(map(source.names.__getitem__, indices.tolist()), source.left_out)
        self.source = source
        self.indices = indices
        self.block, self.in_files, self.pinned = source.block, source.in_files, source.pinned
        self.no_labels = source.no_labels

    def open(self, index: int) -> Image.Image:
        return self.source.open(int(self.indices[index]))

    def contents(self, index: int) -> bytes:
        return self.source.contents(int(self.indices[index]))

    def labels(self) -> tuple[Sequence[str | None], list[str] | None]:
        texts, known = self.source.labels()
        return [texts[index] for index in self.indices], known

    def keys(self) -> list[str]:
        keys = self.source.keys()
        return [keys[index] for index in self.indices]

    def sizes(self) -> Integers:
        return self.source.sizes()[self.indices]

    def versions(self) -> Iterator[bytes]:
        return map(file_version, self.names) if self.in_files else self.source.versions()


def chosen(source: Source, indices: Integers) -> Source:
    """The images at `indices`, ascending; `source` itself if these are all images."""
    return source if len(indices) == len(source) else Subset(source, indices)


@dataclass(frozen=True)
class DataSet:
    """A data set in parts: "all", or "train" and "validation", "test" or both.

    parts: the name of each part in the data set, such as "valid/" for a folder. open: returns the images of a part.
    """

    name: str
    parts: Mapping[str, str]
    open: Callable[[str], Source]
    left_out: LeftOut = field(default_factory=LeftOut)


def fingerprint(source: Source) -> str:
    """Hash the number of images and their names, relative to their common folder, to 16 hex digits."""
    digest = hashlib.sha256(f"{len(source)}\n".encode())
    for name in below_shared_folder(source.names):
        digest.update(name.encode("utf-8", "surrogateescape") + b"\0")
    return digest.hexdigest()[:16]


OWN = "pretrain on your own: selfie pretrain FOLDER --image-size 224"


def warn_of_size(source: Source, image_size: int, talk: Talk, advice: str = OWN) -> None:
    """Warn if the first readable image is more than twice as large as the network's images."""
    for index, name in enumerate(source.names):
        with contextlib.suppress(UnreadableImage), source.open(index) as image:
            if min(image.size) > 2 * image_size:
                talk.warn(
                    f"{name} is {image.width} x {image.height}, and the network takes {image_size} px, so it sees a "
                    f"reduced copy. For photos, {advice}"
                )
            return


def below_shared_folder(names: Sequence[str]) -> Iterator[str]:
    """Yield the names relative to their common folder."""
    folder = names[0][: names[0].rfind("/") + 1] if names else ""
    while not all(name.startswith(folder) for name in names):
        folder = folder[: folder.rfind("/", 0, -1) + 1]
    return (name[len(folder) :] for name in names)
