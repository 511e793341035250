"""The schema of a run's config.json, which may come from a stranger: names, types, and sizes no honest run exceeds.

A kind is a type, a tuple of allowed values and types, `Within` limits, a list of a kind, or a table of kinds. In a
table, "*" stands for any other name; without it, other names are refused. No name is required.
"""

from types import NoneType
from typing import Any, NamedTuple, get_args, get_type_hints

from selfie_cli import config
from selfie_cli.option import Options, fits, options_of
from selfie_cli.recipes import METHODS

FOREIGN = ("imagenet", "timm", "weights")
"""Methods of networks that selfie has not pretrained: see `foreign`."""
MOST_CLASSES = 100_000
MOST_PATCHES = 128
"""Largest number of patches along a side: attention over more than 16,384 of them fits no machine."""


class Within(NamedTuple):
    """A number from `low` to `high`; an integer if both are integers."""

    low: float
    high: float


NUMBER = Within(0.0, 1e300)
COUNT = Within(0, config.MOST_STEPS)
SIDE = Within(1, config.MOST_PIXELS)
AT_ONCE = Within(1, config.MOST_AT_ONCE)
STEPS = Within(1, config.MOST_STEPS)


def recipe_kinds() -> dict[str, Any]:
    """Return the kind of each option of a recipe, from its type and its limits."""
    kinds: dict[str, Any] = {}
    for one in options_of(config.PretrainOptions):
        if one.field.metadata["recipe"]:
            [kind] = set(get_args(one.hint)) - {NoneType}
            limits, number = one.field.metadata["limits"], {int: COUNT, float: NUMBER}.get(kind)
            if number is None:
                kinds[one.name] = get_args(kind) or kind
            else:
                low, high = limits.get("at least", number.low), limits.get("at most", number.high)
                kinds[one.name] = Within(kind(low), kind(high))
    return kinds


RECIPE_KINDS = recipe_kinds() | {"views": (1, 2), "apart": bool, "factorized_positions": bool}
HYBRID = {
    **dict.fromkeys(("factorized_positions", "encoder_positions", "final_norm", "apart"), bool),
    "patch_size": SIDE,
}
PREPROCESSING = {
    **{"mean": [Within(-10.0, 10.0)], "std": [Within(1e-4, 1e4)], "crop": Within(0.01, 1.0)},
    "interpolation": ("bicubic", "bilinear"),
}
FROZEN = {"num_stages": (3, 4), "final_norm": bool}
DERIVED = {
    **dict.fromkeys(("recipe", "pretraining", "pretrained_by"), str),
    **dict.fromkeys(("image_size", "patch_size"), SIDE),
    **dict.fromkeys(("batch_size", "micro_batch"), AT_ONCE),
    "batch_sizes": [AT_ONCE],
    **dict.fromkeys(("lr", "weight_decay"), NUMBER),
    **dict.fromkeys(("compiles", "checkpointed"), bool),
    **{"method": (*METHODS, *FOREIGN, "finetune"), "arch": ("resnet", "hybrid"), "classes": [str]},
    **{"backbone": get_args(config.Backbone), "stem": ("3x3", "7x7")},
    **dict.fromkeys(METHODS, RECIPE_KINDS),
    "hybrid": HYBRID,
    **{"frozen": FROZEN, "weights": FROZEN, "preprocessing": PREPROCESSING},
    **{"optimizer": ("sgd", "lars", "adamw"), "precision": ("fp32", "bf16"), "image_order": (1, 2)},
    **{"steps": STEPS, "steps_of_shares": [STEPS], "warmup_steps": COUNT, "processes": Within(1, 2**20)},
}
ANY = object
MEASURED = {
    **dict.fromkeys(("step", "threads"), COUNT),
    **dict.fromkeys(("seconds", "images_per_second", "data_wait", "accuracy"), NUMBER),
    **dict.fromkeys(("device", "precision"), str),
    "last": {"*": Within(-1e300, 1e300)},
    "*": ANY,
}
DATA = {
    **dict.fromkeys(("images", "unreadable", "seen_test_images", "like_training_images"), COUNT),
    **dict.fromkeys(("fingerprint", "split"), str),
    **{"fingerprints": {"*": str}, "pinned": {"*": str}, "unmarked": (str, None)},
    "*": ANY,
}
SECTIONS: dict[str, Any] = {
    "format": int,
    "verb": ("pretrain", "finetune", "curve", "finetune-cell", "weights"),
    "asked": dict,
    "derived": dict,  # see `check_network`
    "measured": MEASURED,
    "versions": {"*": str},
    "data": DATA,
    "progress": {"status": ("running", "finished"), "diverged": bool},
    "from": [{"path": (str, None), "sha256": str}],
    "hub": {"address": str},
    "source": str,
    "*": ANY,
}
TO_RESUME = ("steps", "batch_size", "micro_batch")
"""Names that `derived` must have to resume any run; the two tuples below are for one verb each."""
TO_PRETRAIN = ("method", "recipe", "backbone", "image_size", "optimizer", "lr", "weight_decay", "warmup_steps")
TO_FINETUNE = ("precision", "compiles", "processes")
ASKED: dict[str, type[Options]] = {
    "pretrain": config.PretrainOptions,
    "finetune": config.FinetuneOptions,
    "curve": config.CurveOptions,
}


def check(config: dict[str, Any]) -> None:
    """Raise ValueError for an invalid config of a run."""
    check_complete(config, "verb", "asked", "derived", "measured", "progress")
    check_value(config, SECTIONS)
    check_complete(config["progress"], "status")
    check_network(config["derived"])
    if kind := ASKED.get(config["verb"]):
        check_options(config["asked"], kind)
    if config["progress"]["status"] == "finished":
        check_complete(config["derived"], "method", "image_size")


def check_stopped(config: dict[str, Any]) -> None:
    """Raise ValueError if a stopped run's config lacks a value that is needed to resume it."""
    derived = config["derived"]
    if config["verb"] == "pretrain":
        check_complete(derived, *TO_RESUME, *TO_PRETRAIN, derived.get("method"))
        check_complete(config, "data")
    elif "frozen" not in derived:
        check_complete(derived, *TO_RESUME, *TO_FINETUNE)


def check_complete(table: dict[str, Any], *names: str) -> None:
    for name in names:
        if name not in table:
            raise ValueError(f"it lacks {name}")


def check_network(derived: dict[str, Any]) -> None:
    """Raise ValueError if `derived` does not describe a network, or an implausibly large one."""
    check_value(derived, DERIVED, "derived")
    if not 0 < len(derived.get("classes", "x")) <= MOST_CLASSES:
        raise ValueError(f"derived.classes are {len(derived['classes'])}, not 1 to {MOST_CLASSES:,}")
    preprocessing, size = derived.get("preprocessing", {}), derived.get("image_size", 1)
    if any(len(preprocessing.get(name, "rgb")) != 3 for name in ("mean", "std")):
        raise ValueError("derived.preprocessing is not of three channels")
    if size / preprocessing.get("crop", 1) > config.MOST_PIXELS:
        raise ValueError(f"derived.preprocessing.crop needs images of more than {config.MOST_PIXELS} px")
    patch_size = derived.get("patch_size") or derived.get("hybrid", {}).get("patch_size")
    along, rest = divmod(derived.get("image_size", 0), patch_size or 1)
    if patch_size and (rest or along > MOST_PATCHES):
        allowed = f"1 to {MOST_PATCHES} patches of {patch_size} px"
        raise ValueError(f"derived.image_size is {derived['image_size']}, not {allowed}")


def check_value(value: Any, kind: Any, where: str = "") -> None:
    """Raise ValueError if a JSON value, or a value inside it, does not match its kind."""
    if isinstance(kind, dict):
        expected, fits_kind = "a table", isinstance(value, dict)
    elif isinstance(kind, list):
        expected, fits_kind = "a list", isinstance(value, list)
    elif isinstance(kind, Within):
        low, high = kind
        is_number = type(value) is int or (type(value) is float and type(low) is float)
        expected, fits_kind = f"{low:,} to {high:,}", is_number and low <= value <= high
    else:
        one_of = kind if isinstance(kind, tuple) else (kind,)
        expected = " or ".join(getattr(each, "__name__", str(each)) for each in one_of)
        fits_kind = ANY in one_of or any(
            type(value) is each or (type(value) is type(each) and value == each) for each in one_of
        )
    if not fits_kind:
        raise ValueError(f"{where} is {shown(value)}, not {expected}")
    if isinstance(kind, dict):
        for name, each in value.items():
            inside = f"{where}.{name}".lstrip(".")
            if name not in kind and "*" not in kind:
                raise ValueError(f"{inside} is not known here")
            check_value(each, kind.get(name) or kind["*"], inside)
    elif isinstance(kind, list):
        for each in value:
            check_value(each, kind[0], where)


def check_options(asked: dict[str, Any], kind: type[Options]) -> None:
    """Raise ValueError if an option has the wrong type. None is allowed: a published run has it for private values."""
    hints = get_type_hints(kind)
    for name, value in asked.items():
        if name not in hints:  # options of other versions are ignored
            continue
        given = tuple(each or "" for each in value) if isinstance(value, list) else value
        if value is not None and not fits(given, hints[name]):
            raise ValueError(f"asked.{name} is {shown(value)}")


def shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
