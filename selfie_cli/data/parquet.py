"""Images in parquet files, in the layout of data sets on the Hugging Face Hub."""

import bisect
import contextlib
import importlib.util
import itertools
import json
import os
import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from typing import Any

from selfie_cli.data.blocks import BLOCK, MOST, BlockReader
from selfie_cli.data.layout import class_name, label_of, part_of
from selfie_cli.data.memory import available_memory
from selfie_cli.data.sources import Packed, unreadable
from selfie_cli.errors import DataError, Unlabelled, UnreadableImage, UsageError, one_line

STREAMS = 16
"""Largest number of row groups that are read at the same time: each holds an open file."""
COPIES = 8
"""Largest number of copies of a row group's contents in memory while it is read: one of about 1 GB took 8."""


class Parquet(Packed):
    """The rows of parquet files, named `file.parquet/row-000123`.

    An image column holds bytes, or a structure of bytes and path. At first, only the files' footers are read.

    A row group must be read from its beginning, as its pages do not say how many rows they hold. So images are read in
    blocks, as large as `blocks.MOST` allows for 32 of them, and a block continues the stream of the one before it.
    """

    def __init__(self, paths: Sequence[str]) -> None:
        """Raise DataError unless each file is parquet with one column of images, and of one part; UsageError without
        pyarrow."""
        need_pyarrow()
        super().__init__()
        self.paths = list(paths)
        self.columns: list[str] = []
        self._metadata: list[Any] = []
        self._groups: list[tuple[int, int]] = []  # of all files: numbers of file and group
        sizes: list[int] = []
        parts = set[Any]()
        num_bytes, largest = 0, 1
        for number, path in enumerate(self.paths):
            with opened(path) as file:
                self.columns.append(image_column(path, file.schema_arrow))
                if "split" in file.schema_arrow.names:
                    found = set(file.read(columns=["split"]).column(0).unique().to_pylist())
                    if part_of(os.path.basename(path), is_folder=False) is None:  # else its name decides
                        found = parts = parts | found
                    if len(found) > 1:
                        raise DataError(
                            f"{path} holds several parts, by its column split, or another one than the files before "
                            "it: write each part into a file of its own, called train.parquet, test.parquet or the like"
                        )
                self._metadata.append(file.metadata)
                for each in range(file.metadata.num_row_groups):
                    group = file.metadata.row_group(each)
                    self._groups.append((number, each))
                    sizes.append(group.num_rows)
                    # Of all columns: for one column of a damaged file, pyarrow would abort the process.
                    there = max(0, group.total_byte_size)
                    num_bytes, largest = num_bytes + there, max(largest, there)
            if sum(sizes) != sum(one.num_rows for one in self._metadata):
                raise DataError(f"{path} is damaged: its rows do not match its metadata")
        self._ends = list(itertools.accumulate(sizes))
        rows = ((path, row) for path, one in zip(paths, self._metadata, strict=True) for row in range(one.num_rows))
        self.names = [f"{path}/row-{row:06d}" for path, row in rows]
        if not len(self):
            raise DataError(f"no rows in {self.paths[0]}")
        if COPIES * largest > available_memory():
            raise DataError(
                f"a row group of {self.paths[0]}, or of a file beside it, holds {largest / 1e9:.1f} GB: too "
                "much for the memory here, write it with smaller row groups"
            )
        self.block = max(BLOCK, min(max(sizes), MOST // 32 // (num_bytes // len(self) + 1)))
        # A page may be as large as its row group, and is decoded whole.
        self._num_streams = max(1, min(STREAMS, MOST // (2 * largest)))
        self._room = threading.Semaphore(self._num_streams)
        self._lock = threading.Lock()
        self._streams: OrderedDict[tuple[int, int], Iterator[Any]] = OrderedDict()
        self._reader = BlockReader(self, self.block, cheap=False)

    def contents(self, index: int) -> bytes:
        return self._reader.contents(index)

    def read(self, first: int, end: int) -> list[bytes | UnreadableImage]:
        """Return the bytes of images as `Packed.read` does; damage costs only the images in it."""
        found: list[bytes | UnreadableImage] = []
        while first < end:
            group = bisect.bisect_right(self._ends, first)
            stop, begins = min(end, self._ends[group]), self._ends[group - 1] if group else 0
            with self._room:
                found += self._rows(group, first - begins, stop - begins)
            first = stop
        return found

    def _rows(self, group: int, first: int, end: int) -> list[bytes | UnreadableImage]:
        import pyarrow as pa

        path = self.paths[self._groups[group][0]]
        with self._lock:
            stream = self._streams.pop((group, first), None)
        stream = stream or self._cells(*self._groups[group], first)
        found: list[bytes | UnreadableImage] = []
        damage = "a row group ends too soon"
        try:
            for cell in itertools.islice(stream, end - first):
                found.append(UnreadableImage("the cell holds no bytes") if cell is None else cell)
        except (OSError, pa.ArrowException) as error:
            damage = one_line(error)
        if missing := end - first - len(found):
            return found + [UnreadableImage(f"{path} is damaged: {damage}")] * missing
        with self._lock:
            self._streams[group, end] = stream
            while len(self._streams) > self._num_streams:
                self._streams.popitem(last=False)
        return found

    def _cells(self, number: int, group: int, first: int) -> Iterator[Any]:
        """Yield the images' bytes in a row group from row `first` on, None for empty cells; reads some MB at a time."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        with pq.ParquetFile(self.paths[number], metadata=self._metadata[number], buffer_size=2**20) as file:
            columns = [self.columns[number]]
            for batch in file.iter_batches(batch_size=16, row_groups=[group], columns=columns, use_threads=False):
                cells = batch.column(0)[first:]
                if isinstance(cells.type, pa.StructType):
                    cells = cells.flatten()[cells.type.get_field_index("bytes")]
                yield from cells.to_pylist()
                first = max(0, first - len(batch))

    def labels(self) -> tuple[Sequence[str | None], list[str] | None]:
        """Raises DataError if only some files have a column of labels, or files name different classes."""
        import pyarrow as pa

        texts: list[str | None] = []
        known: list[list[str] | None] = []
        bare: list[Unlabelled] = []
        for path in self.paths:
            with opened(path) as file:
                try:
                    column, names = label_column(path, file.schema_arrow)
                except Unlabelled as error:
                    bare.append(error)
                    continue
                named = None if names is None else dict(enumerate(names))
                try:
                    values = file.read(columns=[column]).column(0).to_pylist()
                    if named is None:
                        texts += map(label_of, values)
                    else:
                        texts += [named.get(value) if type(value) is int else None for value in values]
                except (OSError, ValueError, pa.ArrowException) as error:
                    raise DataError(f"the column {column} of {path} holds no labels: {one_line(error)}") from None
            known.append(names)
        if bare and known:
            raise bare[0]
        if bare:
            self.no_labels = str(bare[0]).removeprefix(f"{self.paths[0]} ")
            return [None] * len(self), None
        if any(names != known[0] for names in known):
            raise DataError(f"{self.paths[0]} and other files name different classes: give those that belong together")
        return texts, known[0]


@contextlib.contextmanager
def opened(path: str) -> Iterator[Any]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        file = pq.ParquetFile(path)
        with file:
            yield file
    except (OSError, UnicodeError, pa.ArrowException) as error:  # its names may be invalid text
        raise unreadable(path, "a parquet file", error) from None


def image_column(path: str, schema: Any) -> str:
    import pyarrow.types as types

    def holds_images(kind: Any) -> bool:
        if types.is_struct(kind) and (index := kind.get_field_index("bytes")) >= 0:
            kind = kind.field(index).type
        return bool(types.is_binary(kind) or types.is_large_binary(kind))

    found = [field.name for field in schema if holds_images(field.type)]
    return only_one(found, ("image", "img"), "images", path, schema)


def label_column(path: str, schema: Any) -> tuple[str, list[str] | None]:
    """The column of labels, and the names of the classes if it holds their positions."""
    import pyarrow.types as types

    usual, classes = ("label", "labels", "fine_label"), class_labels(schema)
    kinds = {field.name: field.type for field in schema}
    found = [name for name in kinds if name in usual or name in classes]
    column = only_one(found, usual, "labels", path, schema)
    if types.is_nested(kinds[column]):
        raise DataError(f"the column {column} of {path} ({kinds[column]}) is no label: give text or numbers")
    return column, classes.get(column)


def class_labels(schema: Any) -> dict[str, list[str] | None]:
    """The columns that the library `datasets` marks as ClassLabel, with the names of their classes."""
    try:
        noted = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        kinds = {name: kind for name, kind in noted.items() if isinstance(kind, dict)}
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError):
        return {}
    names = {name: kind.get("names") for name, kind in kinds.items() if kind.get("_type") == "ClassLabel"}
    return {
        name: [class_name(str(each)) for each in listed] if isinstance(listed, list) else None
        for name, listed in names.items()
    }


def only_one(found: list[str], usual: Sequence[str], what: str, path: str, schema: Any) -> str:
    """The first usual name among those found, else the only one. Raises DataError if there is neither."""
    named = [each for each in usual if each in found]
    if named or len(found) == 1:
        return (named or found)[0]
    have = ", ".join(f"{field.name} ({field.type})" for field in schema)
    which = "several columns" if found else "no column"
    raise (DataError if found else Unlabelled)(
        f"{path} has {which} of {what}, name one of them {usual[0]}: it has {have}"
    )


def num_rows(path: str) -> int:
    """Number of images in a parquet file, 0 without a column of images. Raises DataError if it cannot be read."""
    need_pyarrow()
    with opened(path) as file:
        try:
            image_column(path, file.schema_arrow)
        except DataError:
            return 0
        return int(file.metadata.num_rows)


def has_pyarrow() -> bool:
    return importlib.util.find_spec("pyarrow") is not None


def need_pyarrow() -> None:
    """Raise UsageError if pyarrow is not installed."""
    if not has_pyarrow():
        raise UsageError("parquet needs pyarrow: pip install 'selfie-cli[parquet]'")
