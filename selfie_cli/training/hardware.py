"""This machine: its cores and devices, and micro-batch, precision and speed of a training step on it."""

import contextlib
import ctypes
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch

from selfie_cli.data.batches import Batch
from selfie_cli.data.memory import available_memory
from selfie_cli.errors import TrainingError, UsageError, is_out_of_memory
from selfie_cli.talk import Talk, counted
from selfie_cli.training.distributed import environment, group
from selfie_cli.training.step import Step, halved, reason_of, undone

T = TypeVar("T")
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # glibc's malloc.h
FEW = 8  # images of the first trial step, whose time decides how many images are timed
WARM_UP = 3
"""Steps of a compiled network that are not timed: they compile it, and with CUDA graphs warm up and record them."""


def num_cores() -> int:
    """Cores for this process: OMP_NUM_THREADS if it is set, else its affinity within its control group's quota.

    Processes that torchrun started on one machine share the cores evenly. A 1 is ignored for them, because torchrun
    sets OMP_NUM_THREADS to 1 if it is unset.
    """
    processes = environment().local_world
    asked = os.environ.get("OMP_NUM_THREADS", "")
    if asked.isdigit() and not (processes > 1 and asked == "1"):
        return max(1, int(asked))
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min([cores, *quotas(Path("/sys/fs/cgroup"))]) // processes)


def quotas(mount: Path) -> Iterator[int]:
    """Cores that the control group allows (version 2 or 1), as a container sees it."""
    for files in (["cpu.max"], ["cpu/cpu.cfs_quota_us", "cpu/cpu.cfs_period_us"]):
        with contextlib.suppress(OSError, ValueError):
            quota, period = (int(word) for file in files for word in (mount / file).read_text().split())
            if quota > 0:
                yield max(1, round(quota / period))


def bf16_pays(device: torch.device) -> bool:
    """Whether `device` multiplies bf16 in hardware: CUDA from compute capability 8, CPUs with AVX-512 BF16 or AMX."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return device.type == "cpu" and bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def prepare(device: str, *, deterministic: bool = False) -> torch.device:
    """Return the device to work on, and set torch's threads to the cores.

    `deterministic` forbids kernels that differ from run to run. On GPUs, joins the other processes of the job. Raises
    UsageError for a device that is missing.
    """
    if deterministic != torch.are_deterministic_algorithms_enabled():  # to set it, torch imports its compiler
        torch.use_deterministic_algorithms(deterministic)
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when cuBLAS is first used
    torch.set_num_threads(num_cores())
    keep_freed_memory()
    there = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    name = next(d for d in ("cuda", "mps", "cpu") if there[d]) if device == "auto" else device
    if not there[name]:
        raise UsageError(f"--device {name}: torch {torch.__version__} finds no such device: leave it out, or use cpu")
    if name != "cuda":
        return torch.device(name)
    torch.backends.cudnn.benchmark = not deterministic  # shapes stay the same
    here = group()
    gpu = torch.device(name, here.local_rank % torch.cuda.device_count())  # Slurm may show each process only one
    gpus = here.gather(str(torch.cuda.get_device_properties(gpu).uuid))
    if len(set(gpus)) < len(gpus):
        raise UsageError(
            f"{len(gpus)} processes were started for {counted(len(set(gpus)), 'GPU')}: give torchrun a smaller "
            "--nproc-per-node"
        )
    return gpu


def keep_freed_memory() -> None:
    """Let glibc keep freed memory for the next step: otherwise the system zeroes the pages of large blocks each time,
    which costs a tenth of a step on a CPU. Without glibc nothing happens."""
    with contextlib.suppress(OSError, AttributeError, TypeError):
        libc = ctypes.CDLL(None)
        libc.mallopt(M_MMAP_THRESHOLD, 2**30)
        libc.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)


def compiles(asked: str, device: torch.device, *, deterministic: bool) -> bool:
    """Whether to compile: as asked, else on CUDA. Raises UsageError for a deterministic run that asks for it."""
    if deterministic and asked == "on":
        raise UsageError("--compile on chooses kernels by measured speed: leave it out with --deterministic")
    return asked == "on" or (asked == "auto" and device.type == "cuda" and not deterministic)


def precisions(device: torch.device, asked: str, *, deterministic: bool = False) -> list[str]:
    """Precisions to try: the one asked for, else bf16 on CUDA, else fp32. On a CPU with bf16, both are tried, unless
    the choice must not depend on speed."""
    if asked != "auto":
        return [asked]
    if device.type == "cuda":
        return ["bf16"] if bf16_pays(device) else ["fp32"]
    return ["fp32", "bf16"] if bf16_pays(device) and not deterministic else ["fp32"]


def micro_batch_for(step: Step, batch: Batch) -> int:
    """The micro-batch: all images of a batch, halved until the backward pass fits into half of the free memory.

    Measured on the first images of `batch`, which is on the device; the module does not change.
    """
    # Weights take the same bytes for two images as for four, so the difference comes from the images.
    # Batch norm in a projector needs two images.
    few, fewer = (tuple(tensor[:count] for tensor in batch) for count in (4, 2))
    difference = bytes_for_backward(step, few) - bytes_for_backward(step, fewer)
    an_image = max(1, difference) / max(1, len(few[0]) - len(fewer[0]))
    weights = sum(parameter.numel() * 4 for parameter in step.module.parameters() if parameter.requires_grad)
    on_gpu = step.device.type == "cuda"
    free = torch.cuda.mem_get_info(step.device)[0] if on_gpu else available_memory() // step.group.local_world
    room = free / 2 - 4 * weights
    micro = batch_size = len(batch[0])
    while micro * an_image > room and (smaller := halved(micro, batch_size, step.smallest)):
        micro = smaller
    return min(step.group.gather(micro))


def bytes_for_backward(step: Step, batch: Batch) -> int:
    """Bytes that the forward pass of `batch` keeps for the backward pass, weights included; nothing else changes."""
    bytes_of: dict[int, int] = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        bytes_of[storage.data_ptr()] = storage.nbytes()
        return tensor

    with undone(step), torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor), step.autocast():
        step.module.train()
        step.task.loss(*step.task.augment(*batch))
    return sum(bytes_of.values())


def fit(step: Step, batch: Batch, tried: list[str], talk: Talk) -> float:
    """Set `step` to the fastest of the precisions `tried`, and to eager mode if compiling fails. The weights stay.

    Returns the seconds per step of `batch`, which is on the device: the longest among processes.
    """
    seconds = {}
    for precision in tried:
        step.precision = precision
        seconds[precision] = tried_out(step, lambda: seconds_a_step(step, batch), talk)
    seconds = {precision: max(step.group.gather(each)) for precision, each in seconds.items()}
    step.precision = min(seconds, key=lambda precision: seconds[precision])
    if len(seconds) > 1:
        speeds = " and ".join(f"{len(batch[0]) / each:,.0f} images/s in {name}" for name, each in seconds.items())
        talk.say(f"precision {step.precision}: measured {speeds}")
    return seconds[step.precision]


@dataclass(frozen=True)
class Pace:
    """Seconds per step: `first` for the first `count` steps, which decode their images, `later` for the rest."""

    later: float
    first: float = 0.0
    count: int = 0

    def seconds(self, steps: int) -> float:
        return min(steps, self.count) * self.first + max(0, steps - self.count) * self.later

    def steps(self, seconds: float) -> int:
        """Number of steps that fit into `seconds`, at least one."""
        early = self.count * self.first
        return max(1, int(seconds / self.first if seconds < early else self.count + (seconds - early) / self.later))


def warm_up(step: Step, batch: Batch, talk: Talk) -> None:
    """Take a few steps before a run is resumed, and undo them.

    They compile the step, if it can be; and DistributedDataParallel orders its buckets as in a run that was never
    stopped, so that sums have the same order.
    """
    if step.compiled or step.group.world > 1:
        batch = step.on_device(batch)
        tried_out(step, lambda: [timed(step, batch) for _ in range(WARM_UP)], talk)


def tried_out(step: Step, trial: Callable[[], T], talk: Talk) -> T:
    """Return `trial()` and undo its steps. If compiling fails, call it again without."""
    with undone(step):
        step.module.train()
        try:
            return trial()
        except TrainingError:
            raise
        except Exception as error:
            if torch.are_deterministic_algorithms_enabled() and "deterministic" in str(error):
                raise TrainingError(f"--deterministic is not possible here: {reason_of(error)}") from None
            if not step.compiled or is_out_of_memory(error):
                raise
            talk.warn(f"torch.compile does not work here, continuing without it ({reason_of(error)})")
            step.stop_compiling()
            return trial()


def seconds_a_step(step: Step, batch: Batch) -> float:
    """Mean time of two to ten steps, about five seconds in total if possible, after warm-up steps.

    On a CPU, where time grows with the number of images, a part of a large batch is timed.
    """
    part = batch
    alone = step.group.world == 1  # all processes of a job must take as many steps
    if alone and step.device.type == "cpu" and not step.compiled:
        few = first_rows(batch, FEW, step.micro_batch)
        timed(step, few)
        part = first_rows(batch, int(FEW / timed(step, few)), step.micro_batch)  # about a second
    for _ in range(WARM_UP if step.compiled else 1):
        timed(step, part)
    times: list[float] = []
    while len(times) < 2 or (alone and len(times) < 10 and sum(times) < 5):
        times.append(timed(step, part))
    return sum(times) / len(times) * len(batch[0]) / len(part[0])


def first_rows(batch: Batch, count: int, micro_batch: int) -> Batch:
    """About `count` rows, at least FEW, in whole micro-batches: batch norm needs more than one image."""
    count = max(FEW, count)
    count -= count % micro_batch if count > micro_batch else 0
    return tuple(tensor[:count] for tensor in batch)


def timed(step: Step, batch: Batch) -> float:
    start = time.perf_counter()
    step(batch, 0.5)
    if step.device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def duration(seconds: float) -> str:
    """'45 s', '12 min', '3 h 20 min'."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"
