"""One training step: a batch in, weights changed; and what makes it fast or lets several processes share it."""

import contextlib
import functools
import inspect
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from selfie_cli.training.distributed import Group

Batch = tuple[Tensor, ...]
Autocast = Callable[[], contextlib.AbstractContextManager[object]]


class Task(Protocol):
    """What is trained for: a method of pretraining, or labels."""

    def augment(self, pixels: Tensor, *draws: Tensor) -> tuple[Tensor, ...]: ...

    def loss(self, *views: Tensor) -> tuple[Tensor, dict[str, Tensor]]: ...


class Forward(nn.Module):
    """`loss` as the forward pass of `module`: what DistributedDataParallel wraps and torch.compile compiles."""

    def __init__(self, module: nn.Module, loss: Callable[..., tuple[Tensor, dict[str, Tensor]]]) -> None:
        super().__init__()
        self.module = module
        self.loss = loss

    def forward(self, *views: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        return self.loss(*views)


class Step:
    """Call it with a batch of this process's images: it trains `module` on them.

    A batch is a tuple of tensors of equal length, what `task.augment` takes. One larger than `micro_batch` goes through
    in pieces whose gradients are averaged. `precision` is fp32 or bf16; `compiled` runs the loss, forward and backward,
    through torch.compile: the same maths in fewer passes over memory. `after` follows the optimizer's work, and is
    given the share of the training that is done.
    """

    def __init__(
        self,
        module: nn.Module,
        task: Task,
        optimizer: torch.optim.Optimizer,
        *,
        micro_batch: int,
        precision: str,
        compiled: bool = False,
        graphs: bool = False,
        group: Group | None = None,
        after: Callable[[float], None] = lambda done: None,
    ) -> None:
        self.module = module
        self.optimizer = optimizer
        self.task = task
        self.micro_batch = micro_batch
        self.precision = precision
        self.group = group or Group()
        self.after = after
        self.device = next(module.parameters()).device
        forward: nn.Module = Forward(module, task.loss)
        self.no_sync: Callable[[], contextlib.AbstractContextManager[object]] = contextlib.nullcontext
        if self.group.world > 1:
            # Batch norm's running statistics stay each process's own: they take no part in training.
            renamed = "forward_sync_buffers" in inspect.signature(DistributedDataParallel).parameters  # in torch 2.15
            buffers: dict[str, Any] = {"forward_sync_buffers" if renamed else "broadcast_buffers": False}
            forward = DistributedDataParallel(forward, gradient_as_bucket_view=True, **buffers)
            self.no_sync = forward.no_sync
        self.compiled = compiled
        self.graphs = graphs
        if compiled:
            # CUDA graphs spare the launches of small kernels, at the price of memory that is never given back.
            forward.compile(dynamic=False, mode="reduce-overhead" if graphs else None)
        self.forward = forward

    def leave_graphs(self) -> None:
        """Compile without CUDA graphs: gradients that are summed over pieces would lie in memory that they reuse."""
        if self.compiled and self.graphs:
            self.graphs = False
            self.forward.compile(dynamic=False)

    def stop_compiling(self) -> None:
        """Go on with the same maths, step by step."""
        self.compiled = False
        self.forward._compiled_call_impl = None

    @property
    def autocast(self) -> Autocast:
        return autocast(self.device, self.precision)

    def __call__(self, batch: Batch, done: float) -> dict[str, Tensor]:
        """Take a step; returns the loss and what else is logged, means over the batch, still on the device."""
        self.optimizer.zero_grad(set_to_none=True)
        sums: dict[str, Tensor] = {}
        pieces = list(zip(*(tensor.split(self.micro_batch) for tensor in batch), strict=True))
        for number, piece in enumerate(pieces, 1):
            share = len(piece[0]) / len(batch[0])
            with contextlib.nullcontext() if number == len(pieces) else self.no_sync():
                with self.autocast():
                    loss, extra = self.forward(*self.task.augment(*piece))
                (loss * share).backward()
            for name, value in {"loss": loss.detach(), **extra}.items():
                sums[name] = sums[name] + value * share if name in sums else value * share
        self.optimizer.step()
        self.after(done)
        return sums


def autocast(device: torch.device, precision: str) -> Autocast:
    """A context for the forward pass in "fp32" or "bf16"."""
    if precision == "bf16":
        return functools.partial(torch.autocast, device.type, torch.bfloat16)
    return contextlib.nullcontext


@contextlib.contextmanager
def undone(step: Step) -> Iterator[None]:
    """Whatever steps are taken within leave no trace in weights, statistics and optimizer."""
    before = {name: tensor.clone() for name, tensor in step.module.state_dict().items()}
    training = step.module.training
    try:
        yield
    finally:
        step.module.load_state_dict(before)
        step.module.train(training)
        step.optimizer.state.clear()
        step.optimizer.zero_grad(set_to_none=True)


def reason_of(error: BaseException) -> str:
    """The first line that says something."""
    lines: list[Any] = [line.strip() for line in str(error).splitlines() if line.strip()]
    return str(lines[0]) if lines else type(error).__name__
