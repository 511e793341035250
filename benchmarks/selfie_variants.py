"""What could make Selfie worth more: variants at equal wall-clock, judged on held-out training images of CIFAR-10.

    python benchmarks/selfie_variants.py --data CIFAR10 --name simclr --seconds 180 --rate 350 --set kind=simclr

Steps are --seconds times --rate, what a quiet core was measured to do, so that runs side by side are not cut short.
Never looks at the test images: 10,000 of the training images are held out for the linear probe and for networks
finetuned on 5 % of the other labels. A log of what was tried and why is in docs/results/research.md.
"""

import argparse
import copy
import dataclasses
import json
import math
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from selfie_cli.data import splits
from selfie_cli.data.augment import draw_crops, plain_view, training_view
from selfie_cli.data.labelled import open_labelled
from selfie_cli.data.store import read_store
from selfie_cli.data.views import draw_view, random_view
from selfie_cli.evaluation.linear import fit_linear_probe
from selfie_cli.evaluation.metrics import topk_accuracy
from selfie_cli.methods.selfie import Selfie
from selfie_cli.models import patches
from selfie_cli.models.attention import AttentionPooling, Positions
from selfie_cli.models.classifier import Classifier
from selfie_cli.models.resnet import resnet
from selfie_cli.recipes import networks
from selfie_cli.talk import Talk
from selfie_cli.training.machine import num_cores
from selfie_cli.training.schedule import SampleOrder, cosine_with_warmup, step_seed

BACKBONE = "resnetv2_18_w16"
SIZE = 32


@dataclass(frozen=True, kw_only=True)
class Variant:
    kind: str = "selfie"  # none, paper, simclr, byol, selfie
    stages: int = 4
    batch: int = 256
    lr: float = 0.1
    optimizer: str = "sgd"
    decay: float = 1e-4
    temperature: float = 0.2
    min_area: float = 0.2
    jitter: float = 1.0
    visible: float = 0.5  # share of the context's cells that A sees
    grid: int = 4
    targets: str = "whole"  # whole, cells, both
    num_cells: int = 4  # cells of the other view asked for
    own: bool = True  # other cells of the same image are distractors
    relative: bool = True  # queries know the target's box relative to the context's view
    target_head: bool = True  # an MLP on the targets
    query_head: bool = True
    target_context: bool = False  # the target's vector comes from A over all cells of the other view
    tau: float = 0.97  # BYOL's
    ema: float = 0.0  # targets from a moving average of P
    layers: int = 3
    hidden: int = 512
    width: int = 128
    global_weight: float = 1.0
    simclr_weight: float = 0.0
    dropout: float = 0.1
    view_size: int = SIZE
    residual: bool = False  # u is A's output + the mean of what it saw
    both_views: bool = False  # distractors are both views of the other images
    draws: int = 1


def mlp(inputs: int, hidden: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(inputs, hidden, bias=False), nn.BatchNorm1d(hidden), nn.ReLU(), nn.Linear(hidden, outputs)
    )


def nt_xent(a: Tensor, b: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    n = len(a)
    z = F.normalize(torch.cat([a, b]).float(), dim=1)
    logits = (z @ z.T) / temperature
    logits.fill_diagonal_(-torch.inf)
    right = torch.cat([torch.arange(n) + n, torch.arange(n)])
    return F.cross_entropy(logits, right), (logits.argmax(1) == right).float().mean()


class TwoViews(nn.Module):
    def __init__(self, v: Variant) -> None:
        super().__init__()
        self.v = v
        self.encoder = resnet(BACKBONE, stem="3x3", num_stages=v.stages)
        d = self.encoder.num_features
        if v.kind in ("simclr", "byol") or v.simclr_weight:
            self.projector = mlp(d, v.hidden, v.width)
        if v.kind == "byol":
            self.predictor = mlp(v.width, v.hidden, v.width)
        if v.kind == "selfie":
            self.attention = AttentionPooling(d, num_layers=v.layers, dropout=v.dropout)
            self.positions = Positions(v.grid, d, factorized=False)
            self.place = nn.Sequential(nn.Linear(5, 64), nn.GELU(), nn.Linear(64, d))
            self.query = mlp(d, v.hidden, v.width) if v.query_head else nn.Linear(d, v.width)
            self.target = mlp(d, v.hidden, v.width) if v.target_head else nn.Linear(d, v.width)
        if v.kind == "byol" or v.ema:
            self.slow = nn.ModuleList([copy.deepcopy(self.encoder)])
            self.slow.append(copy.deepcopy(self.projector if v.kind == "byol" else self.target))
            self.slow.requires_grad_(False)

    def views(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        twice = torch.cat([pixels, pixels])
        draws = draw_view(len(twice), torch.default_generator, min_area=self.v.min_area, jitter=self.v.jitter)
        return random_view(twice, draws, self.v.view_size, blur=False, solarize=False), draws.boxes

    def loss(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        images, boxes = self.views(pixels)
        v, n = self.v, len(pixels)
        maps = self.encoder(images)  # [2B, D, h, w]
        if v.kind == "simclr":
            z = self.projector(maps.mean(dim=(2, 3)))
            return nt_xent(z[:n], z[n:], v.temperature)
        if v.kind == "byol":
            p = F.normalize(self.predictor(self.projector(maps.mean(dim=(2, 3)))).float(), dim=1)
            with torch.no_grad():
                t = F.normalize(self.slow[1](self.slow[0](images).mean(dim=(2, 3))).float(), dim=1)
            cos = (p * t.roll(n, 0)).sum(1)
            return 2 * (2 - 2 * cos).mean(), cos.mean()
        cells = F.adaptive_avg_pool2d(maps, v.grid).flatten(2).transpose(1, 2)  # [2B, N, D]
        if v.ema:
            with torch.no_grad():
                slow_maps = self.slow[0](images)
                target_cells = F.adaptive_avg_pool2d(slow_maps, v.grid).flatten(2).transpose(1, 2)
        else:
            target_cells = cells
        losses, accuracy = [], torch.zeros(())
        b2, num = cells.shape[:2]
        for _ in range(v.draws):
            hidden = num - max(1, round(num * v.visible))
            if hidden:
                _, seen = patches.random_masks(torch.rand(b2, num), hidden)
            else:
                seen = torch.arange(num).expand(b2, num)
            context = patches.gather_places(cells + self.positions(), seen)
            u = self.attention(context)  # [2B, D]
            if v.residual:
                u = u + context.mean(dim=1)
            if v.targets in ("whole", "both"):
                whole = target_cells.mean(dim=1) if not v.target_context else self.attention(cells + self.positions())
                q = self.query(u + self.where(boxes, boxes.roll(n, 0)) if v.relative else u)
                z = self.head(whole).roll(n, 0)  # the other view's
                # q of 2B contexts against the other views of all images
                loss, accuracy = self.contrast_all(q, z.roll(n, 0)) if v.both_views else self.contrast(q, z, n)
                losses.append(v.global_weight * loss)
            if v.targets in ("cells", "both"):
                k = v.num_cells
                chosen = torch.rand(b2, num).argsort(dim=1)[:, :k]  # [2B, K] of the other view, in its own order
                sub = self.cell_boxes(boxes.roll(n, 0), chosen)  # [2B, K, 4]
                place = self.where(boxes[:, None].expand(-1, k, -1).reshape(-1, 4), sub.reshape(-1, 4)).view(b2, k, -1)
                q = self.query((u[:, None] + place).flatten(0, 1))  # [2BK, E]
                z = self.head(patches.gather_places(target_cells.roll(n, 0), chosen).flatten(0, 1))
                loss, local = self.contrast_cells(q, z, n, k)
                losses.append(loss)
                if v.targets == "cells":
                    accuracy = local
        total = torch.stack(losses).sum() / v.draws
        if v.simclr_weight:
            z = self.projector(maps.mean(dim=(2, 3)))
            total = total + v.simclr_weight * nt_xent(z[:n], z[n:], v.temperature)[0]
        return total, accuracy

    def head(self, x: Tensor) -> Tensor:
        if self.v.ema:
            with torch.no_grad():
                return self.slow[1](x)
        return self.target(x)

    def where(self, context: Tensor, target: Tensor) -> Tensor:
        """Where a target's box lies in the frame of the context's view: [M, 4] each -> [M, D]."""
        w, h = context[:, 2], context[:, 3]
        place = torch.stack(
            [
                (target[:, 0] - context[:, 0]) / w,
                (target[:, 1] - context[:, 1]) / h,
                (target[:, 2] / w).abs().log(),
                (target[:, 3] / h).log(),
                (target[:, 2] / w).sign(),
            ],
            dim=1,
        )
        return self.place(place)

    def cell_boxes(self, boxes: Tensor, chosen: Tensor) -> Tensor:
        g = self.v.grid
        row, column = chosen // g, chosen % g
        x = boxes[:, None, 0] + boxes[:, None, 2] * ((2 * column + 1) / g - 1)
        y = boxes[:, None, 1] + boxes[:, None, 3] * ((2 * row + 1) / g - 1)
        w, h = (boxes[:, None, i].expand_as(x) / g for i in (2, 3))
        return torch.stack([x, y, w, h], dim=-1)

    def contrast(self, q: Tensor, z: Tensor, n: int) -> tuple[Tensor, Tensor]:
        """Each context's query against the other view of every image, both halves: [2B, E] each."""
        q, z = F.normalize(q.float(), dim=1), F.normalize(z.float(), dim=1)
        logits = torch.cat([q[:n] @ z[:n].T, q[n:] @ z[n:].T]) / self.v.temperature
        right = torch.arange(n).repeat(2)
        return F.cross_entropy(logits, right), (logits.argmax(1) == right).float().mean()

    def contrast_all(self, q: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        """As NT-Xent: against all other views, z [2B, E] of each view; its own is left out."""
        q, z = F.normalize(q.float(), dim=1), F.normalize(z.float(), dim=1)
        logits = (q @ z.T / self.v.temperature).fill_diagonal_(-torch.inf)
        right = torch.arange(len(z)).roll(len(z) // 2)
        return F.cross_entropy(logits, right), (logits.argmax(1) == right).float().mean()

    def contrast_cells(self, q: Tensor, z: Tensor, n: int, k: int) -> tuple[Tensor, Tensor]:
        q, z = F.normalize(q.float(), dim=1), F.normalize(z.float(), dim=1)
        losses, hits = [], []
        right = torch.arange(n * k)
        image = right // k
        for half in (slice(0, n * k), slice(n * k, 2 * n * k)):
            logits = q[half] @ z[half].T / self.v.temperature  # [BK, BK]
            if not self.v.own:
                same = (image[:, None] == image) & (right[:, None] != right)
                logits = logits.masked_fill(same, -torch.inf)
            losses.append(F.cross_entropy(logits, right))
            hits.append((logits.argmax(1) == right).float().mean())
        return torch.stack(losses).mean(), torch.stack(hits).mean()

    @torch.no_grad()
    def after_step(self, done: float) -> None:
        if self.v.kind == "byol":
            tau = 1 - (1 - self.v.tau) * (math.cos(math.pi * done) + 1) / 2
            fast = [self.encoder, self.projector]
        elif self.v.ema:
            tau = 1 - (1 - self.v.ema) * (math.cos(math.pi * done) + 1) / 2
            fast = [self.encoder, self.target]
        else:
            return
        for slow, module in zip(self.slow, fast, strict=True):
            for a, b in zip(slow.parameters(), module.parameters(), strict=True):
                a.lerp_(b, 1 - tau)


class Paper(nn.Module):
    def __init__(self, v: Variant) -> None:
        super().__init__()
        self.selfie = Selfie(
            backbone=BACKBONE,
            image_size=SIZE,
            patch_size=8,
            mask_ratio=0.25,
            factorized_positions=False,
            encoder_positions=True,
            final_norm=True,
            logit_scale="dot",
            flip=True,
            apart=True,
        )
        self.encoder = self.selfie.patch_network

    def loss(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        draws = self.selfie.draw(len(pixels), torch.default_generator)
        loss, extra = self.selfie.loss(*self.selfie.augment(pixels, *draws))
        return loss, extra["pretext_accuracy"]

    def after_step(self, done: float) -> None: ...


def optimizer_for(module: nn.Module, v: Variant) -> torch.optim.Optimizer:
    parameters = [p for p in module.parameters() if p.requires_grad]
    flat = [p for p in parameters if p.ndim < 2]
    groups = [{"params": [p for p in parameters if p.ndim >= 2]}, {"params": flat, "weight_decay": 0.0}]
    if v.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=v.lr, weight_decay=v.decay, betas=(0.9, 0.98))
    return torch.optim.SGD(groups, lr=v.lr, momentum=0.9, nesterov=True, weight_decay=v.decay)


def pretrain(v: Variant, pixels: Tensor, seconds: float, rate: float, seed: int) -> tuple[nn.Module, dict]:
    torch.manual_seed(step_seed(seed, 0))
    module = Paper(v) if v.kind == "paper" else TwoViews(v)
    optimizer = optimizer_for(module, v)
    order = SampleOrder(len(pixels), v.batch, seed)

    def step(index: int, total: int) -> tuple[float, float]:
        torch.manual_seed(step_seed(seed, index))
        for group in optimizer.param_groups:
            group["lr"] = v.lr * cosine_with_warmup(index, total=total, warmup=100)
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast("cpu", torch.bfloat16):
            loss, accuracy = module.loss(pixels[order.batch(index)])
        loss.backward()
        optimizer.step()
        module.after_step(index / total)
        return loss.item(), accuracy.item()

    total = int(seconds * rate / v.batch)
    begun = time.perf_counter()
    last = []
    for index in range(total):
        last.append(step(index, total))
        if index % 100 == 99:
            print(index + 1, total, *np.mean(last[-100:], axis=0).round(4), flush=True)
    tail = np.mean(last[-100:], axis=0).tolist() if last else (None, None)
    return module, {
        "steps": total,
        "images_per_second_quiet": round(rate, 1),
        "wall": round(time.perf_counter() - begun, 1),
        "loss": tail[0],
        "pretext": tail[1],
    }


@torch.no_grad()
def vectors(network: nn.Module, pixels: Tensor) -> Tensor:
    network.eval()
    with torch.autocast("cpu", torch.bfloat16):
        return torch.cat([network(plain_view(part, SIZE)).mean(dim=(2, 3)).float() for part in pixels.split(256)])


def finetune(state, pixels, labels, test, test_labels, *, seed: int, lr: float, steps: int) -> float:
    torch.manual_seed(step_seed(seed, 0))
    module = Classifier(BACKBONE, stem="3x3", num_classes=10)
    if state is not None:
        module.take_over(state)
        networks.estimate_batch_norm(module, lambda part: module(plain_view(part, SIZE)), pixels)
    module.train()
    optimizer = torch.optim.SGD(module.parameters(), lr=lr, momentum=0.9, nesterov=True, weight_decay=1e-4)
    order = SampleOrder(len(pixels), 128, seed)
    for step in range(steps):
        torch.manual_seed(step_seed(seed, step))
        for group in optimizer.param_groups:
            group["lr"] = lr * cosine_with_warmup(step, total=steps, warmup=50)
        rows = order.batch(step)
        crops = draw_crops(len(rows), SIZE, torch.default_generator, flip=True, min_crop=0.35)
        with torch.autocast("cpu", torch.bfloat16):
            logits = module(training_view(pixels[rows], crops, SIZE))
        loss = F.cross_entropy(logits.float(), labels[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.autocast("cpu", torch.bfloat16):
        return topk_accuracy(
            networks.class_scores(networks.Network(module.eval(), SIZE, "penultimate"), test), test_labels
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--name", default=None)
    parser.add_argument("--set", nargs="*", default=[], metavar="FIELD=VALUE")
    parser.add_argument("--seconds", type=float, default=240)
    parser.add_argument("--rate", type=float, required=True, help="images a second of this variant")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--finetune-seeds", type=int, default=2)
    parser.add_argument("--finetune-steps", type=int, default=200)
    parser.add_argument("--rates", default="0.1")
    parser.add_argument("--expected", default="")
    parser.add_argument("--out", type=Path, default=Path("variants.jsonl"))
    given = parser.parse_args()
    hints = {field.name: type(field.default) for field in dataclasses.fields(Variant)}
    chosen = dict(pair.split("=") for pair in given.set)
    v = Variant(**{k: (x == "True") if hints[k] is bool else hints[k](x) for k, x in chosen.items()})

    data = open_labelled(given.data, data_root=Path("data"), offline=True, talk=Talk())
    store = read_store(data.train.source, size=SIZE, workers=num_cores(), max_bad=0, talk=Talk())
    pixels, labels = store.pixels, torch.from_numpy(data.train.labels[store.kept])
    kept, held = (torch.from_numpy(part) for part in splits.hold_out(labels.numpy(), 0.2, 0))
    train, train_labels, test, test_labels = pixels[kept], labels[kept], pixels[held], labels[held]

    module, facts = pretrain(v, train, 0 if v.kind == "none" else given.seconds, given.rate, given.seed)
    if v.kind == "none":
        networks.estimate_batch_norm(module, lambda part: module.encoder(plain_view(part, SIZE)), train)
    some = torch.from_numpy(splits.fraction_indices(train_labels.numpy(), 0.25, 0))
    before, after = vectors(module.encoder, train[some]), vectors(module.encoder, test)
    inner = torch.zeros(len(some), dtype=torch.bool)
    inner[torch.from_numpy(splits.hold_out(train_labels[some].numpy(), 0.2, 0)[1])] = True
    probe = fit_linear_probe(before, train_labels[some], num_classes=10, held_out=inner)
    linear = topk_accuracy(probe.scores(after), test_labels)
    print("probe", linear, flush=True)
    tuned = {}
    state = None if v.kind == "none" else module.encoder.state_dict()
    for lr in map(float, given.rates.split(",")):
        tuned[f"{lr:g}"] = []
        for seed in range(given.finetune_seeds):
            rows = torch.from_numpy(splits.fraction_indices(train_labels.numpy(), 0.05, seed))
            tuned[f"{lr:g}"].append(
                finetune(
                    state,
                    train[rows],
                    train_labels[rows],
                    test,
                    test_labels,
                    seed=seed,
                    lr=lr,
                    steps=given.finetune_steps,
                )
            )
            print("finetuned", lr, tuned[f"{lr:g}"][-1], flush=True)
    line = {
        "name": given.name or v.kind,
        "expected": given.expected,
        "variant": dataclasses.asdict(v),
        "seed": given.seed,
        "seconds": given.seconds,
        **facts,
        "linear": linear,
        "finetuned_5": tuned,
        "finetune_steps": given.finetune_steps,
        "threads": torch.get_num_threads(),
    }
    with given.out.open("a") as file:
        file.write(json.dumps(line) + "\n")
    print(json.dumps(line))


if __name__ == "__main__":
    main()
