"""Time `selfie finetune` as a whole command, from labelled files to test accuracy.

    python benchmarks/finetune.py LABELLED --backbone resnet50 --image-size 224 --batch-size 32 --steps 10

Rows: images per second of the training loop, with the share of time spent waiting for data; and of the whole command,
including start-up, reading and testing. The limit is the rate of arithmetic in the run's precision,
measured here, divided by the operations per image of a training step.
"""

import json
import statistics
from pathlib import Path
from typing import Any

import measure
import torch
import work

from selfie_cli.training.hardware import num_cores


def loop(cell: Path, batch_size: int) -> tuple[float, float]:
    """Images per second, and the share of time spent waiting for data, over all lines of a training's metrics."""
    step, seconds, waited = 0, 0.0, 0.0
    for line in map(json.loads, (cell / "metrics.jsonl").read_text().splitlines()):
        passed = (line["step"] - step) * batch_size / line["images_per_second"]
        step, seconds, waited = line["step"], seconds + passed, waited + passed * line["data_wait"]
    return step * batch_size / seconds, waited / seconds


def main() -> None:
    parser = measure.parser(__doc__, rounds=3)
    parser.add_argument("images", help="What selfie finetune takes as --dataset.")
    parser.add_argument("--backbone", default="resnet50")
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--options", default="", help="More options for selfie finetune, in one string.")
    a = parser.parse_args()
    torch.set_num_threads(num_cores())
    lines = measure.Lines("finetune", a.results)
    out = a.work / "finetune"
    shape = {"backbone": a.backbone, "image-size": a.image_size, "batch-size": a.batch_size, "steps": a.steps}
    sizes = [word for name, value in shape.items() for word in (f"--{name}", str(value))]
    loops, wholes, waits, memories = [], [], [], []
    for _ in range(a.rounds):
        finished, report = measure.selfie(
            *("finetune", "--dataset", a.images, "--from", "none", *sizes, *a.options.split()),
            *("--no-check-length", "--out", out, "--overwrite"),
        )
        (cell,) = (path for path in (out / "cells").iterdir() if path.is_dir())
        rate, wait = loop(cell, a.batch_size)
        loops.append(rate)
        waits.append(wait)
        wholes.append((a.steps * a.batch_size + report["num_test"]) / finished.seconds)
        memories.append(finished.peak_memory / 1e6)
    config: dict[str, Any] = json.loads((out / "config.json").read_text())
    precision, device = config["derived"]["precision"], config["measured"]["device"].split(":")[0]
    gflop = work.finetuning(backbone=a.backbone, image_size=a.image_size, batch_size=4).gflop()
    products = measure.arithmetic_rate(device, precision)
    limit = {"limit": products / gflop, "bound": f"{precision} arithmetic, {products:,.0f} GFLOP/s"}
    name = f"{a.backbone}, {a.image_size} px, batch {a.batch_size}, {precision}"
    lines.add(
        f"{name}: the loop",
        loops,
        "images/s",
        **limit,
        data_wait=statistics.median(waits),
        peak_memory_mb=statistics.median(memories),
        steps=a.steps,
    )
    lines.add(f"{name}: the command, test images counted", wholes, "images/s", **limit, num_test=report["num_test"])


if __name__ == "__main__":
    main()
