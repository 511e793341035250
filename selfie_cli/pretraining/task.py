"""A pretraining on this machine: its step, its batches, its pace, and a check for collapsed features."""

import time
from collections.abc import Callable
from typing import Any

import torch

from selfie_cli.data.augment import plain_view
from selfie_cli.data.batches import Batch, SampleOrder, make_batches, step_seed
from selfie_cli.data.pixels import Pixels
from selfie_cli.evaluation.collapse import collapse_warning, feature_spread
from selfie_cli.inference import networks
from selfie_cli.methods.method import Method
from selfie_cli.talk import Talk
from selfie_cli.training.distributed import group
from selfie_cli.training.hardware import Pace, compiles, duration, fit, micro_batch_for, precisions
from selfie_cli.training.optimizers import make_optimizer
from selfie_cli.training.schedule import warmup_of
from selfie_cli.training.step import Step, check_pieces

WATCHED = 256  # images whose features are checked for collapse
FEWEST_WATCHED = 8  # fewer images are not conclusive


def make_step(
    derived: dict[str, Any], device: torch.device, *, seed: int, compile: str, deterministic: bool, talk: Talk
) -> tuple[Method, Step]:
    """The method on its device, freshly initialized, and a training step of it. `derived` is as in a run's config."""
    here = group()
    compiled = compiles(compile, device, deterministic=deterministic)
    torch.manual_seed(step_seed(seed, 0))
    method = networks.build_method(derived).to(device)
    if here.world > 1 and device.type == "cuda" and method.compares_images:
        method = torch.nn.SyncBatchNorm.convert_sync_batchnorm(method)
    method.encoder.checkpointed = derived.get("checkpointed", False)
    method.group = here
    micro_batch = derived.get("micro_batch", derived["batch_size"] // here.world)
    step = Step(
        method,
        method,
        make_optimizer(derived["optimizer"], method, lr=derived["lr"], weight_decay=derived["weight_decay"]),
        micro_batch=micro_batch,
        precision=derived.get("precision", "fp32"),
        compiled=compiled and derived.get("compiles", True),
        graphs=device.type == "cuda" and derived["image_size"] <= 64 and micro_batch == derived["batch_size"],
        group=here,
        after=method.after_step,
        smallest=derived["batch_size"] if deterministic else 1 + method.compares_images,
        talk=talk,
    )
    return method, step


def batches(pixels: Pixels, method: Method, derived: dict[str, Any], seed: int) -> Callable[[int], Batch]:
    """Return a function that makes this process's part of each batch: pixels, and the random numbers drawn for them."""
    here, size, version = group(), derived["batch_size"], derived.get("image_order", 1)
    order = SampleOrder(len(pixels), size, seed, block=pixels.block, rank=here.rank, world=here.world, version=version)
    return make_batches(order, lambda rows: (pixels.take(rows),), method.draw)


class Watch:
    """Computes the spread of the features of some images, to log; warns if they have collapsed."""

    def __init__(self, step: Step, method: Method, pixels: Pixels, talk: Talk) -> None:
        self.step, self.method, self.talk = step, method, talk
        self.pixels = pixels.take(torch.arange(0, len(pixels), -(-len(pixels) // WATCHED))).to(step.device)
        self.alarms = 0

    def __call__(self) -> dict[str, float]:
        with torch.no_grad(), self.step.autocast():
            self.method.eval()
            size, preprocessing = self.method.image_size, self.method.preprocessing
            views = (plain_view(part, size, preprocessing) for part in self.pixels.split(self.step.micro_batch))
            vectors = torch.cat([self.method.embeddings(view) for view in views])
        self.method.train()
        if not vectors.isfinite().all():
            return {}  # the training loop raises Diverged
        std, rank = feature_spread(vectors)
        warning = collapse_warning(std, rank, vectors.shape[1])
        self.alarms = self.alarms + 1 if warning else 0
        if warning and self.alarms == 2 and len(vectors) >= FEWEST_WATCHED:  # features may be alike at the beginning
            self.talk.warn(warning)
        return {"feature_std": std, "effective_rank": rank}


def fit_to_machine(
    step: Step,
    method: Method,
    batch: Batch,
    derived: dict[str, Any],
    *,
    micro_batch: int | None,
    precision: str,
    deterministic: bool,
    talk: Talk,
) -> float:
    """Set the micro-batch and the precision of `step`, and note them in `derived`; returns the seconds of a step.

    If the loss compares images, recomputing activations is tried before the batch is split.
    """
    size, batch = len(batch[0]), step.on_device(batch)
    check_pieces(size, micro_batch or size, step.smallest)
    tried = precisions(step.device, precision, deterministic=deterministic)
    step.precision = tried[0]
    micro = micro_batch or (size if deterministic else micro_batch_for(step, batch))
    if micro < size and not micro_batch and method.compares_images:
        method.encoder.checkpointed = True
        micro = micro_batch_for(step, batch)
        talk.say("memory is short: activations are recomputed in the backward pass instead of kept")
    step.set_micro_batch(micro)
    if step.group.world > 1 and step.device.type == "cpu" and method.compares_images:
        talk.warn(f"on a CPU, batch norm sees the {size} images of its own process only")
    wanted = step.compiled
    seconds = fit(step, batch, tried, talk)
    derived.update(
        micro_batch=step.micro_batch,
        precision=step.precision,
        compiles=step.compiled or not wanted,
        checkpointed=method.encoder.checkpointed,
        processes=step.group.world,
    )
    return seconds


def pace_of(
    step_seconds: float, pixels: Pixels, batch_of: Callable[[int], Batch], batch_size: int, device: torch.device
) -> Pace:
    """The pace of steps including the decoding of their images, measured on two batches."""
    if pixels.decoding_epochs == 0:
        return Pace(step_seconds)
    begun = time.perf_counter()
    for number in (1, 2):
        batch_of(number)
    decoding = max(group().gather((time.perf_counter() - begun) / 2))
    epoch = round(len(pixels) / batch_size)
    return decoding_pace(step_seconds, decoding, pixels.decoding_epochs == 1, epoch, device)


def decoding_pace(
    step_seconds: float, decoding: float, keeps_all: bool, steps_an_epoch: int, device: torch.device
) -> Pace:
    """The pace if a batch takes `decoding` seconds to decode: in the first epoch if `keeps_all`, else in each."""
    # On a CPU, decoding and training share the cores.
    slower = step_seconds + decoding if device.type == "cpu" else max(step_seconds, decoding)
    return Pace(step_seconds if keeps_all else slower, slower, steps_an_epoch)


def divided(batch_size: int) -> str:
    """'256', or '256 as 2 x 128' in a job of two processes."""
    world = group().world
    return f"{batch_size}" if world == 1 else f"{batch_size} as {world} x {batch_size // world}"


def say_length(derived: dict[str, Any], num_images: int, pace: Pace, talk: Talk) -> None:
    steps, batch = derived["steps"], derived["batch_size"]
    estimate = pace.seconds(steps)
    whole = derived["micro_batch"] * derived["processes"] == batch
    pieces = "" if whole else f" in micro-batches of {derived['micro_batch']}"
    shorter = ". Shorter: --budget 20m, --steps, a smaller --backbone" if estimate > 3600 else ""
    talk.say(
        f"{steps:,} steps of {batch} images{pieces} ({steps * batch / num_images:.1f} epochs), the first "
        f"{warmup_of(derived['warmup_steps'], steps):,} of them warm-up: "
        f"about {duration(estimate)} at {steps * batch / estimate:,.0f} images/s{shorter}"
    )
