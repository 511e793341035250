"""A ResNet that computes in 8-bit integers, for CPUs with instructions for them (AVX-512 VNNI, AVX-VNNI).

Post-training quantization (Jacob et al. 2018, "Quantization and training of neural networks for efficient
integer-arithmetic-only inference"): activations are uint8, with a scale and zero point per layer that cover the range
seen on some images; weights are int8, with a scale per output channel. oneDNN's operators compute the convolution, the
sum and the ReLU at once; torch has no public name for them either.

    B  images (or patches folded into the batch)      C  channels      H, W and h, w  height and width
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from selfie_cli.models.lean import FusedConvolution, Module, copy_around_resnets, folded, fuse_what_follows, layer_of


def has_vnni(device: torch.device) -> bool:
    """Whether `device` is a CPU that multiplies 8-bit integers four at a time."""
    return device.type == "cpu" and bool(torch.cpu._is_vnni_supported())


@dataclass(frozen=True)
class Seen:
    """The lowest and highest value of a layer's output, and the shape of its input."""

    lowest: float
    highest: float
    shape: torch.Size


@dataclass(frozen=True)
class Grid:
    """A scale and zero point: `value = (stored - zero) * scale`."""

    scale: float
    zero: int

    @classmethod
    def over(cls, seen: Seen) -> "Grid":
        """The grid of 256 values from the lowest to the highest; one of them is 0, which convolutions pad with."""
        scale = max(seen.highest - seen.lowest, 1e-6) / 255
        return cls(scale, round(-seen.lowest / scale))

    def stored(self, values: Tensor) -> Tensor:
        """Float -> uint8 of the same shape and layout."""
        return (values / self.scale + self.zero).round_().clamp_(0, 255).to(torch.uint8)

    def values(self, stored: Tensor) -> Tensor:
        """Uint8 -> float32 of the same shape and layout."""
        return (stored.float() - self.zero) * self.scale


class QuantizedConvolution(nn.Module):
    """`FusedConvolution` on uint8, with one grid each for the input, the shortcut and the output."""

    def __init__(self, conv: FusedConvolution, inputs: list[Grid], output: Grid, shape: torch.Size) -> None:
        super().__init__()
        self.inputs, self.output, self.bias, self.relu = inputs, output, conv.bias, conv.relu
        padding, stride, dilation, groups = conv.shape
        self.shape = stride, padding, dilation, groups
        scale = conv.weight.abs().amax(dim=(1, 2, 3)).clamp(min=1e-12) / 127  # [C']
        rounded = (conv.weight / scale.view(-1, 1, 1, 1)).round().to(torch.int8)
        x = inputs[0]
        packed = torch.ops.onednn.qconv_prepack(rounded, scale, x.scale, x.zero, *self.shape, shape)
        self.weight = packed, scale, torch.zeros(len(scale), dtype=torch.int32)

    def forward(self, x: Tensor, shortcut: Tensor | None = None) -> Tensor:
        """uint8 [B, C, H, W], laid out channels-last, and a shortcut of the output's shape -> uint8 [B, C', h, w]."""
        grid, out = self.inputs[0], self.output
        start = (x, grid.scale, grid.zero, *self.weight)
        end = (self.bias, *self.shape, out.scale, out.zero, torch.uint8)
        relu = "relu" if self.relu else None
        y: Tensor
        if shortcut is None:
            y = torch.ops.onednn.qconv2d_pointwise(*start, *end, relu or "none", [], None)
        else:
            other = self.inputs[1]
            y = torch.ops.onednn.qconv2d_pointwise.binary(
                *start, shortcut, *end, other.scale, other.zero, "sum", 1.0, relu, [], None
            )
        return y


class QuantizedPooling(nn.Module):
    """The stem's max-pooling, 3x3 with stride 2, on uint8: torch has no fast one."""

    def forward(self, x: Tensor) -> Tensor:
        """uint8 [B, C, H, W] -> uint8 [B, C, H / 2, W / 2]. Zero padding is safe, as no value is lower."""
        x = F.pad(x, (1, 1, 1, 1))
        x = torch.maximum(torch.maximum(x[:, :, 0:-2:2], x[:, :, 1:-1:2]), x[:, :, 2::2])
        return torch.maximum(torch.maximum(x[..., 0:-2:2], x[..., 1:-1:2]), x[..., 2::2])


class QuantizedResNet(nn.Module):
    """A ResNet on uint8. `seen`: the ranges of its convolutions, by name, and under "" those of the images."""

    def __init__(self, network: fx.GraphModule, seen: dict[str, Seen]) -> None:
        super().__init__()
        grids: dict[fx.Node, Grid] = {}
        for node in network.graph.nodes:
            layer, inputs = layer_of(network, node), [grids[each] for each in node.all_input_nodes]
            if isinstance(layer, FusedConvolution):
                here = seen[str(node.target)]
                grids[node] = Grid.over(here)
                network.set_submodule(str(node.target), QuantizedConvolution(layer, inputs, grids[node], here.shape))
                continue
            if isinstance(layer, nn.MaxPool2d):
                network.set_submodule(str(node.target), QuantizedPooling())
            grids[node] = inputs[0] if inputs else Grid.over(seen[""])
        self.network = network
        self.first, *_, self.last = grids.values()

    def forward(self, images: Tensor) -> Tensor:
        """Images [B, 3, H, W], float, normalized, laid out channels-last -> feature maps float32 [B, C, h, w]."""
        return self.last.values(self.network(self.first.stored(images)))


def quantized(module: Module, run: Callable[[Module], object]) -> Module:
    """Return a network in evaluation mode, on a CPU, with its ResNet in 8 bits; the rest is shared with `module`.

    `run` calls the network it is given on some images, in the way `module` will be called; they set the ranges.
    """
    made, names = copy_around_resnets(module)
    for name in names:
        network = only_convolutions(getattr(made, name))
        setattr(made, name, network)
        setattr(made, name, QuantizedResNet(network, watched(network, lambda: run(made))))
    return made


def only_convolutions(network: nn.Module) -> fx.GraphModule:
    """Return a folded copy, float32. A norm without a convolution before it becomes one: 1x1, depthwise."""
    made = folded(network)
    for node in made.graph.nodes:
        norm = layer_of(made, node)
        if isinstance(norm, nn.BatchNorm2d):
            single = nn.Conv2d(norm.num_features, norm.num_features, 1, groups=norm.num_features, bias=False)
            nn.init.ones_(single.weight)
            made.set_submodule(str(node.target), fuse_conv_bn_eval(single.eval(), norm))
    fuse_what_follows(made)
    return made


def watched(network: fx.GraphModule, run: Callable[[], object]) -> dict[str, Seen]:
    """Record the ranges of each convolution of `network` during `run`, by name, and under "" those of the images."""
    seen: dict[str, Seen] = {}

    def note(name: str, layer: nn.Module, inputs: tuple[Tensor], output: Tensor) -> None:
        before = seen.get(name, Seen(0.0, 0.0, inputs[0].shape))
        lowest, highest = (each.item() for each in (output if name else inputs[0]).aminmax())
        seen[name] = Seen(min(before.lowest, lowest), max(before.highest, highest), before.shape)

    layers = {name: layer for name, layer in network.named_modules() if not name or isinstance(layer, FusedConvolution)}
    hooks = [layer.register_forward_hook(functools.partial(note, name)) for name, layer in layers.items()]
    run()
    for hook in hooks:
        hook.remove()
    return seen
