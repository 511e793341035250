"""The next batches, made while the current one is computed with."""

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from typing import Self

import torch
from torch import Tensor

from selfie_cli.data.threads import thread_pool

Batch = tuple[Tensor, ...]


class ReadAhead:
    """Calls `batch_of` for the next steps in a thread of its own; use it as a context manager.

    At most `depth` batches are waiting besides the one in hand. What `batch_of` raises is raised for the step it was
    called for.

    end: steps from here on are made only when asked for; None where it is not known yet. It may be set at any time.
    """

    def __init__(
        self,
        batch_of: Callable[[int], Batch],
        *,
        depth: int = 2,
        device: torch.device | None = None,
        end: int | None = None,
    ) -> None:
        """device: a GPU, for which batches are put into page-locked memory: it copies from there while it computes."""
        self.end = end
        self._batch_of = batch_of
        self._depth = depth
        self._device = device if device is not None and device.type == "cuda" else None
        self._ahead: deque[tuple[int, Future[Batch]]] = deque()
        self._pool = thread_pool(1, "read-ahead")

    def __call__(self, step: int) -> Batch:
        """The batch of `step`; fast if the call before was for `step` - 1."""
        while self._ahead and self._ahead[0][0] != step:
            self._ahead.popleft()[1].cancel()
        last = self._ahead[-1][0] if self._ahead else step - 1
        beyond = step + self._depth + 1
        if self.end is not None:
            beyond = min(beyond, max(self.end, step + 1))
        for each in range(last + 1, beyond):
            self._ahead.append((each, self._pool.submit(self._make, each)))
        return self._ahead.popleft()[1].result()

    def _make(self, step: int) -> Batch:
        batch = self._batch_of(step)
        if self._device is None:
            return batch
        with torch.cuda.device(self._device):  # otherwise this thread would occupy the first GPU, too
            return tuple(tensor if tensor.is_cuda else tensor.pin_memory() for tensor in batch)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        """Drop what waits, and wait for the batch in the making."""
        self._ahead.clear()
        self._pool.shutdown(wait=True, cancel_futures=True)
