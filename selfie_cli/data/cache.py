"""A cache of decoded images on disk, shared by later runs and by processes that run at the same time.

A cache folder holds one entry per set of images, named <key>-<side>px:

    pixels    uint8 [capacity, S, S, 3]; sparse: rows that have not been written take no room
    records   RECORD [N]; locked (shared) by each process that uses the entry

Opening an entry updates the modification time of its folder. Each record has a checksum of its row in `pixels`: a row
that is incomplete after `kill -9`, a power cut or a truncation does not match, and its image is decoded again. Pixels
are written with `pwrite` and read with `pread`, which is as fast as a memory mapping, and a full disk raises an error
instead of killing the process. Two processes that decode the same image write the same bytes.
"""

import contextlib
import fcntl
import hashlib
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from selfie_cli.data.duplicates import NUM_BYTES, VERSION, Marks, marks_of
from selfie_cli.data.images import DECODING
from selfie_cli.data.sources import Source, fingerprint
from selfie_cli.talk import Talk

ENTRY = re.compile(r"[0-9a-f]{16}-\d+px")
"""Name of an entry. Nothing else is ever removed from a folder that a user may have named by mistake."""
RECORD = np.dtype([("exact", "<i8"), ("perceptual", "u1", NUM_BYTES), ("checksum", "<u8")])
"""An image's marks (see `duplicates`), and the checksum of its pixels, 0 if they are not cached."""
LAYOUT = "2"
"""Version of the format of an entry's files."""
MOST = 10**11
"""Default limit for all entries of a folder together, in bytes; at most half of the disk space they could take."""


def cache_folder(asked: str | None) -> Path | None:
    """Return the folder asked for, else `$XDG_CACHE_HOME/selfie` or `~/.cache/selfie`; None without a home."""
    if asked:
        return Path(asked)
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "selfie"
    except RuntimeError:  # no HOME, and no entry in the system's list of users, as in many containers
        return None


def cache_key(source: Source, size: int, interpolation: str = "bicubic") -> str:
    """Hash all that decoded images depend on (names, sizes and times of files, S, decoding) to 16 hex digits."""
    how = (LAYOUT, DECODING, VERSION, interpolation)
    digest = hashlib.sha256(f"{fingerprint(source)} {size} {' '.join(how)}".encode())
    for version in source.versions():
        digest.update(version)
    return digest.hexdigest()[:16]


def open_cache(
    source: Source, *, size: int, folder: str | None, limit_gb: float | None, interpolation: str = "bicubic", talk: Talk
) -> "PixelCache":
    """Open the entry of a source and report where it is. Without an entry, only marks are kept, in memory."""
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

    error: the error that stopped writing, usually a full disk.
    """

    def __init__(self, num_images: int, size: int, entry: Path | None, limit: int | None) -> None:
        """Open or create an entry. Raise OSError if that fails.

        Args:
            size: side S of the images, in pixels.
            entry: the entry's folder. None keeps only marks, in memory.
            limit: bytes that all entries of the cache may take together; None for the default, see MOST.
        """
        self.row_bytes = size * size * 3
        self.capacity = 0
        self.error: OSError | None = None
        self._files = contextlib.ExitStack()
        self._records: NDArray[np.void] = np.zeros(num_images, RECORD)
        if entry is not None:
            self._open(entry, num_images, limit)
        self._exact, self._perceptual, self._checksums = (self._records[name] for name in RECORD.names or ())

    def _open(self, entry: Path, num_images: int, limit: int | None) -> None:
        """Create `entry` if needed, and lock it. Unused entries make room, the least recently used first."""
        entry.parent.mkdir(parents=True, exist_ok=True)
        with _locked(entry.parent / "lock", fcntl.LOCK_EX):  # one process at a time creates, locks or removes entries
            known = {other: (other / "pixels").stat() for other in _entries(entry.parent)}
            if limit is None:
                taken = sum(stat.st_blocks * 512 for stat in known.values())
                limit = min(MOST, (shutil.disk_usage(entry.parent).free + taken) // 2)
            known.pop(entry, None)
            room = limit - sum(stat.st_size for stat in known.values())
            for other in sorted(known, key=lambda path: path.stat().st_mtime_ns):
                if room < num_images * self.row_bytes:
                    # Fails if the entry is in use, or another user's.
                    with contextlib.suppress(OSError), _locked(other / "records", fcntl.LOCK_EX | fcntl.LOCK_NB):
                        shutil.rmtree(other)
                        room += known[other].st_size
            self.capacity = min(num_images, max(0, room // self.row_bytes))
            entry.mkdir(exist_ok=True)
            for path in (entry / "pixels", entry / "records", entry):
                path.touch()
            with contextlib.suppress(BlockingIOError), _locked(entry / "records", fcntl.LOCK_EX | fcntl.LOCK_NB):
                if (entry / "pixels").stat().st_size > self.capacity * self.row_bytes:
                    os.truncate(entry / "pixels", self.capacity * self.row_bytes)
            self._files.enter_context(_locked(entry / "records", fcntl.LOCK_SH))
        self._pixels = self._files.enter_context((entry / "pixels").open("r+b"))
        if os.fstat(self._pixels.fileno()).st_size < self.capacity * self.row_bytes:  # others count the size as taken
            os.truncate(self._pixels.fileno(), self.capacity * self.row_bytes)
        with (entry / "records").open("r+b") as records:
            if hasattr(os, "posix_fallocate"):  # a hole in a mapped file kills the process when the disk is full
                os.posix_fallocate(records.fileno(), 0, num_images * RECORD.itemsize)
            self._records = np.memmap(records, RECORD, "r+", shape=(num_images,)).view(np.ndarray)
        self._records["checksum"][os.fstat(self._pixels.fileno()).st_size // self.row_bytes :] = 0

    def num_kept(self) -> int:
        """Return the number of images whose pixels are cached."""
        return int(np.count_nonzero(self._checksums))

    def read(self, index: int, into: NDArray[np.uint8]) -> bool:
        """Fill `into`, uint8 [S, S, 3] and contiguous, with an image. Return False if it is not cached."""
        expected = self._checksums[index]
        return bool(
            expected
            and os.preadv(self._pixels.fileno(), [into.data], index * self.row_bytes) == self.row_bytes
            and checksum(into) == expected
        )

    def write(self, indices: NDArray[np.int64], pixels: NDArray[np.uint8]) -> None:
        """Store decoded images, uint8 [B, S, S, 3], as far as there is room, and their marks."""
        new = (indices < self.capacity) | (self._exact[indices] == 0)
        if not new.all():  # decoded again for lack of room: marks are stored already
            indices, pixels = indices[new], pixels[new]
        marks = marks_of(torch.from_numpy(pixels))
        self._exact[indices], self._perceptual[indices] = marks.exact, marks.perceptual
        for index, row in zip(indices.tolist(), pixels, strict=True):
            if index < self.capacity:
                try:
                    _write(self._pixels.fileno(), row.data, index * self.row_bytes)
                    self._checksums[index] = checksum(row)
                except OSError as error:  # cached rows can still be read
                    self.capacity, self.error = 0, error

    def marks(self) -> Marks:
        """Return the marks of all images that were ever decoded, in their order."""
        seen = self._exact != 0
        return Marks(self._exact[seen].astype(np.int64), np.ascontiguousarray(self._perceptual[seen]))

    def close(self) -> None:
        """Unlock the entry, so that other processes may remove it."""
        self._files.close()


def checksum(pixels: NDArray[np.uint8]) -> int:
    """Return 1 + the sum of all 64-bit words, and of the bytes after them, modulo 2^64: missing pixels change it."""
    row = pixels.reshape(-1)
    whole = len(row) // 8 * 8
    return (1 + int(row[:whole].view(np.uint64).sum()) + int(row[whole:].sum())) % 2**64


def _write(file: int, data: memoryview, offset: int) -> None:
    left = data.cast("B")
    while left:  # a nearly full disk writes a part first, and fails at the next call
        written = os.pwrite(file, left, offset)
        left, offset = left[written:], offset + written


@contextlib.contextmanager
def _locked(path: Path, kind: int) -> Iterator[None]:
    """Hold a lock on a file. Raise BlockingIOError if `kind` has LOCK_NB and another process holds it."""
    if not path.exists():
        path.touch()
    with path.open("rb") as file:  # it may belong to another user, who shares the folder; closing it unlocks
        fcntl.flock(file, kind)
        yield


def _entries(folder: Path) -> list[Path]:
    """Return the entries of a cache folder, including those of other versions."""
    return [path for path in folder.iterdir() if ENTRY.fullmatch(path.name) and os.path.isfile(path / "pixels")]
