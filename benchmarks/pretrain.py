"""Time `selfie pretrain` as a whole command, from files to weights.

    python benchmarks/pretrain.py IMAGES --image-size 32 --steps 100 [--options "--method simclr --backbone resnet50"]

Rows: images per second of the training loop, with the share of time spent waiting for data; and of the whole command,
including start-up, reading and saving. The limit is the rate of arithmetic in the run's precision, measured here,
divided by the operations per image of a step. Every run, however short, checks 256 images for collapse some twenty
times, so use a few hundred steps.
"""

import json
import statistics
from typing import Any

import measure
import torch
import work

from selfie_cli.training.hardware import num_cores


def rows(a: Any, lines: measure.Lines) -> None:
    out = a.work / "pretrain"
    name = f"{a.backbone}, {a.image_size} px"
    sizes = ["--backbone", a.backbone, "--image-size", str(a.image_size), "--steps", str(a.steps)]
    batch = ["--batch-size", str(a.batch_size)] if a.batch_size else []
    loops, wholes, waits, memories = [], [], [], []
    for _ in range(a.rounds):
        finished, report = measure.selfie(
            "pretrain", a.images, *sizes, *batch, *a.options.split(), "--out", out, "--overwrite"
        )
        config = json.loads((out / "config.json").read_text())
        derived, precision = config["derived"], config["measured"]["precision"]
        loops.append(float(report["images_per_second"]))
        wholes.append(a.steps * derived["batch_size"] / finished.seconds)
        waits.append(float(report["data_wait"]))
        memories.append(finished.peak_memory / 1e6)
    device = config["measured"]["device"].split(":")[0]
    shape = {key: derived[key] for key in ("method", "recipe", "backbone", "image_size")}
    gflop = work.pretraining(**shape, batch_size=4).gflop()
    rate = measure.arithmetic_rate(device, precision)
    limit = {"limit": rate / gflop, "bound": f"{precision} arithmetic, {rate:,.0f} GFLOP/s"}
    name = f"{derived['method']} ({derived['recipe']}), {name}, batch {derived['batch_size']}, {precision}"
    wait = statistics.median(waits)
    peak = statistics.median(memories)
    lines.add(f"{name}: the loop", loops, "images/s", **limit, data_wait=wait, peak_memory_mb=peak, steps=a.steps)
    lines.add(f"{name}: the command", wholes, "images/s", **limit, steps=a.steps)


def main() -> None:
    parser = measure.parser(__doc__, rounds=3)
    parser.add_argument("images", help="What selfie pretrain takes.")
    parser.add_argument("--backbone", default="resnetv2_50")
    parser.add_argument("--image-size", type=int, default=32)
    parser.add_argument("--batch-size", type=int)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--options", default="", help="More options for selfie pretrain, in one string.")
    a = parser.parse_args()
    torch.set_num_threads(num_cores())
    rows(a, measure.Lines("pretrain", a.results))


if __name__ == "__main__":
    main()
