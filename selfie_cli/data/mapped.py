"""Sets too large to be decoded before the first step: decoded when first asked for, and kept in files for later.

N images    B of them in a batch    S side in pixels
"""

import contextlib
import hashlib
import os
import time
from collections.abc import Iterable
from concurrent.futures import Future
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from selfie_cli.data.blocks import BLOCK, BlockReader
from selfie_cli.data.duplicates import VERSION, Marks, joined, marks_of
from selfie_cli.data.images import DECODING, decode_square
from selfie_cli.data.memory import share_of_memory
from selfie_cli.data.rows import MARKS, PIXELS, Rows
from selfie_cli.data.shards import Shards
from selfie_cli.data.sources import Source, fingerprint
from selfie_cli.data.store import BadFile, Store, allocate, decoded_pixels, read_store, too_many, without_bad
from selfie_cli.data.threads import thread_pool
from selfie_cli.errors import DataError, UnreadableImage
from selfie_cli.talk import Talk

SMALL = 10**9
"""Bytes of pixels up to which a set is decoded before the first step, and kept in memory."""
CHUNK = 256  # images that are read at once where all are wanted
FLUSH_SECONDS = 10.0
"""A killed process loses what it decoded since."""


Bad = list[tuple[int, str]]
"""Positions of unreadable images, and why."""


def store_folder(asked: str | None) -> Path | None:
    """Where stores are kept: as asked, else `$XDG_CACHE_HOME/selfie`, or `~/.cache/selfie`; None without a home."""
    if asked:
        return Path(asked)
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "selfie"
    except RuntimeError:  # no HOME, and a user without an entry in the system's list, as in many containers
        return None


def is_small(source: Source, size: int) -> bool:
    """Whether its pixels are few, or decoded already: then they are in memory in any case (the largest named set,
    STL-10, has 2.9 GB), and pretraining moves them to its GPU."""
    return decoded_pixels(source) is not None or len(source) * size * size * 3 <= SMALL


def open_store(
    source: Source,
    *,
    size: int,
    workers: int,
    max_bad: float,
    talk: Talk,
    folder: str | None = None,
    limit_gb: float | None = None,
) -> "Store | MappedStore":
    """The pixels of `source`: decoded now if they are few (SMALL), else when they are asked for.

    Args:
        size: the side S in pixels.
        workers: the number of threads that decode.
        max_bad: the share of unreadable images above which DataError is raised, 0 to 1.
        folder: where decoded pixels are kept for later runs; see `store_folder`.
        limit_gb: how much all stores in `folder` may take; 0 keeps nothing. If not given, 100 GB and at most half of
            the disk's room.

    Raises:
        DataError: if there are no images; as `read_store` does if they are few; else `take` raises it.
    """
    if is_small(source, size):
        return read_store(source, size=size, workers=workers, max_bad=max_bad, talk=talk)
    return MappedStore(source, size=size, workers=workers, max_bad=max_bad, talk=talk, folder=folder, limit_gb=limit_gb)


def all_pixels(opened: "Store | MappedStore") -> Store:
    """What `open_store` has opened, for those who need all pixels at once. Nothing else is to be done with it then.

    Raises DataError as `store.read_store` does.
    """
    if isinstance(opened, Store):
        return opened
    with contextlib.closing(opened), opened.talk.track("reading images", len(opened)) as advance:
        pixels = allocate((len(opened), opened.size, opened.size, 3), share_of_memory())
        for start in range(0, len(opened), CHUNK):
            part = slice(start, min(start + CHUNK, len(opened)))
            pixels[part] = opened.take(torch.arange(part.start, part.stop)).numpy()
            advance(part.stop, f"{len(opened.unreadable)} unreadable" if opened.unreadable else "")
    return without_bad(sorted(opened.unreadable.items()), pixels, opened.source)


class MappedStore:
    """Pixels of every image of a source, decoded when they are first asked for, by one thread at a time.

    They are kept in files (`rows.Rows`) as far as there is room, and decoded each time beyond that. An image that
    cannot be read is replaced by the next one that can and is not in the batch, so that there are as many rows as
    images.

    block: how many neighbours in the source had better be asked for together (see `SampleOrder`), 1 if it does not
        matter: depends on the source alone.
    """

    def __init__(
        self,
        source: Source,
        *,
        size: int,
        workers: int,
        max_bad: float,
        talk: Talk,
        folder: str | None = None,
        limit_gb: float | None = None,
    ) -> None:
        """Arguments are those of `open_store`. Raises DataError if there are no images."""
        if not len(source):
            raise DataError("no images to read")
        self.source, self.size, self.max_bad, self.talk = source, size, max_bad, talk
        self.workers = max(1, workers)
        self.block = BLOCK if isinstance(source, Shards) else source.block
        self._open = BlockReader(source).open if isinstance(source, Shards) else source.open
        self.unreadable: dict[int, str] = {}
        self._num_tried = 0
        self._flushed = time.monotonic()
        self._warned = False
        self._earlier: Marks | None = None
        self.rows = self._rows(store_folder(folder), None if limit_gb is None else int(limit_gb * 1e9))
        self._pool = thread_pool(self.workers, "decode")

    def _rows(self, folder: Path | None, limit: int | None) -> Rows:
        num_images = len(self.source)
        whole = num_images * self.size * self.size * 3 / 1e9
        if limit != 0 and folder is None:
            self.talk.warn("decoded images cannot be kept, as there is no home folder: name one with --store")
        elif limit != 0 and folder is not None:
            store = folder / f"{store_key(self.source, self.size)}-{self.size}px"
            try:
                rows = Rows(num_images, self.size, store, limit)
            except OSError as error:
                self.talk.warn(f"decoded images cannot be kept in {folder}: {error.strerror}. Set another with --store")
            else:
                room = rows.capacity * rows.row_bytes / 1e9
                self.talk.say(
                    f"decoded images are kept in {store}: up to {room:.1f} of {whole:.1f} GB (--store-gb), "
                    f"{rows.num_kept():,} of {num_images:,} images are there"
                )
                return rows
        self.talk.say(f"decoded images are not kept ({whole:.1f} GB): every epoch decodes them again")
        return Rows(num_images, self.size, None, 0)

    def __len__(self) -> int:
        return len(self.source)

    @property
    def bad(self) -> list[BadFile]:
        """The unreadable images found so far, in their order."""
        return [BadFile(self.source.names[index], self.unreadable[index]) for index in sorted(self.unreadable)]

    def take(self, indices: Tensor) -> Tensor:
        """The images at `indices`, int64 [B]: a new uint8 tensor [B, S, S, 3].

        Raises:
            DataError: if more than `max_bad` of all N images have turned out to be unreadable, or all of them.
        """
        wanted = indices.numpy()
        out = torch.empty(len(wanted), self.size, self.size, 3, dtype=torch.uint8)
        pixels = out.numpy()
        different, first, inverse = np.unique(wanted, return_index=True, return_inverse=True)
        there = (self.rows.flags(different) & PIXELS) > 0
        jobs: list[Future[Bad]] = []
        for members, job in ((there, self._read), (~there, self._decode)):
            for part in _parts(np.flatnonzero(members), self.workers):
                jobs.append(self._pool.submit(job, different[part], first[part], pixels))
        self._num_tried += int((~there).sum())
        try:
            for future in jobs:
                self._found(future.result())
        finally:
            for future in jobs:
                future.cancel()
        taken = set(different.tolist()) if self.unreadable else set()
        for index, place in zip(different.tolist(), first.tolist(), strict=True):
            if index in self.unreadable:
                self._replace(index, pixels[place], taken)
        again = np.flatnonzero(first[inverse] != np.arange(len(wanted)))
        pixels[again] = pixels[first[inverse[again]]]
        self._look_after_rows()
        return out

    def marks(self) -> Marks:
        """The marks of every image that was decoded so far: by this process, into the store, or as `recall` says."""
        marks = self.rows.marks()
        return marks if self._earlier is None else joined([self._earlier, marks])

    def recall(self, *, marks: Marks | None, bad: Iterable[BadFile]) -> None:
        """Go on from what `marks()` and `bad` were when an earlier part of this run ended: both stay in them.

        Raises DataError as `take` does.
        """
        self._earlier = marks
        reasons = {one.name: one.reason for one in bad}
        if reasons:  # looks at every name
            found = [(index, reasons[name]) for index, name in enumerate(self.source.names) if name in reasons]
            self._num_tried += len(found)
            self._found(found)

    def flush(self) -> None:
        """Make what was decoded survive, and seen by other processes now, not some seconds later."""
        self.rows.flush()

    def close(self) -> None:
        """Stop the threads, and make what was decoded survive."""
        self._pool.shutdown(wait=True, cancel_futures=True)
        self.rows.close()

    def _read(self, indices: NDArray[np.int64], places: NDArray[np.int64], pixels: NDArray[np.uint8]) -> Bad:
        try:
            for index, place in zip(indices.tolist(), places.tolist(), strict=True):
                self.rows.read(index, pixels[place])
        except OSError:  # a broken disk, or a file that somebody cut
            return self._decode(indices, places, pixels)
        return []

    def _decode(self, indices: NDArray[np.int64], places: NDArray[np.int64], pixels: NDArray[np.uint8]) -> Bad:
        """Decode images into `pixels[places]`, keep them, and return those that cannot be read."""
        bad: Bad = []
        readable = np.ones(len(indices), np.bool_)
        for number, (index, place) in enumerate(zip(indices.tolist(), places.tolist(), strict=True)):
            try:
                with self._open(index) as image:
                    pixels[place] = decode_square(image, self.size)
            except UnreadableImage as error:
                readable[number] = False
                bad.append((index, str(error)))
        new = readable & ((indices < self.rows.capacity) | (self.rows.flags(indices) & MARKS == 0))
        indices, places = indices[new], places[new]
        marks = marks_of(torch.from_numpy(pixels[places]))
        for index, place, exact, perceptual in zip(indices, places, marks.exact, marks.perceptual, strict=True):
            self.rows.write(int(index), pixels[place], exact, perceptual)
        return bad

    def _found(self, bad: Bad) -> None:
        self.unreadable.update(bad)
        if len(self.unreadable) > self.max_bad * len(self) or len(self.unreadable) == len(self):
            raise too_many(self.bad, len(self), self.max_bad, num_read=self._num_tried)

    def _replace(self, index: int, into: NDArray[np.uint8], taken: set[int]) -> None:
        """Fill `into` with the first readable image that follows an unreadable one and is not `taken`, if there is."""
        for again in (False, True):
            for _ in range(len(self)):
                index = (index + 1) % len(self)
                if index in self.unreadable or (index in taken and not again):
                    continue
                here, place = np.array([index]), np.array([0])
                job = self._read if self.rows.flags(here)[0] & PIXELS else self._decode
                self._found(job(here, place, into[None]))
                if index not in self.unreadable:
                    taken.add(index)
                    return

    def _look_after_rows(self) -> None:
        if self.rows.error is not None and not self._warned:
            self._warned = True
            self.talk.warn(
                f"no more decoded images can be kept ({self.rows.error.strerror}): the others are decoded in every "
                "epoch. Make room, set another folder with --store, or allow less with --store-gb"
            )
        if time.monotonic() - self._flushed > FLUSH_SECONDS:
            self._flushed = time.monotonic()
            self._pool.submit(self.rows.flush)


def store_key(source: Source, size: int) -> str:
    """16 hex digits over what the rows of a store depend on: names, files' sizes and times, S, and how we decode."""
    digest = hashlib.sha256(f"{fingerprint(source)} {size} {DECODING} {VERSION}".encode())
    for version in source.versions():
        digest.update(version)
    return digest.hexdigest()[:16]


def _parts(members: NDArray[np.int64], workers: int) -> list[NDArray[np.int64]]:
    """Cut into tasks: at least four a worker, so that all end at about the same time, and 16 images at most."""
    count = len(members)
    return np.array_split(members, min(count, max(4 * workers, -(-count // 16)))) if count else []
