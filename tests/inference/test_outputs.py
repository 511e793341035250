"""--out, checked before the work begins."""

from pathlib import Path

import pytest

from selfie_cli.errors import UsageError
from selfie_cli.inference.outputs import check_file

SUFFIXES = (".safetensors", ".jsonl")


def test_a_file_is_not_lost_and_a_folder_can_be_written_to() -> None:
    Path("dear.jsonl").touch()
    with pytest.raises(UsageError, match="--overwrite"):
        check_file("dear.jsonl", SUFFIXES, overwrite=False)
    Path("folder.jsonl").mkdir()
    for out in ("v.txt", "", "folder.jsonl", "dear.jsonl/v.jsonl", "/proc/v.jsonl"):
        with pytest.raises(UsageError, match="--out"):
            check_file(out, SUFFIXES, overwrite=True)
