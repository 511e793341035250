"""Images in uncompressed tar files, in the WebDataset layout or as folders of classes."""

import io
import os
import tarfile
from array import array
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from selfie_cli.data.layout import kind_of, label_of
from selfie_cli.data.names import Names
from selfie_cli.data.source import Packed, file_version, unreadable
from selfie_cli.data.splits import Labels
from selfie_cli.errors import DataError, UnreadableImage

GAP = 2**22
"""Bytes between two images of a shard that are read over rather than skipped: a disk finds a place as fast."""
DAMAGE = (OSError, tarfile.TarError, ValueError, LookupError, ArithmeticError, MemoryError, RecursionError)
"""Errors that tarfile raises on damaged files and files of other kinds."""
MOST_OF_HEADER = 2**20
"""Bytes that a member of a shard says of itself, at most."""


class Shards(Packed):
    """Images inside uncompressed tar files, named `shard.tar/member`, read in place and never extracted.

    The headers are read once, in order. labels: of each image the class that `.cls` members give it, or None.
    has_labels: whether there are such members.
    """

    def __init__(self, paths: Sequence[str]) -> None:
        self.paths = list(paths)
        self.labels: list[str | None] = []
        self.has_labels = False
        where = array("q")
        super().__init__()
        self.names = Names(self._index(where))
        self.where = np.frombuffer(where, np.int64).reshape(-1, 3)  # [N, 3]: shard, first byte, bytes

    def _index(self, where: "array[int]") -> Iterator[str]:
        """Yield the names of the images; extend `where` and `labels` on the way."""
        for shard, path in enumerate(self.paths):
            images: dict[str, tuple[int, int]] = {}
            texts: dict[str, str] = {}  # of members without their suffix
            for name, start, size, text in self._members(path):
                if text is not None:
                    if texts.setdefault(name, text) != text:
                        raise DataError(f"{path} has two members {name}.cls, {texts[name]!r} and {text!r}: keep one")
                    continue
                if images.pop(name, None):  # as in an extracted tar, the last one counts
                    self.left_out.add("repeated")
                images[name] = start, size
            labels = self._labels(path, images, texts)
            self.has_labels |= bool(texts)
            for name, label in labels.items():
                where.extend((shard, *images[name]))
                self.labels.append(label)
                yield f"{path}/{name}"

    def _labels(self, path: str, images: Iterable[str], texts: dict[str, str]) -> dict[str, str | None]:
        """The label of each image: that of its own stem, else that of its key, the name up to the first dot.

        An image without a `.cls` of its own, beside one of the same key that has one, is left out: a mask, say. Raises
        DataError where a key has two labels.
        """
        if not texts:
            return dict.fromkeys(images)
        stems = {name: os.path.splitext(name)[0] for name in images}
        of_key: dict[str, set[str]] = defaultdict(set)
        for stem, text in texts.items():
            of_key[_key(stem)].add(text)
        owned = {_key(stem) for stem in stems.values() if stem in texts}
        labels: dict[str, str | None] = {}
        for name, stem in stems.items():
            key = _key(name)
            if stem not in texts and key in owned:
                self.left_out.add("companions", name)
                continue
            if stem not in texts and len(of_key.get(key, ())) > 1:
                several = " and ".join(sorted(of_key[key])[:2])
                raise DataError(f"{path}: {name} has two labels, {several}: name the right one {stem}.cls")
            labels[name] = label_of(texts[stem] if stem in texts else next(iter(of_key.get(key, ("",)))))
        return labels

    @property
    def keys(self) -> list[str]:
        """`shard.tar/key` of each image: the names that the hash split uses."""
        return [f"{os.path.basename(path)}/{_key(member)}" for path, member in self._by_path()]

    def folders(self) -> Iterator[str]:
        """The folder of each image in its shard, below the one that all images share."""
        # As if unpacked at the root: a name that leads out with .. is no class.
        folders = [os.path.normpath("/" + os.path.dirname(member)).lstrip("/") for _, member in self._by_path()]
        start = len(os.path.join(os.path.commonpath(set(folders)), "")) if folders and "" not in folders else 0
        return (folder[start:] for folder in folders)

    def _by_path(self) -> Iterator[tuple[str, str]]:
        for name, shard in zip(self.names, self.where[:, 0].tolist(), strict=True):
            yield self.paths[shard], name[len(self.paths[shard]) + 1 :]

    def read(self, first: int, end: int) -> list[bytes]:
        """The bytes of the images from `first` up to `end`, by a sequential read of each shard they lie in, and
        one more after each GAP.

        Raises UnreadableImage. May be called from several threads.
        """
        found: list[bytes] = []
        shards, starts, sizes = self.where[first:end].T
        apart = (np.diff(shards) != 0) | (starts[1:] - (starts + sizes)[:-1] > GAP)
        for members in np.split(self.where[first:end], np.flatnonzero(apart) + 1):
            path, start, end_of_last = self.paths[members[0, 0]], int(members[0, 1]), int(members[-1, 1:].sum())
            try:
                with open(path, "rb") as file:  # buffered: it reads on where the system has read less than asked for
                    file.seek(start)
                    data = memoryview(file.read(end_of_last - start))
            except OSError as error:
                raise UnreadableImage(f"{path}: {error.strerror}") from error
            found += [bytes(data[each - start : each - start + size]) for _, each, size in members.tolist()]
        return found

    def sizes(self) -> Labels:
        return self.where[:, 2]

    def versions(self) -> Iterator[bytes]:
        return map(file_version, self.paths)

    def _members(self, path: str) -> Iterator[tuple[str, int, int, str | None]]:
        """Name, first byte and size of each image; of each `.cls` file the name without the suffix, and its text."""
        try:
            with (
                _Headers(io.FileIO(path)) as file,
                tarfile.open(fileobj=file, mode="r:", errors="surrogateescape") as tar,
            ):
                size = os.fstat(file.fileno()).st_size
                while (member := tar.next()) is not None:
                    tar.members = []  # type: ignore[attr-defined]  # it would keep every header it has read
                    if member.size < 0 or (member.isreg() and member.offset_data + member.size > size):
                        raise tarfile.ReadError(f"{member.name!r} has {member.size} bytes, and the shard {size}")
                    kind = "" if member.isdir() else self._kind(member)
                    if kind == "image":
                        yield member.name, member.offset_data, member.size, None
                    elif kind == "label" and (text := tar.extractfile(member)) is not None:
                        yield member.name[:-4], 0, 0, text.read(1024).decode("utf-8-sig", "surrogateescape").strip()
        except DAMAGE as error:
            raise unreadable(path, "an uncompressed tar file", error) from error

    def _kind(self, member: tarfile.TarInfo) -> str:
        """'image' or 'label', else ''; notes what a folder would leave out as well."""
        *folders, name = ["", *(part for part in member.name.split("/") if part not in ("", ".", ".."))]
        kind = kind_of(name, is_folder=False)
        if kind == "image":
            kinds = {kind_of(folder, is_folder=True): folder for folder in reversed(folders)}
            kind = next((reason for reason in kinds if reason != "folder"), kind)
            if kind == "image" and (not member.isreg() or member.issparse()):
                kind = "links"
        if kind in ("", "image", "packed"):
            return "label" if name.lower().endswith(".cls") and member.isreg() else kind.removeprefix("packed")
        self.left_out.add(kind, name)
        return ""


def _key(member: str) -> str:
    folder, _, file = member.rpartition("/")
    return f"{folder}/{file.partition('.')[0]}"


class _Headers(io.BufferedReader):
    """A shard for tarfile, which would believe a header that says how many bytes its extension has."""

    def read(self, size: int | None = -1, /) -> bytes:
        if size is None or not 0 <= size <= MOST_OF_HEADER:
            raise tarfile.ReadError(f"a header of {size} bytes")
        return super().read(size)
