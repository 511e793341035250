"""selfie demo, made small: the real verbs one after another, and what is said at the end."""

import json
import os
import subprocess
import sys
from pathlib import Path
from subprocess import PIPE

import pytest
from PIL import Image
from running import ENVIRONMENT, error_of, selfie

from selfie_cli.commands import demo


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "NUM_TRAIN", 60)
    monkeypatch.setattr(demo, "NUM_TEST", 20)
    monkeypatch.setattr(demo, "PRETRAIN_STEPS", 1)
    monkeypatch.setattr(demo, "FINETUNE_STEPS", 1)
    for module in ("pretraining.task", "comparison.trainer"):  # trial steps of whole batches take most of the time
        monkeypatch.setattr(f"selfie_cli.{module}.fit", lambda *_: 0.5)


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


def test_only_what_a_demo_makes_is_replaced() -> None:
    Path("real/images").mkdir(parents=True)
    Path("real/demo.json").write_text('{"images": 3, "seeds": 1}')
    Path("real/images/old.png").touch()
    Path("real/mine.txt").write_text("dear")
    Path("link").symlink_to("real")
    asked = ("demo", "--out", "link", "--seeds", 1, "--overwrite")
    selfie(*asked)
    assert Path("link").is_symlink()
    assert Path("real/mine.txt").read_text() == "dear"
    assert sorted(os.listdir("real")) == ["demo.json", "finetune", "images", "mine.txt", "pretrain"]
    assert not Path("real/images/old.png").exists()
    assert json.loads(Path("real/demo.json").read_text()) == {"images": 80, "seeds": 1}

    before = json.loads(Path("real/finetune/results.json").read_text())
    holding = "import sys; from pathlib import Path; from selfie_cli import runs; runs.hold(Path(sys.argv[1])); "
    holding += "print(flush=True); input()"
    for held in ("real", "real/pretrain"):
        argv = [sys.executable, "-c", holding, held]
        with subprocess.Popen(argv, env=ENVIRONMENT, stdin=PIPE, stdout=PIPE) as process:
            assert process.stdout is not None
            process.stdout.readline()
            assert "another process is working on" in error_of(*asked)
            process.communicate(b"\n")
    assert json.loads(Path("real/finetune/results.json").read_text()) == before

    Path("real/images").rename("photos")
    Path("real/images").symlink_to("../photos")
    assert "is not a demo" in error_of(*asked)
    assert len(list(Path("photos").rglob("*.png"))) == 80


def test_a_folder_that_is_no_demo_stays() -> None:
    Path("photos/images").mkdir(parents=True)
    Path("photos/images/holiday.jpg").write_bytes(b"dear")
    error_of("demo", "--out", "photos")
    for mark in (None, "", "[]", '{"images": 3, "title": "dear"}'):
        if mark is not None:
            Path("photos/demo.json").write_text(mark)
        assert "is not a demo" in error_of("demo", "--out", "photos", "--overwrite")
        assert Path("photos/images/holiday.jpg").read_bytes() == b"dear"
    assert "--seeds" in error_of("demo", "--seeds", 0, code=2)
