"""Files that are either whole or absent: written under a temporary name in the same folder, flushed, then renamed.

A temporary name says who writes: .tmp-<process>-<mark of the machine>-<name>. What a killed process has left can so be
told from what is being written; it is removed when the same file is written again.
"""

import contextlib
import errno
import json
import math
import os
import platform
import re
import shutil
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

TEMPORARY = ".tmp-"
MACHINE = f"{zlib.crc32(os.fsencode(platform.node())):08x}"
"""Mark of this machine or container. Others may share the disk, and have processes of the same numbers."""
OWNED = re.compile(re.escape(TEMPORARY) + r"(\d+)-([0-9a-f]{8})-(.*)", re.DOTALL)
FORGOTTEN = 86_400.0
"""Seconds without a change after which another machine is not taken to be writing a file any more."""


def flush_to_disk(path: Path) -> None:
    """Make a file or a folder survive a power cut. Folders are skipped on Windows, which cannot open them."""
    with contextlib.suppress(PermissionError):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


@contextlib.contextmanager
def naming(path: Path) -> Iterator[None]:
    """Make errors of the system name `path` if they name no file, as for a full disk, or a temporary one."""
    try:
        yield
    except OSError as error:
        if error.errno is not None and (error.filename is None or TEMPORARY in os.fsdecode(error.filename)):
            error.filename, error.filename2, error.strerror = str(path), None, os.strerror(error.errno)
        raise


def temporary_beside(path: Path) -> Path:
    """The temporary name of `path`. Its folder is made, and leftovers of the same file are removed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    remove_leftovers(path.parent, path.name)
    return path.with_name(f"{TEMPORARY}{os.getpid()}-{MACHINE}-{path.name}")


def followed(path: Path) -> Path:
    """The file that a link leads to. For paths that the user has named only, as others may be a stranger's."""
    return Path(os.path.realpath(path)) if path.is_file() else path


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success it becomes `path` in one step, on failure it is removed."""
    with naming(path):
        temporary = temporary_beside(path)
        try:
            yield temporary
            flush_to_disk(temporary)
            os.replace(temporary, path)
            flush_to_disk(path.parent)
        finally:
            temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def replacing_folder(path: Path, *, overwrite: bool = False) -> Iterator[Path]:
    """Yield a temporary folder beside `path`; on success it becomes `path` in one step, on failure it is removed.

    With `overwrite`, a folder that is there goes only then: killed in between, a process leaves it as `path`-old.
    """
    with naming(path):
        path = Path(os.path.realpath(path))  # a link stays one
        temporary, aside = temporary_beside(path), path.with_name(f"{path.name}-old-{os.getpid()}")
        temporary.mkdir()
        try:
            yield temporary
            for each in (*temporary.iterdir(), temporary):
                flush_to_disk(each)
            replaces = overwrite and path.exists()
            if replaces:
                os.rename(path, aside)
            try:
                os.rename(temporary, path)
            except OSError:
                if replaces:
                    os.rename(aside, path)
                raise
            flush_to_disk(path.parent)
            if replaces:
                os.rename(aside, temporary)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def remove_leftovers(folder: Path, name: str | None = None) -> None:
    """Remove the temporary files in `folder` whose processes have ended, those of `name` alone if it is given.

    Temporary files of another machine stay for a day, as nobody here can tell whether its process lives.
    """
    for path in folder.glob(f"{TEMPORARY}*"):
        owned = OWNED.fullmatch(path.name)
        if owned is None or name not in (None, owned[3]):
            continue
        with contextlib.suppress(OSError):  # another process has removed it, or it may not be removed
            if not is_alive(int(owned[1])) if owned[2] == MACHINE else time.time() - path.stat().st_mtime > FORGOTTEN:
                remove(path)


def is_alive(process: int) -> bool:
    """Whether a process of this number runs on this machine; True where that cannot be said."""
    try:
        os.kill(process, 0)
    except (OverflowError, OSError) as error:
        return not isinstance(error, ProcessLookupError)
    return True


def remove(path: Path) -> None:
    """Remove a file, a link, or a folder with everything in it."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()


def nearest(path: Path) -> Path:
    """`path` itself if it exists, else the first of its parents that does."""
    real = Path(os.path.realpath(path))
    return next(each for each in (real, *real.parents) if each.exists())


def check_room(path: Path, num_bytes: int) -> None:
    """Raise OSError if the disk of `path` has less room than `num_bytes`, the least that will be written."""
    there = shutil.disk_usage(nearest(path))
    if there.total and num_bytes > there.free:  # some disks in a network tell nothing
        lack = f"at least {num_bytes / 1e6:,.2f} MB will be written, and {there.free / 1e6:,.2f} MB are free"
        raise OSError(errno.ENOSPC, lack, str(path))


def size_of(folder: Path) -> int:
    """Bytes that would be free without it."""
    return sum(file.lstat().st_blocks * 512 for file in folder.rglob("*"))


def write_text(path: Path, text: str) -> None:
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON; NaN and infinity, which JSON does not have, raise ValueError."""
    text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    write_text(path, text.encode("utf-8", "backslashreplace").decode())  # as JSON escapes half characters of names


def finite(number: str) -> float:
    """Raise ValueError for NaN, infinity and numbers that are too large for a float."""
    if not math.isfinite(value := float(number)):
        raise ValueError(f"{number[:30]} is no finite number")
    return value


def read_json(path: Path) -> Any:
    """Raise OSError, or ValueError if the file is not JSON in UTF-8, or has numbers that `write_json` refuses."""
    try:
        return json.loads(path.read_text(encoding="utf-8"), parse_float=finite, parse_constant=finite)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def json_line(value: Any) -> str:
    """One line of JSON Lines. Names that are not valid UTF-8 stay readable: lone surrogates are escaped."""
    return json.dumps(value, ensure_ascii=True, allow_nan=False)


def write_json_lines(path: Path, values: list[Any]) -> None:
    write_text(path, "".join(json_line(value) + "\n" for value in values))
