"""The length of a training, its learning rate, its seeds, and the order of its images."""

import math
import re

import numpy as np
import torch
from torch import Tensor

from selfie_cli.data.splits import permutation
from selfie_cli.errors import UsageError

MOST_SECONDS = 1e9  # of a budget: 30 years


def cosine_with_warmup(step: int, *, total: int, warmup: int) -> float:
    """Share of the maximum learning rate at a step (0-based): linear over `warmup` steps, then a cosine to 0.

    A run shorter than two warm-ups warms up over half of its length.
    """
    warmup = min(warmup, total // 2)
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, total - warmup)))


def check_length(*, steps: int | None, epochs: float | None, budget: str | None, deterministic: bool = False) -> None:
    """Raise UsageError for more than one length, a budget that is no time, or a budget in a deterministic run."""
    if budget is not None and deterministic:
        raise UsageError("--budget depends on measured speed: with --deterministic give --steps")
    if sum(length is not None for length in (steps, epochs, budget)) > 1:
        raise UsageError("give one length: --steps, --epochs or --budget")
    if budget is not None:
        budget_seconds(budget)


def num_steps(*, steps: int | None, epochs: float | None, num_images: int, batch_size: int) -> int:
    """Length in steps: as asked, or 100 epochs but at least 2,000 and at most 120,000 steps."""
    if steps is not None:
        return steps
    if epochs is not None:
        return max(1, round(epochs * num_images / batch_size))
    return min(120_000, max(2_000, round(100 * num_images / batch_size)))


def budget_seconds(budget: str) -> float:
    """'90s', '20m', '2h' or '1.5h' in seconds."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([smh])\s*", budget)
    found = float(match[1]) * {"s": 1, "m": 60, "h": 3600}[match[2]] if match else 0
    if not 0 < found <= MOST_SECONDS:
        raise UsageError(f"--budget {budget[:30]!r}: expected a time such as 90s, 20m or 2h")
    return found


def step_seed(seed: int, step: int, rank: int = 0) -> int:
    """A 63-bit seed for the random numbers of one step in one process."""
    return int(np.random.SeedSequence([seed, step, *([rank] if rank else [])]).generate_state(1, np.uint64)[0] >> 1)


def step_generator(seed: int, step: int) -> torch.Generator:
    """For the random numbers of the images of one step, the same in all processes."""
    return torch.Generator().manual_seed(step_seed(seed, step))


WINDOW = 32  # blocks whose images are shuffled together
IMAGE_ORDER = 2
"""Version of the order below, kept in a run's config: a run is resumed in the order in which it was started."""


class SampleOrder:
    """The images of each step: in each epoch a new shuffle of all images, cut into whole batches.

    A function of (seed, step), so a run can be resumed anywhere. No image is in a batch twice: images left over at the
    end of an epoch, fewer than a batch, wait for the next one. A set smaller than a batch comes several times in it,
    each image equally often.

    With `block` > 1, for images that are read from a stream, `batch` gives the part of process `rank` of `world`. An
    epoch shuffles blocks of neighbours, deals them out, and shuffles the images of 32 blocks of a process at a time.
    Within an epoch no image comes twice, in any process, and all processes have the same number of images, so that
    their epochs end at the same step. With more than one process, fewer than 2 x (`world` - 1) blocks are left out,
    different ones in each epoch. Blocks are smaller where a process would have fewer than 32 of them, or less than a
    batch.

    Version 1, in which older runs are resumed, leaves the shuffle to numpy and cuts batches across epochs.
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
        """`batch_size` is that of all processes together. Raises ValueError if they cannot share it equally."""
        self.streamed = block > 1
        self.num_images = num_images
        self.seed = seed
        self.version = version
        self.rank, self.world = (rank, world) if self.streamed else (0, 1)
        if batch_size % self.world or num_images < self.world:
            raise ValueError(f"{self.world} processes cannot share {num_images} images in batches of {batch_size}")
        self.batch_size = batch_size // self.world
        self._cut_blocks(max(1, min(block, num_images // (WINDOW * self.world))))
        if self.epoch_length < self.batch_size and version > 1:
            self._cut_blocks(1)
        self.window = WINDOW * self.block if self.streamed else num_images
        self._epoch = self._number = -1
        self._order = self._images = np.empty(0, dtype=np.int64)

    def _cut_blocks(self, block: int) -> None:
        self.block, self.num_blocks = block, -(-self.num_images // block)
        # The length for a process with the fewest blocks, the last one among them, which may be cut short.
        self.epoch_length = self.num_blocks // self.world * block - (self.num_blocks * block - self.num_images)

    def batch(self, step: int) -> Tensor:
        """Indices of the images of a step: int64 [batch_size], or [batch_size / world] where `block` > 1."""
        position = step * self.batch_size
        if self.version > 1 and (batches := self.epoch_length // self.batch_size):
            position += step // batches * (self.epoch_length % self.batch_size)
        end = position + self.batch_size
        parts = []
        while position < end:
            epoch, offset = divmod(position, self.epoch_length)
            number, offset = divmod(offset, self.window)
            parts.append(self._shuffled(epoch, number)[offset : offset + end - position])
            position += len(parts[-1])
        return torch.from_numpy(np.concatenate(parts))

    def _shuffled(self, epoch: int, number: int) -> np.ndarray:
        """The images of an epoch's window of that number, in the order in which they are seen."""
        if epoch != self._epoch:
            self._order = self._permutation(self.num_blocks, self.seed, epoch, 0x0DE5)
            self._epoch, self._number = epoch, -1
        if not self.streamed:
            return self._order
        if number != self._number:
            self._images, self._number = self._window_of_blocks(number), number
        return self._images

    def _permutation(self, count: int, *key: int) -> np.ndarray:
        if self.version > 1:
            return permutation(count, *key)
        order: np.ndarray = np.random.default_rng(key).permutation(count)
        return order

    def _window_of_blocks(self, number: int) -> np.ndarray:
        mine = self._order[self.rank :: self.world]
        is_last = mine == self.num_blocks - 1
        mine = np.concatenate([mine[~is_last], mine[is_last]])  # cut short, it would shift all windows after it
        blocks = mine[number * WINDOW : (number + 1) * WINDOW]
        images = (blocks[:, None] * self.block + np.arange(self.block)).ravel()
        images = images[images < self.num_images]
        shuffled: np.ndarray = images[
            self._permutation(len(images), self.seed, self._epoch, 0x0B10C, self.rank, number)
        ]
        return shuffled[: self.epoch_length - number * self.window]
