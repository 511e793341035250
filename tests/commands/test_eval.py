"""selfie eval and predict, end to end: numbers beside what they are to be compared with, and each image's label."""

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from running import document, draw_folder, error_of, lines_of, rows, selfie

from selfie_cli.files import read_json
from selfie_cli.weights import load_weights, save_weights


def evaluated(run: Path | str, *arguments: object) -> Any:
    return document("eval", run, *arguments)


@pytest.fixture
def run(pretrained: Path) -> Path:
    """A copy of the pretrained run: eval writes into it."""
    return Path(shutil.copytree(pretrained, "run"))


def test_a_pretrained_run_beside_untrained_majority_and_chance(run: Path, images: Path) -> None:
    found = evaluated(run, "--dataset", images)
    assert (found["num_train"], found["num_test"], len(found["classes"])) == (60, 30, 10)
    assert (found["chance"], found["majority"]) == (0.25, pytest.approx(0.1))
    assert found["classified"] is None
    for side in ("trained", "untrained"):
        assert all(0 <= found[side][name] <= 1 for name in ("knn", "linear", "pretext_accuracy"))
    assert found["trained"] != found["untrained"]
    assert found["dataset"] == "images"
    assert read_json(run / "eval-images.json") == {**found, "where": str(images)}
    shown = selfie("eval", run, "--dataset", images).stdout
    for words in ("kNN (k 20, temperature 0.07)", "linear probe", "pretext", "untrained", "guessing", "25.0", "10.0"):
        assert words in shown


def test_the_nearest_neighbour_of_a_training_image_is_itself(run: Path, images: Path) -> None:
    shutil.copytree(images / "train", "seen/train")
    shutil.copytree(images / "train", "seen/test")
    first, second = sorted(Path("seen/test").iterdir())[:2]
    found = evaluated(run, "--dataset", "seen", "--k", 1)
    assert (found["k"], found["trained"]["knn"], found["untrained"]["knn"]) == (1, 1, 1)
    file = min(first.iterdir())
    file.rename(second / file.name)  # under a wrong label
    assert evaluated(run, "--dataset", "seen", "--k", 1)["trained"]["knn"] == pytest.approx(59 / 60)


def test_seed_decides_and_neither_batch_size_nor_statistics_of_batch_norm(run: Path, images: Path) -> None:
    """The untrained network has no statistics, so those that the trained one keeps must not count either."""
    first = evaluated(run, "--dataset", images)
    assert evaluated(run, "--dataset", images, "--batch-size", 7)["trained"]["knn"] == first["trained"]["knn"]
    other = evaluated(run, "--dataset", images, "--seed", 1)
    assert other["trained"]["knn"] == first["trained"]["knn"]
    assert other["untrained"]["knn"] != first["untrained"]["knn"]
    weights, header = load_weights(run / "model.safetensors")
    for name, tensor in weights.items():
        if name.endswith("running_mean"):
            tensor += 3
    save_weights(run / "model.safetensors", weights, header)
    again = evaluated(run, "--dataset", images)
    assert (again["trained"], again["untrained"]) == (first["trained"], first["untrained"])


def test_a_finetuned_run_classifies_as_predict_does(finetuned: Path, images: Path) -> None:
    predicted = rows("predict", finetuned, images / "test", "--batch-size", 7)
    found = evaluated(finetuned, "--dataset", images)
    classified, confusion = found["classified"], np.zeros((10, 10), int)
    place = {name: index for index, name in enumerate(classified["classes"])}
    for row in predicted:
        confusion[place[Path(row["path"]).parent.name], place[row["label"]]] += 1
    assert confusion.tolist() == classified["confusion"]
    assert classified["top1"] == pytest.approx(np.trace(confusion) / 30)
    assert classified["top1"] == read_json(finetuned / "results.json")["arms"][1]["accuracies"][0]
    assert classified["per_class"] == pytest.approx((np.diag(confusion) / 3).tolist())
    assert classified["top1"] <= classified["top5"] <= 1
    assert found["chance"] is None
    shown = selfie("eval", finetuned, "--dataset", images).stdout
    assert all(words in shown for words in ("top-1", "top-5", "true class", "umbrella"))


def test_every_format_of_predict_has_each_image_its_label_and_probability(finetuned: Path, images: Path) -> None:
    found = rows("predict", finetuned, images / "test")
    assert [row["path"] for row in found] == [str(path) for path in sorted((images / "test").rglob("*.png"))]
    for row in found:
        assert row.keys() == {"path", "label", "probability"}
        assert 0.1 <= row["probability"] <= 1  # the likeliest of ten
    assert selfie("predict", finetuned, images / "test", "--out", "p.csv").stdout == "p.csv: 30 predictions\n"
    selfie("predict", finetuned, images / "test", "--out", "p.jsonl")
    assert lines_of("p.jsonl") == found
    with Path("p.csv").open(newline="") as lines:
        table = list(csv.DictReader(lines))
    assert [{**row, "probability": float(row["probability"])} for row in table] == found


def test_a_data_set_with_some_of_the_classes_and_one_with_others(finetuned: Path, images: Path) -> None:
    shutil.copytree(images, "some")
    for part in ("train", "test"):
        for name in ("boat", "cat"):
            shutil.rmtree(f"some/{part}/{name}")
    found = evaluated(finetuned, "--dataset", "some")
    assert len(found["classes"]) == 8
    assert len(found["classified"]["classes"]) == len(found["classified"]["confusion"]) == 10
    assert found["classified"]["per_class"][0] is None
    for part in ("train", "test"):
        Path(f"some/{part}/umbrella").rename(f"some/{part}/zebra")
    message = error_of("eval", finetuned, "--dataset", "some")
    assert all(name in message for name in ("zebra", "boat"))


def test_a_result_that_cannot_be_kept_is_shown(run: Path, images: Path) -> None:
    Path("run/eval-images.json").mkdir()  # nor can it be replaced, even by root
    found = selfie("eval", "run", "--dataset", images, "--json")
    assert json.loads(found.stdout)["num_test"] == 30
    assert "warning: the result is not saved: run/eval-images.json: Is a directory" in found.stderr


def test_each_data_set_has_a_result_of_its_own(run: Path) -> None:
    """Also where folders, and all in them, are called the same. Lists of an earlier evaluation go."""
    for folder, train in (("a", 20), ("b", 30)):
        draw_folder(Path(folder, "photos"), train=train, test=10)
    broken = max(Path("b/photos/train").rglob("*.png"))
    content = broken.read_bytes()
    broken.write_bytes(b"")
    first, second = (evaluated(run, "--dataset", f"{each}/photos") for each in "ab")
    Path("link").symlink_to("b")
    assert evaluated(run, "--dataset", "link/photos/") == second
    kept = {"eval-photos.json": (first, "a"), "eval-photos-2.json": (second, "b")}
    assert {each.name for each in run.glob("eval-*.json")} == {*kept}
    assert [each.name for each in run.glob("*bad_files.jsonl")] == ["eval-photos-2-bad_files.jsonl"]
    for name, (found, folder) in kept.items():
        assert read_json(run / name) == {**found, "where": str(Path(folder, "photos").resolve())}
    (run / "eval-photos.json").write_text("[")
    (run / "eval-photos-2-mine.jsonl").touch()
    broken.write_bytes(content)
    for folder in "ab":
        evaluated(run, "--dataset", f"{folder}/photos")
    assert read_json(run / "eval-photos.json")["num_train"] == first["num_train"]
    assert not any(run.glob("*bad_files.jsonl"))
    assert (run / "eval-photos-2-mine.jsonl").exists()
