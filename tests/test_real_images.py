"""The verbs on real photographs, of clothing at 224 px."""

import itertools
import tarfile
from pathlib import Path

import numpy as np
import pytest
from running import config_of, document, lines_of, read, rows, selfie

FEW = ("--steps", 3, "--batch-size", 8)


@pytest.mark.slow
def test_pretrain_finetune_embed_predict_eval(real_archives: Path) -> None:
    """On three of each class."""
    data = Path("data")
    with tarfile.open(real_archives / "clothing256.tar") as tar:
        files = sorted((each for each in tar.getmembers() if each.isfile()), key=lambda each: each.name)
        for _, group in itertools.groupby(files, key=lambda each: Path(each.name).parent):
            tar.extractall(data, itertools.islice(group, 3), filter="data")
    tests = sorted((data / "test").rglob("*.jpg"))
    classes = sorted(folder.name for folder in (data / "train").iterdir())
    selfie("pretrain", data, "--backbone", "resnetv2_18_w16", "--recipe", "paper", "--out", "run", *FEW)
    config = config_of("run")
    assert (config["derived"]["image_size"], config["derived"].get("patch_size")) == (224, 32)
    assert config["data"]["images"] == len(list((data / "train").rglob("*.jpg")))
    assert np.isfinite(lines_of("run/metrics.jsonl")[-1]["loss"])

    selfie("finetune", "--dataset", data, "--from", "run", "--fraction", 0.5, *FEW, "--out", "tuned")
    results = read("tuned/results.json")
    assert results["num_classes"] == len(classes) == 10
    assert results["num_test"] == len(tests)
    assert [arm["name"] for arm in results["arms"]] == ["supervised", "selfie"]

    selfie("embed", data / "test", "--from", "run", "--out", "v.npy")
    vectors = np.load("v.npy")
    assert vectors.shape == (len(tests), 64)
    assert np.isfinite(vectors).all()

    predicted = rows("predict", "tuned", data / "test")
    assert [row["path"] for row in predicted] == [str(path) for path in tests]
    assert {row["label"] for row in predicted} <= set(classes)
    assert document("eval", "run", "--dataset", data)["classes"] == classes
