"""Where images come from: folders, files, lists, tar shards, parquet files, named sets, sets on the Hub."""

import bisect
import contextlib
import glob
import hashlib
import itertools
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from selfie_cli.data import hub_sets
from selfie_cli.data.images import EXTENSIONS, open_image, what_is
from selfie_cli.data.layout import (
    ARCHIVES,
    PACKED,
    LeftOut,
    arrange,
    check_numbers,
    decoded_lines,
    is_ours,
    kind_of,
    part_of,
    parts_in,
    parts_of_files,
)
from selfie_cli.data.named import NAMED, NamedPart, read_named
from selfie_cli.data.names import Names
from selfie_cli.data.parquet import Parquet, num_rows
from selfie_cli.data.shards import Shards
from selfie_cli.data.source import Source as Source
from selfie_cli.data.source import file_version
from selfie_cli.data.splits import Labels
from selfie_cli.errors import DataError, UnreadableImage, UsageError
from selfie_cli.hub import is_address
from selfie_cli.talk import Talk

LISTS = (".txt", ".lst")
LOOKED_FOR = f"looked for {', '.join(sorted(EXTENSIONS))}"


class Files(Source):
    """Image files, named by their paths."""

    def __init__(self, names: Iterable[str] = (), left_out: LeftOut | None = None) -> None:
        super().__init__(names)
        self.left_out = left_out or self.left_out

    def open(self, index: int) -> Image.Image:
        return open_image(self.names[index])

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
        bare = not is_root
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
        start = len(self.root)
        return (os.path.dirname(name)[start:].replace(os.sep, "/") for name in self.names)


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
        self.block, self.pinned, self.left_out = source.block, source.pinned, source.left_out

    def open(self, index: int) -> Image.Image:
        return self.source.open(int(self.indices[index]))

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


def list_images(folder: str) -> list[str]:
    """The images below a folder, as `Folder` has them."""
    return list(Folder(folder).names)


def split_folders(folder: str) -> dict[str, str]:
    """The names of the folders right in `folder` that part a data set, by part; {} where there are none."""
    try:
        inside = [entry.name for entry in os.scandir(folder) if entry.is_dir()]
    except OSError as error:
        raise DataError(f"cannot read the folder {folder}: {error.strerror}") from error
    return {part: name for name, part in parts_in(inside).items()}


def nothing_in(folder: str, left_out: LeftOut) -> DataError:
    others = sum(len(files) for _, _, files in os.walk(folder))
    told = f"; {left_out}" if left_out else ""
    return DataError(f"no images in {folder} ({LOOKED_FOR}); {others} other files were found{told}")


def open_unlabelled(data: Sequence[str], *, data_root: Path, offline: bool, talk: Talk) -> Source:
    """Every image of `data`, each of which is one of:

    a folder (its training part alone where it is parted), an image, a list (.txt, .lst: a path a line, relative to the
    list), a tar shard, a parquet file or a brace pattern of them (`train-{0000..0099}.tar`), the name of a known data
    set, or `hf://datasets/owner/name`.

    Shards and parquet files that follow each other are one source. One line says what is left out.

    Raises:
        DataError: if one of them is missing, empty or cannot be downloaded; the message says what to do.
    """
    sources: list[Source] = []
    for packed, group in itertools.groupby(data, packed_as):
        if packed:
            source: Source = pack(expanded(list(group)))
            sources.append(training_part(source, ", ".join(data), talk) if isinstance(source, Shards) else source)
        else:
            opened = [_open_one(one, data_root=data_root, offline=offline, talk=talk) for one in group]
            if len(opened) > 1 and all(isinstance(one, Files) for one in opened):
                joined = Joined(opened)
                opened = [Files(distinct(joined.names, joined.left_out), joined.left_out)]
            sources += opened
    if not sources:
        raise DataError("no data: name a folder of images, a file, a list, a tar shard or a data set")
    source = sources[0] if len(sources) == 1 else Joined(sources)
    if source.left_out:
        talk.warn(str(source.left_out))
    return source


def packed_as(one: str) -> str:
    """'.tar', '.parquet', or '' for what is no file of many images."""
    suffix = os.path.splitext(one)[1].lower()
    return suffix if suffix in PACKED and not os.path.isdir(one) and not hub_sets.is_address(one) else ""


def pack(paths: Sequence[str], pinned: dict[str, str] | None = None) -> Parquet | Shards:
    """Parquet files or tar shards. Raises DataError if there are no images in them."""
    if packed_as(paths[0]) == ".parquet" or pinned:
        return Parquet(paths, pinned)
    shards = Shards(paths)
    if not len(shards):
        told = f"; {shards.left_out}" if shards.left_out else ""
        raise DataError(f"no images in {', '.join(paths[:3])}{', ...' * (len(paths) > 3)} ({LOOKED_FOR}){told}")
    return shards


def distinct(names: Names, left_out: LeftOut) -> Names:
    """Each path once; notes how many were named again."""
    marks = np.fromiter((hash(os.path.abspath(name)) for name in names), np.int64, len(names))
    first = np.sort(np.unique(marks, return_index=True)[1])
    left_out.add("repeated", count=len(names) - len(first))
    return names if len(first) == len(names) else Names(map(names.__getitem__, first.tolist()))


def holds_images(packed: str) -> bool:
    """Whether a parquet or tar file may hold images."""
    with contextlib.suppress(DataError, UsageError):
        return packed_as(packed) != ".parquet" or num_rows(packed) > 0
    return True


def _open_one(one: str, *, data_root: Path, offline: bool, talk: Talk) -> Source:
    if hub_sets.is_address(one):
        found = hub_sets.fetch(one, only_train=True, offline=offline, talk=talk)
        return Parquet(next(iter(found.files.values())), found.pinned)
    suffix = os.path.splitext(one)[1].lower()
    folder = one if os.path.exists(one) else named_tree(one, data_root)
    if folder is None:
        return named_source(read_named(one, "unlabelled", data_root=data_root, offline=offline, talk=talk))
    if os.path.isdir(folder):
        return _unlabelled_folder(folder, talk)
    if suffix in ARCHIVES:
        raise DataError(f"{one} is compressed: unpack it, and give the folder or the tar file inside")
    if suffix in LISTS:
        return _listed(one)
    if suffix not in EXTENSIONS:
        try:
            open_image(one).close()
        except UnreadableImage as error:
            raise DataError(f"{one}: {error}") from None
    return Files([one])


def _unlabelled_folder(folder: str, talk: Talk) -> Source:
    opened = open_folder(folder, only_train=True, talk=talk)
    if isinstance(opened, Folder):
        return training_part(opened, folder, talk)
    source = pack(next(iter(opened.files.values())), opened.pinned)
    source.left_out.update(opened.left_out)
    return training_part(source, folder, talk) if isinstance(source, Shards) else source


def open_folder(folder: str, *, only_train: bool, talk: Talk) -> Folder | hub_sets.Found:
    """The images below a folder, or its parquet files or its tar files, whichever hold the most images.

    Raises DataError if there are none, or none in its training part, and as `parts_of_files` does.
    """
    pictures = Folder(folder)
    left_out = pictures.left_out
    packed = {suffix: [path for path in pictures.packed if path.lower().endswith(suffix)] for suffix in PACKED}
    packed = {suffix: paths for suffix, paths in packed.items() if paths}
    counts = {"": len(pictures)} | {suffix: num_images(paths, alone=not pictures) for suffix, paths in packed.items()}
    taken = max(counts, key=lambda suffix: counts[suffix])  # pictures, if as many
    for suffix in packed.keys() - {taken}:
        left_out.add("packed", f"*{suffix}", count=len(packed[suffix]) * (counts[suffix] > 0))
    if not counts[taken]:
        raise nothing_in(folder, left_out)
    if not taken:
        train = split_folders(folder).get("train")
        if train and not any(f"{each}/".startswith(f"{train}/") for each in pictures.folders()):
            raise nothing_in(os.path.join(folder, train), left_out)
        return pictures
    left_out.add("pictures", count=len(pictures))
    inside = {os.path.relpath(path, folder).replace(os.sep, "/"): path for path in packed[taken]}
    hint = f"name one of the folders in {folder}"
    parts = parts_of_files(sorted(inside), where=folder, hint=hint, only_train=only_train, talk=talk)
    check_numbers(parts, folder)
    files = {part: [inside[each] for each in there] for part, there in parts.items()}
    return hub_sets.Found(os.path.basename(os.path.abspath(folder)), files, {}, left_out)


def num_images(paths: Sequence[str], *, alone: bool) -> int:
    """How many images parquet files or tar shards hold; not counted if nothing lies beside them.

    Raises DataError for a file that cannot be read: it may hold the data set.
    """
    if alone:
        return len(paths)
    return sum(map(num_rows, paths)) if packed_as(paths[0]) == ".parquet" else len(Shards(paths))


def training_part(source: Folder | Shards, where: str, talk: Talk) -> Source:
    """The images that are not kept for evaluation; says which those are."""
    placed = arrange(set(source.folders()))
    parts = {part for part, _ in placed.values()} - {"", "train", "apart"}
    if not parts:
        tops = {folder.split("/")[0] for folder in placed}
        if len(tops) > 1 and (train := [name for name in tops if part_of(name, is_folder=True) == "train"]):
            talk.warn(
                f"{where}: {train[0]}/ is called like a training part, but there is no test/ or val/: all is read"
            )
        return source
    told = {part: names_of_part(placed, part) for part in ("train", "validation", "test")}
    others = " and ".join(told[part] for part in told if part in parts)
    talk.say(
        f"{where}: only {told['train']} is read, {others} {'is' if len(parts) == 1 else 'are'} kept for evaluation"
    )
    of_images = [placed[folder][0] for folder in source.folders()]
    note_apart(source, placed)
    return chosen(source, np.flatnonzero([part in ("", "train") for part in of_images]))


def note_apart(source: Folder | Shards, placed: dict[str, tuple[str, str]]) -> None:
    """Note the images beside the parts as left out."""
    for folder in source.folders():
        if placed[folder][0] == "apart":
            source.left_out.add("apart", folder.split("/")[0])


def names_of_part(placed: dict[str, tuple[str, str]], part: str) -> str:
    """'valid/': what the folders of a part are called."""
    folders = (folder for folder, (each, _) in placed.items() if each == part)
    names = {name for folder in folders for name in folder.split("/") if part_of(name, is_folder=True) == part}
    return ", ".join(f"{name}/" for name in sorted(names))


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
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise DataError(f"cannot read the list {path}: {error.strerror}") from error
    if data.startswith(b"version https://git-lfs."):
        raise DataError(f"{path}: {what_is(data)}")
    lines = ("" if line.startswith("#") else line for line in decoded_lines(data))
    files = Files(listed_paths(lines, path, os.path.dirname(path)))
    if not len(files):
        raise DataError(f"no paths in the list {path}: it should name an image a line")
    return Files(distinct(files.names, files.left_out), files.left_out)


def listed_paths(lines: Iterable[str], where: str, folder: str = "") -> Iterator[str]:
    """The paths that the lines of a list name, relative to `folder`. Empty lines are passed over.

    Raises DataError for a line that is a folder, a pattern, or more than a path.
    """
    for number, line in enumerate(lines, 1):
        path = os.path.join(folder, line)
        suffix = line[line.rfind(".") :].lower()
        if line.strip() and (suffix not in EXTENSIONS or re.search(r"[*?\[\\\"]", line)):
            place = f"{where}, line {number}: {line}"
            if os.path.isdir(path):
                raise DataError(f"{place} is a folder: give folders as arguments, and list files one per line")
            if not os.path.lexists(path):
                if "*" in line or "?" in line or glob.glob(path):
                    raise DataError(f"{place} is a pattern: list the files that it stands for, one per line")
                alone = (line.strip(" '\""), re.split(r"[,;\t]| (?=\S+$)", line)[0], line.replace("\\", "/"))
                if found := next((each for each in alone if os.path.isfile(os.path.join(folder, each))), None):
                    raise DataError(f"{place} is no file, but {found} is: give a path per line, with / between folders")
        if line.strip():
            yield path if "://" not in line else line


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
    if not paths:
        raise DataError(f"no images in {', '.join(patterns)}: the pattern stands for no file")
    if missing:
        raise DataError(f"{len(missing)} of {len(paths)} shards are missing, the first is {missing[0]}")
    return paths
