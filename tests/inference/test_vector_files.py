"""Files of vectors: each format as other readers see it, and what ours makes of damaged ones."""

import contextlib
import csv
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from safetensors.numpy import load_file

from selfie_cli.errors import DataError
from selfie_cli.inference.stream import Result
from selfie_cli.inference.vector_files import FORMATS, HEADERS, NETWORK, PIECES, as_name, open_vectors, vector_writer

MADE_BY = dict.fromkeys(NETWORK, "0")
ODD = ["two\nlines.png", "😀 木.png", "back\\slash.png", "file:%41.png", "red\x1b[31m.png"]
ODD += ['comma, "quote".png', "half\udcff.png"]


def write(out: Path, vectors: np.ndarray, names: list[str] | None = None) -> Path:
    vectors = np.asarray(vectors, np.float32)
    with vector_writer(out, width=vectors.shape[1], network=MADE_BY) as put:
        for row, vector in enumerate(vectors):
            put(Result(names[row] if names else f"{row}.jpg", vector, 4, 3, bytes([row % 256]) * 16))
    return out


def read_back(file: Path) -> tuple[list[str], np.ndarray]:
    """Names and vectors, float32, by other libraries."""
    if file.suffix in HEADERS:
        vectors = np.load(file) if file.suffix == ".npy" else load_file(file)["vectors"]
        rows = [json.loads(line) for line in Path(f"{file}.rows.jsonl").read_text().splitlines()]
        assert [row["row"] for row in rows] == list(range(len(vectors)))
        return [row["path"] for row in rows], vectors
    if file.suffix == ".parquet":
        found = pq.read_table(file).to_pylist()
        return [as_name(row["path"]) for row in found], np.array([row["vector"] for row in found], np.float32)
    if file.suffix == ".csv":
        with file.open(encoding="utf-8", errors="surrogateescape", newline="") as lines:
            header, *rows = csv.reader(lines)
        assert header == ["path", *(f"v{i}" for i in range(len(header) - 1))]
        return [row[0] for row in rows], np.array([row[1:] for row in rows], np.float32)
    found = [json.loads(line) for line in file.read_text().splitlines()]
    return [row["path"] for row in found], np.array([row["vector"] for row in found], np.float32)


@pytest.mark.parametrize("suffix", FORMATS)
def test_names_of_any_kind_and_every_float32_come_back(suffix: str) -> None:
    """Through links, which stay links, and with nothing left beside the files."""
    vectors = np.random.default_rng(0).normal(size=(len(ODD), 37)).astype(np.float32)
    Path("there").mkdir()
    for name in (f"v{suffix}", f"v{suffix}.rows.jsonl"):
        Path("there", name).touch()
        Path(name).symlink_to(f"there/{name}")
    names, found = read_back(write(Path(f"v{suffix}"), vectors, ODD))
    assert names == ODD
    assert found.dtype == np.float32
    assert np.array_equal(found, vectors)
    assert Path(f"v{suffix}").is_symlink()
    assert not list(Path().rglob(".tmp-*"))
    if suffix in PIECES:
        pieces = list(open_vectors(f"v{suffix}").pieces())
        assert [name for piece in pieces for name in piece.names] == ODD
        assert np.array_equal(np.concatenate([piece.vectors for piece in pieces]), vectors)


@pytest.mark.parametrize("suffix", FORMATS)
def test_a_job_that_ends_early_leaves_nothing(suffix: str) -> None:
    with contextlib.suppress(ZeroDivisionError), vector_writer(Path(f"v{suffix}"), width=3, network={}) as put:
        put(Result("a.jpg", np.ones(3, np.float32), 1, 1, b""))
        raise ZeroDivisionError
    assert list(Path().iterdir()) == []


@pytest.mark.parametrize("suffix", HEADERS)
def test_headers_are_as_long_whatever_they_say(suffix: str) -> None:
    assert len({len(HEADERS[suffix](height, 2048)) for height in (0, 1, 10**6, 10**12)}) == 1


def fault_of(file: Path | str) -> str:
    with pytest.raises(DataError) as caught:
        list(open_vectors(str(file)).pieces())
    return str(caught.value)


@pytest.mark.parametrize("suffix", PIECES)
@pytest.mark.parametrize("value", [np.nan, np.inf, 0.0])
def test_vectors_without_direction_and_damaged_files(suffix: str, value: float) -> None:
    vectors, file = np.ones((5, 3)), Path(f"v{suffix}")
    vectors[3] = value
    if suffix == ".jsonl":  # ours writes no such line
        lines = [json.dumps({"path": f"{row}.jpg", "vector": vector.tolist()}) for row, vector in enumerate(vectors)]
        file.write_text("\n".join(lines))
    else:
        write(file, vectors)
    assert "the vector of 3.jpg (row 3)" in fault_of(file)
    whole = file.read_bytes()
    for data in (b"", b"\xff" * 300, whole[: len(whole) // 2]):
        file.write_bytes(data)
        assert str(file) in fault_of(file)


def test_tables_of_other_programs() -> None:
    rows = pa.table({"path": ["a", "b"], "content_hash": [None, "x"], "vector": [[1, 0], [0, 1]]})  # as DuckDB writes
    pq.write_table(rows, "a.parquet")
    (piece,) = open_vectors("a.parquet").pieces()
    assert (piece.vectors.tolist(), piece.hashes) == ([[1, 0], [0, 1]], [None, "x"])
    faults = {"no columns 'path' and 'vector'": pa.table({"a": [1]})}
    faults["differ in length"] = pa.table({"path": ["a", "b"], "vector": [[1.0], [1.0, 2.0]]})
    damaged = {"selfie": json.dumps({"format": 1, "network": {**MADE_BY, "features": None}})}
    faults["of the network that made it is damaged"] = rows.replace_schema_metadata(damaged)
    for fault, table in faults.items():
        pq.write_table(table, "a.parquet")
        assert fault in fault_of("a.parquet")


def test_other_faults() -> None:
    first, formats = '{"path": "a", "vector": [1, 2]}\n', "vectors are read from .parquet, .npy, .jsonl"
    files = {"v.jsonl": (first * 2 + '{"path": "b"}\n', "can be read: 'vector'"), "v.csv": ("", formats)}
    files |= {"w.jsonl": (first + '{"path": "b", "vector": [1]}\n', "vectors of 1 and of 2 numbers")}
    files |= {"v.safetensors": ("", formats), "v.arrow": ("", formats)}
    for name, (text, fault) in files.items():
        Path(name).write_text(text)
        assert fault in fault_of(name)
    assert "no file nowhere.npy" in fault_of("nowhere.npy")
    Path("parts").mkdir()
    assert "parts holds no part-*.parquet" in fault_of("parts")
    write(Path("parts/part-00000.parquet"), np.ones((1, 3)))
    with vector_writer(Path("parts/part-00001.parquet"), width=3, network=MADE_BY | {"sha256": "1"}):
        pass
    assert "different networks" in fault_of("parts")
