"""The verbs on real photographs: CIFAR-10 at 32 px, clothing at 224 px."""

import json
import tarfile
from collections import Counter
from pathlib import Path, PurePosixPath

import numpy as np
import pytest
from running import selfie

pytestmark = pytest.mark.slow


def unpack(archive: Path, into: Path, *, per_class: int) -> Path:
    """The first `per_class` images of each class of each part, in one pass over the archive."""
    counts: Counter[PurePosixPath] = Counter()
    with tarfile.open(archive, "r|*") as tar:
        for member in tar:
            folder = PurePosixPath(member.name).parent
            if member.isfile() and counts[folder] < per_class:
                counts[folder] += 1
                tar.extract(member, into, filter="data")
    return into


@pytest.fixture(scope="module")
def cifar(real_archives: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cifar10")
    return unpack(real_archives / "cifar10-jpeg.tar.xz", folder, per_class=20)


@pytest.fixture(scope="module")
def clothing(real_archives: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clothing")
    return unpack(real_archives / "clothing256.tar", folder, per_class=3)


def check(data: Path, tmp_path: Path, *, pretraining: tuple[object, ...], patches: tuple[int, int]) -> None:
    """Pretrain, finetune, eval, embed, predict; what comes out has the right shape."""
    run, tuned = tmp_path / "pretrained", tmp_path / "finetuned"
    tests = sorted((data / "test").rglob("*.jpg"))
    classes = sorted(folder.name for folder in (data / "train").iterdir())
    selfie("pretrain", data, "--backbone", "resnetv2_18_w16", "--out", run, *pretraining)
    config = json.loads((run / "config.json").read_text())
    assert (config["derived"]["image_size"], config["derived"].get("patch_size")) == patches
    assert config["data"]["images"] == len(list((data / "train").rglob("*.jpg")))
    last = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])
    assert np.isfinite(last["loss"])

    selfie(
        "finetune", "--dataset", data, "--from", run, "--fraction", 0.5, "--steps", 3, "--batch-size", 8, "--out", tuned
    )
    results = json.loads((tuned / "results.json").read_text())
    assert results["num_classes"] == len(classes) == 10
    assert results["num_test"] == len(tests)
    assert [arm["name"] for arm in results["arms"]] == ["supervised", "selfie"]

    selfie("embed", data / "test", "--from", run, "--out", tmp_path / "v.npy")
    vectors = np.load(tmp_path / "v.npy")
    assert vectors.shape == (len(tests), 64)
    assert np.isfinite(vectors).all()
    assert vectors.std(axis=0).max() > 0

    lines = selfie("predict", tuned, data / "test").stdout.splitlines()
    rows = [json.loads(line) for line in lines]
    assert [row["path"] for row in rows] == [str(path) for path in tests]
    assert {row["label"] for row in rows} <= set(classes)

    found = json.loads(selfie("eval", run, "--dataset", data, "--json").stdout)
    assert found["classes"] == classes
    assert 0 < found["majority"] < 0.5


def test_cifar_at_32_px(cifar: Path, tmp_path: Path) -> None:
    check(cifar, tmp_path, pretraining=("--steps", 15, "--batch-size", 16), patches=(32, None))


def test_clothing_at_224_px(clothing: Path, tmp_path: Path) -> None:
    check(clothing, tmp_path, pretraining=("--recipe", "paper", "--steps", 3, "--batch-size", 8), patches=(224, 32))
