"""selfie embed, end to end: one vector an image, in input order, the same in every format."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from running import COMMAND, ENVIRONMENT, TORCHRUN, document, error_of, leftover, lines_of, process, selfie


def table(*files: Path | str) -> pa.Table:
    return pa.concat_tables(map(pq.read_table, files))


@pytest.fixture
def some(images: Path) -> list[Path]:
    return sorted((images / "test").rglob("*.png"))[:7]


def test_rows_are_in_input_order_with_unreadable_ones_left_out(pretrained: Path, some: list[Path]) -> None:
    Path("bad.jpg").write_bytes(b"no image")
    Path("empty.png").touch()
    order = [some[3], "bad.jpg", some[0], "nowhere.png", some[5], "empty.png", some[0]]
    result = selfie("embed", *order, "--from", pretrained, "--batch-size", 2)
    found = [json.loads(line)["path"] for line in result.stdout.splitlines()]
    assert found == [str(name) for name in order[:-1] if name in some]
    assert "left out: 1 image that is named twice" in result.stderr
    for name in ("bad.jpg", "nowhere.png", "empty.png"):
        assert f"warning: left out: {name}: " in result.stderr
    assert not any(Path().glob("*bad_files.jsonl"))
    selfie("embed", *order, "--from", pretrained, "--out", "v.npy")
    assert [line["path"] for line in lines_of("v.npy.bad_files.jsonl")] == ["bad.jpg", "nowhere.png", "empty.png"]
    selfie("embed", *some, "--from", pretrained, "--out", "v.npy", "--overwrite")
    assert not any(Path().glob("*bad_files.jsonl"))


def test_strict_and_none_readable(pretrained: Path, some: list[Path]) -> None:
    Path("bad.jpg").write_bytes(b"no image")
    result = selfie("embed", some[0], "bad.jpg", "--from", pretrained, "--strict", code=1)
    assert len(result.stdout.splitlines()) == 1
    assert "error: 1 of 2 images" in result.stderr
    selfie("embed", some[0], "--from", pretrained, "--strict")
    for out in ((), ("--out", "v.npy")):
        assert "the image is not readable: bad.jpg" in error_of("embed", "bad.jpg", "--from", pretrained, *out)
    assert not Path("v.npy").exists()


def test_out_is_guarded(pretrained: Path, some: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    asked = ("embed", *some, "--from", pretrained)
    Path(leftover("v.npy.rows.jsonl")).touch()
    for name in ("v.npy", "w.npy.rows.jsonl"):
        Path(name).write_bytes(b"dear")
        assert error_of(*asked, "--out", f"{name[0]}.npy", code=2) == f"{name} exists: replace it with --overwrite"
        assert Path(name).read_bytes() == b"dear"
    selfie(*asked, "--out", "v.npy", "--overwrite")
    assert np.load("v.npy").shape == (7, 64)
    assert sorted(path.name for path in Path().iterdir()) == ["v.npy", "v.npy.rows.jsonl", "w.npy.rows.jsonl"]
    written = document(*asked, "--out", "w.csv")
    assert written == {"out": "w.csv", "images": 7, "unreadable": 0, "left_out": {}, "bad_files": []}
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    for out in ("v.parquet", "parts"):
        assert "selfie-cli[parquet]" in error_of("embed", *some, "--from", pretrained, "--out", out, code=2)
    selfie("embed", *some, "--from", pretrained, "--out", "v.csv")


def test_features_of_four_kinds(pretrained: Path, finetuned: Path, some: list[Path]) -> None:
    found = {}
    for features in ("whole", "patches", "pooled", "penultimate"):
        asked = ("--from", finetuned) if features == "penultimate" else ("--from", pretrained, "--features", features)
        assert f"vectors: {features}" in selfie("embed", *some, *asked, "--out", f"{features}.npy").stderr
        found[features] = np.load(f"{features}.npy")
        assert found[features].shape == (7, 128 if features == "penultimate" else 64)
        assert np.isfinite(found[features]).all()
    assert not np.allclose(found["whole"], found["patches"])
    assert not np.allclose(found["patches"], found["pooled"])


@pytest.mark.skipif(sys.platform == "darwin", reason="its file systems refuse names that are not UTF-8")
def test_paths_on_standard_input_may_be_of_any_bytes(
    pretrained: Path, some: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ["half\udcff.png", "car\rriage.png", "back\\slash.png"]
    for name in names:
        shutil.copy(some[0], name)
    monkeypatch.setitem(ENVIRONMENT, "PYTHONIOENCODING", "utf-8:strict")  # as where the locale is, say, en_GB.UTF-8
    lines = b"".join(os.fsencode(name) + b"\n" for name in (*names, ""))
    done = process("embed", some[6], "-", "--from", pretrained, stdin=lines)
    assert done.returncode == 0, done.stderr
    assert done.stdout.isascii()
    assert [json.loads(line)["path"] for line in done.stdout.splitlines()] == [str(some[6]), *names]


@pytest.mark.parametrize("folder", ["test", "test/cat"])
def test_a_reader_that_has_seen_enough(pretrained: Path, images: Path, folder: str) -> None:
    """Whether the pipe breaks while rows are printed, or only when the last of them are flushed."""
    argv = [*COMMAND, "embed", str(images / folder), "--from", str(pretrained), "--quiet"]
    with subprocess.Popen(argv, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as running:
        assert running.stdout is not None
        assert running.stderr is not None
        running.stdout.close()
        assert running.stderr.read() == b""
        assert running.wait() == 0


def test_tables_say_what_each_row_is(pretrained: Path, some: list[Path]) -> None:
    lying = Image.new("RGB", (40, 30), "red")
    for number, format in enumerate(("jpg", "png", "tiff", "webp")):
        exif = Image.Exif()
        exif[0x0112] = 6  # to be turned by a quarter
        lying.save(f"{number}.{format}", exif=exif)
    lying.resize((900, 500)).save("4.jpg")  # decoded at an eighth
    paths = [*some[:2], *sorted(Path().glob("[0-4].*"))]
    Path("bad.jpg").write_bytes(b"no image")
    asked = ("--from", pretrained, "--precision", "fp32", "--out", "v.parquet")
    selfie("embed", *paths[:3], "bad.jpg", *paths[3:], *asked)
    schema, found = table("v.parquet").schema, table("v.parquet").to_pydict()
    types = {"path": pa.string(), "width": pa.int32(), "height": pa.int32(), "content_hash": pa.string()}
    assert {field.name: field.type for field in schema if field.name != "vector"} == types
    vector = schema.field("vector").type
    assert (vector.value_type, vector.list_size) == (pa.float32(), 64)
    assert found["path"] == [str(path) for path in paths]  # row i is file i of the readable ones
    sizes = [(32, 32)] * 2 + [(30, 40)] * 4 + [(900, 500)]
    assert list(zip(found["width"], found["height"], strict=True)) == sizes
    assert found["content_hash"] == [hashlib.blake2b(path.read_bytes(), digest_size=16).hexdigest() for path in paths]
    assert json.loads(schema.metadata[b"selfie"])["network"] == {
        "run": "pretrained",
        "from": str(pretrained),
        "sha256": hashlib.sha256((pretrained / "model.safetensors").read_bytes()).hexdigest(),
        "features": "whole",
        "image_size": 32,
        "precision": "fp32",
    }


@pytest.mark.slow
@pytest.mark.parametrize("out", ["v.npy", "parts"])
def test_two_processes_give_what_one_gives(pretrained: Path, images: Path, out: str) -> None:
    """In the order of the input, the unreadable ones in their places; a folder gets a file per process. Nothing is on
    stdout but what the first one says."""
    Path("bad.png").write_bytes(b"no image")
    paths = list(map(str, sorted(images.rglob("*.png"))[:40]))
    lines = "".join(f"{path}\n" for path in [*paths[9:], "nowhere.png"])
    common = ["embed", *paths[:9], "bad.png", "-", "--from", str(pretrained), "--precision", "fp32"]
    selfie(*common, "--out", f"one/{out}", stdin=lines)
    argv = [*TORCHRUN, "-m", "selfie_cli", *common, "--batch-size", "4", "--out", f"two/{out}"]
    done = subprocess.run(argv, env=ENVIRONMENT, input=lines, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"two/{out}: 40 vectors\n"
    assert done.stderr.count("left out: bad.png") == 1
    if out == "v.npy":
        for file in ("v.npy.rows.jsonl", "v.npy.bad_files.jsonl"):
            assert Path("two", file).read_text() == Path("one", file).read_text()
        vectors = [np.load(f"{number}/v.npy") for number in ("one", "two")]
    else:
        parts = [f"two/parts/part-{rank:05d}.parquet" for rank in (0, 1)]
        assert min(len(table(part)) for part in parts) >= 19
        whole, found = table("one/parts/part-00000.parquet"), table(*parts)
        assert found.drop("vector").equals(whole.drop("vector"))
        assert "bad.png" in Path("two/parts/bad_files.jsonl").read_text()
        vectors = [np.array(each["vector"].to_pylist()) for each in (whole, found)]
    np.testing.assert_allclose(*vectors, rtol=1e-3, atol=1e-3)


def test_a_folder_is_replaced_as_a_whole_or_refused(pretrained: Path, some: list[Path]) -> None:
    common = ("embed", *some, "--from", pretrained, "--out", "parts")
    selfie(*common)
    Path("parts/part-00001.parquet").write_bytes(b"of a job of two processes")
    assert "--overwrite" in error_of(*common, code=2)
    selfie(*common, "--overwrite")
    assert [file.name for file in Path("parts").iterdir()] == ["part-00000.parquet"]
    assert len(table("parts/part-00000.parquet")) == 7
    Path("parts/notes.txt").touch()
    assert "holds other files (notes.txt)" in error_of(*common, "--overwrite", code=2)
    assert Path("parts/notes.txt").exists()
