"""Run LightlyTrain as a peer, through its own command in its own environment. Nothing of it is imported here.

It runs with its default settings, except those that must match ours: images, network, method, batch and CPU. Its
telemetry is off (LIGHTLY_TRAIN_EVENTS_DISABLED) and its cache is kept with the benchmark's other files.
"""

import json
import shutil
import statistics
from pathlib import Path
from typing import Any

import measure

QUIET = {"LIGHTLY_TRAIN_EVENTS_DISABLED": "1"}


def environment(work: Path) -> dict[str, str]:
    cache = work / "lightly-cache"
    cache.mkdir(parents=True, exist_ok=True)
    return {**QUIET, "LIGHTLY_TRAIN_CACHE_DIR": str(cache.resolve())}


def pretrain(
    command: Path, work: Path, data: Path, *, out: Path, batch_size: int, steps: int, precision: str, accelerator: str
) -> measure.Finished:
    """Train SimCLR with torchvision's ResNet-50 at 224 px and default transforms: random resized crop from 8 % of the
    area, flip, colour jitter 0.8, grey 0.2, blur 0.5. LightlyTrain's own profiling logs the time of every step."""
    shutil.rmtree(out, ignore_errors=True)
    return measure.run(
        [
            *(command, "pretrain", f"out={out}", f"data={data}", "model=torchvision/resnet50", "method=simclr"),
            *(f"batch_size={batch_size}", "epochs=1000", f"trainer_args.max_steps={steps}"),
            *("trainer_args.log_every_n_steps=1", f"precision={precision}", f"accelerator={accelerator}"),
        ],
        **environment(work),
    )


def step_times(out: Path) -> list[float]:
    """Seconds of each step except the first, waiting for data included."""
    lines: list[dict[str, Any]] = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [
        line["profiling/batch_time"] + line.get("profiling/data_time", 0.0)
        for line in lines
        if "profiling/batch_time" in line and line["step"] > 0
    ]


def pretrain_rate(command: Path, work: Path, data: Path, *, batch_size: int, steps: int, **how: str) -> float:
    """Images per second of the median step."""
    out = work / "lightly-pretrain"
    pretrain(command, work, data, out=out, batch_size=batch_size, steps=steps, **how)
    return batch_size / statistics.median(step_times(out))


def checkpoint(command: Path, work: Path, data: Path) -> Path:
    """ResNet-50 after one step on two images: a checkpoint for LightlyTrain's embed."""
    out = work / "lightly-checkpoint"
    file = out / "checkpoints" / "last.ckpt"
    if not file.exists():
        pretrain(command, work, data, out=out, batch_size=2, steps=1, precision="32-true", accelerator="cpu")
    return file


def embed(command: Path, work: Path, data: Path, network: Path, *, accelerator: str = "cpu") -> measure.Finished:
    """Embed with the defaults: fp32, batches of 128, images squeezed to 224 x 224, one worker fewer than CPUs."""
    out = work / "lightly-vectors.pt"
    return measure.run(
        [
            *(command, "embed", f"out={out}", f"data={data}", f"checkpoint={network}"),
            *(f"accelerator={accelerator}", "overwrite=true"),
        ],
        **environment(work),
    )
