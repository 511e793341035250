"""Every image of a source decoded once, as uint8 pixels in memory, or in a temporary file where they do not fit."""

import os
import shutil
import tempfile
import threading
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from selfie_cli.data.images import decode_square
from selfie_cli.data.memory import available_memory
from selfie_cli.data.sources import Array, Source, Subset
from selfie_cli.errors import DataError, UnreadableImage
from selfie_cli.files import write_json_lines
from selfie_cli.talk import Talk

CHUNK = 32  # images a task: enough to hide a task's cost, few enough to stop soon


@dataclass(frozen=True)
class BadFile:
    """An input that was skipped, and why."""

    name: str
    reason: str


@dataclass(frozen=True, eq=False)
class Store:
    """Pixels of the readable images of a source.

    pixels: uint8 [N, S, S, 3]. kept: int64 [N], the position in the source of each row, ascending. bad: the others.
    """

    pixels: torch.Tensor
    kept: NDArray[np.int64]
    bad: list[BadFile]

    def __len__(self) -> int:
        return len(self.kept)

    def take(self, indices: torch.Tensor) -> torch.Tensor:
        """The rows at `indices`, int64 [B], as a new uint8 tensor [B, S, S, 3]."""
        return self.pixels.index_select(0, indices)


def storage_size(image_size: int) -> int:
    """The side to store for networks that see `image_size`: above 64 px an eighth is left over for cropping."""
    return image_size if image_size <= 64 else round(image_size * 8 / 7)


def read_store(
    source: Source, *, size: int, workers: int, max_bad: float, talk: Talk, memory: int | None = None
) -> Store:
    """Decode the centre square of every image of `source` to `size` pixels, with `workers` threads.

    Args:
        max_bad: the share of unreadable images above which reading stops, 0 to 1.
        memory: bytes of pixels to hold in memory at most; half of what is available if not given. More than that goes
            to an unnamed temporary file, which vanishes with the process.

    Raises:
        DataError: if too many images are unreadable, or all, or if neither memory nor disk has room.
    """
    num_images = len(source)
    if not num_images:
        raise DataError("no images to read")
    decoded = _decoded(source)
    if decoded is not None and decoded.shape[1:] == (size, size, 3):
        ready = np.require(decoded, requirements=["C", "W"])
        return Store(torch.from_numpy(ready), np.arange(num_images, dtype=np.int64), [])

    pixels = _allocate((num_images, size, size, 3), available_memory() // 2 if memory is None else memory)
    bad: list[tuple[int, str]] = []
    stop = threading.Event()

    def decode(chunk: range) -> list[tuple[int, str]]:
        unreadable = []
        for index in chunk:
            if stop.is_set():
                break
            try:
                with source.open(index) as image:
                    pixels[index] = decode_square(image, size)
            except UnreadableImage as error:
                unreadable.append((index, str(error)))
        return unreadable

    pool = ThreadPoolExecutor(max(1, workers), thread_name_prefix="decode")
    try:
        with talk.track("reading images", num_images) as advance:
            chunks = [range(start, min(start + CHUNK, num_images)) for start in range(0, num_images, CHUNK)]
            for chunk, unreadable in zip(chunks, pool.map(decode, chunks), strict=True):
                bad += unreadable
                if len(bad) > max_bad * num_images or len(bad) == num_images:
                    raise _too_many(source, bad, chunk.stop, max_bad)
                advance(chunk.stop, f"{len(bad)} unreadable" if bad else "")
    finally:
        # Also on Ctrl-C: what waits is dropped, what runs ends with the image in hand.
        stop.set()
        pool.shutdown(wait=True, cancel_futures=True)

    kept = np.setdiff1d(np.arange(num_images, dtype=np.int64), [index for index, _ in bad])
    if bad:
        for start in range(0, len(kept), CHUNK):  # rows only move towards the front, so none is lost
            rows = kept[start : start + CHUNK]
            pixels[start : start + len(rows)] = pixels[rows]
    names = source.names
    return Store(torch.from_numpy(pixels[: len(kept)]), kept, [BadFile(names[index], reason) for index, reason in bad])


@dataclass(frozen=True, eq=False)
class Decoded:
    """Some images of a source, in its order. indices: int64 [B]; pixels: uint8 [B, S, S, 3]; bad: what was between."""

    indices: NDArray[np.int64]
    pixels: torch.Tensor
    bad: list[BadFile]


def stream(source: Source, *, size: int, workers: int, batch_size: int) -> Iterator[Decoded]:
    """Decode a source once, in order, at most two batches ahead of the one in hand: memory use stays flat.

    Closing the iterator stops the decoding.
    """

    def decode(index: int) -> NDArray[np.uint8] | str:
        try:
            with source.open(index) as image:
                return decode_square(image, size)
        except UnreadableImage as error:
            return str(error)

    pool = ThreadPoolExecutor(max(1, workers), thread_name_prefix="decode")
    try:
        ahead: deque[tuple[int, list[Future[NDArray[np.uint8] | str]]]] = deque()
        for start in range(0, len(source), batch_size):
            ahead.append((start, [pool.submit(decode, i) for i in range(start, min(start + batch_size, len(source)))]))
            if len(ahead) > 2:
                yield _collected(source, size, *ahead.popleft())
        while ahead:
            yield _collected(source, size, *ahead.popleft())
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _collected(source: Source, size: int, start: int, futures: list[Future[NDArray[np.uint8] | str]]) -> Decoded:
    indices, pixels, bad = [], [], []
    for index, future in enumerate(futures, start):
        result = future.result()
        if isinstance(result, str):
            bad.append(BadFile(source.names[index], result))
        else:
            indices.append(index)
            pixels.append(torch.from_numpy(result))
    stacked = torch.stack(pixels) if pixels else torch.empty(0, size, size, 3, dtype=torch.uint8)
    return Decoded(np.array(indices, dtype=np.int64), stacked, bad)


def _decoded(source: Source) -> NDArray[np.uint8] | None:
    if isinstance(source, Array):
        return source.pixels
    if isinstance(source, Subset) and isinstance(source.source, Array):
        return source.source.pixels[source.indices]
    return None


def _too_many(source: Source, bad: list[tuple[int, str]], num_read: int, max_bad: float) -> DataError:
    first = "; ".join(f"{source.names[index]}: {reason}" for index, reason in bad[:3])
    if len(bad) == len(source):
        return DataError(f"none of the {len(source)} images is readable: {first}")
    return DataError(
        f"{len(bad)} of the first {num_read} images are unreadable, over {max_bad:.1%} of all {len(source)}: {first}. "
        f"Mend or remove them, or allow more with --max-bad"
    )


def _allocate(shape: tuple[int, int, int, int], memory: int) -> NDArray[Any]:
    """Uint8 of `shape`: in memory if that is at most `memory` bytes, else mapped from a file without a name."""
    needed = int(np.prod(shape, dtype=np.int64))
    if needed <= memory:
        return np.empty(shape, np.uint8)
    folder = tempfile.gettempdir()
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise DataError(
            f"the pixels need {needed / 1e9:.1f} GB: {memory / 1e9:.1f} GB of memory may be used and {folder} has "
            f"{free / 1e9:.1f} GB free. Take a smaller --image-size, or set TMPDIR to a folder on a larger disk"
        )
    with tempfile.TemporaryFile() as file:  # the mapping outlives the file's handle
        if hasattr(os, "posix_fallocate"):
            try:
                os.posix_fallocate(file.fileno(), 0, needed)  # a full disk would otherwise kill us at some later write
            except OSError as error:
                raise DataError(f"{folder} has no room for {needed / 1e9:.1f} GB: {error.strerror}") from error
        else:
            file.truncate(needed)
        return np.memmap(file, np.uint8, "r+", shape=shape)


def report_bad(bad: list[BadFile], num_images: int, file: Path, talk: Talk) -> None:
    """Write `file` (JSON Lines) if there is anything to report, and say so."""
    if not bad:
        return
    write_json_lines(file, [{"path": one.name, "reason": one.reason} for one in bad])
    talk.warn(f"{len(bad)} of {num_images} images cannot be read and are left out, see {file}")
