"""Millions of names in little memory: one block of bytes, and the end of each name."""

import itertools
import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import overload

import numpy as np
from numpy.typing import NDArray

CHUNK = 2**16  # names handled together
ENCODING = sys.getfilesystemencoding()  # UTF-8 but in odd locales


def encoded(name: str) -> bytes:
    """The bytes of a name in the file system: paths that are not in its encoding keep theirs (surrogateescape)."""
    try:
        return name.encode(ENCODING, "surrogateescape")
    except UnicodeEncodeError:  # of a list in UTF-8, say, or from inside a parquet file
        return name.encode("utf-8", "surrogateescape")


class Names(Sequence[str]):
    """An immutable sequence of strings that takes their bytes and 9 more each; a list takes 65 more."""

    def __init__(self, names: Iterable[str] = ()) -> None:
        self._text = bytearray()  # a zero byte before each name: no path holds one
        ends = [np.zeros(1, np.int64)]
        names = iter(names)
        while chunk := [encoded(name) for name in itertools.islice(names, CHUNK)]:
            ends.append(len(self._text) + np.fromiter((len(name) + 1 for name in chunk), np.int64).cumsum())
            self._text += b"\0" + b"\0".join(chunk)
        self._ends: NDArray[np.int64] = np.concatenate(ends)  # [N + 1], the first 0

    def __len__(self) -> int:
        return len(self._ends) - 1

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...

    def __getitem__(self, index: int | slice) -> str | list[str]:
        if isinstance(index, slice):
            return [self[each] for each in range(*index.indices(len(self)))]
        number = range(len(self))[index]
        return self._text[self._ends[number] + 1 : self._ends[number + 1]].decode(ENCODING, "surrogateescape")

    def __iter__(self) -> Iterator[str]:
        for first in range(0, len(self), CHUNK):
            for start, end in itertools.pairwise(self._ends[first : first + CHUNK + 1].tolist()):
                yield self._text[start + 1 : end].decode(ENCODING, "surrogateescape")

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Names | list) and list(self) == list(other)

    def __repr__(self) -> str:
        return f"Names of {len(self)}: {', '.join(self[:3])}{', ...' * (len(self) > 3)}"

    def below_shared_folder(self) -> Iterator[bytes]:
        """Yield the names from below the folder that all share, with a zero byte after each, many at a time."""
        folder = b"\0" + bytes(self._text[1 : self._ends[1]] if len(self) else b"")
        while True:
            folder = folder[: folder.rfind(b"/") + 1] or b"\0"
            if self._text.count(folder) == len(self) or len(folder) == 1:
                break
            folder = folder[:-1]
        for first in range(0, len(self), CHUNK):
            start, end = self._ends[first], self._ends[min(first + CHUNK, len(self))]
            yield bytes(self._text[start:end].replace(folder, b"\0")[1:] + b"\0")
