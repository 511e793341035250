"""Runs that earlier versions have written, and this one has to read: what make.py has kept of each format."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from make import ON_CPU, TOLD, outcome
from running import error_of, selfie

from selfie_cli import __version__, runs, weights
from selfie_cli.data import duplicates
from selfie_cli.files import read_json, write_json
from selfie_cli.inference import vector_files
from selfie_cli.models.hybrid import AttentionPooling
from selfie_cli.runs import RUN_FORMAT

HERE = Path(__file__).parent
KEPT = sorted(HERE.glob("format-*"))


def assert_near(found: Any, expected: Any) -> None:
    """Numbers may differ as processors and versions of torch let them."""
    if isinstance(expected, dict):
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            assert_near(found[name], value)
    elif isinstance(expected, list) and not isinstance(expected[0], float):
        assert len(found) == len(expected)
        for one, other in zip(found, expected, strict=True):
            assert_near(one, other)
    else:
        assert found == (expected if isinstance(expected, str) else pytest.approx(expected, rel=1e-3, abs=1e-3))


@pytest.fixture
def copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The runs of the present format, in the current folder."""
    shutil.copytree(HERE / f"format-{RUN_FORMAT}", tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("kept", KEPT, ids=lambda folder: folder.name)
def test_they_are_read_as_they_were_written(kept: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(kept, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(AttentionPooling.__init__.__kwdefaults__, "dropout", 0.0)  # as make.py does
    assert_near(outcome(), json.loads((kept / "expected.json").read_text()))


def test_there_are_some_of_this_format_and_they_tell_of_no_machine() -> None:
    files = [file for file in (HERE / f"format-{RUN_FORMAT}").rglob("*.json*") if file.name != "expected.json"]
    assert len(files) > 3
    for file in files:
        for line in file.read_text().splitlines():
            assert not any(Path(each).is_absolute() for each in line.split('"')), (file, line)


RESUME = ("pretrain", "--resume", "stopped")
PREDICT = ("predict", "finetuned", TOLD[0], *ON_CPU)
OTHERS = {
    "a run": (runs, "RUN_FORMAT", 2, PREDICT, r"run format 1, .* reads 2: use the selfie-cli that wrote it, \d"),
    "weights": (weights, "FORMAT_VERSION", "2", PREDICT, "format version 1, this selfie reads 2: use the selfie that"),
    "marks": (
        duplicates,
        "VERSION",
        "2",
        RESUME,
        "seen.safetensors is not in a format that this version reads: remove it",
    ),
}


@pytest.mark.parametrize("other", OTHERS)
@pytest.mark.usefixtures("copied")
def test_a_selfie_of_another_format_says_what_reads_them(other: str, monkeypatch: pytest.MonkeyPatch) -> None:
    module, name, version, command, said = OTHERS[other]
    monkeypatch.setattr(module, name, version)
    assert re.search(said, error_of(*command))


@pytest.mark.usefixtures("copied")
def test_a_state_of_another_format_says_what_reads_it(monkeypatch: pytest.MonkeyPatch) -> None:
    Path("stopped/seen.safetensors").unlink()
    monkeypatch.setattr(weights, "FORMAT_VERSION", "2")
    said = selfie(*RESUME, code=1).stderr
    assert "weights.safetensors has format version 1, this selfie reads 2: use the selfie that wrote it" in said
    assert Path("stopped/state/00000032/weights.safetensors").is_file()


@pytest.mark.usefixtures("copied")
def test_vectors_of_another_format_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    to_vectors = ("--from", "finished", "--out", "v.parquet", *ON_CPU)
    selfie("embed", TOLD[0], *to_vectors)
    monkeypatch.setattr(vector_files, "FORMAT", 2)
    said = f"its format is 1, here 2 is read: use selfie-cli {__version__}, or embed again"
    assert said in error_of("similar", TOLD[1], "--in", "v.parquet", *ON_CPU)


@pytest.mark.usefixtures("copied")
def test_options_that_the_run_did_not_know_have_their_default_and_unknown_ones_are_refused() -> None:
    config = read_json(Path("stopped/config.json"))
    asked = config["asked"]
    assert asked.pop("max_bad") == 0.1
    assert asked["selfie"].pop("view_scale", "none") is None
    write_json(Path("stopped/config.json"), config | {"asked": asked | {"of_tomorrow": 1}})
    assert "'of_tomorrow', not known here: resume it with the selfie that wrote it" in error_of(*RESUME, code=2)
    write_json(Path("stopped/config.json"), config | {"asked": asked})
    selfie(*RESUME, "--save-every", 60)
