"""Figures that their scripts draw, snippets that run, and the tutorial, done as its reader would: every command in its
order, every line that it shows is really shown."""

import itertools
import json
import os
import re
import runpy
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from running import ENVIRONMENT, draw_folder, selfie

from selfie_cli.data import synthetic
from selfie_cli.option import CHANGEABLE, PER_INVOCATION, flag_of

DOCS = Path(__file__).parents[2] / "docs"
BLOCK = re.compile(r"^```(\w*)[^\n]*\n(.*?)^```$", re.DOTALL | re.MULTILINE)
NUMBER = re.compile(r"[+-]?\d[\d,.]*")
NAME = re.compile(rf"\b({'|'.join(synthetic.CLASSES)})\b")
LINK = re.compile(r"!\[[^]]*\]\(([^)#]+)\)")


def script(name: str, *arguments: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", [name, *map(str, arguments)])
    runpy.run_path(str(DOCS / name), run_name="__main__")


def test_the_guide_lists_the_options_that_a_resumed_run_may_change() -> None:
    told = (DOCS / "guide" / "runs.md").read_text(encoding="utf-8").partition("## Resuming")[2]
    listed = set(re.findall(r"`(--[a-z-]+)`", told.partition("may be given anew")[0]))
    anew = {flag_of(name) for name in (*CHANGEABLE, *PER_INVOCATION)} - {"--resume"}
    assert listed == anew | {"--no-report"}


def test_figures_are_those_that_the_script_draws(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By name: other versions of matplotlib may write other bytes."""
    script("figures.py", tmp_path / "figures", monkeypatch=monkeypatch)
    drawn = {file.name: file.read_bytes() for file in (tmp_path / "figures").iterdir()}
    pages = [(DOCS / page).read_text(encoding="utf-8") for page in ("method.md", "results/index.md")]
    assert {Path(link).name for page in pages for link in LINK.findall(page)} == drawn.keys()
    for name, content in drawn.items():
        drawing = content[content.index(b"<defs>") :].replace(b"http://www.w3.org/", b"")
        assert b"http" not in drawing
        assert (DOCS / "figures" / name).stat().st_size < 150_000


def test_the_picture_of_a_terminal_shows_the_result_beside_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script("terminal.py", DOCS / "figures" / "terminal.json", tmp_path / "terminal.svg", monkeypatch=monkeypatch)
    drawn = (tmp_path / "terminal.svg").read_text(encoding="utf-8")
    assert drawn == (DOCS / "figures" / "terminal.svg").read_text(encoding="utf-8")
    words = re.sub(r"<[^>]*>|\s", "", drawn).replace("&#160;", "")
    result = json.loads((DOCS / "figures" / "terminal.json").read_text(encoding="utf-8"))
    assert result["sentence"].replace(" ", "") in words
    pages = ["".join((DOCS / page).read_text(encoding="utf-8").split()) for page in ("index.md", "../README.md")]
    assert all(f"for{result['steps']:,}steps" in page for page in pages)
    for arm in result["arms"]:
        assert all(f"{arm['mean'] * 100:.1f}±{arm['std'] * 100:.1f}" in each for each in (words, *pages))
    assert not re.search(r"url\((?!#)|https?://(?!www\.w3\.org|www\.textualize\.io)|/tmp|/root|/home", drawn)


def test_scans_and_scenes_become_what_selfie_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    """By the Python files that the page shows, by the name in their first line."""
    page = (DOCS / "howto/medical-and-satellite.md").read_text(encoding="utf-8")
    code = {name: code for code, name in re.findall(r"^```python\n(# (\S+)\n.*?)^```$", page, re.DOTALL | re.MULTILINE)}
    assert code.keys() == {"window.py", "tiles.py", "split.py"}
    scan = np.full((64, 64), 1000, np.uint16)
    scan[:, 32:] = 1200
    scan[0, 0] = 4000
    Path("scans/patient").mkdir(parents=True)
    Image.fromarray(scan).save("scans/patient/1.png")
    exec(code["window.py"], {})
    windowed = np.asarray(Image.open("images/patient/1.png"))
    assert windowed.dtype == np.uint8
    assert (windowed[0, 0], windowed[5, 5], windowed[5, 40]) == (255, 0, 128)  # above, below and amid the window
    Path("scenes").mkdir()
    scene = np.random.default_rng(0).integers(1, 255, (600, 800, 3), np.uint8)
    scene[:, 512:] = 0  # beyond the scene's edge
    for number in range(12):
        Image.fromarray(scene).save(f"scenes/{number}.tif")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", Image.MAX_IMAGE_PIXELS)  # put back what the snippet sets
    exec(code["tiles.py"], {})
    tiles = {file.name for file in Path("tiles/3").iterdir()}
    assert tiles == {f"{top}-{left}.png" for top in ("000000", "000256") for left in ("000000", "000256")}
    assert (np.asarray(Image.open("tiles/3/000256-000000.png")) == scene[256:512, :256]).all()
    exec(code["split.py"], {})
    parts = {part: {folder.name for folder in Path("data", part).iterdir()} for part in ("train", "test")}
    assert parts["train"] | parts["test"] == {str(number) for number in range(12)}
    assert not parts["train"] & parts["test"]

    embedded = selfie("embed", "images", "tiles/3", "--from", "bundled").stdout.splitlines()
    assert len(embedded) == 5


@pytest.fixture
def shell(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], str]:
    """Return all that a script says. It must not fail; `selfie` and `python` in it are those that run the tests."""
    folder = tmp_path_factory.mktemp("shell")
    (folder / "selfie").write_text(f'#!/bin/sh\nexec "{sys.executable}" -m selfie_cli "$@"\n')
    (folder / "selfie").chmod(0o755)
    path = os.pathsep.join([str(folder), str(Path(sys.executable).parent), os.environ["PATH"]])
    environment = {**ENVIRONMENT, "PATH": path, "XDG_CACHE_HOME": str(folder / "cache"), "HF_HUB_OFFLINE": "1"}

    def run(script: str) -> str:
        argv = ["bash", "-euo", "pipefail", "-c", script]
        done = subprocess.run(argv, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{script}\n{done.stdout}{done.stderr}"
        return done.stdout + done.stderr

    return run


def test_notebook_runs_from_top_to_bottom(capfd: pytest.CaptureFixture[str]) -> None:
    """With fewer images and steps."""
    text = (DOCS / "notebooks" / "python.ipynb").read_text(encoding="utf-8")
    assert not re.search(r"/root|/home|/tmp|/work|image/png", text)
    cells = ["".join(cell["source"]) for cell in json.loads(text)["cells"] if cell["cell_type"] == "code"]
    code = "\n".join(cells)
    for whole, part in {"draw(600,": "draw(300,", "number < 400": "number < 200", "steps=30": "steps=3"}.items():
        code = code.replace(whole, part)
    names: dict[str, Any] = {}
    exec(compile(code, "python.ipynb", "exec"), names)
    assert names["found"].vectors.shape == (100, 128)
    assert len(names["finetuned"].arms) == 2
    assert names["accuracy"] > 0.2
    assert capfd.readouterr().err == ""


@pytest.mark.slow
def test_the_page_on_vectors(shell: Callable[[str], str]) -> None:
    """Its code runs in order, on vectors that its commands make."""
    page = (DOCS / "guide" / "vectors.md").read_text(encoding="utf-8")
    assert {"pandas", "polars", "duckdb", "faiss", "pyarrow"} <= {*re.findall(r"^import (\w+)", page, re.MULTILINE)}
    Path("photos").mkdir()
    for file in draw_folder(Path("drawn"), train=30, test=0).rglob("*.png"):
        shutil.copy(file, "photos")
    for language, group in itertools.groupby(BLOCK.findall(page), key=lambda block: block[0]):
        code = "\n".join(text for _, text in group)
        said = shell(code if language == "sh" else f"python - <<'END'\n{code}\nEND\n")
        assert language == "sh" or "(30, 30)" in said  # rows and contents in the parts


def plain(text: str) -> str:
    """Without what differs from machine to machine: numbers, the class that was guessed, how wide a table is."""
    text = NAME.sub("CLASS", NUMBER.sub("0", text))
    return " ".join(re.sub(r"[━─┏┓┗┛┡┩┃│┳╇┼┴├┤└┘]+", " ", text).split())


def missing(shown: str, said: str) -> list[str]:
    """Lines of `shown` that no line of `said` has. '...' stands for anything, a line of it for any lines."""
    lines = [plain(line) for line in said.splitlines()]
    patterns = {line: ".*".join(re.escape(plain(part)) for part in line.split("...")) for line in shown.splitlines()}
    return [line for line, like in patterns.items() if not any(re.search(like, each) for each in lines)]


# With fewer images and steps, which need not help.
SHORTER = {"7_000": "3_000", "6_000": "2_500", "/06000": "/02500"}
SHORTER |= {"--steps 400": "--steps 20", "--steps 200": "--steps 8"}


@pytest.mark.slow
def test_tutorial_does_and_shows_what_it_says(shell: Callable[[str], str]) -> None:
    said, verbs, page = "", [], (DOCS / "tutorial.md").read_text(encoding="utf-8")
    for whole, part in SHORTER.items():
        page = page.replace(whole, part)
    page = re.sub(r"^Selfie helped( with .*: ).*", r"...\1...", page, flags=re.MULTILINE)
    for language, text in BLOCK.findall(page):
        if language == "sh":
            said = shell(text)
            verbs += re.findall(r"^selfie (\w+)", text, re.MULTILINE)
        elif language == "text":
            assert missing(text, said) == [], said
    assert {"doctor", "pretrain", "eval", "finetune", "predict", "embed", "similar", "export", "push"} <= set(verbs)
    for name in ("pretrain", "finetune"):
        assert Path("runs", name, "report.html").read_bytes().startswith(b"<!")
