"""selfie finetune, end to end: a fair comparison, and what is written about it."""

import hashlib
import io
import itertools
import json
import shutil
import tarfile
from pathlib import Path

import pytest
import torch
from running import change, config_of, document, draw_folder, error_of, lines_of, read, same_weights, selfie, stopped

from selfie_cli import runs
from selfie_cli.commands.finetune import learning_rates
from selfie_cli.data.augment import plain_view
from selfie_cli.data.images import decode_square, open_image
from selfie_cli.errors import UsageError
from selfie_cli.inference import networks
from selfie_cli.weights import load_weights

ARMS = ("supervised", "selfie")
SEEDS = (4, 5, 6)
SHORT = ("--steps", 1, "--batch-size", 8, "--no-report", "--no-check-length")


def test_files(finetuned: Path) -> None:
    cells = {f"{arm}-f0.5-s{seed}" for arm in ARMS for seed in SEEDS}
    assert {cell.name for cell in (finetuned / "cells").iterdir()} == cells
    assert {f"labels-f0.5-s{seed}.jsonl" for seed in SEEDS} <= {file.name for file in finetuned.iterdir()}
    for cell in cells:
        there = finetuned / "cells" / cell
        files = {file.name for file in there.iterdir()}
        assert files == {"config.json", "metrics.jsonl", "model.safetensors", "results.json"}
        last = lines_of(there / "metrics.jsonl")[-1]
        assert last["step"] == 6
        assert {"loss", "train_accuracy", "lr", "images_per_second", "data_wait"} <= last.keys()
    config = config_of(finetuned)
    assert config["progress"]["status"] == "finished"
    assert config["asked"]["fraction"] == 0.5
    assert len(config["derived"]["classes"]) == 10
    (source,) = config["from"]
    assert source["path"].endswith("pretrained")
    weights = (Path(source["path"]) / "model.safetensors").read_bytes()
    assert source["sha256"] == hashlib.sha256(weights).hexdigest()
    assert config["data"]["split"]
    assert same_weights(finetuned, finetuned / "cells" / "selfie-f0.5-s4")  # the first seed of the pretrained arm


def test_arms_share_subsets_and_seeds_differ(finetuned: Path, images: Path) -> None:
    subsets = [lines_of(finetuned / f"labels-f0.5-s{seed}.jsonl") for seed in SEEDS]
    for subset in subsets:
        assert len(subset) == 30
        for line in subset:
            assert Path(line["path"]).parent == images / "train" / line["class"]
        assert {line["class"] for line in subset} == {folder.name for folder in (images / "train").iterdir()}
    assert len({json.dumps(subset) for subset in subsets}) == 3
    cells = [finetuned / "cells" / f"supervised-f0.5-s{seed}" for seed in SEEDS]
    assert not any(same_weights(one, other) for one, other in itertools.combinations(cells, 2))


def test_first_three_stages_come_from_the_pretrained_weights(images: Path, pretrained: Path) -> None:
    """With a learning rate of next to nothing, the finetuned weights are the ones training began with."""
    arguments = ("finetune", "--dataset", images, "--from", pretrained, "--lr", "1e-30", "--weight-decay", 0)
    selfie(*arguments, *SHORT, "--out", "r")
    before, _ = load_weights(pretrained / "model.safetensors")
    after, _ = load_weights(Path("r/cells/selfie-f1-s0/model.safetensors"))
    scratch, _ = load_weights(Path("r/cells/supervised-f1-s0/model.safetensors"))
    carried = 0
    for name, tensor in before.items():
        inner = name.removeprefix("patch_network.")
        if inner == name or "running" in name or "num_batches" in name:
            continue
        if inner.startswith("norm."):
            inner = f"stages.3.blocks.0.norm1.{inner.removeprefix('norm.')}"
        assert torch.equal(after[f"backbone.{inner}"], tensor), name
        carried += 1
        if tensor.ndim == 4:
            assert not torch.equal(scratch[f"backbone.{inner}"], tensor)
    assert carried > 20
    # The fourth stage and the head start as the twin's do: the same draw from the same seed.
    for name in ("backbone.stages.3.blocks.0.conv1.weight", "head.weight"):
        assert torch.equal(after[name], scratch[name])


def test_batch_norm_statistics_are_those_of_each_seeds_whole_images(images: Path, pretrained: Path) -> None:
    """The first norm sees the first convolution of the labelled images: its statistics, computed anew here."""
    arguments = ("finetune", "--dataset", images, "--from", pretrained, "--lr", "1e-30", "--weight-decay", 0)
    selfie(*arguments, *SHORT, "--no-baseline", "--fraction", 0.17, "--seeds", 2, "--out", "r")
    found, expected = [], []
    for seed in (0, 1):
        module = networks.load_module(runs.open_run(f"r/cells/selfie-f0.17-s{seed}"))
        norm = module.backbone.stages[0]["blocks"][0].norm1
        found.append(torch.cat([norm.running_mean, norm.running_var.sqrt()]))
        paths = [line["path"] for line in lines_of(f"r/labels-f0.17-s{seed}.jsonl")]
        pixels = torch.stack([torch.from_numpy(decode_square(open_image(path), 32)) for path in paths])
        with torch.no_grad():
            seen = module.backbone.stem["conv"](plain_view(pixels, 32))
        expected.append(torch.cat([seen.mean(dim=(0, 2, 3)), seen.std(dim=(0, 2, 3))]))
    # One training step moved the running averages a tenth of the way to that step's batch.
    for seed in (0, 1):
        own, other = ((found[seed] - expected[each]).norm() / expected[seed].norm() for each in (seed, 1 - seed))
        assert own < 0.1
        assert own < other / 2


def test_one_seed_says_no_spread(images: Path, pretrained: Path) -> None:
    result = selfie("finetune", "--dataset", images, "--from", pretrained, *SHORT, "--out", "r")
    assert result.stdout.count("(no spread)") == 3
    assert "(--seeds 3)" in result.stdout
    assert "about" in result.stderr  # the estimate of the time
    results = read("r/results.json")
    assert results["gain_std"] is results["gain_interval"] is results["arms"][0]["std"] is None


def test_without_baseline(images: Path, pretrained: Path) -> None:
    results = document("finetune", "--dataset", images, "--from", pretrained, *SHORT, "--no-baseline", "--out", "r")
    assert [cell.name for cell in Path("r/cells").iterdir()] == ["selfie-f1-s0"]
    assert results == read("r/results.json")
    assert results["gains"] is None
    assert "nothing to compare" in results["sentence"]


def test_learning_rate_is_chosen_on_held_out_labels(images: Path, pretrained: Path) -> None:
    """The network of the chosen rate is also the longer one of the two that show whether more steps would help."""
    short = (*SHORT[2:-1], "--steps", 2)
    arguments = ("finetune", "--dataset", images, "--from", pretrained, *short, "--lr", "0.02,0.1", "--out", "r")
    result = selfie(*arguments)
    results = read("r/results.json")
    for arm in results["arms"]:
        name = arm["name"]
        tried = {lr: read(f"r/cells/search-{name}-lr{lr}/results.json") for lr in ("0.02", "0.1")}
        assert {each["num_test"] for each in tried.values()} == {10}  # a fifth of 60 labels, none of the 30 test images
        best = max(tried, key=lambda lr: tried[lr]["accuracy"])
        assert arm["lr"] == float(best)
        assert read(f"r/cells/{name}-f1-s0/config.json")["asked"]["lr"] == float(best)
        assert f"{name}: learning rate {best}" in result.stderr
        searches = {cell.name for cell in Path("r/cells").glob(f"search-{name}-*")}
        assert searches == {f"search-{name}-lr{lr}" for lr in ("0.02", "0.1", f"{best}-half")}
    assert "--fraction" in error_of(*arguments[:-1], "r2", "--fraction", 0.1, code=2)
    assert not Path("r2").exists()


def test_whether_more_steps_would_help_is_found_on_held_out_labels(images: Path, pretrained: Path) -> None:
    arguments = ("finetune", "--dataset", images, "--from", pretrained, *SHORT[2:-1], "--steps", 4, "--out", "r")
    result = selfie(*arguments, "--report")
    results = read("r/results.json")
    for arm in results["arms"]:
        whole, half = (Path(f"r/cells/search-{arm['name']}-lr0.1{part}") for part in ("", "-half"))
        found = arm["convergence"]
        for cell, steps, accuracy in ((whole, 4, found["whole"]), (half, 2, found["half"])):
            there = read(cell / "results.json")
            assert (there["num_test"], there["accuracy"]) == (10, pytest.approx(accuracy))  # a fifth of 60 labels
            assert lines_of(cell / "metrics.jsonl")[-1]["step"] == steps
        assert found["verdict"] == "too few held-out labels to tell"  # ten
        said = " ".join(result.stdout.split())
        assert found["words"] in said
        assert f"{arm['name']}: {arm['called']}." in said
        assert found["words"].split("(")[0].strip() in Path("r/report.html").read_text()
    assert results["sentence"].endswith("convergence: too few held-out labels to tell.")
    assert [arm["called"] for arm in results["arms"]] == [
        "no pretraining",
        "Selfie (patches of one image, Trinh et al. 2019)",
    ]
    assert "supervised: no pretraining; selfie: Selfie (patches of one image, Trinh et al. 2019)" in result.stderr


def test_resume_after_images_or_labels_have_changed(pretrained: Path) -> None:
    """Names of files tell; of shards nothing else than the labels does."""
    pictures = sorted(draw_folder(Path("mine"), train=20, test=0).rglob("*.png"))

    def pack(classes: str) -> None:
        with tarfile.open("s.tar", "w") as tar:
            for number, (picture, text) in enumerate(zip(pictures, classes, strict=True)):
                tar.add(picture, f"{number}.png")
                label = tarfile.TarInfo(f"{number}.cls")
                label.size = 1
                tar.addfile(label, io.BytesIO(text.encode()))

    pack("01" * 10)
    selfie("finetune", "--dataset", "s.tar", "--from", pretrained, *SHORT, "--out", "whole")
    stopped("whole", "part")
    for labels in ("01" * 9 + "10", "02" * 10):
        pack(labels)
        assert "images have changed, or their labels" in error_of("finetune", "--resume", "part")
    pack("01" * 10)
    selfie("finetune", "--resume", "part")
    assert same_weights(Path("part"), Path("whole"))


@pytest.mark.parametrize("text", ["nan", "0.1,", "0.1,-1", "", "inf", "0.1,0.1"])
def test_learning_rates_are_positive_and_different(text: str) -> None:
    with pytest.raises(UsageError, match="--lr"):
        learning_rates(text)


@pytest.mark.parametrize("wrong", [["--backbone", "resnet18"], ["--image-size", "64"], ["--fraction", "1.5"]])
def test_options_that_cannot_be_honoured(images: Path, pretrained: Path, wrong: list[str]) -> None:
    arguments = ("finetune", "--dataset", images, "--from", pretrained, "--out", "r")
    assert wrong[0] in error_of(*arguments, *wrong, code=2)
    assert not Path("r").exists()


@pytest.mark.parametrize("sizes", [["--batch-size", "33", "--micro-batch", "8"], ["--batch-size", "1"]])
def test_batch_norm_is_given_no_single_image(images: Path, sizes: list[str]) -> None:
    """At 8 px the last feature map has one pixel: of one image, batch norm would have one number."""
    arguments = ("finetune", "--dataset", images, "--from", "none", "--image-size", 8, "--steps", 1, *sizes)
    assert "leaves an image by itself" in error_of(*arguments, "--arch", "resnet", code=2)


def test_data_and_weights_that_do_not_do(images: Path, pretrained: Path) -> None:
    assert "--dataset is missing" in error_of("finetune", "--from", pretrained, code=2)
    assert "leaves nothing" in error_of("finetune", "--dataset", images, "--from", "none", "--no-baseline", code=2)
    assert "no run at nowhere" in error_of("finetune", "--dataset", images, "--from", "nowhere")
    assert "no run at" in error_of("finetune", "--dataset", images, "--from", images)
    shutil.copytree(images / "train" / "cat", "one/cat")
    assert "only one class" in error_of("finetune", "--dataset", "one", "--from", pretrained)
    assert "no such file" in error_of("finetune", "--dataset", "nowhere", "--from", pretrained)
    draw_folder(Path("loose"), train=20, test=10)
    shutil.move("loose/test/cat", "loose/test/dog")
    assert "dog" in error_of("finetune", "--dataset", "loose", "--from", pretrained)


@pytest.fixture(scope="module")
def hybrid(images: Path, pretrained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All three arms; with a learning rate of next to nothing the weights are the ones training began with."""
    run = tmp_path_factory.mktemp("runs") / "hybrid"
    arguments = ("finetune", "--dataset", images, "--from", pretrained, "--lr", "1e-30", "--weight-decay", 0)
    selfie(*arguments, *SHORT, "--arch", "hybrid", "--seeds", 3, "--fraction", 0.5, "--out", run)
    return run


def test_hybrid_has_three_arms_and_two_comparisons(hybrid: Path) -> None:
    arms = ("supervised", "hybrid", "hybrid-selfie")
    cells = {f"{arm}-f0.5-s{seed}" for arm in arms for seed in range(3)}
    assert {cell.name for cell in (hybrid / "cells").iterdir()} == cells
    results = read(hybrid / "results.json")
    assert [arm["name"] for arm in results["arms"]] == list(arms)
    for gain, baseline in zip(results["comparisons"], ("hybrid", "supervised"), strict=True):
        values = {arm["name"]: arm["accuracies"] for arm in results["arms"]}
        differences = [b - a for a, b in zip(values[baseline], values["hybrid-selfie"], strict=True)]
        assert (gain["arm"], gain["baseline"]) == ("hybrid-selfie", baseline)
        assert gain["gains"] == pytest.approx(differences)
    assert results["gains"] == results["comparisons"][0]["gains"]
    assert "over hybrid" in results["sentence"] or "and hybrid" in results["sentence"]


def test_hybrid_starts_from_the_whole_pretrained_network(hybrid: Path, pretrained: Path) -> None:
    before, _ = load_weights(pretrained / "model.safetensors")
    after, _ = load_weights(hybrid / "cells" / "hybrid-selfie-f0.5-s0" / "model.safetensors")
    fresh, _ = load_weights(hybrid / "cells" / "hybrid-f0.5-s0" / "model.safetensors")
    plain, header = load_weights(hybrid / "cells" / "supervised-f0.5-s0" / "model.safetensors")
    carried = [name for name in before if name in after and "running" not in name and "num_batches" not in name]
    assert all(after[name].equal(before[name]) for name in carried)
    assert {name.partition(".")[0] for name in carried} == {"patch_network", "attention_pooling", "positions"}
    assert not fresh["attention_pooling.u0"].equal(before["attention_pooling.u0"])
    assert fresh["head.weight"].equal(after["head.weight"])  # the same draw from the same seed
    assert plain.keys() & {"backbone.stages.3.blocks.0.conv1.weight"}
    assert header["arch"] == "resnet"
    assert same_weights(hybrid, hybrid / "cells" / "hybrid-selfie-f0.5-s0")


def test_a_finetuned_hybrid_serves_every_verb(hybrid: Path, images: Path, pretrained: Path) -> None:
    photo = next((images / "test" / "cat").iterdir())
    line = json.loads(selfie("predict", hybrid, photo).stdout)
    assert line["label"] in config_of(hybrid)["derived"]["classes"]
    vector = json.loads(selfie("embed", photo, "--from", hybrid).stdout)["vector"]
    module = networks.load_module(runs.open_run(hybrid)).eval()
    pixels = torch.from_numpy(decode_square(open_image(str(photo)), 32))[None]
    with torch.no_grad():
        assert vector == pytest.approx(module.features(plain_view(pixels, 32))[0].tolist(), abs=1e-6)
    judged = document("eval", hybrid, "--dataset", images)
    assert judged["classified"]["top1"] == read(hybrid / "results.json")["arms"][2]["accuracies"][0]
    assert judged["features"] == "penultimate"
    selfie("finetune", "--dataset", images, "--from", hybrid, *SHORT, "--no-baseline", "--out", "again")


def test_only_runs_of_the_papers_selfie_have_a_hybrid(images: Path, finetuned: Path) -> None:
    arguments = ("finetune", "--dataset", images, "--arch", "hybrid", "--out", "r")
    for source in ("none", finetuned):
        said = error_of(*arguments, "--from", source, code=2)
        assert "--arch hybrid needs a run of Selfie with --recipe paper" in said
    assert not Path("r").exists()


def test_resuming_needs_the_weights_it_began_with(pretrained: Path, images: Path) -> None:
    shutil.copytree(pretrained, "mine")
    selfie("finetune", "--dataset", images, "--from", "mine", *SHORT, "--out", "whole")
    stopped("whole", "run")
    shutil.copy("run/cells/supervised-f1-s0/model.safetensors", "mine/model.safetensors")
    assert "have changed since run was started" in error_of("finetune", "--resume", "run")
    change("run", **{"from": None})
    assert "is damaged" in error_of("finetune", "--resume", "run")


def test_a_run_that_knows_labels_is_told(finetuned: Path, images: Path) -> None:
    result = selfie("finetune", "--dataset", images, "--from", finetuned, *SHORT, "--out", "run")
    assert "finetuned was finetuned on labels" in result.stderr
    assert {cell.name for cell in Path("run/cells").iterdir()} == {"supervised-f1-s0", "finetune-f1-s0"}
