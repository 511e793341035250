"""Runs that earlier versions have written, and this one has to read: what make.py has kept of each format."""

import json
import shutil
from pathlib import Path

import pytest
from make import ON_CPU, TOLD, outcome
from running import error_of, selfie
from torch.utils._pytree import tree_flatten

from selfie_cli import __version__, weights
from selfie_cli.inference import vector_files
from selfie_cli.models.attention import AttentionPooling
from selfie_cli.runs import RUN_FORMAT

HERE = Path(__file__).parent
KEPT = sorted(HERE.glob("format-*"))


@pytest.fixture
def copied() -> None:
    """The runs of the present format, in the current folder."""
    shutil.copytree(HERE / f"format-{RUN_FORMAT}", ".", dirs_exist_ok=True)


@pytest.mark.parametrize("kept", KEPT, ids=lambda folder: folder.name)
def test_they_are_read_as_they_were_written(kept: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(kept, ".", dirs_exist_ok=True)
    monkeypatch.setitem(AttentionPooling.__init__.__kwdefaults__, "dropout", 0.0)  # as make.py does
    expected, shape = tree_flatten(json.loads((kept / "expected.json").read_text()))
    found, same_shape = tree_flatten(outcome())
    assert same_shape == shape
    # Numbers may differ as processors and versions of torch let them.
    assert found == [pytest.approx(each, rel=1e-3, abs=1e-3) if isinstance(each, float) else each for each in expected]


RESUME = ("pretrain", "--resume", "stopped")


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
