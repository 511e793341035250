"""A batch of 16 images trained on by one process, or by as many as torchrun starts: `torchrun shared_batch.py FOLDER`.
Batch norm is in evaluation mode: on a CPU it would see each process's own images only."""

import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from selfie_cli.data import synthetic
from selfie_cli.data.batches import Batch, step_generator
from selfie_cli.methods.supervised import Supervised
from selfie_cli.training.distributed import Group, group
from selfie_cli.training.optimizers import make_optimizer
from selfie_cli.training.step import Step
from tests.methods.small_methods import METHODS, make_task

BATCH = 16
PIECE = 4  # of two processes, each of which has 8 images
STEPS = 2
NAMES = (*METHODS, "supervised")


def module_of(task: Any) -> torch.nn.Module:
    module: torch.nn.Module = task.classifier if isinstance(task, Supervised) else task
    return module


def precise(task: Any) -> Any:
    """Let a task compute in double precision, but for its loss. In single precision, of a million ReLUs one or two fall
    on the other side for a rounding error, and gradients differ by a thousandth."""
    module_of(task).double()
    augment = task.augment
    task.augment = lambda *batch: tuple(view.double() if view.is_floating_point() else view for view in augment(*batch))
    return task


def make_step(task: Any, *, lr: float = 0.01, micro_batch: int = BATCH, **options: Any) -> Step:
    """A step of SGD, with what the method does behind it; of a task or of the name of one."""
    task = make_task(task) if isinstance(task, str) else task
    module = module_of(task)
    after = getattr(task, "after_step", id)
    optimizer = make_optimizer("sgd", module, lr=lr, weight_decay=1e-4)
    task = precise(task) if options.pop("double", False) else task
    return Step(module, task, optimizer, micro_batch=micro_batch, after=after, **({"precision": "fp32"} | options))


def batch_of(task: Any, number: int) -> Batch:
    """The whole batch of a step: other images each time."""
    pixels, labels = (torch.from_numpy(each[number * BATCH :]) for each in synthetic.draw((number + 1) * BATCH, seed=0))
    draws = task.draw(BATCH, step_generator(0, number))
    return (pixels, labels.long(), draws) if isinstance(draws, Tensor) else (pixels, *draws)


def dealt(world: int, piece: int) -> Tensor:
    """The rows of a batch in the order in which `world` processes see them, all first pieces first: int64 [BATCH]."""
    rows = torch.arange(BATCH).view(world, -1, piece)  # [P, pieces, piece]
    return rows.transpose(0, 1).flatten()


def trained(name: str, here: Group, *, micro_batch: int, order: Tensor | None = None) -> dict[str, Tensor]:
    """The losses of a few steps in double precision, the gradients of the first one, and the weights after the last."""
    task = make_task(name)
    module = module_of(task).eval()
    if hasattr(task, "group"):
        task.group = here
    step = make_step(task, micro_batch=micro_batch, group=here, double=True)
    found: dict[str, Tensor] = {}
    for number in range(STEPS):
        batch = batch_of(task, number)
        if order is not None:
            batch = tuple(tensor[order] for tensor in batch)
        logged = step(tuple(tensor[here.part(BATCH)] for tensor in batch), (number + 1) / STEPS)
        for key, mean in here.mean({key: value.item() for key, value in logged.items()}).items():
            found[f"{key} {number}"] = torch.tensor(mean)
        if number == 0:
            learning = {key: p for key, p in module.named_parameters() if p.requires_grad}
            found |= {f"gradient {key}": p.grad.clone() for key, p in learning.items() if p.grad is not None}
    return found | {f"weight {key}": tensor.clone() for key, tensor in module.state_dict().items()}


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    here = group()
    for name in NAMES:
        for micro_batch in (BATCH, PIECE):
            found = trained(name, here, micro_batch=micro_batch)
            tensors = {key: tensor.contiguous() for key, tensor in found.items()}
            save_file(tensors, folder / f"{name} {micro_batch} {here.rank}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
