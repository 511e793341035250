"""Unlabelled images: folders, files, lists, tar shards, parquet files, named sets, sets on the Hub."""

import contextlib
import itertools
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from selfie_cli.data import hub_sets
from selfie_cli.data.images import EXTENSIONS, open_image
from selfie_cli.data.layout import ARCHIVES, PACKED, LeftOut, arrange, check_numbers, part_of, parts_of_files
from selfie_cli.data.lists import distinct, expanded, read_list
from selfie_cli.data.named import NAMED, NamedPart, read_named
from selfie_cli.data.parquet import Parquet, has_pyarrow, num_rows
from selfie_cli.data.shards import Shards
from selfie_cli.data.sources import Array, Files, Folder, Joined, Source, chosen, split_folders
from selfie_cli.errors import DataError, UnreadableImage, UsageError
from selfie_cli.hub import is_address
from selfie_cli.talk import Talk

LISTS = (".txt", ".lst")
LOOKED_FOR = f"looked for {', '.join(sorted(EXTENSIONS))}"


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
        files = Files()
        files.names = read_list(one, files.left_out)
        return files
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
    counts = {"": len(pictures)} | {suffix: num_images(paths, pictures) for suffix, paths in packed.items()}
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


def num_images(paths: Sequence[str], beside: Folder) -> int:
    """Number of images in parquet files or tar shards, to compare with the pictures `beside` them.

    Where there are no pictures, the files are not counted. Without pyarrow, parquet files that are smaller than the
    pictures count as one image: vectors, say, or a table of labels.

    Raises DataError for a file that cannot be read, as it may hold the data set, and UsageError if pyarrow is missing.
    """
    if not beside:
        return len(paths)
    if packed_as(paths[0]) == ".parquet" and not has_pyarrow():
        size = sum(map(os.path.getsize, paths))
        sizes = (os.path.getsize(name) for name in beside.names if os.path.isfile(name))
        if any(total > size for total in itertools.accumulate(sizes)):
            return 1
    return sum(map(num_rows, paths)) if packed_as(paths[0]) == ".parquet" else len(Shards(paths))


def holds_images(packed: str) -> bool:
    """Whether a parquet or tar file may hold images."""
    with contextlib.suppress(DataError, UsageError):
        return packed_as(packed) != ".parquet" or num_rows(packed) > 0
    return True


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


def nothing_in(folder: str, left_out: LeftOut) -> DataError:
    others = sum(len(files) for _, _, files in os.walk(folder))
    told = f"; {left_out}" if left_out else ""
    return DataError(f"no images in {folder} ({LOOKED_FOR}); {others} other files were found{told}")
