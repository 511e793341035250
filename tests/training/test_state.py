import shutil

import pytest
import torch
from torch import nn

from selfie_cli.errors import RunError
from selfie_cli.talk import Talk
from selfie_cli.training.state import load_state, save_state, saved_states


class Listener(Talk):
    def __init__(self):
        self.warnings = []

    def warn(self, line):
        self.warnings.append(line)


def make(seed):
    torch.manual_seed(seed)
    module = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Flatten(), nn.Linear(8, 1))
    module = module.to(memory_format=torch.channels_last)
    return module, torch.optim.SGD(module.parameters(), lr=0.1, momentum=0.9, nesterov=True, weight_decay=1e-4)


def advance(module, optimizer, steps=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        optimizer.zero_grad()
        module(torch.randn(4, 3, 3, 3, generator=generator)).square().mean().backward()
        optimizer.step()


def assert_same(a, b):
    assert a.keys() == b.keys()
    for name, tensor in a.items():
        assert tensor.equal(b[name]), name


def momenta(module, optimizer):
    return {name: optimizer.state[parameter]["momentum_buffer"] for name, parameter in module.named_parameters()}


def test_what_is_saved_comes_back_and_goes_on_the_same_way(tmp_path):
    module, optimizer = make(0)
    advance(module, optimizer)
    save_state(tmp_path, 3, module, optimizer)

    other, other_optimizer = make(1)
    assert load_state(tmp_path, other, other_optimizer, Talk()) == 3
    assert_same(other.state_dict(), module.state_dict())
    assert_same(momenta(other, other_optimizer), momenta(module, optimizer))
    assert other[1].num_batches_tracked == 3
    assert other[0].weight.is_contiguous(memory_format=torch.channels_last)

    advance(module, optimizer, seed=1)
    advance(other, other_optimizer, seed=1)
    assert_same(other.state_dict(), module.state_dict())


def test_before_the_first_step_there_is_no_momentum(tmp_path):
    module, optimizer = make(0)
    save_state(tmp_path, 0, module, optimizer)
    other, other_optimizer = make(1)
    assert load_state(tmp_path, other, other_optimizer, Talk()) == 0
    assert_same(other.state_dict(), module.state_dict())
    assert not other_optimizer.state


def test_without_a_state_it_starts_at_step_0(tmp_path):
    module, optimizer = make(0)
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    assert load_state(tmp_path / "state", module, optimizer, Talk()) == 0
    assert_same(module.state_dict(), before)


def test_the_last_two_are_kept(tmp_path):
    module, optimizer = make(0)
    for step in (5, 40, 300, 12_345_678):
        save_state(tmp_path, step, module, optimizer)
    assert [path.name for path in saved_states(tmp_path)] == ["00000300", "12345678"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["00000300", "12345678"]


@pytest.fixture
def two_states(tmp_path):
    """Two states, and the module as it was at the first."""
    module, optimizer = make(0)
    advance(module, optimizer)
    save_state(tmp_path, 3, module, optimizer)
    first = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    advance(module, optimizer)
    save_state(tmp_path, 6, module, optimizer)
    return tmp_path, first


def truncate(file):
    file.write_bytes(file.read_bytes()[:-100])


@pytest.mark.parametrize("damage", [truncate, lambda file: file.unlink(), lambda file: file.write_bytes(b"")])
@pytest.mark.parametrize("name", ["weights.safetensors", "optimizer.safetensors"])
def test_a_damaged_newest_state_is_passed_over(two_states, name, damage):
    folder, first = two_states
    damage(folder / "00000006" / name)
    module, optimizer = make(1)
    listener = Listener()
    assert load_state(folder, module, optimizer, listener) == 3
    assert_same(module.state_dict(), first)
    assert len(listener.warnings) == 1
    assert "00000006" in listener.warnings[0]


def test_a_damaged_state_is_replaced_when_its_step_is_reached_again(two_states):
    folder, _ = two_states
    truncate(folder / "00000006" / "weights.safetensors")
    module, optimizer = make(1)
    load_state(folder, module, optimizer, Talk())
    advance(module, optimizer)
    save_state(folder, 6, module, optimizer)
    other, other_optimizer = make(2)
    assert load_state(folder, other, other_optimizer, Talk()) == 6
    assert_same(other.state_dict(), module.state_dict())


def test_states_that_cannot_be_read_are_an_error(two_states):
    folder, _ = two_states
    for path in saved_states(folder):
        truncate(path / "weights.safetensors")
    with pytest.raises(RunError, match="--overwrite"):
        load_state(folder, *make(1), Talk())


def test_a_state_of_another_network_is_an_error(two_states):
    folder, _ = two_states
    other = nn.Linear(3, 3)
    listener = Listener()
    with pytest.raises(RunError):
        load_state(folder, other, torch.optim.SGD(other.parameters(), lr=0.1), listener)
    assert len(listener.warnings) == 2


def test_a_half_written_state_is_not_looked_at(two_states):
    folder, _ = two_states
    shutil.copytree(folder / "00000003", folder / ".tmp-1234-00000009")
    module, optimizer = make(1)
    assert load_state(folder, module, optimizer, Talk()) == 6
