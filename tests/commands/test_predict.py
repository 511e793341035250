"""selfie predict, end to end: a label and its probability for every readable image."""

import csv
from pathlib import Path

import numpy as np
from running import document, error_of, lines_of, rows, selfie


def test_every_format_has_each_image_its_label_and_probability(finetuned: Path, images: Path) -> None:
    found = rows("predict", finetuned, images / "test")
    assert [row["path"] for row in found] == [str(path) for path in sorted((images / "test").rglob("*.png"))]
    classes = {folder.name for folder in (images / "train").iterdir()}
    for row in found:
        assert row.keys() == {"path", "label", "probability"}
        assert row["label"] in classes
        assert 0.1 <= row["probability"] <= 1  # the likeliest of ten
    assert selfie("predict", finetuned, images / "test", "--out", "p.csv").stdout == "p.csv: 30 predictions\n"
    selfie("predict", finetuned, images / "test", "--out", "p.jsonl")
    assert lines_of("p.jsonl") == found
    with Path("p.csv").open(newline="") as lines:
        table = list(csv.DictReader(lines))
    assert [{**row, "probability": float(row["probability"])} for row in table] == found


def test_eval_counts_the_same_labels(finetuned: Path, images: Path) -> None:
    found = rows("predict", finetuned, images / "test", "--batch-size", 7)
    classified = document("eval", finetuned, "--dataset", images)["classified"]
    place = {name: index for index, name in enumerate(classified["classes"])}
    confusion = np.zeros((10, 10), int)
    for row in found:
        confusion[place[Path(row["path"]).parent.name], place[row["label"]]] += 1
    assert confusion.tolist() == classified["confusion"]


def test_misuse(pretrained: Path, finetuned: Path, images: Path) -> None:
    assert f"selfie finetune --from {pretrained}" in error_of("predict", pretrained, images)
    assert "no run at nowhere" in error_of("predict", "nowhere", images)
    assert "name a finetuned run" in error_of("predict", code=2)
    assert "name the images" in error_of("predict", finetuned, code=2)
    Path("p.csv").touch()
    assert "--overwrite" in error_of("predict", finetuned, images, "--out", "p.csv", code=2)
    assert "--out" in error_of("predict", finetuned, images, "--out", "p.npy", code=2)
