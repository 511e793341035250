"""One training step, with micro-batches, mixed precision, torch.compile and several processes."""

import contextlib
import functools
import inspect
from collections.abc import Callable, Iterator
from dataclasses import KW_ONLY, dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from selfie_cli.data.batches import Batch
from selfie_cli.errors import TrainingError, UsageError, is_out_of_memory
from selfie_cli.talk import Talk
from selfie_cli.training.distributed import Group

Autocast = Callable[[], contextlib.AbstractContextManager[object]]


class Task(Protocol):
    """A training objective: a pretraining method, or supervised classification."""

    def augment(self, pixels: Tensor, *draws: Tensor) -> tuple[Tensor, ...]: ...

    def loss(self, *views: Tensor) -> tuple[Tensor, dict[str, Tensor]]: ...


class Forward(nn.Module):
    """The forward pass of a task, from a batch to its loss, as a module: DistributedDataParallel wraps it, and
    torch.compile compiles it."""

    def __init__(self, module: nn.Module, task: Task) -> None:
        super().__init__()
        self.module = module
        self.augment, self.loss = task.augment, task.loss

    def forward(self, *batch: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        return self.loss(*self.augment(*batch))


@dataclass(eq=False)
class Step:
    """A training step: called with a batch of this process's images, it trains `module` on them.

    A batch is a tuple of tensors of equal length, the arguments of `task.augment`. A batch larger than `micro_batch` is
    split into micro-batches of at least `smallest` images, whose gradients are averaged. `precision` is fp32 or bf16.
    `compiled` runs augmentation and loss, forward and backward, through torch.compile. `graphs` adds CUDA graphs, which
    save the launches of small kernels but never give their memory back. `after` is called after the optimizer's step,
    with the share of the training that is done.

    From the first loss or gradient that is not finite, the optimizer does nothing more, and `num_spoiled` counts the
    steps; the training loop reads it now and then. If memory runs out, the micro-batch is halved, with a warning, and
    the batch is tried again, as often as needed. Images that had been processed before count twice in the running
    statistics of batch norm.

    Raises TrainingError if even the smallest micro-batch does not fit, or if other processes would wait for the retry.
    """

    module: nn.Module
    task: Task
    optimizer: torch.optim.Optimizer
    _: KW_ONLY
    micro_batch: int
    precision: str
    compiled: bool = False
    graphs: bool = False
    group: Group = field(default_factory=Group)
    after: Callable[[float], None] = lambda done: None
    smallest: int = 1
    talk: Talk = field(default_factory=Talk)

    def __post_init__(self) -> None:
        self.device = next(self.module.parameters()).device
        self.learning = [parameter for parameter in self.module.parameters() if parameter.requires_grad]
        self.num_spoiled = torch.zeros((), device=self.device)
        self.forward: nn.Module = Forward(self.module, self.task)
        self.no_sync: Callable[[], contextlib.AbstractContextManager[object]] = contextlib.nullcontext
        if self.group.world > 1:
            # Each process keeps its own running statistics of batch norm, as training does not use them.
            renamed = "forward_sync_buffers" in inspect.signature(DistributedDataParallel).parameters  # in torch 2.15
            buffers: dict[str, Any] = {"forward_sync_buffers" if renamed else "broadcast_buffers": False}
            self.forward = DistributedDataParallel(self.forward, gradient_as_bucket_view=True, **buffers)
            self.no_sync = self.forward.no_sync
        if self.compiled:
            self.forward.compile(dynamic=False, mode="reduce-overhead" if self.graphs else None)

    def set_micro_batch(self, micro_batch: int) -> None:
        """Set the micro-batch. A smaller one disables CUDA graphs, which would reuse the memory of summed gradients."""
        if micro_batch < self.micro_batch and self.compiled and self.graphs:
            self.graphs = False
            self.forward.compile(dynamic=False)
        self.micro_batch = micro_batch

    def stop_compiling(self) -> None:
        """Switch to eager mode, with the same mathematics."""
        self.compiled = False
        self.forward._compiled_call_impl = None

    def on_device(self, batch: Batch) -> Batch:
        return tuple(tensor.to(self.device) for tensor in batch)

    def forget(self) -> None:
        """Reset the optimizer, the gradients and `num_spoiled`; the weights do not change."""
        self.optimizer.state.clear()
        self.optimizer.zero_grad(set_to_none=True)
        self.num_spoiled = torch.zeros_like(self.num_spoiled)

    @property
    def autocast(self) -> Autocast:
        return autocast(self.device, self.precision)

    def __call__(self, batch: Batch, done: float) -> dict[str, Tensor]:
        """Take a step; returns the loss, the gradient's norm and other values to log, still on the device."""
        while (means := self._backward(batch)) is None:
            self._halve(len(batch[0]))
        gradients = [parameter.grad for parameter in self.learning if parameter.grad is not None]
        means["gradient_norm"] = torch.nn.utils.get_total_norm(gradients)
        # With several processes, losses differ, but all have the same gradient.
        seen = means["gradient_norm"] + means["loss"] if self.group.world == 1 else means["gradient_norm"]
        finite = seen.isfinite() & (self.num_spoiled == 0)
        self.num_spoiled = self.num_spoiled + ~finite
        if getattr(self.optimizer, "_step_supports_amp_scaling", False):  # it checks on the device: no wait
            self.optimizer.found_inf = (~finite).float()  # type: ignore[attr-defined]
            self.optimizer.step()
        elif finite:
            self.optimizer.step()
        self.after(done)
        return means

    def _backward(self, batch: Batch) -> dict[str, Tensor] | None:
        """Compute gradients of the batch's mean loss; returns values to log, or None if memory has run out."""
        self.optimizer.zero_grad(set_to_none=True)
        sums: dict[str, Tensor] = {}
        pieces = list(zip(*(tensor.split(self.micro_batch) for tensor in batch), strict=True))
        try:
            for number, piece in enumerate(pieces, 1):
                share = len(piece[0]) / len(batch[0])
                with contextlib.nullcontext() if number == len(pieces) else self.no_sync():
                    with self.autocast():
                        loss, extra = self.forward(*piece)
                    (loss * share).backward()
                for name, value in {"loss": loss.detach(), **extra}.items():
                    sums[name] = sums[name] + value * share if name in sums else value * share
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            return None
        return sums

    def _halve(self, batch_size: int) -> None:
        """Halve the micro-batch, or raise TrainingError."""
        tried = min(self.micro_batch, batch_size)
        half = halved(tried, batch_size, self.smallest)
        self.optimizer.zero_grad(set_to_none=True)
        if self.group.world > 1 or half is None:
            raise TrainingError(
                f"out of memory with {tried} images per forward pass: start a new run with a smaller "
                "--micro-batch, --image-size or --backbone"
            )
        self.set_micro_batch(half)
        if self.device.type == "cuda":
            torch.cuda.empty_cache()  # cached blocks have the larger size
        self.talk.warn(
            f"out of memory: continuing with --micro-batch {half}; batch norm, and losses that compare images, see "
            "the images of one micro-batch"
        )


def halved(micro_batch: int, batch_size: int, smallest: int) -> int | None:
    """About half of the micro-batch; None if every smaller one leaves a piece of fewer than `smallest` images."""
    sizes = range(-(-micro_batch // 2), 0, -1) if micro_batch > 1 else ()
    return next((micro for micro in sizes if smallest_piece(batch_size, micro) >= smallest), None)


def check_pieces(batch_size: int, micro_batch: int, smallest: int) -> None:
    """Raises UsageError if a piece of the batch has fewer than `smallest` images."""
    if smallest_piece(batch_size, micro_batch) < min(smallest, 2):
        pieces = f" in micro-batches of {micro_batch}" if micro_batch < batch_size else ""
        raise UsageError(
            f"a batch of {batch_size}{pieces} leaves an image by itself, and batch norm and losses that compare images "
            "need two: choose another --batch-size or --micro-batch"
        )


def smallest_piece(batch_size: int, micro_batch: int) -> int:
    """Return the number of images in the smallest piece of a batch."""
    return min(micro_batch, batch_size % micro_batch or micro_batch)


def autocast(device: torch.device, precision: str) -> Autocast:
    """A context for the forward pass in "fp32" or "bf16"."""
    if precision == "bf16":
        return functools.partial(torch.autocast, device.type, torch.bfloat16)
    return contextlib.nullcontext


@contextlib.contextmanager
def undone(step: Step) -> Iterator[None]:
    """Undo the steps taken in this context: weights, statistics and optimizer are restored, the micro-batch is kept."""
    before = {name: tensor.clone() for name, tensor in step.module.state_dict().items()}
    training = step.module.training
    try:
        yield
    finally:
        step.module.load_state_dict(before)
        step.module.train(training)
        step.forget()


def reason_of(error: BaseException) -> str:
    """The first line of an error's message that is not empty."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
