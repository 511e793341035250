"""Several processes as one job. torchrun starts them and describes them in the environment.

Each process sees the same order of images, the same random numbers and the same decisions, works on its own part of
each batch, and averages gradients with the others. The first process alone writes and talks.

If one process ends, the others end, too: gloo notices at once, and torchrun ends the rest. If one hangs, the process
group's time-out ends those that wait for it.
"""

import atexit
import contextlib
import datetime
import functools
import os
import shlex
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.rendezvous import rendezvous

from selfie_cli.data.memory import allocate, shared_memory
from selfie_cli.data.pixels import InMemory, Pixels
from selfie_cli.data.sources import Source
from selfie_cli.errors import UsageError

T = TypeVar("T")

SHARED_MEMORY = 256 * 2**20
"""Bytes of /dev/shm that NCCL may need for the processes of a node; Docker gives 64 MB by default."""
TIMEOUT = datetime.timedelta(hours=1)
"""Time-out of the process group, long enough for the first process to write to a slow disk."""


@dataclass(frozen=True)
class Group:
    """This process's rank among `world` processes; `local_rank` and `local_world` count those on this machine."""

    rank: int = 0
    world: int = 1
    local_rank: int = 0
    local_world: int = 1

    def resume_command(self, verb: str, run: Path) -> str:
        """The command that resumes a run. With several machines, the user completes it."""
        nodes = f"--nnodes {self.world // self.local_world} ... " if self.world > self.local_world else ""
        program = f"torchrun {nodes}--nproc-per-node {self.local_world} -m selfie_cli"
        return f"{'selfie' if self.world == 1 else program} {verb} --resume {shlex.quote(str(run))}"

    @property
    def first(self) -> bool:
        """Whether this is the process that writes and talks."""
        return self.rank == 0

    def part(self, size: int) -> slice:
        """This process's rows of a batch of `size`, which is a multiple of `world`."""
        each = size // self.world
        return slice(self.rank * each, (self.rank + 1) * each)

    def from_first(self, value: T) -> T:
        """Return the first process's `value` in all processes."""
        box = [value]
        if self.world > 1:
            dist.broadcast_object_list(box, src=0)
        return box[0]

    def copied_from_first(self, tensor: Tensor) -> Tensor:
        """Copy the first process's `tensor`, contiguous, into those of the others, which have the same shape."""
        if self.world > 1:
            dist.broadcast(tensor, src=0)
        return tensor

    def gather(self, value: T) -> list[T]:
        """Return the values of all processes in each of them, by rank."""
        values: list[Any] = [value] * self.world
        if self.world > 1:
            dist.all_gather_object(values, value)
        return values

    def mean(self, values: dict[str, float]) -> dict[str, float]:
        """The mean over processes of each value."""
        each = self.gather(values)
        return {name: sum(one[name] for one in each) / self.world for name in values}

    def wait(self) -> None:
        """Wait until all processes are here."""
        if self.world > 1:
            dist.barrier()


def environment() -> Group:
    """The group that torchrun's environment variables describe, not joined yet. Raises UsageError if one is missing."""
    if os.environ.get("WORLD_SIZE", "1") in ("", "1"):
        return Group()
    try:
        return Group(*(int(os.environ[name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")))
    except (KeyError, ValueError):
        raise UsageError(
            "WORLD_SIZE is set and not 1, but RANK, LOCAL_RANK and LOCAL_WORLD_SIZE are missing or invalid: start the "
            "processes with torchrun, or unset WORLD_SIZE"
        ) from None


def check_processes(derived: dict[str, Any]) -> None:
    """Raises UsageError if a run was started with other processes, or its batch cannot be divided among them."""
    world = group().world
    if derived.get("processes", world) != world:
        raise UsageError(
            f"this run was started with {derived['processes']} processes, not {world}: resume it with as many"
        )
    if derived["batch_size"] % world:
        raise UsageError(f"a batch of {derived['batch_size']} cannot be divided among {world} processes evenly")


@functools.cache
def group() -> Group:
    """This process's group, joined at the first call: gloo between CPUs, NCCL between GPUs.

    Raises UsageError if the environment is incomplete or shared memory is too small for NCCL, DistError if other
    processes do not join.
    """
    here = environment()
    if here.world == 1:
        return here
    if torch.cuda.is_available() and here.local_world > 1:
        check_shared_memory(here.local_world)
        torch.cuda.set_device(here.local_rank % torch.cuda.device_count())
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    store, _, _ = next(rendezvous("env://", here.rank, here.world, timeout=TIMEOUT))
    # When torchrun restarts a job, its store still holds the addresses of the processes that have ended.
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", 0)
    store = dist.PrefixStore(f"selfie/{attempt}", store)  # type: ignore[attr-defined]
    with stdout_closed():
        dist.init_process_group(backend, store=store, rank=here.rank, world_size=here.world, timeout=TIMEOUT)
    atexit.register(leave_group)
    return here


def decoded_once(source: Source, opened: Callable[[], Pixels]) -> InMemory:
    """Give all processes the pixels of `source`: the first one decodes what `opened` returns, and sends it on."""
    here = group()
    first = opened().in_memory() if here.first else None
    shape, unreadable = here.from_first((first.pixels.numpy().shape, first.unreadable) if first else ((0, 0, 0, 0), {}))
    pixels = here.copied_from_first(first.pixels if first else torch.from_numpy(allocate(shape)))
    return first or InMemory(source, unreadable, pixels)


def leave_group() -> None:
    """Leave the process group, if it was joined, before Python ends: its threads do not survive that."""
    if dist.is_initialized():
        dist.destroy_process_group()


@contextlib.contextmanager
def stdout_closed() -> Iterator[None]:
    """Discard what C++ prints: in torch 2.9, gloo reports its connections on stdout, where results go."""
    results = os.dup(1)
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 1)
    try:
        yield
    finally:
        os.dup2(results, 1)
        os.close(results)


def is_lost_process(error: Exception) -> bool:
    """Whether another process of this job cannot be reached. Within a backward pass, gloo's errors have no type."""
    return isinstance(error, dist.DistError) or "gloo" in str(error)


def check_shared_memory(processes: int) -> None:
    """Raise UsageError if /dev/shm is too small for this many processes: NCCL would fail later, without a reason."""
    size = shared_memory()
    if size is not None and size < SHARED_MEMORY:
        raise UsageError(
            f"/dev/shm has {size // 2**20} MB, too few for {processes} processes on GPUs: start the container with "
            "--shm-size=1g or --ipc=host"
        )


class AllGather(torch.autograd.Function):
    """All processes' rows; gradients flow back to the process that each row came from, summed over all."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, here: Group) -> Tensor:
        ctx.here = here
        all_rows = rows.new_empty(here.world * len(rows), *rows.shape[1:])
        gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor  # its older name
        gather(all_rows, rows.contiguous())
        return all_rows

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        gradient = gradient.contiguous()
        dist.all_reduce(gradient)
        return gradient[ctx.here.part(len(gradient))], None


def of_all_processes(rows: Tensor, here: Group) -> tuple[Tensor, int]:
    """The rows [B, D] of all processes of the group, [B * world, D], by rank, and the index of this process's first.

    Differentiable. With the gradients of all processes averaged, as in training, the mean of their losses has the
    gradient that it would have in one process.
    """
    if here.world == 1:
        return rows, 0
    everyone: Tensor = AllGather.apply(rows, here)
    return everyone, here.rank * len(rows)
