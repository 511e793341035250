"""Measuring the machine, and fitting a training to it without leaving a trace."""

import os
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from listening import Listener
from shared_batch import batch_of, make_step
from torch import nn

from selfie_cli.data.batches import step_generator
from selfie_cli.errors import TrainingError, UsageError
from selfie_cli.methods.supervised import Supervised
from selfie_cli.talk import Talk
from selfie_cli.training import hardware as machine
from selfie_cli.training.distributed import Group
from selfie_cli.training.hardware import fit, micro_batch_for, num_cores, precisions, prepare, quotas, seconds_a_step
from tests.methods.small_methods import make_task

ROOM = 2**40


def test_quotas_of_a_control_group(tmp_path):
    (tmp_path / "cpu").mkdir()
    for name, text, expected in (
        ("cpu.max", "max 100000", []),
        ("cpu.max", "250000 100000", [2]),
        ("cpu.max", "20000 100000", [1]),  # a fifth of a core is a core to us
        ("cpu/cpu.cfs_quota_us", "400000", [1]),
        ("cpu/cpu.cfs_period_us", "100000", [1, 4]),
    ):
        (tmp_path / name).write_text(f"{text}\n")
        assert list(quotas(tmp_path)) == expected


CORES = [
    *((8, None, 1, None, 8), (8, 3, 1, None, 3), (8, None, 1, "1", 1), (8, None, 1, "many", 8)),
    *((16, None, 4, None, 4), (2, None, 4, None, 1)),  # processes on a machine share its cores
    *((16, None, 4, "1", 4), (16, None, 4, "3", 3)),  # torchrun's own single thread says nothing
]


@pytest.mark.parametrize(("cores", "quota", "processes", "threads", "expected"), CORES)
def test_cores(monkeypatch, cores, quota, processes, threads, expected):
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(cores)), raising=False)
    monkeypatch.setattr(machine, "quotas", lambda mount: iter([quota] if quota else []))
    monkeypatch.setattr(machine, "environment", lambda: Group(0, 2 * processes, 0, processes))
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if threads:
        monkeypatch.setenv("OMP_NUM_THREADS", threads)
    assert num_cores() == expected


def test_what_precisions_are_tried(monkeypatch):
    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    monkeypatch.setattr(machine, "bf16_pays", lambda device: True)
    assert (precisions(cpu, "auto"), precisions(gpu, "auto")) == (["fp32", "bf16"], ["bf16"])
    assert precisions(cpu, "auto", deterministic=True) == ["fp32"]
    assert precisions(cpu, "bf16") == precisions(gpu, "bf16") == ["bf16"]
    monkeypatch.setattr(machine, "bf16_pays", lambda device: False)
    assert precisions(cpu, "auto") == precisions(gpu, "auto") == ["fp32"]


def state_of(step):
    tensors = {name: tensor.clone() for name, tensor in step.module.state_dict().items()}
    return tensors, [part.training for part in step.module.modules()]


def assert_untouched(step, before):
    tensors, modes = before
    assert all(tensor.equal(tensors[name]) for name, tensor in step.module.state_dict().items())
    assert [part.training for part in step.module.modules()] == modes
    assert not step.optimizer.state
    assert all(parameter.grad is None for parameter in step.module.parameters())


@pytest.mark.parametrize("name", ["byol", "supervised"])
def test_fitting_leaves_no_trace(name, monkeypatch):
    """Not in weights, statistics, BYOL's target, optimizer and mode: bit for bit."""
    monkeypatch.setattr(machine, "seconds_a_step", seconds_a_step)
    step = make_step(name, lr=0.1)
    step.module.eval()
    before = state_of(step)
    assert fit(step, batch_of(step.task, 0), ["fp32"], Talk()) > 0
    assert_untouched(step, before)


def test_the_faster_precision_is_taken(monkeypatch):
    step, listener, times = make_step("supervised"), Listener(), {"fp32": 2.0, "bf16": 0.5}
    monkeypatch.setattr(machine, "seconds_a_step", lambda step, batch: times[step.precision])
    batch = batch_of(step.task, 0)
    assert fit(step, batch, ["fp32", "bf16"], listener) == 0.5
    assert step.precision == "bf16"
    assert listener.said == ["precision bf16: measured 8 images/s in fp32 and 32 images/s in bf16"]
    times["bf16"] = 3.0
    assert fit(step, batch, ["fp32", "bf16"], Talk()) == 2.0
    assert step.precision == "fp32"


def test_a_compiler_without_memory_is_not_called_broken():
    step, listener = make_step("supervised"), Listener()
    step.compiled = True

    def no_room():
        raise RuntimeError("backend='inductor' raised:\nOutOfMemoryError: CUDA out of memory.")

    with pytest.raises(RuntimeError, match="CUDA out of memory"):
        machine.tried_out(step, no_room, listener)
    assert not listener.warned
    assert step.compiled


def test_kernels_that_differ_from_run_to_run_are_avoided_or_named():
    task, places = make_task("supervised"), torch.zeros(1, 1, 2, 2, dtype=torch.int64)
    task.loss = lambda *views: (F.max_unpool2d(torch.zeros(1, 1, 2, 2), places, 2).sum(), {})
    step = make_step(task)
    prepare("cpu", deterministic=True)
    try:
        with pytest.raises(TrainingError, match="--deterministic is not possible here: max_unpool"):
            fit(step, batch_of(task, 0), ["fp32"], Talk())
    finally:
        prepare("cpu")
    assert not torch.are_deterministic_algorithms_enabled()


def test_the_micro_batch_goes_by_memory(monkeypatch):
    step = make_step("many-view selfie")
    before = state_of(step)
    batch = tuple(torch.cat([tensor] * 7) for tensor in batch_of(step.task, 0))

    def with_room(room, size=64):
        monkeypatch.setattr(machine, "available_memory", lambda: room)
        return micro_batch_for(step, tuple(tensor[:size] for tensor in batch))

    assert with_room(ROOM) == 64
    weights = sum(parameter.numel() * 4 for parameter in step.learning)
    sizes = [with_room(2 * (4 * weights + room)) for room in (2**28, 2**26, 2**24, 2**22, 0)]
    assert sizes == sorted(sizes, reverse=True)
    assert len(set(sizes)) > 3
    assert sizes[-1] == 1
    assert_untouched(step, before)
    step.smallest = 2
    assert with_room(8 * weights, 101) == 3  # 51, 26, 13, 7, then 3: four would leave one over


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_memory_of_an_image_does_not_count_weights(precision, monkeypatch):
    """A network of many weights and few activations: in bf16, autocast keeps copies of them of half the size."""
    wide = nn.Sequential(nn.Flatten(), nn.Linear(3072, 2000), nn.Linear(2000, 2000), nn.Linear(2000, 10))
    task = Supervised(wide, image_size=32, min_crop=0.5)
    step = make_step(task, precision=precision)
    pixels = torch.zeros(8, 32, 32, 3, dtype=torch.uint8)
    batch = (pixels, torch.zeros(8, dtype=torch.int64), task.draw(8, step_generator(0, 0)))
    one, two = (machine.bytes_for_backward(step, tuple(part[:count] for part in batch)) for count in (4, 8))
    numbers = 3072 + 2000 + 2000 + 10  # what the three layers and the loss keep
    assert (two - one) / 4 == pytest.approx(numbers * (2 if precision == "bf16" else 4), rel=0.05)
    weights = sum(parameter.numel() * 4 for parameter in wide.parameters())
    monkeypatch.setattr(machine, "available_memory", lambda: 2 * (4 * weights + 40 * numbers * 4))
    assert micro_batch_for(step, tuple(torch.cat([part] * 64) for part in batch)) == (64 if precision == "bf16" else 32)


@pytest.mark.parametrize(("seen", "fits"), [(["a", "b"], True), (["a", "a"], False)])
def test_each_process_has_a_gpu_of_its_own(seen, fits, monkeypatch):
    """Slurm may show each process one GPU, which both call the first."""
    monkeypatch.setattr(Group, "gather", lambda self, mine: seen)
    monkeypatch.setattr(machine, "group", lambda: Group(1, 2, 1, 2))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(uuid=seen[1]))
    if fits:
        assert prepare("auto") == torch.device("cuda", 0)
    else:
        with pytest.raises(UsageError, match="2 processes were started for 1 GPU: give torchrun a smaller --nproc"):
            prepare("auto")
