"""Several processes as one job. torchrun starts them and says so in the environment; without it, this is a job of one.

Every process sees the same order of images, the same random numbers and the same decisions, works on its own part of
each batch, and averages gradients with the others. The first one alone writes and talks.

Where one ends, the others do: gloo notices at once, torchrun tells those on the same machine, and whoever falls silent,
stopped or on a machine that is gone, is missed after a while (`Heart`).
"""

import atexit
import contextlib
import datetime
import os
import shlex
import signal
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.rendezvous import rendezvous

from selfie_cli.data import guard
from selfie_cli.data.memory import shared_memory
from selfie_cli.errors import UsageError
from selfie_cli.talk import printable

T = TypeVar("T")

SHARED_MEMORY = 256 * 2**20
"""Bytes of /dev/shm that NCCL may want for the processes of a node; Docker gives 64 MB unless it is told otherwise."""
BEAT = 5.0
"""Seconds between two signs of life."""
SILENCE = 120.0
"""Seconds after which a process counts as lost; no honest one keeps Python's lock for that long."""
ARRIVAL = datetime.timedelta(minutes=30)
"""For all processes to have loaded torch, from a slow disk maybe, and to have met."""
PATIENCE = datetime.timedelta(hours=2)
"""With a process that lives and keeps others waiting: the first one writes, another one's disk is slow."""


@dataclass(frozen=True)
class Group:
    """This process among `world`; `local_rank` and `local_world` count those on this machine."""

    rank: int = 0
    world: int = 1
    local_rank: int = 0
    local_world: int = 1

    def resume_command(self, verb: str, run: Path) -> str:
        """What a user types to go on with a run; with several machines, some of it is theirs to fill in."""
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

    def share_buffers(self, module: nn.Module) -> None:
        """Give `module` the first process's statistics, where batch norm was not synchronized."""
        if self.world > 1:
            for buffer in module.buffers():
                dist.broadcast(buffer, src=0)


def environment() -> Group:
    """What torchrun says, without joining the others. Raises UsageError if it is incomplete or cannot be."""
    if os.environ.get("WORLD_SIZE", "1") in ("", "1"):
        return Group()
    try:
        rank, world, local_rank, local_world = (
            int(os.environ[name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
        )
        if not (0 <= rank < world and 0 <= local_rank < local_world <= world):
            raise ValueError("no such process")
    except (KeyError, ValueError):
        raise UsageError(
            "WORLD_SIZE is set and not 1, so this is one of several processes, but RANK, LOCAL_RANK and "
            "LOCAL_WORLD_SIZE do not say which: start them with torchrun, or unset WORLD_SIZE"
        ) from None
    return Group(rank, world, local_rank, local_world)


_joined: Group | None = None


def group() -> Group:
    """This process's group, joined when first asked for: gloo between CPUs, NCCL between GPUs.

    Raises UsageError if the environment is incomplete or cannot be, or shared memory is too small for NCCL.
    """
    global _joined
    if _joined is None:
        _joined = join(environment())
    return _joined


def join(here: Group) -> Group:
    """Meet the other processes. Raises UsageError as `group` does."""
    global _heart
    if here.world == 1:
        return here
    if torch.cuda.is_available() and here.local_world > 1:
        check_shared_memory(here.local_world)
        torch.cuda.set_device(here.local_rank % torch.cuda.device_count())
    _heart = Heart(here)
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    with stdout_closed():
        dist.init_process_group(backend, store=connected(here), rank=here.rank, world_size=here.world, timeout=PATIENCE)
    with contextlib.suppress(ValueError):  # not in the main thread: whoever runs us there handles signals
        stopped = "stopped, as torchrun was, or as another process of this job has ended"
        signal.signal(signal.SIGTERM, lambda number, frame: end(here.rank, stopped, 128 + number))
    atexit.register(leave, well=False)
    return here


def connected(here: Group) -> Any:
    """A new connection to the store in which processes meet.

    torchrun keeps it when it starts a job again, with the addresses of processes that are no more. Raises UsageError if
    the environment does not say where it is, DistError if nothing answers there.
    """
    try:
        store, _, _ = next(rendezvous("env://", here.rank, here.world, timeout=ARRIVAL))
    except ValueError:
        raise UsageError(
            "MASTER_ADDR and MASTER_PORT do not say where the processes of this job meet: start them with torchrun"
        ) from None
    return dist.PrefixStore(f"selfie/{os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}", store)  # type: ignore[attr-defined]


@contextlib.contextmanager
def stdout_closed() -> Iterator[None]:
    """Within, nothing is printed, by C++ either: in torch 2.9 Gloo tells of its connections there, among results."""
    results = os.dup(1)
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 1)
    try:
        yield
    finally:
        os.dup2(results, 1)
        os.close(results)


def leave(*, well: bool = True) -> None:
    """Part from the other processes; `well` where all work is done, so that nobody misses this one."""
    global _heart
    if _heart is not None:
        with contextlib.suppress(ValueError):
            signal.signal(signal.SIGTERM, signal.SIG_DFL)  # all has been said
        _heart.stop(well=well)
        dist.destroy_process_group()
        _heart = None


class Heart:
    """Tells the other processes of a job that this one lives, and ends it where another one does not.

    Two threads, as the store that they meet in may itself be what no longer answers. Silence is counted in beats, and
    not by a clock: a job that was paused as a whole goes on.
    """

    def __init__(self, here: Group) -> None:
        """Wait for the others to arrive. Raises as `connected` does."""
        self.rank = here.rank
        self.parent = os.getppid() if "TORCHELASTIC_RUN_ID" in os.environ else None
        self.store = connected(here)
        self.keys = [str(rank) for rank in range(here.world)]
        self.unheard = [0] * here.world
        self.stopped = threading.Event()
        self.well = False
        self.store.add(self.keys[self.rank], 1)
        self.store.wait(self.keys, ARRIVAL)
        self.beating = threading.Thread(target=self.beat, daemon=True)
        self.beating.start()
        threading.Thread(target=self.listen, daemon=True).start()

    def stop(self, *, well: bool) -> None:
        self.well = well
        self.stopped.set()
        self.beating.join(timeout=BEAT)

    def beat(self) -> None:
        before = [b""] * len(self.keys)
        while not self.stopped.wait(BEAT):
            with contextlib.suppress(RuntimeError):  # the store is gone, and with it all that others say
                self.store.add(self.keys[self.rank], 1)
                now = self.store.multi_get(self.keys)
                for rank, (one, other) in enumerate(zip(before, now, strict=True)):
                    if one != other or other == b"left":
                        self.unheard[rank] = 0
                before = now
        if self.well:
            with contextlib.suppress(RuntimeError):
                self.store.set(self.keys[self.rank], "left")

    def listen(self) -> None:
        while not self.stopped.wait(BEAT):
            if self.parent not in (None, os.getppid()):
                # torchrun has been killed: as if it had asked us to stop. Who cannot is missed, or misses the others.
                os.kill(os.getpid(), signal.SIGTERM)
                self.parent = None
            self.unheard = [beats + 1 for beats in self.unheard]
            lost = [rank for rank, beats in enumerate(self.unheard) if beats * BEAT > SILENCE and rank != self.rank]
            if lost:
                which = ", ".join(map(str, lost))
                end(self.rank, f"process {which} of this job has not answered for {SILENCE:.0f} seconds", 1)


_heart: Heart | None = None
_resume_command = ""


def remember(command: str) -> None:
    """How to resume the run at work, for when this job ends before its time."""
    global _resume_command
    _resume_command = command


def ended(what: str) -> str:
    """What happened, and what the user may do about it."""
    return f"{what}. {f'Go on with: {_resume_command}' if _resume_command else 'Start it again'}"


def end(rank: int, what: str, code: int) -> NoReturn:
    """End this process now, whatever its threads wait for. Temporary files are left as after a kill."""
    with contextlib.suppress(OSError):  # nobody may be reading
        print(f"error: process {rank}: {printable(ended(what))}", file=sys.stderr, flush=True)
    guard.dismiss()
    os._exit(code)


def loss(error: Exception) -> str | None:
    """What to tell the user of an error by which other processes cannot be reached, None for any other.

    Within a backward pass, gloo's errors have no type. torchrun's SIGTERM comes next, and has nothing to add.
    """
    if not (isinstance(error, dist.DistError) or "gloo" in str(error)):
        return None
    with contextlib.suppress(ValueError):
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
    return ended("another process of this job has ended, see what it said")


def check_shared_memory(processes: int) -> None:
    """Raises UsageError if /dev/shm is too small for this many processes, which NCCL would find out in the middle."""
    size = shared_memory()
    if size is not None and size < SHARED_MEMORY:
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
        gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor  # its older name
        gather(all_rows, rows.contiguous())
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
