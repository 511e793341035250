"""What --resume continues from: weights, optimizer and step. Random draws are functions of these and need no saving."""

import shutil
from pathlib import Path

import torch
from torch import Tensor, nn

from selfie_cli.errors import RunError, WeightsError
from selfie_cli.files import flush_to_disk, replacing_folder
from selfie_cli.talk import Talk
from selfie_cli.weights import load_weights, save_weights

KEPT = 2


def save_state(folder: Path, step: int, module: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Write `folder`/<step>/ whole or not at all, then drop all but the last two."""
    target = folder / f"{step:08d}"
    if target.exists():  # damaged, and passed over when this run was resumed
        shutil.rmtree(target)
    with replacing_folder(target) as temporary:
        save_weights(temporary / "weights.safetensors", module.state_dict(), {"step": step})
        save_weights(temporary / "optimizer.safetensors", optimizer_tensors(optimizer), {"step": step})
    for old in saved_states(folder)[:-KEPT]:
        shutil.rmtree(old)
    flush_to_disk(folder)


def saved_states(folder: Path) -> list[Path]:
    """The states in a folder, oldest first."""
    return sorted(path for path in folder.glob("[0-9]*") if path.is_dir())


def load_state(folder: Path, module: nn.Module, optimizer: torch.optim.Optimizer, talk: Talk) -> int:
    """Put the newest readable state into `module` and `optimizer`; returns its step, 0 if none was ever saved.

    A damaged newest state is passed over with a warning. Raises RunError if there are states but none can be read.
    """
    states = saved_states(folder)
    for path in reversed(states):
        try:
            weights, header = load_weights(path / "weights.safetensors")
            tensors, _ = load_weights(path / "optimizer.safetensors")
            step = int(header["step"])
            module.load_state_dict(weights)
            put_optimizer_tensors(optimizer, tensors)
        except (WeightsError, RuntimeError, ValueError, LookupError) as error:
            talk.warn(f"the state {path} is damaged and passed over: {error}")
            continue
        return step
    if states:
        raise RunError(f"no state in {folder} can be read: start the run anew with --overwrite")
    return 0


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Every tensor of the optimizer's state, named <index of the parameter>.<name>."""
    return {
        f"{index}.{name}": value
        for index, entry in optimizer.state_dict()["state"].items()
        for name, value in entry.items()
        if isinstance(value, Tensor)
    }


def put_optimizer_tensors(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for key, value in tensors.items():
        index, name = key.split(".", 1)
        parameter = parameters[int(index)]
        if name == "step":  # AdamW's count of steps is a float32 scalar, on the CPU but for CUDA's fused kernel
            value = value.to(parameter.device) if parameter.device.type == "cuda" else value
        else:  # the parameter's own memory layout, so that resumed arithmetic goes through the same kernels
            value = torch.empty_like(parameter).copy_(value)
        optimizer.state[parameter][name] = value
