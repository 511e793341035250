"""Test images that a network was pretrained on: told, listed, and left out if asked."""

import shutil
from pathlib import Path

import pytest
from PIL import Image, ImageEnhance
from running import SMALL, config_of, document, error_of, lines_of, read, selfie

FEW = ("--steps", 1, "--batch-size", 8, "--precision", "fp32", "--no-report", "--no-check-length")


@pytest.fixture
def leaky(images: Path) -> Path:
    """A run pretrained on the training images, a copy of one test image, and a brighter, mirrored one of another."""
    shutil.copytree(images / "train", "mine")
    one, other = sorted((images / "test").rglob("*.png"))[:2]
    shutil.copy(one, "mine/copied.png")
    with Image.open(other) as image:
        mirrored = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        ImageEnhance.Brightness(mirrored).enhance(1.05).save("mine/changed.png")
    selfie("pretrain", "mine", *SMALL, "--steps", 1, "--out", "leaky")
    return Path("leaky")


def test_eval_tells_and_leaves_out(leaky: Path, images: Path) -> None:
    told = selfie("eval", leaky, "--dataset", images).stderr
    assert "2 of 30 test images (6.7%) were seen when leaky was pretrained: 1 copy, 1 near-duplicate;" in told
    assert "--exclude-seen leaves them out" in told
    found = read(leaky / "eval-images.json")
    assert (found["num_test"], found["num_seen"]) == (30, 2)
    one, other = sorted((images / "test").rglob("*.png"))[:2]
    listed = {Path(line["path"]).name: line["kind"] for line in lines_of(leaky / "eval-images-seen.jsonl")}
    assert listed == {one.name: "copy", other.name: "near-duplicate"}
    selfie("eval", leaky, "--dataset", images, "--exclude-seen")
    found = read(leaky / "eval-images.json")
    assert (found["num_test"], found["num_seen"], found["exclude_seen"]) == (28, 2, True)
    left_out = "2 were among the images of pretraining, or near-copies of them, and were left out (28 test images"
    assert left_out in document("push", leaky, "me/x", "--dry-run")["card"]


def test_finetune_and_curve_tell_and_leave_out(leaky: Path, images: Path) -> None:
    told = selfie("finetune", "--from", leaky, "--dataset", images, *FEW, "--out", "a")
    assert "2 of 30 test images" in told.stderr
    assert read("a/results.json")["num_test"] == 30
    assert len(lines_of("a/seen_test_images.jsonl")) == config_of("a")["data"]["seen_test_images"] == 2
    for verb in (["finetune"], ["curve", "--fractions", "1", "--seeds", "1"]):
        selfie(*verb, "--from", leaky, "--dataset", images, *FEW, "--exclude-seen", "--out", verb[0])
        assert read(Path(verb[0], "results.json"))["num_test"] == 28


def test_where_nothing_every_image_or_something_unknown_was_seen(pretrained: Path, images: Path) -> None:
    asked = ("finetune", "--dataset", images, *FEW)
    assert "seen" not in selfie(*asked, "--from", pretrained, "--exclude-seen", "--out", "run").stderr
    assert not Path("run/seen_test_images.jsonl").exists()
    assert read("run/results.json")["num_test"] == 30
    said = selfie(*asked, "--from", "bundled", "--out", "unmarked").stderr
    assert "bundled has no record of its training images" in said
    assert "--exclude-seen" in error_of("eval", "unmarked", "--dataset", images, "--exclude-seen", code=2)
    selfie("pretrain", images / "train", images / "test", *SMALL, "--steps", 1, "--out", "all")
    for refused in ((*asked, "--from", "all"), ("eval", "all", "--dataset", images)):
        assert "every test image was seen in pretraining" in error_of(*refused, "--exclude-seen")


def test_copies_and_near_duplicates_across_the_split(images: Path, tmp_path: Path) -> None:
    """Each file is there twice, as copies that a phone has made, which stay together; some are there brighter, too."""
    for file in sorted((images / "train").rglob("*.png")):
        there = tmp_path / "photos" / file.parent.name
        there.mkdir(parents=True, exist_ok=True)
        for name in (file.name, f"{file.stem} (1).png"):
            shutil.copy(file, there / name)
    for file in sorted(Path("photos").rglob("*.png"))[::4]:
        with Image.open(file) as image:
            ImageEnhance.Brightness(image.convert("RGB")).enhance(1.05).save(file.with_name(f"zz-{file.name}"))
    asked = ("--dataset", "photos", "--from", "none", "--backbone", "resnetv2_18_w16", *FEW)
    told = selfie("finetune", *asked, "--out", "told").stderr
    assert "test images" in told
    assert "are like training images: 0 copies" in told
    selfie("report", "told")
    assert "Like training images: " in Path("told/report.html").read_text("utf-8")
    left = selfie("finetune", *asked, "--exclude-seen", "--out", "left").stderr
    assert "near-duplicates, left out" in left
    listed = {line["path"] for line in lines_of("left/seen_test_images.jsonl") if line["run"] is None}
    counts = [read(Path(run, "results.json"))["num_test"] for run in ("told", "left")]
    assert counts[0] - counts[1] == len(listed) > 0
    data = config_of("left")["data"]
    assert (data["like_training_images"], data["seen_test_images"]) == (len(listed), 0)
