"""selfie finetune --frozen and curve --frozen, end to end, and every verb that takes their runs."""

import shutil
from pathlib import Path

import pytest
import torch
from running import SMALL, config_of, document, error_of, read, rows, same_weights, selfie, stopped

from selfie_cli import runs
from selfie_cli.inference import networks

SEEDS = (4, 5, 6)


@pytest.fixture(scope="module")
def frozen(images: Path, pretrained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three seeds, half of the labels, three stages."""
    run = tmp_path_factory.mktemp("runs") / "frozen"
    arguments = ("finetune", "--frozen", "--dataset", images, "--from", pretrained)
    selfie(*arguments, "--fraction", 0.5, "--seeds", 3, "--seed", 4, "--out", run)
    return run


def test_results_and_the_classifier_that_is_kept(frozen: Path, images: Path) -> None:
    results = read(frozen / "results.json")
    before, after = results["arms"]
    assert (before["name"], after["name"]) == ("untrained", "selfie")
    assert (results["frozen"], results["steps"], results["num_labels"]) == (True, 0, 30)
    for arm in (before, after):
        assert (arm["lr"], len(arm["strengths"]), len(arm["accuracies"])) == (None, 3, 3)
    assert "frozen features" in results["sentence"]
    assert {f"labels-f0.5-s{seed}.jsonl" for seed in SEEDS} <= {file.name for file in frozen.iterdir()}
    assert not (frozen / "cells").exists()
    assert config_of(frozen)["derived"]["frozen"] == {"num_stages": 3, "final_norm": True}
    accuracy = read(frozen / "results.json")["arms"][1]["accuracies"][0]
    shutil.copytree(frozen, "mine")
    judged = document("eval", "mine", "--dataset", images)
    assert judged["classified"]["top1"] == pytest.approx(accuracy)


def test_with_all_labels_it_is_the_linear_probe_of_eval(images: Path, pretrained: Path) -> None:
    shutil.copytree(pretrained, "untrained")
    judged = document("eval", "untrained", "--dataset", images)
    arguments = ("finetune", "--frozen", "--dataset", images, "--from", "untrained", "--no-baseline", "--seeds", 3)
    [arm] = document(*arguments, "--out", "r", "--no-report")["arms"]
    assert arm["accuracies"] == [judged["trained"]["linear"]]  # of one seed: all would have the same labels
    assert "of its own" in error_of("curve", *arguments[1:6], "--from", pretrained, code=2)
    assert arm["strengths"] == [judged["trained"]["linear_strength"]]


def test_every_verb_takes_the_run(frozen: Path, images: Path) -> None:
    (row,) = rows("embed", next((images / "test" / "cat").iterdir()), "--from", frozen)
    network = networks.load_network(runs.open_run(frozen), features=None, device=torch.device("cpu"))
    assert len(row["vector"]) == network.width == network.module.encoder.num_features
    page = (frozen / "report.html").read_text()
    assert "L2 strength" in page
    assert "the same command without --frozen compares" in page
    card = selfie("push", frozen, "acme/net", "--public", "--dry-run").stdout
    assert "Linear classifiers on frozen features" in card
    assert "| untrained |" in card
    assert "a linear classifier on 30 labels" in card
    selfie("export", frozen, "--to", "safetensors")
    assert "three stages" in error_of("export", frozen, "--to", "timm", code=2)
    again = selfie("finetune", "--frozen", "--dataset", images, "--from", frozen, "--no-report", "--out", "again")
    assert "was finetuned on labels" not in again.stderr  # its encoder has seen none


def test_a_stopped_run_ends_the_same(frozen: Path) -> None:
    selfie("finetune", "--resume", stopped(frozen, "part"))
    assert read("part/results.json") | {"run": ""} == read(frozen / "results.json") | {"run": ""}
    assert same_weights(Path("part"), frozen)


def test_a_curve_of_networks_with_three_and_four_stages(images: Path, pretrained: Path) -> None:
    byol = ("--method", "byol", "--num-stages", 4, "--steps", 1, "--warmup-steps", 1)
    selfie("pretrain", images, *SMALL, *byol, "--out", "byol")
    asked = ("--frozen", "--dataset", images, "--from", pretrained, "--from", "byol", "--fractions", "0.5,1")
    result = selfie("curve", *asked, "--out", "r")
    found = read("r/results.json")
    assert [arm["name"] for arm in found["points"][0]["arms"]] == ["untrained", "selfie", "byol"]
    assert "Gain over untrained" in result.stdout
    assert "steps" not in result.stdout.splitlines()[1]
    assert found["remarks"].keys() == {"byol"}
    assert [len(point["seeds"]) for point in found["points"]] == [3, 1]  # all labels are the same for each seed
    assert found["sentences"][0].startswith("Selfie (frozen features, over untrained): at 50 %")
    (row,) = rows("predict", "r", next((images / "test" / "cat").iterdir()))
    assert row["label"] in config_of("r")["derived"]["classes"]
