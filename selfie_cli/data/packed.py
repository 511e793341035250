"""Tar shards and parquet files of many images: opened, counted, and grouped by the parts in their names."""

import contextlib
import functools
import itertools
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import MappingProxyType

from selfie_cli.data.images import EXTENSIONS
from selfie_cli.data.layout import LeftOut, part_of
from selfie_cli.data.parquet import Parquet, has_pyarrow, num_rows
from selfie_cli.data.shards import Shards
from selfie_cli.data.sources import DataSet, Source
from selfie_cli.errors import DataError, UsageError
from selfie_cli.talk import Talk

DATASETS = "hf://datasets/"
"""Prefix of the addresses of data sets on the Hub."""
LOOKED_FOR = f"looked for {', '.join(sorted(EXTENSIONS))}"
PackedSource = Parquet | Shards
OPENERS: dict[str, type[PackedSource]] = {".parquet": Parquet, ".tar": Shards}
"""Sources by the suffixes of their files, which are those of `config.PACKED`."""
NUMBERED = re.compile(r"(.*-)\d+-of-(\d+)(\.\w+)")


def packed_as(one: str) -> str:
    """'.tar' or '.parquet', or '' for anything else."""
    suffix = os.path.splitext(one)[1].lower()
    return suffix if suffix in OPENERS and not os.path.isdir(one) and not one.startswith(DATASETS) else ""


def pack(paths: Sequence[str]) -> PackedSource:
    """Open files of one kind as one source. Raises DataError if there are none."""
    source = OPENERS[packed_as(paths[0])](paths)
    if not len(source):
        told = f"; {source.left_out}" if source.left_out else ""
        raise DataError(f"no images in {', '.join(paths[:3])}{', ...' * (len(paths) > 3)} ({LOOKED_FOR}){told}")
    return source


def num_images(paths: Sequence[str], every: Source) -> int:
    """Number of images in parquet files or tar shards, to compare with that of other files in their folder.

    Without pyarrow, parquet files that are less than half of `every` file count as one image: they may hold labels.

    Raises DataError for a file that cannot be read, as it may hold the data set, and UsageError if pyarrow is missing.
    """
    if packed_as(paths[0]) != ".parquet":
        return len(Shards(paths))
    if not has_pyarrow() and 2 * sum(map(os.path.getsize, paths)) < every.sizes().sum():
        return 1
    return sum(map(num_rows, paths))


def holds_images(packed: str) -> bool:
    """Whether a parquet or tar file may hold images."""
    with contextlib.suppress(DataError, UsageError):
        return packed_as(packed) != ".parquet" or num_rows(packed) > 0
    return True


def packed_set(
    name: str,
    files: Iterable[str],
    paths_of: Callable[[list[str]], list[str]],
    *,
    where: str,
    hint: str,
    talk: Talk,
    config: str | None = None,
    pinned: Mapping[str, str] = MappingProxyType({}),
) -> DataSet:
    """Group `files` into a data set by the parts in their names: train, and validation, test or both; else "all".

    `train-00000-of-00002.parquet` and `train/0000.parquet` belong to train. The folder above is a configuration, a data
    set of its own. `config` names one by the path of its folder; "default" is the top folder and data/. `paths_of`
    returns the paths of a part's files when the part is opened.

    Raises DataError, which ends in `hint`, if there are several configurations.
    """
    configs: dict[str, dict[str, list[str]]] = {}
    for file in files:
        *folders, base = file.split("/")
        inside = folders[-1].removeprefix("partial-") if folders else ""  # the Hub's name if only a part is converted
        part_inside = part_of(inside, is_folder=True)
        part = part_inside or part_of(base, is_folder=False) or ""
        folders = folders[:-1] if part_inside else folders
        path = "/".join(folders[1:] if folders[:1] == ["data"] else folders) or "default"
        configs.setdefault(path, {}).setdefault(part, []).append(file)
    if config is None and len(configs) == 1:
        config = next(iter(configs))
    if config not in configs:
        wrong = "holds several data sets" if config is None else f"has no {config}, but"
        raise DataError(f"{where} {wrong} {', '.join(configs)}: {hint}")
    parts = configs[config]
    unknown = parts.pop("", [])
    if "train" not in parts or len(parts) == 1:
        if parts and unknown:
            first = next(iter(parts.values()))[0]
            talk.warn(f"{where}: {first} is called like a part, {unknown[0]} is not: all are read as one set")
        parts = {"all": sorted(itertools.chain(unknown, *parts.values()))}
    elif unknown:
        talk.warn(f"{where}: {len(unknown)} files of no known part are left out, the first is {unknown[0]}")
    left_out = LeftOut()

    @functools.cache
    def opened(part: str) -> Source:
        source = pack(paths_of(parts[part]))
        source.pinned = pinned
        left_out.update(source.left_out)
        return source

    return DataSet(name, {part: part for part in parts}, opened, left_out)


def by_name(paths: Iterable[str], folder: str) -> dict[str, str]:
    """Paths by their names relative to `folder`."""
    return {os.path.relpath(path, folder): path for path in paths}


def check_numbers(files: Iterable[str], where: str) -> None:
    """Raise DataError if numbered files such as `train-00000-of-00002.parquet` are incomplete."""
    numbered = map(NUMBERED.fullmatch, files)
    for (head, count, suffix), there in Counter(match.groups() for match in numbered if match).items():
        if there != int(count):
            raise DataError(f"{where} has {there} files {head}...-of-{count}{suffix}, not {int(count)}: get the others")
