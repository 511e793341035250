"""The small pretrained network inside the package: it works offline, and warns about larger photos."""

import socket
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from running import draw_folder, rows, selfie

from selfie_cli import runs


@pytest.fixture(autouse=True)
def _offline(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("the network was used")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


def test_it_embeds_right_after_install_and_says_so_when_photos_are_larger() -> None:
    size = runs.open_run("bundled").derived["image_size"]
    for name, side in (("large.png", 8 * size), ("small.png", size)):
        pixels = np.random.default_rng(side).integers(0, 256, (side, side, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(name)
    assert "the network bundled with selfie" in selfie("embed", "large.png").stderr.splitlines()[0]
    (row,) = rows("embed", "large.png")
    assert row["path"] == "large.png"
    assert np.isfinite(row["vector"]).all()
    assert np.std(row["vector"]) > 0
    larger = selfie("embed", "large.png", "--quiet").stderr
    assert larger.startswith("warning: large.png is ")
    assert f"the network takes {size} px" in larger
    assert selfie("embed", "small.png", "--quiet").stderr == ""
    assert selfie("embed", "large.png", "--from", "bundled", "--quiet").stderr == larger
    kinds = draw_folder(Path("kinds"), train=10, test=10, size=80)
    assert "is 80 x 80, and the network takes 32 px" in selfie("eval", "bundled", "--dataset", kinds, "--quiet").stderr


def test_evaluating_it_leaves_it_as_it_is() -> None:
    folder = runs.bundled_folder()
    before = {file.name: file.read_bytes() for file in folder.iterdir() if file.is_file()}
    draw_folder(Path("images"), train=20, test=10)
    selfie("eval", "bundled", "--dataset", "images")
    assert {file.name: file.read_bytes() for file in folder.iterdir() if file.is_file()} == before
