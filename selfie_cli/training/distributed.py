"""Several processes as one job. torchrun starts them and says so in the environment; without it, this is a job of one.

Every process sees the same order of images, the same random numbers and the same decisions, works on its own part of
each batch, and averages gradients with the others. The first one alone writes and talks.
"""

import atexit
import os
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from selfie_cli.errors import UsageError

T = TypeVar("T")

SHARED_MEMORY = 256 * 2**20
"""Bytes of /dev/shm that NCCL may want for the processes of a node; Docker gives 64 MB unless it is told otherwise."""


@dataclass(frozen=True)
class Group:
    """This process among `world`; `local_rank` and `local_world` count those on this machine."""

    rank: int = 0
    world: int = 1
    local_rank: int = 0
    local_world: int = 1

    @property
    def command(self) -> str:
        """What a user types in front of a verb to start such a job."""
        return "selfie" if self.world == 1 else "torchrun ... -m selfie_cli"

    @property
    def first(self) -> bool:
        """Whether this is the process that writes and talks."""
        return self.rank == 0

    def part(self, size: int) -> slice:
        """This process's rows of a batch of `size`, which is a multiple of `world`."""
        each = size // self.world
        return slice(self.rank * each, (self.rank + 1) * each)

    def from_first(self, value: T) -> T:
        """The first process's `value`, in all of them."""
        if self.world == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0)
        return box[0]

    def gather(self, value: T) -> list[T]:
        """The values of all processes, in all of them, by rank."""
        if self.world == 1:
            return [value]
        values: list[Any] = [None] * self.world
        dist.all_gather_object(values, value)
        return values

    def mean(self, values: dict[str, float]) -> dict[str, float]:
        """The mean over processes of each value."""
        if self.world == 1:
            return values
        together = torch.tensor(list(values.values()), dtype=torch.float64)
        dist.all_reduce(together)
        return dict(zip(values, (together / self.world).tolist(), strict=True))

    def longest(self, seconds: float) -> float:
        """The longest of what the processes took."""
        return max(self.gather(seconds))

    def highest(self, *values: int) -> list[int]:
        """For each value, the highest among the processes."""
        if self.world == 1:
            return list(values)
        together = torch.tensor(values)
        dist.all_reduce(together, dist.ReduceOp.MAX)
        return together.tolist()

    def wait(self) -> None:
        """Until all processes are here."""
        if self.world > 1:
            dist.barrier()


def environment() -> Group:
    """What torchrun says, without joining the others. Raises UsageError if it is incomplete."""
    if os.environ.get("WORLD_SIZE", "1") in ("", "1"):
        return Group()
    try:
        rank, world, local_rank, local_world = (
            int(os.environ[name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
        )
    except (KeyError, ValueError) as error:
        raise UsageError(
            f"WORLD_SIZE says that this is one of several processes, but {error} is missing: start them with torchrun"
        ) from None
    return Group(rank, world, local_rank, local_world)


_joined: Group | None = None


def group() -> Group:
    """This process's group, joined when first asked for: gloo between CPUs, NCCL between GPUs.

    Raises UsageError if the environment is incomplete, or shared memory is too small for NCCL.
    """
    global _joined
    if _joined is None:
        _joined = join(environment())
    return _joined


def join(here: Group) -> Group:
    """Meet the other processes. Raises UsageError as `group` does."""
    if here.world == 1:
        return here
    if torch.cuda.is_available() and here.local_world > 1:
        check_shared_memory(here.local_world)
        torch.cuda.set_device(here.local_rank % torch.cuda.device_count())
    dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo")
    atexit.register(leave)
    return here


def leave() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()


def check_shared_memory(processes: int) -> None:
    """Raises UsageError if /dev/shm is too small for this many processes, which NCCL would find out in the middle."""
    try:
        status = os.statvfs("/dev/shm")
    except (OSError, AttributeError):  # no such thing here
        return
    size = status.f_frsize * status.f_blocks
    if size < SHARED_MEMORY:
        raise UsageError(
            f"/dev/shm has {size // 2**20} MB, too few for {processes} processes on GPUs: start the container with "
            "--shm-size=1g or --ipc=host"
        )


class _Everyone(torch.autograd.Function):
    """All processes' rows; gradients flow back to the process that each row came from, summed over all."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, here: Group) -> Tensor:
        ctx.here = here
        all_rows = rows.new_empty(here.world * len(rows), *rows.shape[1:])
        dist.all_gather_into_tensor(all_rows, rows.contiguous())
        return all_rows

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        gradient = gradient.contiguous()
        dist.all_reduce(gradient)
        return gradient[ctx.here.part(len(gradient))], None


def of_all_processes(rows: Tensor, here: Group) -> tuple[Tensor, int]:
    """The rows [B, D] of all processes of the group, [B * world, D], by rank, and where this process's begin.

    Differentiable. With the gradients of all processes averaged, as in training, the mean of their losses has the
    gradient that it would have in one process.
    """
    if here.world == 1:
        return rows, 0
    everyone: Tensor = _Everyone.apply(rows, here)
    return everyone, here.rank * len(rows)
