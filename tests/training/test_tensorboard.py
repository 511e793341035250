import json
import resource
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import pytest
from running import ENVIRONMENT, SMALL, draw_folder, error_of, selfie
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from selfie_cli.training.tensorboard import events

OPTIONS = (*SMALL, "--warmup-steps", 2, "--no-report", "--log", "tensorboard")


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draw_folder(tmp_path_factory.mktemp("drawn") / "images")


def shown(folder: Path) -> dict[int, dict[str, float]]:
    """Step -> values, as TensorBoard reads them; no step may come twice."""
    accumulator = EventAccumulator(str(folder))
    accumulator.Reload()
    found: dict[int, dict[str, float]] = {}
    for name in accumulator.Tags()["scalars"]:
        scalars = accumulator.Scalars(name)
        assert len({each.step for each in scalars}) == len(scalars)
        for each in scalars:
            found.setdefault(each.step, {})[name] = each.value
    return found


def logged(folder: Path) -> dict[int, dict[str, float]]:
    """Step -> values of metrics.jsonl, in the 32 bits of an event."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return {
        each["step"]: {name: struct.unpack("f", struct.pack("f", each[name]))[0] for name in each if name != "step"}
        for each in lines
    }


@pytest.mark.slow
def test_events_are_the_metrics_also_after_a_kill(images: Path, tmp_path: Path) -> None:
    """Killed some steps after a saved state, in a process of its own: TensorBoard and torch like to talk on stderr."""
    run, killed = tmp_path / "run", tmp_path / "killed"
    code = (
        "import sys, os, signal\n"
        "import selfie_cli.training.loop as loop\n"
        "save = loop.save_state\n"
        "def once(states, step, *rest):\n"
        "    if step >= 30:\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "    save(states, step, *rest)\n"
        "loop.save_state = once\n"
        "from selfie_cli.cli.app import main\n"
        "main()\n"
    )
    argv = [
        sys.executable,
        "-c",
        code,
        "pretrain",
        images,
        *OPTIONS,
        "--steps",
        40,
        "--save-every",
        0,
        "--quiet",
        "--out",
        run,
    ]
    done = subprocess.run([*map(str, argv)], env=ENVIRONMENT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (-9, "")
    shutil.copytree(run, killed)
    assert max(logged(killed)) == 30  # logged, and the state of that step was not saved
    assert shown(killed / "tensorboard") == logged(killed)
    selfie("pretrain", "--resume", run)
    assert shown(run / "tensorboard") == logged(run)
    assert {"loss", "pretext_accuracy", "images_per_second", "feature_std"} <= shown(run / "tensorboard")[40].keys()


def test_each_cell_has_its_own(images: Path, tmp_path: Path) -> None:
    run = tmp_path / "tuned"
    training = ("--steps", 3, "--batch-size", 8, "--no-report", "--no-check-length", "--log", "tensorboard")
    selfie("finetune", "--dataset", images, "--from", "bundled", *training, "--out", run)
    cells = sorted((run / "cells").iterdir())
    assert len(cells) == 2
    for cell in cells:
        assert shown(cell / "tensorboard") == logged(cell)
    assert not list(run.glob("events*"))


def test_a_full_disk_is_one_error_that_names_the_file(tmp_path: Path) -> None:
    """Python ignores the signal that comes with it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)

    def write() -> None:
        with events(tmp_path, 0) as log:
            resource.setrlimit(resource.RLIMIT_FSIZE, (100, hard))
            for step in range(10):
                log(step, {"loss": 1.0})

    try:
        with pytest.raises(OSError, match="too large") as raised:
            write()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert Path(raised.value.filename).parent == tmp_path


def test_unless_asked_nothing_is_written(tmp_path: Path) -> None:
    with events(None, 0) as log:
        log(1, {"loss": 1.0})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("verb", ["pretrain", "finetune"])
def test_it_is_asked_for_by_name_before_any_work(
    verb: str, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    data = (images,) if verb == "pretrain" else ("--dataset", images, "--from", "bundled")
    said = error_of(verb, *data, "--log", "tensorboard", "--out", tmp_path / "run", code=2)
    assert "pip install 'selfie-cli[tensorboard]'" in said
    assert not (tmp_path / "run").exists()
