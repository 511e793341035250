"""The table of pretraining methods, read from recipes.toml: their names in words, their papers, and their recipes."""

import tomllib
from dataclasses import dataclass
from importlib import resources
from typing import Any

from selfie_cli.errors import UsageError


@dataclass(frozen=True, kw_only=True)
class MethodFacts:
    """A pretraining method.

    code: its class, as module:class. title: its name at the beginning of a sentence. num_views: views per image in its
    paper. words, arxiv: method and paper; more_views_words, more_views_arxiv: the same for more than `num_views` views.
    """

    code: str
    title: str
    num_views: int = 2
    words: str
    arxiv: str
    more_views_words: str = ""
    more_views_arxiv: str = ""


RECIPES: dict[str, dict[str, dict[str, Any]]] = tomllib.loads(
    resources.files("selfie_cli").joinpath("recipes.toml").read_text("utf-8")
)
"""method -> recipe -> option -> value, or a table of values for `small` (up to 64 px) and `large` images."""
METHODS = {name: MethodFacts(**tables.pop("method")) for name, tables in RECIPES.items()}
TWO_VIEW_SELFIE = "Selfie over two views (softmax over other images)"
"""A recipe of version 1. Its runs can be used, but no longer trained."""
LABELS = "labels (a finetuned network)"
THEN, AGAIN = ", then ", "once more"
"""Words between the successive pretrainings of a network, and in place of a repeated one."""
PRETRAININGS = {"finetune": LABELS, "none": "no pretraining"}


def titled(name: str) -> str:
    """Return the name of a method or other pretraining, spelled as at the start of a sentence."""
    if name == "imagenet":
        return "ImageNet"
    return METHODS[name].title if name in METHODS else name[:1].upper() + name[1:]


def called(derived: dict[str, Any]) -> str:
    """Return in words the methods and recipes that pretrained a network, from the `derived` section of its config.

    If pretraining started from other weights, those come first: "ImageNet's labels, then Selfie ...".
    """
    name, earlier = str(derived.get("method")), derived.get("pretrained_by")
    if earlier and name not in METHODS:
        return str(earlier)
    if earlier:
        words = called({**derived, "pretrained_by": None})
        same = earlier.replace(f"{THEN}{AGAIN}", "").endswith(words)
        return f"{earlier}{THEN}{AGAIN if same else words}"
    if name == "finetune":
        name = str(derived.get("pretraining", "none"))
        return PRETRAININGS.get(name) or titled(name)
    if name not in METHODS:
        return PRETRAININGS.get(name, name)
    method, values = METHODS[name], derived.get(name, {})
    if values.get("views") == 2:
        return TWO_VIEW_SELFIE
    if values.get("views", values.get("num_views", 2)) > method.num_views:
        return method.more_views_words or method.words
    return method.words


def trained_by(derived: dict[str, Any]) -> str:
    """Return in words what trained a network's weights: its pretraining as in `called`, then labels if finetuned."""
    words = called(derived)
    if "classes" not in derived or "frozen" in derived:
        return words
    return LABELS if words == PRETRAININGS["none"] else f"{words}{THEN}{LABELS}"


def arxiv(words: str) -> str | None:
    """Return the arXiv number of the paper for a pretraining in the words of `called`; None for other words."""
    for method in METHODS.values():
        if words.startswith(method.more_views_words or method.words):
            return method.more_views_arxiv or method.arxiv
        if words.startswith(method.title):
            return method.arxiv
    return None


def num_stages(derived: dict[str, Any]) -> int:
    """Return the number of stages of a run's network, from its `derived` section. Runs of version 1 may lack it."""
    if "frozen" in derived:
        return int(derived["frozen"]["num_stages"])
    if derived.get("arch") == "hybrid":
        return 3
    if derived["method"] == "selfie":
        return 3 if "views" in derived["selfie"] else int(derived["selfie"]["num_stages"])
    return int(derived.get(derived["method"], {}).get("num_stages", 4))


def cuts_patches(values: dict[str, Any]) -> bool:
    """Return whether a method's values are those of the paper's Selfie, which cuts an image into patches."""
    return values.get("views") == 1


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


def recipe_note(name: str) -> str:
    """Return an option's value in each recipe of every method that has the option, for its help."""
    notes = []
    for each, recipes in RECIPES.items():
        words = {recipe: text for recipe, table in recipes.items() if (text := value_in(table, name))}
        if len(set(words.values())) == 1 and len(words) == len(recipes):
            words = {"": next(iter(words.values()))}
        text = ", ".join(f"{recipe} {word}".strip() for recipe, word in words.items())
        if text:
            notes.append(f"{each} {text}")
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
