"""Every image of a source decoded once, as uint8 pixels in memory, or in a temporary file where they do not fit."""

import dataclasses
import json
import os
import shutil
import tempfile
import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from selfie_cli.data.duplicates import Marks, marks_of
from selfie_cli.data.images import decode_square
from selfie_cli.data.memory import share_of_memory
from selfie_cli.data.sources import Array, Source, Subset
from selfie_cli.data.threads import thread_pool
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
    block = 1

    def __len__(self) -> int:
        return len(self.kept)

    def take(self, indices: torch.Tensor) -> torch.Tensor:
        """The rows at `indices`, int64 [B], as a new uint8 tensor [B, S, S, 3] where the pixels are."""
        return self.pixels.index_select(0, indices.to(self.pixels.device))

    def to(self, device: torch.device) -> "Store":
        """The same with its pixels on `device`, where `take` then runs."""
        return dataclasses.replace(self, pixels=self.pixels.to(device))

    def marks(self) -> Marks:
        """The marks of all rows, in their order."""
        return marks_of(self.pixels)

    def recall(self, *, marks: Marks | None, bad: Iterable[BadFile]) -> None:
        """Nothing is to be done for what follows: `mapped.MappedStore`, which pretraining may have instead, does it."""

    def flush(self) -> None:
        """As `recall`."""

    def close(self) -> None:
        """As `recall`."""


def storage_size(image_size: int) -> int:
    """The side to store for networks that see `image_size`: above 64 px an eighth is left over for cropping."""
    return image_size if image_size <= 64 else round(image_size * 8 / 7)


def read_store(
    source: Source,
    *,
    size: int,
    workers: int,
    max_bad: float,
    talk: Talk,
    memory: int | None = None,
    none_is_fine: bool = False,
) -> Store:
    """Decode the centre square of every image of `source` to `size` pixels, with `workers` threads.

    Args:
        max_bad: the share of unreadable images above which reading stops, 0 to 1.
        memory: bytes of pixels to hold in memory at most; `share_of_memory` if not given. More than that goes to an
            unnamed temporary file, which vanishes with the process.
        none_is_fine: whether all may be unreadable, which gives a store without rows.

    Raises:
        DataError: if too many images are unreadable, or all without `none_is_fine`, or if neither memory nor disk has
            room.
    """
    num_images = len(source)
    if not num_images:
        raise DataError("no images to read")
    decoded = decoded_pixels(source)
    if decoded is not None and decoded.shape[1:] == (size, size, 3):
        ready = np.require(decoded, requirements=["C", "W"])
        return Store(torch.from_numpy(ready), np.arange(num_images, dtype=np.int64), [])

    pixels = allocate((num_images, size, size, 3), share_of_memory() if memory is None else memory)
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

    pool = thread_pool(max(1, workers), "decode")
    try:
        with talk.track("reading images", num_images) as advance:
            chunks = [range(start, min(start + CHUNK, num_images)) for start in range(0, num_images, CHUNK)]
            for chunk, unreadable in zip(chunks, pool.map(decode, chunks), strict=True):
                bad += unreadable
                if len(bad) > max_bad * num_images or (len(bad) == num_images and not none_is_fine):
                    named = [BadFile(source.names[index], reason) for index, reason in bad]
                    raise too_many(named, num_images, max_bad, num_read=chunk.stop)
                advance(chunk.stop, f"{len(bad)} unreadable" if bad else "")
    finally:
        # Also on Ctrl-C: what waits is dropped, what runs ends with the image in hand.
        stop.set()
        pool.shutdown(wait=True, cancel_futures=True)

    return without_bad(bad, pixels, source)


def without_bad(bad: list[tuple[int, str]], pixels: NDArray[np.uint8], source: Source) -> Store:
    """The store of pixels of which those of `bad` images say nothing; the others move to the front, in place."""
    kept = np.setdiff1d(np.arange(len(source), dtype=np.int64), [index for index, _ in bad])
    if bad:
        for start in range(0, len(kept), CHUNK):  # rows only move towards the front, so none is lost
            rows = kept[start : start + CHUNK]
            pixels[start : start + len(rows)] = pixels[rows]
    names = source.names
    return Store(torch.from_numpy(pixels[: len(kept)]), kept, [BadFile(names[index], reason) for index, reason in bad])


def decoded_pixels(source: Source) -> NDArray[np.uint8] | None:
    """The pixels of a source that holds them, uint8 [N, H, W, 3]."""
    if isinstance(source, Array):
        return source.pixels
    if isinstance(source, Subset) and isinstance(source.source, Array):
        return source.source.pixels[source.indices]
    return None


def too_many(bad: Sequence[BadFile], num_images: int, max_bad: float, *, num_read: int | None = None) -> DataError:
    first = "; ".join(f"{each.name}: {each.reason}" for each in bad[:3])
    if len(bad) == num_images:
        return DataError(f"none of the {num_images} images is readable: {first}")
    read = f"of the first {num_read} images" if num_read else "images"
    return DataError(
        f"{len(bad)} {read} are unreadable, over {max_bad:.1%} of all {num_images}: {first}. "
        f"Mend them, or allow more with --max-bad"
    )


def allocate(shape: tuple[int, int, int, int], memory: int) -> NDArray[Any]:
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


def save_bad(file: Path, bad: list[BadFile]) -> None:
    """As JSON Lines."""
    write_json_lines(file, [{"path": one.name, "reason": one.reason} for one in bad])


def load_bad(file: Path) -> list[BadFile]:
    """What `save_bad` wrote; nothing where there is no such file. Raises DataError if it is damaged."""
    try:
        lines = file.read_text(encoding="utf-8").splitlines()  # JSON escapes what else would end a line
        found = [BadFile(one["path"], one["reason"]) for one in map(json.loads, lines)]
        if not all(isinstance(one.name, str) and isinstance(one.reason, str) for one in found):
            raise ValueError("a path or a reason is no text")
    except FileNotFoundError:
        return []
    except (ValueError, LookupError, TypeError, RecursionError) as error:
        raise DataError(f"{file} is damaged ({error}): remove it, bad files are found again") from None
    return found


def report_bad(bad: list[BadFile], num_images: int, file: Path, talk: Talk) -> None:
    """Write `file` as `save_bad` does if there is anything to report, and say so."""
    if not bad:
        return
    save_bad(file, bad)
    talk.warn(f"{len(bad)} of {num_images} images cannot be read and are left out, see {file}")
