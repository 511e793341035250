"""Files that are either whole or absent: written under a temporary name in the same folder, flushed, then renamed.

A temporary name tells which process writes the file: .tmp-<process>-<hash of the machine's name>-<name>. Files left by
a killed process are recognized by it, and removed when the same file is written again.
"""

import contextlib
import errno
import hashlib
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
"""Hash of the name of this machine or container. Machines that share the disk may use the same process numbers."""
OWNED = re.compile(re.escape(TEMPORARY) + r"(\d+)-([0-9a-f]{8})-(.*)", re.DOTALL)
FORGOTTEN = 86_400.0
"""Seconds without a change after which another machine's temporary file counts as abandoned."""


def flush_to_disk(path: Path) -> None:
    """Make a file or a folder survive a power cut, unless it is a folder that may be written to but not read."""
    with contextlib.suppress(PermissionError):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


@contextlib.contextmanager
def naming(path: Path) -> Iterator[None]:
    """Add `path` to an OSError in the block that names no file (such as a full disk) or a temporary file."""
    try:
        yield
    except OSError as error:
        if error.errno is not None and (error.filename is None or TEMPORARY in os.fsdecode(error.filename)):
            error.filename, error.filename2, error.strerror = str(path), None, os.strerror(error.errno)
        raise


def temporary_beside(path: Path) -> Path:
    """Return the temporary name of `path`. Create its folder, and remove abandoned files of the same name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    remove_leftovers(path.parent, path.name)
    return path.with_name(f"{TEMPORARY}{os.getpid()}-{MACHINE}-{path.name}")


def followed(path: Path) -> Path:
    """Return the file that a link leads to. Only for paths given by the user: others may come from a stranger."""
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

    With `overwrite`, an existing folder is moved away only then; a process killed in between leaves it as `path`-old-*.
    """
    with naming(path):
        path = Path(os.path.realpath(path))  # a link stays a link
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
    """Remove temporary files in `folder` whose processes have ended; if `name` is given, only those of that file.

    Temporary files of other machines are kept for a day, because their processes cannot be checked from here.
    """
    for path in folder.glob(f"{TEMPORARY}*"):
        owned = OWNED.fullmatch(path.name)
        if owned is None or name not in (None, owned[3]):
            continue
        with contextlib.suppress(OSError):  # removed by another process, or not permitted
            if not is_alive(int(owned[1])) if owned[2] == MACHINE else time.time() - path.stat().st_mtime > FORGOTTEN:
                remove(path)


def is_alive(process: int) -> bool:
    """Return whether a process of this number runs on this machine; True if that cannot be determined."""
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
    """Return `path` if it exists, else its nearest existing parent, with links resolved."""
    real = Path(os.path.realpath(path))
    return next(each for each in (real, *real.parents) if each.exists())


def check_room(path: Path, num_bytes: int) -> None:
    """Raise OSError if the disk of `path` has less than `num_bytes` free, the minimum that will be written."""
    there = shutil.disk_usage(nearest(path))
    if there.total and num_bytes > there.free:  # some network disks report no sizes
        lack = f"at least {num_bytes / 1e6:,.2f} MB will be written, and {there.free / 1e6:,.2f} MB are free"
        raise OSError(errno.ENOSPC, lack, str(path))


def size_of(folder: Path) -> int:
    """Return the number of bytes on disk that removing `folder` would free."""
    return sum(file.lstat().st_blocks * 512 for file in folder.rglob("*"))


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file's contents in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_text(path: Path, text: str) -> None:
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON. Raise ValueError for NaN and infinity, which JSON does not have."""
    text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    write_text(path, text.encode("utf-8", "backslashreplace").decode())  # escape lone surrogates as JSON does


def finite(number: str) -> float:
    """Parse a float. Raise ValueError for NaN, infinity and numbers that are too large for a float."""
    if not math.isfinite(value := float(number)):
        raise ValueError(f"{number[:30]} is no finite number")
    return value


def read_json(path: Path) -> Any:
    """Read JSON in UTF-8. Raise OSError, or ValueError if it is invalid or has numbers that `write_json` refuses."""
    try:
        return json.loads(path.read_text(encoding="utf-8"), parse_float=finite, parse_constant=finite)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def json_line(value: Any) -> str:
    """Return one line of JSON Lines. Lone surrogates, from file names that are not valid UTF-8, are escaped."""
    return json.dumps(value, ensure_ascii=True, allow_nan=False)


def write_json_lines(path: Path, values: list[Any]) -> None:
    write_text(path, "".join(json_line(value) + "\n" for value in values))
