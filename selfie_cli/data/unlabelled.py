"""Unlabelled images: folders, files, lists, tar shards, parquet files, named sets, sets on the Hub."""

import itertools
import os
from collections.abc import Sequence
from pathlib import Path

from selfie_cli.config import PACKED
from selfie_cli.data import hub_sets
from selfie_cli.data.folders import Folder, Tree, parted, scanned, split_folders
from selfie_cli.data.images import EXTENSIONS, open_image
from selfie_cli.data.layout import ARCHIVES, LeftOut, part_of
from selfie_cli.data.lists import LISTS, distinct, expanded, read_list
from selfie_cli.data.named import NAMED, read_named
from selfie_cli.data.packed import DATASETS, LOOKED_FOR, by_name, check_numbers, num_images, pack, packed_as, packed_set
from selfie_cli.data.sources import DataSet, Files, Joined, Source
from selfie_cli.errors import DataError, UnreadableImage
from selfie_cli.hub import is_address
from selfie_cli.talk import Talk


def open_unlabelled(data: Sequence[str], *, data_root: Path, offline: bool, talk: Talk) -> Source:
    """Open every image of `data`, whose items are each one of:

    a folder (only its training part if it has parts), an image, a list (.txt, .lst: one path per line, relative to the
    list), a tar shard, a parquet file or a brace pattern of them (`train-{0000..0099}.tar`), the name of a known data
    set, or `hf://datasets/owner/name`.

    Consecutive shards and parquet files form one source. One line reports what is left out.

    Raises:
        DataError: if one of them is missing, empty or cannot be downloaded; the message says what to do.
    """
    sources: list[Source] = []
    for packed, group in itertools.groupby(data, packed_as):
        if packed:
            source: Source = pack(expanded(list(group)))
            sources.append(training_part(whole(source), ", ".join(data), talk))
            continue
        opened = [_open_one(one, data_root=data_root, offline=offline, talk=talk) for one in group]
        if len(opened) > 1 and all(one.in_files for one in opened):
            joined = Joined(opened)
            opened = [Files(distinct(joined.names, joined.left_out), joined.left_out)]
        sources += opened
    warn_of_parts(data, talk)
    if not sources:
        raise DataError("no data: name a folder of images, a file, a list, a tar shard or a data set")
    source = sources[0] if len(sources) == 1 else Joined(sources)
    if source.left_out:
        talk.warn(str(source.left_out))
    return source


def warn_of_parts(data: Sequence[str], talk: Talk) -> None:
    """Warn if a training part and another part are named one by one, as folders, lists or packed files."""
    paths = itertools.chain.from_iterable(expanded([one]) if packed_as(one) else [one] for one in data)
    several = [path for path in paths if os.path.splitext(path)[1].lower() not in EXTENSIONS]
    parts = {part_of(Path(path).absolute().name, is_folder=os.path.isdir(path)): path for path in several}
    parts.pop(None, None)
    if "train" in parts and len(parts) > 1:
        told = " and ".join(parts.values())
        talk.warn(f"{told} are called like parts of one data set, and all are read: name the training part alone")


def _open_one(one: str, *, data_root: Path, offline: bool, talk: Talk) -> Source:
    path = place_of(one, data_root)
    if not path:
        return read_named(one, "unlabelled", data_root=data_root, offline=offline, talk=talk)
    if found := open_set(path, offline=offline, talk=talk):
        return training_part(found, path, talk)
    suffix = os.path.splitext(one)[1].lower()
    if suffix in LISTS:
        left_out = LeftOut()
        return Files(read_list(one, left_out), left_out)
    if suffix not in EXTENSIONS:
        try:
            open_image(one).close()
        except UnreadableImage as error:
            raise DataError(f"{one}: {error}") from None
    return Files([one])


def place_of(name: str, data_root: Path) -> str:
    """The path or address of images; "" for a named set without a folder `<data_root>/<name>/{train,test}/`.

    Raises DataError if there is nothing of that name.
    """
    if os.path.exists(name) or name.startswith(DATASETS) or packed_as(name):
        return name
    if is_address(name):
        raise DataError(f"{name} is a run's address: a data set's is hf://datasets/owner/name")
    if name not in NAMED:
        raise DataError(f"{name}: no such file or folder, and none of the named sets ({', '.join(NAMED)})")
    tree = str(data_root / name)
    return tree if os.path.isdir(tree) and split_folders(scanned(tree)) else ""


def open_set(path: str, *, offline: bool, talk: Talk) -> DataSet | None:
    """The data set in a folder or at an address on the Hub; None for other paths. Raises DataError for an archive."""
    if path.startswith(DATASETS):
        return hub_sets.fetch(path, offline=offline, talk=talk)
    if os.path.isdir(path):
        return open_folder(path, talk)
    if os.path.splitext(path)[1].lower() in ARCHIVES:
        raise DataError(f"{path} is compressed: unpack it, and give the folder or the tar file inside")
    return None


def open_folder(folder: str, talk: Talk) -> DataSet:
    """The images below a folder, or its parquet files or its tar files, whichever hold the most images.

    Raises DataError if there are none, or none in its training part, and as `packed_set` does.
    """
    pictures = Folder(folder)
    left_out, name = pictures.left_out, os.path.basename(os.path.abspath(folder))
    packed = {suffix: [path for path in pictures.packed if path.lower().endswith(suffix)] for suffix in PACKED}
    packed = {suffix: paths for suffix, paths in packed.items() if paths}
    both = Files([*pictures.names, *pictures.packed])
    alone = not pictures and len(packed) == 1
    counts = {suffix: len(paths) if alone else num_images(paths, both) for suffix, paths in packed.items()}
    counts = {"": len(pictures)} | counts
    taken = max(counts, key=lambda suffix: counts[suffix])  # if equal, the pictures
    for suffix in packed.keys() - {taken}:
        left_out.add("packed", f"*{suffix}", count=len(packed[suffix]) * (counts[suffix] > 0))
    if not counts[taken]:
        raise nothing_in(folder, left_out)
    if not taken:
        train = pictures.split.get("train")
        if train and not any(f"{each}/".startswith(f"{train}/") for each in pictures.folders()):
            raise nothing_in(os.path.join(folder, train), left_out)
        return whole(pictures, name)
    left_out.add("pictures", count=len(pictures))
    inside = by_name(packed[taken], folder)

    def paths_of(names: list[str]) -> list[str]:
        check_numbers(names, folder)
        return [inside[each] for each in names]

    hint = f"name one of the folders in {folder}"
    found = packed_set(name, sorted(inside), paths_of, where=folder, hint=hint, talk=talk)
    found.left_out.update(left_out)
    return found


def whole(source: Source, name: str = "") -> DataSet:
    """A data set of one source."""
    return DataSet(name, {"all": "all"}, lambda part: source, source.left_out)


def training_part(found: DataSet, where: str, talk: Talk) -> Source:
    """The training images of a data set; reports which parts are kept for evaluation."""
    found = parted(found)
    others = [found.parts[part] for part in ("test", "validation") if part in found.parts]
    if others:
        are = "is" if len(others) == 1 else "are"
        talk.say(f"{where}: only {found.parts['train']} is read, {' and '.join(others)} {are} kept for evaluation")
    source = found.open("train" if "train" in found.parts else "all")
    source.left_out = found.left_out
    tops = {folder.split("/")[0] for folder in source.places} if isinstance(source, Tree) and not others else ()
    alike = {name: part for name in sorted(tops) if (part := part_of(name, is_folder=False))}  # `x_train`, `x_test`
    train = [name for name, part in alike.items() if part == "train"]
    sure = [name for name in train if part_of(name, is_folder=True)]
    if len(tops) > 1 and (sure or (train and len(set(alike.values())) > 1)):
        called = f"{(sure or train)[0]}/ is called like a training part"
        talk.warn(f"{where}: {called}, but there is no test/ or val/: all is read")
    return source


def nothing_in(folder: str, left_out: LeftOut) -> DataError:
    told = f"; {left_out}" if left_out else ""
    return DataError(f"no images in {folder} ({LOOKED_FOR}){told}")
