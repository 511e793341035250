"""Several processes are to do what one does: real ones, two of them, over gloo on the CPU."""

import subprocess
from pathlib import Path

import pytest
from running import ENVIRONMENT, TORCHRUN
from safetensors.torch import load_file
from shared_batch import BATCH, NAMES, PIECE, STEPS, dealt, trained

from selfie_cli.errors import UsageError
from selfie_cli.training import distributed
from selfie_cli.training.distributed import Group, check_shared_memory, environment

LAUNCHED = {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}
WORKER = Path(__file__).with_name("shared_batch.py")


@pytest.fixture(scope="module")
def of_two(tmp_path_factory):
    """Results of two processes: a function of the task's name and micro-batch; a dictionary each."""
    folder = tmp_path_factory.mktemp("two")
    done = subprocess.run([*TORCHRUN, str(WORKER), str(folder)], env=ENVIRONMENT, capture_output=True, timeout=300)
    assert done.returncode == 0, done.stderr.decode()
    return lambda *what: [load_file(folder / " ".join(map(str, (*what, rank)))) for rank in (0, 1)]


def of_one(name, micro_batch):
    """One process, which sees at a time what two see together."""
    micro_batch = min(micro_batch, BATCH // 2)
    return trained(name, Group(), micro_batch=2 * micro_batch, order=dealt(2, micro_batch))


def part(found, kind):
    return {name: tensor.double() for name, tensor in found.items() if name.startswith(f"{kind} ")}


def distance(found, expected):
    """As a share of the expected tensors' length, all of them together."""
    pairs = [(found[name].double(), tensor) for name, tensor in expected.items()]
    return (sum((a - b).square().sum() for a, b in pairs) / sum(b.square().sum() for _, b in pairs)).sqrt().item()


@pytest.mark.parametrize("micro_batch", [BATCH, PIECE])
@pytest.mark.parametrize("name", NAMES)
def test_two_processes_train_as_one(of_two, name, micro_batch):
    """Losses to 5e-6, gradients to 2e-5 of their length, weights after two steps to 1e-5; both hold the same."""
    first, second = of_two(name, micro_batch)
    expected = of_one(name, micro_batch)
    assert first.keys() == second.keys() == expected.keys()
    assert all(tensor.equal(second[key]) for key, tensor in first.items())
    losses, gradients, weights = (part(expected, kind) for kind in ("loss", "gradient", "weight"))
    assert len(gradients) > 30
    assert len({round(loss.item(), 4) for loss in losses.values()}) == STEPS  # it moves
    for key in expected.keys() - losses.keys() - gradients.keys() - weights.keys():
        near = {"rel": 2e-5} if key.startswith("gradient_norm") else {"abs": 1e-6}
        assert first[key].item() == pytest.approx(expected[key].item(), **near)  # of all processes together
    for key, loss in losses.items():
        assert first[key].item() == pytest.approx(loss.item(), rel=5e-6)
    for key, gradient in gradients.items():
        assert distance(first, {key: gradient}) < 2e-5, key
    assert distance(first, weights) < 1e-5


def test_the_environment_says_who_we_are_or_is_refused(monkeypatch):
    def environment_with(**changed):
        for name, value in {**LAUNCHED, **changed}.items():
            monkeypatch.delenv(name, raising=False) if value is None else monkeypatch.setenv(name, value)
        return environment()

    assert environment_with() == Group(rank=3, world=4, local_rank=1, local_world=2)
    assert environment_with(WORLD_SIZE="1", RANK="0") == Group()  # torchrun with one process
    assert environment_with(WORLD_SIZE=None) == Group()
    for changed in (*({name: None} for name in LAUNCHED if name != "WORLD_SIZE"), {"WORLD_SIZE": "x"}):
        with pytest.raises(UsageError, match="processes with torchrun, or unset WORLD_SIZE"):
            environment_with(**changed)


def test_shared_memory_too_small_for_nccl_is_noticed(monkeypatch):
    monkeypatch.setattr(distributed, "shared_memory", lambda: 64 * 2**20)  # Docker's
    with pytest.raises(UsageError, match=r"64 MB.*8 processes.*--shm-size"):
        check_shared_memory(8)
    for enough in (2**30, None):  # macOS has none, and needs none
        monkeypatch.setattr(distributed, "shared_memory", lambda enough=enough: enough)
        check_shared_memory(8)
