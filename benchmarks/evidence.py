"""Measure pretraining with few labels: pretrain in several ways for the same time, then finetune to convergence.

    python benchmarks/evidence.py cifar10 CIFAR10_TREE
    python benchmarks/evidence.py clothing CLOTHING_TREE --image-size 96 --compare 0.05:5 --compare 0.2:5 --lengths ''
    python benchmarks/evidence.py gpu CIFAR10_TREE --backbone resnetv2_50 --pretrain-seconds 480 --compare 0.05:2

DATASET is a folder with train/ and test/, each with a subfolder per class. The stages run in this order; --only runs a
single one:

    rates               steps per second of every arm, measured in turns; run it without other work on the machine. The
                        rates turn --pretrain-seconds into steps, so that arms may later train side by side
    METHOD-RECIPE       one of --arms: pretrain, then evaluate with kNN and linear probe (with --pretrain-epochs, all
                        arms see the same number of images instead of training for the same time)
    FRACTION:SEEDS      one of --compare: `selfie curve` of all arms, or of those named (0.2:3:selfie-best,simclr-best)
    steps-N             one of --lengths: all arms at --length-fraction, finetuned for N steps

Each stage appends lines to docs/results/NAME.jsonl, with command, machine, versions and commit; benchmarks/table.py
makes tables of them. Runs are kept in WORK/NAME: finished runs are not repeated, interrupted ones are resumed.
"""

import argparse
import dataclasses
import functools
import json
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from selfie_cli.cli.console import Console
from selfie_cli.commands.curve import curve
from selfie_cli.commands.eval import evaluate
from selfie_cli.commands.pretrain import pretrain
from selfie_cli.config import CurveOptions, EvalOptions, PretrainOptions
from selfie_cli.data.augment import OURS
from selfie_cli.data.batches import Batch
from selfie_cli.data.sources import Array
from selfie_cli.files import read_json, write_json
from selfie_cli.inference import networks
from selfie_cli.methods.method import Method
from selfie_cli.pretraining.settings import derive
from selfie_cli.runs import open_run, versions
from selfie_cli.talk import Talk
from selfie_cli.training.hardware import fit, num_cores, precisions, prepare
from selfie_cli.training.optimizers import make_optimizer
from selfie_cli.training.step import Step

RESULTS = Path(__file__).parents[1] / "docs" / "results"


def processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []:
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor()


def circumstances() -> dict[str, Any]:
    """Command, machine and versions at the start. The commit ends in -dirty if the code had uncommitted changes."""
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
    """Steps per second of each arm, with augmentation and optimizer. Arms take turns, as the machine's speed varies."""
    trials = {}
    for arm, options in asked.items():
        source = Array(
            torch.zeros(dataset_size, 1, 1, 3, dtype=torch.uint8).numpy(), [str(i) for i in range(dataset_size)]
        )
        derived = derive(options, source)
        device = prepare(options.device)
        method = networks.build_method(derived).to(device).train()
        side = OURS.storage_size(derived["image_size"])
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

        fit(step, batch(), precisions(device, options.precision), Talk())  # as pretraining does
        trials[arm] = (step, batch, [])
    for _ in range(rounds):
        for step, batch, times in trials.values():
            begun = time.perf_counter()
            step(batch(), 0.5)["loss"].item()
            times.append(time.perf_counter() - begun)
    return {arm: 1 / statistics.median(times[2:]) for arm, (*_, times) in trials.items()}


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name")
    parser.add_argument("dataset")
    parser.add_argument("--arms", default="selfie-paper,selfie-best,byol-best,simclr-best", help="METHOD-RECIPE, ...")
    parser.add_argument("--only", help="A stage. Unset: all of them.")
    parser.add_argument("--backbone", default="resnetv2_10_w32")
    parser.add_argument("--image-size", type=int, default=32)
    parser.add_argument("--batch-size", type=int)
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--pretrain-seconds", type=float, default=1200)
    parser.add_argument("--pretrain-epochs", type=float)
    parser.add_argument("--pretrain-lr", type=float)
    parser.add_argument("--compare", action="append", help="FRACTION:SEEDS[:ARM,...]; default: 0.05:5, 0.01:3, 0.2:3")
    parser.add_argument("--lengths", default="200,500,1000,2000,4000", help="Steps, ...; '' for none.")
    parser.add_argument("--length-fraction", default="0.05")
    parser.add_argument("--finetune-steps", type=int, help="Unset: what selfie curve takes.")
    parser.add_argument("--lr")
    parser.add_argument("--work", type=Path, default=Path("runs/evidence"))
    parser.add_argument("--results", type=Path, default=RESULTS)
    a = parser.parse_args()
    a.compare = a.compare or ["0.05:5", "0.01:3", "0.2:3:selfie-best,simclr-best"]
    return a


class Evidence:
    """The stages of one NAME: their shared state, and one method per kind of stage."""

    def __init__(self, a: argparse.Namespace) -> None:
        self.a = a
        self.work = a.work / a.name
        self.work.mkdir(parents=True, exist_ok=True)
        self.console = Console(quiet=False)
        self.here = circumstances()
        self.arms = a.arms.split(",")

    def record(self, kind: str, begun: float, result: Any) -> None:
        self.a.results.mkdir(parents=True, exist_ok=True)
        line = {"kind": kind, "seconds": round(time.perf_counter() - begun, 1), "result": result, **self.here}
        with (self.a.results / f"{self.a.name}.jsonl").open("a") as file:
            file.write(json.dumps(line, default=lambda path: Path(path).name) + "\n")

    def options(self, arm: str) -> PretrainOptions:
        method, _, recipe = arm.partition("-")
        names = ("backbone", "image_size", "batch_size", "precision")
        return PretrainOptions(
            data=(self.a.dataset,),
            method=method,
            recipe=recipe,
            lr=self.a.pretrain_lr,
            out=str(self.work / arm),
            **{name: getattr(self.a, name) for name in names},
        )

    def rates(self) -> dict[str, float]:
        """Steps per second of each arm, measured on the first call and then read from a file."""
        file, begun = self.work / "rates.json", time.perf_counter()
        if not file.exists():
            num_images = sum(1 for file in Path(self.a.dataset).glob("train/*/*"))
            rates = steps_a_second({arm: self.options(arm) for arm in self.arms}, num_images)
            write_json(file, rates)
            self.record("rates", begun, {"steps_a_second": rates, "images": num_images})
        return dict(read_json(file))

    def pretrain(self, arm: str) -> None:
        def fresh() -> PretrainOptions:
            if self.a.pretrain_epochs:
                return dataclasses.replace(self.options(arm), epochs=self.a.pretrain_epochs)
            steps = round(self.a.pretrain_seconds * self.rates()[arm])
            return dataclasses.replace(self.options(arm), steps=max(1, steps))

        self.run(self.work / arm, pretrain, fresh, "pretrain")
        if not list((self.work / arm).glob("eval-*.json")):
            begun = time.perf_counter()
            asked = EvalOptions(run=str(self.work / arm), dataset=self.a.dataset, precision=self.a.precision)
            self.record("eval", begun, dataclasses.asdict(evaluate(asked, self.console)))

    def compare(self, stage: str, fraction: str, seeds: str, arms: list[str], steps: int | None, check: bool) -> None:
        def fresh() -> CurveOptions:
            return CurveOptions(
                dataset=self.a.dataset,
                from_=tuple(str(self.work / arm) for arm in arms),
                fractions=fraction,
                seeds=seeds,
                batch_size=self.a.batch_size,
                precision=self.a.precision,
                steps=steps,
                lr=self.a.lr,
                check_length=check,
                out=str(self.work / stage.replace(":", "-")),
            )

        self.run(self.work / stage.replace(":", "-"), curve, fresh, "curve")

    def run(self, folder: Path, verb: Callable[..., Any], fresh: Callable[[], Any], kind: str) -> None:
        """Start a run or resume it. Do nothing if it is finished."""
        there = (folder / "config.json").exists()
        if there and open_run(folder).finished:
            return
        begun, options = time.perf_counter(), fresh()
        done = verb(type(options)(resume=str(folder)) if there else options, self.console)
        self.record(kind, begun, dataclasses.asdict(done))


def main() -> None:
    a = arguments()
    evidence = Evidence(a)
    stages: dict[str, Callable[[], object]] = {} if a.pretrain_epochs else {"rates": evidence.rates}
    for arm in evidence.arms:
        stages[arm] = functools.partial(evidence.pretrain, arm)
    for each in a.compare:
        fraction, seeds, *named = each.split(":")
        arms = named[0].split(",") if named else evidence.arms
        stages[f"{fraction}:{seeds}"] = functools.partial(
            evidence.compare, f"{fraction}:{seeds}", fraction, seeds, arms, a.finetune_steps, True
        )
    for steps in filter(None, a.lengths.split(",")):
        stages[f"steps-{steps}"] = functools.partial(
            evidence.compare, f"steps-{steps}", a.length_fraction, "1", evidence.arms, int(steps), False
        )
    if a.only not in (None, *stages):
        sys.exit(f"no stage {a.only!r}: {', '.join(stages)}")
    for name, stage in stages.items():
        if a.only in (None, name):
            stage()


if __name__ == "__main__":
    main()
