"""Test images that are like training images, or were seen in pretraining: reported, and left out if asked."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from selfie_cli.data.duplicates import FILE_NAME, MOST_PAIRS, Seen, find_seen, load_marks, marks_of
from selfie_cli.errors import DataError, UsageError
from selfie_cli.runs import Run
from selfie_cli.talk import Talk


@dataclass(frozen=True)
class SeenImage:
    """A test image, and the run that was pretrained on it, or on nearly the same; None for a training image."""

    path: str
    run: str | None
    kind: str
    bits: int


def unmarked(run: Run) -> str | None:
    """Return the name of the network, this run or the first that it goes back to, whose images nothing is known of."""
    if not (run.path / FILE_NAME).is_file():
        return run.name
    unknown: str | None = run.config.get("data", {}).get("unmarked")
    return unknown


def look_for_seen(
    sources: Iterable[Run], train: Tensor, pixels: Tensor, names: list[str], *, exclude: bool, talk: Talk
) -> tuple[Tensor, list[SeenImage]]:
    """Compare test images with training images, and with those that runs were pretrained on.

    Args:
        sources: the runs. Nothing is known of one without marks (the bundled network, a finetuned one).
        train: uint8 [N, S, S, 3], the training images.
        pixels: uint8 [M, S, S, 3], the test images, stored as for the runs' own images; names: M.

    Returns:
        The rows to keep, int64 [M'], ascending: all, or with `exclude` those that nothing has seen. And a record for
        each image and run that has seen it.

    Raise UsageError if `exclude` cannot be honoured, DataError if it leaves nothing.
    """
    records: list[SeenImage] = []
    keep = np.ones(len(names), dtype=np.bool_)
    marks = marks_of(pixels)
    if len(train) * len(names) > MOST_PAIRS:
        talk.say("too many test images to search for near-duplicates of training images: only copies are reported")
    compared: list[tuple[str | None, Seen]] = [(None, find_seen(marks, marks_of(train), pairs=MOST_PAIRS))]
    for source in sources:
        if marked := (source.path / FILE_NAME).is_file():
            compared.append((source.name, find_seen(marks, load_marks(source.path / FILE_NAME))))
        elif exclude:
            raise UsageError(f"--exclude-seen: {source.name} has no record of the images that it was pretrained on")
        if unknown := unmarked(source):
            first = "" if not marked else f", which {source.name} started from,"
            talk.say(
                f"{unknown}{first} has no record of its pretraining images: test images among them would not be noticed"
            )
    for run, found in compared:
        near, copies = int(found.near.sum()), int(found.exact.sum())
        if near:
            seen = f"were seen when {run} was pretrained" if run else "are like training images"
            talk.warn(
                f"{near:,} of {len(names):,} test images ({near / len(names):.1%}) {seen}: "
                f"{copies:,} copies, {near - copies:,} near-duplicates"
                + (", left out" if exclude else "; --exclude-seen leaves them out")
            )
        for i in np.flatnonzero(found.near):
            kind = "copy" if found.exact[i] else "near-duplicate"
            records.append(SeenImage(names[i], run, kind, int(found.distance[i])))
        if exclude:
            keep &= ~found.near
    if len(keep) and not keep.any():
        raise DataError(
            "every test image was seen in pretraining or is similar to a training image: without --exclude-seen, "
            "all are kept, with a warning"
        )
    return torch.from_numpy(np.flatnonzero(keep)), records
