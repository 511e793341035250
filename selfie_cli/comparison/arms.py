"""Arms of a comparison: ways to initialize a network, and the runs that the weights come from."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from selfie_cli import runs
from selfie_cli.data.augment import Preprocessing
from selfie_cli.errors import RunError, UsageError
from selfie_cli.files import sha256_of
from selfie_cli.foreign import IMAGENET
from selfie_cli.inference import networks
from selfie_cli.methods.selfie import Selfie
from selfie_cli.models.hybrid import AnyClassifier
from selfie_cli.models.resnet import FOURTH_STAGE, stem_for
from selfie_cli.recipes import LABELS, PRETRAININGS, called, trained_by
from selfie_cli.runs import Run
from selfie_cli.talk import Talk
from selfie_cli.training.start import where_it_began
from selfie_cli.weights import num_bytes

SUPERVISED = "supervised"
UNTRAINED = "untrained"
FRESH = {"pretraining": "none", "pretrained_by": PRETRAININGS["none"]}


@dataclass(frozen=True, kw_only=True)
class Arm:
    """A way to initialize a network. shape: its description, as in a run's config. state: its weights; None: random."""

    name: str
    shape: dict[str, Any]
    state: dict[str, Tensor] | None

    @property
    def preprocessing(self) -> Preprocessing:
        return Preprocessing.of(self.shape)

    def decoding_as(self, first: "Arm") -> "Arm":
        """Return the arm with the crop and interpolation of `first`, but its own mean and standard deviation."""
        common = first.preprocessing
        wanted = dataclasses.replace(self.preprocessing, crop=common.crop, interpolation=common.interpolation)
        if wanted == self.preprocessing:
            return self
        return dataclasses.replace(self, shape={**self.shape, "preprocessing": wanted.record()})

    @property
    def called(self) -> str:
        """The pretraining of its network, in words."""
        return called(self.shape)

    def usual_rate(self, num_labels: int) -> float:
        """The rate that suits it (docs/results/research.md): with few labels, a high one can undo pretraining."""
        if self.state is None:
            return 0.3
        return 0.1 if num_labels > 500 else 0.03

    @property
    def kind(self) -> str:
        """A key for the network's architecture: arms of one kind are equally fast."""
        return repr({**self.shape, "pretraining": None, "pretrained_by": None})

    def make(self) -> AnyClassifier:
        module = networks.build(self.shape)
        assert isinstance(module, AnyClassifier)
        return module

    def for_classes(self, classes: list[str]) -> "Arm":
        return dataclasses.replace(self, shape={**self.shape, "classes": classes})


def arms_of(sources: list[Run], *, backbone: str | None, image_size: int | None) -> list[Arm]:
    """Return the supervised arm and one arm per run, named after its method, or after its folder if two share a method.

    Images are decoded once for all arms, with the first network's crop and interpolation. Foreign weights take the
    image size of the other runs.
    """
    sizes = [source.derived["image_size"] for source in sorted(sources, key=lambda source: source.is_foreign)]
    side = image_size or next(iter(sizes), None)
    fresh = network_shape(sources[0] if sources else None, backbone=backbone, image_size=side) | FRESH
    arms = [Arm(name=SUPERVISED, shape=fresh, state=None)]
    methods = [str(source.derived["method"]) for source in sources]
    for source, method in zip(sources, methods, strict=True):
        name = source.name if methods.count(method) > 1 else method
        if name in [arm.name for arm in arms]:
            raise UsageError(f"--from gives two runs the name {name!r}: give each run once, or rename a folder")
        state = load_pretrained(source, backbone=backbone, image_size=image_size).encoder.state_dict()
        arm = Arm(name=name, shape=network_shape(source, image_size=side), state=state).decoding_as(arms[0])
        mixed = source.is_foreign or sources[0].is_foreign
        for key in ("image_size",) if mixed else ("backbone", "stem", "image_size"):
            if arm.shape[key] != fresh[key]:
                raise UsageError(
                    f"{source} has {key} {arm.shape[key]}, {sources[0]} has {fresh[key]}: "
                    "a curve compares runs of one network, so use another curve for the rest"
                )
        arms.append(arm)
    return arms


def hybrid_arms(sources: list[Run], *, backbone: str | None, image_size: int | None) -> list[Arm]:
    """Return three arms: supervised, and the first run's network as a hybrid without and with its weights. Raise
    UsageError unless that run is the paper's Selfie."""
    source = sources[0] if sources else None
    pretrained = None if source is None else load_pretrained(source, backbone=backbone, image_size=image_size)
    if source is None or not isinstance(pretrained, Selfie):
        found = "none" if source is None else f"{source} ({called(source.derived)})"
        raise UsageError(f"--arch hybrid needs a run of Selfie with --recipe paper, not {found}: name one with --from")
    shape = network_shape(source, backbone=backbone, image_size=image_size)
    own = ("factorized_positions", "encoder_positions", "final_norm", "apart")
    cut = {name: source.derived["selfie"][name] for name in own} | {"patch_size": source.derived["patch_size"]}
    hybrid = {**shape, "arch": "hybrid", "hybrid": cut}
    return [
        Arm(name=SUPERVISED, shape=shape | FRESH, state=None),
        Arm(name="hybrid", shape=hybrid | FRESH, state=None),
        Arm(name="hybrid-selfie", shape=hybrid, state=pretrained.state_dict()),
    ]


def freeze(arms: list[Arm]) -> list[Arm]:
    """Return arms for linear classifiers on frozen features. Their networks have only the pretrained stages.

    The supervised arm becomes the network of the first pretrained arm with random weights. Raise UsageError if no arm
    is pretrained, or if a run has the name of that arm.
    """
    if UNTRAINED in [arm.name for arm in arms]:
        raise UsageError(f"--frozen has an arm {UNTRAINED!r} of its own: rename the folder of the run called so")
    states = [arm.state for arm in arms if arm.state is not None]
    if not states:
        raise UsageError("--frozen needs a pretrained network, not --from none: name a run with --from")
    frozen = []
    for arm in arms:
        state = arm.state or states[0]
        whole = any(name.startswith(FOURTH_STAGE) for name in state)
        own = {"num_stages": 4 if whole else 3, "final_norm": "norm.weight" in state}
        name = UNTRAINED if arm.state is None else arm.name
        frozen.append(dataclasses.replace(arm, name=name, shape={**arm.shape, "frozen": own}))
    return frozen


def room_for(arms: list[Arm], num_cells: int) -> int:
    """Return the bytes of the weights that a run keeps: `num_cells` networks per arm, and a copy of one network."""
    sizes = [num_bytes(arm.make().state_dict().values()) for arm in arms]
    return num_cells * sum(sizes) + min(sizes)


def open_sources(
    run: Run | None, asked: Sequence[str | None], *, backbone: str | None, offline: bool, talk: Talk
) -> list[Run]:
    """Open the runs that --from names, or those that the stopped `run` started from. 'none' is skipped.

    'imagenet' means ImageNet weights of `backbone`, else of the first run's network, or of resnet18 if it has none.

    Raise RunError if the stopped run's config does not name those runs, or if their weights have changed.
    """
    found: list[Run] = []
    with where_it_began(run):
        if run is not None:
            asked = origins(run, offline=offline, talk=talk) or ["none"]
        for each in asked:
            source = runs.resolve_from(each, backbone=backbone, offline=offline, talk=talk)
            if source is None:
                continue
            found.append(source)
            if backbone is None:
                own = source.derived["backbone"]
                backbone = own if own in IMAGENET else "resnet18"
            if LABELS in trained_by(source.derived):
                talk.warn(
                    f"{source.name} was finetuned on labels: if those are labels of this data set, the comparison "
                    "favours it"
                )
    return found


def origin(source: Run) -> dict[str, str]:
    """Return the --from value of a run and the hash of its weights, for another run's config."""
    return {"path": source.address or str(source.path.resolve()), "sha256": sha256_of(source.weights)}


def origins(run: Run, *, offline: bool, talk: Talk) -> list[str]:
    """Return the values of --from that a stopped run started with."""
    found = run.config.get("from")
    if not isinstance(found, list) or not all(isinstance(each, dict) and "path" in each for each in found):
        raise RunError(
            f"{run.path / 'config.json'} is damaged, it does not say where weights came from: start a new run"
        )
    for each in found:
        if origin(runs.open_run(each["path"], offline=offline, also_foreign=True, talk=talk)) != each:
            raise RunError(f"the weights of {each['path']} have changed since {run.path} was started: start a new run")
    return [each["path"] for each in found]


def load_pretrained(
    source: Run, *, backbone: str | None, image_size: int | None
) -> networks.Pretrained | AnyClassifier:
    """Load the network of a run. Raise UsageError if it does not fit the given backbone or image size."""
    for flag, asked, found in (
        ("--backbone", backbone, source.derived.get("backbone")),
        ("--image-size", image_size, source.derived.get("image_size")),
    ):
        if asked not in (None, found) and not (source.is_foreign and flag == "--image-size"):
            raise UsageError(f"{flag} {asked} conflicts with {source}, which has {found}: leave it out")
    return networks.load_module(source)


def network_shape(source: Run | None, *, backbone: str | None = None, image_size: int | None = None) -> dict[str, Any]:
    """Return the description of the networks to train, without classes: that of the run `source`, or as given."""
    found = source.derived if source is not None else {}
    if source is None or not source.is_foreign:
        image_size = found.get("image_size") or image_size
    image_size = int(image_size or found.get("image_size") or 32)
    kept = {"preprocessing": found["preprocessing"]} if "preprocessing" in found else {}
    return {
        "method": "finetune",
        "arch": "resnet",
        "pretraining": found.get("method", "none"),
        "pretrained_by": trained_by(found) if found else PRETRAININGS["none"],
        "backbone": found.get("backbone") or backbone or "resnetv2_50",
        "stem": found.get("stem") or stem_for(8 if image_size <= 64 else 32),
        "image_size": image_size,
        **kept,
    }
