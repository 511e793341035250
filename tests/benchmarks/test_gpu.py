import json
import subprocess
import sys
from pathlib import Path

import gpu
import pytest
from running import ENVIRONMENT, lines_of

STAGES = "limits,smoke,small eager,labels eager,embed compiled,small profile,small command,deterministic,out of memory"


def run(folder: Path, *more: str) -> list[dict[str, object]]:
    """The script on a CPU, with small networks; returns the raw lines it has left so far."""
    where = ["--results", folder, "--work", folder / "work"]
    argv = [sys.executable, gpu.__file__, "--device", "cpu", "--tiny", "--rounds", "1", *where, *more]
    subprocess.run(argv, env=ENVIRONMENT, check=True)
    return lines_of(folder / "gpu.jsonl")


@pytest.mark.slow
def test_stages_leave_rows_and_are_not_repeated(tmp_path: Path) -> None:
    lines = run(tmp_path, "--only", STAGES)
    assert [line["note"] for line in lines if line["unit"] == "failed"] == []
    assert {line["stage"] for line in lines} == set(STAGES.split(","))
    rates = [line for line in lines if line["unit"] == "images/s"]
    assert rates
    assert all(line["share"] > 0 for line in rates)  # type: ignore[operator]
    assert next(line for line in lines if line["stage"] == "small profile")["top"]
    assert "data_wait" in next(line for line in lines if line["stage"] == "small command")
    assert [line["value"] for line in lines if line["stage"] == "deterministic"] == [0]
    (smoke,) = (line for line in lines if line["stage"] == "smoke")
    assert (smoke["note"], smoke["value"], smoke["unit"]) == ("", 3, "of 3")
    assert [line["value"] for line in lines if line["stage"] == "out of memory"] == [8]
    assert str(tmp_path) not in json.dumps(lines)
    assert run(tmp_path, "--deadline", "-1") == lines
