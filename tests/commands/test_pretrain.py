"""selfie pretrain, end to end: what is in the run's folder, on stdout, and what it refuses."""

import shutil
from pathlib import Path

import pytest
import torch
from running import SMALL, config_of, error_of, lines_of, process, same_weights, selfie, stopped
from safetensors import safe_open

from selfie_cli import __version__
from selfie_cli.methods.many_views import ManyViewSelfie

PAPER = ("--recipe", "paper")


def test_files_and_config_of_a_finished_run(pretrained: Path, images: Path) -> None:
    assert {file.name for file in pretrained.iterdir()} >= {"config.json", "metrics.jsonl", "model.safetensors"}
    assert not (pretrained / "state").exists()
    assert not list(pretrained.glob(".tmp-*"))
    assert len({file.stat().st_mode & 0o044 for file in pretrained.glob("*.*")}) == 1  # others may read all, or nothing
    lines = lines_of(pretrained / "metrics.jsonl")
    assert lines[-1]["step"] == 20
    assert lines[-1].keys() >= {"feature_std", "effective_rank"}
    for line in lines:
        assert line.keys() >= {"loss", "pretext_accuracy", "gradient_norm", "lr", "images_per_second", "data_wait"}
        assert line["chance"] == 0.25  # 4 of 16 patches
        assert 0 <= line["pretext_accuracy"] <= 1
        assert 0 <= line["data_wait"] <= 1
    with safe_open(pretrained / "model.safetensors", "pt") as file:
        header = {"format_version": "1", "method": "selfie", "backbone": "resnetv2_18_w16", "stem": "3x3"}
        assert (header | {"image_size": "32", "patch_size": "8", "steps": "20"}).items() <= file.metadata().items()

    config = config_of(pretrained)
    derived = {"recipe": "paper", "optimizer": "sgd", "lr": 0.05, "image_size": 32, "patch_size": 8, "stem": "3x3"}
    expected: dict[str, dict[str, object]] = {
        "asked": {"data": [str(images)], "lr": 0.05, "image_size": None},
        "derived": derived | {"steps": 20, "batch_size": 8, "micro_batch": 8},
        "versions": {"selfie-cli": __version__},
        "data": {"images": 60},  # train/ alone
        "progress": {"status": "finished"},
    }
    assert {name: {key: config[name][key] for key in values} for name, values in expected.items()} == expected
    assert (config["asked"]["mask_ratio"], config["derived"]["selfie"]["mask_ratio"]) == (None, 0.25)
    assert {"python", "torch", "torchvision", "numpy", "pillow"} <= config["versions"].keys()
    assert len(config["data"]["fingerprint"]) == 16
    assert config["measured"]["images_per_second"] > 0


def test_default_folder_is_under_runs_and_quiet_says_what_comes_next(images: Path) -> None:
    quiet = selfie("pretrain", images, *SMALL, "--steps", 1, "--quiet")
    (run,) = Path("runs").iterdir()
    assert run.name.startswith("pretrain-selfie-")
    assert quiet.stderr == ""
    assert "pretext accuracy" in quiet.stdout
    assert f"next: selfie finetune --from {run} " in quiet.stdout
    assert selfie("embed", images / "test" / "cat").stderr.startswith(f"weights: {run} (")


@pytest.mark.parametrize(
    "arguments",
    [
        "--recipe paper --no-encoder-positions --no-final-norm --positions row-column --logit-scale cosine",
        "--recipe paper --image-size 96 --batch-size 2 --min-crop 0.9 --no-flip --budget 0.01s",
        "--num-stages 4 --num-views 2 --view-scale 1 --max-crop 0.9 --attraction 50 --distortion 0.5 --epochs 0.1",
    ],
)
def test_options_lead_to_runs_that_embed(images: Path, arguments: str) -> None:
    length = [] if "--epochs" in arguments or "--budget" in arguments else ["--steps", 1]
    selfie("pretrain", images, *SMALL, *length, "--out", "run", *arguments.split())
    embed = ("embed", images / "test" / "key", "--from", "run")
    assert len(selfie(*embed).stdout.splitlines()) == 3
    if "paper" not in arguments:
        assert "--recipe paper" in error_of(*embed, "--features", "pooled", code=2)


def test_fewer_images_than_a_batch(images: Path) -> None:
    six = (images / "train" / "cat", "--backbone", "resnetv2_18_w16", "--steps", 2)
    selfie("pretrain", *six, *PAPER, "--batch-size", 8, "--out", "paper")  # some come twice
    assert config_of("paper")["data"]["images"] == 6
    selfie("pretrain", *six, "--out", "best")  # an image cannot be told from itself
    assert config_of("best")["derived"]["batch_size"] == 6
    assert "more than there are images (6)" in error_of("pretrain", *six, "--batch-size", 8, "--out", "run", code=2)
    shutil.copytree(six[0], "broken")
    next(Path("broken").iterdir()).write_bytes(b"no image")
    of_five = ("pretrain", "broken", *six[1:], "--max-bad", 0.5)
    assert "5 of the images can be read: batch 5" in selfie(*of_five, "--out", "five").stderr
    assert config_of("five")["derived"]["batch_size"] == 5
    assert "more than there are images (5)" in error_of(*of_five, "--batch-size", 6, "--out", "run", code=2)
    one = next(six[0].iterdir())
    assert "one image" in error_of("pretrain", one, *SMALL, "--steps", 1, "--out", "run", code=2)


def test_unreadable_images_are_left_out_counted_and_listed(images: Path) -> None:
    shutil.copytree(images / "train", "mine")
    bad = sorted(Path("mine").rglob("*.png"))[::7]  # 9 of 60
    for file in bad:
        file.write_bytes(b"no image")
    asked = ("pretrain", "mine", *SMALL, "--steps", 1, "--out", "run")
    assert "--max-bad" in error_of(*asked)
    assert not Path("run").exists()
    said = selfie(*asked, "--max-bad", 0.2).stderr
    assert "9 of 60 images cannot be read and are left out, see run/bad_files.jsonl" in said
    listed = {line["path"]: line["reason"] for line in lines_of("run/bad_files.jsonl")}
    assert list(listed) == [str(file) for file in bad]
    assert all(listed.values())
    assert all(file.read_bytes() == b"no image" for file in bad)


def test_a_run_that_has_diverged_goes_on_with_a_lower_rate(images: Path) -> None:
    asked = ("pretrain", images, *SMALL, "--steps", 20, "--warmup-steps", 10, "--out", "run")
    message = error_of(*asked, "--lr", "1e20", "--optimizer", "adamw")
    assert message.endswith("selfie pretrain --resume run --lr 0.1")  # the recipe's own
    assert config_of("run")["progress"] == {"status": "running", "diverged": True}
    assert "cannot change" in error_of("pretrain", "--resume", "run", "--weight-decay", 0.1, code=2)
    selfie("pretrain", "--resume", "run", "--lr", 0.001)
    config = config_of("run")
    assert config["progress"] == {"status": "finished", "diverged": False}
    assert config["derived"]["lr"] == config["asked"]["lr"] == 0.001
    assert lines_of("run/metrics.jsonl")[-1]["lr"] < 0.001


def test_resumed_with_other_images_or_from_another_folder(images: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(images / "test", "mine")
    selfie("pretrain", "mine", *SMALL, "--steps", 1, "--out", "whole")
    run = stopped("whole", "run").absolute()
    shutil.copy(next(Path("mine/cat").iterdir()), "mine/one-more.png")
    assert "the images have changed since" in error_of("pretrain", "--resume", run)
    Path("a/b/c/d/e").mkdir(parents=True)
    monkeypatch.chdir("a/b/c/d/e")
    assert "Resume from the folder in which the run was started" in error_of("pretrain", "--resume", run)


@pytest.mark.slow
def test_deterministic_runs_are_the_same_twice(images: Path) -> None:
    """Also where bf16 is as fast as fp32 today, and memory is short tomorrow."""
    for run in ("a", "b"):
        asked = ("--backbone", "resnetv2_18_w16", "--batch-size", 8, "--steps", 4, "--no-report", "--deterministic")
        process("pretrain", images, *asked, "--out", run)
    assert same_weights(Path("a"), Path("b"))
    derived = config_of("a")["derived"]
    assert (derived["precision"], derived["micro_batch"]) == ("fp32", 8)


@pytest.mark.parametrize("when", ["at first", "later"])
def test_out_of_memory(images: Path, when: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same run, with more pieces from there on."""
    loss_of, calls = ManyViewSelfie.loss, []

    def loss(self: ManyViewSelfie, *views: torch.Tensor) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        calls.append(len(views[0]) // self.num_views)
        if calls[-1] > 4 and (when == "at first" or len(calls) > 30):
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return loss_of(self, *views)

    monkeypatch.setattr(ManyViewSelfie, "loss", loss)
    result = selfie("pretrain", images, *SMALL, "--steps", 40, "--out", "run")
    assert result.stderr.count("warning: out of memory: continuing with --micro-batch 4") == 1
    config = config_of("run")
    assert config["derived"]["micro_batch"] == (4 if when == "at first" else 8)
    assert config["measured"]["micro_batch"] == calls[-1] == 4


@pytest.mark.usefixtures("broken_compiler")
@pytest.mark.parametrize("verb", ["pretrain", "finetune"])
def test_where_compiling_fails_a_run_goes_on_without(images: Path, verb: str) -> None:
    data = (images, *PAPER) if verb == "pretrain" else ("--dataset", images, "--from", "none", "--lr", 0.03)
    result = selfie(verb, *data, *SMALL, "--steps", 2, "--out", "run", "--compile", "on")
    assert result.stderr.count("warning: torch.compile does not work here, continuing without it") == 1
    config = config_of("run")
    assert (config["derived"]["compiles"], config["progress"]["status"]) == (False, "finished")
