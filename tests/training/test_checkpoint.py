import shutil
import threading

import pytest
import torch
from listening import Listener
from test_optimizers import NAMES, Small, advance, assert_same
from torch import nn

from selfie_cli.errors import RunError
from selfie_cli.files import write_json
from selfie_cli.talk import Talk
from selfie_cli.training import checkpoint
from selfie_cli.training.checkpoint import Saver, load_state, optimizer_tensors, read_state, saved_states
from selfie_cli.training.optimizers import make_optimizer
from selfie_cli.weights import load_weights, save_weights


def make(seed):
    module = Small(seed)
    return module, make_optimizer("sgd", module, lr=0.1, weight_decay=1e-4)


def save_state(folder, step, module, optimizer):
    checkpoint.save_state(folder, step, module.state_dict(), optimizer_tensors(optimizer))


@pytest.mark.parametrize("name", NAMES)
def test_a_saved_optimizer_goes_on_the_same_way(name, tmp_path):
    module, other = Small(), Small(seed=1)
    optimizer, loaded = (make_optimizer(name, one, lr=0.1, weight_decay=0.01) for one in (module, other))
    advance(module, optimizer, steps=3)
    save_state(tmp_path, 3, module, optimizer)
    assert load_state(tmp_path, other, loaded, Talk()) == (3, None)
    for parameter, state in loaded.state.items():  # in other layouts, other kernels would be used
        assert all(tensor.stride() == parameter.stride() for part, tensor in state.items() if part != "step")
    advance(module, optimizer, steps=4, seed=1)
    advance(other, loaded, steps=4, seed=1)
    assert_same(module.state_dict(), other.state_dict())


def test_the_count_of_steps_stays_on_the_cpu():
    """AdamW refuses it elsewhere. Even a parameter that is a single number must not take it along."""
    number = nn.Parameter(torch.tensor(0.7, dtype=torch.double, device="meta"))
    optimizer = torch.optim.AdamW([number], lr=0.1)
    averages = {f"0.{name}": torch.tensor(0.1) for name in ("exp_avg", "exp_avg_sq")}
    checkpoint.put_optimizer_tensors(optimizer, {"0.step": torch.tensor(3.0), **averages})
    step, average = optimizer.state[number]["step"], optimizer.state[number]["exp_avg"]
    assert (step.device.type, step.dtype, step.item()) == ("cpu", torch.float32, 3.0)
    assert (average.device.type, average.dtype) == ("meta", torch.double)


def test_it_starts_at_step_0_and_the_last_two_states_are_kept(tmp_path):
    module, optimizer = make(0)
    assert load_state(tmp_path / "state", module, optimizer, Talk()) == (0, None)
    save_state(tmp_path, 0, module, optimizer)  # there is no momentum yet
    other, other_optimizer = make(1)
    assert load_state(tmp_path, other, other_optimizer, Talk()) == (0, None)
    assert_same(other.state_dict(), module.state_dict())
    assert not other_optimizer.state
    for step in (5, 40, 300, 12_345_678):
        save_state(tmp_path, step, module, optimizer)
    assert [path.name for path in saved_states(tmp_path)] == ["00000300", "12345678"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["00000300", "12345678"]


def test_a_state_is_that_of_the_moment_though_it_is_written_later(tmp_path, monkeypatch):
    """The training goes on meanwhile, up to the next state."""
    module, optimizer = make(0)
    advance(module, optimizer, steps=3)
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    go_on, save = threading.Event(), checkpoint.save_weights
    monkeypatch.setattr(checkpoint, "save_weights", lambda *given: go_on.wait(10) and save(*given))
    with Saver(tmp_path) as saver:
        saver.save(3, module, optimizer)
        advance(module, optimizer, steps=3)
        assert saved_states(tmp_path) == []
        go_on.set()
        saver.save(6, module, optimizer)
        assert saved_states(tmp_path)[0].name == "00000003"
    assert_same(read_state(tmp_path / "00000003")[2], before)
    assert_same(read_state(tmp_path / "00000006")[2], module.state_dict())


@pytest.mark.parametrize("noticed", ["by the next state", "by a look", "at the end"])
def test_what_a_disk_refuses_is_raised(tmp_path, monkeypatch, noticed):
    def full(*given):
        raise OSError(28, "No space left on device")

    module, optimizer = make(0)
    monkeypatch.setattr(checkpoint, "save_weights", full)
    with pytest.raises(OSError, match="No space left"), Saver(tmp_path) as saver:  # noqa: PT012
        saver.save(3, module, optimizer)
        if noticed == "by the next state":
            saver.save(4, module, optimizer)
        if noticed == "by a look":
            saver.check(wait=True)
        assert noticed == "at the end"
    assert not list(tmp_path.iterdir())


@pytest.fixture
def two_states(tmp_path):
    """States of steps 3 and 6, and the weights of the first."""
    module, optimizer = make(0)
    advance(module, optimizer, steps=3)
    save_state(tmp_path, 3, module, optimizer)
    first = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    advance(module, optimizer, steps=3)
    save_state(tmp_path, 6, module, optimizer)
    return tmp_path, first


def truncate(file):
    file.write_bytes(file.read_bytes()[:-100])


def alter(file):
    data = bytearray(file.read_bytes())
    data[-5] ^= 1
    file.write_bytes(data)


def replace(file, tensors, header):
    """Write other tensors in place of a file, with right checksums."""
    save_weights(file, tensors, header)
    write_json(file.with_name("checksums.json"), checkpoint.checksums(file.parent))


DAMAGED = [
    *(("weights.safetensors", damage) for damage in (truncate, alter)),
    *(("optimizer.safetensors", damage) for damage in (alter, lambda file: file.unlink())),
    ("checksums.json", lambda file: file.write_bytes(b"")),
    ("weights.safetensors", lambda file: replace(file, load_weights(file)[0], {"step": 9})),
]


@pytest.mark.parametrize(("name", "damage"), DAMAGED)
def test_a_damaged_newest_state_is_passed_over_and_replaced_when_its_step_is_reached_again(two_states, name, damage):
    folder, first = two_states
    shutil.copytree(folder / "00000003", folder / ".tmp-1234-00000012")  # half-written
    damage(folder / "00000006" / name)
    module, optimizer = make(1)
    listener = Listener()
    assert load_state(folder, module, optimizer, listener) == (3, None)
    assert_same(module.state_dict(), first)
    assert len(listener.warned) == 1
    assert "00000006" in listener.warned[0]

    advance(module, optimizer, steps=3)
    save_state(folder, 6, module, optimizer)
    other, other_optimizer = make(2)
    assert load_state(folder, other, other_optimizer, Talk()) == (6, None)
    assert_same(other.state_dict(), module.state_dict())
    damage(folder / "00000006" / name)  # nor does it take the place of a good one
    save_state(folder, 4, module, optimizer)
    assert [path.name for path in saved_states(folder)] == ["00000003", "00000004"]


def test_states_that_cannot_be_read_are_an_error(two_states):
    folder, _ = two_states
    for path in saved_states(folder):
        alter(path / "optimizer.safetensors")
    with pytest.raises(RunError, match=r"no state in .* can be read.*--overwrite"):
        load_state(folder, *make(1), Talk())


def test_a_state_of_another_network_or_optimizer_is_an_error(two_states):
    folder, _ = two_states
    refused = pytest.raises(RunError, match=r"of another network or optimizer .*--overwrite")
    module, optimizer = make(1)
    module.more = nn.Linear(1, 1)
    with refused:
        load_state(folder, module, optimizer, Talk())
    module, _ = make(1)
    with pytest.raises(RunError, match="momentum_buffer"):  # SGD's momenta are not AdamW's moments
        load_state(folder, module, torch.optim.AdamW(module.parameters()), Talk())
    # A number that copy_ would spread, a parameter that is not there, and no name of a parameter.
    for name, shape in (("1.momentum_buffer", ()), ("9.momentum_buffer", (1,)), ("x", (7,))):
        replace(folder / "00000006" / "optimizer.safetensors", {name: torch.zeros(shape)}, {"step": 6})
        with refused:
            load_state(folder, *make(1), Talk())
