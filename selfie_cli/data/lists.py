"""Lists of paths: from files, stdin and brace patterns, without repeated paths."""

import glob
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from selfie_cli.data.images import EXTENSIONS, what_is
from selfie_cli.data.layout import LeftOut, kind_of
from selfie_cli.errors import DataError

LISTS = (".txt", ".lst")
"""Suffixes of lists of paths."""


def read_list(path: str, left_out: LeftOut) -> list[str]:
    """The paths in a list, each once. Raises DataError as `listed_paths` does, and if there are none."""
    data = Path(path).read_bytes()
    if data.startswith(b"version https://git-lfs."):
        raise DataError(f"{path}: {what_is(data)}")
    lines = ("" if line.startswith("#") else line for line in decoded_lines(data))
    names = list(listed_paths(lines, path, left_out, os.path.dirname(path)))
    if not names:
        raise DataError(f"no paths in the list {path}: it should name one image per line")
    return distinct(names, left_out)


def decoded_lines(data: bytes) -> list[str]:
    """The lines of a text in UTF-8 or UTF-16, with or without a byte order mark. Undecodable bytes of paths are kept.

    Only "\\n" ends a line: names may contain the other line ends of str.splitlines.
    """
    head = data[:64]
    encoding, errors = "utf-8-sig", "surrogateescape"
    if b"\0" in head and data[:2] in (b"\xff\xfe", b"\xfe\xff"):
        encoding, errors = "utf-16", "replace"
    elif len(head) > 3:
        for start, each in ((0, "utf-16-le"), (1, "utf-16-be")):
            if all(head[start::2]) and not any(head[1 - start :: 2]):
                encoding, errors = each, "replace"
    text = os.fsdecode(data.decode(encoding, errors).encode("utf-8", "surrogateescape"))  # as for file names
    return [line.rstrip("\r") for line in text.split("\n")]


def distinct(names: list[str], left_out: LeftOut) -> list[str]:
    """Remove repeated paths, and note how many there were."""
    first: dict[str, str] = {}
    for name in names:
        first.setdefault(os.path.abspath(name), name)
    left_out.add("repeated", count=len(names) - len(first))
    return list(first.values())


def listed_paths(lines: Iterable[str], where: str, left_out: LeftOut, folder: str = "") -> Iterator[str]:
    """The paths in the lines of a list, relative to `folder`, without files that operating systems add.

    Raises DataError for a line that is a folder, a pattern, or more than a path.
    """
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        if "\0" in line:
            raise DataError(f"{where} holds NUL bytes: give one path per line, as find prints without -print0")
        if line[line.rfind(".") :].lower() not in EXTENSIONS or re.search(r"[*?\[\\\"]", line):
            check_line(line, f"{where}, line {number}: {line}", folder)
        *folders, name = line.split("/")
        if any(kind_of(each, is_folder=True) == "system" for each in folders) or name.startswith("._"):
            left_out.add("system", name)
        else:
            yield line if "://" in line else os.path.join(folder, line)


def check_line(line: str, place: str, folder: str) -> None:
    """Raise DataError for a line that is a folder, a pattern, or more than a path."""
    path = os.path.join(folder, line)
    if os.path.isdir(path):
        raise DataError(f"{place} is a folder: give folders as arguments, and list files one per line")
    if os.path.lexists(path):
        return
    if "*" in line or "?" in line or glob.glob(path):
        raise DataError(f"{place} is a pattern: list the files that it stands for, one per line")
    for each in (line.strip(" '\""), re.split(r"[,;\t]| (?=\S+$)", line)[0], line.replace("\\", "/")):
        if os.path.isfile(os.path.join(folder, each)):
            raise DataError(f"{place} is no file, but {each} is: give a path per line, with / between folders")


def expand_braces(pattern: str) -> list[str]:
    """Expand braces as a shell does: `a-{08..10}.tar` or `{a,b}.tar`; leading zeros are kept."""
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
    """Expand brace patterns to paths, unless a file of that very name exists. Raises DataError for missing files."""
    paths = [path for one in patterns for path in ([one] if os.path.exists(one) else expand_braces(one))]
    if not paths:
        raise DataError(f"no images in {', '.join(patterns)}: the pattern stands for no file")
    if missing := [path for path in paths if not os.path.isfile(path)]:
        several = f"{len(missing)} of {len(paths)} files are missing, the first is " if len(paths) > 1 else ""
        raise DataError(f"{several or 'no such file: '}{missing[0]}")
    return paths
