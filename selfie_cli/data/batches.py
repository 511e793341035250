"""Batches: the order of images, the random draws for each step, and prefetching.

Everything here is a function of (seed, step), so a run can be resumed at any step.
"""

import functools
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from typing import Self

import numpy as np
import torch
from torch import Generator, Tensor

from selfie_cli.data.splits import permutation
from selfie_cli.data.threads import thread_pool

Batch = tuple[Tensor, ...]

WINDOW = 32
"""Number of blocks whose images are shuffled together."""
IMAGE_ORDER = 2
"""Version of `SampleOrder`, stored in a run's config: a resumed run keeps the order it was started with."""
AHEAD = 2
"""Number of prefetched batches, besides the one in use."""


def step_seed(seed: int, step: int, rank: int = 0) -> int:
    """Return a 63-bit seed for the random numbers of one process in one step."""
    return int(np.random.SeedSequence([seed, step, *([rank] if rank else [])]).generate_state(1, np.uint64)[0] >> 1)


def step_generator(seed: int, step: int) -> Generator:
    """Return the generator for all images of one step, the same in all processes."""
    return torch.Generator().manual_seed(step_seed(seed, step))


class SampleOrder:
    """The images of each step: each epoch shuffles all images anew and cuts them into whole batches.

    No image is in a batch twice: the images left over at the end of an epoch, fewer than a batch, are skipped in that
    epoch. A set smaller than a batch is repeated within it, each image equally often.

    With `block` > 1, for images that are read from a stream, an epoch shuffles blocks of consecutive images, deals them
    out to the processes, and shuffles the images of 32 blocks of a process at a time. Within an epoch no image is used
    twice, and all processes have the same number of images, so their epochs end at the same step. With several
    processes, fewer than 2 x (`world` - 1) blocks are left out, different ones in each epoch. Blocks are smaller if a
    process would otherwise have fewer than 32 of them, or less than a batch.

    Version 1, kept to resume older runs, uses numpy's shuffle and cuts batches across epochs.

    batch_size: images per batch, over all processes. part: this process's rows of a batch.
    """

    def __init__(
        self,
        num_images: int,
        batch_size: int,
        seed: int,
        *,
        block: int = 1,
        rank: int = 0,
        world: int = 1,
        version: int = IMAGE_ORDER,
    ) -> None:
        """Raise ValueError if `world` processes cannot share the batch equally."""
        self.streamed = block > 1
        if batch_size % world or (self.streamed and num_images < world):
            raise ValueError(f"{world} processes cannot share {num_images} images in batches of {batch_size}")
        self.num_images, self.batch_size, self.seed, self.version = num_images, batch_size, seed, version
        self.part = slice(batch_size // world * rank, batch_size // world * (rank + 1))
        # Blocks are dealt out to the processes. Without blocks, each process orders all images and takes its part.
        self._rank, self._world = (rank, world) if self.streamed else (0, 1)
        self._num_ordered = batch_size // self._world
        self._cut_blocks(max(1, min(block, num_images // (WINDOW * self._world))))
        if self.epoch_length < self._num_ordered and version > 1:
            self._cut_blocks(1)
        self._window_length = WINDOW * self.block if self.streamed else num_images
        self._order = functools.lru_cache(maxsize=1)(self._shuffle)
        self._window = functools.lru_cache(maxsize=1)(self._take_window)

    def _cut_blocks(self, block: int) -> None:
        self.block, self._num_blocks = block, -(-self.num_images // block)
        # Images of the process with the fewest blocks, including the last block, which may be cut short.
        self.epoch_length = self._num_blocks // self._world * block - (self._num_blocks * block - self.num_images)

    def batch(self, step: int) -> Tensor:
        """Return the indices of this process's images in a step: int64 [batch_size / world]."""
        position = step * self._num_ordered
        if self.version > 1 and (batches := self.epoch_length // self._num_ordered):
            position += step // batches * (self.epoch_length % self._num_ordered)
        end = position + self._num_ordered
        parts = []
        while position < end:
            epoch, offset = divmod(position, self.epoch_length)
            number, offset = divmod(offset, self._window_length)
            parts.append(self._window(epoch, number)[offset : offset + end - position])
            position += len(parts[-1])
        indices = torch.from_numpy(np.concatenate(parts))
        return indices if self.streamed else indices[self.part]

    def _shuffle(self, epoch: int) -> np.ndarray:
        """Return the blocks of an epoch, or its images if they are not read in blocks, shuffled."""
        return self._permutation(self._num_blocks, self.seed, epoch, 0x0DE5)

    def _take_window(self, epoch: int, number: int) -> np.ndarray:
        """Return the images of one window of an epoch, shuffled."""
        order = self._order(epoch)
        if not self.streamed:
            return order
        mine = order[self._rank :: self._world]
        is_last = mine == self._num_blocks - 1
        mine = np.concatenate([mine[~is_last], mine[is_last]])  # if short, it would shift later windows
        blocks = mine[number * WINDOW : (number + 1) * WINDOW]
        images = (blocks[:, None] * self.block + np.arange(self.block)).ravel()
        images = images[images < self.num_images]
        order = self._permutation(len(images), self.seed, epoch, 0x0B10C, self._rank, number)
        shuffled: np.ndarray = images[order]
        return shuffled[: self.epoch_length - number * self._window_length]

    def _permutation(self, count: int, *key: int) -> np.ndarray:
        if self.version > 1:
            return permutation(count, *key)
        order: np.ndarray = np.random.default_rng(key).permutation(count)
        return order


def make_batches(
    order: SampleOrder, take: Callable[[Tensor], Batch], draw: Callable[[int, Generator], Iterable[Tensor]]
) -> Callable[[int], Batch]:
    """Return a function that makes this process's part of the batch of a step.

    Args:
        take: returns the images at indices, int64 [B], and tensors that go with them, such as labels.
        draw: returns the random numbers for a given number of images, as tensors with one row per image. It is called
            for the whole batch, so that the numbers do not depend on the number of processes.
    """

    def batch_of(step: int) -> Batch:
        draws = draw(order.batch_size, step_generator(order.seed, step))
        return (*take(order.batch(step)), *(each[order.part] for each in draws))

    return batch_of


class Prefetch:
    """Make the next batches in a background thread. Use it as a context manager, and call it as `batch_of`.

    An error of `batch_of` is raised when the batch of that step is requested.

    end: batches from this step on are not prefetched; None if it is not known yet. It may be set at any time.
    """

    def __init__(
        self, batch_of: Callable[[int], Batch], *, device: torch.device | None = None, end: int | None = None
    ) -> None:
        """device: a GPU to which batches are copied on a stream of its own, while it computes."""
        self.end = end
        self._batch_of = batch_of
        self._stream: torch.cuda.Stream | None = None
        if device is not None and device.type == "cuda":
            self._stream = torch.cuda.Stream(device)
            self._stream.wait_stream(torch.cuda.current_stream(device))  # pixels may still be on the way
        self._futures: dict[int, Future[Batch]] = {}
        self._pool = thread_pool(1, "prefetch")

    def __call__(self, step: int) -> Batch:
        """Return the batch of `step`; fast if the previous call was for `step` - 1."""
        last = step + AHEAD if self.end is None else min(step + AHEAD, self.end - 1)
        wanted = range(step, max(step, last) + 1)
        for other in self._futures.keys() - set(wanted):
            self._futures.pop(other).cancel()
        for each in wanted:
            if each not in self._futures:
                self._futures[each] = self._pool.submit(self._make, each)
        batch = self._futures.pop(step).result()
        if self._stream is not None:
            for tensor in batch:  # keep its memory until the work queued on it is done
                tensor.record_stream(torch.cuda.current_stream(tensor.device))
        return batch

    def _make(self, step: int) -> Batch:
        if self._stream is None:
            return self._batch_of(step)
        with torch.cuda.stream(self._stream):
            batch = tuple(tensor.to(self._stream.device, non_blocking=True) for tensor in self._batch_of(step))
        self._stream.synchronize()  # this thread waits, so that no other must
        return batch

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        """Cancel pending batches, and wait for the one being made."""
        self._pool.shutdown(wait=True, cancel_futures=True)
