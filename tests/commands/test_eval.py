"""selfie eval, end to end: the table's numbers, beside what they are to be compared with."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from running import draw_folder, error_of, selfie

from selfie_cli import runs
from selfie_cli.data.labelled import open_labelled
from selfie_cli.data.pixels import read_pixels, storage_size
from selfie_cli.inference import networks
from selfie_cli.talk import Talk
from selfie_cli.weights import load_weights, save_weights


def evaluated(run: Path, *arguments: object) -> dict[str, Any]:
    document = json.loads(selfie("eval", run, *arguments, "--json").stdout)
    assert isinstance(document, dict)
    return document


def test_a_pretrained_run_beside_untrained_majority_and_chance(pretrained: Path, images: Path) -> None:
    found = evaluated(pretrained, "--dataset", images)
    assert (found["num_train"], found["num_test"], len(found["classes"])) == (60, 30, 10)
    assert found["chance"] == 0.25
    assert found["majority"] == pytest.approx(0.1)
    assert found["classified"] is None
    for side in ("trained", "untrained"):
        for name in ("knn", "linear", "pretext_accuracy"):
            assert 0 <= found[side][name] <= 1, (side, name)
    assert found["trained"] != found["untrained"]
    assert found["dataset"] == "images"
    assert json.loads((pretrained / "eval-images.json").read_text()) == {**found, "where": str(images)}


def with_statistics_of(images: Path, pretrained: Path) -> Path:
    """The run with the batch-norm statistics of the whole training images, which eval judges by."""
    shutil.copytree(pretrained, "estimated")
    run = runs.open_run("estimated")
    network = networks.load_network(run, features=None, device=torch.device("cpu"))
    part = open_labelled(str(images), data_root=Path("data"), offline=True, talk=Talk()).train
    pixels = read_pixels(part.source, size=storage_size(32), workers=1, max_bad=0, talk=Talk()).pixels
    networks.estimate_batch_norm(network.module, network.vectors, pixels)
    save_weights(run.weights, network.module.state_dict(), {})
    return run.path


def test_knn_is_what_numpy_finds_from_the_embedded_vectors(pretrained: Path, images: Path) -> None:
    found = evaluated(pretrained, "--dataset", images, "--k", 5, "--temperature", 0.1)
    pretrained = with_statistics_of(images, pretrained)
    vectors, labels = {}, {}
    for part in ("train", "test"):
        selfie("embed", images / part, "--from", pretrained, "--out", f"{part}.npy")
        rows = [json.loads(line) for line in Path(f"{part}.npy.rows.jsonl").read_text().splitlines()]
        matrix = np.load(f"{part}.npy").astype(np.float64)
        vectors[part] = matrix / np.linalg.norm(matrix, axis=1, keepdims=True)
        labels[part] = np.array([Path(row["path"]).parent.name for row in rows])
    right = 0
    for vector, label in zip(vectors["test"], labels["test"], strict=True):
        similarity = vectors["train"] @ vector
        votes: dict[str, float] = {}
        for row in np.argsort(-similarity)[:5]:
            votes[labels["train"][row]] = votes.get(labels["train"][row], 0) + np.exp(similarity[row] / 0.1)
        right += max(votes, key=lambda name: votes[name]) == label
    assert found["trained"]["knn"] == pytest.approx(right / 30, abs=1.01 / 30)  # a tie may fall either way


def test_statistics_of_batch_norm_that_a_run_keeps_make_no_difference(pretrained: Path, images: Path) -> None:
    """The untrained network has none, so those of the trained one, of patches, say, must not count either."""
    found = evaluated(pretrained, "--dataset", images)
    shutil.copytree(pretrained, "run")
    run = runs.open_run("run")
    weights, header = load_weights(run.weights)
    for name, tensor in weights.items():
        if name.endswith("running_mean"):
            tensor += 3
    save_weights(run.weights, weights, header)
    other = evaluated(run.path, "--dataset", images)
    assert (other["trained"], other["untrained"]) == (found["trained"], found["untrained"])


def test_seed_decides_and_batch_size_does_not(pretrained: Path, images: Path) -> None:
    first = evaluated(pretrained, "--dataset", images)
    assert evaluated(pretrained, "--dataset", images, "--batch-size", 7)["trained"]["knn"] == first["trained"]["knn"]
    assert evaluated(pretrained, "--dataset", images) == first
    other = evaluated(pretrained, "--dataset", images, "--seed", 1)
    assert other["trained"]["knn"] == first["trained"]["knn"]
    assert other["untrained"] != first["untrained"]


def test_a_finetuned_run_classifies(finetuned: Path, images: Path) -> None:
    found = evaluated(finetuned, "--dataset", images)
    classified = found["classified"]
    confusion = np.array(classified["confusion"])
    assert confusion.shape == (10, 10)
    assert confusion.sum(axis=1).tolist() == [3] * 10
    assert classified["top1"] == pytest.approx(np.trace(confusion) / 30)
    assert classified["per_class"] == pytest.approx((np.diag(confusion) / 3).tolist())
    assert classified["top1"] <= classified["top5"] <= 1
    assert found["chance"] is None
    results = json.loads((finetuned / "results.json").read_text())
    assert classified["top1"] == results["arms"][1]["accuracies"][0]


def test_the_table_says_what_it_compares(pretrained: Path, finetuned: Path, images: Path) -> None:
    shown = selfie("eval", pretrained, "--dataset", images).stdout
    for words in (
        "kNN (k 20, temperature 0.07)",
        "linear probe",
        "were not searched",
        "pretext",
        "untrained",
        "guessing",
        "25.0",
        "10.0",
    ):
        assert words in shown
    shown = selfie("eval", finetuned, "--dataset", images).stdout
    for words in ("top-1", "top-5", "true class", "umbrella"):
        assert words in shown


def test_a_data_set_with_some_of_the_classes(finetuned: Path, images: Path) -> None:
    shutil.copytree(images, "some")
    for part in ("train", "test"):
        for name in ("boat", "cat"):
            shutil.rmtree(f"some/{part}/{name}")
    found = evaluated(finetuned, "--dataset", "some")
    assert len(found["classes"]) == 8
    assert len(found["classified"]["classes"]) == len(found["classified"]["confusion"]) == 10
    assert found["classified"]["per_class"][0] is None
    assert "umbrella" in selfie("eval", finetuned, "--dataset", "some").stdout


def test_a_result_that_cannot_be_kept_is_shown(pretrained: Path, images: Path) -> None:
    shutil.copytree(pretrained, "run", ignore=shutil.ignore_patterns("eval-*"))
    Path("run/eval-images.json").mkdir()  # nor can it be replaced, even by root
    found = selfie("eval", "run", "--dataset", images, "--json")
    assert json.loads(found.stdout)["num_test"] == 30
    assert "warning: the result is not saved: run/eval-images.json: Is a directory" in found.stderr


def test_classes_that_the_network_does_not_know(finetuned: Path, images: Path) -> None:
    shutil.copytree(images, "other")
    for part in ("train", "test"):
        shutil.move(f"other/{part}/cat", f"other/{part}/zebra")
    message = error_of("eval", finetuned, "--dataset", "other")
    assert "zebra" in message
    assert "boat" in message


def test_lists_of_an_earlier_eval_go(pretrained: Path, images: Path) -> None:
    shutil.copytree(images, "data/images")
    shutil.copytree(pretrained, "run", ignore=shutil.ignore_patterns("eval-*"))
    file = min(Path("data/images/train").rglob("*.png"))
    content = file.read_bytes()
    shutil.copy(file, "data/images/test/boat/known.png")
    file.write_bytes(b"")
    evaluated(Path("run"), "--dataset", "data/images", "--max-bad", 0.5)
    lists = [Path("run/eval-images-bad_files.jsonl"), Path("run/eval-images-seen.jsonl")]
    assert [json.loads(each.read_text())["path"] for each in lists] == [str(file), "data/images/test/boat/known.png"]
    Path("run/eval-images-mine.jsonl").touch()
    file.write_bytes(content)
    Path("data/images/test/boat/known.png").unlink()
    evaluated(Path("run"), "--dataset", "data/images")
    there = {each.name for each in Path("run").glob("eval-*")}
    assert there == {"eval-images.json", "eval-images-mine.jsonl"}


def test_each_data_set_has_a_result_of_its_own(pretrained: Path) -> None:
    """Also where folders, and all in them, are called the same."""
    shutil.copytree(pretrained, "run", ignore=shutil.ignore_patterns("eval-*"))
    for folder, train in (("a", 40), ("b", 60)):
        draw_folder(Path(folder, "photos"), train=train, test=20)
    bad = max(Path("b/photos/train").rglob("*.png"))
    bad.write_bytes(b"")
    first, second = (evaluated(Path("run"), "--dataset", f"{each}/photos") for each in "ab")
    Path("link").symlink_to("b")
    assert evaluated(Path("run"), "--dataset", "link/photos/") == second
    kept = {"eval-photos.json": (first, "a"), "eval-photos-2.json": (second, "b")}
    assert {each.name for each in Path("run").glob("eval-*.json")} == {*kept}
    assert [each.name for each in Path("run").glob("*bad_files.jsonl")] == ["eval-photos-2-bad_files.jsonl"]
    for name, (found, folder) in kept.items():
        where = str(Path(folder, "photos").resolve())
        assert json.loads(Path("run", name).read_text()) == {**found, "where": where}
    Path("run/eval-photos.json").write_text("[")
    evaluated(Path("run"), "--dataset", "a/photos")
    assert json.loads(Path("run/eval-photos.json").read_text())["num_train"] == first["num_train"]


def test_class_names_cannot_reach_the_terminal(pretrained: Path) -> None:
    draw_folder(Path("mine"), train=20, test=10)
    for part in ("train", "test"):
        shutil.move(f"mine/{part}/cat", f"mine/{part}/[red]c\x1b[31mat[x]")
    selfie("finetune", "--dataset", "mine", "--from", pretrained, "--steps", 1, "--batch-size", 8, "--out", "run")
    shown = selfie("eval", "run", "--dataset", "mine").stdout
    assert "\x1b" not in shown
    assert "[red]c\\x1b" in shown


def test_what_is_missing(pretrained: Path, images: Path) -> None:
    assert "--dataset is missing" in error_of("eval", pretrained, code=2)
    assert "no run at nowhere" in error_of("eval", "nowhere", "--dataset", images)
    assert "no such file" in error_of("eval", pretrained, "--dataset", "nowhere")
    assert "needs a run" in error_of("eval", "none", "--dataset", images, code=2)
