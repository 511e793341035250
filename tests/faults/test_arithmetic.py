"""Numbers that are not finite, and memory that does not suffice, in one step of a real run."""

import sys
from collections.abc import Callable
from pathlib import Path
from random import Random

import pytest
from processes import STEPS, Process, Undisturbed, go_on, made_by, states
from safetensors.torch import load_file

from selfie_cli.data.batches import step_seed
from selfie_cli.files import read_json
from selfie_cli.training.checkpoint import WEIGHTS

METHODS = {"selfie": "many_views.ManyViewSelfie", "byol": "byol.Byol", "simclr": "simclr.SimCLR"}
# The program, with a change in some steps, which are told by their seeds.
PROGRAM = """
import importlib

import torch

from selfie_cli.__main__ import main

module, name = "{method}".split(".")
kind = getattr(importlib.import_module("selfie_cli.methods." + module), name)
loss_of = kind.loss


def loss(self, *views):
    found, extra = loss_of(self, *views)
    if torch.initial_seed() in {seeds}:
        {spoil}
    return found, extra


kind.loss = loss
main()
"""
SPOILS = {
    "the loss": "found = found * float('{value}')",
    "the gradient": "found.register_hook(lambda gradient: gradient * float('{value}'))",
}
NO_MEMORY = """if len(views[0]) > 4 * self.num_views:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")"""
Reference = Callable[..., Undisturbed]
Say = Callable[[str], None]


def program(method: str, steps: range, spoil: str) -> tuple[str, ...]:
    seeds = {step_seed(0, step, 1) for step in steps}
    return sys.executable, "-c", PROGRAM.format(method=METHODS[method], seeds=seeds, spoil=spoil)


@pytest.mark.fault("a loss or gradient that is not finite, in any step", times=20)
def test_not_finite(undisturbed: Reference, tmp_path: Path, chance: Random, happened: Say) -> None:
    """The run ends, and resumed without the fault it goes on from what it had."""
    method, what, step = chance.choice(sorted(METHODS)), chance.choice(sorted(SPOILS)), chance.randrange(STEPS)
    whole, run = undisturbed(f"pretrain ({method})"), tmp_path / "run"
    argv = program(method, range(step, step + 1), SPOILS[what].format(value=chance.choice(("nan", "inf"))))
    with Process(*whole.words, "--out", run, log=tmp_path / "log", argv=argv) as process:
        assert process.end() == 1
    assert f"error: {what} is not a finite number in step {step + 1}" in process.said
    assert f"selfie pretrain --resume {run} --lr " in process.said
    for state in states(run):
        assert int(state.name) <= step, "a state is of a step after the bad one"
        weights = load_file(state / WEIGHTS).values()
        assert all(each.isfinite().all() for each in weights if each.is_floating_point())
    go_on(run, whole)
    happened("stopped before the weights, said which step; the resumed run ends as an undisturbed one")


@pytest.mark.fault("memory runs out in any step", times=10)
def test_memory(undisturbed: Reference, tmp_path: Path, chance: Random, happened: Say) -> None:
    """From some step on memory is enough for half of a batch; a second run of the same is killed, and resumed."""
    step, whole = chance.randrange(STEPS // 2), undisturbed("pretrain (selfie)")
    argv = program("selfie", range(step, STEPS), NO_MEMORY)
    runs = tmp_path / "through", tmp_path / "killed"
    for run in runs:
        with Process(*whole.words, "--out", run, log=tmp_path / "log", argv=argv) as process:
            if run.name == "killed":
                process.until(lambda run=run: any(int(state.name) > step for state in states(run)))
                process.popen.kill()
            code = process.end()
        assert process.said.count("out of memory") == 1
        assert code in (0, -9)
        if code:
            with Process("pretrain", "--resume", run, log=tmp_path / "again", argv=argv) as again:
                assert again.end() == 0
            assert "out of memory" not in again.said, "a resumed run tries large pieces again"
        assert read_json(run / "config.json")["measured"]["micro_batch"] == 4
    assert made_by(runs[0]) == made_by(runs[1])
    assert made_by(runs[0]) != whole.made, "nothing went through in pieces"
    happened("went on with half at once, and said so; killed and resumed with the same weights")
