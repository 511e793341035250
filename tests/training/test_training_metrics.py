"""metrics.jsonl and TensorBoard's events hold the same, also after a kill."""

import shutil
import sys
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
from running import SMALL, error_of, lines_of, selfie
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from test_loop import Toy

OPTIONS = (*SMALL, "--log", "tensorboard")


def events_of(folder: Path) -> dict[int, dict[str, float]]:
    """Step -> values, as TensorBoard reads them; no step may come twice."""
    accumulator = EventAccumulator(str(folder / "tensorboard"))
    accumulator.Reload()
    found = defaultdict[int, dict[str, float]](dict)
    for name in accumulator.Tags()["scalars"]:
        for each in accumulator.Scalars(name):
            assert name not in found[each.step]
            found[each.step][name] = each.value
    return found


def logged(folder: Path) -> dict[int, dict[str, float]]:
    """Step -> values of metrics.jsonl, in the 32 bits of an event; no step may come twice."""
    lines = lines_of(folder / "metrics.jsonl")
    found = {line.pop("step"): {name: float(np.float32(value)) for name, value in line.items()} for line in lines}
    assert len(found) == len(lines)
    return found


def test_events_are_the_metrics_also_after_a_kill(tmp_path: Path) -> None:
    """The folder as a kill in step 31 leaves it: the state of step 30, which is logged, was still being written."""
    run, killed = tmp_path / "run", tmp_path / "killed"

    class Killed(Toy):
        def loss(self, *batch):
            if self.steps_seen[-1] == 30:
                shutil.copytree(run, killed, ignore=shutil.ignore_patterns("*00000028", "*00000030"))
            return super().loss(*batch)

    Killed(run).train(save_every=0, tensorboard=True)
    assert max(logged(killed)) == 30
    assert events_of(killed) == logged(killed)
    resumed = Toy(killed)
    resumed.train(tensorboard=True)
    assert resumed.steps_seen[0] == 29
    assert events_of(killed) == logged(killed)
    assert max(logged(killed)) == 60


def test_the_command_writes_events_and_asks_for_tensorboard_by_name_before_any_work(
    images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    selfie("pretrain", images, *OPTIONS, "--steps", 2, "--out", "run")
    assert {"loss", "pretext_accuracy", "images_per_second", "feature_std"} <= events_of(Path("run"))[2].keys()
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    assert "pip install 'selfie-cli[tensorboard]'" in error_of("pretrain", images, *OPTIONS, "--out", "other", code=2)
    assert not Path("other").exists()
