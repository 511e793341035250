"""What embed and predict share: named images in, one result for every readable one, in input order."""

import contextlib
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from selfie_cli.config import EmbedOptions, PredictOptions
from selfie_cli.data.sources import Files, list_images
from selfie_cli.data.store import BadFile, report_bad, storage_size, stream
from selfie_cli.errors import DataError, UsageError
from selfie_cli.files import replacing
from selfie_cli.talk import Talk
from selfie_cli.training.machine import num_cores

Result = tuple[str, NDArray[np.float32]]
Emit = Callable[[Result], Any]


def expand(paths: Sequence[str], stdin: Iterable[str]) -> list[str]:
    """Files as given, folders as the images below them, '-' as the paths on stdin (one a line), in this order.

    Raises UsageError if nothing is named, DataError for a folder without images.
    """
    names: list[str] = []
    for path in paths:
        if path == "-":
            names += [line.rstrip("\r\n") for line in stdin if line.strip()]
        elif os.path.isdir(path):
            names += list_images(path) or _none_in(path)
        else:
            names.append(path)
    if not names:
        raise UsageError("name the images: files, folders, or - for paths on stdin")
    return names


def _none_in(folder: str) -> list[str]:
    raise DataError(f"no images in {folder}")


def check_out(options: EmbedOptions | PredictOptions, suffixes: Sequence[str]) -> Path | None:
    """--out as a path, tried before the work begins; None where results go to stdout.

    Raises UsageError for a name that no writer fits, a file that would be lost, or a folder that cannot be written to.
    """
    if options.out is None:
        if options.json:
            raise UsageError("--json goes with --out; without it, every image gives a line of JSON already")
        return None
    out = Path(options.out)
    if out.suffix not in suffixes:
        raise UsageError(f"--out {options.out!r}: the name must end in {' or '.join(suffixes)}")
    if out.is_dir():
        raise UsageError(f"--out {out} is a folder: name a file")
    if out.exists() and not options.overwrite:
        raise UsageError(f"{out} exists: replace it with --overwrite")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=out.parent).close()
    except OSError as error:
        raise UsageError(f"--out {out} cannot be written ({error.strerror}): choose another folder") from None
    return out


@contextlib.contextmanager
def line_writer(out: Path) -> Iterator[Any]:
    """A text file that appears whole or not at all; names that are not UTF-8 keep their bytes."""
    with (
        replacing(out) as temporary,
        temporary.open("w", encoding="utf-8", errors="surrogateescape", newline="") as file,
    ):
        yield file


def run_through(
    names: list[str],
    compute: Callable[[Tensor], Tensor],
    emit: Emit,
    *,
    image_size: int,
    options: EmbedOptions | PredictOptions,
    what: str,
    talk: Talk,
) -> list[BadFile]:
    """Decode, compute, emit (name, vector) a batch at a time; returns what could not be read.

    `compute` maps stored pixels, uint8 [B, S, S, 3], to float32 [B, D] on the CPU. Raises DataError if nothing could
    be read.
    """
    bad: list[BadFile] = []
    done = 0
    batches = stream(
        Files(names),
        size=storage_size(image_size),
        workers=options.workers or num_cores(),
        batch_size=options.batch_size,
    )
    with talk.track(what, len(names)) as advance:
        for batch in batches:
            for one in batch.bad:
                talk.warn(f"left out: {one.name}: {one.reason}")
            bad += batch.bad
            if len(batch.indices):
                for index, vector in zip(batch.indices, compute(batch.pixels).numpy(), strict=True):
                    emit((names[index], vector))
            done += len(batch.indices) + len(batch.bad)
            advance(done, f"{len(bad)} unreadable" if bad else "")
    if len(bad) == len(names):
        raise DataError(f"none of the {len(names)} images could be read, first {bad[0].name}: {bad[0].reason}")
    return bad


def conclude(bad: list[BadFile], num_images: int, out: Path | None, *, strict: bool, talk: Talk) -> None:
    """List unreadable images beside `out`. Raises DataError for any of them if `strict`."""
    if out is not None:
        report_bad(bad, num_images, out.with_name("bad_files.jsonl"), talk)
    if bad and strict:
        raise DataError(f"{len(bad)} of {num_images} images could not be read (--strict), first {bad[0].name}")
