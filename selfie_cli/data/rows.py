"""Rows of pixels and their marks in files that later runs, and other processes at the same time, use as well.

A folder of stores holds one store a set of images; each has

    lock      held (shared) by every process that uses the store; its time of change says when the store was last used
    flags     a byte a row: PIXELS and MARKS where they are in the files below
    pixels    uint8 [capacity, S, S, 3]; sparse: what has not been written takes no room
    marks     RECORD [N]

What is flagged has been flushed to the disk before: neither `kill -9` nor a power cut can leave a flag over a row that
was not written. Files are written with `pwrite` and read with `pread`, which is as fast as from a mapping, and a full
disk or a broken one raises an error where a mapping would kill the process. Two processes that decode the same row
write the same bytes.
"""

import contextlib
import errno
import fcntl
import os
import re
import shutil
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from selfie_cli.data.duplicates import NUM_BYTES, Marks
from selfie_cli.files import TEMPORARY, replacing_folder

FILES = {"lock", "pixels", "flags", "marks"}
HALF_MADE = re.compile(re.escape(TEMPORARY) + r"\d+-[0-9a-f]{8}-[0-9a-f]{16}-\d+px")
"""What `replacing_folder` calls a store in the making."""
PIXELS, MARKS = 1, 2
RECORD = np.dtype([("exact", "<i8"), ("perceptual", "u1", NUM_BYTES)])
MOST = 10**11
"""Bytes that all stores of a folder take together, where the user sets no limit; at most half of the disk's room."""


class Rows:
    """The rows of one store: `num_rows` of `size` x `size` pixels, of which the first `capacity` are kept.

    Its methods may be called from several threads.
    """

    def __init__(self, num_rows: int, size: int, folder: Path | None, limit: int | None) -> None:
        """Open a store, or make it; without a folder, only marks are kept, in files without a name.

        limit: bytes that all stores in the folder that `folder` lies in may take. Raises OSError.
        """
        self.row_bytes = size * size * 3
        self.num_rows = num_rows
        self._flushing = threading.Lock()
        self._files = contextlib.ExitStack()
        self.error: OSError | None = None
        """What made it stop writing: as a rule, a full disk."""
        room = 0
        if folder is not None:
            room = self._files.enter_context(_claimed(folder, num_rows, self.row_bytes, limit))
        self.capacity = min(num_rows, room // self.row_bytes)
        self._pixels, self._flags, self._marks = (self._file(folder, name) for name in ("pixels", "flags", "marks"))
        _grow(self._pixels, self.capacity * self.row_bytes)
        _grow(self._marks, num_rows * RECORD.itemsize)
        _grow(self._flags, num_rows)
        if hasattr(os, "posix_fallocate"):  # a hole in what is mapped could kill us on a full disk
            os.posix_fallocate(self._flags.fileno(), 0, num_rows)
        self._flushed = np.memmap(self._flags, np.uint8, "r", shape=(num_rows,))  # sees what others flag
        self._written = np.zeros(num_rows, np.uint8)

    def _file(self, folder: Path | None, name: str) -> BinaryIO:
        file = tempfile.TemporaryFile() if folder is None else open(folder / name, "r+b")  # noqa: SIM115
        return self._files.enter_context(file)

    def flags(self, indices: NDArray[np.int64]) -> NDArray[np.uint8]:
        """PIXELS and MARKS of the rows at `indices`, int64 [B], as far as they can be read: uint8 [B]."""
        return self._flushed[indices] | self._written[indices]

    def num_kept(self) -> int:
        """How many rows of pixels have been flushed."""
        return int(np.count_nonzero(self._flushed & PIXELS))

    def read(self, index: int, into: NDArray[np.uint8]) -> None:
        """Fill `into`, uint8 [S, S, 3] and contiguous, with a row flagged PIXELS.

        Raises OSError if the disk is broken, or somebody has cut the file; then nothing more is written.
        """
        try:
            if os.preadv(self._pixels.fileno(), [into.data], index * self.row_bytes) != self.row_bytes:
                raise OSError(errno.EIO, "its file has been cut")
        except OSError as error:
            self.capacity, self.error = 0, error
            raise

    def write(self, index: int, pixels: NDArray[np.uint8], exact: np.int64, perceptual: NDArray[np.uint8]) -> None:
        """Keep what was decoded; if that fails, `capacity` becomes 0, and what is there already can still be read."""
        flags = 0
        try:
            _write(self._marks, np.array([(exact, perceptual)], RECORD).data, index * RECORD.itemsize)
            flags = MARKS
            if index < self.capacity:
                _write(self._pixels, pixels.data, index * self.row_bytes)
                flags |= PIXELS
        except OSError as error:
            self.capacity, self.error = 0, error
        self._written[index] |= flags

    def flush(self) -> None:
        """Make what was written so far survive this process, and a power cut."""
        with self._flushing:
            rows = np.flatnonzero(self._written & ~self._flushed)
            values = self._written[rows] | self._flushed[rows]
            try:
                if len(rows):
                    os.fsync(self._pixels.fileno())
                    os.fsync(self._marks.fileno())
                for row, value in zip(rows.tolist(), values.tolist(), strict=True):
                    _write(self._flags, memoryview(bytes([value])), row)
            except OSError as error:
                self.capacity, self.error = 0, error

    def marks(self) -> Marks:
        """The marks of all rows that were ever decoded, in their order."""
        seen = np.flatnonzero((self._flushed | self._written) & MARKS)
        records = np.memmap(self._marks, RECORD, "r", shape=(self.num_rows,))[seen]
        return Marks(records["exact"].astype(np.int64), np.ascontiguousarray(records["perceptual"]))

    def close(self) -> None:
        self.flush()
        self._files.close()


def _write(file: BinaryIO, data: memoryview, offset: int) -> None:
    left = data.cast("B")
    while left:  # the last piece that fits is written before a full disk is an error
        written = os.pwrite(file.fileno(), left, offset)
        left, offset = left[written:], offset + written


def _grow(file: BinaryIO, num_bytes: int) -> None:
    """Without writing: room is taken when rows are."""
    if os.fstat(file.fileno()).st_size < num_bytes:
        os.truncate(file.fileno(), num_bytes)


@contextlib.contextmanager
def _claimed(store: Path, num_rows: int, row_bytes: int, limit: int | None) -> Iterator[int]:
    """Make a store if it is not there, hold it, and make room: yields how many bytes of pixels it may take.

    Others go, the one that was not used for longest first, but never one that a process holds.
    """
    needed = num_rows * row_bytes
    store.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as held:
        with _lock(store.parent / "lock", fcntl.LOCK_EX):  # one process at a time makes, claims or removes stores
            others = []
            for path in store.parent.iterdir():
                if HALF_MADE.fullmatch(path.name) and _files_of(path) <= FILES:  # by a process that was killed
                    shutil.rmtree(path, ignore_errors=True)
                elif path != store and _files_of(path) == FILES:
                    others.append(path)
            if limit is None:
                taken = sum((other / "pixels").stat().st_blocks * 512 for other in [*others, store] if other.exists())
                limit = min(MOST, (shutil.disk_usage(store.parent).free + taken) // 2)
            sizes = {other: (other / "pixels").stat().st_size for other in others}
            for other in sorted(others, key=lambda path: (path / "lock").stat().st_mtime_ns):
                if needed > limit - sum(sizes.values()):
                    # In use, or another user's.
                    with contextlib.suppress(OSError), _lock(other / "lock", fcntl.LOCK_EX | fcntl.LOCK_NB):
                        shutil.rmtree(other)
                        del sizes[other]
            room = min(needed, max(0, limit - sum(sizes.values())))
            if not store.exists():
                with replacing_folder(store) as temporary:
                    for name in FILES:
                        (temporary / name).touch()
            with contextlib.suppress(BlockingIOError), _lock(store / "lock", fcntl.LOCK_EX | fcntl.LOCK_NB):
                _shrink(store, room // row_bytes, row_bytes)
            held.enter_context(_lock(store / "lock", fcntl.LOCK_SH))
            os.utime(store / "lock")
        yield room


@contextlib.contextmanager
def _lock(path: Path, kind: int) -> Iterator[None]:
    """Raises BlockingIOError if `kind` says not to wait, and somebody else holds it."""
    others = path.exists() and not os.access(path, os.W_OK)  # another user's, who shares the folder
    with path.open("rb" if others else "ab") as file:  # closing it lets go
        fcntl.flock(file, kind)
        yield


def _files_of(path: Path) -> set[str]:
    """The names in a folder that can be read and has files alone, else {""}, which is no store's.

    Only stores are ever removed from a folder that a user may have named by mistake.
    """
    try:
        return {file.name if file.is_file() else "" for file in path.iterdir()}
    except OSError:
        return {""}


def _shrink(store: Path, capacity: int, row_bytes: int) -> None:
    """Give back rows from `capacity` on: no other process may hold the store."""
    if (store / "pixels").stat().st_size > capacity * row_bytes:
        flags = np.fromfile(store / "flags", np.uint8)
        flags[capacity:] &= MARKS
        with (store / "flags").open("r+b") as file:
            file.write(flags.data)
            file.flush()
            os.fsync(file.fileno())  # a power cut must not leave a flag over a row that is gone
        os.truncate(store / "pixels", capacity * row_bytes)
