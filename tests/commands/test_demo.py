"""selfie demo, made small: the real verbs one after another, and what is said at the end."""

import fcntl
import os
from pathlib import Path

import pytest
from PIL import Image
from running import error_of, read, selfie

from selfie_cli.commands import demo


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    small = {"NUM_TRAIN": 60, "NUM_TEST": 20, "PRETRAIN_STEPS": 1, "FINETUNE_STEPS": 1}
    for name, value in small.items():
        monkeypatch.setattr(demo, name, value)
    for module in ("pretraining.task", "comparison.trainer"):  # trial steps of whole batches take most of the time
        monkeypatch.setattr(f"selfie_cli.{module}.fit", lambda *_: 0.5)


def test_the_whole_story() -> None:
    result = selfie("demo", "--seeds", 3)
    for words in ("1/4", "2/4", "3/4", "4/4", "selfie pretrain runs/demo/images"):
        assert words in result.stderr
    for words in ("kNN", "linear probe", "supervised", "paired gain", "95 % ", "3 seeds", "runs/demo"):
        assert words in result.stdout
    folder = Path("runs/demo")
    files = {part: list((folder / "images" / part).rglob("*.png")) for part in ("train", "test")}
    assert [len(each) for each in files.values()] == [60, 20]
    with Image.open(files["test"][0]) as image:
        assert image.size == (32, 32)
    assert len(read(folder / "finetune" / "results.json")["arms"]) == 2
    assert "--overwrite" in error_of("demo")


def test_only_what_a_demo_makes_is_replaced() -> None:
    Path("real/images").mkdir(parents=True)
    Path("real/demo.json").write_text('{"images": 3, "seeds": 1}')
    Path("real/images/old.png").touch()
    Path("real/mine.txt").write_text("dear")
    Path("link").symlink_to("real")
    asked = ("demo", "--out", "link", "--seeds", 1, "--overwrite")
    assert selfie(*asked, "--json").stdout.startswith("{\n")
    assert Path("link").is_symlink()
    assert Path("real/mine.txt").read_text() == "dear"
    assert sorted(os.listdir("real")) == ["demo.json", "finetune", "images", "mine.txt", "pretrain"]
    assert not Path("real/images/old.png").exists()
    assert read("real/demo.json") == {"images": 80, "seeds": 1}

    before = read("real/finetune/results.json")
    for held in ("real", "real/pretrain"):
        descriptor = os.open(held, os.O_RDONLY)
        fcntl.flock(descriptor, fcntl.LOCK_EX)  # as another process would
        assert "another process is working on" in error_of(*asked)
        os.close(descriptor)
    assert read("real/finetune/results.json") == before

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
