"""Pretrain in several ways for the same time, finetune all of them, and keep what came out as raw JSON Lines.

    python benchmarks/evidence.py cifar10-cpu CIFAR10_TREE --pretrain-seconds 1200 --fractions 0.05,0.2,1 --seeds 5,3,3
    python benchmarks/evidence.py cifar10-gpu CIFAR10_TREE --backbone resnetv2_50 --pretrain-seconds 480 \\
        --finetune-steps 2000 --seeds 2
    python benchmarks/evidence.py batch-64 CIFAR10_TREE --arms byol-best,simclr-best --pretrain-epochs 4 \\
        --batch-size 64 --pretrain-lr 0.025 --only pretraining

DATASET is a folder with train/ and test/, each with a subfolder a class. Steps a second of every arm are measured
first, in turns, on this machine with nothing else on it, and --pretrain-seconds are turned into steps with them; so
arms may then be trained side by side (--only rates, then --only selfie-paper, ...) without robbing each other of
steps. With --pretrain-epochs, all see as many images instead.

Lines go to docs/results/NAME.jsonl, a line a stage, with command, machine, versions and commit. Runs lie in
WORK/NAME: a training that is finished is not repeated, one that was stopped is continued, so a later call goes on.
"""

import argparse
import dataclasses
import json
import platform
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch

from selfie_cli.cli.console import Console
from selfie_cli.config import CurveOptions, EvalOptions, PretrainOptions
from selfie_cli.data.sources import Array
from selfie_cli.data.store import storage_size
from selfie_cli.files import read_json, write_json
from selfie_cli.methods.method import Method
from selfie_cli.recipes import networks
from selfie_cli.recipes.curve import curve
from selfie_cli.recipes.derivation import derive
from selfie_cli.recipes.eval import evaluate
from selfie_cli.recipes.pretrain import pretrain
from selfie_cli.runs import open_run, versions
from selfie_cli.talk import Talk
from selfie_cli.training.machine import fit, num_cores, precisions, prepare
from selfie_cli.training.optimizers import make_optimizer
from selfie_cli.training.step import Batch, Step

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


def steps_a_second(asked: dict[str, PretrainOptions], dataset_size: int, rounds: int = 8) -> dict[str, float]:
    """Of whole steps, augmentation, optimizer and all; arms take turns, so that all see the same machine."""
    trials = {}
    for arm, options in asked.items():
        source = Array(
            torch.zeros(dataset_size, 1, 1, 3, dtype=torch.uint8).numpy(), [str(i) for i in range(dataset_size)]
        )
        derived = derive(options, source)
        device = prepare(options.device)
        method = networks.build_method(derived).to(device).train()
        side = storage_size(derived["image_size"])
        pixels = torch.randint(0, 256, (derived["batch_size"], side, side, 3), dtype=torch.uint8, device=device)
        step = Step(
            method,
            method,
            make_optimizer(derived["optimizer"], method, lr=1e-4, weight_decay=derived["weight_decay"]),
            micro_batch=len(pixels),
            precision="fp32",
            compiled=options.compile == "on" or (options.compile == "auto" and device.type == "cuda"),
            graphs=device.type == "cuda" and derived["image_size"] <= 64,
            after=method.after_step,
        )

        def batch(method: Method = method, pixels: torch.Tensor = pixels) -> Batch:
            draws = method.draw(len(pixels), torch.default_generator)
            return (pixels, *(each.to(pixels.device) for each in draws))

        fit(step, batch(), precisions(device, options.precision), Talk())  # as pretraining would choose
        trials[arm] = (step, batch, [])
    for _ in range(rounds):
        for step, batch, times in trials.values():
            begun = time.perf_counter()
            step(batch(), 0.5)["loss"].item()
            times.append(time.perf_counter() - begun)
    return {arm: 1 / statistics.median(times[2:]) for arm, (*_, times) in trials.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name")
    parser.add_argument("dataset")
    parser.add_argument("--arms", default="selfie-paper,selfie-best,byol-best,simclr-best", help="METHOD-RECIPE, ...")
    parser.add_argument("--only", help="rates, an arm, pretraining (all arms), or curve. Unset: everything")
    parser.add_argument("--backbone", default="resnetv2_10_w32")
    parser.add_argument("--image-size", type=int, default=32)
    parser.add_argument("--batch-size", type=int)
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--pretrain-seconds", type=float, default=1200)
    parser.add_argument("--pretrain-epochs", type=float)
    parser.add_argument("--pretrain-lr", type=float)
    parser.add_argument("--fractions", default="0.05")
    parser.add_argument("--seeds", default="2")
    parser.add_argument("--finetune-steps", type=int)
    parser.add_argument("--lr", default="0.1")
    parser.add_argument("--work", type=Path, default=Path("runs/evidence"))
    a = parser.parse_args()
    work = a.work / a.name
    work.mkdir(parents=True, exist_ok=True)
    console = Console(quiet=False)
    here = circumstances()
    arms = {arm: arm.split("-") for arm in a.arms.split(",")}
    asked = {
        arm: PretrainOptions(
            data=(a.dataset,),
            method=method,
            recipe=recipe,
            backbone=a.backbone,
            image_size=a.image_size,
            batch_size=a.batch_size,
            precision=a.precision,
            lr=a.pretrain_lr,
            out=str(work / arm),
        )
        for arm, (method, recipe) in arms.items()
    }

    def record(kind: str, seconds: float, result: Any) -> None:
        RESULTS.mkdir(parents=True, exist_ok=True)
        line = {"kind": kind, "seconds": round(seconds, 1), "result": result, **here}
        with (RESULTS / f"{a.name}.jsonl").open("a") as file:
            file.write(json.dumps(line, default=lambda path: Path(path).name) + "\n")

    rates_file = work / "rates.json"
    if not rates_file.exists() and not a.pretrain_epochs:
        begun = time.perf_counter()
        num_images = sum(1 for file in Path(a.dataset).glob("train/*/*"))
        rates = steps_a_second(asked, num_images)
        write_json(rates_file, rates)
        record("rates", time.perf_counter() - begun, {"steps_a_second": rates, "images": num_images})
    for arm, options in asked.items():
        if a.only not in (None, arm, "pretraining"):
            continue
        folder = work / arm
        there = (folder / "config.json").exists()
        if not there or not open_run(folder).finished:
            begun = time.perf_counter()
            if a.pretrain_epochs:
                fresh = dataclasses.replace(options, epochs=a.pretrain_epochs)
            else:
                fresh = dataclasses.replace(options, steps=round(a.pretrain_seconds * read_json(rates_file)[arm]))
            done = pretrain(PretrainOptions(resume=str(folder)) if there else fresh, console)
            record("pretrain", time.perf_counter() - begun, dataclasses.asdict(done))
        if not list(folder.glob("eval-*.json")):
            begun = time.perf_counter()
            judged = evaluate(EvalOptions(run=str(folder), dataset=a.dataset, precision=a.precision), console)
            record("eval", time.perf_counter() - begun, dataclasses.asdict(judged))
    if a.only in (None, "curve"):
        folder = work / f"curve-{a.fractions}"
        there = (folder / "config.json").exists()
        if not there or not open_run(folder).finished:
            begun = time.perf_counter()
            fresh = CurveOptions(
                dataset=a.dataset,
                from_=tuple(str(work / arm) for arm in arms),
                fractions=a.fractions,
                seeds=a.seeds,
                batch_size=a.batch_size,
                precision=a.precision,
                steps=a.finetune_steps,
                lr=a.lr,
                out=str(folder),
            )
            found = curve(CurveOptions(resume=str(folder)) if there else fresh, console)
            record("curve", time.perf_counter() - begun, dataclasses.asdict(found))


if __name__ == "__main__":
    main()
