"""The values of `--recipe`, read from recipes.toml, and the names of methods in words."""

import tomllib
from importlib import resources
from typing import Any

from selfie_cli.errors import UsageError

RECIPES: dict[str, dict[str, dict[str, Any]]] = tomllib.loads(
    resources.files("selfie_cli").joinpath("recipes.toml").read_text("utf-8")
)
"""method -> recipe -> option -> value, or a table of values for `small` (up to 64 px) and `large` images."""

SELFIE = {
    1: "Selfie (patches of one image, Trinh et al. 2019)",
    2: "Selfie over two views (softmax over other images)",
    None: "Selfie over many small views (coding rate, after EMP-SSL and MCR^2)",
}
"""Selfie's variants in words, by the number of views in the run's config; None is for any other number."""
PRETRAININGS = {
    "byol": "BYOL (Grill et al. 2020)",
    "simclr": "SimCLR (Chen et al. 2020)",
    "finetune": "labels (a finetuned network)",
    "none": "no pretraining",
}


def called(derived: dict[str, Any]) -> str:
    """Return the method and recipe that pretrained a network, in words, from the `derived` section of its config."""
    method = str(derived.get("method"))
    if method not in RECIPES and derived.get("pretrained_by"):
        return str(derived["pretrained_by"])
    if method == "finetune":
        method = str(derived.get("pretraining", "none"))
        return PRETRAININGS.get(method, method.title())
    if method == "selfie":
        return SELFIE.get(derived.get("selfie", {}).get("views"), SELFIE[None])
    several = derived.get(method, {}).get("num_views", 2) > 2
    return PRETRAININGS.get(method, method).replace(" (", " over several small views (after " if several else " (")


def num_stages(derived: dict[str, Any]) -> int:
    """Return the number of stages of a run's network, from its `derived` section. Runs of version 1 may lack it."""
    if derived["method"] == "selfie":
        return 3 if "views" in derived["selfie"] else int(derived["selfie"]["num_stages"])
    return int(derived.get(derived["method"], {}).get("num_stages", 4))


def recipe_values(method: str, recipe: str, image_size: int) -> dict[str, Any]:
    """Return a recipe's values for images of this size. Raise UsageError if the method has no such recipe."""
    if recipe not in RECIPES[method]:
        raise UsageError(f"--method {method} has no recipe {recipe!r}: {', '.join(RECIPES[method])}")
    size = "small" if image_size <= 64 else "large"
    return {
        name: value[size] if isinstance(value, dict) else value
        for name, value in RECIPES[method][recipe].items()
        if not isinstance(value, dict) or size in value
    }


def recipe_note(name: str, method: str | None = None) -> str:
    """Return an option's value in each recipe, for its help; of one method, or of all methods that have the option."""
    notes = []
    for each, recipes in RECIPES.items() if method is None else [(method, RECIPES[method])]:
        words = {recipe: text for recipe, table in recipes.items() if (text := value_in(table, name))}
        if len(set(words.values())) == 1 and len(words) == len(recipes):
            words = {"": next(iter(words.values()))}
        text = ", ".join(f"{recipe} {word}".strip() for recipe, word in words.items())
        if text:
            notes.append(text if method else f"{each} {text}")
    return f" Default: {'; '.join(notes)}." if notes else ""


def value_in(table: dict[str, Any], name: str) -> str:
    """Return a recipe's value of an option in words; '' if it has none."""
    if name == "warmup_steps" and "warmup_epochs" in table:
        return f"{table['warmup_epochs']} epochs"
    if name not in table:
        return ""
    return shown(table[name]) + (" per 256 images" if name == "lr" and "lr_per_256_images" in table else "")


def shown(value: Any) -> str:
    if isinstance(value, dict):
        sizes = {"small": "up to 64 px", "large": "above 64 px"}
        return ", ".join(f"{shown(each)} {sizes[size]}" for size, each in value.items())
    if isinstance(value, bool):
        return "on" if value else "off"
    return f"{value:g}" if isinstance(value, float) else str(value)
