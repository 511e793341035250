"""Files of vectors: `embed` writes them row by row, `similar` reads them piece by piece.

N rows    D features of a vector
"""

import contextlib
import io
import itertools
import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote, unquote_to_bytes

import numpy as np
from numpy.typing import NDArray

from selfie_cli import __version__
from selfie_cli.data.parquet import need_pyarrow
from selfie_cli.errors import DataError, SelfieError, one_line
from selfie_cli.files import followed, replacing
from selfie_cli.inference.outputs import row_writer
from selfie_cli.inference.stream import Result

Write = Callable[[Result], Any]

FORMAT = 1
KEY = "selfie"
NETWORK = ("run", "from", "sha256", "features", "precision")
"""Text fields with which a parquet file describes the network that made it."""
FORMATS = {".parquet": 1, ".npy": 4, ".jsonl": 4, ".csv": 2, ".safetensors": 4}
"""Formats of files of vectors, by suffix, and the fewest bytes per number in each; parquet compresses them."""
PARTS = "part-*.parquet"
"""Files in a folder of vectors, one per process that wrote them."""
VALUES = 2**22
ROWS = 2**13
"""Largest number of values (16 MB) and of rows that are written or read together, and of a row group in parquet."""


def as_row(result: Result) -> dict[str, Any]:
    """An image's line of JSON; nine digits give every float32 back exactly."""
    return {"path": result.name, "vector": [float(f"{value:.9g}") for value in result.vector]}


def as_columns(result: Result) -> dict[str, str]:
    """An image's row of a table with one column per number."""
    return {"path": result.name} | {f"v{i}": f"{value:.9g}" for i, value in enumerate(result.vector)}


def as_text(name: str) -> str:
    """A path as UTF-8. One that is not UTF-8, or begins with 'file:', becomes 'file:' and its percent-encoded bytes."""
    if name.startswith("file:") or any("\ud800" <= character <= "\udfff" for character in name):
        return "file:" + quote(os.fsencode(name))
    return name


def as_name(text: str) -> str:
    """The path that `as_text` was given."""
    return os.fsdecode(unquote_to_bytes(text[5:])) if text.startswith("file:") else text


@contextlib.contextmanager
def vector_writer(out: Path, *, width: int, network: dict[str, Any]) -> Iterator[Write]:
    """A writer of results with vectors of `width` numbers. The file appears whole, at the end, or not at all.

    Rows are written as they come: memory use does not grow with their number. A .npy or .safetensors file holds float32
    [N, D], and <out>.rows.jsonl beside it the path of each row. Only .parquet keeps the description of `network`.
    """
    if out.suffix == ".parquet":
        with table_writer(out, width, network) as write:
            yield write
    elif out.suffix in HEADERS:
        with matrix_writer(out, width) as write:
            yield write
    else:
        row_of = as_row if out.suffix == ".jsonl" else as_columns
        with row_writer(out) as write_row:
            yield lambda result: write_row(row_of(result))


@contextlib.contextmanager
def matrix_writer(out: Path, width: int) -> Iterator[Write]:
    """A writer of vectors after a header of fixed length, which is rewritten when the number of rows is known."""
    height = 0
    header = HEADERS[out.suffix]
    with (
        replacing(followed(out)) as temporary,
        row_writer(out.with_name(out.name + ".rows.jsonl")) as write_name,
        temporary.open("wb") as file,
    ):
        file.write(header(0, width))

        def write(result: Result) -> None:
            nonlocal height
            file.write(result.vector.astype("<f4").tobytes())
            write_name({"row": height, "path": result.name})
            height += 1

        yield write
        file.seek(0)
        file.write(header(height, width))


def npy_header(height: int, width: int) -> bytes:
    """The header of a .npy file; NumPy pads it, so that there is room for any height."""
    file = io.BytesIO()
    description = {"descr": "<f4", "fortran_order": False, "shape": (height, width)}
    np.lib.format.write_array_header_1_0(file, description)
    return file.getvalue()


def safetensors_header(height: int, width: int) -> bytes:
    """The header of a .safetensors file, 128 bytes: the length of the rest, then JSON padded with spaces."""
    vectors = {"dtype": "F32", "shape": [height, width], "data_offsets": [0, 4 * height * width]}
    return (120).to_bytes(8, "little") + json.dumps({"vectors": vectors}).ljust(120).encode("ascii")


HEADERS = {".npy": npy_header, ".safetensors": safetensors_header}


@contextlib.contextmanager
def table_writer(out: Path, width: int, network: dict[str, Any]) -> Iterator[Write]:
    """Results as a table of path, width, height, content_hash and vector, with `network` in the file's metadata."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    vector = pa.list_(pa.field("item", pa.float32(), nullable=False), width)
    text, number = pa.string(), pa.int32()
    columns = {"path": text, "width": number, "height": number, "content_hash": text, "vector": vector}
    about = {"format": FORMAT, "selfie_version": __version__, "network": network}
    fields = [pa.field(name, kind, nullable=False) for name, kind in columns.items()]
    schema = pa.schema(fields, metadata={KEY: json.dumps(about)})
    rows = rows_of(width)
    waiting: list[Result] = []

    def write_group() -> None:
        numbers = pa.array(np.stack([result.vector for result in waiting]).ravel())
        values = {
            "path": [as_text(result.name) for result in waiting],
            "width": [result.width for result in waiting],
            "height": [result.height for result in waiting],
            "content_hash": [result.content_hash.hex() for result in waiting],
            "vector": pa.FixedSizeListArray.from_arrays(numbers, type=vector),
        }
        writer.write_table(pa.Table.from_pydict(values, schema), row_group_size=rows)
        waiting.clear()

    def write(result: Result) -> None:
        waiting.append(result)
        if len(waiting) == rows:
            write_group()

    # Splitting the bytes saves a quarter to a third of float32 numbers, zstd alone a tenth to a fifth. A dictionary
    # would not help, as values hardly repeat.
    packing: dict[str, Any] = {"compression": "zstd", "compression_level": 1, "use_dictionary": False}
    split = {"use_byte_stream_split": ["vector.list.element"]}
    with replacing(followed(out)) as temporary, pq.ParquetWriter(temporary, schema, **packing, **split) as writer:
        yield write
        if waiting:
            write_group()


@contextlib.contextmanager
def reading(file: Path) -> Iterator[None]:
    """Raise DataError for any error of a reader: a damaged file causes errors of many types."""
    try:
        yield
    except (SelfieError, MemoryError):
        raise
    except Exception as error:
        raise DataError(f"{file} holds no vectors that can be read: {one_line(error)[:200]}") from error


def rows_of(width: int) -> int:
    """Number of vectors of that width that are written and read together."""
    return max(1, min(ROWS, VALUES // max(1, width)))


class Piece(NamedTuple):
    """Some rows of a file of vectors. vectors: float32 [n, D]. hashes: of the images' bytes, if the file has them."""

    names: Sequence[str]
    vectors: NDArray[np.float32]
    hashes: Sequence[str | None] | None


@dataclass(frozen=True)
class VectorFile:
    """A file that `selfie embed` wrote, or the parts in a folder, in order. network: {} if the files have none."""

    path: Path
    files: list[Path]
    network: dict[str, str]

    def pieces(self) -> Iterator[Piece]:
        """All rows, some at a time, in order. Raises DataError if a file is damaged or the vectors' widths differ."""
        width: int | None = None
        for file in self.files:
            first = 0
            with reading(file):
                for piece in PIECES[file.suffix](file):
                    height, found = piece.vectors.shape
                    width = width or found
                    if len(piece.names) != height:
                        raise ValueError("names and vectors differ in number")
                    if not all(isinstance(name, str) for name in piece.names):
                        raise ValueError("a path is not text")
                    if found != width:
                        raise ValueError(f"vectors of {found} and of {width} numbers")
                    largest = np.abs(piece.vectors).max(axis=1, initial=0)  # squares might overflow
                    if not (good := np.isfinite(largest) & (largest > 0)).all():
                        row = int(np.argmin(good))
                        raise ValueError(f"the vector of {piece.names[row]} (row {first + row}) has no direction")
                    first += height
                    yield piece
        if width is None:
            raise DataError(f"{self.path} holds no vectors")


def open_vectors(name: str) -> VectorFile:
    """Open what `selfie embed` wrote. Raises DataError for anything else, UsageError if its reader is not installed."""
    path = Path(name)
    files = sorted(path.glob(PARTS)) if path.is_dir() else [path]
    if not files or not files[0].is_file():
        missing = f"{path} holds no {PARTS}" if path.is_dir() else f"no file {path}"
        raise DataError(f"{missing}: name what selfie embed --out has written")
    if files[0].suffix not in PIECES:
        raise DataError(f"{path}: vectors are read from {', '.join(PIECES)}, or a folder of parts")
    networks = [network_of(file) for file in files]
    for file, network in zip(files, networks, strict=True):
        if network != networks[0]:
            raise DataError(f"{file} and {files[0]} were made by different networks: keep them in two folders")
    return VectorFile(path, files, networks[0])


def network_of(file: Path) -> dict[str, str]:
    """The description of the network that made a file; {} if there is none. Raises DataError for a damaged file."""
    if file.suffix != ".parquet":
        return {}
    need_pyarrow()
    import pyarrow.parquet as pq

    with reading(file):
        about = json.loads((pq.read_schema(file).metadata or {}).get(KEY.encode(), b"{}"))
        if not about:
            return {}
        if about.get("format") != FORMAT:
            told, writer = about.get("format"), about.get("selfie_version")
            raise ValueError(f"its format is {told}, here {FORMAT} is read: use selfie-cli {writer}, or embed again")
        if not all(isinstance(about["network"][key], str) for key in NETWORK):
            raise ValueError("its description of the network that made it is damaged")
        return dict(about["network"])


def table_pieces(file: Path) -> Iterator[Piece]:
    """Read vectors from .parquet: lists of fixed length, as `table_writer` writes them, or of any length."""
    import pyarrow.parquet as pq

    table = pq.ParquetFile(file)
    columns = [name for name in ("path", "vector", "content_hash") if name in table.schema_arrow.names]
    if columns[:2] != ["path", "vector"]:
        raise ValueError("it has no columns 'path' and 'vector'")
    width = getattr(table.schema_arrow.field("vector").type, "list_size", 1)
    for batch in table.iter_batches(rows_of(width), columns=columns):
        vector = batch.column("vector")
        if not len(batch):
            continue
        if vector.null_count or batch.column("path").null_count:
            raise ValueError("it has rows without path or vector")
        numbers = vector.flatten().to_numpy(zero_copy_only=False)
        if hasattr(vector, "offsets") and len(set(np.diff(vector.offsets))) > 1:
            raise ValueError("its vectors differ in length")
        vectors = numbers.astype(np.float32, copy=False).reshape(len(batch), -1)
        paths = [as_name(text) for text in batch.column("path").to_pylist()]
        yield Piece(paths, vectors, batch.column("content_hash").to_pylist() if len(columns) > 2 else None)


def matrix_pieces(file: Path) -> Iterator[Piece]:
    """Read vectors from .npy, memory-mapped, and their names from .rows.jsonl."""
    matrix = np.load(file, mmap_mode="r", allow_pickle=False)
    if matrix.ndim != 2 or not matrix.shape[1]:
        raise ValueError(f"an array of shape {matrix.shape}, not [N, D]")
    rows = rows_of(matrix.shape[1])
    with Path(f"{file}.rows.jsonl").open(encoding="utf-8") as lines:
        for start in range(0, len(matrix), rows):
            vectors = np.asarray(matrix[start : start + rows], np.float32)
            yield Piece([json.loads(line)["path"] for line in itertools.islice(lines, len(vectors))], vectors, None)
        if next(lines, None) is not None:
            raise ValueError("names and vectors differ in number")


def line_pieces(file: Path) -> Iterator[Piece]:
    """Read vectors and names from .jsonl."""
    with file.open(encoding="utf-8") as lines:
        rows = 1
        while batch := [json.loads(line) for line in itertools.islice(lines, rows)]:
            vectors = np.array([row["vector"] for row in batch], np.float32)
            yield Piece([row["path"] for row in batch], vectors, None)
            rows = rows_of(vectors.shape[1])


PIECES: dict[str, Callable[[Path], Iterator[Piece]]] = {
    ".parquet": table_pieces,
    ".npy": matrix_pieces,
    ".jsonl": line_pieces,
}
