"""selfie demo, made small: the real verbs one after another, and what is said at the end."""

import json
from pathlib import Path

import pytest
from commands import error_of, selfie
from PIL import Image

from selfie_cli.recipes import demo


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "NUM_TRAIN", 60)
    monkeypatch.setattr(demo, "NUM_TEST", 20)
    monkeypatch.setattr(demo, "PRETRAIN_STEPS", 1)
    monkeypatch.setattr(demo, "FINETUNE_STEPS", 1)
    for recipe in ("pretrain", "cells"):  # trial steps of whole batches would take most of the time
        monkeypatch.setattr(f"selfie_cli.recipes.{recipe}.fit", lambda *_: 0.5)


def test_the_whole_story() -> None:
    result = selfie("demo", "--seeds", 3)
    for words in ("1/4", "2/4", "3/4", "4/4", "selfie pretrain runs/demo/images"):
        assert words in result.stderr
    for words in ("kNN", "linear probe", "supervised", "paired gain", "95 % ", "3 seeds", "runs/demo"):
        assert words in result.stdout
    folder = Path("runs/demo")
    assert len(list((folder / "images" / "train").rglob("*.png"))) == 60
    assert len(list((folder / "images" / "test").rglob("*.png"))) == 20
    with Image.open(next((folder / "images" / "test").rglob("*.png"))) as image:
        assert image.size == (32, 32)
    assert len(json.loads((folder / "finetune" / "results.json").read_text())["arms"]) == 2
    assert "--overwrite" in error_of("demo")
    assert selfie("demo", "--seeds", 1, "--overwrite", "--json").stdout.startswith("{\n")


def test_a_folder_that_is_no_demo_is_never_deleted() -> None:
    Path("photos/images").mkdir(parents=True)
    Path("photos/images/holiday.jpg").write_bytes(b"dear")
    error_of("demo", "--out", "photos")
    assert "will not delete" in error_of("demo", "--out", "photos", "--overwrite")
    assert Path("photos/images/holiday.jpg").read_bytes() == b"dear"
    assert "--seeds" in error_of("demo", "--seeds", 0, code=2)
