"""The tutorial, done as its reader would: every command in its order, every line that it shows is really shown."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from running import ENVIRONMENT

from selfie_cli.data import synthetic

DOCS = Path(__file__).parents[2] / "docs"
BLOCK = re.compile(r"^```(\w*)[^\n]*\n(.*?)^```$", re.DOTALL | re.MULTILINE)
NUMBER = re.compile(r"[+-]?\d[\d,.]*")
NAME = re.compile(rf"\b({'|'.join(synthetic.CLASSES)})\b")


@pytest.fixture
def shell(tmp_path: Path) -> dict[str, str]:
    """An environment in which `selfie` and `python` are those that run the tests."""
    program = tmp_path / "bin" / "selfie"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m selfie_cli "$@"\n')
    program.chmod(0o755)
    path = os.pathsep.join([str(program.parent), str(Path(sys.executable).parent), os.environ["PATH"]])
    return {**ENVIRONMENT, "PATH": path, "XDG_CACHE_HOME": str(tmp_path / "cache"), "HF_HUB_OFFLINE": "1"}


def run(script: str, folder: Path, environment: dict[str, str]) -> str:
    """What a script says, results and remarks together. It must not fail."""
    argv = ["bash", "-euo", "pipefail", "-c", script]
    done = subprocess.run(argv, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{script}\n{done.stdout}{done.stderr}"
    return done.stdout + done.stderr


def plain(text: str) -> str:
    """Without what differs from machine to machine: numbers, the class that was guessed, how wide a table is."""
    text = NAME.sub("CLASS", NUMBER.sub("0", text))
    return " ".join(re.sub(r"[━─┏┓┗┛┡┩┃│┳╇┼┴├┤└┘]+", " ", text).split())


def missing(shown: str, said: str) -> list[str]:
    """Lines of `shown` that no line of `said` has. '...' stands for anything, a line of it for any lines."""
    lines = [plain(line) for line in said.splitlines()]
    patterns = {line: ".*".join(re.escape(plain(part)) for part in line.split("...")) for line in shown.splitlines()}
    return [line for line, like in patterns.items() if not any(re.search(like, each) for each in lines)]


@pytest.mark.slow
def test_tutorial_does_and_shows_what_it_says(tmp_path: Path, shell: dict[str, str]) -> None:
    blocks = BLOCK.findall((DOCS / "tutorial.md").read_text(encoding="utf-8"))
    folder = tmp_path / "first"
    folder.mkdir()
    said, verbs = "", []
    for language, text in blocks:
        if language == "sh":
            said = run(text, folder, shell)
            verbs += re.findall(r"^selfie (\w+)", text, re.MULTILINE)
        elif language == "text":
            assert missing(text, said) == [], said
    for verb in ("doctor", "pretrain", "eval", "finetune", "predict", "embed", "similar", "export", "push"):
        assert verb in verbs
    pages = [folder / "runs" / name / "report.html" for name in ("pretrain", "finetune")]
    assert all(page.read_bytes().startswith(b"<!") for page in pages)
