"""selfie eval: evaluate a run's network on labelled images, and compare it with the untrained network."""

import dataclasses
import itertools
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from selfie_cli import hub, runs
from selfie_cli.comparison.labels import Data, Reading, read_data
from selfie_cli.config import EvalOptions
from selfie_cli.data.augment import plain_view
from selfie_cli.data.batches import step_generator, step_seed
from selfie_cli.data.named import NAMED
from selfie_cli.evaluation.knn import knn_predict
from selfie_cli.evaluation.linear import held_out_folds, linear_probe
from selfie_cli.evaluation.metrics import confusion_matrix, majority_share, per_class_accuracy, topk_accuracy
from selfie_cli.files import read_json, write_json
from selfie_cli.inference import networks
from selfie_cli.inference.networks import Network
from selfie_cli.methods.selfie import Selfie
from selfie_cli.models.hybrid import AnyClassifier
from selfie_cli.option import pick
from selfie_cli.talk import Talk
from selfie_cli.training.distributed import group
from selfie_cli.training.hardware import precisions, prepare
from selfie_cli.training.step import Autocast, autocast


@dataclass(frozen=True, kw_only=True)
class Judged:
    """Accuracies of one network's features, 0..1."""

    knn: float
    linear: float
    linear_strength: float
    pretext_accuracy: float | None
    """On images with the random crop of training."""
    pretext_accuracy_plain: float | None
    """On uncropped images. Up to 64 px, cropped images have a black border, which reveals positions; these do not."""
    chance: float | None
    """Pretext accuracy of guessing."""


@dataclass(frozen=True, kw_only=True)
class Classified:
    """Accuracies of a finetuned network's own classifier, 0..1, and counts of confusions.

    `classes` are the network's; the data set may have fewer. They name the rows (true) and columns (predicted) of
    `confusion`.
    """

    classes: list[str]
    top1: float
    top5: float
    per_class: list[float | None]
    confusion: list[list[int]]


@dataclass(frozen=True, kw_only=True)
class Evaluated:
    """The result of `evaluate`. Shares and accuracies are in 0..1."""

    run: Path
    dataset: str
    named: bool
    """Whether `dataset` is the name of a known set, not of a folder."""
    split: str
    num_train: int
    num_test: int
    num_seen: int
    """Number of test images with a copy or near-duplicate in pretraining; --exclude-seen removes them from the test."""
    num_like_train: int
    """Number of test images with a copy or near-duplicate in the training part; --exclude-seen removes them, too."""
    exclude_seen: bool
    classes: list[str]
    features: str
    k: int
    temperature: float
    majority: float
    chance: float | None
    trained: Judged
    untrained: Judged
    classified: Classified | None
    left_out: dict[str, int]


def evaluate(options: EvalOptions, talk: Talk) -> Evaluated:
    """Measure kNN, linear probe and pretext accuracy; for finetuned runs, also the classifier's accuracies."""
    run = runs.weights_for("eval", options.run, offline=options.offline, talk=talk)
    device = prepare(options.device)
    context = autocast(device, precisions(device, options.precision)[0])
    network = networks.load_network(run, features=options.features, device=device)
    known = run.derived["classes"] if isinstance(network.module, AnyClassifier) else None
    if network.image_size <= 64:
        talk.say(f"images are resized to the network's {network.image_size} px")
    reading, preprocessing = pick(Reading, options), network.preprocessing
    data = read_data(reading, network.image_size, preprocessing=preprocessing, sources=[run], known=known, talk=talk)
    train, test = data.train, data.test
    torch.manual_seed(step_seed(options.seed, 0))
    twin = dataclasses.replace(network, module=networks.build(run.derived).to(device).eval())  # untrained
    with context():
        classified = None if known is None else classify(network, known, data, options.batch_size)
    trained, untrained = (
        judge(each, name, data, options, context, talk) for each, name in ((network, "trained"), (twin, "untrained"))
    )
    result = Evaluated(
        run=run.path,
        dataset=data.name,
        named=options.dataset in NAMED,
        split=data.split,
        num_train=len(train.labels),
        num_test=len(test.labels),
        num_seen=data.num_seen,
        num_like_train=data.num_like_train,
        exclude_seen=options.exclude_seen,
        classes=data.classes,
        features=network.features,
        k=min(options.k, len(train.labels)),
        temperature=options.temperature,
        majority=majority_share(test.labels),
        chance=trained.chance,
        trained=trained,
        untrained=untrained,
        classified=classified,
        left_out=data.left_out,
    )
    if group().first:
        keep(result, data, run, options.dataset or "", talk)
    return result


def keep(result: Evaluated, data: Data, run: runs.Run, dataset: str, talk: Talk) -> None:
    """Write the result, and lists of unreadable and seen images, into the run's folder.

    If the folder cannot be written, report that and name the unreadable images; the command still succeeds.
    """
    say, why = talk.say, f"results go into a run's folder, and {run.address} is not one of yours"
    try:
        if not run.address:
            where = dataset if result.named or hub.is_address(dataset) else os.path.realpath(dataset)
            file = place_for(run.path, Path(result.dataset).name, where)
            write_json(file, {**dataclasses.asdict(result), "run": str(run.path), "where": where})
            bad_list, seen_list = (file.with_name(f"{file.stem}-{what}.jsonl") for what in ("bad_files", "seen"))
            for listed in (bad_list, seen_list):
                listed.unlink(missing_ok=True)  # it may be left from an earlier eval
            data.report(bad_list, seen_list, talk)
            talk.say(f"written to {file}")
            return
    except OSError as error:  # another user's run, or a full disk
        say, why = talk.warn, f"{error.filename or run.path}: {error.strerror}"
    for one in data.bad:
        talk.warn(f"left out: {one.name}: {one.reason}")
    say(f"the result is not saved: {why}")


def place_for(run: Path, name: str, where: str) -> Path:
    """Return eval-<name>.json in `run`, numbered if that file belongs to another data set of the same name."""
    for number in itertools.count(1):
        file = run / f"eval-{name}{f'-{number}' if number > 1 else ''}.json"
        try:
            if read_json(file).get("where", where) == where:
                break
        except (OSError, ValueError, AttributeError):  # missing, or damaged
            break
    return file


def judge(network: Network, name: str, data: Data, options: EvalOptions, context: Autocast, talk: Talk) -> Judged:
    """Compute features once, then measure kNN and a linear probe, whose strength is chosen on held-out training images.

    Batch-norm statistics are first estimated on the training images, and again for the pretext task, so that networks
    are comparable: an untrained network has no statistics, and the paper's Selfie has statistics of patches.
    """
    module, train, test, num_classes = network.module, data.train, data.test, len(data.classes)
    networks.estimate_batch_norm(module, network.vectors, train.pixels)
    how: Any = {"batch_size": options.batch_size, "talk": talk}
    with context():
        before = networks.vectors_of(network, train.pixels, what=f"{name}: training images", **how)
        after = networks.vectors_of(network, test.pixels, what=f"{name}: test images", **how)
    device = network.device if network.device.type == "cuda" else torch.device("cpu")
    rows = (each.to(device) for each in (before, train.labels, after))
    votes = knn_predict(*rows, num_classes=num_classes, k=options.k, temperature=options.temperature).cpu()
    talk.say(f"{name}: fitting the linear probe on {len(before):,} x {before.shape[1]}")
    folds = held_out_folds(train.labels, options.seed)
    probe = linear_probe(before, train.labels, num_classes=num_classes, held_out=folds)
    cropped = plain = chance = None
    if isinstance(module, Selfie):
        chance = module.chance
        with context():
            cropped, plain = (pretext_accuracy(module, data, options, crop=crop) for crop in (True, False))
    return Judged(
        knn=topk_accuracy(votes, test.labels),
        linear=topk_accuracy(probe.log_probabilities(after), test.labels),
        linear_strength=probe.strength,
        pretext_accuracy=cropped,
        pretext_accuracy_plain=plain,
        chance=chance,
    )


@torch.no_grad()
def pretext_accuracy(module: Selfie, data: Data, options: EvalOptions, *, crop: bool) -> float:
    """Return the share of patches that the network picks correctly, 0..1, with one draw of masks per test image.

    crop: whether to crop as in training. Batch-norm statistics are estimated on the training images for this task.
    """
    device, pixels = next(module.parameters()).device, data.test.pixels

    def right(batch: Tensor, *draws: Tensor) -> Tensor:
        batch, crops, *places = (tensor.to(device) for tensor in (batch, *draws))
        images = plain_view(batch, module.image_size, module.preprocessing)
        if crop:
            images = module.augment(batch, crops, *places)[0]
        return module.loss(images, *places)[1]["pretext_accuracy"] * len(batch)

    generator = step_generator(options.seed, 2)
    with torch.autocast(device.type, enabled=False):
        networks.estimate_batch_norm(
            module, lambda batch: right(batch, *module.draw(len(batch), generator)), data.train.pixels
        )
    draws = module.draw(len(pixels), step_generator(options.seed, 1))
    batches = zip(*(tensor.split(options.batch_size) for tensor in (pixels, *draws)), strict=True)
    return sum(right(*batch).item() for batch in batches) / len(pixels)


def classify(network: Network, known: list[str], data: Data, batch_size: int) -> Classified:
    """Measure the accuracies of the network's own classifier; `known` names its classes."""
    labels = torch.tensor([known.index(name) for name in data.classes])[data.test.labels]
    scores = networks.class_scores(network, data.test.pixels, batch_size)
    confusion = confusion_matrix(scores.argmax(dim=1), labels, len(known))
    return Classified(
        classes=known,
        top1=topk_accuracy(scores, labels, 1),
        top5=topk_accuracy(scores, labels, 5),
        per_class=per_class_accuracy(confusion),
        confusion=confusion.tolist(),
    )
