"""Images in uncompressed tar files, in the WebDataset layout or as folders of classes."""

import io
import os
import tarfile
from array import array
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from selfie_cli.data.folders import Tree
from selfie_cli.data.layout import kind_of, label_of
from selfie_cli.data.sources import Packed, Source, unreadable
from selfie_cli.data.splits import Integers
from selfie_cli.errors import DataError, UnreadableImage

GAP = 2**22
"""Largest gap between two images of a shard, in bytes, that is read over: a seek takes a disk as long."""
DAMAGE = (OSError, tarfile.TarError, ValueError, LookupError, ArithmeticError, MemoryError, RecursionError)
"""Errors that tarfile raises on damaged files and files of other kinds."""
MOST_OF_HEADER = 2**20
"""Largest header of a member, in bytes."""


class Shards(Packed, Tree):
    """Images inside uncompressed tar files, named `shard.tar/member`, read in place and never extracted.

    The headers are read once, in order. texts: the class that `.cls` members give each image, or None.
    has_texts: whether there are such members.
    """

    no_labels = "has no labels: give each image a .cls member of its name, or put the classes in folders"

    def __init__(self, paths: Sequence[str]) -> None:
        super().__init__()
        self.paths = list(paths)
        self.texts: list[str | None] = []
        where = array("q")
        self.names = list(self._index(where))
        self.where = np.frombuffer(where, np.int64).reshape(-1, 3)  # [N, 3]: shard, first byte, bytes

    def _index(self, where: "array[int]") -> Iterator[str]:
        """Yield the names of the images, and extend `where` and `texts`."""
        for shard, path in enumerate(self.paths):
            images, texts = self._members(path)
            self.has_texts |= bool(texts)
            for name, text in self._labelled(path, images, texts):
                where.extend((shard, *images[name]))
                self.texts.append(text)
                yield f"{path}/{name}"

    def _labelled(self, path: str, images: Iterable[str], texts: dict[str, str]) -> Iterator[tuple[str, str | None]]:
        """Yield each image with the label of its own stem, or else of its key, the name up to the first dot.

        An image without its own `.cls` is left out if another one of the same key has one: it may be a mask. Raises
        DataError if a key has two labels.
        """
        of_key: dict[str, set[str]] = defaultdict(set)
        for stem, text in texts.items():
            of_key[_key(stem)].add(text)
        stems = {name: os.path.splitext(name)[0] for name in images}
        owned = {_key(stem) for stem in stems.values() if stem in texts}
        for name, stem in stems.items():
            found = [texts[stem]] if stem in texts else sorted(of_key[_key(name)])
            if stem not in texts and _key(name) in owned:
                self.left_out.add("companions", name)
            elif len(found) > 1:
                raise DataError(
                    f"{path}: {name} has two labels, {found[0]} and {found[1]}: name the right one {stem}.cls"
                )
            else:
                yield name, label_of(found[0]) if found else None

    def labels(self) -> tuple[Sequence[str | None], list[str] | None]:
        """The class of each image, by `.cls` members if there are any, else by folders as in `Tree`."""
        return Source.labels(self) if self.has_texts else super().labels()

    def keys(self) -> list[str]:
        """`shard.tar/key` of each image if there are `.cls` members, else `shard.tar/folder/stem`."""
        key = _key if self.has_texts else lambda member: os.path.splitext(member)[0]
        return [f"{os.path.basename(path)}/{key(member)}" for path, member in self._by_path()]

    def folders(self) -> Iterator[str]:
        """The folder of each image in its shard, relative to the folder that all images share."""
        # Resolve paths as if unpacked at the root, so that .. in a name does not become a class.
        folders = [os.path.normpath("/" + os.path.dirname(member)).lstrip("/") for _, member in self._by_path()]
        start = len(os.path.join(os.path.commonpath(set(folders)), "")) if folders and "" not in folders else 0
        return (folder[start:] for folder in folders)

    def _by_path(self) -> Iterator[tuple[str, str]]:
        for name, shard in zip(self.names, self.where[:, 0].tolist(), strict=True):
            yield self.paths[shard], name[len(self.paths[shard]) + 1 :]

    def read(self, first: int, end: int) -> list[bytes]:
        """Read the bytes of images: one sequential read per shard, and another one after each gap of more than GAP."""
        found: list[bytes] = []
        shards, starts, sizes = self.where[first:end].T
        apart = (np.diff(shards) != 0) | (starts[1:] - (starts + sizes)[:-1] > GAP)
        for members in np.split(self.where[first:end], np.flatnonzero(apart) + 1):
            path, start, end_of_last = self.paths[members[0, 0]], int(members[0, 1]), int(members[-1, 1:].sum())
            try:
                with open(path, "rb") as file:  # buffered: it continues after a short read
                    file.seek(start)
                    data = memoryview(file.read(end_of_last - start))
            except OSError as error:
                raise UnreadableImage(f"{path}: {error.strerror}") from error
            found += [bytes(data[each - start : each - start + size]) for _, each, size in members.tolist()]
        return found

    def sizes(self) -> Integers:
        return self.where[:, 2]

    def _members(self, path: str) -> tuple[dict[str, tuple[int, int]], dict[str, str]]:
        """The first byte and the size of each image; the text of each `.cls` member, by its name without the suffix."""
        images: dict[str, tuple[int, int]] = {}
        texts: dict[str, str] = {}
        try:
            with (
                _Headers(io.FileIO(path)) as file,
                tarfile.open(fileobj=file, mode="r:", errors="surrogateescape") as tar,
            ):
                size = os.fstat(file.fileno()).st_size
                while (member := tar.next()) is not None:
                    tar.members = []  # type: ignore[attr-defined]  # tarfile would keep every header
                    if member.size < 0 or (member.isreg() and member.offset_data + member.size > size):
                        raise tarfile.ReadError(f"{member.name!r} has {member.size} bytes, and the shard {size}")
                    kind = "" if member.isdir() else self._kind(member)
                    if kind == "image":
                        if images.pop(member.name, None):  # the last one counts, as when extracting
                            self.left_out.add("repeated")
                        images[member.name] = member.offset_data, member.size
                    elif kind == "label" and (content := tar.extractfile(member)) is not None:
                        name, text = member.name[:-4], content.read(1024).decode("utf-8-sig", "surrogateescape").strip()
                        if texts.setdefault(name, text) != text:
                            raise DataError(
                                f"{path} has two members {name}.cls, {texts[name]!r} and {text!r}: keep one"
                            )
        except DAMAGE as error:
            raise unreadable(path, "an uncompressed tar file", error) from error
        return images, texts

    def _kind(self, member: tarfile.TarInfo) -> str:
        """'image', 'label', or a kind as in `kind_of`; notes members that are left out."""
        *folders, name = ["", *(part for part in member.name.split("/") if part not in ("", ".", ".."))]
        kind = kind_of(name, is_folder=False)
        if kind == "image":
            reasons = (reason for folder in folders if (reason := kind_of(folder, is_folder=True)) != "folder")
            kind = next(reasons, kind)
            if kind == "image" and (not member.isreg() or member.issparse()):
                kind = "links"
        if kind not in ("", "packed", "image"):
            self.left_out.add(kind, name)
        return "label" if not kind and name.lower().endswith(".cls") and member.isreg() else kind


def _key(member: str) -> str:
    folder, _, file = member.rpartition("/")
    return f"{folder}/{file.partition('.')[0]}"


class _Headers(io.BufferedReader):
    """A shard file that limits the size of headers: tarfile itself believes any size that a header states."""

    def read(self, size: int | None = -1, /) -> bytes:
        if size is None or not 0 <= size <= MOST_OF_HEADER:
            raise tarfile.ReadError(f"a header of {size} bytes")
        return super().read(size)
