import copy
import itertools
from collections import OrderedDict

import pytest
import timm
import torch
import torchvision

from selfie_cli.models.resnet import TORCHVISION, TorchvisionResNet, resnet, take_over
from tests.methods.small_methods import BACKBONE, stirred


def test_weights_are_channels_last_and_start_from_the_fan_out():
    torch.manual_seed(0)
    network = resnet("resnetv2_18", stem="3x3", num_stages=4)
    for name, parameter in network.named_parameters():
        if parameter.dim() == 4:
            assert parameter.is_contiguous(memory_format=torch.channels_last), name
            fan_out = parameter.shape[0] * parameter.shape[2] * parameter.shape[3]
            assert parameter.std().item() == pytest.approx((2 / fan_out) ** 0.5, rel=0.1), name


def of_a_library(name, stem):
    """The network as torchvision or timm has it; for a 3x3 stem, their first layers are exchanged."""
    small = torch.nn.Conv2d(3, 64, 3, padding=1, bias=False)
    if name in TORCHVISION:
        network = getattr(torchvision.models, name)()
        network.fc = torch.nn.Identity()
        if stem == "3x3":
            network.conv1, network.maxpool = small, torch.nn.Identity()
    else:
        network = timm.create_model(name, num_classes=0)
        if stem == "3x3":
            network.stem = torch.nn.Sequential(OrderedDict(conv=small))
    return stirred(network).double().eval()


@pytest.mark.parametrize("stem", ["3x3", "7x7"])
@pytest.mark.parametrize("name", [*TORCHVISION, "resnetv2_18", "resnetv2_50"])
def test_networks_are_those_of_torchvision_and_timm(name, stem):
    theirs, ours = of_a_library(name, stem), resnet(name, stem=stem, num_stages=4).double().eval()
    assert ours.state_dict().keys() == theirs.state_dict().keys()
    ours.load_state_dict(theirs.state_dict())
    images = torch.randn(2, 3, 48, 48, dtype=torch.double)
    with torch.no_grad():
        torch.testing.assert_close(ours(images).mean(dim=(2, 3)), theirs(images))


def after_three_stages(network, images):
    if network.num_stages == 3:
        return network(images)
    found = []
    last = network.layer3 if isinstance(network, TorchvisionResNet) else network.stages[3]["blocks"][0].norm1
    last.register_forward_hook(lambda module, inputs, output: found.append(output.relu()))
    network(images)
    return found[0]


@pytest.mark.parametrize("given", [3, 4])
@pytest.mark.parametrize("taking", [3, 4])
@pytest.mark.parametrize("name", [BACKBONE, "resnet18"])
def test_stages_taken_over_compute_what_they_did(name, given, taking):
    source, network = (resnet(name, stem="3x3", num_stages=stages).double().eval() for stages in (given, taking))
    take_over(network, stirred(source).state_dict())
    images = torch.randn(2, 3, 32, 32, dtype=torch.double)
    with torch.no_grad():
        torch.testing.assert_close(after_three_stages(network, images), after_three_stages(source, images))
        assert network(images).equal(source(images)) == (given == taking)


def state_of(name=BACKBONE, **options):
    return resnet(name, **{"stem": "3x3", "num_stages": 3} | options).state_dict()


HOLE = {key: tensor for key, tensor in state_of().items() if key != "stages.1.blocks.0.conv1.weight"}
ANOTHER = (state_of("resnetv2_18"), state_of(stem="7x7"), state_of("resnet18"))


@pytest.mark.parametrize("state", [*ANOTHER, {}, HOLE, state_of() | {"head.weight": torch.zeros(3)}])
def test_what_does_not_fit_is_refused(state):
    with pytest.raises(RuntimeError):
        take_over(resnet(BACKBONE, stem="3x3", num_stages=4), state)


def backward(network, images):
    """The maps, the bytes that were kept for the backward pass, and the gradients of weights and images."""
    kept = {}

    def note(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    images = images.clone().requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        maps = network(images)
    maps.square().mean().backward()
    return maps, sum(kept.values()), [images.grad, *(parameter.grad for parameter in network.parameters())]


@pytest.mark.parametrize(
    ("name", "how"), [*itertools.product((BACKBONE, "resnet18"), ("fp32", "synchronized")), (BACKBONE, "bf16")]
)
def test_checkpointing_changes_nothing_but_what_is_kept(name, how):
    """Synchronized batch norm refuses to count in nothing, and in one process does what batch norm does."""
    torch.manual_seed(0)
    network = resnet(name, stem="3x3", num_stages=4).train()
    lean = copy.deepcopy(network)
    if how == "synchronized":
        lean = torch.nn.SyncBatchNorm.convert_sync_batchnorm(lean)
    lean.checkpointed = True
    images = torch.randn(8, 3, 16, 16)
    with torch.autocast("cpu", torch.bfloat16, enabled=how == "bf16"):
        maps, kept, gradients = backward(network, images)
        same_maps, kept_lean, same_gradients = backward(lean, images)
    assert same_maps.equal(maps)
    for gradient, same in zip(gradients, same_gradients, strict=True):
        assert (gradient - same).norm() <= 1e-6 * gradient.norm()
    weights = sum(parameter.numel() * 4 for parameter in network.parameters())
    assert kept_lean - weights < 0.5 * (kept - weights)
    for key, buffer in network.named_buffers():  # batch norm's statistics have seen the batch once
        assert buffer.equal(lean.get_buffer(key)), key
    assert all(layer.momentum == 0.1 for layer in lean.modules() if isinstance(layer, torch.nn.BatchNorm2d))


@pytest.mark.usefixtures("compiler")
def test_checkpointing_under_torch_compile():
    """Statistics, too, see each batch once."""
    torch.manual_seed(0)
    network = resnet(BACKBONE, stem="3x3", num_stages=1).train()
    lean = copy.deepcopy(network)
    lean.checkpointed = True
    lean.compile(dynamic=False)
    images = torch.randn(4, 3, 16, 16)
    for _ in range(2):
        for each in (network, lean):
            each.zero_grad()
            each(images).square().mean().backward()
    for parameter, same in zip(network.parameters(), lean.parameters(), strict=True):
        assert (parameter.grad - same.grad).norm() < 1e-4 * parameter.grad.norm()
    for key, buffer in network.named_buffers():
        torch.testing.assert_close(lean.get_buffer(key), buffer)
