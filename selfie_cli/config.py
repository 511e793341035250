"""Every option, once: name, type, default, help. The command line and the reference page are made from these classes.

A class `<Verb>Options` holds the options of one verb; its docstring is the help of that verb. An options object never
changes after parsing, and goes no deeper than `commands`. This module imports neither torch nor typer.
"""

from typing import TYPE_CHECKING, Any, Literal

from selfie_cli.option import BYOL, DATA, MACHINE, OUTPUT, RUN, SELFIE, TRAINING, VIEWS, Options, option
from selfie_cli.recipes import METHODS

Backbone = Literal["resnetv2_50", "resnetv2_18", "resnetv2_10_w32", "resnetv2_18_w16", "resnet18", "resnet50"]
Device = Literal["auto", "cpu", "cuda", "mps"]
Precision = Literal["auto", "fp32", "bf16"]
Compile = Literal["auto", "on", "off"]
Features = Literal["whole", "patches", "pooled"]
Target = Literal["timm", "torchvision", "onnx", "safetensors"]
if TYPE_CHECKING:
    MethodName = str
else:
    MethodName = Literal[tuple(METHODS)]

MOST_PIXELS = 4096
"""Largest supported image side, in pixels."""
MOST_FEATURES = 2**14
"""Largest width of a head's layer. A square layer of this width has one gigabyte of weights."""
MOST_AT_ONCE = 2**20
"""Largest number of images in a batch."""
MOST_STEPS = 10**12
MOST_SEEDS = 1000

BATCH: dict[str, Any] = {"at_least": 1, "at_most": MOST_AT_ONCE}
WIDTH: dict[str, Any] = {"at_most": MOST_FEATURES, "panel": TRAINING}
WARMUP: dict[str, Any] = {"at_least": 0, "at_most": MOST_STEPS, "panel": TRAINING}
FRACTION: dict[str, Any] = {"above": 0, "at_most": 1}
SHARE: dict[str, Any] = {"at_least": 0, "at_most": 1}
SIDE: dict[str, Any] = {"at_least": 1, "at_most": MOST_PIXELS}
SEEDS: dict[str, Any] = {"at_least": 1, "at_most": MOST_SEEDS}
PACKED = (".parquet", ".tar")  # suffixes of files that hold many images
PACKED_FILES = " or ".join(suffix[1:] for suffix in PACKED) + " file"
DATA_HELP = f"Folders, images, lists (.txt), {PACKED_FILES}s, named sets (cifar10), hf://datasets/owner/name."
WEIGHTS = "a run's folder, hf://owner/name[@revision] (also timm's), a .safetensors file, imagenet, bundled"
FROM_HELP = f"Weights: {WEIGHTS} or none. Default: the newest finished pretraining run in ./runs, else bundled."
PATHS_HELP = "Image files, folders, lists (.txt), or - to read paths from stdin."
RUN_HELP = "A run's folder, hf://owner/name[@revision], or bundled."
WEIGHTS_HELP = f"Weights: {WEIGHTS}."
REPLACE_HELP = "Replace an existing --out."
COMPILE_HELP = "Use torch.compile. auto: on cuda, and for long embedding jobs."
EXCLUDE_SEEN_HELP = "Leave out test images seen in (pre)training: copies and near-duplicates. Default: only warn."
IMAGE_SIZE_HELP = "Image side in pixels, with --from none or weights that are not selfie's; otherwise the run decides."


class OutputOptions(Options):
    json: bool = option(False, "Print one JSON document to stdout instead of tables.", OUTPUT)
    quiet: bool = option(False, "Print only warnings and errors to stderr, no progress.", OUTPUT)


class MachineOptions(OutputOptions):
    device: Device = option("auto", "Device to compute on. auto: cuda if available, else mps, else cpu.", MACHINE)
    precision: Precision = option(
        "auto",
        "auto: bf16 on cuda. On a CPU with bf16, training uses bf16 or fp32, whichever is measured to be faster, "
        "predict uses bf16 if the vectors stay the same, and other verbs use fp32.",
        MACHINE,
    )
    workers: int | None = option(None, "Decoding threads. Default: one per core.", MACHINE, at_least=1, at_most=1000)


class SourceOptions(MachineOptions):
    data_root: str = option("data", "Folder of named data sets, which are downloaded into it.", DATA)
    offline: bool = option(False, "Never use the network. A missing named data set is an error.", DATA)
    max_bad: float = option(0.1, "Stop if more than this fraction of the images is unreadable.", DATA, **SHARE)


class DataOptions(SourceOptions):
    store: str | None = option(None, "Folder that caches decoded images. Default: in the user's cache folder.", DATA)
    store_gb: float | None = option(
        None,
        "Size limit of that cache in GB; 0 disables it. Default: 100, and at most half of the free disk space. "
        "Sets of up to 1 GB of decoded pixels are kept in memory instead.",
        DATA,
        at_least=0,
    )


class TrainingOptions(DataOptions):
    """Options of every verb that trains."""

    compile: Compile = option("auto", COMPILE_HELP, MACHINE)
    deterministic: bool = option(
        False,
        "Give the same weights from the same command on the same machine, also on cuda: choose nothing by measured "
        "speed or free memory, compile nothing, and avoid nondeterministic kernels.",
        MACHINE,
    )
    out: str | None = option(None, "Folder of the run. Default: runs/<verb>-<method>-<time>.", RUN)
    overwrite: bool = option(False, REPLACE_HELP, RUN)
    resume: str | None = option(None, "Continue this stopped run. All other options come from its config.", RUN)
    log: Literal["tensorboard"] | None = option(None, "Also write TensorBoard files, to <run>/tensorboard.", RUN)
    report: bool = option(True, "Write the run's HTML page, report.html, at the end.", RUN)
    save_every: float = option(60.0, "Seconds between checkpoints, used by --resume.", RUN, at_least=0)
    seed: int = option(0, "Seed of all random draws.", TRAINING, at_least=0)
    steps: int | None = option(None, "Number of training steps.", TRAINING, at_least=1, at_most=MOST_STEPS)
    epochs: float | None = option(
        None, "Epochs. Default: 100, at least 2,000 steps (finetune: 256,000 images).", TRAINING, above=0, at_most=10**6
    )
    budget: str | None = option(None, "Time (90s, 20m, 2h); the schedule fits the first steps' speed.", TRAINING)
    batch_size: int | None = option(None, "Images per step. Default: 32 to 512, by size and labels.", TRAINING, **BATCH)
    micro_batch: int | None = option(None, "Images per forward pass. Default: what fits in memory.", TRAINING, **BATCH)


def from_recipe(help: str, panel: str = SELFIE, **limits: Any) -> Any:
    """Return an option whose default is the recipe's value (`--recipe`)."""
    return option(None, help, panel, recipe=True, **limits)


class PretrainOptions(TrainingOptions):
    """Pretrain a network on unlabelled images: folders, files, lists, tar shards or named data sets."""

    data: tuple[str, ...] = option((), DATA_HELP, argument=True)
    method: MethodName = option("selfie", "Pretraining method.")
    recipe: Literal["best", "paper"] = option(
        "best", "Values of options that are not given: chosen by measuring Selfie, or those of the method's paper."
    )
    from_: str = option("none", f"Weights that the encoder starts from: {WEIGHTS} or none. They decide the backbone.")
    backbone: Backbone | None = option(
        None,
        "Network. resnetv2_50: the paper's. resnetv2_10_w32: for laptops. resnet18, resnet50: torchvision's. Default: "
        "that of --from, else resnetv2_50.",
    )
    image_size: int | None = option(
        None, "Image side in pixels. Default: that of --from, else 32, 64 or 224, by the images' sizes.", **SIDE
    )
    patch_size: int | None = option(
        None, "Patch side, for Selfie. Default: that of --from, else 8 up to 64 px, 32 above.", at_least=1
    )
    batch_size: int | None = from_recipe("Images per step.", TRAINING, **BATCH)
    optimizer: Literal["sgd", "lars", "adamw"] | None = from_recipe("Optimizer.", TRAINING)
    lr: float | None = from_recipe("Peak learning rate, after the warm-up.", TRAINING, above=0)
    weight_decay: float | None = from_recipe("Weight decay (L2 penalty).", TRAINING, at_least=0)
    warmup_steps: int | None = from_recipe("Steps of linear learning rate warm-up.", **WARMUP)
    hidden: int | None = from_recipe("Hidden width of the projector and the predictor.", at_least=1, **WIDTH)
    width: int | None = from_recipe("Output width of the projector.", at_least=2, **WIDTH)
    temperature: float | None = from_recipe("Temperature of the softmax over cosines.", TRAINING, above=0)
    num_views: int | None = from_recipe("Views per image.", VIEWS, at_least=2, at_most=64)
    view_scale: float | None = from_recipe("Side of a view relative to the image's side.", VIEWS, **FRACTION)
    num_stages: Literal[3, 4] | None = from_recipe("Stages to pretrain; with 3, the fourth starts fresh.", TRAINING)
    min_crop: float | None = from_recipe("Smallest area of the random resized crop.", VIEWS, **FRACTION)
    max_crop: float | None = from_recipe("Largest area of the random resized crop.", VIEWS, **FRACTION)
    jitter: float | None = from_recipe("Strength of the colour jitter.", VIEWS, at_least=0, at_most=2)
    blur: float | None = from_recipe("How often views are blurred, from 0 to the method's most, 1.", VIEWS, **SHARE)
    solarize: float | None = from_recipe("Of every second view, the fraction that is solarized.", VIEWS, **SHARE)
    mask_ratio: float | None = from_recipe("Fraction of the patches that is masked.", above=0, at_most=0.95)
    positions: Literal["place", "row-column"] | None = from_recipe("One learned vector per place, or row + column.")
    encoder_positions: bool | None = from_recipe("Add positions to the visible patches, not only to the queries.")
    final_norm: bool | None = from_recipe("Batch norm and ReLU after the last stage, before pooling (resnetv2 only).")
    logit_scale: Literal["dot", "sqrt", "cosine"] | None = from_recipe(
        "Logits: the dot product, the dot product divided by sqrt(width), or cosine / learned temperature."
    )
    flip: bool | None = from_recipe("Mirror half of the images.")
    attraction: float | None = from_recipe("Weight of the similarity of views against the coding rate.", above=0)
    distortion: float | None = from_recipe("Square of the distortion that the coding rate allows.", above=0)
    tau: float | None = from_recipe("Initial momentum of the target network; a cosine raises it to 1.", BYOL, **SHARE)


class LabelOptions(TrainingOptions):
    """Options of the verbs that train on labels."""

    dataset: str | None = option(
        None,
        "Labelled images: a folder with one subfolder per class, or with train/ and test/ of such folders; "
        f"{PACKED_FILES}s; a named data set; or hf://datasets/owner/name.",
    )
    exclude_seen: bool = option(False, EXCLUDE_SEEN_HELP, DATA)
    frozen: bool = option(False, "Fit only a linear classifier, on frozen features of both arms: takes seconds.")
    backbone: Backbone | None = option(None, "Only with --from none or imagenet; otherwise the weights decide.")
    image_size: int | None = option(None, IMAGE_SIZE_HELP, **SIDE)
    lr: str | None = option(
        None,
        "Peak learning rate. Of several (0.03,0.1,0.3), each network gets the best on held-out labels. Default: 0.3 "
        "without pretraining, 0.1 with, 0.03 with up to 500 labels.",
        TRAINING,
    )
    weight_decay: float = option(2e-3, "Weight decay (L2 penalty), on all weights.", TRAINING, at_least=0)
    warmup_steps: int = option(100, "Steps of linear learning rate warm-up.", **WARMUP)
    min_crop: float = option(0.35, "Smallest area of a random crop, for images above 64 px.", TRAINING, **FRACTION)
    check_length: bool = option(
        True,
        "Also train for half of the steps, with a fifth of the labels held out, to see if longer training helps.",
        TRAINING,
    )


class FinetuneOptions(LabelOptions):
    """Finetune on a fraction of the labels, and compare with the same network without pretraining."""

    fraction: float = option(1.0, "Fraction of the training labels to use: stratified, seeded, nested.", **FRACTION)
    from_: str | None = option(None, FROM_HELP)
    seeds: int = option(1, "Number of seeds, for label subsets and initial weights. Three give an interval.", **SEEDS)
    baseline: bool = option(True, "Also train the same network without pretraining.")
    arch: Literal["resnet", "hybrid"] = option(
        "resnet", "resnet: four stages on whole images. hybrid: Selfie's own patch network and attention pooling."
    )


class CurveOptions(LabelOptions):
    """Finetune on several fractions of the labels, from one or more runs, and plot accuracy against labels."""

    from_: tuple[str, ...] = option((), FROM_HELP + " Repeat the option to compare several runs.")
    fractions: str = option("0.05,0.2,1", "Fractions of the training labels: stratified, seeded, nested.")
    seeds: str = option("3", "Number of seeds: one number, or one per fraction (5,3,3). Three or more give intervals.")


class InferenceOptions(MachineOptions):
    """Options of the verbs that stream images through a network."""

    overwrite: bool = option(False, REPLACE_HELP)
    strict: bool = option(False, "Exit with code 1 if an image cannot be read or anything is left out.")
    compile: Compile = option("auto", COMPILE_HELP, MACHINE)
    batch_size: int | None = option(None, "Images per forward pass. Default: set by device.", MACHINE, **BATCH)


class PredictOptions(InferenceOptions):
    """Classify images with a finetuned run."""

    run: str = option(
        "", "A finetuned run: its folder, hf://owner/name[@revision], or a .safetensors file.", argument=True
    )
    paths: tuple[str, ...] = option((), PATHS_HELP, argument=True)
    out: str | None = option(None, "Write a .csv or .jsonl file instead of JSON Lines to stdout.")


class EmbedOptions(InferenceOptions):
    """Compute feature vectors (embeddings) of images, to stdout or a file."""

    paths: tuple[str, ...] = option((), PATHS_HELP, argument=True)
    from_: str | None = option(None, FROM_HELP)
    out: str | None = option(
        None,
        "A .parquet, .npy, .jsonl, .csv or .safetensors file, or a folder (a name without a suffix) for one parquet "
        "file per process. Default: JSON Lines to stdout.",
    )
    features: Features | None = option(
        None, "Vectors of a Selfie run with --recipe paper: whole image (default), mean over patches, or pooled."
    )
    precision: Literal[Precision, "int8"] = option(  # type: ignore[assignment]  # one more than elsewhere
        "auto",
        "auto: bf16 if the hardware has it and the vectors stay the same. int8: on a CPU with VNNI, faster and less "
        "exact, with scales from the first images of the job.",
        MACHINE,
    )


class EvalOptions(DataOptions):
    """Evaluate a run on labelled images: kNN, linear probe, pretext or test accuracy, against the untrained network."""

    exclude_seen: bool = option(False, EXCLUDE_SEEN_HELP, DATA)
    run: str | None = option(None, f"{WEIGHTS_HELP} Default: the newest finished pretraining run.", argument=True)
    dataset: str | None = option(None, "Labelled images, as for finetune.")
    features: Features | None = option(None, "Vectors to evaluate, as for embed.")
    k: int = option(20, "Number of neighbours of the kNN classifier.", at_least=1)
    temperature: float = option(0.07, "Temperature of the kNN weights.", above=0)
    seed: int = option(0, "Seed of the untrained network, the masks and the probe's held-out part.", at_least=0)
    batch_size: int = option(128, "Images per forward pass.", MACHINE, **BATCH)


class DemoOptions(OutputOptions):
    """Run the whole workflow on generated images: offline, in minutes, on a laptop's CPU."""

    out: str = option("runs/demo", "Folder for the demo's images and runs.")
    overwrite: bool = option(False, "Replace an earlier demo in --out.")
    seeds: int = option(3, "Number of seeds to finetune with.", **SEEDS)


class SimilarOptions(MachineOptions):
    """Search embedded images for those most similar to a photo, or for near-duplicates."""

    query: tuple[str, ...] = option((), "Images to find similar ones of.", argument=True)
    in_: str | None = option(None, "Vectors from selfie embed: a .parquet, .npy or .jsonl file, or a folder.")
    from_: str | None = option(None, "Weights to embed the query with. Default: those that the vectors came from.")
    top: int = option(10, "Number of matches per query, or of groups, to show.", at_least=1)
    duplicates: bool = option(False, "Show groups of near-duplicates within --in instead of answering a query.")
    threshold: float | None = option(None, "Least cosine of near-duplicates. Default: 0.998.", above=-1, at_most=1)


class DoctorOptions(SourceOptions):
    """Check images before training: unreadable, duplicate, tiny and unusual ones, and how long training will take."""

    data: tuple[str, ...] = option((), DATA_HELP, argument=True)
    max_bad: float = option(0.0, "Exit 1 if more than this fraction of the images is unreadable.", DATA, **SHARE)
    time: bool = option(True, "Run a few training steps to estimate the time of pretraining.")
    backbone: Backbone | None = option(None, "Network to time. Default: resnetv2_50; if over 1 h, resnetv2_10_w32 too.")


class ReportOptions(SourceOptions):
    """Write an HTML page about a run: what the network learned, on real images, against chance and baseline."""

    run: str = option("", RUN_HELP, argument=True)
    dataset: str | None = option(
        None, "Images to show; of a finetuned run, labelled ones. Default: the run's own data."
    )
    out: str | None = option(None, "The page. Default: report.html in the run's folder.")
    overwrite: bool = option(False, f"{REPLACE_HELP} The run's own page is always replaced.")
    images: int | None = option(
        None, "Most images to embed for the map and neighbours. Default: 1,000, or what ten seconds allow.", at_least=2
    )


class ExportOptions(OutputOptions):
    """Export a run's network for timm, torchvision, ONNX Runtime or safetensors, and print the code that loads it."""

    run: str = option("", WEIGHTS_HELP, argument=True)
    to: Target | None = option(
        None, "Target library. timm, torchvision: 7x7 stems only. onnx: needs the onnx extra. safetensors: any network."
    )
    out: str | None = option(None, "File. Default: <run>-<to>.safetensors, <run>.onnx or <run>.safetensors, here.")
    overwrite: bool = option(False, REPLACE_HELP)


class PushOptions(OutputOptions):
    """Upload a run to the Hugging Face Hub: weights, config and a model card with the measured results."""

    run: str = option("", RUN_HELP, argument=True)
    repo: str = option("", "owner/name on the Hugging Face Hub.", argument=True)
    private: bool | None = option(None, "Visibility of a new repository. Default: ask.", off="public")
    revision: str | None = option(None, "Branch to push to, created if missing. Default: main.")
    dry_run: bool = option(False, "Only show what would be uploaded.")


class PullOptions(OutputOptions):
    """Download a run from the Hugging Face Hub into a folder, and verify it."""

    repo: str = option("", "owner/name on the Hugging Face Hub, or hf://owner/name[@revision].", argument=True)
    revision: str | None = option(None, "Branch, tag or commit. Default: main.")
    out: str | None = option(None, "Folder of the run. Default: runs/<name>.")
    overwrite: bool = option(False, REPLACE_HELP)
    offline: bool = option(False, "Use only the Hub's cache on this machine.")
