"""Compare variants of pretraining at equal pixels, and of finetuning, on held-out training images of CIFAR-10.

    python benchmarks/variants.py CIFAR10_TREE pretrain NAME --method selfie --megapixels 80 --set num_views=8
    python benchmarks/variants.py CIFAR10_TREE finetune NAME --from NAME --steps 4000 --lr 0.1

CIFAR10_TREE is a folder with train/<class>/; its test images are never read. A random 10,000 of the training images are
held out to evaluate every variant; the other 40,000 are used for pretraining. --megapixels counts the pixels that go
through the network, so variants of one network take about the same time. `--set` overrides the recipe's values.

`pretrain` reports a linear probe on the labels of all 40,000 images and on 2,000 of them. `finetune` trains a whole
network on 2,000 labels, or on `--num-labels`. A line per variant is appended to docs/results/research.jsonl, with the
CPU seconds it took.
"""

import argparse
import ast
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from evidence import RESULTS, circumstances
from torch import Generator, Tensor

from selfie_cli.config import PretrainOptions
from selfie_cli.data.augment import plain_view
from selfie_cli.data.batches import step_generator
from selfie_cli.data.folders import Folder
from selfie_cli.data.pixels import read_pixels
from selfie_cli.data.sources import Array
from selfie_cli.data.views import View, ViewDraws
from selfie_cli.evaluation.linear import linear_probe
from selfie_cli.evaluation.metrics import topk_accuracy
from selfie_cli.inference import networks
from selfie_cli.methods.supervised import Supervised
from selfie_cli.models.classifier import Classifier
from selfie_cli.models.resnet import ResNet
from selfie_cli.pretraining.settings import derive
from selfie_cli.talk import Talk
from selfie_cli.training.optimizers import make_optimizer
from selfie_cli.training.schedule import cosine_with_warmup
from selfie_cli.training.step import Step
from selfie_cli.weights import load_weights, save_weights

SIZE, NUM_TRAIN, NUM_LABELS, NUM_CLASSES = 32, 40_000, 2_000, 10


def load(tree: Path) -> tuple[Tensor, Tensor]:
    """All training images, uint8 [N, 32, 32, 3], and labels, int64 [N], in one random order."""
    files = Folder(str(tree / "train"))
    classes = sorted({Path(file).parent.name for file in files.names})
    labels = torch.tensor([classes.index(Path(file).parent.name) for file in files.names])
    pixels = read_pixels(files, size=SIZE, workers=2, max_bad=0, talk=Talk()).take(torch.arange(len(files)))
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(1234))
    return torch.as_tensor(pixels)[order], labels[order]


def batches(num_images: int, size: int, seed: int) -> Any:
    """Indices of one batch after another, epoch by epoch."""
    generator = torch.Generator().manual_seed(seed + 1)
    while True:
        yield from torch.randperm(num_images, generator=generator)[: num_images // size * size].split(size)


def train(
    step: Step,
    task: Any,
    pixels: Tensor,
    labels: tuple[Tensor, ...],
    *,
    steps: int,
    lr: float,
    seed: int,
    warmup: int = 100,
) -> None:
    rows_of = batches(len(pixels), step.micro_batch, seed)
    for number in range(steps):
        for each in step.optimizer.param_groups:
            each["lr"] = lr * cosine_with_warmup(number, total=steps, warmup=warmup)
        rows = next(rows_of)
        draws = task.draw(len(rows), step_generator(seed, number))
        draws = draws if isinstance(draws, tuple) else (draws,)
        step((pixels[rows], *(each[rows] for each in labels), *draws), (number + 1) / steps)


@torch.no_grad()
def features(encoder: ResNet, pixels: Tensor, precision: str) -> Tensor:
    encoder.eval()
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
        return torch.cat([encoder(plain_view(part, SIZE)).mean(dim=(2, 3)).float() for part in pixels.split(500)])


def probed(encoder: ResNet, pixels: Tensor, labels: Tensor, count: int, precision: str) -> float:
    """Accuracy, on the held-out images, of a linear probe fitted to the first `count` images."""
    held = torch.arange(count) % 5 == 0  # images that choose the strength of regularization
    train, test = (features(encoder, part, precision) for part in (pixels[:count], pixels[NUM_TRAIN:]))
    probe = linear_probe(train, labels[:count], num_classes=NUM_CLASSES, held_out=[held])
    return topk_accuracy(probe.log_probabilities(test), labels[NUM_TRAIN:])


def pretrain(a: argparse.Namespace, pixels: Tensor, labels: Tensor) -> dict[str, Any]:
    options = PretrainOptions(
        data=("x",), method=a.method, recipe=a.recipe, backbone=a.backbone, image_size=SIZE, batch_size=a.batch_size
    )
    derived = derive(options, Array(np.zeros((NUM_TRAIN, 1, 1, 3), np.uint8), [str(i) for i in range(NUM_TRAIN)]))
    changed = {name: ast.literal_eval(value) for name, value in (each.split("=") for each in a.set)}
    for name, value in changed.items():
        (derived if name in derived else derived[a.method])[name] = value
    torch.manual_seed(a.seed)
    method = networks.build_method(derived).train()
    side = getattr(method, "view_size", SIZE)
    per_image = side**2 * getattr(method, "num_views", 1)
    steps = round(a.megapixels * 1e6 / (per_image * derived["batch_size"]))
    optimizer = make_optimizer(derived["optimizer"], method, lr=0.0, weight_decay=derived["weight_decay"])
    step = Step(
        method, method, optimizer, micro_batch=derived["batch_size"], precision=a.precision, after=method.after_step
    )
    schedule = {"steps": steps, "lr": derived["lr"], "warmup": derived["warmup_steps"]}
    train(step, method, pixels[:NUM_TRAIN], (), seed=a.seed, **schedule)
    encoder = method.encoder
    networks.estimate_batch_norm(encoder, lambda part: encoder(plain_view(part, SIZE)), pixels[:NUM_TRAIN])
    save_weights(a.work / f"{a.name}.safetensors", encoder.state_dict(), {})
    counts = (NUM_TRAIN, NUM_LABELS)
    probes = {f"probe_{count}": probed(encoder, pixels, labels, count, a.precision) for count in counts}
    return {
        "method": a.method,
        "recipe": a.recipe,
        "set": changed,
        "megapixels": a.megapixels,
        "steps": steps,
        **probes,
    }


class Views(Supervised):
    """Supervised training on random resized crops with colour jitter, instead of shifted and mirrored images."""

    def __init__(self, classifier: Classifier, *, min_crop: float, jitter: float) -> None:
        super().__init__(classifier, image_size=SIZE, min_crop=min_crop)
        self.view = View(min_crop=min_crop, jitter=jitter, grayscale=0.0)

    def draw(self, num_images: int, generator: Generator) -> ViewDraws:  # type: ignore[override]
        return self.view.draw(num_images, generator)

    def augment(self, pixels: Tensor, *draws: Tensor) -> tuple[Tensor, Tensor]:
        labels, *view = draws
        return self.view.apply(pixels, ViewDraws(*view), SIZE), labels


def finetune(a: argparse.Namespace, pixels: Tensor, labels: Tensor) -> dict[str, Any]:
    torch.manual_seed(a.seed)
    module = Classifier(a.backbone, stem="3x3", num_classes=NUM_CLASSES).train()
    labelled = slice(a.num_labels * a.seed, a.num_labels * (a.seed + 1))
    if a.from_:
        module.take_over(load_weights(a.work / f"{a.from_}.safetensors")[0])
    task = Supervised(module, image_size=SIZE, min_crop=1.0)
    if a.min_crop is not None:
        task = Views(module, min_crop=a.min_crop, jitter=a.jitter)
    optimizer = make_optimizer("sgd", module, lr=0.0, weight_decay=a.weight_decay)
    step = Step(module, task, optimizer, micro_batch=a.batch_size or 128, precision=a.precision)
    train(step, task, pixels[labelled], (labels[labelled],), steps=a.steps, lr=a.lr, seed=a.seed)
    network = networks.Network(module.eval(), SIZE, "penultimate")
    with torch.autocast("cpu", torch.bfloat16, enabled=a.precision == "bf16"):
        accuracy = topk_accuracy(networks.class_scores(network, pixels[NUM_TRAIN:]), labels[NUM_TRAIN:])
    settings = {"from": a.from_, "labels": a.num_labels, "steps": a.steps, "lr": a.lr, "weight_decay": a.weight_decay}
    settings |= {} if a.min_crop is None else {"min_crop": a.min_crop, "jitter": a.jitter}
    return {**settings, "batch_size": step.micro_batch, "accuracy": accuracy}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tree", type=Path)
    parser.add_argument("stage", choices=("pretrain", "finetune"))
    parser.add_argument("name")
    parser.add_argument("--backbone", default="resnetv2_10_w32")
    parser.add_argument("--method", default="selfie")
    parser.add_argument("--recipe", default="best")
    parser.add_argument("--megapixels", type=float, default=80)
    parser.add_argument("--set", nargs="*", default=[], metavar="NAME=VALUE")
    parser.add_argument("--batch-size", type=int)
    parser.add_argument("--from", dest="from_")
    parser.add_argument("--num-labels", type=int, default=NUM_LABELS)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--lr", type=float, default=0.3)
    parser.add_argument("--weight-decay", type=float, default=2e-3)
    parser.add_argument("--min-crop", type=float, help="finetune on crops of this area or more, not on shifted images")
    parser.add_argument("--jitter", type=float, default=0.0, help="and with colour jitter of this strength")
    parser.add_argument("--precision", choices=("bf16", "fp32"), default="bf16", help="bf16 is slow without AVX-512")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--work", type=Path, default=Path("runs/variants"))
    a = parser.parse_args()
    a.work.mkdir(parents=True, exist_ok=True)
    pixels, labels = load(a.tree)
    begun = time.process_time()
    result = {"pretrain": pretrain, "finetune": finetune}[a.stage](a, pixels, labels)
    line = {"stage": a.stage, "name": a.name, "backbone": a.backbone, "seed": a.seed, **result}
    line |= {"cpu_seconds": round(time.process_time() - begun), "threads": torch.get_num_threads(), **circumstances()}
    with (RESULTS / "research.jsonl").open("a") as file:
        file.write(json.dumps(line) + "\n")
    print(json.dumps(line))


if __name__ == "__main__":
    main()
