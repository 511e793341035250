"""Test images that a network has seen in pretraining: told, listed, and left out if asked."""

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from selfie_cli.data.duplicates import FILE_NAME, Marks, find_seen, load_marks, marks_of
from selfie_cli.errors import DataError, UsageError
from selfie_cli.runs import Run
from selfie_cli.talk import Talk


def look_for_seen(
    sources: Iterable[Run], pixels: Tensor, names: list[str], *, exclude: bool, talk: Talk
) -> tuple[Tensor, list[dict[str, Any]]]:
    """Compare test images with those that runs were pretrained on.

    Args:
        sources: the runs; of one without marks (the bundled network, a finetuned one) nothing is known, which is said.
        pixels: uint8 [M, S, S, 3], stored as for the runs' own images; names: M.

    Returns:
        The rows to go on with, int64 [M'], ascending: all, or with `exclude` those that no run has seen. And a record
        for each image and run that has seen it.

    Raises UsageError if `exclude` cannot be honoured, DataError if it leaves nothing.
    """
    records: list[dict[str, Any]] = []
    keep = np.ones(len(names), dtype=np.bool_)
    marks: Marks | None = None  # made once, and only if there is anything to compare with
    for source in sources:
        where = source.name
        if not (source.path / FILE_NAME).is_file():
            if exclude:
                raise UsageError(f"--exclude-seen: {where} keeps no marks of the images that it was pretrained on")
            talk.say(f"{where} keeps no marks of its images: test images among them would not be noticed")
            continue
        if marks is None:
            marks = marks_of(pixels)
        found = find_seen(marks, load_marks(source.path / FILE_NAME))
        near, copies = int(found.near.sum()), int(found.exact.sum())
        if near:
            talk.warn(
                f"{near:,} of {len(names):,} test images ({near / len(names):.1%}) were seen when {where} was "
                f"pretrained: {copies:,} copies, {near - copies:,} near-duplicates"
                + (", left out" if exclude else "; --exclude-seen leaves them out")
            )
        records += [
            {
                "path": names[i],
                "run": where,
                "kind": "copy" if found.exact[i] else "near-duplicate",
                "bits": int(found.distance[i]),
            }
            for i in np.flatnonzero(found.near)
        ]
        if exclude:
            keep &= ~found.near
    if len(keep) and not keep.any():
        raise DataError("every test image was seen in pretraining: without --exclude-seen they are only told")
    return torch.from_numpy(np.flatnonzero(keep)), records
