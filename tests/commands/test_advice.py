"""What messages suggest, done as it is printed: the commands run, in folders whose names need quotes."""

import re
import shlex
import shutil
from pathlib import Path

import pytest
from running import SMALL, change, error_of, selfie

STEPS = ("--steps", 1, "--device", "cpu")


@pytest.fixture
def run(pretrained: Path) -> str:
    shutil.copytree(pretrained, "my runs/it's")
    return "my runs/it's"


def follow(said: str, images: Path, *more: object) -> None:
    """Run each command in `said`, with images in place of the word that stands for them."""
    commands = re.findall(r"(?:: +|with )(selfie [^\n]*)", said)
    assert commands, said
    for command in commands:
        words = shlex.split(command.replace("FOLDER_WITH_A_SUBFOLDER_PER_CLASS", "FOLDER"))
        words = [str(images) if word == "FOLDER" else word for word in words]
        selfie(*words[1:], *more)


def test_what_comes_after_pretraining(run: str, images: Path) -> None:
    done = selfie("pretrain", images, *SMALL, *STEPS, "--out", "of mine/run 1").stdout
    asked = ("predict", run, images / "test")
    for number, said in enumerate((done, error_of("pretrain", "--resume", run), error_of(*asked))):
        follow(said, images, *STEPS, "--batch-size", 8, "--no-report", "--out", number)


def test_a_folder_that_is_taken_and_a_run_that_is_not_finished(run: str, images: Path) -> None:
    again = ("pretrain", images, *SMALL, *STEPS, "--out", run)
    assert "replace it with --overwrite, or choose another --out" in error_of(*again)
    selfie(*again, "--overwrite")
    change(run, progress={"status": "running"})
    assert f", continue it with selfie pretrain --resume {shlex.quote(run)}, or" in error_of(*again)
    for refused in (("embed", images / "test", "--from", run), ("finetune", "--resume", run)):
        said = error_of(*refused)
        assert f"selfie pretrain --resume {shlex.quote(run)}" in said
    follow(said, images)


def test_the_home_folder_is_meant_by_a_tilde(run: str, images: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = Path.cwd() / "home"
    shutil.copytree(run, home / "run")
    shutil.copytree(images, home / "images")
    monkeypatch.setenv("HOME", str(home))
    selfie("embed", "~/images/test/cat", "--from=~/run", "--out=~/v.npy")
    assert (home / "v.npy").is_file()
    selfie("eval", "~/run", "--dataset=~/images")
    assert (home / "run/eval-images.json").is_file()
    assert not Path("~").exists()
