import numpy as np
import pytest
import torch
from torch import nn

from selfie_cli.training.optimizers import LARS, make_optimizer

NAMES = ("sgd", "lars", "adamw")


class Small(nn.Module):
    """A parameter of every kind: a convolution's (channels-last), a matrix, vectors, a number, and a frozen one."""

    def __init__(self, seed=0):
        super().__init__()
        torch.manual_seed(seed)
        self.conv = nn.Conv2d(3, 8, 3)
        self.norm = nn.BatchNorm2d(8)
        self.frozen = nn.Parameter(torch.randn(8, 8), requires_grad=False)
        self.last = nn.Linear(8, 2)
        self.scale = nn.Parameter(torch.tensor(0.7))
        self.to(memory_format=torch.channels_last)

    def forward(self, x):
        return self.scale * self.last(self.norm(self.conv(x)).mean(dim=(2, 3)) @ self.frozen)


def advance(module, optimizer, *, steps, seed=0):
    generator = torch.Generator().manual_seed(seed)
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = 0.1 / (step + 1)
        optimizer.zero_grad()
        module(torch.randn(4, 3, 5, 5, generator=generator)).square().mean().backward()
        optimizer.step()


def assert_same(a, b):
    assert a.keys() == b.keys()
    for name, tensor in a.items():
        assert tensor.equal(b[name]), name


@pytest.mark.parametrize("shape", [(4, 3), (4, 3, 2, 2), (5,), ()], ids=str)
@pytest.mark.parametrize(("scale", "weight_decay"), [(1.0, 0.1), (0.0, 0.0)])
def test_lars_agrees_with_numpy(shape, scale, weight_decay):
    """Also where a norm is zero: that of the weights at the beginning, and that of the fourth gradient."""
    rng = np.random.default_rng(0)
    w, gradients, rates = scale * rng.normal(size=shape), rng.normal(size=(6, *shape)), [0.3, 1, 4, 4, 2, 0.1]
    gradients[3] *= scale
    velocity, parameter = np.zeros_like(w), nn.Parameter(torch.tensor(w))
    optimizer = LARS([parameter], lr=1.0, weight_decay=weight_decay)
    for gradient, rate in zip(gradients, rates, strict=True):
        optimizer.param_groups[0]["lr"] = rate
        parameter.grad = torch.tensor(gradient)
        optimizer.step()
        # Once more, with a momentum of 0.9 and a trust coefficient of 1e-3.
        if w.ndim >= 2:
            gradient = gradient + weight_decay * w
            size, length = np.sqrt((w**2).sum()), np.sqrt((gradient**2).sum())
            if size > 0 and length > 0:
                gradient = gradient * 1e-3 * size / length
        velocity = 0.9 * velocity + gradient
        w = w - rate * velocity
        np.testing.assert_allclose(parameter.detach().numpy(), w, rtol=1e-12)


@pytest.mark.parametrize("name", NAMES)
def test_what_decays_and_that_frozen_parameters_are_left_out(name):
    """Without a gradient from the loss, what is left of a step is the decay."""
    module = Small()
    before = {key: tensor.clone() for key, tensor in module.named_parameters()}
    optimizer = make_optimizer(name, module, lr=0.1, weight_decay=0.5)
    taken = [id(parameter) for group in optimizer.param_groups for parameter in group["params"]]
    learning = {key: parameter for key, parameter in module.named_parameters() if parameter.requires_grad}
    assert sorted(taken) == sorted(map(id, learning.values()))
    for parameter in learning.values():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    moved = {key for key, tensor in module.named_parameters() if not tensor.equal(before[key])}
    not_zero = {key for key in learning if bool(before[key].any())}
    assert moved == (not_zero if name == "sgd" else {"conv.weight", "last.weight"})
