"""selfie eval: what a run's network is worth on labelled images, beside the same network untrained."""

import dataclasses
import itertools
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from selfie_cli import hub, runs
from selfie_cli.comparison.labels import Data, Part, Reading, read_data
from selfie_cli.config import EvalOptions
from selfie_cli.data.augment import plain_view
from selfie_cli.data.batches import step_generator, step_seed
from selfie_cli.data.named import NAMED
from selfie_cli.data.splits import HELD_OUT_SHARE, hold_out
from selfie_cli.errors import UsageError
from selfie_cli.evaluation.knn import knn_predict, num_neighbours
from selfie_cli.evaluation.linear import fit_linear_probe
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
    """With images cut as in training, that is after its random crop."""
    pretext_accuracy_plain: float | None
    """With images cut as they are. At up to 64 px the padding's black border gives places away; here it cannot."""
    chance: float | None
    """Pretext accuracy of a guess."""


@dataclass(frozen=True, kw_only=True)
class Classified:
    """What a finetuned network's own classifier does on the test images.

    `classes` are the network's, which may be more than the data set has; they name the rows (true) and columns
    (predicted) of `confusion`.
    """

    classes: list[str]
    top1: float
    top5: float
    per_class: list[float | None]
    confusion: list[list[int]]


@dataclass(frozen=True, kw_only=True)
class Evaluated:
    """What `evaluate` found. Shares and accuracies are in 0..1."""

    run: Path
    dataset: str
    named: bool
    """Whether `dataset` is a known set's name, and not a folder's."""
    split: str
    num_train: int
    num_test: int
    num_seen: int
    """Test images that the run was pretrained on, or nearly so; with --exclude-seen they are not among `num_test`."""
    num_like_train: int
    """As `num_seen`, test images that are copies or near-duplicates of training images."""
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
    """Weighted kNN, linear probe and pretext accuracy; top-1, top-5, per class and confusion for finetuned runs."""
    run, line = runs.resolve_from(options.run, offline=options.offline, talk=talk)
    if run is None:
        raise UsageError("eval needs a run: its folder, or bundled")
    talk.say(line)
    device = prepare(options.device)
    context = autocast(device, precisions(device, options.precision)[0])
    network = networks.load_network(run, features=options.features, device=device)
    known = run.derived["classes"] if isinstance(network.module, AnyClassifier) else None
    if network.image_size <= 64:
        talk.say(f"images are resized to the network's {network.image_size} px")
    data = read_data(pick(Reading, options), network.image_size, sources=[run], known=known, talk=talk)
    classes, train, test = data.classes, data.train, data.test
    twin = networks.untrained_twin(network, run, seed=step_seed(options.seed, 0))
    classified = None
    if known is not None:
        with context():
            classified = classify(network, known, classes, test, options.batch_size)
    trained = judge(network, "trained", train, test, len(classes), options, context, talk)
    untrained = judge(twin, "untrained", train, test, len(classes), options, context, talk)
    result = Evaluated(
        run=run.path,
        dataset=data.name,
        named=options.dataset in NAMED,
        split=data.split,
        num_train=len(train.labels),
        num_test=len(test.labels),
        num_seen=data.num_seen,
        num_like_train=data.num_like_train,
        classes=classes,
        features=network.features,
        k=num_neighbours(options.k, len(train.labels)),
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

    Where that cannot be, say so and name the unreadable images here: the result is shown all the same.
    """
    if run.address:
        say, why = talk.say, f"results go into a run's folder, and {run.address} is not one of yours"
    else:
        where = dataset if result.named or hub.is_address(dataset) else os.path.realpath(dataset)
        file = place_for(run.path, Path(result.dataset).name, where)
        bad_list, seen_list = (file.with_name(f"{file.stem}-{what}.jsonl") for what in ("bad_files", "seen"))
        try:
            write_json(file, {**dataclasses.asdict(result), "run": str(run.path), "where": where})
            for listed, there in ((bad_list, data.bad), (seen_list, data.seen)):
                if not there:  # of an earlier eval, which found some
                    listed.unlink(missing_ok=True)
            data.report(bad_list, seen_list, talk)
            talk.say(f"written to {file}")
            return
        except OSError as error:  # another user's run, or a full disk
            say, why = talk.warn, f"{error.filename or run.path}: {error.strerror}"
    for one in data.bad:
        talk.warn(f"left out: {one.name}: {one.reason}")
    say(f"kept nowhere: {why}")


def place_for(run: Path, name: str, where: str) -> Path:
    """eval-<name>.json in `run`, with a number where what lies there is of another data set of that name."""
    for number in itertools.count(1):
        file = run / f"eval-{name}{f'-{number}' if number > 1 else ''}.json"
        try:
            if read_json(file).get("where", where) == where:
                break
        except (OSError, ValueError, AttributeError):  # nothing there, or nothing that could be read
            break
    return file


def judge(
    network: Network,
    name: str,
    train: Part,
    test: Part,
    num_classes: int,
    options: EvalOptions,
    context: Autocast,
    talk: Talk,
) -> Judged:
    """Compute features once, then kNN and a linear probe whose strength is chosen on held-out training images.

    Batch-norm statistics are estimated on the training images first, for the features and again for the pretext task:
    an untrained network has none, and the paper's Selfie has those of patches. So all networks are judged alike.
    """
    size = options.batch_size
    networks.estimate_batch_norm(network.module, network.vectors, train.pixels)
    with context():
        before = networks.vectors_of(network, train.pixels, batch_size=size, talk=talk, what=f"{name}: training images")
        after = networks.vectors_of(network, test.pixels, batch_size=size, talk=talk, what=f"{name}: test images")
    votes = knn_predict(
        before, train.labels, after, num_classes=num_classes, k=options.k, temperature=options.temperature
    )
    held = np.zeros(len(train.labels), dtype=bool)
    held[hold_out(train.labels.numpy(), HELD_OUT_SHARE, options.seed)[1]] = True
    talk.say(f"{name}: fitting the linear probe on {len(before):,} x {before.shape[1]}")
    probe = fit_linear_probe(before, train.labels, num_classes=num_classes, held_out=torch.from_numpy(held))
    module = network.module
    as_trained = plain = chance = None
    with context():
        if isinstance(module, Selfie):
            as_trained, chance = pretext_accuracy(module, module.augment, train.pixels, test.pixels, options)

            def centre(pixels: Tensor, crops: Tensor, *places: Tensor) -> tuple[Tensor, ...]:
                return plain_view(pixels, network.image_size), *places

            plain, _ = pretext_accuracy(module, centre, train.pixels, test.pixels, options)
    return Judged(
        knn=topk_accuracy(votes, test.labels),
        linear=topk_accuracy(probe.scores(after), test.labels),
        linear_strength=probe.strength,
        pretext_accuracy=as_trained,
        pretext_accuracy_plain=plain,
        chance=chance,
    )


@torch.no_grad()
def pretext_accuracy(
    module: Selfie,
    view: Callable[..., tuple[Tensor, ...]],
    train: Tensor,
    pixels: Tensor,
    options: EvalOptions,
) -> tuple[float, float]:
    """Share of the right picks of the network, one draw per image, and of a guess, both in 0..1.

    pixels: uint8 [N, S, S, 3]; `view` augments. Batch-norm statistics are those of this task on `train`, uint8
    [M, S, S, 3].
    """
    device, batch_size = next(module.parameters()).device, options.batch_size
    generator = step_generator(options.seed, 2)

    def forward(batch: Tensor) -> Tensor:
        draws = module.draw(len(batch), generator)
        return module.loss(*view(batch, *(draw.to(device) for draw in draws)))[0]

    with torch.autocast(device.type, enabled=False):
        networks.estimate_batch_norm(module, forward, train)
    draws = module.draw(len(pixels), step_generator(options.seed, 1))
    right = chance = 0.0
    for batch in zip(*(tensor.split(batch_size) for tensor in (pixels, *draws)), strict=True):
        _, logged = module.loss(*view(*(tensor.to(device) for tensor in batch)))
        right += logged["pretext_accuracy"].item() * len(batch[0])
        chance += logged["chance"].item() * len(batch[0])
    return right / len(pixels), chance / len(pixels)


def classify(network: Network, known: list[str], classes: list[str], test: Part, batch_size: int) -> Classified:
    """The classifier's own answers; `known` names its classes, `classes` those of the labels in `test`."""
    labels = torch.tensor([known.index(name) for name in classes])[test.labels]
    scores = networks.class_scores(network, test.pixels, batch_size)
    confusion = confusion_matrix(scores.argmax(dim=1), labels, len(known))
    return Classified(
        classes=known,
        top1=topk_accuracy(scores, labels, 1),
        top5=topk_accuracy(scores, labels, 5),
        per_class=per_class_accuracy(confusion),
        confusion=confusion.tolist(),
    )
