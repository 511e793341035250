"""Pretrain, evaluate and finetune on real images, and keep what came out as raw JSON Lines.

    python benchmarks/evidence.py cifar10-cpu CIFAR10_TREE --backbone resnetv2_18_w16 --pretrain-steps 1500 \\
        --finetune-steps 250 --lr 0.05,0.1,0.2 --seeds 5
    python benchmarks/evidence.py cifar10-gpu CIFAR10_TREE --backbone resnetv2_50 --pretrain-budget 12m \\
        --finetune-steps 2000 --seeds 2

DATASET is a folder with train/ and test/, each with a subfolder a class. Lines go to docs/results/NAME.jsonl, a line a
verb, with command, machine, versions and commit. Runs lie in WORK/NAME: a training that is finished is not repeated,
one that was stopped is continued, so a later call goes on.
"""

import argparse
import dataclasses
import json
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from selfie_cli.cli.console import Console
from selfie_cli.config import EvalOptions, FinetuneOptions, PretrainOptions
from selfie_cli.recipes.eval import evaluate
from selfie_cli.recipes.finetune import finetune
from selfie_cli.recipes.pretrain import pretrain
from selfie_cli.runs import open_run, versions
from selfie_cli.training.machine import num_cores

RESULTS = Path(__file__).parents[1] / "docs" / "results"


def processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []:
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor()


def circumstances() -> dict[str, Any]:
    """Taken at the start, when the code is loaded. The commit ends in -dirty if what ran is not what it says."""
    described = ["git", "describe", "--always", "--dirty", "--exclude", "*"]
    commit = subprocess.run(described, capture_output=True, text=True, cwd=RESULTS.parent)
    return {
        "command": " ".join(["python", *sys.argv]),
        "processor": processor(),
        "cores": num_cores(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "versions": versions(),
        "commit": commit.stdout.strip() or "unknown",
    }


def record(name: str, kind: str, here: dict[str, Any], stage: Callable[[], Any]) -> None:
    begun = time.perf_counter()
    result = stage()
    line = {"kind": kind, "seconds": round(time.perf_counter() - begun, 1), "result": dataclasses.asdict(result)}
    with (RESULTS / f"{name}.jsonl").open("a") as file:
        file.write(json.dumps({**line, **here}, default=lambda path: Path(path).name) + "\n")


def begun(folder: Path) -> bool:
    return (folder / "config.json").exists()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name")
    parser.add_argument("dataset")
    parser.add_argument("--backbone", default="resnetv2_18_w16")
    parser.add_argument("--image-size", type=int, default=32)
    parser.add_argument("--batch-size", type=int)
    parser.add_argument("--pretrain-steps", type=int)
    parser.add_argument("--pretrain-budget")
    parser.add_argument("--fraction", type=float, default=0.05)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--finetune-steps", type=int)
    parser.add_argument("--lr", default="0.1")
    parser.add_argument("--work", type=Path, default=Path("runs/evidence"))
    a = parser.parse_args()
    pretraining, finetuning = a.work / a.name / "pretrain", a.work / a.name / "finetune"
    console = Console(quiet=False)
    RESULTS.mkdir(parents=True, exist_ok=True)
    here = circumstances()

    if not begun(pretraining) or not open_run(pretraining).finished:
        options = PretrainOptions(
            data=(a.dataset,),
            backbone=a.backbone,
            image_size=a.image_size,
            batch_size=a.batch_size,
            steps=a.pretrain_steps,
            budget=a.pretrain_budget,
            out=str(pretraining),
        )
        if begun(pretraining):
            options = PretrainOptions(resume=str(pretraining))
        record(a.name, "pretrain", here, lambda: pretrain(options, console))
    if not begun(finetuning):
        judge = EvalOptions(run=str(pretraining), dataset=a.dataset)
        record(a.name, "eval", here, lambda: evaluate(judge, console))
    if not begun(finetuning) or not open_run(finetuning).finished:
        tuning = FinetuneOptions(
            dataset=a.dataset,
            fraction=a.fraction,
            from_=str(pretraining),
            seeds=a.seeds,
            batch_size=a.batch_size,
            steps=a.finetune_steps,
            lr=a.lr,
            out=str(finetuning),
        )
        if begun(finetuning):
            tuning = FinetuneOptions(resume=str(finetuning))
        record(a.name, "finetune", here, lambda: finetune(tuning, console))


if __name__ == "__main__":
    main()
