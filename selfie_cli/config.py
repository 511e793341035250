"""Every option, once: name, type, default, help. The command line and the docs are made from these classes.

A config object stops at its recipe; below it, functions take explicit keyword arguments. It never changes after
parsing: what is derived from it (steps, learning rate, image size) is written to the run's config.json beside it.
No torch and no typer here, so that printing help stays fast.
"""

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal

from selfie_cli.option import Options, option

Backbone = Literal["resnetv2_50", "resnetv2_18", "resnetv2_10_w32", "resnetv2_18_w16", "resnet18", "resnet50"]
Device = Literal["auto", "cpu", "cuda", "mps"]
Precision = Literal["auto", "fp32", "bf16"]
Compile = Literal["auto", "on", "off"]
Features = Literal["whole", "patches", "pooled"]
Target = Literal["timm", "torchvision", "onnx", "safetensors"]

MOST_PIXELS = 4096
"""Of an image's side."""
MOST_FEATURES = 2**14
"""Of a layer of a head: a square one has a gigabyte."""
MOST_AT_ONCE = 2**20
"""Images of a batch."""
MOST_STEPS = 10**12
MOST_EPOCHS = 10**6
MOST_SEEDS = 1000
MOST_WORKERS = 1000


def from_recipe(help: str, **more: Any) -> Any:
    """A field that is left to `--recipe` unless it is given."""
    return option(None, help, recipe=True, **more)


TRAINING = "Training"
DATA = "Data"
RUN = "Run"
MACHINE = "Machine"
OUTPUT = "Output"


@dataclass(frozen=True, kw_only=True)
class OutputOptions(Options):
    json: bool = option(False, "Print one JSON document on stdout instead of a table.", panel=OUTPUT)
    quiet: bool = option(False, "No progress and no remarks on stderr; warnings and errors remain.", panel=OUTPUT)


COMPILE_HELP = "torch.compile: auto takes it on cuda, and for long embeddings."


@dataclass(frozen=True, kw_only=True)
class MachineOptions(OutputOptions):
    device: Device = option("auto", "Where to compute: auto takes cuda, then mps, then cpu.", panel=MACHINE)
    precision: Precision = option(
        "auto",
        "auto is bf16 on cuda; on a CPU that has it, whichever of bf16 and fp32 is measured to be faster in training, "
        "and bf16 where vectors stay the same.",
        panel=MACHINE,
    )
    workers: int | None = option(
        None, "Threads that decode images. Unset: one for each core.", panel=MACHINE, at_least=1, at_most=MOST_WORKERS
    )


@dataclass(frozen=True, kw_only=True)
class SourceOptions(MachineOptions):
    data_root: str = option("data", "Where named data sets lie, and are downloaded to.", panel=DATA)
    offline: bool = option(False, "Never use the network; a named set that is not there is an error.", panel=DATA)
    max_bad: float = option(
        0.1, "Stop if more than this share of the images cannot be read.", panel=DATA, at_least=0, at_most=1
    )


@dataclass(frozen=True, kw_only=True)
class DataOptions(SourceOptions):
    store: str | None = option(
        None, "Where decoded images are kept for later runs. Unset: selfie in the user's cache folder.", panel=DATA
    )
    store_gb: float | None = option(
        None,
        "Room for all that is kept there, in GB; 0 keeps nothing. Unset: 100, and at most half of the disk's room. "
        "Sets of up to 1 GB of pixels are held in memory instead.",
        panel=DATA,
        at_least=0,
    )


@dataclass(frozen=True, kw_only=True)
class TrainingOptions(DataOptions):
    """What every verb that trains has in common."""

    compile: Compile = option("auto", COMPILE_HELP, panel=MACHINE)
    deterministic: bool = option(
        False,
        "The same weights from the same command on the same machine, also on cuda: nothing is chosen by measured speed "
        "or free memory, nothing compiled, and kernels that differ from run to run are avoided.",
        panel=MACHINE,
    )
    out: str | None = option(None, "The run's folder. Unset: runs/<verb>-<method>-<time>.", panel=RUN)
    overwrite: bool = option(False, "Replace the run in --out, if there is one.", panel=RUN)
    resume: str | None = option(None, "Go on with this stopped run; everything else comes from its config.", panel=RUN)
    log: Literal["tensorboard"] | None = option(
        None, "Also write metrics for TensorBoard, to tensorboard/ in the run's folder, or in each cell's.", panel=RUN
    )
    report: bool = option(True, "Write the run's page, report.html, at the end.", panel=RUN)
    save_every: float = option(
        60.0, "Seconds between two saved states (what --resume continues from).", panel=RUN, at_least=0
    )
    seed: int = option(0, "Every random draw is a function of seed, step and sample.", panel=TRAINING, at_least=0)
    steps: int | None = option(None, "Length in steps.", panel=TRAINING, at_least=1, at_most=MOST_STEPS)
    epochs: float | None = option(
        None,
        "Length in passes over the images. Unset: 100, at least 2,000 and at most 120,000 steps.",
        panel=TRAINING,
        above=0,
        at_most=MOST_EPOCHS,
    )
    budget: str | None = option(
        None, "Length in time, like 90s, 20m or 2h: the schedule is fitted to the first steps' speed.", panel=TRAINING
    )
    batch_size: int | None = option(
        None,
        "Images a step. Unset: 128 up to 64 px, 512 above.",
        panel=TRAINING,
        at_least=1,
        at_most=MOST_AT_ONCE,
    )
    micro_batch: int | None = option(
        None,
        "Images that go through the network at once; a batch is made of several. Unset: what memory allows.",
        panel=TRAINING,
        at_least=1,
        at_most=MOST_AT_ONCE,
    )


@dataclass(frozen=True, kw_only=True)
class SelfieOptions(Options):
    """Selfie (Trinh, Luong, Le 2019). What the paper leaves open is an option here."""

    mask_ratio: float | None = from_recipe("Share of the patches that is masked out.", above=0, at_most=0.95)
    positions: Literal["place", "row-column"] | None = from_recipe("A learned vector a place, or row + column.")
    encoder_positions: bool | None = from_recipe("Add positions to the visible patches, too, not only to the queries.")
    final_norm: bool | None = from_recipe("Batch norm and ReLU after the last stage, before pooling (resnetv2 only).")
    logit_scale: Literal["dot", "sqrt", "cosine"] | None = from_recipe(
        "Logits: the raw dot product, divided by sqrt(width), or cosine / learned temperature."
    )
    flip: bool | None = from_recipe("Mirror half of the images.")
    attraction: float | None = from_recipe(
        "Weight of the similarity of an image's views against the coding rate of the batch.", above=0
    )
    distortion: float | None = from_recipe("Allowed distortion of the coding rate.", above=0)


@dataclass(frozen=True, kw_only=True)
class ByolOptions(Options):
    """BYOL (Grill et al. 2020)."""

    tau: float | None = from_recipe(
        "The target network keeps this share of itself at first; a cosine takes it to 1.", at_least=0, at_most=1
    )


DATA_HELP = (
    "Folders, image files, lists (.txt), tar shards, parquet files, named sets such as cifar10, or "
    "hf://datasets/owner/name."
)
METHODS = ("selfie", "byol", "simclr")
VIEWS = "Views"


@dataclass(frozen=True, kw_only=True)
class PretrainOptions(TrainingOptions):
    data: tuple[str, ...] = option((), DATA_HELP, argument=True)
    method: Literal["selfie", "byol", "simclr"] = option("selfie", "How to pretrain.")
    recipe: Literal["best", "paper"] = option(
        "best", "Values of all options that are not given: what serves best here, or the method's own paper."
    )
    backbone: Backbone = option(
        "resnetv2_50",
        "resnetv2_50 is the paper's; resnetv2_10_w32 suits a laptop; resnet18 and resnet50 are torchvision's.",
    )
    image_size: int | None = option(
        None, "Side in pixels. Unset: 32, 64 or 224, from the size of the images.", at_least=1, at_most=MOST_PIXELS
    )
    patch_size: int | None = option(
        None, "Side of a patch, for --method selfie. Unset: 8 up to 64 px, 32 above.", at_least=1
    )
    batch_size: int | None = from_recipe("Images a step.", panel=TRAINING, at_least=1, at_most=MOST_AT_ONCE)
    optimizer: Literal["sgd", "lars", "adamw"] | None = from_recipe("How weights are updated.", panel=TRAINING)
    lr: float | None = from_recipe("Maximum learning rate, after the warm-up.", panel=TRAINING, above=0)
    weight_decay: float | None = from_recipe("L2 penalty.", panel=TRAINING, at_least=0)
    warmup_steps: int | None = from_recipe(
        "Steps over which the learning rate rises.", panel=TRAINING, at_least=0, at_most=MOST_STEPS
    )
    hidden: int | None = from_recipe(
        "Hidden width of projector and predictor.", panel=TRAINING, at_least=1, at_most=MOST_FEATURES
    )
    width: int | None = from_recipe("What the projector ends in.", panel=TRAINING, at_least=2, at_most=MOST_FEATURES)
    temperature: float | None = from_recipe("Cosines are divided by it before the softmax.", panel=TRAINING, above=0)
    num_views: int | None = from_recipe("Views per image.", panel=VIEWS, at_least=2, at_most=64)
    view_scale: float | None = from_recipe(
        "Side of a view as a share of the image's; a step costs its square.", panel=VIEWS, above=0, at_most=1
    )
    num_stages: Literal[3, 4] | None = from_recipe(
        "Stages of the network that are pretrained; a fourth stage that is not starts fresh in finetuning.",
        panel=TRAINING,
    )
    min_crop: float | None = from_recipe("Smallest area of the random resized crop.", panel=VIEWS, above=0, at_most=1)
    max_crop: float | None = from_recipe("Largest area of the random resized crop.", panel=VIEWS, above=0, at_most=1)
    jitter: float | None = from_recipe("Strength of the colour jitter.", panel=VIEWS, at_least=0, at_most=2)
    blur: float | None = from_recipe(
        "Strength of the blur: how often it is applied.", panel=VIEWS, at_least=0, at_most=1
    )
    solarize: float | None = from_recipe(
        "Share of the second views that are solarized.", panel=VIEWS, at_least=0, at_most=1
    )
    profile: bool = option(False, "Trace five steps into <run>/trace.json with torch's profiler.", panel=RUN)
    selfie: SelfieOptions = dataclasses.field(default_factory=SelfieOptions)
    byol: ByolOptions = dataclasses.field(default_factory=ByolOptions)


FROM_HELP = (
    "Weights: a run's folder, hf://owner/name[@revision], 'bundled' (the small network in this package) or 'none'. "
    "Unset: the newest finished pretraining under ./runs, else bundled."
)


EXCLUDE_SEEN_HELP = (
    "Leave out test images that were seen in pretraining or are like training images, copies and near-duplicates. "
    "Unset: they are only told."
)


@dataclass(frozen=True, kw_only=True)
class LabelOptions(TrainingOptions):
    """What the verbs that train on labels have in common."""

    dataset: str | None = option(
        None,
        "A folder with a subfolder a class, or with train/ and test/ of such; tar shards; parquet files; a named set; "
        "or hf://datasets/owner/name.",
    )
    exclude_seen: bool = option(False, EXCLUDE_SEEN_HELP, panel=DATA)
    backbone: Backbone | None = option(None, "Only with --from none; otherwise the pretrained network decides.")
    image_size: int | None = option(
        None,
        "Only with --from none; otherwise the pretrained network decides.",
        at_least=1,
        at_most=MOST_PIXELS,
    )
    lr: str = option(
        "0.1",
        "Maximum learning rate; several (0.03,0.1,0.3) are tried on a held-out fifth of the labels, for each arm.",
        panel=TRAINING,
    )
    weight_decay: float = option(5e-4, "L2 penalty, on every weight.", panel=TRAINING, at_least=0)
    warmup_steps: int = option(
        100, "Steps over which the learning rate rises.", panel=TRAINING, at_least=0, at_most=MOST_STEPS
    )
    min_crop: float = option(
        0.35, "Smallest area of the random resized crop, above 64 px.", panel=TRAINING, above=0, at_most=1
    )
    check_length: bool = option(
        True,
        "Train each arm for half of the steps, too, on the first seed's labels but a fifth, and say whether it still "
        "gained from the other half.",
        panel=TRAINING,
    )


@dataclass(frozen=True, kw_only=True)
class FinetuneOptions(LabelOptions):
    fraction: float = option(
        1.0, "Share of the training labels to use: stratified, seeded, nested.", above=0, at_most=1
    )
    from_: str | None = option(None, FROM_HELP)
    seeds: int = option(
        1,
        "How many subsets and initializations to try; three or more give an interval.",
        at_least=1,
        at_most=MOST_SEEDS,
    )
    baseline: bool = option(True, "Train the same network without pretraining beside it.")
    arch: Literal["resnet", "hybrid"] = option(
        "resnet",
        "resnet has four stages on whole images; hybrid keeps Selfie's own patch network and attention pooling.",
    )


@dataclass(frozen=True, kw_only=True)
class CurveOptions(LabelOptions):
    from_: tuple[str, ...] = option((), FROM_HELP + " Give it again for each further run to compare.")
    fractions: str = option("0.05,0.2,1", "Shares of the training labels: stratified, seeded, nested.")
    seeds: str = option(
        "3", "How many subsets and initializations: one number, or one for each fraction (5,3,3). Three give intervals."
    )
    compare: Literal["imagenet"] | None = option(
        None, "Also finetune torchvision's ImageNet weights, which are downloaded from the Hugging Face Hub."
    )


@dataclass(frozen=True, kw_only=True)
class PredictOptions(MachineOptions):
    run: str = option("", "A finetuned run: its folder, or hf://owner/name[@revision].", argument=True)
    paths: tuple[str, ...] = option((), "Image files, folders, or - for paths on stdin.", argument=True)
    out: str | None = option(None, "Write a .csv or .jsonl file instead of JSON Lines on stdout.")
    overwrite: bool = option(False, "Replace --out if it exists.")
    strict: bool = option(False, "Exit 1 if any image cannot be read.")
    compile: Compile = option("auto", COMPILE_HELP, panel=MACHINE)
    batch_size: int | None = option(
        None,
        "Images that go through the network at once. Unset: what suits the device.",
        panel=MACHINE,
        at_least=1,
        at_most=MOST_AT_ONCE,
    )


@dataclass(frozen=True, kw_only=True)
class EmbedOptions(MachineOptions):
    paths: tuple[str, ...] = option((), "Image files, folders, or - for paths on stdin.", argument=True)
    from_: str | None = option(None, FROM_HELP)
    out: str | None = option(
        None,
        "A .parquet, .npy, .jsonl, .csv or .safetensors file, or a folder (a name without a suffix), which gets one "
        "parquet file per process. Unset: JSON Lines on stdout.",
    )
    overwrite: bool = option(False, "Replace --out if it exists.")
    features: Features | None = option(
        None,
        "Of a Selfie run with --recipe paper: the patch network over the whole image, its mean over patches, or the "
        "attention-pooled vector. Unset: whole.",
    )
    precision: Literal[Precision, "int8"] = option(  # type: ignore[assignment]  # one more than elsewhere
        "auto",
        "auto is bf16 where the hardware has it and vectors stay the same. int8, on a CPU with VNNI, is faster and "
        "coarser: its scales suit the first images of the job.",
        panel=MACHINE,
    )
    strict: bool = option(False, "Exit 1 if any image cannot be read.")
    compile: Compile = option("auto", COMPILE_HELP, panel=MACHINE)
    batch_size: int | None = option(
        None,
        "Images that go through the network at once. Unset: what suits the device.",
        panel=MACHINE,
        at_least=1,
        at_most=MOST_AT_ONCE,
    )


@dataclass(frozen=True, kw_only=True)
class EvalOptions(DataOptions):
    exclude_seen: bool = option(False, EXCLUDE_SEEN_HELP, panel=DATA)
    run: str | None = option(
        None,
        "A run's folder, hf://owner/name[@revision], or bundled. Unset: the newest finished pretraining, else bundled.",
        argument=True,
    )
    dataset: str | None = option(None, "Labelled images, as for finetune.")
    features: Features | None = option(None, "As for embed.")
    k: int = option(20, "Neighbours of the kNN classifier.", at_least=1)
    temperature: float = option(0.07, "Temperature of its weights.", above=0)
    seed: int = option(0, "Seed of the untrained network, the masks and the probe's held-out part.", at_least=0)
    batch_size: int = option(
        128,
        "Images that go through the network at once.",
        panel=MACHINE,
        at_least=1,
        at_most=MOST_AT_ONCE,
    )


@dataclass(frozen=True, kw_only=True)
class DemoOptions(OutputOptions):
    out: str = option("runs/demo", "Where the demo's images and runs go.")
    overwrite: bool = option(False, "Replace an earlier demo in --out.")
    seeds: int = option(3, "Subsets and initializations to finetune.", at_least=1, at_most=MOST_SEEDS)


RUN_HELP = "A run's folder, hf://owner/name[@revision], or bundled."


@dataclass(frozen=True, kw_only=True)
class SimilarOptions(MachineOptions):
    query: tuple[str, ...] = option((), "Image files to find the like of.", argument=True)
    in_: str | None = option(None, "Vectors from selfie embed: a .parquet, .npy or .jsonl file, or a folder.")
    from_: str | None = option(None, "Weights to embed the query with. Unset: those that the file was made with.")
    top: int = option(10, "How many to show: matches of each query, or groups.", at_least=1)
    duplicates: bool = option(False, "Show groups of near-duplicates within --in instead of answering a query.")
    threshold: float | None = option(
        None, "Cosine from which two images count as near-duplicates. Unset: 0.998.", above=-1, at_most=1
    )


@dataclass(frozen=True, kw_only=True)
class DoctorOptions(SourceOptions):
    data: tuple[str, ...] = option((), DATA_HELP, argument=True)
    max_bad: float = option(
        0.0, "Exit 1 if more than this share of the images cannot be read.", panel=DATA, at_least=0, at_most=1
    )
    time: bool = option(True, "Take a few training steps, to say how long pretraining takes here.")
    backbone: Backbone | None = option(
        None, "The network to time. Unset: resnetv2_50, and where it takes over an hour resnetv2_10_w32 as well."
    )


@dataclass(frozen=True, kw_only=True)
class ReportOptions(SourceOptions):
    run: str = option("", RUN_HELP, argument=True)
    dataset: str | None = option(
        None, "Images to show: a labelled folder, a named set, or any images. Unset: what the run was made with."
    )
    out: str | None = option(None, "The page. Unset: report.html in the run's folder.")
    overwrite: bool = option(False, "Replace --out if it exists; the run's own page is always replaced.")
    images: int | None = option(
        None,
        "How many images to embed for the map and the neighbours, at most. Unset: 1,000, or what ten seconds allow.",
        at_least=2,
    )


@dataclass(frozen=True, kw_only=True)
class ExportOptions(OutputOptions):
    run: str = option("", RUN_HELP, argument=True)
    to: Target | None = option(
        None,
        "What shall read it: timm and torchvision take networks with a 7x7 stem, onnx (an extra) and safetensors all.",
    )
    out: str | None = option(
        None, "The file. Unset: <run>-<to>.safetensors, or <run>.onnx, or <run>.safetensors, in the current folder."
    )
    overwrite: bool = option(False, "Replace --out if it exists.")


@dataclass(frozen=True, kw_only=True)
class PushOptions(OutputOptions):
    run: str = option("", RUN_HELP, argument=True)
    repo: str = option("", "owner/name on the Hugging Face Hub.", argument=True)
    private: bool | None = option(
        None, "Who may read a repository that has to be made. Unset: you are asked.", off="public"
    )
    revision: str | None = option(None, "The branch to push to, made if it is not there. Unset: main.")
    dry_run: bool = option(False, "Only show what would be uploaded.")


@dataclass(frozen=True, kw_only=True)
class PullOptions(OutputOptions):
    repo: str = option("", "owner/name on the Hugging Face Hub, or hf://owner/name[@revision].", argument=True)
    revision: str | None = option(None, "A branch, tag or commit. Unset: main.")
    out: str | None = option(None, "The run's folder. Unset: runs/<name>.")
    overwrite: bool = option(False, "Replace the run in --out, if there is one.")
    offline: bool = option(False, "Take only what is in the Hub's cache on this machine.")
