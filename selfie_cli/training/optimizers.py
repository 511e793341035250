"""The optimizers of pretraining. The training loop sets one learning rate for all of a network's parameters."""

from collections.abc import Iterable

import torch
from torch import nn


class LARS(torch.optim.Optimizer):
    """Layer-wise adaptive rates (You, Gitman, Ginsburg 2017, arXiv 1708.03888), as BYOL's authors use them.

    Each weight's step is as long as `trust` times the weight itself, whatever the gradient's size; weight decay counts
    as part of the gradient. Parameters of one dimension or none (biases, norms) get neither adaptation nor decay. The
    learning rate multiplies the momentum, so a change of it acts at once.
    """

    def __init__(
        self,
        parameters: Iterable[nn.Parameter],
        *,
        lr: float,
        weight_decay: float,
        momentum: float = 0.9,
        trust: float = 1e-3,
    ) -> None:
        super().__init__(parameters, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum, "trust": trust})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]  # nobody here re-evaluates the loss
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                update = parameter.grad
                if parameter.dim() > 1:
                    update = update.add(parameter, alpha=group["weight_decay"])
                    length, update_length = parameter.norm(), update.norm()
                    known = (length > 0) & (update_length > 0)
                    update = update * torch.where(known, group["trust"] * length / update_length, 1.0)
                state = self.state[parameter]
                if not state:
                    state["momentum_buffer"] = torch.zeros_like(parameter)
                state["momentum_buffer"].mul_(group["momentum"]).add_(update)
                parameter.add_(state["momentum_buffer"], alpha=-group["lr"])


def make_optimizer(name: str, module: nn.Module, *, lr: float, weight_decay: float) -> torch.optim.Optimizer:
    """An optimizer of all parameters that take gradients.

    "sgd" has Nesterov momentum 0.9 and decays every parameter; "lars" and "adamw" decay those of two or more
    dimensions. Raises ValueError for another name.
    """
    parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
    if name == "sgd":
        return torch.optim.SGD(parameters, lr=lr, momentum=0.9, nesterov=True, weight_decay=weight_decay)
    if name == "lars":
        return LARS(parameters, lr=lr, weight_decay=weight_decay)
    if name == "adamw":
        groups = [
            {"params": [parameter for parameter in parameters if parameter.dim() > 1], "weight_decay": weight_decay},
            {"params": [parameter for parameter in parameters if parameter.dim() <= 1], "weight_decay": 0.0},
        ]
        return torch.optim.AdamW(groups, lr=lr)
    raise ValueError(f"no optimizer {name!r}")
