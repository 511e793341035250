"""The machine as this process really has it, and how fast it takes a step."""

import contextlib
import copy
import os
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from selfie_cli.data.memory import available_memory
from selfie_cli.errors import UsageError
from selfie_cli.training.loop import Batch, LossOf

Autocast = Callable[[], contextlib.AbstractContextManager[object]]


def num_cores() -> int:
    """Cores this process may use: OMP_NUM_THREADS if it is set, else its affinity within its control group's quota."""
    if os.environ.get("OMP_NUM_THREADS", "").isdigit():
        return max(1, int(os.environ["OMP_NUM_THREADS"]))
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with contextlib.suppress(OSError, ValueError):
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        cores = min(cores, max(1, round(int(quota) / int(period))))
    return cores


def prepare(device: str, precision: str) -> tuple[torch.device, Autocast, str]:
    """The device, an autocast context for it, and the precision's name; torch's threads are set to the cores.

    Raises UsageError for a device that is not there.
    """
    torch.set_num_threads(num_cores())
    there = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    name = next(d for d in ("cuda", "mps", "cpu") if there[d]) if device == "auto" else device
    if not there[name]:
        raise UsageError(f"--device {name}: torch {torch.__version__} finds none here; leave it out, or take cpu")
    if precision == "auto":
        precision = "bf16" if name == "cuda" else "fp32"
    autocast: Autocast = contextlib.nullcontext
    if precision == "bf16":
        autocast = lambda: torch.autocast(name, torch.bfloat16)  # noqa: E731
    return torch.device(name), autocast, precision


def micro_batch_for(module: nn.Module, loss_of: LossOf, sample: Batch, batch_size: int, device: torch.device) -> int:
    """How many images may go through at once: `batch_size`, halved until what backward needs fits half of the memory.

    Measured on `sample`, a small batch on the device; the module is left as it was.
    """
    before = copy.deepcopy(module.state_dict())
    bytes_of: dict[int, int] = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        bytes_of[storage.data_ptr()] = storage.nbytes()
        return tensor

    module.train()
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        loss_of(*sample)
    module.load_state_dict(before)
    # Of the weights, backward keeps those that learn; a target network's pass through without a trace.
    weights = sum(parameter.numel() * 4 for parameter in module.parameters() if parameter.requires_grad)
    an_image = max(1, sum(bytes_of.values()) - weights) / len(sample[0])
    free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else available_memory()
    room = free / 2 - 4 * weights
    micro = batch_size
    while micro > 1 and micro * an_image > room:
        micro = -(-micro // 2)
    return micro


def seconds_a_step(
    module: nn.Module,
    loss_of: Callable[[nn.Module], LossOf],
    batch: Batch,
    micro_batch: int,
    optimizer_of: Callable[[nn.Module], torch.optim.Optimizer],
    after_step: Callable[[nn.Module], None] = lambda module: None,
) -> float:
    """Time of one training step, measured on a copy of `module` for two to ten steps, ten seconds if it can be.

    `loss_of(copy)` gives the copy's loss function, `optimizer_of(copy)` its optimizer; `after_step(copy)` follows each
    of its steps. The first step, which allocates memory, does not count.
    """
    trial = copy.deepcopy(module).train()
    loss, optimizer = loss_of(trial), optimizer_of(trial)
    times: list[float] = []
    begun = time.perf_counter()
    while len(times) < 3 or (len(times) < 11 and time.perf_counter() - begun < 10):
        start = time.perf_counter()
        for piece in zip(*(tensor.split(micro_batch) for tensor in batch), strict=True):
            loss(*piece)[0].backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        after_step(trial)
        if batch[0].device.type == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return sum(times[1:]) / len(times[1:])


def duration(seconds: float) -> str:
    """'45 s', '12 min', '3 h 20 min'."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"
