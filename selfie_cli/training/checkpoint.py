"""Checkpoints, called states here, from which --resume continues: weights, optimizer and step.

Random draws are functions of the seed and the step, and need no saving.
"""

import shutil
from concurrent.futures import Future
from pathlib import Path
from typing import Self

import torch
from torch import Tensor, nn

from selfie_cli.data.threads import thread_pool
from selfie_cli.errors import RunError, WeightsError
from selfie_cli.files import flush_to_disk, read_json, replacing_folder, sha256_of, write_json
from selfie_cli.talk import Talk
from selfie_cli.weights import load_weights, num_bytes, save_weights

KEPT = 2
WEIGHTS = "weights.safetensors"
OPTIMIZER = "optimizer.safetensors"
CHECKSUMS = "checksums.json"
"""SHA-256 of the other two files: tensors that a disk has damaged do not look wrong."""


class Saver:
    """Copies states, and writes them in a background thread, one at a time. Use it as a context manager."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._pool = thread_pool(1, "checkpoint")
        self._writing: Future[None] | None = None

    def save(
        self, step: int, module: nn.Module, optimizer: torch.optim.Optimizer, micro_batch: int | None = None
    ) -> None:
        """Begin to write a state, see `save_state`. Raise the error of the write before, if it had one."""
        self.check(wait=True)
        weights, tensors = copied(module.state_dict()), copied(optimizer_tensors(optimizer))
        self._writing = self._pool.submit(save_state, self.folder, step, weights, tensors, micro_batch)

    def check(self, *, wait: bool = False) -> None:
        """Raise the error of the last write if it has ended. If `wait`, wait for its end first."""
        if self._writing is not None and (wait or self._writing.done()):
            writing, self._writing = self._writing, None
            writing.result()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        self._pool.shutdown(wait=True)
        if kind is None:
            self.check()


def copied(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().to("cpu", copy=True) for name, tensor in tensors.items()}


def save_state(
    folder: Path, step: int, weights: dict[str, Tensor], tensors: dict[str, Tensor], micro_batch: int | None = None
) -> None:
    """Write `folder`/<step>/ whole or not at all, then remove all but the last two states.

    `tensors` are the optimizer's. `micro_batch` is stored because it may have been halved when memory ran out, and a
    resumed run must use the same one.
    """
    target = folder / f"{step:08d}"
    if target.exists():  # damaged, and skipped by `load_state`
        shutil.rmtree(target)
    with replacing_folder(target) as temporary:
        header = {"step": step} if micro_batch is None else {"step": step, "micro_batch": micro_batch}
        sums = {
            WEIGHTS: save_weights(temporary / WEIGHTS, weights, header),
            OPTIMIZER: save_weights(temporary / OPTIMIZER, tensors, {"step": step}),
        }
        write_json(temporary / CHECKSUMS, sums)
    states = saved_states(folder)
    newest = states.index(target)  # later ones are damaged, and were skipped by `load_state`
    for other in states[: max(0, newest + 1 - KEPT)] + states[newest + 1 :]:
        shutil.rmtree(other)
    flush_to_disk(folder)


def room_for(module: nn.Module, weights: dict[str, Tensor], seconds: float, save_every: float) -> int:
    """Disk space, in bytes, that a run of `seconds` needs at least: for states (one more than are kept, while the
    newest is written), and for the `weights` at its end. All optimizers here keep one tensor per parameter, or two."""
    state = num_bytes([*module.state_dict().values(), *module.parameters()])
    count = sum(seconds > times * save_every for times in range(KEPT + 1))
    return max(count * state, min(KEPT, count) * state + num_bytes(weights.values()))


def saved_states(folder: Path) -> list[Path]:
    """The states in a folder, oldest first."""
    return sorted(path for path in folder.glob("[0-9]*") if path.is_dir())


def checksums(state: Path) -> dict[str, str]:
    return {name: sha256_of(state / name) for name in (WEIGHTS, OPTIMIZER)}


def read_state(path: Path) -> tuple[int, int | None, dict[str, Tensor], dict[str, Tensor]]:
    """Step, micro-batch, weights and the optimizer's tensors.

    Raises OSError, ValueError or WeightsError if the state is damaged.
    """
    if read_json(path / CHECKSUMS) != checksums(path):
        raise ValueError("its files have changed since they were written")
    weights, header = load_weights(path / WEIGHTS)
    tensors, _ = load_weights(path / OPTIMIZER)
    if header.get("step") != str(int(path.name)) or not header.get("micro_batch", "1").isdecimal():
        raise ValueError(f"it is of step {header.get('step')}, {header.get('micro_batch')} images at once")
    return int(path.name), int(header.get("micro_batch", 0)) or None, weights, tensors


def load_state(folder: Path, module: nn.Module, optimizer: torch.optim.Optimizer, talk: Talk) -> tuple[int, int | None]:
    """Load the newest readable state into `module` and `optimizer`; returns its step, 0 if there is none, and its
    micro-batch.

    Damaged newer states are skipped with a warning. Raises RunError if there are states but none can be read, or the
    newest readable one does not fit.
    """
    states = saved_states(folder)
    for path in reversed(states):
        try:
            step, micro_batch, weights, tensors = read_state(path)
        except (OSError, ValueError, WeightsError) as error:
            talk.warn(f"the saved state {path} is damaged and is skipped: {error}")
            continue
        try:
            put_optimizer_tensors(optimizer, tensors)
            module.load_state_dict(weights)
        except (ValueError, LookupError, RuntimeError) as error:
            reason = " ".join(str(error).split())
            raise RunError(
                f"the state {path} is of another network or optimizer ({reason[:200]}): start the run anew with "
                "--overwrite"
            ) from None
        return step, micro_batch
    if states:
        raise RunError(f"no state in {folder} can be read: start the run again with --overwrite")
    return 0, None


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Every tensor of the optimizer's state, named <index of the parameter>.<name>."""
    return {
        f"{index}.{name}": value
        for index, entry in optimizer.state_dict()["state"].items()
        for name, value in entry.items()
        if isinstance(value, Tensor)
    }


def put_optimizer_tensors(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    """Load `tensors` into the optimizer's state. Raises ValueError or LookupError if they are another optimizer's."""
    names = {"step", "exp_avg", "exp_avg_sq"} if isinstance(optimizer, torch.optim.AdamW) else {"momentum_buffer"}
    parameters: list[Tensor] = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    states: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        index, name = key.split(".", 1)
        parameter = parameters[int(index)]
        if name not in names or value.shape != (() if name == "step" else parameter.shape):
            raise ValueError(f"{key} is {tuple(value.shape)}")
        if name == "step":  # a float32 scalar, on the CPU except for CUDA's fused kernel
            value = value.to(parameter.device) if parameter.device.type == "cuda" else value
        else:  # in the parameter's memory layout, so that a resumed run uses the same kernels
            value = torch.empty_like(parameter).copy_(value)
        states.setdefault(int(index), {})[name] = value
    for number, state in states.items():
        if state.keys() != names:
            raise ValueError(f"parameter {number} has {', '.join(state)}")
        optimizer.state[parameters[number]] = state
