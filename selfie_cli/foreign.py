"""Networks not trained by selfie, described as a run's config: timm repositories and safetensors files.

This module needs no torch. The config is checked like that of any run, and the tensors when they are loaded.
"""

import json
from pathlib import Path
from typing import Any

from selfie_cli import hub
from selfie_cli.errors import UsageError
from selfie_cli.schema import ANY, MOST_CLASSES, SIDE, Within, check_complete, check_value, shown

IMAGENET = {
    "resnet50": "timm/resnet50.tv_in1k",
    "resnet18": "timm/resnet18.tv_in1k",
    "resnetv2_50": "timm/resnetv2_50.a1h_in1k",
    "resnetv2_18": "timm/resnetv2_18.ra4_e3600_r224_in1k",
}
"""Networks that have the same name in timm and selfie, and the repositories of their ImageNet weights."""
TIMM = {
    **{"crop_mode": str, "license": (str, None), "origin_url": (str, None), "global_pool": ("avg", "")},
    **{"num_classes": Within(0, MOST_CLASSES), "input_size": [SIDE], "crop_pct": Within(0.01, 1.0), "*": ANY},
    "model_args": {"in_chans": (3,), "global_pool": ("avg", ""), "num_classes": ANY},
}
"""Schema of a timm repository's config.json. Other model arguments are refused: they may change what it computes."""
ASSUMED = "preprocessing assumed: ImageNet's mean and standard deviation, the centre 224 px of 256"


def imagenet(backbone: str | None) -> str:
    """Return the Hub address of a network's ImageNet weights. None means resnet50, the usual one to compare with."""
    if backbone not in (None, *IMAGENET):
        raise UsageError(f"there are no ImageNet weights of {backbone}: choose --backbone {', '.join(IMAGENET)}")
    return f"{hub.PREFIX}{IMAGENET[backbone or 'resnet50']}"


def config_of(derived: dict[str, Any], source: str) -> dict[str, Any]:
    """Return the config of a network; a 7x7 stem and 224 px unless `derived` says otherwise. source: its origin."""
    derived = {"stem": "7x7", "image_size": 224, **derived}
    if "classes" in derived:
        if derived.get("weights", {}).get("num_stages") == 3 and "hybrid" not in derived:
            derived["frozen"] = derived["weights"]
        derived |= {"arch": derived.get("arch", "resnet"), "method": "finetune", "pretraining": derived["method"]}
    empty: dict[str, Any] = {name: {} for name in ("asked", "measured", "versions", "data")}
    return {"verb": "weights", "derived": derived, "source": source, "progress": {"status": "finished"}, **empty}


def from_timm(found: dict[str, Any], address: str | None) -> dict[str, Any]:
    """Return the config for a timm repository's config.json. Raise ValueError if selfie has no such network."""
    check_value(found, {"pretrained_cfg": {"*": ANY}, "*": ANY})
    known = {**found.get("pretrained_cfg", {}), **found}
    check_complete(known, "architecture")
    if known["architecture"] not in tuple(IMAGENET):
        raise ValueError(f"selfie has no {shown(known['architecture'])}; of timm's it has {', '.join(IMAGENET)}")
    check_value(known, TIMM)
    size = known.get("input_size", [3, 224, 224])
    if size != [3, *size[-1:] * 2] or known.get("crop_mode", "center") != "center":
        raise ValueError("its images are not squares in RGB, cut from the centre, and selfie has no others")
    repo = hub.parse(address).repo if address is not None else ""
    usual = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225], "interpolation": "bicubic"}
    preprocessing = {name: known.get(name, value) for name, value in usual.items()}
    derived = {
        "method": "imagenet" if repo in IMAGENET.values() else "timm",
        "pretrained_by": f"ImageNet's labels ({repo})" if repo in IMAGENET.values() else repo or "weights of timm",
        "backbone": known["architecture"],
        "image_size": size[-1],
        "preprocessing": preprocessing | {"crop": known.get("crop_pct", 0.875)},
    }
    names = known.get("label_names")
    names = list(names.values()) if isinstance(names, dict) else names
    if isinstance(names, list) and len(names) == known.get("num_classes"):
        derived["classes"] = names
    license = known.get("license") or (f"see {hub.host()}/{repo}" if repo else "not given")
    return config_of(derived, f"license {license}, from {known.get('origin_url') or repo or 'timm'}")


def from_file(path: Path) -> dict[str, Any]:
    """Return the config for a file of `selfie export`, or of tensors with timm's or torchvision's names.

    Raise ValueError for any other file.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            header = file.metadata() or {}
            names = {name.removeprefix("backbone.") for name in file.keys()}  # noqa: SIM118 - it is no dict
    except (SafetensorError, OSError) as error:
        raise ValueError(f"damaged, or no safetensors file: {error}") from None
    whole = not names.isdisjoint(("layer4.0.conv1.weight", "stages.3.blocks.0.conv1.weight"))
    closed = not names.isdisjoint(("norm.weight", "stages.3.blocks.0.norm1.weight"))
    kind = {"method": "weights", "weights": {"num_stages": 4 if whole else 3, "final_norm": closed}}
    if "preprocessing" in header:
        return config_of(kind | described(header), f"written by {header.get('producer', 'selfie')}")
    if "format_version" in header:
        raise ValueError("it is a run's, without its config.json: name the run's folder, or export it")
    depth = 18 if names.isdisjoint(("layer1.0.conv3.weight", "stages.0.blocks.0.conv3.weight")) else 50
    families = {"layer1.0.conv1.weight": "resnet", "stages.0.blocks.0.conv1.weight": "resnetv2_"}
    found = [f"{family}{depth}" for name, family in families.items() if name in names]
    if not found:
        raise ValueError(f"it holds none of {', '.join(IMAGENET)} under timm's or torchvision's names")
    return config_of(kind | {"backbone": found[0], "pretrained_by": "weights of a file"}, ASSUMED)


def described(header: dict[str, str]) -> dict[str, Any]:
    """Return the `derived` section from the header of an exported file. Raise ValueError if it is damaged."""
    try:
        preprocessing = json.loads(header["preprocessing"])
        derived: dict[str, Any] = {name: header[name] for name in ("arch", "backbone", "stem") if name in header}
        derived |= {name: json.loads(header[name]) for name in ("classes", "hybrid") if name in header}
        kept = {name: preprocessing[name] for name in ("mean", "std")}
        kept["interpolation"] = preprocessing["interpolation"].partition(",")[0]
        if preprocessing.get("crop_pct") is not None:
            kept["crop"] = preprocessing["crop_pct"]
        said = {"pretrained_by": header.get("pretrained_by", "weights of a file"), "preprocessing": kept}
        return derived | said | {"image_size": int(header["image_size"])}
    except (LookupError, TypeError, AttributeError, ValueError, RecursionError) as error:
        raise ValueError(f"its header is damaged ({error!r})") from None
