"""Processes that are stopped or killed, saved states that were damaged, and two processes in one folder."""

import contextlib
import signal
import sys
import time
from pathlib import Path
from random import Random

import pytest
from processes import STEPS, Process, Reference, Undisturbed, check_files, go_on, has_finished, lines_of, states

from selfie_cli.files import TEMPORARY
from selfie_cli.signals import STOPPING, ignored
from selfie_cli.training.checkpoint import WEIGHTS, read_state

SELFIE = "pretrain (selfie)"


@pytest.fixture
def whole(undisturbed: Reference) -> Undisturbed:
    return undisturbed(SELFIE)


def temporary(folder: Path) -> list[Path]:
    return list(folder.rglob(f"{TEMPORARY}*"))


@pytest.mark.parametrize("what", [SELFIE, "pretrain (byol)", "finetune", "curve"])
@pytest.mark.fault("SIGKILL at any moment of {what}", times=50)
def test_kill(what: str, undisturbed: Reference, tmp_path: Path, chance: Random) -> None:
    """One in ten is killed before its folder exists. The moment is counted from the last thing seen."""
    whole, run = undisturbed(what), tmp_path / "run"
    early, share = chance.random() < 0.1, chance.random()
    completed: set[Path] = set()

    def look() -> bool:
        with contextlib.suppress(FileNotFoundError):  # folders may be renamed meanwhile
            completed.update(states(run))
        return time.monotonic() >= moment

    with Process(*whole.words, "--out", run, log=tmp_path / "log") as process:
        if not early:
            process.until(run.exists)
        moment = time.monotonic() + share * (whole.before if early else whole.seconds)
        process.until(look)
        assert process.end(signal.SIGKILL) in (0, -signal.SIGKILL)
    check_files(run, completed)
    trained = [cell / "model.safetensors" for cell in run.glob("cells/*") if has_finished(cell)]
    times = [file.stat().st_mtime_ns for file in trained]
    go_on(run, whole)
    assert times == [file.stat().st_mtime_ns for file in trained], "a finished network was trained again"


@pytest.mark.parametrize("name", [number.name for number in STOPPING])
@pytest.mark.fault("{name} at any moment of training", times=20)
def test_signal(name: str, whole: Undisturbed, tmp_path: Path, chance: Random) -> None:
    """The state of exactly the last step is saved."""
    number = signal.Signals[name]
    if ignored(number):
        pytest.skip(f"{name} is ignored here")
    run, after = tmp_path / "run", chance.randint(1, STEPS * 2 // 3)
    metrics = run / "metrics.jsonl"
    with Process(*whole.words, "--save-every", 0.05, "--out", run, log=tmp_path / "log") as process:
        process.until(lambda: (lines := lines_of(metrics)) and lines[-1]["step"] >= after)
        time.sleep(chance.uniform(0, 0.05))
        assert process.end(number) == 128 + number
    assert f"Resume with: selfie pretrain --resume {run}" in process.said
    assert not temporary(run)
    assert read_state(states(run)[-1])[0] == lines_of(metrics)[-1]["step"], "the state is not of the last step"
    go_on(run, whole)


def handles(pid: int, number: int) -> bool:
    """Whether the process has a handler for a signal: Python has reached the program's first lines."""
    status = Path(f"/proc/{pid}/status").read_text()
    caught = next(line for line in status.splitlines() if line.startswith("SigCgt:"))
    return bool(int(caught.split()[1], 16) >> (number - 1) & 1)


@pytest.mark.fault("SIGINT or SIGTERM before training", times=40)
def test_signal_before_training(whole: Undisturbed, tmp_path: Path, chance: Random) -> None:
    """A signal while libraries are loaded or images decoded."""
    run, number = tmp_path / "run", chance.choice([signal.SIGINT, signal.SIGTERM])
    with Process(*whole.words, "--out", run, log=tmp_path / "log") as process:
        process.until(lambda: handles(process.popen.pid, signal.SIGTERM))
        moment = time.monotonic() + chance.uniform(0, whole.before)
        process.until(lambda: run.exists() or time.monotonic() >= moment)
        assert process.end(number) == 128 + number
    assert not temporary(tmp_path)
    begun = (run / "config.json").is_file()
    assert f"Resume with: selfie pretrain --resume {run}" in process.said or not begun
    go_on(run, whole)


SLOW_DISK = """
import time
from selfie_cli.training import checkpoint
from selfie_cli.__main__ import main
save = checkpoint.save_weights
checkpoint.save_weights = lambda *given: (save(*given), time.sleep(60))
main()
"""


@pytest.mark.fault("a second Ctrl-C while the first is served", times=5)
def test_second_interrupt(whole: Undisturbed, tmp_path: Path, chance: Random) -> None:
    run, argv = tmp_path / "run", (sys.executable, "-c", SLOW_DISK)
    with Process(*whole.words, "--save-every", 60, "--out", run, log=tmp_path / "log", argv=argv) as process:
        process.until((run / "metrics.jsonl").exists)
        time.sleep(chance.uniform(0, 0.2))
        process.popen.send_signal(signal.SIGINT)
        process.until(lambda: any((run / "state").glob(f"{TEMPORARY}*/{WEIGHTS}")))
        time.sleep(0.1)
        process.popen.send_signal(signal.SIGINT)  # the same one again, from a terminal that tells a whole job
        time.sleep(1.1)
        assert process.popen.poll() is None, "an echo of the first Ctrl-C counts as the second"
        begun = time.monotonic()
        assert process.end(signal.SIGINT) == 130
    assert time.monotonic() - begun < 5, "the second Ctrl-C is not obeyed at once"
    assert states(run) == []
    go_on(run, whole)
