"""--out, checked before the work begins."""

import shutil
from pathlib import Path

import pytest

from selfie_cli.errors import UsageError
from selfie_cli.inference.outputs import check_file

SUFFIXES = (".safetensors", ".jsonl")


def test_a_runs_own_files_are_no_place_for_results(finetuned: Path) -> None:
    shutil.copytree(finetuned, "run")
    Path("run/metrics.jsonl").touch()
    Path("link.safetensors").symlink_to("run/model.safetensors")
    Path("other").mkdir()
    Path("other/config.json").write_text("{}")
    Path("linked").mkdir()
    shutil.copy("run/config.json", "linked")
    Path("linked/model.safetensors").symlink_to(Path("other/weights.safetensors").resolve())
    own = [f"run/{name}" for name in ("model.safetensors", "seen.safetensors", "metrics.jsonl", "eval-a-seen.jsonl")]
    for out in (*own, "link.safetensors", "linked/model.safetensors"):
        with pytest.raises(UsageError, match="is a file of a run"):
            check_file(out, SUFFIXES, overwrite=True)
    for out in ("run/mine.safetensors", "other/model.safetensors"):
        assert check_file(out, SUFFIXES, overwrite=False) == Path(out)


def test_a_file_is_not_lost_and_a_folder_can_be_written_to() -> None:
    Path("dear.jsonl").touch()
    with pytest.raises(UsageError, match="--overwrite"):
        check_file("dear.jsonl", SUFFIXES, overwrite=False)
    Path("folder.jsonl").mkdir()
    for out in ("v.txt", "", "folder.jsonl", "dear.jsonl/v.jsonl", "/proc/v.jsonl"):
        with pytest.raises(UsageError, match="--out"):
            check_file(out, SUFFIXES, overwrite=True)
