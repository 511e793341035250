"""selfie pretrain: unlabelled images in, a pretrained network out."""

import dataclasses
import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from selfie_cli import config, runs
from selfie_cli.config import PretrainOptions
from selfie_cli.data.sources import Source, fingerprint, open_unlabelled
from selfie_cli.data.store import read_store, report_bad, storage_size
from selfie_cli.errors import DataError, RunError, UnreadableImage, UsageError
from selfie_cli.methods.selfie import Selfie
from selfie_cli.models.resnet import TORCHVISION, stem_for
from selfie_cli.recipes import networks
from selfie_cli.talk import Talk
from selfie_cli.training.loop import LossOf, train
from selfie_cli.training.machine import duration, micro_batch_for, num_cores, prepare, seconds_a_step
from selfie_cli.training.schedule import SampleOrder, check_length, num_steps, step_seed
from selfie_cli.weights import save_weights


@dataclass(frozen=True, kw_only=True)
class Pretrained:
    """What `pretrain` came to. `last` holds the last logged values: loss, pretext_accuracy, chance, ..."""

    run: Path
    step: int
    seconds: float
    images_per_second: float
    data_wait: float
    last: dict[str, float]


def pretrain(options: PretrainOptions, talk: Talk) -> Pretrained:
    """Pretrain as `options` say, or continue `options.resume`."""
    run = None
    if options.resume:
        run = runs.open_to_resume(options.resume, "pretrain")
        options = config.resumed(options, run.config["asked"])
    elif not options.data:
        raise UsageError("name the images: folders, files, lists, tar shards or a named set such as cifar10")
    out = Path(options.out) if options.out else runs.default_folder("pretrain", options.method)
    if run is None:
        runs.check_free(out, overwrite=options.overwrite)
    check_length(steps=options.steps, epochs=options.epochs, budget=options.budget)
    device, autocast, precision = prepare(options.device, options.precision)

    source = open_unlabelled(options.data, data_root=Path(options.data_root), offline=options.offline, talk=talk)
    data = {"images": len(source), "fingerprint": fingerprint(source)}
    if run is not None and run.config["data"].get("fingerprint") != data["fingerprint"]:
        raise RunError(f"the images have changed since {run.path} was started: start a new run")
    derived = run.derived if run is not None else derive(options, source)
    talk.say(
        f"{derived['method']}: {derived['backbone']} on {len(source):,} images at {derived['image_size']} px, "
        f"patches of {derived['patch_size']} px, {device} in {precision}, batch {derived['batch_size']}, "
        f"lr {options.lr:g}, seed {options.seed}"
    )
    store = read_store(
        source,
        size=storage_size(derived["image_size"]),
        workers=options.workers or num_cores(),
        max_bad=options.max_bad,
        talk=talk,
    )

    torch.manual_seed(step_seed(options.seed, 0))
    method = networks.build(derived).to(device)
    assert isinstance(method, Selfie)
    optimizer = torch.optim.SGD(
        method.parameters(), lr=options.lr, momentum=0.9, nesterov=True, weight_decay=options.weight_decay
    )
    order = SampleOrder(len(store), derived["batch_size"], options.seed)

    def batch_of(step: int) -> tuple[torch.Tensor, ...]:
        return (store.take(order.batch(step)),)

    def loss_of(module: nn.Module) -> LossOf:
        assert isinstance(module, Selfie)
        return lambda pixels: module.loss(module.augment(pixels))

    if run is None:
        batch = tuple(tensor.to(device) for tensor in batch_of(0))
        with autocast():
            derived["micro_batch"] = options.micro_batch or micro_batch_for(
                method, loss_of(method), (batch[0][:4],), derived["batch_size"], device
            )
            step_seconds = seconds_a_step(method, loss_of, batch, derived["micro_batch"])
        derived["steps"] = num_steps(
            steps=options.steps,
            epochs=options.epochs,
            budget=options.budget,
            num_images=len(store),
            batch_size=derived["batch_size"],
            step_seconds=step_seconds,
        )
        say_length(derived, len(store), step_seconds, talk)
        run = runs.create(
            out,
            verb="pretrain",
            asked=dataclasses.asdict(options),
            overwrite=options.overwrite,
            derived=derived,
            data={**data, "unreadable": len(store.bad)},
        )
        talk.say(f"run: {run.path}")
    report_bad(store.bad, len(source), run.path / "bad_files.jsonl", talk)

    trained = train(
        method,
        optimizer,
        loss_of(method),
        batch_of,
        folder=run.path,
        total=derived["steps"],
        lr=options.lr,
        warmup=options.warmup_steps,
        seed=options.seed,
        micro_batch=derived["micro_batch"],
        save_every=options.save_every,
        autocast=autocast,
        talk=talk,
        what="pretraining",
        resume_hint=f"selfie pretrain --resume {run.path}",
        constants={"chance": method.chance},
    )
    header = {key: derived[key] for key in ("method", "backbone", "stem", "image_size", "patch_size", "steps")}
    save_weights(run.weights, method.state_dict(), header)
    measured = {**dataclasses.asdict(trained), "device": str(device), "precision": precision}
    run.finish({**measured, "threads": torch.get_num_threads()})
    return Pretrained(run=run.path, **dataclasses.asdict(trained))


def derive(options: PretrainOptions, source: Source) -> dict[str, Any]:
    """Everything that rebuilds the network, and the batch. Raises UsageError if sizes do not fit each other."""
    image_size = options.image_size or suggested_size(source)
    patch_size = options.patch_size or (8 if image_size <= 64 else 32)
    if image_size % patch_size or image_size // patch_size < 2:
        raise UsageError(
            f"--image-size {image_size} cannot be cut into patches of {patch_size} px: it must be a multiple of "
            f"--patch-size, at least twice as large (32 with 8, 224 with 32)"
        )
    if not 0 < options.selfie.mask_ratio < 1:
        raise UsageError(f"--mask-ratio {options.selfie.mask_ratio:g}: give a share between 0 and 1, such as 0.25")
    asked = options.selfie
    factorized = asked.positions == "row-column" or (asked.positions == "auto" and image_size // patch_size > 4)
    return {
        "method": options.method,
        "backbone": options.backbone,
        "stem": stem_for(patch_size),
        "image_size": image_size,
        "patch_size": patch_size,
        "batch_size": options.batch_size or (128 if image_size <= 64 else 512),
        "selfie": {
            "image_size": image_size,
            "patch_size": patch_size,
            "mask_ratio": asked.mask_ratio,
            "factorized_positions": factorized,
            "encoder_positions": asked.encoder_positions,
            "final_norm": asked.final_norm and options.backbone not in TORCHVISION,
            "logit_scale": asked.logit_scale,
            "flip": asked.flip,
            "min_crop": asked.min_crop,
        },
    }


def suggested_size(source: Source) -> int:
    """32, 64 or 224 px, from the median short side of up to 64 images spread over the source."""
    sides = []
    for index in range(0, len(source), -(-len(source) // 64)):
        try:
            with source.open(index) as image:
                sides.append(min(image.size))
        except UnreadableImage:
            continue
    if not sides:
        raise DataError(f"none of the images looked at can be read, the first is {source.names[0]}")
    median = statistics.median(sides)
    return 32 if median <= 48 else 64 if median <= 128 else 224


def say_length(derived: dict[str, Any], num_images: int, step_seconds: float, talk: Talk) -> None:
    steps, batch = derived["steps"], derived["batch_size"]
    estimate = steps * step_seconds
    pieces = "" if derived["micro_batch"] == batch else f" in pieces of {derived['micro_batch']}"
    shorter = ". Shorter: --budget 20m, --steps, a smaller --backbone" if estimate > 3600 else ""
    talk.say(
        f"{steps:,} steps of {batch} images{pieces} ({steps * batch / num_images:.1f} epochs): "
        f"about {duration(estimate)} at {batch / step_seconds:,.0f} images/s{shorter}"
    )
