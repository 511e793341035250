"""Networks for inference only: batch norms are folded into convolutions, sums and ReLUs are fused with them.

On a CPU, oneDNN computes a convolution, the sum with the shortcut and the ReLU in one pass over memory. torch has no
public name for that, so this file calls the operators that torch's own compiler uses. Elsewhere `torch.compile` finds
the same fusions.
"""

import copy
import operator
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.fx.experimental.optimization import fuse

from selfie_cli.models.resnet import ResNet

Module = TypeVar("Module", bound=nn.Module)


class FusedConvolution(nn.Module):
    """oneDNN's convolution, optionally followed by a sum with `shortcut`, which is overwritten, and by a ReLU."""

    def __init__(self, conv: nn.Conv2d, *, relu: bool) -> None:
        super().__init__()
        self.weight, self.bias, self.relu = conv.weight, conv.bias, relu
        self.shape = conv.padding, conv.stride, conv.dilation, conv.groups

    def forward(self, x: Tensor, shortcut: Tensor | None = None) -> Tensor:
        """Maps [B, C, H, W], laid out channels-last, and a shortcut of the output's shape -> [B, C', h, w]."""
        after = "relu" if self.relu else None
        conv = (x, self.weight, self.bias, *self.shape)
        out: Tensor
        if shortcut is None:
            out = torch.ops.mkldnn._convolution_pointwise(*conv, after or "none", [], None)
        else:
            out = torch.ops.mkldnn._convolution_pointwise_.binary(shortcut, *conv, "add", 1.0, after, [], None)
        return out


class InferenceResNet(nn.Module):
    """A ResNet in evaluation mode with its norms folded, computing in `dtype`; `network` itself is left as it is."""

    def __init__(self, network: nn.Module, dtype: torch.dtype, *, compiled: bool, fused: bool) -> None:
        super().__init__()
        self.dtype = dtype
        self.network = folded(network).to(dtype)
        on_cpu = next(network.parameters()).device.type == "cpu"
        if compiled:
            # Frozen weights are laid out once, as oneDNN wants them.
            self.network.compile(dynamic=False, options={"freezing": on_cpu})
        elif fused and on_cpu and onednn_has(dtype):
            fuse_what_follows(self.network)

    def forward(self, images: Tensor) -> Tensor:
        """Images [B, 3, H, W], float, normalized, laid out channels-last -> feature maps float32 [B, C, h, w]."""
        maps: Tensor = self.network(images.to(self.dtype))
        return maps.float()


def onednn_has(dtype: torch.dtype) -> bool:
    if not torch.backends.mkldnn.is_available():
        return False
    return dtype == torch.float32 or (dtype == torch.bfloat16 and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported()))


def folded(network: nn.Module) -> fx.GraphModule:
    """Return a copy with each batch norm folded into the convolution before it; without one, a norm stays."""
    made = fuse(network)
    assert isinstance(made, fx.GraphModule)
    return made


def layer_of(network: nn.Module, node: fx.Node) -> nn.Module | None:
    return network.get_submodule(str(node.target)) if node.op == "call_module" else None


def fuse_what_follows(network: fx.GraphModule) -> None:
    """Fuse each convolution with the sum and the ReLU that follow it, if its output has no other use."""
    graph = network.graph
    for node in list(graph.nodes):
        conv = layer_of(network, node)
        if not isinstance(conv, nn.Conv2d):
            continue
        last, inputs = node, node.all_input_nodes
        total = only_user(node)
        if total is not None and total.target in (operator.add, operator.iadd):
            (shortcut,) = (each for each in total.all_input_nodes if each is not node)
            if all(user <= total for user in shortcut.users):  # it is overwritten, so it may have no later use
                last, inputs = total, [*inputs, shortcut]
        relu = only_user(last)
        if relu is not None and relu.target is F.relu:
            last = relu
        network.set_submodule(str(node.target), FusedConvolution(conv, relu=last is relu))
        with graph.inserting_before(last):
            last.replace_all_uses_with(graph.call_module(str(node.target), tuple(inputs)))
    graph.eliminate_dead_code()
    network.delete_all_unused_submodules()
    network.recompile()


def only_user(node: fx.Node) -> fx.Node | None:
    return next(iter(node.users)) if len(node.users) == 1 else None


def for_inference(
    module: Module, dtype: torch.dtype = torch.float32, *, compiled: bool = False, fused: bool = True
) -> Module:
    """A network in evaluation mode whose ResNet is folded and computes in `dtype`; the rest is shared with `module`.

    Its results are those of `module`, within rounding, and it can no longer be trained or saved. If `compiled`,
    torch.compile compiles it at the first batch, for that batch's shape, and raises errors then. Without `fused` it has
    only plain operators.
    """
    lean, names = copy_around_resnets(module)
    for name in names:
        setattr(lean, name, InferenceResNet(getattr(lean, name), dtype, compiled=compiled, fused=fused))
    return lean


def copy_around_resnets(module: Module) -> tuple[Module, list[str]]:
    """Return a copy of the module whose children can be replaced, and the names of the ResNets among them."""
    made = copy.copy(module)
    made._modules = dict(module._modules)
    return made, [name for name, child in module.named_children() if isinstance(child, ResNet)]
