"""The optimizers of pretraining. The training loop sets one learning rate for all of a network's parameters."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn


class LARS(torch.optim.Optimizer):
    """Layer-wise adaptive rates (You, Gitman, Ginsburg 2017, arXiv 1708.03888), as BYOL's authors use them.

    The update of each weight is scaled to `trust` times the norm of the weight, whatever the gradient's size; weight
    decay counts as part of the gradient. Parameters of one dimension or none (biases, norms) get neither scaling nor
    decay. The learning rate multiplies the momentum, so a change of it acts at once. Like torch's fused optimizers it
    changes nothing while its attribute `found_inf`, a float32 scalar on the device, is 1.
    """

    found_inf: Tensor | None = None
    _step_supports_amp_scaling = True  # the name that torch looks for

    def __init__(self, parameters: Iterable[nn.Parameter], *, lr: float, weight_decay: float) -> None:
        super().__init__(parameters, {"lr": lr, "weight_decay": weight_decay, "momentum": 0.9, "trust": 1e-3})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]  # no closure is used here
        for group in self.param_groups:
            parameters = [parameter for parameter in group["params"] if parameter.grad is not None]
            for parameter in parameters:
                if not self.state[parameter]:
                    self.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
            wide = [parameter for parameter in parameters if parameter.dim() > 1]
            gradients = {parameter: parameter.grad for parameter in parameters}
            if wide:  # all at once: otherwise a GPU would spend its time on launching small kernels
                updates = torch._foreach_add([gradients[each] for each in wide], wide, alpha=group["weight_decay"])
                lengths, update_lengths = torch._foreach_norm(wide), torch._foreach_norm(updates)
                length, update_length = torch.stack(lengths), torch.stack(update_lengths)
                known = (length > 0) & (update_length > 0)
                rates = torch.where(known, group["trust"] * length / update_length, 1.0)
                torch._foreach_mul_(updates, list(rates.unbind()))
                gradients.update(zip(wide, updates, strict=True))
            buffers = [self.state[parameter]["momentum_buffer"] for parameter in parameters]
            moving = torch._foreach_mul(buffers, group["momentum"])
            torch._foreach_add_(moving, list(gradients.values()))
            moved = torch._foreach_add(parameters, moving, alpha=-group["lr"])
            for old, new in zip([*buffers, *parameters], [*moving, *moved], strict=True):
                old.copy_(new if self.found_inf is None else torch.where(self.found_inf > 0, old, new))


def make_optimizer(name: str, module: nn.Module, *, lr: float, weight_decay: float) -> torch.optim.Optimizer:
    """An optimizer of all parameters that take gradients.

    "sgd" has Nesterov momentum 0.9 and decays every parameter; "lars" and "adamw" decay those of two or more
    dimensions.
    """
    parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
    fused = parameters[0].device.type in ("cpu", "cuda")  # one pass over memory
    if name == "sgd":
        return torch.optim.SGD(parameters, lr=lr, momentum=0.9, nesterov=True, weight_decay=weight_decay, fused=fused)
    if name == "lars":
        return LARS(parameters, lr=lr, weight_decay=weight_decay)
    groups = [
        {"params": [parameter for parameter in parameters if parameter.dim() > 1], "weight_decay": weight_decay},
        {"params": [parameter for parameter in parameters if parameter.dim() <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=lr, fused=fused)
