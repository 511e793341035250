"""metrics.jsonl and TensorBoard's events hold the same, also after a kill."""

import shutil
import struct
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import pytest
from running import ENVIRONMENT, SMALL, error_of, lines_of, selfie
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

OPTIONS = (*SMALL, "--warmup-steps", 2, "--no-report", "--log", "tensorboard")
KILL = """
import sys, os, signal
from selfie_cli.training.checkpoint import Saver
save = Saver.save
def once(saver, step, *rest):
    if step >= 30:
        saver.check(wait=True)
        os.kill(os.getpid(), signal.SIGKILL)
    save(saver, step, *rest)
Saver.save = once
from selfie_cli.cli.app import main
main()
"""


def events_of(folder: Path) -> dict[int, dict[str, float]]:
    """Step -> values, as TensorBoard reads them; no step may come twice."""
    accumulator = EventAccumulator(str(folder))
    accumulator.Reload()
    found = defaultdict[int, dict[str, float]](dict)
    for name in accumulator.Tags()["scalars"]:
        for each in accumulator.Scalars(name):
            assert name not in found[each.step]
            found[each.step][name] = each.value
    return found


def logged(folder: Path) -> dict[int, dict[str, float]]:
    """Step -> values of metrics.jsonl, in the 32 bits of an event."""
    return {
        each["step"]: {name: struct.unpack("f", struct.pack("f", each[name]))[0] for name in each if name != "step"}
        for each in lines_of(folder / "metrics.jsonl")
    }


@pytest.mark.slow
def test_events_are_the_metrics_also_after_a_kill(images: Path, tmp_path: Path) -> None:
    """Killed some steps after a saved state, in a process of its own: TensorBoard and torch like to talk on stderr."""
    run, killed = tmp_path / "run", tmp_path / "killed"
    asked = ("pretrain", images, *OPTIONS, "--steps", 40, "--save-every", 0, "--quiet", "--out", run)
    argv = [sys.executable, "-c", KILL, *map(str, asked)]
    done = subprocess.run(argv, env=ENVIRONMENT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (-9, "")
    shutil.copytree(run, killed)
    assert max(logged(killed)) == 30  # logged, and the state of that step was not saved
    assert events_of(killed / "tensorboard") == logged(killed)
    selfie("pretrain", "--resume", run)
    assert events_of(run / "tensorboard") == logged(run)
    assert {"loss", "pretext_accuracy", "images_per_second", "feature_std"} <= events_of(run / "tensorboard")[40].keys()


def test_it_is_asked_for_by_name_before_any_work(images: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    said = error_of("pretrain", images, "--log", "tensorboard", "--out", "run", code=2)
    assert "pip install 'selfie-cli[tensorboard]'" in said
    assert not Path("run").exists()
