"""The whole of the evidence with tiny numbers: every stage leaves its line, none is repeated, and gives a table."""

import subprocess
import sys
from pathlib import Path

import evidence
import pytest
import table
from running import ENVIRONMENT, draw_folder, lines_of

TINY = (
    *("--backbone", "resnetv2_18_w16", "--precision", "fp32", "--batch-size", "8", "--pretrain-seconds", "0.01"),
    *("--compare", "0.5:2", "--compare", "1:1:selfie-best,simclr-best", "--lengths", "1,2", "--length-fraction", "0.5"),
    *("--finetune-steps", "2"),
)


@pytest.mark.slow
def test_stage_by_stage_and_never_twice(tmp_path: Path) -> None:
    images = draw_folder(tmp_path / "images", train=40, test=20)

    def run(*more: str) -> list[dict[str, object]]:
        where = ("--work", str(tmp_path / "work"), "--results", str(tmp_path))
        argv = [sys.executable, evidence.__file__, "tiny", str(images), *TINY, *where, *more]
        subprocess.run(argv, env=ENVIRONMENT, check=True)
        return lines_of(tmp_path / "tiny.jsonl")

    assert [line["kind"] for line in run("--only", "selfie-best")] == ["rates", "pretrain", "eval"]
    lines = run()
    assert [line["kind"] for line in lines[3:]] == ["pretrain", "eval"] * 3 + ["curve"] * 4
    assert run() == lines
    made = table.accuracies(lines)
    for arm in ("selfie-paper", "selfie-best", "byol-best", "simclr-best"):
        assert f"| {arm} | 1 |" in made
    assert "50 % of the labels (20), 2 steps, seeds 0, 1:" in made
    assert made.count("| supervised | no pretraining | 0.3 |") == 2
    assert "| steps | 1 | 2 |" in made
    assert "too few held-out labels to tell" in made
