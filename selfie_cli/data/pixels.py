"""Decoded images: in memory, or decoded on demand and kept in a cache on disk. `Pixels` is the interface to both.

N images    B of them in a batch    S side in pixels
"""

import contextlib
import functools
import itertools
import math
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from selfie_cli.data.bad_files import BadFile, too_many
from selfie_cli.data.blocks import BlockReader
from selfie_cli.data.cache import PixelCache, open_cache
from selfie_cli.data.duplicates import Marks, joined, marks_of
from selfie_cli.data.images import decode_square
from selfie_cli.data.memory import allocate
from selfie_cli.data.sources import Array, Packed, Source, Subset
from selfie_cli.data.threads import CHUNK, in_chunks, thread_pool
from selfie_cli.errors import DataError, UnreadableImage
from selfie_cli.talk import Talk

SMALL = 10**9
"""Bytes of pixels up to which a set is decoded before the first step and kept in memory."""
Load = Callable[[NDArray[np.int64], NDArray[np.int64], NDArray[np.uint8]], dict[int, str]]
"""Fills rows of pixels with images, given the images and the rows; returns the unreadable images, and why."""


class Pixels(ABC):
    """Decoded images of a source.

    block: number of consecutive images that are best requested together (see `batches.SampleOrder`), 1 if it does not
    matter; it depends only on the source. decoding_epochs: number of epochs in which `take` decodes images. unreadable:
    positions in the source of images that cannot be read, and why.
    """

    block: int = 1
    decoding_epochs: float = 0

    def __init__(self, source: Source, unreadable: dict[int, str]) -> None:
        self.source, self.unreadable = source, unreadable

    @property
    def bad(self) -> list[BadFile]:
        """Unreadable images found so far, in the order of the source."""
        return bad_files(self.unreadable, self.source)

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def take(self, indices: Tensor) -> Tensor:
        """Return the images at `indices`, int64 [B], as a new uint8 tensor [B, S, S, 3]. Raise DataError if too many
        images turn out to be unreadable."""

    @abstractmethod
    def marks(self) -> Marks:
        """Return the marks of every image decoded so far."""

    @abstractmethod
    def in_memory(self) -> "InMemory":
        """Decode all readable images into memory, and close these pixels."""

    def to(self, device: torch.device) -> "Pixels":
        """Move in-memory pixels to `device`, where `take` then runs. For a GPU, decode others into page-locked memory,
        so that it can compute while they are copied."""
        return self

    def recall(self, *, marks: Marks | None, bad: Iterable[BadFile]) -> None:  # noqa: B027
        """Restore `marks()` and `bad` as they were when an earlier part of this run ended."""

    def close(self) -> None:  # noqa: B027
        """Stop the threads, and unlock the cache."""


class InMemory(Pixels):
    """Readable images of a source, decoded before the first step.

    pixels: uint8 [N, S, S, 3]. kept: int64 [N], their positions in the source, ascending.
    """

    def __init__(self, source: Source, unreadable: dict[int, str], pixels: Tensor) -> None:
        super().__init__(source, unreadable)
        self.pixels = pixels
        self.kept = np.setdiff1d(np.arange(len(source)), list(unreadable))

    def __len__(self) -> int:
        return len(self.kept)

    def take(self, indices: Tensor) -> Tensor:
        return self.pixels.index_select(0, indices.to(self.pixels.device))

    def to(self, device: torch.device) -> "InMemory":
        return InMemory(self.source, self.unreadable, self.pixels.to(device))

    def marks(self) -> Marks:
        return marks_of(self.pixels)

    def in_memory(self) -> "InMemory":
        return self


class OnDemand(Pixels):
    """All images of a source, decoded on first use and cached as far as there is room.

    An unreadable image is replaced by the next readable one that is not in the batch, so that batches stay complete.
    Only one thread at a time may call `take`.
    """

    def __init__(
        self,
        source: Source,
        cache: PixelCache,
        *,
        size: int,
        workers: int,
        max_bad: float,
        talk: Talk,
        interpolation: str = "bicubic",
    ) -> None:
        super().__init__(source, {})
        self.cache, self.size, self.max_bad, self.talk, self.workers = cache, size, max_bad, talk, workers
        reader = BlockReader(source) if isinstance(source, Packed) and source.block == 1 else None
        self.block, self._open = (reader.block, reader.open) if reader else (source.block, source.open)
        self.interpolation = interpolation
        self._earlier: list[Marks] = []
        self._warned = False
        self._pinned = False
        self.decoding_epochs = 1 if self.cache.capacity >= len(source) else math.inf
        self._pool = thread_pool(workers, "decode")

    def __len__(self) -> int:
        return len(self.source)

    def take(self, indices: Tensor) -> Tensor:
        out = torch.empty(len(indices), self.size, self.size, 3, dtype=torch.uint8, pin_memory=self._pinned)
        pixels = out.numpy()
        places = np.argsort(indices.numpy(), kind="stable")  # neighbours are read together
        images = indices.numpy()[places]
        # At least four tasks per worker, so that all end at about the same time, and at most 16 images in each.
        num_tasks = max(1, min(len(images), max(4 * self.workers, -(-len(images) // 16))))
        parts = np.array_split(np.arange(len(images)), num_tasks)
        tasks = [self._pool.submit(self._load, images[part], places[part], pixels) for part in parts]
        try:
            for task in tasks:
                self._found(task.result())
        finally:
            for task in tasks:
                task.cancel()
        if self.unreadable:
            taken = set(images.tolist())
            for image, place in zip(images.tolist(), places.tolist(), strict=True):
                if image in self.unreadable:
                    self._replace(image, pixels[place], taken)
        if self.cache.error is not None and not self._warned:
            self._warned = True
            self.talk.warn(
                f"no more decoded images can be cached ({self.cache.error.strerror}): the others are decoded in every "
                "epoch. Make room, set another folder with --store, or allow less with --store-gb"
            )
        return out

    def to(self, device: torch.device) -> "OnDemand":
        self._pinned = device.type == "cuda"
        return self

    def _load(self, images: NDArray[np.int64], places: NDArray[np.int64], pixels: NDArray[np.uint8]) -> dict[int, str]:
        """Read images from the cache or decode them into `pixels[places]`; return the unreadable ones and why."""
        there = [self.cache.read(image, pixels[place]) for image, place in zip(images, places, strict=True)]
        missing = ~np.array(there, np.bool_)
        images, places = images[missing], places[missing]
        bad = decode(self._open, self.interpolation, images, places, pixels)
        decoded = ~np.isin(images, list(bad))
        if decoded.any():
            self.cache.write(images[decoded], pixels[places[decoded]])
        return bad

    def _found(self, bad: dict[int, str]) -> None:
        if bad:
            self.unreadable |= bad
            check_readable(self.unreadable, self.source, self.max_bad)

    def _replace(self, image: int, into: NDArray[np.uint8], taken: set[int]) -> None:
        """Fill `into` with the next readable image that is not `taken`, or if there is none, with any readable one."""
        for reuse in (False, True):
            for other in itertools.chain(range(image + 1, len(self)), range(image)):
                if other not in self.unreadable and (reuse or other not in taken):
                    self._found(self._load(np.array([other]), np.array([0]), into[None]))
                    if other not in self.unreadable:
                        taken.add(other)
                        return

    def marks(self) -> Marks:
        return joined([*self._earlier, self.cache.marks()]) if self._earlier else self.cache.marks()

    def recall(self, *, marks: Marks | None, bad: Iterable[BadFile]) -> None:
        self._earlier = [] if marks is None else [marks]
        reasons = {one.name: one.reason for one in bad}
        if reasons:  # this reads every name
            self._found({index: reasons[name] for index, name in enumerate(self.source.names) if name in reasons})

    def in_memory(self) -> InMemory:
        how: dict[str, Any] = {"workers": self.workers, "max_bad": self.max_bad, "talk": self.talk}
        with contextlib.closing(self):
            return read_pixels(self.source, size=self.size, load=self._load, **how)

    def close(self) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)
        self.cache.close()


def open_pixels(
    source: Source,
    *,
    size: int,
    workers: int,
    max_bad: float,
    talk: Talk,
    folder: str | None = None,
    limit_gb: float | None = None,
    interpolation: str = "bicubic",
) -> Pixels:
    """Open the images of `source`: decoded now if they are few (see SMALL), else on demand.

    Args:
        size, workers, max_bad, interpolation: see `read_pixels`.
        folder: the cache of decoded images; see `cache.cache_folder`.
        limit_gb: how much all entries in `folder` may take; 0 disables the cache; None for the default, `cache.MOST`.

    Raises:
        DataError: if there are no images. If too many are unreadable, it is raised here for few images, else by `take`.
    """
    how: dict[str, Any] = {"size": size, "interpolation": interpolation, "talk": talk}
    if is_small(source, size):
        return read_pixels(source, workers=workers, max_bad=max_bad, **how)
    cache = open_cache(source, folder=folder, limit_gb=limit_gb, **how)
    return OnDemand(source, cache, workers=workers, max_bad=max_bad, **how)


def is_small(source: Source, size: int) -> bool:
    """Return whether pixels are few, or decoded already. They are then kept in memory, and pretraining moves them to
    its GPU. The largest named set, STL-10, has 2.9 GB."""
    whole = source.source if isinstance(source, Subset) else source
    return isinstance(whole, Array) or len(source) * size * size * 3 <= SMALL


def read_pixels(
    source: Source,
    *,
    size: int,
    workers: int,
    max_bad: float | None,
    talk: Talk,
    interpolation: str = "bicubic",
    load: Load | None = None,
) -> InMemory:
    """Decode the centre square of every image of `source` to `size` pixels, with `workers` threads.

    Args:
        max_bad: the share of unreadable images above which reading stops, 0 to 1; None if all may be unreadable.
        interpolation: see `augment.Preprocessing`.
        load: reads images in another way than decoding them.

    Raises:
        DataError: if there are no images, too many are unreadable, or neither memory nor disk has room.
    """
    whole, rows = (source.source, source.indices) if isinstance(source, Subset) else (source, None)
    if isinstance(whole, Array) and whole.pixels.shape[1:] == (size, size, 3):
        ready = whole.pixels if rows is None else whole.pixels[rows]
        return InMemory(source, {}, torch.from_numpy(np.require(ready, requirements=["C", "W"])))
    load = load or functools.partial(decode, source.open, interpolation)
    if not len(source):
        raise DataError("no images to read")
    pixels = allocate((len(source), size, size, 3))

    def read(chunk: range, stop: threading.Event) -> dict[int, str]:
        bad: dict[int, str] = {}
        for images in np.split(np.arange(chunk.start, chunk.stop), range(4, len(chunk), 4)):
            if not stop.is_set():
                bad |= load(images, images, pixels)
        return bad

    check = functools.partial(check_readable, source=source, max_bad=max_bad)
    unreadable = in_chunks(len(source), read, what="reading images", workers=workers, talk=talk, check=check)
    found = InMemory(source, unreadable, torch.from_numpy(pixels[: len(source) - len(unreadable)]))
    for start in range(0, len(found) if unreadable else 0, CHUNK):  # rows only move to the front, so none is lost
        rows = found.kept[start : start + CHUNK]
        pixels[start : start + len(rows)] = pixels[rows]
    return found


def decode(
    opened: Callable[[int], Image.Image],
    interpolation: str,
    images: NDArray[np.int64],
    places: NDArray[np.int64],
    pixels: NDArray[np.uint8],
) -> dict[int, str]:
    """Decode images into `pixels[places]`, uint8 [N, S, S, 3]; return the unreadable ones and why."""
    bad: dict[int, str] = {}
    for index, place in zip(images.tolist(), places.tolist(), strict=True):
        try:
            with opened(index) as image:
                pixels[place] = decode_square(image, pixels.shape[1], interpolation)
        except UnreadableImage as error:
            bad[index] = str(error)
    return bad


def bad_files(unreadable: dict[int, str], source: Source) -> list[BadFile]:
    return [BadFile(source.names[index], reason) for index, reason in sorted(unreadable.items())]


def check_readable(unreadable: dict[int, str], source: Source, max_bad: float | None) -> None:
    """Raise DataError if more than `max_bad` of the images of a source, if not None, or all of them are unreadable."""
    if max_bad is not None and (len(unreadable) > max_bad * len(source) or len(unreadable) == len(source)):
        raise too_many(bad_files(unreadable, source), len(source), max_bad)
