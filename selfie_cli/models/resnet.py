"""ResNets as feature extractors: any number of stages, two stems, pre-activation or torchvision's own.

    B  images (or patches folded into the batch)      H, W  their height and width
    C  channels of the last stage                     h, w  the feature map's height and width

Pre-activation networks are those of He et al. 2016, "Identity mappings in deep residual networks". Module names follow
the ones that timm uses for the same networks, so that whole networks fit there.
"""

import functools
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

Stem = Literal["3x3", "7x7"]

# name: (bottleneck blocks?, blocks per stage, base width)
PREACTIVATION = {
    "resnetv2_50": (True, (3, 4, 6, 3), 64),
    "resnetv2_18": (False, (2, 2, 2, 2), 64),
    "resnetv2_18_w16": (False, (2, 2, 2, 2), 16),
    "resnetv2_10_w32": (False, (1, 1, 1, 1), 32),
}
TORCHVISION = {"resnet18": (False, (2, 2, 2, 2), 64), "resnet50": (True, (3, 4, 6, 3), 64)}
FOURTH_STAGE, FOURTH_NORM = ("stages.3.", "layer4."), "stages.3.blocks.0.norm1."


def stem_for(patch_size: int) -> Stem:
    """3x3 with stride 1 keeps small patches apart; from 32 px on, 7x7 with stride 2 and max-pooling, as on ImageNet."""
    return "3x3" if patch_size < 32 else "7x7"


def convolutions(channels_in: int, channels_out: int, *, stride: int, bottleneck: bool) -> list[nn.Conv2d]:
    """The convolutions of a block: two of 3x3, or 1x1, 3x3, 1x1 with a quarter of the channels inside."""
    if not bottleneck:
        first = nn.Conv2d(channels_in, channels_out, 3, stride, 1, bias=False)
        return [first, nn.Conv2d(channels_out, channels_out, 3, 1, 1, bias=False)]
    inner = channels_out // 4
    first, middle = nn.Conv2d(channels_in, inner, 1, bias=False), nn.Conv2d(inner, inner, 3, stride, 1, bias=False)
    return [first, middle, nn.Conv2d(inner, channels_out, 1, bias=False)]


class PreActivationBlock(nn.Module):
    """A residual block with each convolution after its norm and ReLU."""

    def __init__(self, channels_in: int, channels_out: int, *, stride: int, bottleneck: bool) -> None:
        super().__init__()
        self.downsample: nn.ModuleDict | None = None
        if stride != 1 or channels_in != channels_out:
            self.downsample = nn.ModuleDict({"conv": nn.Conv2d(channels_in, channels_out, 1, stride, bias=False)})
        each = convolutions(channels_in, channels_out, stride=stride, bottleneck=bottleneck)
        self.norm1, self.norm2 = (nn.BatchNorm2d(conv.in_channels) for conv in each[:2])
        self.conv1, self.conv2 = each[:2]
        if bottleneck:
            self.norm3, self.conv3 = nn.BatchNorm2d(each[2].in_channels), each[2]
        self.bottleneck = bottleneck

    def forward(self, x: Tensor) -> Tensor:
        activated = F.relu(self.norm1(x), inplace=True)
        shortcut = x if self.downsample is None else self.downsample["conv"](activated)
        y = self.conv2(F.relu(self.norm2(self.conv1(activated)), inplace=True))
        if self.bottleneck:
            y = self.conv3(F.relu(self.norm3(y), inplace=True))
        out: Tensor = y + shortcut
        return out


class ResNet(nn.Module):
    """The first `num_stages` stages of a ResNet. `num_features` is the number of channels of the last one.

    If `checkpointed`, only each stage's input is kept for the backward pass, which computes the rest again (Chen et al.
    2016, "Training deep nets with sublinear memory cost"): a third more work, far less memory.
    """

    checkpointed = False

    def __init__(self, shape: tuple[bool, tuple[int, ...], int], num_stages: int) -> None:
        super().__init__()
        bottleneck, _, width = self.shape = shape
        self.num_stages = num_stages
        self.num_features: int = width * 2 ** (num_stages - 1) * (4 if bottleneck else 1)

    def make_stages(self, block: "type[PreActivationBlock | TorchvisionBlock]") -> Iterator[nn.Sequential]:
        """Yield the blocks of each stage. From the second one on, the first block of a stage halves the side."""
        bottleneck, depths, width = self.shape
        channels = width
        for stage, depth in enumerate(depths[: self.num_stages]):
            channels_out = width * 2**stage * (4 if bottleneck else 1)
            blocks = nn.Sequential()
            for number in range(depth):
                stride = 2 if stage > 0 and number == 0 else 1
                blocks.append(block(channels, channels_out, stride=stride, bottleneck=bottleneck))
                channels = channels_out
            yield blocks

    def run_stage(self, stage: nn.Module, x: Tensor) -> Tensor:
        """Maps [B, C, H, W] -> [B, C', h, w]."""
        if not (self.checkpointed and torch.is_grad_enabled()):
            return stage(x)  # type: ignore[no-any-return]
        if torch.compiler.is_compiling():  # a compiled second pass does not change statistics
            return checkpoint(stage, x, use_reentrant=False, preserve_rng_state=False)  # type: ignore[no-any-return]
        again = functools.partial(statistics_kept, stage)
        return checkpoint(  # type: ignore[no-any-return]
            stage, x, use_reentrant=False, preserve_rng_state=False, context_fn=lambda: (nullcontext(), again())
        )


@contextmanager
def statistics_kept(module: nn.Module) -> Iterator[None]:
    """Context in which batch norms keep their running statistics, as they have seen this batch already."""
    norms = [layer for layer in module.modules() if isinstance(layer, nn.modules.batchnorm._BatchNorm)]
    before = [(layer.momentum, layer.num_batches_tracked) for layer in norms]
    for layer in norms:
        layer.momentum = 0.0
        if layer.num_batches_tracked is not None:  # SyncBatchNorm needs a tensor to count in
            layer.num_batches_tracked = torch.zeros_like(layer.num_batches_tracked)
    try:
        yield
    finally:
        for layer, (momentum, count) in zip(norms, before, strict=True):
            layer.momentum, layer.num_batches_tracked = momentum, count


def first_layers(stem: Stem, width: int) -> tuple[nn.Conv2d, nn.Module]:
    """The first convolution, and the pooling after it."""
    if stem == "3x3":
        return nn.Conv2d(3, width, 3, 1, 1, bias=False), nn.Identity()
    return nn.Conv2d(3, width, 7, 2, 3, bias=False), nn.MaxPool2d(3, 2, 1)


class PreActivationResNet(ResNet):
    """A pre-activation ResNet; `final_norm` adds `norm` (batch norm, then ReLU)."""

    def __init__(self, name: str, *, stem: Stem, num_stages: int, final_norm: bool) -> None:
        super().__init__(PREACTIVATION[name], num_stages)
        conv, pool = first_layers(stem, self.shape[2])
        self.stem, self.stem_pool = nn.ModuleDict({"conv": conv}), pool
        self.stages = nn.ModuleList(nn.ModuleDict({"blocks": each}) for each in self.make_stages(PreActivationBlock))
        self.norm = nn.BatchNorm2d(self.num_features) if final_norm else None

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem_pool(self.stem["conv"](x))
        for stage in self.stages:
            x = self.run_stage(stage.get_submodule("blocks"), x)  # [B, C, h, w]
        return x if self.norm is None else F.relu(self.norm(x))


class TorchvisionBlock(nn.Module):
    """Like `PreActivationBlock`, but with each convolution before its norm, and a ReLU after the sum."""

    def __init__(self, channels_in: int, channels_out: int, *, stride: int, bottleneck: bool) -> None:
        super().__init__()
        each = convolutions(channels_in, channels_out, stride=stride, bottleneck=bottleneck)
        self.conv1, self.bn1 = each[0], nn.BatchNorm2d(each[0].out_channels)
        self.conv2, self.bn2 = each[1], nn.BatchNorm2d(each[1].out_channels)
        if bottleneck:
            self.conv3, self.bn3 = each[2], nn.BatchNorm2d(each[2].out_channels)
        self.downsample: nn.Sequential | None = None
        if stride != 1 or channels_in != channels_out:
            conv = nn.Conv2d(channels_in, channels_out, 1, stride, bias=False)
            self.downsample = nn.Sequential(conv, nn.BatchNorm2d(channels_out))
        self.bottleneck = bottleneck

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)), inplace=True)))
        if self.bottleneck:
            y = self.bn3(self.conv3(F.relu(y, inplace=True)))
        y += x if self.downsample is None else self.downsample(x)
        return F.relu(y, inplace=True)


class TorchvisionResNet(ResNet):
    """torchvision's resnet18 or resnet50, under torchvision's own names.

    Written out here, since importing torchvision takes about as long as importing torch.
    """

    def __init__(self, name: str, *, stem: Stem, num_stages: int) -> None:
        super().__init__(TORCHVISION[name], num_stages)
        self.conv1, self.maxpool = first_layers(stem, self.shape[2])
        self.bn1 = nn.BatchNorm2d(self.shape[2])
        for number, blocks in enumerate(self.make_stages(TorchvisionBlock), 1):
            self.add_module(f"layer{number}", blocks)

    def forward(self, x: Tensor) -> Tensor:
        x = self.maxpool(F.relu(self.bn1(self.conv1(x)), inplace=True))
        for stage in range(1, self.num_stages + 1):
            x = self.run_stage(self.get_submodule(f"layer{stage}"), x)  # [B, C, h, w]
        return x


def resnet(name: str, *, stem: Stem, num_stages: int, final_norm: bool = True) -> ResNet:
    """A freshly initialized network that maps images [B, 3, H, W] (float, normalized) to feature maps [B, C, h, w].

    Convolutions start from He et al.'s normal distribution over the fan-out, batch norms from 1 and 0. `final_norm`
    has no effect on torchvision's networks, which end in a ReLU anyway. Weights are laid out channels-last.
    """
    network: ResNet
    if name in TORCHVISION:
        network = TorchvisionResNet(name, stem=stem, num_stages=num_stages)
    else:
        network = PreActivationResNet(name, stem=stem, num_stages=num_stages, final_norm=final_norm)
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    return network.to(memory_format=torch.channels_last)


def carried_over(state: dict[str, Tensor], num_stages: int = 4) -> dict[str, Tensor]:
    """Rename the state of a network of three or four stages for one of `num_stages`, and leave out what it lacks.

    A pre-activation network's closing norm is at the place of the fourth stage's first norm, so one becomes the other.
    """
    if any(name.startswith(FOURTH_STAGE) for name in state) == (num_stages == 4):
        return state
    before, after = ("norm.", FOURTH_NORM) if num_stages == 4 else (FOURTH_NORM, "norm.")
    norm = {after + name.removeprefix(before): tensor for name, tensor in state.items() if name.startswith(before)}
    return norm | {name: each for name, each in state.items() if not name.startswith(("norm.", *FOURTH_STAGE))}


def take_over(network: ResNet, pretrained: dict[str, Tensor]) -> None:
    """Load the state of a pretrained network of three or four stages; other stages keep their random weights.

    Raises RuntimeError if `pretrained` lacks a tensor, or holds one that is unknown here or of another shape.
    """
    missing, unexpected = network.load_state_dict(carried_over(pretrained, network.num_stages), strict=False)
    missing = [name for name in missing if not name.startswith(("norm.", *FOURTH_STAGE))]
    unexpected = [name for name in unexpected if not name.startswith("norm.")]  # the paper's Selfie may have none
    if unexpected or missing:
        raise RuntimeError(f"weights do not fit: unexpected {unexpected[:3]}, missing {missing[:3]}")
