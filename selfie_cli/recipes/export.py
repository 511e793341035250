"""selfie export: a run's network in a file for another library, and the code that loads it there."""

import json
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, get_args

import torch

from selfie_cli import __version__, runs
from selfie_cli.config import ExportOptions, Target
from selfie_cli.data.augment import MEAN, STD
from selfie_cli.data.store import storage_size
from selfie_cli.errors import UsageError
from selfie_cli.files import followed, replacing
from selfie_cli.models.hybrid import AnyClassifier, Hybrid
from selfie_cli.models.portable import KNOWN_TO, as_onnx, as_whole_network
from selfie_cli.models.resnet import PreActivationResNet, ResNet
from selfie_cli.recipes import networks
from selfie_cli.recipes.inference import check_file
from selfie_cli.runs import Run
from selfie_cli.talk import Talk
from selfie_cli.weights import save_weights


@dataclass(frozen=True, kw_only=True)
class Exported:
    """What `export` did. `missing` are the tensors of the other library's network that the file does not hold, sorted;
    `code` is Python that loads the file there."""

    out: Path
    to: Target
    features: str
    width: int
    classes: list[str] | None
    missing: list[str]
    code: str


def export(options: ExportOptions, talk: Talk) -> Exported:
    """Write the network that `selfie embed` and `predict` use for `options.to`, whole or not at all."""
    run, line = runs.resolve_from(options.run or "none", talk=talk)
    if run is None:
        raise UsageError("name a trained run: its folder, hf://owner/name, or bundled")
    talk.say(line)
    to = target_of(options, run)
    suffix = ".onnx" if to == "onnx" else ".safetensors"
    name = f"{run.name}{'' if to in ('onnx', 'safetensors') else f'-{to}'}{suffix}"
    out = check_file(options.out or name, [suffix], overwrite=options.overwrite)

    network = networks.load_network(run, features=None, device=torch.device("cpu"))
    classifier = network.module if isinstance(network.module, AnyClassifier) else None
    encoder: ResNet = network.module.encoder
    kept = classifier or encoder  # of a pretraining run nothing else takes part in its features
    width = classifier.head.in_features if classifier else encoder.num_features
    header = description(run, features=network.features, width=width)
    missing: list[str] = []
    if to == "onnx":
        data = as_onnx(kept, image_size=network.image_size, metadata=header, producer=f"selfie {__version__}")
        with replacing(followed(out)) as temporary:
            temporary.write_bytes(data)
    elif to == "safetensors":
        save_weights(followed(out), kept.state_dict(), header)
    else:
        head = classifier.head if classifier else None
        state, missing = as_whole_network(run.derived["backbone"], encoder, head)
        save_weights(followed(out), state, header | {"missing": json.dumps(missing)})
    also = ", and probabilities" if classifier else ""
    talk.say(f"{out} gives what selfie embed does: {network.features} features, {width} numbers{also}")
    if missing:
        talk.say(f"not in it: {len(missing)} tensors from the fourth stage on, since three stages were pretrained")
    code = loading_code(to, run, kept, str(out), width=width, partial=bool(missing))
    return Exported(
        out=out,
        to=to,
        features=network.features,
        width=width,
        classes=run.derived.get("classes"),
        missing=missing,
        code=code,
    )


def target_of(options: ExportOptions, run: Run) -> Target:
    """Raises UsageError if --to is not given, does not fit the run, or needs packages that are not there."""
    reasons = {target: why_not(run, target) for target in get_args(Target)}
    fitting = [target for target, reason in reasons.items() if reason is None]
    if options.to is None:
        raise UsageError(f"say --to {', '.join(reasons)}; of these, {' and '.join(fitting)} fit this run")
    if reason := reasons[options.to]:
        raise UsageError(f"--to {options.to} cannot be: {reason}. Take --to {', '.join(fitting)}")
    if options.to == "onnx" and not (find_spec("onnx") and find_spec("onnxscript")):
        raise UsageError("--to onnx needs onnx and onnxscript: pip install 'selfie-cli[onnx]'")
    return options.to


def why_not(run: Run, to: Target) -> str | None:
    """Why a library has no place for a run's network; None if it has one."""
    backbone, stem = run.derived.get("backbone"), run.derived.get("stem")
    if to not in KNOWN_TO:
        return None
    if run.derived.get("arch") == "hybrid":
        return f"{to} has no network that ends in Selfie's attention pooling"
    if backbone not in KNOWN_TO[to]:
        return f"{to} has no {backbone}"
    if stem != "7x7":
        return f"the network begins with a {stem} convolution, for small images, and {to}'s {backbone} with 7x7"
    return None


def description(run: Run, *, features: str, width: int) -> dict[str, str]:
    """What the file says of itself: how to rebuild the network, and what to show it. Lists and tables are JSON."""
    derived, size = run.derived, int(run.derived["image_size"])
    preprocessing = {
        "colours": "RGB, upright by the EXIF orientation, what is transparent shows white",
        "crop": "the centre square of the whole image",
        "resize": [storage_size(size)] * 2,
        "interpolation": "bicubic, antialiased",
        "center_crop": [size] * 2,
        "range": "0 to 1: values of 0 to 255 are divided by 255",
        "mean": MEAN,
        "std": STD,
        "layout": "float32 [batch, 3, height, width]",
    }
    told = ("method", "arch", "backbone", "stem", "image_size", "patch_size")
    header = {key: str(derived[key]) for key in told if key in derived}
    header |= {"producer": f"selfie {__version__}", "features": features, "width": str(width)}
    if "classes" in derived:
        header["classes"] = json.dumps(derived["classes"])
    return header | {"preprocessing": json.dumps(preprocessing)}


def loading_code(to: Target, run: Run, kept: ResNet | AnyClassifier, file: str, *, width: int, partial: bool) -> str:
    """Python to paste, which loads the file and defines `preprocess`, `features` and, of a classifier, `classes` and
    `probabilities`. In torch, `preprocess` gives the pixels that `selfie embed` sees; without torch, Pillow resizes,
    which rounds some of them otherwise, by 1 of 255.
    """
    size, file = int(run.derived["image_size"]), json.dumps(file, ensure_ascii=False)  # a string in Python, too
    stored = storage_size(size)
    resized = f"square.resize(({stored}, {stored}), Image.Resampling.BICUBIC)"
    if to == "onnx":
        begin = f"""\
import json

import numpy as np
import onnxruntime
from PIL import Image, ImageOps

session = onnxruntime.InferenceSession({file}, providers=["CPUExecutionProvider"])
about = session.get_modelmeta().custom_metadata_map"""
        resize, images, decorator = f"pixels = np.asarray({resized})", "normalized", ""
        answers = [f'return session.run(["{name}"], {{"images": images}})[0]' for name in ("features", "probabilities")]
    else:
        library, model, lines = in_torch(to, run.derived, kept)
        load = "model.load_state_dict(state, strict=True)"
        if partial:
            load = """\
lacking, unexpected = model.load_state_dict(state, strict=False)
assert sorted(lacking) == json.loads(about["missing"]) and not unexpected"""
        begin = f"""\
import json

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps
from safetensors import safe_open

{library}

with safe_open({file}, "pt") as file:
    about = file.metadata()
    state = {{name: file.get_tensor(name) for name in file.keys()}}
model = {model}
{load}
model.eval()"""
        resize = f"""\
pixels = torch.from_numpy(np.array(square)).permute(2, 0, 1)[None]
    pixels = F.interpolate(pixels, ({stored}, {stored}), mode="bicubic", antialias=True)
    pixels = pixels[0].permute(1, 2, 0).numpy()"""
        images, decorator = "torch.from_numpy(normalized)", "@torch.inference_mode()\n"
        answers = ["\n    ".join(lines), "return model(images).softmax(1)"]
    margin = (stored - size) // 2
    if margin:
        resize += f"\n    pixels = pixels[{margin}:{margin + size}, {margin}:{margin + size}]"
    code = f'''\
{begin}


def preprocess(path):
    """An opaque image as the network saw those it was trained on: float32 [1, 3, {size}, {size}]."""
    image = Image.open(path)
    if min(image.size) >= {4 * stored}:
        image.draft(None, ({2 * stored}, {2 * stored}))  # a JPEG is not decoded larger than it need be
    image = ImageOps.exif_transpose(image).convert("RGB")
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    square = image.crop((left, top, left + side, top + side))
    {resize}
    normalized = (pixels / 255 - {list(MEAN)}) / {list(STD)}
    normalized = normalized.astype(np.float32).transpose(2, 0, 1)[None]
    return {images}


{decorator}def features(images):
    """What selfie embed gives: float32 [B, {width}]."""
    {answers[0]}
'''
    if isinstance(kept, AnyClassifier):
        code += f'''

classes = json.loads(about["classes"])


{decorator}def probabilities(images):
    """What selfie predict gives, in the order of `classes`: float32 [B, {kept.head.out_features}]."""
    {answers[1]}
'''
    return code


def in_torch(to: Target, derived: dict[str, Any], kept: ResNet | AnyClassifier) -> tuple[str, str, list[str]]:
    """In source code: the import of a library, its network without our weights, and how to compute features by it."""
    name, stem, size = derived["backbone"], derived["stem"], derived["image_size"]
    num_classes = len(derived["classes"]) if isinstance(kept, AnyClassifier) else 0
    whole = isinstance(kept, AnyClassifier) or kept.num_stages == 4
    norm = isinstance(kept, PreActivationResNet) and kept.norm is not None
    if to == "timm":
        model = f'timm.create_model("{name}", num_classes={num_classes})'
        if whole:
            return "import timm", model, ["return model.forward_features(images).mean((2, 3))"]
        lines = ["maps = model.forward_intermediates(images, indices=[3], intermediates_only=True)[0]"]
        if norm:
            lines += ["maps = model.stages[3].blocks[0].norm1(maps)  # batch norm and ReLU: how stage 4 begins"]
        return "import timm", model, [*lines, "return maps.mean((2, 3))"]
    if to == "torchvision":
        model = f"torchvision.models.{name}(num_classes={num_classes})"
        if not num_classes:
            model = f"torchvision.models.{name}()\nmodel.fc = torch.nn.Identity()"
        stages = "stem and four stages" if whole else "stem and three stages"
        trunk = f"trunk = torch.nn.Sequential(*list(model.children())[:{8 if whole else 7}])  # {stages}"
        return "import torchvision", model, [trunk, "return trunk(images).mean((2, 3))"]
    if isinstance(kept, Hybrid):
        own = ", ".join(f"{key}={value!r}" for key, value in derived["hybrid"].items())
        model = f'Hybrid("{name}", image_size={size}, num_classes={num_classes}, {own})'
        return "from selfie_cli.models.hybrid import Hybrid", model, ["return model.features(images)"]
    if num_classes:
        model = f'Classifier("{name}", stem="{stem}", num_classes={num_classes})'
        return "from selfie_cli.models.classifier import Classifier", model, ["return model.features(images)"]
    model = f'resnet("{name}", stem="{stem}", num_stages={4 if whole else 3}, final_norm={whole or norm})'
    return "from selfie_cli.models.resnet import resnet", model, ["return model(images).mean((2, 3))"]
