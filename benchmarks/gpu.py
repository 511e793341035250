"""Measure what needs a GPU, most valuable first, in one call of under 10 minutes, without network.

    python benchmarks/gpu.py [--deadline 450] [--only STAGE,...]
    python benchmarks/gpu.py --device cpu --tiny          the same on a CPU in seconds: its test

Each stage takes two minutes at most and writes its rows to gpu.jsonl when it ends. A later call with the same --results
runs the stages that are missing there for this GPU. A stage that fails or takes longer leaves a row that says why, and
is tried again.

Steps run on fixed pixels: eager, compiled, and compiled with CUDA graphs. Commands run on files of images drawn by this
script. The bandwidth model assumes 16 passes over the activations in bf16, at the bandwidth of a copy measured here.
`share` refers to the lower limit, bandwidth or arithmetic.
"""

import argparse
import hashlib
import json
import os
import re
import signal
import statistics
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import finetune
import measure
import numpy as np
import torch
import work
from PIL import Image

from selfie_cli.inference.networks import Network, load_network
from selfie_cli.models.classifier import Encoder
from selfie_cli.models.resnet import stem_for
from selfie_cli.runs import open_run

# Images per second on an H200: some 60 % of the bandwidth model.
AIMS = {"pretrain 32 px": 27_000, "pretrain 224 px": 8_400, "finetune 224 px": 4_500, "embed 224 px": 12_000}
LONGEST = 120  # seconds per stage
CIFAR10 = "cifar10-jpeg.tar.xz"  # in the folder that SELFIE_TEST_DATA names
TOLERANCE = 0.02  # relative difference of losses between one process and two, which sum in another order, in fp32


class Bench:
    """Shared state of the stages: arguments, raw lines, and the limits once they are measured."""

    def __init__(self, a: argparse.Namespace) -> None:
        self.a = a
        self.lines = measure.Lines("gpu", a.results)
        self.small, self.large = (32, 64) if a.tiny else (32, 224)
        self.pretrained = "resnetv2_18_w16" if a.tiny else "resnetv2_50"
        self.finetuned = "resnet18" if a.tiny else "resnet50"

    @property
    def precision(self) -> str:
        return "bf16" if self.a.device == "cuda" else "fp32"

    def measured(self, row: str) -> float:
        """The value of a row that an earlier stage wrote."""
        found = [line for line in self.there() if line["row"] == row]
        return float(found[-1]["value"])

    def there(self) -> list[dict[str, Any]]:
        """The lines written so far on this machine."""
        file, here = self.lines.file, self.lines.here["machine"]
        lines = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
        return [line for line in lines if line["machine"] == here]

    def limit(self, name: str, gflop: float) -> dict[str, Any]:
        """The lower of what arithmetic and bandwidth allow, in images a second."""
        arithmetic = f"{self.precision} arithmetic"
        limits = {arithmetic: self.measured(arithmetic) / gflop}
        if name in work.MEGABYTES and self.a.device == "cuda":
            limits["bandwidth model"] = self.measured("copy in memory") * 1e3 / work.MEGABYTES[name]
        bound = min(limits, key=lambda each: limits[each])
        return {"limit": limits[bound], "bound": bound, "gflop_an_image": gflop}

    def images(self, side: int) -> Path:
        """A data set with train/ and test/ of two classes: JPEG files of smooth noise."""
        folder = Path(self.a.work) / f"drawn-{side}"
        rng = np.random.default_rng(0)
        for number in range(64 if self.a.tiny else 4096):
            part, kind = "test" if number % 8 == 0 else "train", "ab"[number % 2]
            file = folder / part / kind / f"{number:05d}.jpg"
            if file.exists():
                continue
            file.parent.mkdir(parents=True, exist_ok=True)
            coarse = Image.fromarray(rng.integers(0, 256, (9, 9, 3), dtype=np.uint8))
            coarse.resize((side, side), Image.Resampling.BICUBIC).save(file, quality=90)
        return folder


def limits(bench: Bench) -> None:
    seconds = 0.2 if bench.a.tiny else 2.0
    for precision in ("fp32", "bf16"):
        rate = measure.arithmetic_rate(bench.a.device, precision, seconds)
        bench.lines.add(f"{precision} arithmetic", rate, "GFLOP/s", stage="limits")
    bench.lines.add("copy in memory", measure.copy_rate(bench.a.device, seconds / 2), "GB/s", stage="limits")


def smoke(bench: Bench, stage: str) -> None:
    """Run every verb and several kinds of pretraining on small images, and count those that succeed."""
    images, out, tiny = bench.images(bench.small), bench.a.work / "smoke", bench.a.tiny
    run, tuned, vectors, device = out / "run", out / "tuned", out / "vectors.npy", ("--device", bench.a.device)
    shape = ("--batch-size", 8 if tiny else 64, *device, "--overwrite", "--no-report")
    steps = ("--backbone", "resnetv2_18_w16", "--steps", 2 if tiny else 40, *shape)
    labels = ("--from", run, "--seeds", 1, "--steps", 2 if tiny else 20, *shape)
    waves: list[dict[str, tuple[Any, ...]]] = [
        {
            "pretrain": (images, *steps, "--out", run),
            "pretrain, paper, fp32": (images, *steps, "--recipe", "paper", "--precision", "fp32", "--out", out / "b"),
            "pretrain, simclr, eager": (images, *steps, "--method", "simclr", "--compile", "off", "--out", out / "c"),
            "pretrain, byol": (images, *steps, "--method", "byol", "--out", out / "d"),
            "doctor": (images, *device),
        },
        {
            "finetune": ("--dataset", images, "--fraction", 0.5, *labels, "--out", tuned),
            "curve": ("--dataset", images, "--fractions", "0.5,1", *labels, "--out", out / "curve"),
            "embed": (images, "--from", run, "--out", vectors, "--overwrite", *device),
            "eval": (run, "--dataset", images, *device),
            "report": (run, "--dataset", images, *device, "--out", out / "page.html", "--overwrite"),
            "export": (run, "--to", "safetensors", "--out", out / "timm.safetensors", "--overwrite"),
        },
        {
            "predict": (tuned, images / "test", *device),
            "similar": (next(images.rglob("*.jpg")), "--in", vectors, "--from", run, *device),
        },
    ]

    at_once = 1 if bench.a.device == "cpu" else 6
    threads = {"OMP_NUM_THREADS": str(max(1, bench.lines.here["machine"]["cores"] // at_once))}

    def attempt(name: str, words: tuple[Any, ...]) -> dict[str, Any]:
        command = [*measure.SELFIE, name.split(",")[0], *map(str, words)]
        try:
            return {"name": name, "seconds": measure.run(command, limit=LONGEST / 2, **threads).seconds}
        except (RuntimeError, subprocess.TimeoutExpired) as error:
            return {"name": name, "error": without_folders(str(error))[-500:]}

    found: list[dict[str, Any]] = []
    for wave in waves:
        names = list(wave)[:1] if tiny else list(wave)
        with ThreadPoolExecutor(at_once) as pool:
            found += pool.map(attempt, names, [wave[name] for name in names])
    bad = [each for each in found if "error" in each]
    note = "; ".join(f"{each['name']}: {each['error']}" for each in bad)
    well = len(found) - len(bad)
    bench.lines.add("verbs that end well", well, f"of {len(found)}", stage=stage, verbs=found, note=note)


def cifar10(bench: Bench, stage: str) -> None:
    """Pretrain on CIFAR-10 for a minute, and compare accuracy with 5 % of its labels with and without pretraining."""
    archive = Path(os.environ.get("SELFIE_TEST_DATA", measure.ROOT / "shared" / "data")) / CIFAR10
    folder, run, out = (bench.a.work / f"cifar10-{name}" for name in ("images", "run", "tuned"))
    if not archive.exists():
        bench.lines.add("CIFAR-10, 5 %", 0, "not measured", stage=stage, note=f"no {CIFAR10}")
        return
    if not folder.exists():
        with tarfile.open(archive) as packed:
            packed.extractall(folder, filter="data")
    same = ("--device", bench.a.device, "--overwrite", "--no-report")
    (part,) = folder.rglob("train")
    _, trained = measure.selfie(
        "pretrain", part, "--backbone", bench.pretrained, "--budget", "50s", *same, "--out", run
    )
    _, compared = measure.selfie(
        *("finetune", "--dataset", part.parent, "--from", run, "--fraction", "0.05", "--seeds", "1"),
        *("--budget", "25s", "--no-check-length", *same, "--out", out),
    )
    means = {arm["name"]: 100 * arm["accuracies"][0] for arm in compared["arms"]}
    note = ", ".join(f"{name} {mean:.1f} %" for name, mean in means.items())
    gain = means["selfie"] - means["supervised"]
    bench.lines.add("CIFAR-10, 5 % of the labels: gain", gain, "points", stage=stage, steps=trained["step"], note=note)


def step(bench: Bench, name: str, batch_size: int, mode: str, stage: str) -> None:
    """Time steps of one kind on fixed pixels."""
    training = training_of(bench, name, batch_size, mode)
    first = measure.timed(lambda: training().item())
    rates = [
        batch_size * measure.calls_a_second(training, bench.a.device, 0.1 if bench.a.tiny else 2.0, warm=3)
        for _ in range(bench.a.rounds)
    ]
    memory = torch.cuda.max_memory_allocated() / 1e6 if bench.a.device == "cuda" else None
    bench.lines.add(
        f"{name}, batch {batch_size}: {mode}",
        rates,
        "images/s",
        **bench.limit(name, training.gflop()),
        stage=stage,
        aim_rate=AIMS[name],
        first_step_seconds=first,
        peak_memory_mb=memory,
    )


def training_of(bench: Bench, name: str, batch_size: int, mode: str) -> work.Training:
    size = bench.large if "224" in name else bench.small
    how = {"batch_size": batch_size, "image_size": size, "device": bench.a.device, "precision": bench.precision}
    how |= {"compiled": mode != "eager", "graphs": mode == "graphs"}
    if name.startswith("finetune"):
        return work.finetuning(backbone=bench.finetuned, **how)
    return work.pretraining(recipe="paper", backbone=bench.pretrained, **how)


def embed(bench: Bench, batch_size: int, mode: str, stage: str) -> None:
    """Time embedding, from decoded pixels in (pinned) memory to vectors in memory."""
    device, size = bench.a.device, bench.large
    encoder = Encoder(bench.finetuned, stem=stem_for(8 if size <= 64 else 32)).to(device).eval()
    dtype = torch.bfloat16 if bench.precision == "bf16" else torch.float32
    lean = Network(encoder, size, "whole").lean(dtype, compiled=mode != "eager")
    store = work.noise(batch_size, size, "cpu")
    store = store.pin_memory() if device == "cuda" else store

    def vectors() -> torch.Tensor:
        with torch.inference_mode():
            return lean.vectors(store.to(device, non_blocking=True))

    rates = [
        batch_size * measure.calls_a_second(vectors, device, 0.1 if bench.a.tiny else 2.0, warm=3)
        for _ in range(bench.a.rounds)
    ]
    gflop = work.forward_gflop(Network(encoder, size, "whole").vectors, size, device)
    name = "embed 224 px"
    limit = bench.limit(name, gflop)
    bench.lines.add(
        f"{name} from the store, batch {batch_size}: {mode}",
        rates,
        "images/s",
        **limit,
        stage=stage,
        aim_rate=AIMS[name],
    )


def pretrain_command(bench: Bench, name: str, batch_size: int, steps: int, stage: str) -> None:
    """Time `selfie pretrain` as a whole command, and the share of time that its loop waits for data."""
    size = bench.large if "224" in name else bench.small
    out = bench.a.work / f"pretrain-{size}"
    shape = {"backbone": bench.pretrained, "image-size": size, "batch-size": batch_size, "steps": steps}
    finished, report = measure.selfie(
        *("pretrain", bench.images(256 if size > 64 else size), "--recipe", "paper", "--device", bench.a.device),
        *(word for option, value in shape.items() for word in (f"--{option}", str(value))),
        *("--out", out, "--overwrite"),
    )
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    rates = [line["images_per_second"] for line in lines[1:]] or [lines[0]["images_per_second"]]
    gflop = training_of(bench, name, 4, "eager").gflop()
    bench.lines.add(
        f"{name}, batch {batch_size}: selfie pretrain",
        statistics.median(rates),
        "images/s",
        **bench.limit(name, gflop),
        stage=stage,
        aim_rate=AIMS[name],
        data_wait=report["data_wait"],
        whole_loop=report["images_per_second"],
        seconds=[finished.seconds],
        steps=steps,
    )


def finetune_command(bench: Bench, batch_size: int, steps: int, stage: str) -> None:
    name, out = "finetune 224 px", bench.a.work / "finetune"
    shape = {"backbone": bench.finetuned, "image-size": bench.large, "batch-size": batch_size, "steps": steps}
    finished, _ = measure.selfie(
        *("finetune", "--dataset", bench.images(256), "--from", "none", "--device", bench.a.device),
        *(word for option, value in shape.items() for word in (f"--{option}", str(value))),
        *("--out", out, "--overwrite"),
    )
    (cell,) = (path for path in (out / "cells").iterdir() if path.is_dir())
    rate, wait = finetune.loop(cell, batch_size)
    gflop = training_of(bench, name, 4, "eager").gflop()
    bench.lines.add(
        f"{name}, batch {batch_size}: selfie finetune",
        rate,
        "images/s",
        **bench.limit(name, gflop),
        stage=stage,
        aim_rate=AIMS[name],
        data_wait=wait,
        seconds=[finished.seconds],
        steps=steps,
    )


def embed_command(bench: Bench, stage: str) -> None:
    """Time `selfie embed` from files to vectors, with the network of `pretrain_command`."""
    folder = bench.images(256)
    run = bench.a.work / f"pretrain-{bench.large}"
    if not (run / "model.safetensors").exists():  # an earlier call pretrained it on another machine
        shape = ["--backbone", bench.pretrained, "--image-size", str(bench.large), "--batch-size", "8", "--steps", "1"]
        measure.selfie("pretrain", folder, *shape, "--recipe", "paper", "--out", run, "--overwrite")
    finished, report = measure.selfie(
        *("embed", folder, "--from", run, "--device", bench.a.device),
        *("--out", bench.a.work / "vectors.npy", "--overwrite"),
    )
    rate = report["images"] / finished.seconds
    network = load_network(open_run(str(run)), features=None, device=torch.device("cpu"))
    limit = bench.limit("embed", work.forward_gflop(network.vectors, bench.large))
    name = "files to vectors: selfie embed"
    bench.lines.add(name, rate, "images/s", **limit, stage=stage, seconds=[finished.seconds])


def profile(bench: Bench, name: str, batch_size: int, mode: str, stage: str) -> None:
    """Profile a step: the kernels that take most of its time, and the share of time that the GPU is busy."""
    busy, top = work.operators(training_of(bench, name, batch_size, mode))
    what = "kernels" if bench.a.device == "cuda" else "operations"
    bench.lines.add(
        f"{name}, batch {batch_size}, {mode}: share of the time that {what} run",
        100 * busy,
        "%",
        stage=stage,
        top=top,
        note=work.in_words(top),
    )


def processes(bench: Bench, stage: str) -> None:
    """Compare the loss of the same training on one GPU and on two, with synchronized batch norm.

    On CPUs batch norm is not synchronized; there, this stage only shows that two processes run.
    """
    if bench.a.device == "cuda" and torch.cuda.device_count() < 2:
        bench.lines.add("1 x 128 and 2 x 64", 0, "not measured", stage=stage, note="one GPU")
        return
    steps, batch_size = (2, 8) if bench.a.tiny else (10, 128)
    for method in ("simclr",) if bench.a.tiny else ("simclr", "byol"):
        losses, rates = [], []
        for world in (1, 2):
            out = bench.a.work / f"processes-{world}"
            launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(world)]
            finished = measure.run(
                [
                    *(sys.executable, *(launcher if world > 1 else []), "-m", "selfie_cli", "pretrain"),
                    *(bench.images(bench.small), "--method", method, "--device", bench.a.device),
                    *("--backbone", bench.pretrained, "--image-size", str(bench.small), "--precision", "fp32"),
                    *("--batch-size", str(batch_size), "--steps", str(steps), "--compile", "off"),
                    *("--out", out, "--overwrite", "--json"),
                ],
                PYTHONPATH=str(measure.ROOT),
                OMP_NUM_THREADS=str(max(1, (os.cpu_count() or 1) // world)),
            )
            report = json.loads(finished.stdout)
            losses.append(float(report["last"]["loss"]))
            rates.append(float(report["images_per_second"]))
        apart = abs(losses[0] - losses[1]) / abs(losses[0])
        bench.lines.add(
            f"{method}, {steps} steps: loss of 1 x {batch_size} and 2 x {batch_size // 2} apart",
            100 * apart,
            "%",
            stage=stage,
            losses=losses,
            note=f"{rates[1] / rates[0]:.2f} times the images/s; {'within' if apart < TOLERANCE else 'OVER'} 2 %",
        )


def deterministic(bench: Bench, stage: str) -> None:
    """Run the same command twice and count different weights; 0 means equal bit for bit."""
    steps, batch_size = ("2", "8") if bench.a.tiny else ("30", "128")
    shape = ["--image-size", str(bench.small), "--batch-size", batch_size, "--steps", steps, "--overwrite"]
    for method in ("selfie",) if bench.a.tiny else ("selfie", "byol", "simclr"):
        found = set()
        for number in (1, 2):
            out = bench.a.work / f"deterministic-{number}"
            images = ("--method", method, "--backbone", bench.pretrained, bench.images(bench.small))
            measure.selfie("pretrain", *images, "--device", bench.a.device, *shape, "--deterministic", "--out", out)
            found.add(hashlib.sha256((out / "model.safetensors").read_bytes()).hexdigest())
        name = f"{method} --deterministic: different weights of two runs"
        bench.lines.add(name, len(found) - 1, "different", stage=stage, note=f"{steps} steps")


def out_of_memory(bench: Bench, stage: str) -> None:
    """Allow much less GPU memory than reported: the first step is tried in ever smaller micro-batches."""
    out, size = bench.a.work / "memory", "8" if bench.a.tiny else "1024"
    shape = ["--backbone", bench.pretrained, "--image-size", str(bench.large), "--recipe", "paper", "--steps", "2"]
    measure.run(
        [
            *(sys.executable, "-m", "selfie_cli", "pretrain", bench.images(256), "--device", bench.a.device),
            *(*shape, "--batch-size", size, "--micro-batch", size, "--out", out, "--overwrite"),
        ],
        PYTHONPATH=str(measure.ROOT),
        PYTORCH_ALLOC_CONF="per_process_memory_fraction:0.1",
    )
    pieces = open_run(out).derived["micro_batch"]
    note = "a CPU has no such limit" if bench.a.device == "cpu" else "a tenth of the memory"
    bench.lines.add(f"batch {size}: images at once where memory is short", pieces, "images", stage=stage, note=note)


def without_folders(text: str) -> str:
    """Shorten each absolute path in a message to its last part."""
    return re.sub(r"(?<![\w.])/(?:[\w.@+-]+/)+", "", text)


def stages(bench: Bench) -> dict[str, Callable[[str], None]]:
    """The stages, most important first, in case time runs out."""
    tiny = bench.a.tiny
    batch = {"pretrain 32 px": 128, "pretrain 224 px": 256, "finetune 224 px": 256}
    batch = {name: 4 if tiny else size for name, size in batch.items()}
    small, large, labels = batch
    made: dict[str, Callable[[str], None]] = {"limits": lambda stage: limits(bench)}

    def add(name: str, call: Callable[..., None], *arguments: Any) -> None:
        made[name] = lambda stage: partial(call, bench, *arguments)(stage=stage)

    add("smoke", smoke)
    add("small graphs", step, small, batch[small], "graphs" if not tiny else "eager")
    add("large compiled", step, large, batch[large], "compiled" if not tiny else "eager")
    add("labels compiled", step, labels, batch[labels], "compiled" if not tiny else "eager")
    add("embed compiled", embed, 4 if tiny else 256, "compiled" if not tiny else "eager")
    add("small profile", profile, small, batch[small], "eager" if tiny else "graphs")
    add("large profile", profile, large, batch[large], "eager" if tiny else "compiled")
    add("small command", pretrain_command, small, batch[small], 2 if tiny else 1000)
    add("large command", pretrain_command, large, batch[large], 2 if tiny else 60)
    add("labels command", finetune_command, batch[labels], 2 if tiny else 60)
    add("embed command", embed_command)
    if not tiny:
        add("cifar10", cifar10)
    add("small eager", step, small, batch[small], "eager")
    add("large eager", step, large, batch[large], "eager")
    add("labels eager", step, labels, batch[labels], "eager")
    add("processes", processes)
    add("deterministic", deterministic)
    add("out of memory", out_of_memory)
    if not tiny:
        add("labels profile", profile, labels, batch[labels], "compiled")
        add("small compiled", step, small, batch[small], "compiled")
        add("small batch 512", step, small, 512, "compiled")
        add("embed eager", embed, 256, "eager")
        add("large graphs", step, large, batch[large], "graphs")
        add("labels graphs", step, labels, batch[labels], "graphs")
    return made


def too_long(*_: object) -> None:
    raise TimeoutError(f"took longer than {LONGEST} s")


def main() -> None:
    parser = measure.parser(__doc__, rounds=3)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--deadline", type=float, default=450, help="Seconds after which no stage is begun.")
    parser.add_argument("--only", help="Stages to run, whether they are there or not.")
    parser.add_argument(
        "--tiny", action="store_true", help="Small networks and images, uncompiled: a test of this file."
    )
    a = parser.parse_args()
    begun = time.perf_counter()
    torch.set_num_threads(max(1, torch.get_num_threads()))
    if a.device == "cuda":
        torch.backends.cudnn.benchmark = True
    bench = Bench(a)
    signal.signal(signal.SIGALRM, too_long)
    for name, stage in stages(bench).items():
        done = any(line.get("stage") == name and line["unit"] != "failed" for line in bench.there())
        if (a.only is None and done) or (a.only is not None and name not in a.only.split(",")):
            continue
        if time.perf_counter() - begun > a.deadline:
            print(f"{name} and what follows is left for another call", file=sys.stderr)
            break
        print(f"{time.perf_counter() - begun:.0f} s: {name}", file=sys.stderr, flush=True)
        signal.alarm(LONGEST)
        try:
            stage(name)
        except Exception as error:  # the other stages must still run
            bench.lines.add(
                name, 0, "failed", stage=name, note=without_folders(f"{type(error).__name__}: {error}")[:1000]
            )
        signal.alarm(0)
        if a.device == "cuda":
            torch._dynamo.reset()
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()


if __name__ == "__main__":
    main()
