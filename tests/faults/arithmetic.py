"""Numbers that are not finite, and memory that does not suffice: put into one step of a real run."""

import random
import sys
from pathlib import Path

from injection import Fault
from running import same_weights
from safetensors.torch import load_file
from stops import STEPS, Process, check_whole, demand, go_on, pretrained

from selfie_cli.data.batches import step_seed
from selfie_cli.files import read_json
from selfie_cli.training.checkpoint import WEIGHTS, saved_states

METHODS = {"selfie": "many_views.ManyViewSelfie", "byol": "byol.Byol", "simclr": "simclr.SimCLR"}
# The program, with something done in a step, which is told by its seed.
PROGRAM = """
import importlib

import torch

from selfie_cli.__main__ import main

module, name = "{method}".split(".")
kind = getattr(importlib.import_module("selfie_cli.methods." + module), name)
loss_of = kind.loss


def loss(self, *views):
    found, extra = loss_of(self, *views)
    if torch.initial_seed() {when} {seed}:
        {spoil}
    return found, extra


kind.loss = loss
main()
"""
SPOILS = {
    "the loss": "found = found * {value}",
    "the gradient": "found.register_hook(lambda gradient: gradient * {value})",
}
NO_MEMORY = """if len(views[0]) > 4 * self.num_views:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")"""


def spoiled(folder: Path, chance: random.Random) -> str:
    """A loss or a gradient is infinite or no number: the run ends, and without that it goes on from what it had."""
    method, what = chance.choice(sorted(METHODS)), chance.choice(sorted(SPOILS))
    step, value = chance.randrange(STEPS), chance.choice(["float('nan')", "float('inf')"])
    whole, run = pretrained(method), folder / "run"
    spoil = SPOILS[what].format(value=value)
    program = PROGRAM.format(method=METHODS[method], when="==", seed=step_seed(0, step, 1), spoil=spoil)
    words = (*whole.words, "--out", run)
    with Process(*words, log=folder / "log", program=(sys.executable, "-c", program)) as process:
        code = process.end()
    demand(code == 1, f"exit code {code}")
    demand(f"error: {what} is not a finite number in step {step + 1}" in process.said, f"said: {process.said[-300:]}")
    demand(f"selfie pretrain --resume {run} --lr " in process.said, "nobody is told how to go on")
    for state in saved_states(run / "state"):
        demand(int(state.name) <= step, "a state is of a step after the bad one")
        weights = load_file(state / WEIGHTS).values()
        demand(all(each.isfinite().all() for each in weights if each.is_floating_point()), "a state is not finite")
    go_on(run, whole, folder)
    check_whole(run, whole)
    return "stopped before the weights, said which step; the resumed run ends as an undisturbed one"


def short_of_memory(folder: Path, chance: random.Random) -> str:
    """From some step on memory is enough for half of a batch; another run of the same is killed, and resumed."""
    step = chance.randrange(STEPS // 2)
    program = PROGRAM.format(
        method=METHODS["selfie"],
        when="in",
        spoil=NO_MEMORY,
        seed={step_seed(0, each, 1) for each in range(step, STEPS)},
    )
    runs = folder / "whole", folder / "killed"
    for run in runs:
        words = (*pretrained("selfie").words, "--out", run)
        with Process(*words, log=folder / "log", program=(sys.executable, "-c", program)) as process:
            if run is runs[1]:
                states = run / "state"
                process.until(lambda states=states: any(int(path.name) > step for path in saved_states(states)))
                process.popen.kill()
            code = process.end()
        told = process.said.count("out of memory: from now on 4 images go through at once")
        demand(told == 1, f"told {told} times")
        demand(code in (0, -9), f"exit code {code}: {process.said[-300:]}")
        if code:
            with Process(
                *("pretrain", "--resume", run), log=folder / "again", program=(sys.executable, "-c", program)
            ) as again:
                code = again.end()
            demand(code == 0, f"not resumed: {again.said[-300:]}")
            demand("out of memory" not in again.said, "a resumed run tries large pieces again")
        demand(read_json(run / "config.json")["measured"]["micro_batch"] == 4, "it is not noted")
    demand(same_weights(*runs), "final weights differ")
    demand(not same_weights(runs[0], pretrained("selfie").run), "nothing went through in pieces")
    return "went on with half at once, and said so; killed and resumed with the same weights"


FAULTS = [
    Fault(name="a loss or gradient that is not finite, in any step", inject=spoiled, times=20),
    Fault(name="memory runs out in any step", inject=short_of_memory, times=10),
]
