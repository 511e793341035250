"""What a run's config.json may hold, whoever wrote it: names, types, and sizes that no honest run exceeds.

A kind is a type, a tuple of what is allowed, `Within` limits, a list of a kind, or a table of kinds, where "*" stands
for any other name: without it, a name that is not in the table is refused. No name has to be there.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple, get_args, get_type_hints

from selfie_cli import config
from selfie_cli.option import Options, fits

MOST_CLASSES = 100_000
MOST_PATCHES = 128
"""Along a side: attention over more than 16,384 patches fits no machine."""


class Within(NamedTuple):
    """A number from `low` to `high`; without a fraction if the two have none."""

    low: float
    high: float


SHARE = Within(0.0, 1.0)
NUMBER = Within(0.0, 1e300)
COUNT = Within(0, config.MOST_STEPS)
SIDE = Within(1, config.MOST_PIXELS)
SIZE = Within(1, config.MOST_FEATURES)
AT_ONCE = Within(1, config.MOST_AT_ONCE)
STEPS = Within(1, config.MOST_STEPS)
SELFIE = {
    "views": (1, 2),
    "mask_ratio": SHARE,
    "encoder_positions": bool,
    "factorized_positions": bool,
    "final_norm": bool,
    "logit_scale": ("dot", "sqrt", "cosine"),
    "flip": bool,
    "apart": bool,
    "attraction": NUMBER,
    "distortion": NUMBER,
}
VIEWS = {
    **{"num_stages": (3, 4), "num_views": Within(2, 64), "view_scale": SHARE, "max_crop": SHARE},
    **{"hidden": SIZE, "width": SIZE, "temperature": NUMBER, "tau": SHARE},
    **{"min_crop": SHARE, "jitter": NUMBER, "blur": SHARE, "solarize": SHARE},
}
HYBRID = {
    **{name: SELFIE[name] for name in ("factorized_positions", "encoder_positions", "final_norm", "apart")},
    "patch_size": SIDE,
}
DERIVED = {
    "method": (*config.METHODS, "finetune"),
    "recipe": str,
    "arch": ("resnet", "hybrid"),
    "pretraining": str,
    "pretrained_by": str,
    "backbone": get_args(config.Backbone),
    "stem": ("3x3", "7x7"),
    "image_size": SIDE,
    "patch_size": SIDE,
    "classes": [str],
    "selfie": SELFIE | VIEWS,
    "byol": VIEWS,
    "simclr": VIEWS,
    "hybrid": HYBRID,
    "batch_size": AT_ONCE,
    "micro_batch": AT_ONCE,
    "optimizer": ("sgd", "lars", "adamw"),
    "lr": NUMBER,
    "weight_decay": NUMBER,
    "warmup_steps": COUNT,
    "precision": ("fp32", "bf16"),
    "compiles": bool,
    "checkpointed": bool,
    "processes": Within(1, 2**20),
    "image_order": (1, 2),
    "steps": STEPS,
    "steps_of_shares": [STEPS],
}
ANY = object
MEASURED = {
    **{name: COUNT for name in ("step", "threads")},
    **{name: NUMBER for name in ("seconds", "images_per_second", "data_wait", "accuracy")},
    **{name: str for name in ("device", "precision")},
    "last": {"*": Within(-1e300, 1e300)},
    "*": ANY,
}
DATA = {
    **{name: COUNT for name in ("images", "unreadable", "seen_test_images")},
    **{name: str for name in ("fingerprint", "split")},
    **{name: {"*": str} for name in ("fingerprints", "pinned")},
    "*": ANY,
}
SECTIONS: dict[str, Any] = {
    "format": int,
    "verb": ("pretrain", "finetune", "curve", "finetune-cell"),
    "asked": dict,
    "derived": DERIVED,
    "measured": MEASURED,
    "versions": {"*": str},
    "data": DATA,
    "progress": {"status": ("running", "finished"), "diverged": bool},
    "from": [{"path": (str, None), "sha256": str}],
    "hub": {"address": str},
    "*": ANY,
}
NEEDED = ("verb", "asked", "derived", "measured", "progress")
SIZES = ("steps", "batch_size", "micro_batch")
TO_PRETRAIN = ("method", "recipe", "backbone", "image_size", "optimizer", "lr", "weight_decay", "warmup_steps")
TO_FINETUNE = ("precision", "compiles", "processes")
ASKED: dict[str, type[Options]] = {
    "pretrain": config.PretrainOptions,
    "finetune": config.FinetuneOptions,
    "curve": config.CurveOptions,
}


def fault_of(config: dict[str, Any]) -> str | None:
    """What is wrong with a run's config, in words; None if nothing is."""
    found = lacking(config, NEEDED) or fault(config, SECTIONS) or lacking(config["progress"], ("status",))
    found = found or fault_of_network(config["derived"])
    found = found or fault_of_options(config["asked"], ASKED.get(config["verb"]), "asked")
    if found:
        return found
    finished = config["progress"]["status"] == "finished"
    return lacking(config["derived"], ("method", "image_size")) if finished else None


def fault_of_stopped(config: dict[str, Any]) -> str | None:
    """What a stopped run's config lacks to be resumed, in words; None if nothing."""
    derived = config["derived"]
    if config["verb"] == "pretrain":
        return lacking(derived, (*SIZES, *TO_PRETRAIN, derived.get("method"))) or lacking(config, ("data",))
    return lacking(derived, (*SIZES, *TO_FINETUNE))


def lacking(table: dict[str, Any], names: Sequence[str]) -> str | None:
    missing = [name for name in names if name not in table]
    return f"it lacks {missing[0]}" if missing else None


def fault_of_network(derived: dict[str, Any]) -> str | None:
    """What is wrong with the description of a network, or too large to be honest; None if nothing is."""
    if found := fault(derived, DERIVED, "derived"):
        return found
    if not 0 < len(derived.get("classes", "x")) <= MOST_CLASSES:
        return f"derived.classes are {len(derived['classes'])}, not 1 to {MOST_CLASSES:,}"
    patch_size = derived.get("patch_size") or derived.get("hybrid", {}).get("patch_size")
    along, rest = divmod(derived.get("image_size", 0), patch_size or 1)
    if patch_size and (rest or along > MOST_PATCHES):
        return f"derived.image_size is {derived['image_size']}, not 1 to {MOST_PATCHES} patches of {patch_size} px"
    return None


def fault(value: Any, kind: Any, where: str = "") -> str | None:
    """Where a value from JSON, or what lies in it, is not of its kind, in words; None if all is."""
    if isinstance(kind, dict):
        if not isinstance(value, dict):
            return f"{where} is {shown(value)}, not a table"
        for name, each in value.items():
            inside = f"{where}.{name}".lstrip(".")
            if "*" not in kind and name not in kind:
                return f"{inside} is not known here"
            if found := fault(each, kind.get(name) or kind["*"], inside):
                return found
        return None
    if isinstance(kind, list):
        if not isinstance(value, list):
            return f"{where} is {shown(value)}, not a list"
        return next((found for each in value if (found := fault(each, kind[0], where))), None)
    if isinstance(kind, Within):
        low, high = kind
        there = type(value) is int or (type(value) is float and type(low) is float)
        return None if there and low <= value <= high else f"{where} is {shown(value)}, not {low:,} to {high:,}"
    one_of = kind if isinstance(kind, tuple) else (kind,)
    if ANY in one_of or any(type(value) is each or (type(value) is type(each) and value == each) for each in one_of):
        return None
    return f"{where} is {shown(value)}, not {' or '.join(getattr(each, '__name__', str(each)) for each in one_of)}"


def fault_of_options(asked: dict[str, Any], kind: type[Options] | None, where: str) -> str | None:
    """As `fault`, of options of that class; whoever published a run has put null in place of what is private."""
    if kind is None:
        return None
    hints = get_type_hints(kind)
    for name, value in asked.items():
        inside = f"{where}.{name}"
        if name not in hints:  # of another version, and nothing depends on it
            continue
        if dataclasses.is_dataclass(hints[name]):
            if found := fault(value, {"*": ANY}, inside) or fault_of_options(value, hints[name], inside):
                return found
        elif value is not None:
            given = tuple(each or "" for each in value) if isinstance(value, list) else value
            if not fits(given, hints[name]):
                return f"{inside} is {shown(value)}"
    return None


def shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
