"""What finetune and curve compare: arms, each a way to initialize a network, and the run that holds what came of it."""

import dataclasses
import hashlib
import math
from dataclasses import dataclass
from typing import Any, TypeVar

from torch import Tensor

from selfie_cli import runs
from selfie_cli.config import LabelOptions
from selfie_cli.errors import RunError, UsageError
from selfie_cli.inference import networks
from selfie_cli.models.hybrid import AnyClassifier
from selfie_cli.models.resnet import stem_for
from selfie_cli.recipes import PRETRAININGS, called
from selfie_cli.runs import Run
from selfie_cli.talk import Talk
from selfie_cli.training.start import run_to_resume
from selfie_cli.weights import num_bytes

SUPERVISED = "supervised"
FRESH = {"pretraining": "none", "pretrained_by": PRETRAININGS["none"]}

AnyLabels = TypeVar("AnyLabels", bound=LabelOptions)


@dataclass(frozen=True, kw_only=True)
class Arm:
    """`shape` describes the network as a run's config does; `state` is what it starts from, None for from scratch."""

    name: str
    shape: dict[str, Any]
    state: dict[str, Tensor] | None

    @property
    def called(self) -> str:
        """In words, what its network was pretrained by."""
        return called(self.shape)

    def make(self) -> AnyClassifier:
        module = networks.build(self.shape)
        assert isinstance(module, AnyClassifier)
        return module

    def for_classes(self, classes: list[str]) -> "Arm":
        return dataclasses.replace(self, shape={**self.shape, "classes": classes})


def begin(options: AnyLabels, verb: str) -> tuple[Run | None, AnyLabels]:
    """The stopped run to continue and its options, or none and `options` themselves."""
    run, options = run_to_resume(options, verb)
    if options.dataset is None:
        raise UsageError(
            "--dataset is missing: give a folder with a subfolder per class, or a named set such as cifar10"
        )
    return run, options


def learning_rates(text: str) -> list[float]:
    """'0.1' or '0.03,0.1,0.3'. Raises UsageError for anything else."""
    try:
        rates = [float(part) for part in text.split(",")]
    except ValueError:
        rates = []
    if not rates or not all(0 < rate < math.inf for rate in rates) or len({f"{rate:g}" for rate in rates}) < len(rates):
        raise UsageError(f"--lr {text!r}: expected a positive number, or several different ones like 0.03,0.1,0.3")
    return rates


def load_pretrained(run: Run, options: LabelOptions) -> networks.Pretrained | AnyClassifier:
    """The run's network, whose backbone and image size rule; an option that says otherwise is refused."""
    for name, asked in (("backbone", options.backbone), ("image-size", options.image_size)):
        there = run.derived.get(name.replace("-", "_"))
        if asked is not None and asked != there:
            raise UsageError(f"--{name} {asked} conflicts with {run}, which has {there}: leave it out")
    return networks.load_module(run)


def room_for(arms: list[Arm], num_cells: int) -> int:
    """Bytes of the weights that a run keeps: those of `num_cells` networks of each arm, and a copy of one."""
    each = [num_bytes(arm.make().state_dict().values()) for arm in arms]
    return num_cells * sum(each) + min(each)


def origin(source: Run) -> dict[str, str]:
    """What --from would have to be to mean this run again, and the hash of the weights that it meant."""
    path = source.address or str(source.path.resolve())
    return {"path": path, "sha256": hashlib.sha256(source.weights.read_bytes()).hexdigest()}


def origins(run: Run, *, offline: bool, talk: Talk) -> list[dict[str, str]]:
    """Where the arms of a stopped run came from. Raises RunError if its config does not say, or the weights changed."""
    found = run.config.get("from")
    if not isinstance(found, list) or not all(isinstance(each, dict) and "path" in each for each in found):
        raise RunError(
            f"{run.path / 'config.json'} is damaged, it does not say where weights came from: start a new run"
        )
    for each in found:
        source = runs.open_run(each["path"], offline=offline, talk=talk)
        if origin(source) != each:
            raise RunError(f"the weights of {each['path']} have changed since {run.path} was started: start a new run")
    return found


def tell_of_labels(sources: list[Run], talk: Talk) -> None:
    """A network that was finetuned knows labels, maybe those that others are tested on or denied here."""
    for source in sources:
        if "classes" in source.derived:
            talk.warn(
                f"{source.name} was finetuned on labels: if those are labels of this data set, the comparison "
                "favours it"
            )


def network_shape(options: LabelOptions, source: Run | None) -> dict[str, Any]:
    """The networks to train, but for their classes: the pretrained run's, or what was asked."""
    there = source.derived if source is not None else {}
    image_size = int(there.get("image_size") or options.image_size or 32)
    return {
        "method": "finetune",
        "arch": "resnet",
        "pretraining": there.get("method", "none"),
        "pretrained_by": called(there) if there else PRETRAININGS["none"],
        "backbone": there.get("backbone") or options.backbone or "resnetv2_50",
        "stem": there.get("stem") or stem_for(8 if image_size <= 64 else 32),
        "image_size": image_size,
    }
