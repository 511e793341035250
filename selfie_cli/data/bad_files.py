"""Unreadable images: the file that lists them, and the error if there are too many."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from selfie_cli.errors import DataError
from selfie_cli.files import write_json_lines
from selfie_cli.talk import Talk, counted

BAD_FILES = "bad_files.jsonl"


@dataclass(frozen=True)
class BadFile:
    """An image that was skipped, and why."""

    name: str
    reason: str


def too_many(bad: Sequence[BadFile], num_images: int, max_bad: float) -> DataError:
    """Return the error for more than `max_bad` (0 to 1) of `num_images` images, or all of them."""
    first = "; ".join(f"{each.name}: {each.reason}" for each in bad[:3])
    if len(bad) == num_images:
        none = "the image is not" if num_images == 1 else f"none of the {num_images} images is"
        return DataError(f"{none} readable: {first}")
    return DataError(
        f"{counted(len(bad), 'unreadable image')}, over {max_bad:.1%} of all {num_images}: {first}. "
        "Repair or remove them, or allow more with --max-bad"
    )


def save_bad(file: Path, bad: Sequence[BadFile]) -> None:
    """Write one line of JSON per image."""
    write_json_lines(file, [{"path": one.name, "reason": one.reason} for one in bad])


def load_bad(file: Path) -> list[BadFile]:
    """Read the file that `save_bad` wrote; [] if it does not exist. Raise DataError if it is damaged."""
    try:
        lines = file.read_text(encoding="utf-8").splitlines()  # JSON escapes all other line ends
        found = [BadFile(one["path"], one["reason"]) for one in map(json.loads, lines)]
        if not all(isinstance(one.name, str) and isinstance(one.reason, str) for one in found):
            raise ValueError("a path or a reason is no text")
    except FileNotFoundError:
        return []
    except (ValueError, LookupError, TypeError, RecursionError) as error:
        raise DataError(f"{file} is damaged ({error}): remove it; unreadable files are then found again") from None
    return found


def report_bad(bad: Sequence[BadFile], num_images: int, file: Path, talk: Talk) -> None:
    """Write the list and warn, if there are unreadable images."""
    if bad:
        save_bad(file, bad)
        talk.warn(f"{len(bad)} of {num_images} images cannot be read and are left out, see {file}")
