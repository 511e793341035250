"""Files of vectors as other libraries read them."""

import csv
import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from safetensors.numpy import load_file

from selfie_cli.inference.vector_files import HEADERS, as_name


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
