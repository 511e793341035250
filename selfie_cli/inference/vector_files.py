"""Vectors in files: what `embed` writes, row by row, and what reads it back, a piece at a time.

N rows    D features of a vector
"""

import contextlib
import io
import itertools
import json
import os
import tokenize
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote, unquote_to_bytes

import numpy as np
from numpy.typing import NDArray

from selfie_cli import __version__
from selfie_cli.errors import DataError, UsageError
from selfie_cli.files import followed, replacing
from selfie_cli.inference.stream import Emit, Result, row_writer

FORMAT = 1
KEY = "selfie"
NETWORK = ("run", "from", "sha256", "features", "precision")
"""What a table says in words of the network that made it."""
DAMAGED = (
    *(OSError, EOFError, ValueError, LookupError, TypeError, AttributeError, RuntimeError, ArithmeticError),
    *(MemoryError, SystemError, SyntaxError, tokenize.TokenError),
)
"""What readers raise on files that are not what they should be, or their children: pyarrow's errors, what is not
implemented, JSON that is nested too deeply."""
AT_LEAST = {".parquet": 1, ".npy": 4, ".jsonl": 4, ".csv": 2, ".safetensors": 4}
"""Suffixes of files of vectors, and the fewest bytes per number in each; parquet packs them."""
PARTS = "part-*.parquet"
"""Files in a folder of vectors, one per process that wrote them."""
VALUES = 2**22
ROWS = 2**13
"""Numbers, 16 MB of them, and rows that are written and read together at most; a row group of parquet has as many."""


def need_arrow() -> None:
    """Raises UsageError if there is no pyarrow."""
    if find_spec("pyarrow") is None:
        raise UsageError("parquet files need pyarrow: pip install 'selfie-cli[parquet]'")


def as_row(result: Result) -> dict[str, Any]:
    """What JSON Lines say of an image; nine digits give every float32 back exactly."""
    return {"path": result.name, "vector": [float(f"{value:.9g}") for value in result.vector]}


def as_columns(result: Result) -> dict[str, str]:
    """As `as_row`, for a table with a column a number."""
    return {"path": result.name} | {f"v{i}": f"{value:.9g}" for i, value in enumerate(result.vector)}


def as_text(name: str) -> str:
    """A path as a column of strings holds it, so that every tool opens it and nothing is lost: as it is; one that is
    not UTF-8, or begins with 'file:' itself, as 'file:' and its bytes, percent-encoded as in a URI."""
    if name.startswith("file:") or any("\ud800" <= character <= "\udfff" for character in name):
        return "file:" + quote(os.fsencode(name))
    return name


def as_name(text: str) -> str:
    """The path that `as_text` was given."""
    return os.fsdecode(unquote_to_bytes(text[5:])) if text.startswith("file:") else text


@contextlib.contextmanager
def writing(out: Path) -> Iterator[Emit]:
    """A writer of results for .npy, .safetensors, .jsonl or .csv, which appears whole, at the end, or not at all.

    .npy and .safetensors hold float32 [N, D] (in the latter as 'vectors'); beside them lies <out>.rows.jsonl, which
    says which image each row is. Rows are written as they come: memory use does not grow with their number.
    """
    if out.suffix in HEADERS:
        with matrix_writer(out, HEADERS[out.suffix]) as write:
            yield write
        return
    of = as_row if out.suffix == ".jsonl" else as_columns
    with row_writer(out) as write_row:
        yield lambda result: write_row(of(result))


@contextlib.contextmanager
def matrix_writer(out: Path, header: Callable[[int, int], bytes]) -> Iterator[Emit]:
    """Vectors behind a header, which is only known at the end and as long whatever it says; names in .rows.jsonl."""
    height = width = 0
    with (
        replacing(followed(out)) as temporary,
        row_writer(out.with_name(out.name + ".rows.jsonl")) as write_name,
        temporary.open("wb") as file,
    ):

        def write(result: Result) -> None:
            nonlocal height, width
            if not height:
                width = len(result.vector)
                file.write(header(0, width))
            file.write(result.vector.astype("<f4").tobytes())
            write_name({"row": height, "path": result.name})
            height += 1

        yield write
        file.seek(0)
        file.write(header(height, width))


def npy_header(height: int, width: int) -> bytes:
    """NumPy pads it, so that there is room for any height."""
    file = io.BytesIO()
    description = {"descr": "<f4", "fortran_order": False, "shape": (height, width)}
    np.lib.format.write_array_header_1_0(file, description)
    return file.getvalue()


def safetensors_header(height: int, width: int) -> bytes:
    """The length of what follows, then JSON, which may end in spaces: 128 bytes."""
    vectors = {"dtype": "F32", "shape": [height, width], "data_offsets": [0, 4 * height * width]}
    return (120).to_bytes(8, "little") + json.dumps({"vectors": vectors}).ljust(120).encode("ascii")


HEADERS = {".npy": npy_header, ".safetensors": safetensors_header}


@contextlib.contextmanager
def table_writer(out: Path, *, width: int, about: dict[str, Any]) -> Iterator[Emit]:
    """Write results as .parquet, with a bounded number of rows in memory. The file appears whole, at the end, or not.

    Columns: path, width, height, content_hash, vector. `about` is kept in the file's metadata as JSON.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    vector = pa.list_(pa.field("item", pa.float32(), nullable=False), width)
    text, number = pa.string(), pa.int32()
    columns = {"path": text, "width": number, "height": number, "content_hash": text, "vector": vector}
    fields = [pa.field(name, kind, nullable=False) for name, kind in columns.items()]
    about = {"format": FORMAT, "selfie_version": __version__, **about}
    schema = pa.schema(fields, metadata={KEY: json.dumps(about)})
    rows = rows_of(width)
    waiting: list[Result] = []

    def put() -> None:
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
            put()

    # Of float32 numbers a quarter to a third is saved, where zstd alone saves a tenth to a fifth, and nothing repeats
    # that a dictionary would help.
    packing: dict[str, Any] = {"compression": "zstd", "compression_level": 1, "use_dictionary": False}
    split = {"use_byte_stream_split": ["vector.list.element"]}
    with replacing(followed(out)) as temporary, pq.ParquetWriter(temporary, schema, **packing, **split) as writer:
        yield write
        if waiting:
            put()


@contextlib.contextmanager
def reading(file: Path) -> Iterator[None]:
    """Whatever goes wrong in here is the fault of a file of vectors. Raises DataError."""
    try:
        yield
    except DAMAGED as error:
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise DataError(f"{file} holds no vectors that can be read: {' '.join(str(reason).split())[:200]}") from None


def rows_of(width: int) -> int:
    """How many vectors of that width are handled together."""
    return max(1, min(ROWS, VALUES // max(1, width)))


def about_of(file: Path) -> dict[str, Any]:
    """The metadata that `table_writer` was given; {} where there is none. Raises DataError."""
    if file.suffix != ".parquet":
        return {}
    need_arrow()
    import pyarrow.parquet as pq

    with reading(file):
        about = json.loads((pq.read_schema(file).metadata or {}).get(KEY.encode(), b"{}"))
        if about and about.get("format") != FORMAT:
            told, writer = about.get("format"), about.get("selfie_version")
            raise ValueError(f"its format is {told}, here {FORMAT} is read: use selfie-cli {writer}, or embed again")
        if about and not all(isinstance(about["network"][key], str) for key in NETWORK):
            raise ValueError("what it says of the network that made it is damaged")
        return dict(about)


class Piece(NamedTuple):
    """Some rows of a file of vectors. vectors: float32 [n, D]. hashes: of their contents, where the file has them."""

    names: Sequence[str]
    vectors: NDArray[np.float32]
    hashes: Sequence[str] | None


@dataclass(frozen=True)
class VectorFile:
    """What `selfie embed` wrote: one file, or the parts in a folder, in their order."""

    path: Path
    files: list[Path]
    about: dict[str, Any]

    def pieces(self) -> Iterator[Piece]:
        """All rows, some at a time, in order. Raises DataError for what is damaged, or not of one width."""
        width: int | None = None
        for file in self.files:
            first = 0
            with reading(file):
                for piece in PIECES[file.suffix](file):
                    height, found = piece.vectors.shape
                    if len(piece.names) != height:
                        raise ValueError("names and vectors differ in number")
                    if not all(isinstance(name, str) for name in piece.names):
                        raise ValueError("a path is no text")
                    if found != (width := width or found):
                        raise ValueError(f"vectors of {found} and of {width} numbers")
                    # One sum tells of any number that is none; squares might overflow.
                    sizes = np.abs(piece.vectors).max(axis=1, initial=0)
                    if not (good := np.isfinite(sizes) & (sizes > 0)).all():
                        row = int(np.argmin(good))
                        raise ValueError(f"the vector of {piece.names[row]} (row {first + row}) has no direction")
                    first += height
                    yield piece
        if width is None:
            raise DataError(f"{self.path} holds no vectors")


def open_vectors(name: str) -> VectorFile:
    """Raises DataError if there is nothing that `selfie embed` writes, UsageError if its reader is not installed."""
    path = Path(name)
    files = sorted(path.glob(PARTS)) if path.is_dir() else [path]
    if not files:
        raise DataError(f"{path} holds no {PARTS}: name what selfie embed --out has written")
    if not files[0].is_file():
        raise DataError(f"no file {path}: name what selfie embed --out has written")
    if files[0].suffix not in PIECES:
        raise DataError(f"{path}: vectors are read from {', '.join(PIECES)}, or a folder of parts")
    networks = [about_of(file) for file in files]
    for file, about in zip(files, networks, strict=True):
        if about.get("network") != networks[0].get("network"):
            raise DataError(f"{file} and {files[0]} were made by different networks: keep them in two folders")
    return VectorFile(path, files, networks[0])


def table_pieces(file: Path) -> Iterator[Piece]:
    import pyarrow.parquet as pq

    table = pq.ParquetFile(file)
    names = table.schema_arrow.names
    columns = [name for name in ("path", "vector", "content_hash") if name in names]
    if columns[:2] != ["path", "vector"]:
        raise ValueError("it has no columns 'path' and 'vector'")
    width = getattr(table.schema_arrow.field("vector").type, "list_size", 1)
    for batch in table.iter_batches(rows_of(width), columns=columns):
        vector = batch.column("vector")
        if len(batch):
            if vector.null_count or batch.column("path").null_count:
                raise ValueError("it has rows without path or vector")
            numbers = vector.flatten().to_numpy(zero_copy_only=False)
            lengths = set(np.diff(vector.offsets)) if hasattr(vector, "offsets") else {len(numbers) // len(batch)}
            if len(lengths) > 1:
                raise ValueError("its vectors differ in length")
            vectors = numbers.astype(np.float32, copy=False).reshape(len(batch), -1)
            paths = [as_name(text) for text in batch.column("path").to_pylist()]
            yield Piece(paths, vectors, batch.column("content_hash").to_pylist() if len(columns) > 2 else None)


def matrix_pieces(file: Path) -> Iterator[Piece]:
    """Vectors in .npy, mapped and not read whole, with their names in .rows.jsonl."""
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
    """Vectors in .jsonl."""
    with file.open(encoding="utf-8") as lines:
        numbered = enumerate(lines, 1)
        width = 0
        while batch := list(itertools.islice(numbered, rows_of(width or ROWS))):
            names, vectors = [], []
            for number, line in batch:
                try:
                    row = json.loads(line)
                    names.append(row["path"])
                    vectors.append(np.array(row["vector"], np.float32))
                    width = width or len(vectors[-1])
                    if vectors[-1].shape != (width,):
                        raise ValueError(f"{len(row['vector'])} numbers, not {width}")
                except (ValueError, LookupError, TypeError) as error:
                    raise ValueError(f"line {number}: {error}") from None
            yield Piece(names, np.stack(vectors), None)


PIECES: dict[str, Callable[[Path], Iterator[Piece]]] = {
    ".parquet": table_pieces,
    ".npy": matrix_pieces,
    ".jsonl": line_pieces,
}
