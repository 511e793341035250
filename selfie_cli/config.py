"""Every option, once: name, type, default, help. The command line and the docs are made from these classes.

A config object stops at its recipe; below it, functions take explicit keyword arguments. It never changes after
parsing: what is derived from it (steps, learning rate, image size) is written to the run's config.json beside it.
No torch and no typer here, so that printing help stays fast.
"""

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal

from selfie_cli.errors import UsageError

Backbone = Literal["resnetv2_50", "resnetv2_18", "resnetv2_18_w16", "resnet18", "resnet50"]
Device = Literal["auto", "cpu", "cuda", "mps"]
Precision = Literal["auto", "fp32", "bf16"]
Features = Literal["whole", "patches", "pooled"]


def option(default: Any, help: str, *, panel: str | None = None, argument: bool = False) -> Any:
    """A field: `panel` groups it in the help, `argument` makes it positional."""
    return dataclasses.field(default=default, metadata={"help": help, "panel": panel, "argument": argument})


TRAINING = "Training"
DATA = "Data"
RUN = "Run"
MACHINE = "Machine"
OUTPUT = "Output"


@dataclass(frozen=True, kw_only=True)
class OutputOptions:
    json: bool = option(False, "Print one JSON document on stdout instead of a table.", panel=OUTPUT)
    quiet: bool = option(False, "No progress and no remarks on stderr; warnings and errors remain.", panel=OUTPUT)


@dataclass(frozen=True, kw_only=True)
class MachineOptions(OutputOptions):
    device: Device = option("auto", "Where to compute: auto takes cuda, then mps, then cpu.", panel=MACHINE)
    precision: Precision = option("auto", "auto is bf16 autocast on cuda and fp32 elsewhere.", panel=MACHINE)
    workers: int | None = option(None, "Threads that decode images. Unset: one for each core.", panel=MACHINE)


@dataclass(frozen=True, kw_only=True)
class DataOptions(MachineOptions):
    data_root: str = option("data", "Where named data sets lie, and are downloaded to.", panel=DATA)
    offline: bool = option(False, "Never use the network; a named set that is not there is an error.", panel=DATA)
    max_bad: float = option(0.1, "Stop if more than this share of the images cannot be read.", panel=DATA)


@dataclass(frozen=True, kw_only=True)
class TrainingOptions(DataOptions):
    """What every verb that trains has in common."""

    out: str | None = option(None, "The run's folder. Unset: runs/<verb>-<method>-<time>.", panel=RUN)
    overwrite: bool = option(False, "Replace the run in --out, if there is one.", panel=RUN)
    resume: str | None = option(None, "Go on with this stopped run; everything else comes from its config.", panel=RUN)
    save_every: float = option(60.0, "Seconds between two saved states (what --resume continues from).", panel=RUN)
    seed: int = option(0, "Every random draw is a function of seed, step and sample.", panel=TRAINING)
    steps: int | None = option(None, "Length in steps.", panel=TRAINING)
    epochs: float | None = option(
        None, "Length in passes over the images. Unset: 100, at least 2,000 and at most 120,000 steps.", panel=TRAINING
    )
    budget: str | None = option(
        None, "Length in time, like 90s, 20m or 2h: the schedule is fitted to the first steps' speed.", panel=TRAINING
    )
    batch_size: int | None = option(None, "Images a step. Unset: 128 up to 64 px, 512 above.", panel=TRAINING)
    micro_batch: int | None = option(
        None,
        "Images that go through the network at once; a batch is made of several. Unset: what memory allows.",
        panel=TRAINING,
    )
    weight_decay: float = option(1e-4, "L2 penalty, on every weight.", panel=TRAINING)


@dataclass(frozen=True, kw_only=True)
class SelfieOptions:
    """Selfie (Trinh, Luong, Le 2019). What the paper leaves open is an option here."""

    mask_ratio: float = option(0.25, "Share of the patches that is masked out.")
    positions: Literal["auto", "place", "row-column"] = option(
        "auto", "A learned vector a place, or row + column; auto: place up to 4x4 grids, row-column beyond."
    )
    encoder_positions: bool = option(True, "Add positions to the visible patches, too, not only to the queries.")
    final_norm: bool = option(True, "Batch norm and ReLU after the third stage, before pooling (resnetv2 only).")
    logit_scale: Literal["dot", "sqrt", "cosine"] = option(
        "sqrt", "Logits: the raw dot product, divided by sqrt(width), or cosine / learned temperature."
    )
    flip: bool = option(True, "Mirror half of the images.")
    min_crop: float = option(0.5, "Smallest area of the random resized crop, above 64 px.")


@dataclass(frozen=True, kw_only=True)
class PretrainOptions(TrainingOptions):
    data: tuple[str, ...] = option(
        (), "Folders, image files, lists (.txt), tar shards or named sets such as cifar10.", argument=True
    )
    method: Literal["selfie"] = option("selfie", "How to pretrain.")
    backbone: Backbone = option(
        "resnetv2_50", "resnetv2_50 is the paper's; resnetv2_18_w16 suits a laptop; resnet18 and resnet50 are torchvision's."
    )
    image_size: int | None = option(None, "Side in pixels. Unset: 32, 64 or 224, from the size of the images.")
    patch_size: int | None = option(None, "Side of a patch. Unset: 8 up to 64 px, 32 above.")
    lr: float = option(0.1, "Maximum learning rate, after the warm-up.", panel=TRAINING)
    warmup_steps: int = option(100, "Steps over which the learning rate rises.", panel=TRAINING)
    selfie: SelfieOptions = dataclasses.field(default_factory=SelfieOptions)


FROM_HELP = "Weights: a run's folder, 'bundled' (the small network in this package) or 'none'. Unset: the newest finished pretraining under ./runs, else bundled."


@dataclass(frozen=True, kw_only=True)
class FinetuneOptions(TrainingOptions):
    dataset: str | None = option(None, "A folder with a subfolder a class (or train/ and test/ of them), or a named set.")
    fraction: float = option(1.0, "Share of the training labels to use: stratified, seeded, nested.")
    from_: str | None = option(None, FROM_HELP)
    seeds: int = option(1, "How many subsets and initializations to try; three or more give an interval.")
    baseline: bool = option(True, "Train the same network without pretraining beside it.")
    backbone: Backbone | None = option(None, "Only with --from none; otherwise the pretrained network decides.")
    image_size: int | None = option(None, "Only with --from none; otherwise the pretrained network decides.")
    lr: str = option("0.1", "Maximum learning rate; several (0.03,0.1,0.3) are tried on a held-out fifth of the labels, for each arm.", panel=TRAINING)
    warmup_steps: int = option(100, "Steps over which the learning rate rises.", panel=TRAINING)
    min_crop: float = option(0.35, "Smallest area of the random resized crop, above 64 px.", panel=TRAINING)


@dataclass(frozen=True, kw_only=True)
class PredictOptions(MachineOptions):
    run: str = option("", "A finetuned run's folder.", argument=True)
    paths: tuple[str, ...] = option((), "Image files, folders, or - for paths on stdin.", argument=True)
    out: str | None = option(None, "Write a .csv or .jsonl file instead of JSON Lines on stdout.")
    overwrite: bool = option(False, "Replace --out if it exists.")
    strict: bool = option(False, "Exit 1 if any image cannot be read.")
    batch_size: int = option(64, "Images that go through the network at once.", panel=MACHINE)


@dataclass(frozen=True, kw_only=True)
class EmbedOptions(MachineOptions):
    paths: tuple[str, ...] = option((), "Image files, folders, or - for paths on stdin.", argument=True)
    from_: str | None = option(None, FROM_HELP)
    out: str | None = option(None, "A .npy, .jsonl, .csv or .safetensors file. Unset: JSON Lines on stdout.")
    overwrite: bool = option(False, "Replace --out if it exists.")
    features: Features | None = option(
        None,
        "Of a Selfie run: the patch network over the whole image, its mean over patches, or the attention-pooled "
        "vector. Unset: whole.",
    )
    strict: bool = option(False, "Exit 1 if any image cannot be read.")
    batch_size: int = option(64, "Images that go through the network at once.", panel=MACHINE)


@dataclass(frozen=True, kw_only=True)
class EvalOptions(DataOptions):
    run: str | None = option(None, "A run's folder, or bundled. Unset: the newest finished pretraining.", argument=True)
    dataset: str | None = option(None, "A folder with a subfolder a class, or a named set.")
    features: Features | None = option(None, "As for embed.")
    k: int = option(20, "Neighbours of the kNN classifier.")
    temperature: float = option(0.07, "Temperature of its weights.")
    seed: int = option(0, "Seed of the untrained network, the masks and the probe's held-out part.")
    batch_size: int = option(128, "Images that go through the network at once.", panel=MACHINE)


@dataclass(frozen=True, kw_only=True)
class DemoOptions(OutputOptions):
    out: str = option("runs/demo", "Where the demo's images and runs go.")
    overwrite: bool = option(False, "Replace an earlier demo in --out.")
    seeds: int = option(3, "Subsets and initializations to finetune.")


# What a resumed run may be given anew; the rest comes from its config.
PER_INVOCATION = ("resume", "device", "workers", "save_every", "json", "quiet", "out", "overwrite")


def resumed(given: Any, asked: dict[str, Any]) -> Any:
    """The options of a stopped run, taken from its config, with what this invocation may change taken from `given`.

    Raises UsageError if `given` asks for anything else than the run did, or the config lacks an option.
    """
    values: dict[str, Any] = {}
    for field in dataclasses.fields(given):
        now = getattr(given, field.name)
        if field.name in PER_INVOCATION:
            values[field.name] = now
            continue
        default = field.default if field.default is not dataclasses.MISSING else field.default_factory()  # type: ignore[misc]
        if field.name not in asked:
            raise UsageError(f"the run's config lacks {field.name!r}: it was written by another version, start a new run")
        then = asked[field.name]
        if dataclasses.is_dataclass(default):
            then = type(default)(**then)  # type: ignore[operator]
        elif isinstance(default, tuple):
            then = tuple(then)
        if now not in (default, then):
            flag = "--" + field.name.rstrip("_").replace("_", "-")
            raise UsageError(f"{flag} cannot change when a run is resumed: leave it out, or start a new run")
        values[field.name] = then
    return type(given)(**values)
