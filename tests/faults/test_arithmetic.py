"""Numbers that are not finite in one step of a real run."""

import sys
from collections.abc import Callable
from pathlib import Path
from random import Random

import pytest
from processes import STEPS, Process, Undisturbed, go_on, states
from safetensors.torch import load_file

from selfie_cli.data.batches import step_seed
from selfie_cli.training.checkpoint import WEIGHTS

METHODS = {"selfie": "many_views.ManyViewSelfie", "byol": "byol.Byol", "simclr": "simclr.SimCLR"}
# The program, with a change in one step, which is told by its seed.
PROGRAM = """
import importlib

import torch

from selfie_cli.__main__ import main

module, name = "{method}".split(".")
kind = getattr(importlib.import_module("selfie_cli.methods." + module), name)
loss_of = kind.loss


def loss(self, *views):
    found, extra = loss_of(self, *views)
    if torch.initial_seed() == {seed}:
        {spoil}
    return found, extra


kind.loss = loss
main()
"""
SPOILS = {
    "the loss": "found = found * float('{value}')",
    "the gradient": "found.register_hook(lambda gradient: gradient * float('{value}'))",
}
Reference = Callable[..., Undisturbed]
Say = Callable[[str], None]


@pytest.mark.fault("a loss or gradient that is not finite, in any step", times=20)
def test_not_finite(undisturbed: Reference, tmp_path: Path, chance: Random, happened: Say) -> None:
    """The run ends, and resumed without the fault it goes on from what it had."""
    method, what, step = chance.choice(sorted(METHODS)), chance.choice(sorted(SPOILS)), chance.randrange(STEPS)
    whole, run = undisturbed(f"pretrain ({method})"), tmp_path / "run"
    spoil = SPOILS[what].format(value=chance.choice(("nan", "inf")))
    program = PROGRAM.format(method=METHODS[method], seed=step_seed(0, step, 1), spoil=spoil)
    argv = (sys.executable, "-c", program)
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
