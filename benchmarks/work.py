"""Training steps for benchmarks: our own step on fixed pixels, and the number of operations in it."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from selfie_cli.config import PretrainOptions
from selfie_cli.data.augment import OURS
from selfie_cli.data.batches import Prefetch, step_generator
from selfie_cli.data.folders import Folder
from selfie_cli.data.pixels import open_pixels
from selfie_cli.data.sources import Array, Source
from selfie_cli.inference import networks
from selfie_cli.methods.supervised import Supervised
from selfie_cli.models.classifier import Classifier
from selfie_cli.models.resnet import stem_for
from selfie_cli.pretraining.settings import derive
from selfie_cli.pretraining.task import batches
from selfie_cli.talk import Talk
from selfie_cli.training.hardware import keep_freed_memory, num_cores
from selfie_cli.training.optimizers import make_optimizer
from selfie_cli.training.step import Step

# Megabytes that a step moves per image, in a model of 16 passes over the activations in bf16. There are 10.5 M
# activations at 224 px, 3.2 M at 32 px (Selfie, paper's recipe) and 11 M in ResNet-50 at 224 px.
MEGABYTES = {"pretrain 32 px": 100, "pretrain 224 px": 326, "finetune 224 px": 348}


@dataclass
class Training:
    """Steps of a training without its loop. A call takes a step, with augmentation and optimizer; returns the loss."""

    step: Step
    batch_of: Callable[[int], tuple[Tensor, ...]]
    taken: int = 0

    def __call__(self) -> Tensor:
        batch = tuple(tensor.to(self.step.device, non_blocking=True) for tensor in self.batch_of(self.taken))
        self.taken += 1
        return self.step(batch, 0.5)["loss"]

    def gflop(self) -> float:
        """Giga-operations per image, forward and backward, as torch counts them; a multiply-add counts as two."""
        few = Training(self.step, lambda number: tuple(tensor[:4] for tensor in self.batch_of(number)))
        compiled, self.step.forward._compiled_call_impl = self.step.forward._compiled_call_impl, None
        with FlopCounterMode(display=False) as counter:
            few()
        self.step.forward._compiled_call_impl = compiled
        return float(counter.get_total_flops()) / 4e9


def operators(training: Training, steps: int = 5) -> tuple[float, list[dict[str, Any]]]:
    """Profile steps: the share of time that kernels (on a CPU, operations) run, and those that take most of it."""
    from torch.profiler import ProfilerActivity

    on_gpu = training.step.device.type == "cuda"
    for _ in range(3):
        training().item()
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
    begun = time.perf_counter()
    with torch.profiler.profile(activities=activities) as profiled:
        for _ in range(steps):
            loss = training()
        loss.item()
        seconds = time.perf_counter() - begun
    of = "self_device_time_total" if on_gpu else "self_cpu_time_total"
    found = [each for each in profiled.key_averages() if not on_gpu or str(each.device_type).endswith("CUDA")]
    busy = sum(getattr(each, of) for each in found) / 1e6
    top = sorted(found, key=lambda each: -getattr(each, of))[:15]
    shares = [(each.key[:100], getattr(each, of) / 1e6 / busy, each.count // steps) for each in top]
    return min(1.0, busy / seconds), [{"name": name, "share": share, "calls": calls} for name, share, calls in shares]


def in_words(top: list[dict[str, Any]], count: int = 6) -> str:
    return ", ".join(f"{each['name'].removeprefix('aten::')[:40]} {each['share']:.0%}" for each in top[:count])


def noise(num_images: int, image_size: int, device: str) -> Tensor:
    """Random stored pixels for networks of `image_size`: uint8 [B, S, S, 3]."""
    side = OURS.storage_size(image_size)
    return torch.randint(0, 256, (num_images, side, side, 3), dtype=torch.uint8).to(device)


def pretraining(
    *,
    method: str = "selfie",
    recipe: str = "best",
    backbone: str = "resnetv2_50",
    image_size: int = 32,
    batch_size: int = 128,
    device: str = "cpu",
    precision: str = "fp32",
    compiled: bool = False,
    graphs: bool = False,
    photos: Path | None = None,
) -> Training:
    """Steps of `selfie pretrain`, on noise in memory or on `photos` read as it reads them."""
    options = PretrainOptions(
        method=method,  # type: ignore[arg-type]
        recipe=recipe,  # type: ignore[arg-type]
        backbone=backbone,  # type: ignore[arg-type]
        image_size=image_size,
        batch_size=batch_size,
    )
    if photos is None:
        pixels = noise(batch_size, image_size, device)
        source: Source = Array(np.zeros((batch_size, 1, 1, 3), np.uint8), [str(index) for index in range(batch_size)])
    else:
        source = Folder(str(photos))
    derived: dict[str, Any] = derive(options, source)
    keep_freed_memory()
    torch.manual_seed(0)
    task = networks.build_method(derived).to(device).train()
    optimizer = make_optimizer(derived["optimizer"], task, lr=1e-4, weight_decay=derived["weight_decay"])
    step = Step(
        task,
        task,
        optimizer,
        micro_batch=batch_size,
        precision=precision,
        compiled=compiled,
        graphs=graphs,
        after=task.after_step,
    )
    if photos is None:
        return Training(step, lambda number: (pixels, *task.draw(batch_size, step_generator(0, number))))
    store = open_pixels(source, size=OURS.storage_size(image_size), workers=num_cores(), max_bad=0, talk=Talk())
    store = store.to(torch.device(device))
    return Training(step, Prefetch(batches(store, task, derived, 0), device=torch.device(device)))


def finetuning(
    *,
    backbone: str = "resnet50",
    image_size: int = 224,
    batch_size: int = 256,
    num_classes: int = 1000,
    device: str = "cpu",
    precision: str = "fp32",
    compiled: bool = False,
    graphs: bool = False,
) -> Training:
    """Steps of `selfie finetune`, on noise in memory."""
    keep_freed_memory()
    stem = stem_for(8 if image_size <= 64 else 32)
    module: nn.Module = Classifier(backbone, stem=stem, num_classes=num_classes).to(device).train()
    task = Supervised(module, image_size=image_size, min_crop=0.35)
    optimizer = make_optimizer("sgd", module, lr=1e-4, weight_decay=1e-4)
    pixels = noise(batch_size, image_size, device)
    labels = torch.randint(0, num_classes, (batch_size,)).to(device)
    step = Step(module, task, optimizer, micro_batch=batch_size, precision=precision, compiled=compiled, graphs=graphs)
    return Training(step, lambda number: (pixels, labels, task.draw(batch_size, step_generator(0, number))))


def forward_gflop(forward: Callable[[Tensor], object], image_size: int, device: str = "cpu") -> float:
    """Giga-operations per image of `forward`, which takes stored pixels."""
    pixels = noise(2, image_size, device)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        forward(pixels)
    return float(counter.get_total_flops()) / 2e9
