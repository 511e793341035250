"""A job that torchrun starts again goes on with its own run, and with no other. (Real restarts are in tests/faults.)"""

import os
from pathlib import Path

import pytest
from running import SMALL, error_of, same_weights, selfie

from selfie_cli.commands import pretrain


@pytest.fixture
def restarted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHELASTIC_MAX_RESTARTS", "2")
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")


@pytest.fixture
def asked(images: Path) -> tuple[object, ...]:
    return ("pretrain", images, *SMALL, "--steps", 6, "--device", "cpu", "--save-every", 0)


def stopped(asked: tuple[object, ...], run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave a run that has lost its process before the end."""

    class Killed(BaseException):
        pass

    def killed(*given: object) -> None:
        raise Killed

    with monkeypatch.context() as patched:
        patched.setattr(pretrain, "save_weights", killed)
        with pytest.raises(Killed):
            selfie(*asked, "--out", run)
    assert list((run / "state").iterdir())


@pytest.mark.usefixtures("restarted")
def test_the_same_command_continues(asked: tuple[object, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    run, again = Path("run"), (*asked, "--overwrite")
    stopped(again, run, monkeypatch)
    begun = (run / "metrics.jsonl").read_text()
    assert "is not empty" in error_of(*asked, "--seed", 1, "--out", run)  # other options are another run
    result = selfie(*again, "--out", run)
    assert "6 steps" in result.stdout
    assert "run: run" not in result.stderr  # which tells of a new one
    assert (run / "metrics.jsonl").read_text().startswith(begun.partition("\n")[0])
    assert "run: whole" in selfie(*asked, "--out", "whole").stderr  # no attempt had begun it
    assert same_weights(run, Path("whole"))
    result = selfie(*again, "--out", run)
    assert result.stdout == ""
    assert result.stderr == "run is finished: nothing is left to do for this restart\n"


@pytest.mark.usefixtures("restarted")
def test_resume_is_repeated(asked: tuple[object, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    stopped(asked, Path("run"), monkeypatch)
    selfie("pretrain", "--resume", "run")
    assert "nothing is left to do" in selfie("pretrain", "--resume", "run").stderr
    assert "no run at nowhere" in error_of("pretrain", "--resume", "nowhere")


@pytest.mark.usefixtures("restarted")
def test_a_folder_must_be_named(images: Path) -> None:
    assert "needs --out" in error_of("pretrain", images, code=2)
    assert "needs --out" in error_of("finetune", "--dataset", images, code=2)


def test_from_another_folder_paths_lead_elsewhere(images: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stopped(("pretrain", os.path.relpath(images), *SMALL, "--steps", 3, "--save-every", 0), Path("run"), monkeypatch)
    run = Path("run").absolute()
    Path("a/b/c/d/e").mkdir(parents=True)
    monkeypatch.chdir("a/b/c/d/e")
    assert "Resume from the folder in which the run was started" in error_of("pretrain", "--resume", run)
