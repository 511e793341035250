"""Where images come from: folders, files, lists, tar shards, parquet files, named sets, sets on the Hub."""

import bisect
import hashlib
import io
import itertools
import os
import re
import tarfile
from array import array
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from selfie_cli.data import hub_sets
from selfie_cli.data.images import EXTENSIONS, open_image
from selfie_cli.data.named import NAMED, NamedPart, read_named
from selfie_cli.data.parquet import Parquet, check_numbers, files_below, parts_of
from selfie_cli.data.source import Packed, file_version
from selfie_cli.data.source import Source as Source
from selfie_cli.data.splits import Labels
from selfie_cli.errors import DataError, UnreadableImage
from selfie_cli.hub import is_address
from selfie_cli.talk import Talk

LISTS = (".txt", ".lst")
ARCHIVES = (".tgz", ".gz", ".bz2", ".xz", ".zst", ".zip", ".rar", ".7z")
GAP = 2**22
"""Bytes between two images of a shard that are read over rather than skipped: a disk finds a place as fast."""
MOST_OF_HEADER = 2**20
"""Bytes that a member of a shard says of itself, at most."""
LOOKED_FOR = f"looked for {', '.join(sorted(EXTENSIONS))}"


class Files(Source):
    """Image files, named by their paths."""

    def open(self, index: int) -> Image.Image:
        return open_image(self.names[index])

    def versions(self) -> Iterator[bytes]:
        return map(file_version, self.names)


class Shards(Packed):
    """Images inside uncompressed tar files, named `shard.tar/member`, read in place and never extracted.

    The headers are read once, in order. `keys` and `classes` follow the WebDataset layout: a member's key is its name
    up to the first dot of its last part, and its class the text of the member `<key>.cls` of its shard, else "".
    """

    def __init__(self, paths: Sequence[str]) -> None:
        self.paths = list(paths)
        self.classes: list[str] = []
        where = array("q")
        super().__init__(self._index(where))
        self.where = np.frombuffer(where, np.int64).reshape(-1, 3)  # [N, 3]: shard, first byte, bytes

    def _index(self, where: "array[int]") -> Iterator[str]:
        """The names of the images; extends `where` and `classes` on the way."""
        known: dict[str, str] = {"": ""}  # a class's text is held once
        for shard, path in enumerate(self.paths):
            texts: dict[str, str] = {}
            keys = []
            for name, start, size, text in _members(path):
                if text is not None:
                    texts[_key(name)] = known.setdefault(text, text)
                else:
                    keys.append(_key(name))
                    where.extend((shard, start, size))
                    yield f"{path}/{name}"
            self.classes += [texts.get(key, "") for key in keys] if texts else [""] * len(keys)

    @property
    def keys(self) -> list[str]:
        paths = [self.paths[shard] for shard in self.where[:, 0]]
        members = (name[len(path) + 1 :] for name, path in zip(self.names, paths, strict=True))
        return [f"{os.path.basename(path)}/{_key(member)}" for member, path in zip(members, paths, strict=True)]

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

    def versions(self) -> Iterator[bytes]:
        return map(file_version, self.paths)


def _key(member: str) -> str:
    folder, _, file = member.rpartition("/")
    return f"{folder}/{file.partition('.')[0]}"


class _Headers(io.BufferedReader):
    """A shard for tarfile, which would believe a header that says how many bytes its extension has."""

    def read(self, size: int | None = -1, /) -> bytes:
        if size is None or not 0 <= size <= MOST_OF_HEADER:
            raise tarfile.ReadError(f"a header of {size} bytes")
        return super().read(size)


def _members(path: str) -> Iterator[tuple[str, int, int, str | None]]:
    """Name, first byte and size of each image, and of each `.cls` file with its text."""
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
                if not member.isreg() or member.issparse() or os.path.basename(member.name).startswith("."):
                    continue
                suffix = os.path.splitext(member.name)[1].lower()
                if suffix in EXTENSIONS:
                    yield member.name, member.offset_data, member.size, None
                elif suffix == ".cls" and (text := tar.extractfile(member)) is not None:
                    yield member.name, 0, 0, text.read(1024).decode("utf-8", "surrogateescape").strip()
    except (OSError, tarfile.TarError, ValueError, LookupError, ArithmeticError, MemoryError, RecursionError) as error:
        reason = getattr(error, "strerror", None) or error
        raise DataError(f"cannot read the shard {path} (an uncompressed tar file is expected): {reason}") from error


class Array(Source):
    """Decoded pixels, uint8 `[N, H, W, 3]`."""

    def __init__(self, pixels: NDArray[np.uint8], names: Iterable[str]) -> None:
        super().__init__(names)
        self.pixels = pixels

    def open(self, index: int) -> Image.Image:
        return Image.fromarray(self.pixels[index])

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

    def open(self, index: int) -> Image.Image:
        which = bisect.bisect_right(self.ends, index)
        return self.sources[which].open(index - self.ends[which] + len(self.sources[which]))

    def versions(self) -> Iterator[bytes]:
        return itertools.chain.from_iterable(source.versions() for source in self.sources)


class Subset(Source):
    """The images of `source` at `indices`, int64 [M], in that order."""

    def __init__(self, source: Source, indices: Labels) -> None:
        super().__init__(map(source.names.__getitem__, indices.tolist()))
        self.source = source
        self.indices = indices
        self.block, self.pinned = source.block, source.pinned

    def open(self, index: int) -> Image.Image:
        return self.source.open(int(self.indices[index]))

    def versions(self) -> Iterator[bytes]:
        return self.source.versions()


def fingerprint(source: Source) -> str:
    """16 hex digits over the number of images and their names below the folder that they share."""
    digest = hashlib.sha256(f"{len(source)}\n".encode())
    for names in source.names.below_shared_folder():
        digest.update(names)
    return digest.hexdigest()[:16]


def entries(folder: str) -> list[tuple[str, bool]]:
    """Sorted (name, whether a folder) of the folders and images in a folder, but for hidden ones. Raises DataError."""
    kept = []
    try:
        with os.scandir(folder) as found:
            for entry in found:  # no stat a file: the folder itself says what each entry is
                name, linked = entry.name, entry.is_symlink()
                inside = os.path.isdir(entry.path) if linked else entry.is_dir()
                # A link that leads nowhere stays in: it is reported as an unreadable image, not silently left out.
                image = name[name.rfind(".") :].lower() in EXTENSIONS and (linked or entry.is_file())
                if (inside or image) and not name.startswith("."):
                    kept.append((name, inside))
    except OSError as error:
        raise DataError(f"cannot read the folder {folder}: {error.strerror}") from error
    return sorted(kept)


def list_images(folder: str) -> list[str]:
    """As `walk_images`."""
    return list(walk_images(folder))


def walk_images(folder: str, above: tuple[str, ...] = ()) -> Iterator[str]:
    """Paths of the images below `folder`, depth first, by name within each folder. Raises DataError as `entries` does.

    Links are followed, but not one that leads back to a folder it lies in: `above` are the real paths of those.
    """
    here = os.path.realpath(folder)
    if here in above:
        return
    prefix = os.path.join(folder, "")
    for name, inside in entries(folder):
        if inside:
            yield from walk_images(prefix + name, (*above, here))
        else:
            yield prefix + name


def split_folders(folder: str) -> dict[str, str]:
    """The names of the folders that part a data set: train and validation, test or both; {} where there is none."""
    inside = {name for name, is_folder in entries(folder) if is_folder}
    parts = {"train": "train", "test": "test", "validation": "validation" if "validation" in inside else "val"}
    parts = {part: name for part, name in parts.items() if name in inside}
    return parts if "train" in parts and len(parts) > 1 else {}


def nothing_in(folder: str) -> DataError:
    others = sum(len(files) for _, _, files in os.walk(folder))
    return DataError(f"no images in {folder} ({LOOKED_FOR}); {others} other files were found")


def open_unlabelled(data: Sequence[str], *, data_root: Path, offline: bool, talk: Talk) -> Source:
    """Every image of `data`, each of which is one of:

    a folder (its train/ alone where it is parted), an image, a list (.txt, .lst: a path a line, relative to the list),
    a tar shard, a parquet file or a brace pattern of them (`train-{0000..0099}.tar`), the name of a known data set, or
    `hf://datasets/owner/name`.

    Shards and parquet files that follow each other are one source.

    Raises:
        DataError: if one of them is missing, empty or cannot be downloaded; the message says what to do.
    """
    sources: list[Source] = []
    for packed, group in itertools.groupby(data, packed_as):
        if packed:
            several = list(group)
            sources.append(open_shards(*several) if packed == ".tar" else Parquet(expanded(several)))
        else:
            sources += [_open_one(one, data_root=data_root, offline=offline, talk=talk) for one in group]
    if not sources:
        raise DataError("no data: name a folder of images, a file, a list, a tar shard or a data set")
    return sources[0] if len(sources) == 1 else Joined(sources)


def packed_as(one: str) -> str:
    """'.tar', '.parquet', or '' for what is no file of many images."""
    suffix = os.path.splitext(one)[1].lower()
    return suffix if suffix in (".tar", ".parquet") and not os.path.isdir(one) and not hub_sets.is_address(one) else ""


def _open_one(one: str, *, data_root: Path, offline: bool, talk: Talk) -> Source:
    if found := parquet_set(one, only_train=True, offline=offline, talk=talk):
        return Parquet(next(iter(found.files.values())), found.pinned)
    suffix = os.path.splitext(one)[1].lower()
    if os.path.isdir(one):
        return _unlabelled_folder(one, talk)
    if os.path.exists(one):
        if suffix in ARCHIVES:
            raise DataError(f"{one} is compressed: unpack it, and give the folder or the tar file inside")
        return _listed(one) if suffix in LISTS else Files([one])
    if tree := named_tree(one, data_root):
        return _unlabelled_folder(tree, talk)
    return named_source(read_named(one, "unlabelled", data_root=data_root, offline=offline, talk=talk))


def _unlabelled_folder(folder: str, talk: Talk) -> Files:
    if parts := split_folders(folder):
        others = " and ".join(f"{name}/" for part, name in parts.items() if part != "train")
        talk.say(f"{folder}: only train/ is read, {others} {'is' if len(parts) == 2 else 'are'} kept for evaluation")
        folder = os.path.join(folder, "train")
    files = Files(walk_images(folder))
    if not len(files):
        raise nothing_in(folder)
    return files


def named_tree(name: str, data_root: Path) -> str | None:
    """An image tree `<data_root>/<name>/{train,test}/<class>/`, if it is there: it serves as the set of that name.

    Raises DataError if no set has that name.
    """
    if is_address(name):
        raise DataError(f"{name} is a run's address: a data set's is hf://datasets/owner/name")
    if name not in NAMED:
        raise DataError(f"{name}: no such file or folder, and none of the named sets ({', '.join(NAMED)})")
    tree = str(data_root / name)
    return tree if os.path.isdir(tree) and split_folders(tree) else None


def named_source(part: NamedPart) -> Source:
    return Files(part.names) if part.pixels is None else Array(part.pixels, part.names)


def _listed(path: str) -> Source:
    folder = os.path.dirname(path)
    # Only "\n" ends a line: names may hold the other characters that str.splitlines would cut at.
    try:
        with open(path, encoding="utf-8-sig", errors="surrogateescape", newline="\n") as file:
            lines = (line.rstrip("\r\n") for line in file)
            files = Files(os.path.join(folder, line) for line in lines if line.strip() and not line.startswith("#"))
    except OSError as error:
        raise DataError(f"cannot read the list {path}: {error.strerror}") from error
    if not len(files):
        raise DataError(f"no paths in the list {path}: it should name an image a line")
    return files


def expand_braces(pattern: str) -> list[str]:
    """`a-{08..10}.tar` or `{a,b}.tar` as a shell would expand them; zeros in front are kept."""
    if not (match := re.search(r"\{(?:(\d+)\.\.(\d+)|([^{}]*,[^{}]*))\}", pattern)):
        return [pattern]
    first, last, listed = match.groups()
    if listed is not None:
        middles = listed.split(",")
    else:
        middles = [str(number).zfill(len(first)) for number in range(int(first), int(last) + 1)]
    head, tail = pattern[: match.start()], pattern[match.end() :]
    return [head + middle + rest for middle in middles for rest in expand_braces(tail)]


def expanded(patterns: Sequence[str]) -> list[str]:
    """Files by their paths or brace patterns; a file of that very name wins. Raises DataError."""
    paths = [path for one in patterns for path in ([one] if os.path.exists(one) else expand_braces(one))]
    missing = [path for path in paths if not os.path.isfile(path)]
    if missing:
        raise DataError(f"{len(missing)} of {len(paths)} shards are missing, the first is {missing[0]}")
    return paths


def parquet_set(one: str, *, only_train: bool, offline: bool, talk: Talk) -> hub_sets.Found | None:
    """A set on the Hub, or a folder of parquet files without images; None if it is neither.

    Raises DataError as `parquet.parts_of` and `hub_sets.fetch` do.
    """
    if hub_sets.is_address(one):
        return hub_sets.fetch(one, only_train=only_train, offline=offline, talk=talk)
    if not os.path.isdir(one) or next(walk_images(one), None) is not None or not (inside := files_below(one)):
        return None
    parts = parts_of(inside, where=one, hint=f"name one of the folders in {one}", only_train=only_train, talk=talk)
    check_numbers(parts, one)
    files = {part: [os.path.join(one, each) for each in there] for part, there in parts.items()}
    return hub_sets.Found(os.path.basename(os.path.abspath(one)), files, {})


def open_shards(*patterns: str) -> Shards:
    """Raises DataError as `expanded` does, and if there are no images in them."""
    shards = Shards(expanded(patterns))
    if not len(shards):
        raise DataError(f"no images in {', '.join(patterns[:3])}{', ...' * (len(patterns) > 3)} ({LOOKED_FOR})")
    return shards
