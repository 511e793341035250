"""Files that are either whole or absent: temporary name in the same folder, flushed to disk, renamed into place.

A temporary name says who writes: .tmp-<process>-<mark of the machine>-<name>. So what a killed process has left can be
told from what is being written, and is removed when the same file is written again.
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
"""Of this machine or container: others may share the disk, and have processes of the same numbers."""
OWNED = re.compile(re.escape(TEMPORARY) + r"(\d+)-([0-9a-f]{8})-(.*)", re.DOTALL)
FORGOTTEN = 86_400.0
"""Seconds after which nobody is taken to be writing what another machine has not touched since."""


def flush_to_disk(path: Path) -> None:
    """Make `path` (a file or a folder) survive a power cut. A folder's flush is skipped where the system has none."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except PermissionError:  # Windows opens no folders
        return
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def naming(path: Path) -> Iterator[None]:
    """An error of the system in here that names no file, a full disk's say, or a temporary one, names `path`."""
    try:
        yield
    except OSError as error:
        if error.errno is not None and (error.filename is None or TEMPORARY in os.fsdecode(error.filename)):
            error.filename, error.filename2, error.strerror = str(path), None, os.strerror(error.errno)
        raise


def temporary_beside(path: Path) -> Path:
    """The name under which this process writes `path`, in a folder that is there and without leftovers of the same."""
    path.parent.mkdir(parents=True, exist_ok=True)
    remove_leftovers(path.parent, path.name)
    return path.with_name(f"{TEMPORARY}{os.getpid()}-{MACHINE}-{path.name}")


def followed(path: Path) -> Path:
    """The file that a link leads to, if there is one. For paths that the user has named: others may be a stranger's."""
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
            for file in temporary.iterdir():
                flush_to_disk(file)
            flush_to_disk(temporary)
            there = overwrite and path.exists()
            if there:
                os.rename(path, aside)
            try:
                os.rename(temporary, path)
            except OSError:
                if there:
                    os.rename(aside, path)
                raise
            flush_to_disk(path.parent)
            if there:
                os.rename(aside, temporary)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def remove_leftovers(folder: Path, name: str | None = None) -> None:
    """Remove what processes that are no more left half-written in `folder`, of `name` alone if given.

    What is another machine's stays for a day, as nobody here can tell whether its process lives.
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
    except ProcessLookupError:
        return False
    except (OverflowError, OSError):
        return True
    return True


def remove(path: Path) -> None:
    """A file, a link, or a folder with all that is in it."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()


def nearest(path: Path) -> Path:
    """The folder that is or will hold `path`, as far as it is there: itself, or of its parents the first that is."""
    real = Path(os.path.realpath(path))
    return next(each for each in (real, *real.parents) if each.exists())


def check_room(path: Path, num_bytes: int) -> None:
    """Raises OSError if the disk that `path` is to lie on has less room than `num_bytes`, which is less than needed."""
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
    """Raises ValueError for NaN, for infinity, and for what is too large and would be read as infinity."""
    if not math.isfinite(value := float(number)):
        raise ValueError(f"{number[:30]} is no finite number")
    return value


def read_json(path: Path) -> Any:
    """Raises OSError, or ValueError where the file is not JSON in UTF-8, or has numbers that `write_json` refuses."""
    try:
        return json.loads(path.read_text(encoding="utf-8"), parse_float=finite, parse_constant=finite)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def json_line(value: Any) -> str:
    """One line of JSON Lines. Names that are not valid UTF-8 stay readable: lone surrogates are escaped."""
    return json.dumps(value, ensure_ascii=True, allow_nan=False)


def write_json_lines(path: Path, values: list[Any]) -> None:
    write_text(path, "".join(json_line(value) + "\n" for value in values))
