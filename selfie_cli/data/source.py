"""What everything that holds images has in common."""

import contextlib
import hashlib
import io
import os
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from types import MappingProxyType

import numpy as np
from PIL import Image

from selfie_cli.data.images import open_image, what_is
from selfie_cli.data.layout import LeftOut
from selfie_cli.data.names import Names
from selfie_cli.data.splits import Labels
from selfie_cli.errors import DataError, UnreadableImage
from selfie_cli.talk import Talk


class Source(ABC):
    """Images in a fixed order, each with the name by which its user knows it.

    block: how many neighbours had better be asked for together, 1 if it does not matter. pinned: of what was asked for
    by a name that may come to mean something else, a name that always means these images. left_out: what lies among
    them and is not taken.
    """

    block: int = 1
    pinned: Mapping[str, str] = MappingProxyType({})

    def __init__(self, names: Iterable[str] = ()) -> None:
        self.left_out = LeftOut()
        self.names = names if isinstance(names, Names) else Names(names)

    def __len__(self) -> int:
        return len(self.names)

    @abstractmethod
    def open(self, index: int) -> Image.Image:
        """The header of an image, to be decoded and closed by the caller; raises UnreadableImage.

        May be called from several threads.
        """

    def contents(self, index: int) -> bytes:
        """The path or bytes that an image is decoded from. Raises UnreadableImage."""
        raise NotImplementedError

    def sizes(self) -> Labels:
        """The bytes of each image's contents, int64 [N], where they can be told without reading it; else zeros."""
        return np.zeros(len(self), np.int64)

    def first_of_same(self, talk: Talk) -> Labels:
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

    def versions(self) -> Iterator[bytes]:
        """Something of each file that holds images, which changes when the file does; may take a while."""
        yield from ()


class Packed(Source):
    """Many images in one file."""

    @abstractmethod
    def read(self, first: int, end: int) -> Sequence[bytes | UnreadableImage]:
        """The bytes of the images from `first` up to `end`, or why there are none.

        Raises UnreadableImage. May be called from several threads.
        """

    def open(self, index: int) -> Image.Image:
        return open_image(io.BytesIO(self.contents(index)))

    def contents(self, index: int) -> bytes:
        return checked(self.read(index, index + 1)[0])


def checked(data: bytes | UnreadableImage) -> bytes:
    """Raises UnreadableImage in place of returning one."""
    if isinstance(data, UnreadableImage):
        raise UnreadableImage(str(data))
    return data


def file_version(path: str) -> bytes:
    """A file's size and time of change."""
    try:
        known = os.stat(path)
    except (OSError, ValueError):  # it will turn out to be unreadable
        return b"absent"
    return f"{known.st_size} {known.st_mtime_ns};".encode()


def unreadable(path: str, expected: str, error: Exception) -> DataError:
    """Why a file of many images cannot be read."""
    told = ""
    with contextlib.suppress(OSError), open(path, "rb") as file:
        told = what_is(file.read(512))
    if not told.startswith(("a Git LFS pointer", "a web page")):
        told = " ".join((getattr(error, "strerror", None) or str(error)).split())
    return DataError(f"cannot read {path} ({expected} is expected): {told}")
