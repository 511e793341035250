"""Output of results: check --out before the work begins, write rows as they come, list unreadable images."""

import contextlib
import csv
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from selfie_cli.data.bad_files import BAD_FILES, BadFile, report_bad
from selfie_cli.data.layout import LeftOut
from selfie_cli.errors import DataError, UsageError
from selfie_cli.files import followed, json_line, remove_leftovers, replacing
from selfie_cli.talk import Talk
from selfie_cli.training.distributed import group


@dataclass(frozen=True, kw_only=True)
class Written:
    """Counts of a job's images, as `--json` prints them. out: None where rows went to stdout. left_out: by kind."""

    out: Path | None
    images: int
    unreadable: int
    left_out: dict[str, int]
    bad_files: list[BadFile]


@dataclass(frozen=True, kw_only=True, eq=False)
class Vectors:
    """Vectors of images, as `embed` returns them in Python. vectors: float32 [N, D]; row i is that of paths[i]."""

    vectors: NDArray[np.float32]
    paths: list[str]
    bad_files: list[BadFile]


@dataclass(frozen=True, kw_only=True)
class Predictions:
    """Predictions, as `predict` returns them in Python. rows: path, label and probability of each image."""

    rows: list[dict[str, Any]]
    bad_files: list[BadFile]


def check_out(name: str | None, suffixes: Sequence[str], *, overwrite: bool, json: bool) -> Path | None:
    """Check --out with `check_file`; None if results go to stdout. Raises UsageError."""
    if name is not None:
        return check_file(name, suffixes, overwrite=overwrite)
    if json:
        raise UsageError("--json needs --out: without it, the output is a line of JSON per image already")
    return None


def check_file(name: str, suffixes: Sequence[str], *, overwrite: bool) -> Path:
    """Check --out before the work begins, and return it as a path.

    Raises UsageError for an unknown suffix, a file that would be overwritten, or a folder that cannot be written to.
    """
    out = Path(name)
    if out.is_dir():
        raise UsageError(f"--out {out} is a folder: name a file")
    if out.suffix not in suffixes:
        raise UsageError(f"--out {name!r}: the name must end in {' or '.join(suffixes)}")
    check_writable(out)
    for each in (out, Path(f"{out}.rows.jsonl")):
        if each.exists() and not overwrite:
            raise UsageError(f"{each} exists: replace it with --overwrite")
        remove_leftovers(each.parent, each.name)
    return out


def check_writable(out: Path) -> None:
    """Create the folder of `out`. Raises UsageError if nothing can be written there."""
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=out.parent).close()
    except OSError as error:
        raise UsageError(f"--out {out} cannot be written ({error.strerror}): choose another folder") from None


@contextlib.contextmanager
def row_writer(out: Path) -> Iterator[Callable[[dict[str, Any]], Any]]:
    """A writer of rows with the same keys, as .csv or .jsonl. The file appears whole, at the end, or not at all."""
    with (
        replacing(followed(out)) as temporary,
        temporary.open("w", encoding="utf-8", errors="surrogateescape", newline="") as file,  # for names of any bytes
    ):
        table = csv.writer(file)
        begun = False

        def write(row: dict[str, Any]) -> None:
            nonlocal begun
            if not begun:
                table.writerow(row)
            table.writerow(row.values())
            begun = True

        yield write if out.suffix == ".csv" else lambda row: file.write(json_line(row) + "\n")


def conclude(
    bad: list[BadFile], num_images: int, out: Path | None, *, left_out: LeftOut, strict: bool, talk: Talk
) -> Written:
    """List the unreadable images beside `out`, or in it if it is a folder.

    If `strict`, raises DataError for an unreadable image or an input that was left out.
    """
    if out is not None and group().first:
        listed = out / BAD_FILES if out.is_dir() else out.with_name(f"{out.name}.{BAD_FILES}")
        if not bad:
            listed.unlink(missing_ok=True)  # an earlier job may have found some
        report_bad(bad, num_images, listed, talk)
    if bad and strict:
        raise DataError(f"{len(bad)} of {num_images} images could not be read (--strict), first {bad[0].name}")
    if left_out and strict:
        raise DataError(f"{left_out} (--strict)")
    return Written(out=out, images=num_images - len(bad), unreadable=len(bad), left_out=left_out.counts, bad_files=bad)
