"""Compare the cost per image: in small and large batches, with few and many files, in one process and two.

    python benchmarks/scaling.py IMAGES [--only batches,files,processes]

IMAGES is a folder of 32 px images. `batches` runs our step on fixed pixels, with the batch sizes in turns. `files` runs
`selfie pretrain` on trees of up to a million files (see index.py), and reports the loop's rate, peak memory, and the
time before and after the loop: up to 325,000 images of 32 px are decoded before it, larger sets in it. `processes` runs
the same command alone and under torchrun, with the machine's cores divided among the processes. Each row gives its time
per image relative to the first row.
"""

import argparse
import json
import statistics
import sys
from pathlib import Path

import index
import measure
import torch
import work

from selfie_cli.training.hardware import num_cores


def batches(a: argparse.Namespace, lines: measure.Lines) -> None:
    sizes = [int(size) for size in a.batches.split(",")]
    shape = {"backbone": a.backbone, "method": a.method, "precision": a.precision}
    trainings = {size: work.pretraining(**shape, batch_size=size) for size in sizes}
    rates = measure.turns(
        a.rounds,
        {
            f"batch {size}": lambda size=size, training=training: (
                size * measure.calls_a_second(training, seconds=a.seconds)
            )
            for size, training in trainings.items()
        },
    )
    limit = limit_of(a)
    first = statistics.median(next(iter(rates.values())))
    for name, found in rates.items():
        lines.add(name, found, "images/s", **limit, times_the_first=first / statistics.median(found), aim=1.15)


def files(a: argparse.Namespace, lines: measure.Lines) -> None:
    limit = limit_of(a)
    first = 0.0
    for count in map(int, a.files.split(",")):
        folder = index.tree(a.images, a.work / f"tree-{count}", count)
        rates, finished = [], []
        for _ in range(a.rounds):
            ended, report = pretrain(a, folder)
            rates.append(float(report["images_per_second"]))
            finished.append((ended, float(report["seconds"]), float(report["data_wait"])))
        first = first or statistics.median(rates)
        lines.add(
            f"{count:,} files",
            rates,
            "images/s",
            **limit,
            times_the_first=first / statistics.median(rates),
            aim=1.15,
            peak_memory_mb=statistics.median(ended.peak_memory / 1e6 for ended, _, _ in finished),
            seconds_around=statistics.median(ended.seconds - loop for ended, loop, _ in finished),
            data_wait=statistics.median(wait for _, _, wait in finished),
        )


def processes(a: argparse.Namespace, lines: measure.Lines) -> None:
    limit = limit_of(a)
    first = 0.0
    for count in map(int, a.processes.split(",")):
        rates = [float(pretrain(a, a.images, processes=count)[1]["images_per_second"]) for _ in range(a.rounds)]
        first = first or statistics.median(rates)
        name = "1 process" if count == 1 else f"{count} processes"
        lines.add(name, rates, "images/s", **limit, times_the_first=first / statistics.median(rates))


def pretrain(a: argparse.Namespace, images: Path, *, processes: int = 1) -> tuple[measure.Finished, dict[str, object]]:
    """Run `selfie pretrain --json`, under torchrun for several processes."""
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    shape = ["--backbone", a.backbone, "--method", a.method, "--precision", a.precision, "--image-size", "32"]
    length = ["--batch-size", "128", "--steps", str(a.steps), "--out", str(a.work / "scaling"), "--overwrite"]
    finished = measure.run(
        [
            *(sys.executable, *(launcher if processes > 1 else []), "-m", "selfie_cli", "pretrain", images),
            *(*shape, *length, *a.options.split(), "--json"),
        ],
        PYTHONPATH=str(measure.ROOT),
        OMP_NUM_THREADS=str(max(1, num_cores() // processes)),
    )
    return finished, json.loads(finished.stdout)


def limit_of(a: argparse.Namespace) -> dict[str, object]:
    rate = measure.arithmetic_rate("cpu", a.precision)
    gflop = work.pretraining(backbone=a.backbone, method=a.method, batch_size=4).gflop()
    return {"limit": rate / gflop, "bound": f"{a.precision} arithmetic, {rate:,.0f} GFLOP/s"}


def main() -> None:
    parser = measure.parser(__doc__, rounds=3)
    parser.add_argument("images", type=Path)
    parser.add_argument("--only", default="batches,files,processes")
    parser.add_argument("--method", default="selfie")
    parser.add_argument("--backbone", default="resnetv2_18_w16")
    parser.add_argument("--precision", default="fp32", choices=("fp32", "bf16"))
    parser.add_argument("--batches", default="32,64,128,256,512,1024")
    parser.add_argument("--files", default="1000,10000,100000,1000000")
    parser.add_argument("--processes", default="1,2")
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--seconds", type=float, default=2.0, help="Of each turn of a batch size.")
    parser.add_argument("--options", default="", help="More options for selfie pretrain, in one string.")
    a = parser.parse_args()
    a.work.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(num_cores())
    lines = measure.Lines("scaling", a.results)
    stages = {"batches": batches, "files": files, "processes": processes}
    for name in a.only.split(","):
        stages[name](a, lines)


if __name__ == "__main__":
    main()
