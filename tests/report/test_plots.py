"""Plots: what is drawn stands where the numbers say, and the files are what their names say."""

import builtins
import re
from pathlib import Path

import pytest
from PIL import Image

from selfie_cli.report import plots

ARMS = {"supervised": [(0.30, 0.02), (0.50, 0.01)], "selfie": [(0.40, 0.05), (0.52, None)]}
TICKS = ["5 %\n40 labels\n3 seeds", "100 %\n800 labels\n1 seed"]


def test_text_is_plain_narrow_and_to_scale():
    lines = plots.as_text([0.05, 1.0], ARMS).splitlines()
    assert max(map(len, lines)) <= 80
    assert all(character.isascii() and character.isprintable() for line in lines for character in line)
    rows = [line for line in lines if "o" in line.split("|", 1)[-1] and "|" in line[:30]]
    assert [row.split("|")[0].split() for row in rows] == [
        ["5", "%", "supervised"],
        ["selfie"],
        ["100", "%", "supervised"],
        ["selfie"],
    ]
    begin = rows[0].index("|") + 1
    room = len(rows[0]) - begin - 1
    low, high = (int(number) for number in (re.findall(r"\d+", lines[-2])[0], re.findall(r"\d+", lines[-2])[-1]))
    assert (low, high) == (25, 55)
    for row, mean in zip(rows, (30, 40, 50, 52), strict=True):
        assert row[begin:].index("o") == pytest.approx((mean - low) / (high - low) * (room - 1), abs=1)
    bar = rows[1][begin:]
    assert bar.index("|") == pytest.approx((35 - low) / (high - low) * (room - 1), abs=1)
    assert rows[3][begin:-1].strip() == "o"  # a single seed has no spread


@pytest.mark.parametrize("values", [[(0.0, 0.0)], [(1.0, 0.0)], [(0.5, None)], [(0.02, 0.4)], [(0.5, 1e-9)]])
def test_text_of_odd_numbers_and_long_names(values):
    text = plots.as_text([0.5], {"a-very-long-name-of-a-folder-with-a-run-in-it": values})
    assert max(map(len, text.splitlines())) <= 80
    assert "o" in text


def test_files(tmp_path: Path):
    pytest.importorskip("matplotlib")
    files = [tmp_path / "curve.png", tmp_path / "curve.svg"]
    plots.draw(files, "photos: test accuracy", [0.05, 1.0], ARMS, TICKS)
    with Image.open(files[0]) as image:
        assert image.format == "PNG"
        assert min(image.size) > 500
    first = files[1].read_text()
    assert first.startswith("<?xml")
    plots.draw(files, "photos: test accuracy", [0.05, 1.0], ARMS, TICKS)
    assert files[1].read_text() == first
    assert sorted(file.name for file in tmp_path.iterdir()) == ["curve.png", "curve.svg"]


def test_without_matplotlib(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    real = builtins.__import__

    def without(name, *arguments, **named):
        if name.partition(".")[0] == "matplotlib":
            raise ImportError(name)
        return real(name, *arguments, **named)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ImportError):
        plots.draw([tmp_path / "curve.png"], "photos", [0.05, 1.0], ARMS, TICKS)
    assert list(tmp_path.iterdir()) == []


def test_names_are_shown_as_they_are(tmp_path):
    arms = {"_mine": ARMS["supervised"], r"$\foo$": ARMS["selfie"]}
    plots.draw([tmp_path / "curve.svg", tmp_path / "curve.png"], r"a $\bar$ b", [0.05, 1.0], arms, TICKS)
    assert (tmp_path / "curve.png").stat().st_size > 1000
    assert "_mine" in plots.literal("_mine")
    assert plots.literal("plain") == "plain"
