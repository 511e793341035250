"""One small data set, one pretrained and one finetuned run, made by the commands themselves and shared by all tests."""

from pathlib import Path

import pytest
from commands import SMALL, draw_folder, selfie


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tests write to the current folder, and find no ./runs there."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draw_folder(tmp_path_factory.mktemp("drawn") / "images")


@pytest.fixture(scope="session")
def pretrained(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """By the paper's recipe."""
    run = tmp_path_factory.mktemp("runs") / "pretrained"
    recipe = ("--recipe", "paper", "--steps", 20, "--warmup-steps", 2, "--lr", 0.05)
    selfie("pretrain", images, *SMALL, *recipe, "--out", run)
    return run


@pytest.fixture(scope="session")
def finetuned(images: Path, pretrained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two arms, three seeds, half of the labels."""
    run = tmp_path_factory.mktemp("runs") / "finetuned"
    selfie(
        *("finetune", "--dataset", images, "--from", pretrained, "--fraction", 0.5, "--seeds", 3, "--seed", 4),
        *("--steps", 6, "--warmup-steps", 2, "--lr", 0.03, "--batch-size", 16, "--no-check-length"),
        *("--out", run),
    )
    return run
