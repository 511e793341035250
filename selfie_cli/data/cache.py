"""A cache of decoded images on disk, which later runs and other processes at the same time use as well.

A cache folder holds one entry per set of images, named <key>-<side>px:

    lock      locked (shared) by each process that uses the entry; modified when the entry was last opened
    flags     one byte per image: PIXELS and MARKS where they are in the files below
    pixels    uint8 [capacity, S, S, 3]; sparse: rows that have not been written take no room
    marks     RECORD [N]

A flag is written after its row has been flushed to the disk: neither `kill -9` nor a power cut can leave a flag over a
row that was not written. Pixels and marks are written with `pwrite` and read with `pread`, which is as fast as a
mapping, and a full disk raises an error instead of killing the process. Two processes that decode the same image write
the same bytes.
"""

import contextlib
import errno
import fcntl
import hashlib
import os
import re
import shutil
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from numpy.typing import NDArray

from selfie_cli.data.duplicates import NUM_BYTES, VERSION, Marks, marks_of
from selfie_cli.data.images import DECODING
from selfie_cli.data.sources import Source, fingerprint
from selfie_cli.talk import Talk

FILES = {"lock", "pixels", "flags", "marks"}
ENTRY = re.compile(r"[0-9a-f]{16}-\d+px")
"""Name of an entry. Nothing else is ever removed from a folder that a user may have named by mistake."""
PIXELS, MARKS = 1, 2
RECORD = np.dtype([("exact", "<i8"), ("perceptual", "u1", NUM_BYTES)])
MOST = 10**11
"""Default limit of all entries of a folder together, in bytes; at most half of the disk's room."""


def cache_folder(asked: str | None) -> Path | None:
    """Return the folder asked for, else `$XDG_CACHE_HOME/selfie` or `~/.cache/selfie`; None without a home."""
    if asked:
        return Path(asked)
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "selfie"
    except RuntimeError:  # no HOME, and no entry in the system's list of users, as in many containers
        return None


def cache_key(source: Source, size: int, interpolation: str = "bicubic") -> str:
    """16 hex digits over all that decoded images depend on: names, files' sizes and times, S, and how we decode."""
    how = DECODING if interpolation == "bicubic" else f"{DECODING} {interpolation}"
    digest = hashlib.sha256(f"{fingerprint(source)} {size} {how} {VERSION}".encode())
    for version in source.versions():
        digest.update(version)
    return digest.hexdigest()[:16]


def open_cache(
    source: Source,
    *,
    size: int,
    folder: str | None,
    limit_gb: float | None,
    interpolation: str = "bicubic",
    talk: Talk,
) -> "PixelCache":
    """Open the entry of a source, and say where it is; without one if there may be none, or it cannot be written."""
    num_images, where = len(source), cache_folder(folder)
    whole = num_images * size * size * 3 / 1e9
    if limit_gb != 0 and where is None:
        talk.warn("decoded images are not cached, because there is no home folder: name a folder with --store")
    elif limit_gb != 0 and where is not None:
        entry = where / f"{cache_key(source, size, interpolation)}-{size}px"
        try:
            cache = PixelCache(num_images, size, entry, None if limit_gb is None else int(limit_gb * 1e9))
        except OSError as error:
            talk.warn(f"decoded images cannot be cached in {where}: {error.strerror}. Choose another --store")
        else:
            talk.say(
                f"decoded images are cached in {entry}: up to {cache.capacity * cache.row_bytes / 1e9:.1f} of "
                f"{whole:.1f} GB (--store-gb), {cache.num_kept():,} of {num_images:,} images are there"
            )
            return cache
    talk.say(f"decoded images are not cached ({whole:.1f} GB): every epoch decodes them again")
    return PixelCache(num_images, size, None, 0)


class PixelCache:
    """Decoded images of one set: marks of all N, pixels of the first `capacity`. Thread-safe.

    error: the error that stopped the writing, as a rule a full disk.
    """

    def __init__(self, num_images: int, size: int, entry: Path | None, limit: int | None) -> None:
        """Open or create an entry. Raise OSError.

        Args:
            size: side S of the images, in pixels.
            entry: the entry's folder. None keeps marks alone, in temporary files.
            limit: bytes that all entries of the cache may take; see MOST if None.
        """
        self.row_bytes = size * size * 3
        self.num_images = num_images
        self.error: OSError | None = None
        self._files = contextlib.ExitStack()
        self._flushing = threading.Lock()
        room = self._claim(entry, num_images * self.row_bytes, limit) if entry else 0
        self.capacity = room // self.row_bytes
        self._pixels, self._flags, self._marks = (self._open(entry, name) for name in ("pixels", "flags", "marks"))
        if os.fstat(self._pixels.fileno()).st_size < self.capacity * self.row_bytes:
            os.truncate(self._pixels.fileno(), self.capacity * self.row_bytes)
        if hasattr(os, "posix_fallocate"):  # a hole in a mapped file kills the process when the disk is full
            os.posix_fallocate(self._flags.fileno(), 0, num_images)
        self._flushed = np.memmap(self._flags, np.uint8, "r+", shape=(num_images,))  # shared with other processes
        self._written = np.zeros(num_images, np.uint8)

    def _claim(self, entry: Path, needed: int, limit: int | None) -> int:
        """Lock `entry`, created if need be, and return how many bytes of pixels it may take.

        Entries that no process uses make room, the least recently used first.
        """
        entry.parent.mkdir(parents=True, exist_ok=True)
        with _locked(entry.parent / "lock", fcntl.LOCK_EX):  # one process at a time creates, locks or removes entries
            entries = list(_entries(entry.parent))
            if limit is None:
                taken = sum((other / "pixels").stat().st_blocks * 512 for other in entries)
                limit = min(MOST, (shutil.disk_usage(entry.parent).free + taken) // 2)
            sizes = {other: (other / "pixels").stat().st_size for other in entries if other != entry}
            for other in sorted(sizes, key=lambda path: (path / "lock").stat().st_mtime_ns):
                if needed > limit - sum(sizes.values()):
                    # Fails where it is in use, or another user's.
                    with contextlib.suppress(OSError), _locked(other / "lock", fcntl.LOCK_EX | fcntl.LOCK_NB):
                        shutil.rmtree(other)
                        del sizes[other]
            room = min(needed, max(0, limit - sum(sizes.values())))
            entry.mkdir(exist_ok=True)
            for name in FILES:
                (entry / name).touch()
            with contextlib.suppress(BlockingIOError), _locked(entry / "lock", fcntl.LOCK_EX | fcntl.LOCK_NB):
                _shrink(entry, room // self.row_bytes, self.row_bytes)
            self._files.enter_context(_locked(entry / "lock", fcntl.LOCK_SH))
        return room

    def _open(self, entry: Path | None, name: str) -> BinaryIO:
        file = tempfile.TemporaryFile() if entry is None else open(entry / name, "r+b")  # noqa: SIM115
        return self._files.enter_context(file)

    def has_pixels(self, indices: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Return for each image, int64 [B], whether its pixels can be read: bool [B]."""
        return (self._flags_of(indices) & PIXELS) > 0

    def _flags_of(self, indices: NDArray[np.int64]) -> NDArray[np.uint8]:
        return self._flushed[indices] | self._written[indices]

    def num_kept(self) -> int:
        """Return the number of images whose pixels have been flushed."""
        return int(np.count_nonzero(self._flushed & PIXELS))

    def read(self, index: int, into: NDArray[np.uint8]) -> bool:
        """Fill `into`, uint8 [S, S, 3] and contiguous, with an image that `has_pixels`. Return False if it is lost."""
        found = os.preadv(self._pixels.fileno(), [into.data], index * self.row_bytes) == self.row_bytes
        if not found:  # writing on would fill the gap with zeros
            self._stop(OSError(errno.EIO, "its file has been cut"))
        return found

    def write(self, indices: NDArray[np.int64], pixels: NDArray[np.uint8]) -> None:
        """Keep decoded images, uint8 [B, S, S, 3], as far as there is room, and their marks."""
        new = (indices < self.capacity) | (self._flags_of(indices) & MARKS == 0)
        if not new.all():  # decoded once more because there is no room
            indices, pixels = indices[new], pixels[new]
        marks = marks_of(torch.from_numpy(pixels))
        records = np.empty(len(indices), RECORD)
        records["exact"], records["perceptual"] = marks.exact, marks.perceptual
        for index, row, record in zip(indices.tolist(), pixels, records, strict=True):
            flags = 0
            try:
                _write(self._marks, memoryview(record.tobytes()), index * RECORD.itemsize)
                flags = MARKS
                if index < self.capacity:
                    _write(self._pixels, row.data, index * self.row_bytes)
                    flags |= PIXELS
            except OSError as error:
                self._stop(error)
            self._written[index] |= flags

    def _stop(self, error: OSError) -> None:
        """Write no more pixels; what is there can still be read."""
        self.capacity, self.error = 0, error

    def flush(self) -> None:
        """Make images survive this process and a power cut, and show them to other processes."""
        with self._flushing:
            rows = np.flatnonzero(self._written & ~self._flushed)
            flags = self._written[rows]
            try:
                os.fsync(self._pixels.fileno())
                os.fsync(self._marks.fileno())
            except OSError as error:
                self._stop(error)
            else:
                self._flushed[rows] |= flags

    def marks(self) -> Marks:
        """Return the marks of all images that were ever decoded, in their order."""
        seen = np.flatnonzero(self._flags_of(np.arange(self.num_images)) & MARKS)
        records = np.memmap(self._marks, RECORD, "r+", shape=(self.num_images,))[seen]
        return Marks(records["exact"].astype(np.int64), np.ascontiguousarray(records["perceptual"]))

    def close(self) -> None:
        """Flush, and let other processes remove the entry."""
        self.flush()
        self._files.close()


def _write(file: BinaryIO, data: memoryview, offset: int) -> None:
    left = data.cast("B")
    while left:  # the last piece that fits is written before a full disk is an error
        written = os.pwrite(file.fileno(), left, offset)
        left, offset = left[written:], offset + written


@contextlib.contextmanager
def _locked(path: Path, kind: int) -> Iterator[None]:
    """Hold a lock file. Raise BlockingIOError if another process does, and `kind` says not to wait."""
    others = path.exists() and not os.access(path, os.W_OK)  # another user's, who shares the folder
    with path.open("rb" if others else "ab") as file:  # closing it unlocks
        fcntl.flock(file, kind)
        yield


def _entries(folder: Path) -> Iterator[Path]:
    """Entries of a cache folder. Removes those whose creation or removal was cut short."""
    for path in folder.iterdir():
        if ENTRY.fullmatch(path.name) and path.is_dir() and os.access(path, os.R_OK | os.X_OK):
            files = {file.name for file in path.iterdir()}
            if files == FILES:
                yield path
            elif files < FILES:
                shutil.rmtree(path, ignore_errors=True)


def _shrink(entry: Path, capacity: int, row_bytes: int) -> None:
    """Give back rows from `capacity` on. No other process may use the entry."""
    if (entry / "pixels").stat().st_size > capacity * row_bytes:
        flags = np.fromfile(entry / "flags", np.uint8)
        flags[capacity:] &= MARKS
        with (entry / "flags").open("r+b") as file:
            file.write(flags.data)
            file.flush()
            os.fsync(file.fileno())  # a power cut must not leave a flag over a row that is gone
        os.truncate(entry / "pixels", capacity * row_bytes)
