"""selfie pretrain: unlabelled images in, a pretrained network out."""

import dataclasses
import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from selfie_cli import config, runs
from selfie_cli.config import PretrainOptions, flag_of, recipe_values
from selfie_cli.data.augment import plain_view
from selfie_cli.data.duplicates import FILE_NAME, marks_of, save_marks
from selfie_cli.data.sources import Source, fingerprint, open_unlabelled
from selfie_cli.data.store import read_store, report_bad, storage_size
from selfie_cli.errors import DataError, RunError, UnreadableImage, UsageError
from selfie_cli.evaluation.collapse import collapse_warning, feature_spread
from selfie_cli.methods.method import Method
from selfie_cli.methods.selfie import Selfie
from selfie_cli.models.resnet import TORCHVISION, stem_for
from selfie_cli.recipes import networks
from selfie_cli.talk import Talk
from selfie_cli.training.loop import LossOf, train
from selfie_cli.training.machine import duration, micro_batch_for, num_cores, prepare, seconds_a_step
from selfie_cli.training.optimizers import make_optimizer
from selfie_cli.training.schedule import SampleOrder, check_length, num_steps, step_seed
from selfie_cli.weights import save_weights

WATCHED = 256  # images whose features are looked at for collapse
FEWEST_WATCHED = 8  # fewer say nothing


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
        f"{derived['method']}, recipe {derived['recipe']}: {derived['backbone']} on {len(source):,} images at "
        f"{derived['image_size']} px, {device} in {precision}, batch {derived['batch_size']}, {derived['optimizer']}, "
        f"lr {derived['lr']:g}, seed {options.seed}"
    )
    talk.say(", ".join(f"{name} {config.shown(value)}" for name, value in derived[derived["method"]].items()))
    store = read_store(
        source,
        size=storage_size(derived["image_size"]),
        workers=options.workers or num_cores(),
        max_bad=options.max_bad,
        talk=talk,
    )

    torch.manual_seed(step_seed(options.seed, 0))
    method = networks.build_method(derived).to(device)

    def optimizer_of(module: nn.Module) -> torch.optim.Optimizer:
        return make_optimizer(derived["optimizer"], module, lr=derived["lr"], weight_decay=derived["weight_decay"])

    optimizer = optimizer_of(method)
    order = SampleOrder(len(store), derived["batch_size"], options.seed)

    def batch_of(step: int) -> tuple[torch.Tensor, ...]:
        return (store.take(order.batch(step)),)

    def loss_of(module: nn.Module) -> LossOf:
        assert isinstance(module, Method)
        return lambda pixels: module.loss(*module.augment(pixels))

    def halfway(module: nn.Module) -> None:
        assert isinstance(module, Method)
        module.after_step(0.5)

    watched = store.take(torch.arange(0, len(store), -(-len(store) // WATCHED))).to(device)
    alarms = 0

    def watch() -> dict[str, float]:
        nonlocal alarms
        with torch.no_grad(), autocast():
            method.eval()
            parts = watched.split(derived["micro_batch"])
            vectors = torch.cat([method.embeddings(plain_view(part, derived["image_size"])) for part in parts])
        method.train()
        if not vectors.isfinite().all():
            return {}  # the loop sees to that
        std, rank = feature_spread(vectors)
        warning = collapse_warning(std, rank, vectors.shape[1])
        alarms = alarms + 1 if warning else 0
        if warning and alarms == 2 and len(watched) >= FEWEST_WATCHED:  # once may be how a training begins
            talk.warn(warning)
        return {"feature_std": std, "effective_rank": rank}

    if run is None:
        batch = tuple(tensor.to(device) for tensor in batch_of(0))
        check_pieces(derived["batch_size"], options.micro_batch or derived["batch_size"], method)
        with autocast():
            derived["micro_batch"] = options.micro_batch or micro_batch_for(
                method, loss_of(method), (batch[0][:4],), derived["batch_size"], device
            )
            check_pieces(derived["batch_size"], derived["micro_batch"], method)
            step_seconds = seconds_a_step(method, loss_of, batch, derived["micro_batch"], optimizer_of, halfway)
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
    if not (run.path / FILE_NAME).is_file():
        save_marks(run.path / FILE_NAME, marks_of(store.pixels))
    report_bad(store.bad, len(source), run.path / "bad_files.jsonl", talk)

    trained = train(
        method,
        optimizer,
        loss_of(method),
        batch_of,
        folder=run.path,
        total=derived["steps"],
        lr=derived["lr"],
        warmup=derived["warmup_steps"],
        seed=options.seed,
        micro_batch=derived["micro_batch"],
        save_every=options.save_every,
        autocast=autocast,
        talk=talk,
        what="pretraining",
        resume_hint=f"selfie pretrain --resume {run.path}",
        after_step=method.after_step,
        watch=watch,
    )
    told = ("method", "recipe", "backbone", "stem", "image_size", "patch_size", "steps")
    header = {key: derived[key] for key in told if key in derived}
    save_weights(run.weights, method.export(), header)
    measured = {**dataclasses.asdict(trained), "device": str(device), "precision": precision}
    run.finish({**measured, "threads": torch.get_num_threads()})
    return Pretrained(run=run.path, **dataclasses.asdict(trained))


def check_pieces(batch_size: int, micro_batch: int, method: Method) -> None:
    """Raises UsageError if an image would go through the network by itself where it has to be told from others."""
    smallest = min(micro_batch, batch_size % micro_batch or micro_batch)
    if smallest < 2 and not isinstance(method, Selfie):
        raise UsageError(
            f"--batch-size {batch_size} in pieces of {micro_batch} leaves an image by itself, and this method tells "
            "images from each other: choose another --batch-size or --micro-batch"
        )


def derive(options: PretrainOptions, source: Source) -> dict[str, Any]:
    """Everything that rebuilds the network, and how it is trained: what was asked, else what the recipe says.

    Raises UsageError if sizes do not fit each other, or an option has no meaning for the method.
    """
    image_size = options.image_size or suggested_size(source)
    values = recipe_values(options.method, options.recipe, image_size)
    values["batch_size"] = batch_size = batch_size_for(options, values, len(source))
    if values.pop("lr_per_256_images", False):
        values["lr"] *= batch_size / 256
    if epochs := values.pop("warmup_epochs", None):
        values["warmup_steps"] = round(epochs * len(source) / batch_size)
    for owner in (options, options.selfie, options.byol):
        for field in dataclasses.fields(owner):
            asked = getattr(owner, field.name)
            if not field.metadata.get("recipe") or asked is None:
                continue
            if field.name not in values:
                raise UsageError(
                    f"{flag_of(field.name)} has no meaning for --method {options.method} with --recipe "
                    f"{options.recipe} at {image_size} px: leave it out"
                )
            values[field.name] = asked
    if options.backbone in TORCHVISION and options.selfie.final_norm is not None:
        raise UsageError(
            f"--final-norm has no meaning for --backbone {options.backbone}, which ends in a ReLU: leave it out"
        )
    training = {name: values.pop(name) for name in ("batch_size", "optimizer", "lr", "weight_decay", "warmup_steps")}
    if "positions" in values:
        values["factorized_positions"] = values.pop("positions") == "row-column"
    patch_size = patch_size_for(options, image_size)
    return {
        "method": options.method,
        "recipe": options.recipe,
        "backbone": options.backbone,
        "stem": stem_for(patch_size),
        "image_size": image_size,
        **({"patch_size": patch_size} if options.method == "selfie" else {}),
        **training,
        options.method: values,
    }


def batch_size_for(options: PretrainOptions, values: dict[str, Any], num_images: int) -> int:
    """The batch as asked, or the recipe's; where images are told from each other, no image may be in it twice.

    Raises UsageError if what was asked for is more than there are, or there is nothing to tell from each other.
    """
    alone = options.method == "selfie" and values["views"] == 1
    if alone:
        return int(options.batch_size or values["batch_size"])
    if num_images < 2:
        raise UsageError("one image: this method tells images from each other. Give it more, or take --recipe paper")
    if options.batch_size is not None and options.batch_size > num_images:
        raise UsageError(
            f"--batch-size {options.batch_size} is more than there are images ({num_images}), and this method tells "
            "the images of a batch from each other: leave it out, or choose a smaller one"
        )
    return int(options.batch_size or min(values["batch_size"], num_images))


def patch_size_for(options: PretrainOptions, image_size: int) -> int:
    """Raises UsageError if it does not divide the image, or is asked for where there are no patches."""
    patch_size = options.patch_size or (8 if image_size <= 64 else 32)
    if options.method != "selfie":
        if options.patch_size:
            raise UsageError(f"--patch-size has no meaning for --method {options.method}: leave it out")
        return patch_size
    if image_size % patch_size or image_size // patch_size < 2:
        raise UsageError(
            f"--image-size {image_size} cannot be cut into patches of {patch_size} px: it must be a multiple of "
            f"--patch-size, at least twice as large (32 with 8, 224 with 32)"
        )
    return patch_size


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
