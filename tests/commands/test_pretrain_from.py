"""`selfie pretrain --from`: what is taken from other weights, how a run is named after them, and what it remembers."""

import re
import shutil
from pathlib import Path

import pytest
import torch
from running import SMALL, change, config_of, draw_folder, error_of, same_weights, selfie, stopped
from safetensors.torch import load_file

from selfie_cli.commands.push import command_of, published, published_with_card
from selfie_cli.data.duplicates import load_marks
from selfie_cli.runs import open_run
from selfie_cli.training import loop

SELFIE = "Selfie over many small views (coding rate, after EMP-SSL and MCR^2)"
STEPS = 6
BRIEF = ("--batch-size", 8, "--precision", "fp32", "--no-report", "--steps", 1)


@pytest.fixture(scope="module")
def origin(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("origin") / "photos"
    selfie("pretrain", images, *SMALL, "--steps", STEPS, "--warmup-steps", 1, "--out", run)
    return run


@pytest.fixture(scope="module")
def more_images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Other pictures than those of `images`."""
    return draw_folder(tmp_path_factory.mktemp("more") / "images", seed=8)


@pytest.fixture(scope="module")
def extended(origin: Path, more_images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("extended") / "longer"
    selfie("pretrain", more_images, "--from", origin, *BRIEF, "--steps", STEPS, "--out", run)
    return run


def test_the_encoder_starts_from_the_weights_of_a_run_and_no_option_conflicts(origin: Path, images: Path) -> None:
    said = selfie("pretrain", images, "--from", origin, *BRIEF, "--lr", 1e-12, "--out", "run").stderr
    assert f"from {origin}: 3 of 3 stages; fresh: projector" in said
    before, after = (load_file(run / "model.safetensors") for run in (origin, Path("run")))
    for name, tensor in before.items():
        if tensor.is_floating_point() and "running" not in name:
            torch.testing.assert_close(after[name], tensor)
    config = config_of("run")
    for key in ("backbone", "stem", "image_size"):
        assert config["derived"][key] == config_of(origin)["derived"][key]
    (entry,) = config["from"]
    assert entry["path"] == str(origin)
    assert len(entry["sha256"]) == 64
    for wrong, message in (
        (("--backbone", "resnet18"), "--backbone resnet18 conflicts with .*, which has resnetv2_18_w16: leave it out"),
        (("--recipe", "paper", "--image-size", 64, "--patch-size", 32), "--patch-size 32 conflicts with --from"),
    ):
        assert re.search(message, error_of("pretrain", images, "--from", origin, *BRIEF, *wrong, code=2))


def test_the_image_size_may_differ_and_stages_come_from_the_network(origin: Path, images: Path) -> None:
    """Of four stages none is dropped, where the recipe can train four; of three, a fourth is added where asked for."""
    for source, run, asked, words in (
        (origin, "four", ("--num-stages", 4, "--image-size", 40), "3 of 3 stages; fresh: fourth stage, projector"),
        ("four", "byol", ("--method", "byol"), "4 of 4 stages; fresh: projector, predictor, target projector"),
        ("byol", "paper", ("--recipe", "paper"), "3 of 4 stages; fresh: attention pooling, positions"),
    ):
        assert words in selfie("pretrain", images, "--from", source, *BRIEF, *asked, "--out", run).stderr
        assert config_of(run)["derived"]["image_size"] == 40
    assert config_of("paper")["derived"]["patch_size"] == 8
    selfie("embed", images / "test" / "cat", "--from", "paper", "--out", "vectors.npy")


def test_the_chain_is_named_wherever_the_method_is(origin: Path, extended: Path, images: Path, finetuned: Path) -> None:
    selfie("pretrain", images, "--from", extended, *BRIEF, "--method", "byol", "--out", "chain")
    words = f"{SELFIE}, then once more, then BYOL over several small views (after Grill et al. 2020)"
    said = selfie("finetune", "--dataset", images, "--from", "chain", *BRIEF, "--no-check-length", "--out", "tuned")
    assert f"byol: {words}" in said.stderr
    assert words in Path("tuned/results.json").read_text()
    selfie("report", "chain", "--out", "page.html")
    assert words in Path("page.html").read_text()
    _, card = published_with_card(open_run("chain"), "hf://owner/name")
    assert "arXiv:2304.03977, then once more, then BYOL" in card
    assert "arXiv:2006.07733" in card
    assert "--from RUN" in card  # the path is private

    labelled = selfie("pretrain", images, "--from", finetuned, *BRIEF, "--out", "labelled").stderr
    assert "was finetuned on labels" in labelled
    said = selfie("finetune", "--dataset", images, "--from", "labelled", *BRIEF, "--no-check-length").stderr
    assert f", then labels (a finetuned network), then {SELFIE}" in said
    assert "labelled was finetuned on labels" in said
    config = published(config_of(origin))
    assert config["from"] == []
    assert "--from" not in command_of(config)
    del config["asked"]["from_"]  # as in a run from before the option
    assert "--from" not in command_of(config)


def test_what_the_origin_has_seen_counts_as_seen_or_is_not_known(
    origin: Path, extended: Path, images: Path, more_images: Path
) -> None:
    seen = {run: set(load_marks(run / "seen.safetensors").exact.tolist()) for run in (origin, extended)}
    assert seen[origin] < seen[extended]
    labelled = Path("labelled")
    shutil.copytree(more_images / "train", labelled / "train")
    shutil.copytree(images / "train", labelled / "test")  # seen by the origin alone
    said = selfie("eval", extended, "--dataset", labelled).stderr
    assert f"60 of 60 test images (100.0%) were seen when {extended.name} was pretrained" in said
    selfie("pretrain", images, "--from", "bundled", *BRIEF, "--out", "one")
    selfie("pretrain", images, "--from", "one", *BRIEF, "--out", "two")
    said = selfie("eval", "two", "--dataset", images, "--exclude-seen").stderr
    assert "bundled, which two started from, has no record of its training images" in said


def test_resumed_without_a_state_it_reads_the_origin_again(extended: Path, origin: Path, tmp_path: Path) -> None:
    run = stopped(extended, tmp_path / "run")
    (run / "seen.safetensors").unlink()
    selfie("pretrain", "--resume", run)
    assert same_weights(run, extended)
    exact = [load_marks(each / "seen.safetensors").exact.tolist() for each in (run, extended)]
    assert exact[0] == exact[1]

    again = stopped(extended, tmp_path / "again")
    change(again, **{"from": [config_of(again)["from"][0] | {"sha256": "0" * 64}]})
    assert f"the weights of {origin} have changed" in error_of("pretrain", "--resume", again)


def test_resumed_from_a_state_it_needs_no_origin(
    origin: Path, extended: Path, more_images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    there, run = tmp_path / "origin", tmp_path / "run"
    shutil.copytree(origin, there)
    taken = loop.take_step

    def interrupted(*arguments: object) -> None:
        taken(*arguments)  # type: ignore[arg-type]
        if arguments[3] == STEPS // 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as during:
        during.setattr(loop, "take_step", interrupted)
        asked = (*BRIEF, "--steps", STEPS, "--out", run, "--save-every", 0)
        selfie("pretrain", more_images, "--from", there, *asked, code=130)
    assert list((run / "state").iterdir())
    shutil.rmtree(there)
    selfie("pretrain", "--resume", run)
    assert same_weights(run, extended)
    assert set(load_marks(origin / "seen.safetensors").exact) <= set(load_marks(run / "seen.safetensors").exact)
