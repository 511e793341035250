"""Recipes: complete for every method, named in words, overridden by given options."""

import dataclasses
from pathlib import Path

import pytest

from selfie_cli import config
from selfie_cli.data.unlabelled import open_unlabelled
from selfie_cli.errors import UsageError
from selfie_cli.inference import networks
from selfie_cli.pretraining.settings import derive
from selfie_cli.recipes import RECIPES, called, num_stages, recipe_values
from selfie_cli.talk import Talk

TABLES = [(method, recipe) for method, recipes in RECIPES.items() for recipe in recipes]
AUTHORS = {"selfie": "Trinh et al. 2019", "byol": "Grill et al. 2020", "simclr": "Chen et al. 2020"}


@pytest.fixture
def derived(images):
    """A function of options: what follows from them for 60 images."""
    source = open_unlabelled((str(images / "train"),), data_root=Path("data"), offline=True, talk=Talk())
    return lambda **options: derive(config.PretrainOptions(**options), source)


def test_every_method_has_both_recipes_and_every_option_of_recipes_a_value():
    assert all(set(recipes) == {"best", "paper"} for recipes in RECIPES.values())
    assert num_stages({"method": "finetune", "arch": "hybrid"}) == 3  # those of the patch network
    options = {field.name for field in dataclasses.fields(config.PretrainOptions) if field.metadata["recipe"]}
    assert options <= {name for table in TABLES for name in recipe_values(*table, 32)}


@pytest.mark.parametrize(("method", "recipe"), TABLES)
def test_every_recipe_builds_its_method_and_what_is_kept_of_it_and_names_its_authors(method, recipe, derived):
    for image_size in (32, 224):
        found = derived(method=method, recipe=recipe, backbone="resnetv2_18_w16", image_size=image_size, batch_size=8)
        networks.build(found).load_state_dict(networks.build_method(found).export())
        assert (found["recipe"], found["batch_size"]) == (recipe, 8)
        assert found["optimizer"] in ("sgd", "lars", "adamw")
        words = called(found)
        assert (AUTHORS[method] in words) == ((method, recipe) != ("selfie", "best"))
    finetuned = {"method": "finetune", "pretraining": method}
    assert called({**finetuned, "pretrained_by": words}) == words
    assert called(finetuned).lower().startswith(method)  # a run from before this was noted


def test_the_papers_values_and_given_options_instead(derived):
    assert derived(recipe="paper", image_size=224)["selfie"]["factorized_positions"]
    byol = derived(recipe="paper", method="byol", batch_size=30)
    assert byol["lr"] == pytest.approx(0.45 * 30 / 256)
    assert byol["warmup_steps"] == 20  # ten epochs of 60 images
    given = derived(recipe="paper", method="byol", batch_size=30, lr=0.2, warmup_steps=3)
    assert (given["lr"], given["warmup_steps"]) == (0.2, 3)
    simclr, best = derived(method="simclr", temperature=0.3, image_size=32), recipe_values("simclr", "best", 32)
    assert simclr["simclr"]["temperature"] == 0.3
    assert (simclr["simclr"]["jitter"], simclr["lr"]) == (best["jitter"], best["lr"])


WITHOUT_MEANING = [
    *({"method": "selfie", "tau": 0.9}, {"method": "simclr", "patch_size": 8}),
    *({"method": name, "flip": False} for name in ("byol", "simclr")),
    *({"recipe": "paper", "min_crop": 0.5}, {"recipe": "paper", "temperature": 0.3}),
]


@pytest.mark.parametrize("options", WITHOUT_MEANING, ids=str)
def test_an_option_of_another_method_is_refused(options, derived):
    with pytest.raises(UsageError, match="has no meaning for --method"):
        derived(**options)


def test_selfie_and_byol_are_named_by_their_views():
    assert called({"method": "selfie", "selfie": {"views": 2}}).startswith("Selfie over two views")
    assert called({"method": "selfie", "selfie": {"num_views": 4}}).startswith("Selfie over many small views")
    assert called({"method": "byol", "byol": {"num_views": 4}}).startswith("BYOL over several small views")
