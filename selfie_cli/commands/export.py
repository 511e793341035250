"""selfie export: write a run's network to a file for another library, with code that loads it there."""

import json
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import get_args

import torch

from selfie_cli import __version__, runs
from selfie_cli.config import ExportOptions, Target
from selfie_cli.errors import UsageError
from selfie_cli.files import followed, replacing
from selfie_cli.inference import networks
from selfie_cli.inference.networks import Network
from selfie_cli.inference.outputs import check_file
from selfie_cli.models.hybrid import AnyClassifier, Hybrid
from selfie_cli.models.portable import as_onnx, as_whole_network, why_not
from selfie_cli.models.resnet import PreActivationResNet, ResNet
from selfie_cli.recipes import called
from selfie_cli.reporting.page import environment
from selfie_cli.runs import Run
from selfie_cli.talk import Talk
from selfie_cli.weights import save_weights


@dataclass(frozen=True, kw_only=True)
class Exported:
    """A written file. missing: names of the other library's tensors that it does not hold. code: Python to load it."""

    out: Path
    to: Target
    features: str
    width: int
    classes: list[str] | None
    missing: list[str]
    code: str


def export(options: ExportOptions, talk: Talk) -> Exported:
    """Write the network that `selfie embed` and `predict` use, in the format of `options.to`."""
    run = runs.weights_for("export", options.run or "none", talk=talk)
    to = target_of(options, run)
    suffix = ".onnx" if to == "onnx" else ".safetensors"
    name = f"{run.name}{'' if to in ('onnx', 'safetensors') else f'-{to}'}{suffix}"
    if Path(options.out or name).resolve() == run.weights.resolve():
        raise UsageError(f"{options.out or name} holds the network itself: give --out another name")
    out = check_file(options.out or name, [suffix], overwrite=options.overwrite)

    network = networks.load_network(run, features=None, device=torch.device("cpu"))
    classifier = network.module if isinstance(network.module, AnyClassifier) else None
    encoder: ResNet = network.module.encoder
    kept = classifier or encoder  # features of a pretraining run need only the encoder
    header = description(run, network)
    missing: list[str] = []
    if to == "onnx":
        data = as_onnx(kept, image_size=network.image_size, metadata=header, producer=f"selfie {__version__}")
        with replacing(followed(out)) as temporary:
            temporary.write_bytes(data)
    elif to == "safetensors":
        save_weights(followed(out), kept.state_dict(), header)
    else:
        state, missing = as_whole_network(run.derived["backbone"], encoder, classifier.head if classifier else None)
        save_weights(followed(out), state, header | {"missing": json.dumps(missing)})
    also = ", and probabilities" if classifier else ""
    talk.say(f"{out} gives what selfie embed does: {network.features} features, {network.width} numbers{also}")
    if missing:
        talk.say(f"not included: {len(missing)} tensors from the fourth stage on, since three stages were pretrained")
    return Exported(
        out=out,
        to=to,
        features=network.features,
        width=network.width,
        classes=run.derived.get("classes"),
        missing=missing,
        code=loading_code(to, run, network, out, partial=bool(missing)),
    )


def target_of(options: ExportOptions, run: Run) -> Target:
    """Return --to. Raise UsageError if it is missing, does not fit the run, or needs packages that are missing."""
    reasons = {target: why_not(run.derived, target) for target in get_args(Target)}
    fitting = [target for target, reason in reasons.items() if reason is None]
    if options.to is None:
        raise UsageError(f"say --to {', '.join(reasons)}; of these, {' and '.join(fitting)} fit this run")
    if reason := reasons[options.to]:
        raise UsageError(f"--to {options.to} is not possible: {reason}. Use --to {', '.join(fitting)}")
    if options.to == "onnx" and not (find_spec("onnx") and find_spec("onnxscript")):
        raise UsageError("--to onnx needs onnx and onnxscript: pip install 'selfie-cli[onnx]'")
    return options.to


def description(run: Run, network: Network) -> dict[str, str]:
    """Return the file's header: how to rebuild the network and prepare its input. Lists and tables are JSON."""
    derived, size, kept = run.derived, network.image_size, network.preprocessing
    preprocessing = {
        "colours": "RGB, upright by the EXIF orientation, what is transparent shows white",
        "crop": "the centre square of the whole image",
        "resize": [network.storage_size] * 2,
        "interpolation": f"{kept.interpolation}, antialiased",
        "center_crop": [size] * 2,
        "range": "0 to 1: values of 0 to 255 are divided by 255",
        "crop_pct": kept.crop,
        "mean": kept.mean,
        "std": kept.std,
        "layout": "float32 [batch, 3, height, width]",
    }
    told = ("method", "arch", "backbone", "stem", "image_size", "patch_size")
    header = {key: str(derived[key]) for key in told if key in derived}
    header |= {"producer": f"selfie {__version__}", "features": network.features, "width": str(network.width)}
    header |= {key: json.dumps(derived[key]) for key in ("classes", "hybrid") if key in derived}
    header["pretrained_by"] = called(derived)
    return header | {"preprocessing": json.dumps(preprocessing)}


def loading_code(to: Target, run: Run, network: Network, file: Path, *, partial: bool) -> str:
    """Return Python code that loads the file and defines `preprocess`, `features` and, for a classifier, `classes` and
    `probabilities`. With torch, `preprocess` gives the pixels that `selfie embed` sees. Without torch, Pillow resizes
    images, and some pixels differ by 1 of 255 because of rounding.
    """
    module, preprocessing = network.module, network.preprocessing
    encoder: ResNet = module.encoder
    template = environment("selfie_cli.commands").get_template("loading.py.jinja")
    code: str = template.render(
        to=to,
        file=json.dumps(str(file), ensure_ascii=False),  # a JSON string is a valid Python string, too
        derived=run.derived,
        size=network.image_size,
        stored=network.storage_size,
        interpolation=preprocessing.interpolation,
        mean=list(preprocessing.mean),
        std=list(preprocessing.std),
        width=network.width,
        partial=partial,
        hybrid=isinstance(module, Hybrid),
        num_classes=module.head.out_features if isinstance(module, AnyClassifier) else 0,
        whole=encoder.num_stages == 4,
        norm=isinstance(encoder, PreActivationResNet) and encoder.norm is not None,
    )
    return code
