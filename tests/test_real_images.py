"""The verbs on real photographs: CIFAR-10 at 32 px, clothing at 224 px."""

import tarfile
from collections import Counter
from pathlib import Path, PurePosixPath

import numpy as np
import pytest
from running import config_of, document, lines_of, read, rows, selfie

PAPER = ("--recipe", "paper", "--steps", 3, "--batch-size", 8)
SETS = [
    ("cifar10-jpeg.tar.xz", 20, ("--steps", 15, "--batch-size", 16), (32, None)),
    ("clothing256.tar", 3, PAPER, (224, 32)),
]


def unpack(archive: Path, into: Path, *, per_class: int) -> None:
    """The first `per_class` images of each class of each part, in one pass over the archive."""
    counts: Counter[PurePosixPath] = Counter()
    with tarfile.open(archive, "r|*") as tar:
        for member in tar:
            folder = PurePosixPath(member.name).parent
            if member.isfile() and counts[folder] < per_class:
                counts[folder] += 1
                tar.extract(member, into, filter="data")


@pytest.mark.slow
@pytest.mark.parametrize(("archive", "per_class", "pretraining", "sizes"), SETS, ids=["cifar10", "clothing"])
def test_pretrain_finetune_embed_predict_eval(
    archive: str, per_class: int, pretraining: tuple[object, ...], sizes: tuple[int, int | None], real_archives: Path
) -> None:
    data = Path("data")
    unpack(real_archives / archive, data, per_class=per_class)
    tests = sorted((data / "test").rglob("*.jpg"))
    classes = sorted(folder.name for folder in (data / "train").iterdir())
    selfie("pretrain", data, "--backbone", "resnetv2_18_w16", "--out", "run", *pretraining)
    config = config_of("run")
    assert (config["derived"]["image_size"], config["derived"].get("patch_size")) == sizes
    assert config["data"]["images"] == len(list((data / "train").rglob("*.jpg")))
    assert np.isfinite(lines_of("run/metrics.jsonl")[-1]["loss"])

    few = ("--fraction", 0.5, "--steps", 3, "--batch-size", 8)
    selfie("finetune", "--dataset", data, "--from", "run", *few, "--out", "tuned")
    results = read("tuned/results.json")
    assert results["num_classes"] == len(classes) == 10
    assert results["num_test"] == len(tests)
    assert [arm["name"] for arm in results["arms"]] == ["supervised", "selfie"]

    selfie("embed", data / "test", "--from", "run", "--out", "v.npy")
    vectors = np.load("v.npy")
    assert vectors.shape == (len(tests), 64)
    assert np.isfinite(vectors).all()
    assert vectors.std(axis=0).max() > 0

    predicted = rows("predict", "tuned", data / "test")
    assert [row["path"] for row in predicted] == [str(path) for path in tests]
    assert {row["label"] for row in predicted} <= set(classes)
    found = document("eval", "run", "--dataset", data)
    assert found["classes"] == classes
    assert 0 < found["majority"] < 0.5
