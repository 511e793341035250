"""Every case of the corpus of odd layouts does and says what it should."""

import re
from pathlib import Path

import pytest
from layouts import CASES, Case, outcome
from typer.testing import CliRunner

from selfie_cli.cli.app import app


@pytest.mark.parametrize("case", CASES, ids=[f"{case.kind} {case.title}" for case in CASES])
def test_layouts(case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(command: tuple[str, ...], stdin: bytes, folder: Path) -> tuple[int, str]:
        monkeypatch.chdir(folder)
        result = CliRunner().invoke(app, list(command), input=stdin)
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result.exit_code, result.stderr + result.stdout

    code, text = outcome(case, tmp_path, run)
    assert (code, bool(re.search(case.said, text, re.MULTILINE))) == (case.code, True), text
