"""One training step: a batch in, weights changed; and what makes it fast or lets several processes share it."""

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
    """A task as the forward pass of `module`, from a batch to its loss: what DistributedDataParallel wraps and
    torch.compile compiles."""

    def __init__(self, module: nn.Module, task: Task) -> None:
        super().__init__()
        self.module = module
        self.augment, self.loss = task.augment, task.loss

    def forward(self, *batch: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        return self.loss(*self.augment(*batch))


@dataclass(eq=False)
class Step:
    """A training step: called with a batch of this process's images, it trains `module` on them.

    A batch is a tuple of tensors of equal length, the arguments of `task.augment`. A batch larger than `micro_batch`
    goes through in pieces whose gradients are averaged; none of them may have fewer than `smallest` images. `precision`
    is fp32 or bf16. `compiled` runs augmentation and loss, forward and backward, through torch.compile, `graphs` with
    CUDA graphs: they spare the launches of small kernels, at the price of memory that is never given back. `after` is
    called behind the optimizer's step, with the share of the training that is done.

    From the first loss or gradient that is not finite the optimizer does nothing more, and `num_spoiled` counts the
    steps: the training loop reads it now and then. Where memory runs out, the micro-batch is halved and the same batch
    tried again, as often as it takes, with a warning. Images that had gone through before count twice in the running
    statistics of batch norm.

    Raises TrainingError where even the smallest piece does not fit, or other processes would wait for one that tries.
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
            # Batch norm's running statistics stay each process's own: they take no part in training.
            renamed = "forward_sync_buffers" in inspect.signature(DistributedDataParallel).parameters  # in torch 2.15
            buffers: dict[str, Any] = {"forward_sync_buffers" if renamed else "broadcast_buffers": False}
            self.forward = DistributedDataParallel(self.forward, gradient_as_bucket_view=True, **buffers)
            self.no_sync = self.forward.no_sync
        if self.compiled:
            self.forward.compile(dynamic=False, mode="reduce-overhead" if self.graphs else None)

    def set_micro_batch(self, micro_batch: int) -> None:
        """A smaller one leaves CUDA graphs: gradients that are summed over pieces would lie in memory they reuse."""
        if micro_batch < self.micro_batch and self.compiled and self.graphs:
            self.graphs = False
            self.forward.compile(dynamic=False)
        self.micro_batch = micro_batch

    def stop_compiling(self) -> None:
        """Go on with the same maths, step by step."""
        self.compiled = False
        self.forward._compiled_call_impl = None

    def forget(self) -> None:
        """Forget the steps taken, as far as the optimizer knows of them; the weights stay."""
        self.optimizer.state.clear()
        self.optimizer.zero_grad(set_to_none=True)
        self.num_spoiled = torch.zeros_like(self.num_spoiled)

    @property
    def autocast(self) -> Autocast:
        return autocast(self.device, self.precision)

    def __call__(self, batch: Batch, done: float) -> dict[str, Tensor]:
        """Take a step; returns the loss, the gradient's norm and what else is logged, still on the device."""
        while (means := self._backward(batch)) is None:
            self._halve(len(batch[0]))
        gradients = [parameter.grad for parameter in self.learning if parameter.grad is not None]
        means["gradient_norm"] = torch.nn.utils.get_total_norm(gradients)
        # Of several processes, each has a loss of its own, and all the same gradient.
        seen = means["gradient_norm"] + means["loss"] if self.group.world == 1 else means["gradient_norm"]
        finite = seen.isfinite() & (self.num_spoiled == 0)
        self.num_spoiled = self.num_spoiled + ~finite
        if getattr(self.optimizer, "_step_supports_amp_scaling", False):  # it looks by itself: nobody waits
            self.optimizer.found_inf = (~finite).float()  # type: ignore[attr-defined]
            self.optimizer.step()
        elif finite:
            self.optimizer.step()
        self.after(done)
        return means

    def _backward(self, batch: Batch) -> dict[str, Tensor] | None:
        """Gradients of the mean loss over the batch; returns what is logged, or None where memory has run out."""
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
        """Let half as many images go through at once."""
        tried = min(self.micro_batch, batch_size)
        half = halved(tried, batch_size, self.smallest)
        self.optimizer.zero_grad(set_to_none=True)
        if self.group.world > 1 or half is None:
            raise TrainingError(
                f"out of memory with {tried} images per forward pass: choose a smaller --micro-batch, "
                "--image-size or --backbone"
            )
        self.set_micro_batch(half)
        if self.device.type == "cuda":
            torch.cuda.empty_cache()  # its blocks suit the larger pieces
        self.talk.warn(
            f"out of memory: continuing with --micro-batch {half}; batch norm, and losses that compare images, see "
            "the images of one micro-batch"
        )


def halved(micro_batch: int, batch_size: int, smallest: int) -> int | None:
    """About half as many images at once; None if a piece of the batch would have fewer than `smallest`."""
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
    """Undo the steps taken within: weights, statistics and optimizer are restored, the micro-batch is kept."""
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
