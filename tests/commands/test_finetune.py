"""selfie finetune, end to end: a fair comparison, and what is written about it."""

import hashlib
import itertools
import json
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
from tests.data.pictures import write_tar

ARMS = ("supervised", "selfie")
SEEDS = (4, 5, 6)
SHORT = ("--steps", 1, "--batch-size", 8, "--no-report", "--no-check-length")
STILL = ("--lr", "1e-30", "--weight-decay", 0)  # the weights stay those that training began with
Arguments = tuple[object, ...]


@pytest.fixture(scope="session")
def asked(images: Path, pretrained: Path) -> Arguments:
    return ("finetune", "--dataset", images, "--from", pretrained)


def test_files_where_arms_share_subsets_and_seeds_differ(finetuned: Path, images: Path) -> None:
    cells = {f"{arm}-f0.5-s{seed}" for arm in ARMS for seed in SEEDS}
    assert {cell.name for cell in (finetuned / "cells").iterdir()} == cells
    for cell in cells:
        there = finetuned / "cells" / cell
        files = {file.name for file in there.iterdir()}
        assert files == {"config.json", "metrics.jsonl", "model.safetensors", "results.json"}
        last = lines_of(there / "metrics.jsonl")[-1]
        assert last["step"] == 6
        assert {"loss", "train_accuracy", "lr", "images_per_second", "data_wait"} <= last.keys()
    config = config_of(finetuned)
    assert (config["progress"]["status"], config["asked"]["fraction"]) == ("finished", 0.5)
    (source,) = config["from"]
    weights = (Path(source["path"]) / "model.safetensors").read_bytes()
    assert source["sha256"] == hashlib.sha256(weights).hexdigest()
    assert same_weights(finetuned, finetuned / "cells" / "selfie-f0.5-s4")  # the first seed of the pretrained arm

    subsets = [lines_of(finetuned / f"labels-f0.5-s{seed}.jsonl") for seed in SEEDS]
    for subset in subsets:
        assert len(subset) == 30
        for line in subset:
            assert Path(line["path"]).parent == images / "train" / line["class"]
        assert {line["class"] for line in subset} == {folder.name for folder in (images / "train").iterdir()}
    assert len({json.dumps(subset) for subset in subsets}) == 3
    cells = [finetuned / "cells" / f"supervised-f0.5-s{seed}" for seed in SEEDS]
    assert not any(same_weights(one, other) for one, other in itertools.combinations(cells, 2))


def test_first_three_stages_come_from_the_pretrained_weights(asked: Arguments, pretrained: Path) -> None:
    selfie(*asked, *STILL, *SHORT, "--out", "r")
    before, _ = load_weights(pretrained / "model.safetensors")
    after, _ = load_weights(Path("r/cells/selfie-f1-s0/model.safetensors"))
    scratch, _ = load_weights(Path("r/cells/supervised-f1-s0/model.safetensors"))
    carried = {name.replace("patch_network", "backbone"): each for name, each in before.items() if each.ndim == 4}
    assert {"backbone.stem.conv.weight", "backbone.stages.2.blocks.1.conv2.weight"} <= carried.keys()
    for name, tensor in carried.items():
        assert torch.equal(after[name], tensor), name
        assert not torch.equal(scratch[name], tensor), name
    # The fourth stage and the head start as the twin's do: the same draw from the same seed.
    for name in ("backbone.stages.3.blocks.0.conv1.weight", "head.weight"):
        assert torch.equal(after[name], scratch[name])


def test_learning_rate_is_chosen_on_held_out_labels_and_one_seed_has_no_spread(asked: Arguments) -> None:
    """The network of the chosen rate is also the longer one of the two that show whether more steps would help."""
    arguments = (*asked, *SHORT[2:-1], "--steps", 2, "--lr", "0.02,0.1", "--out", "r")
    result = selfie(*arguments)
    assert result.stdout.count("(no spread)") == 3
    assert "(--seeds 3)" in result.stdout
    assert "about" in result.stderr  # the estimate of the time
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
    assert results["gain_std"] is results["gain_interval"] is results["arms"][0]["std"] is None
    assert "--fraction" in error_of(*arguments[:-1], "r2", "--fraction", 0.1, code=2)
    assert not Path("r2").exists()


def test_whether_more_steps_would_help_is_found_on_held_out_labels(asked: Arguments) -> None:
    result = selfie(*asked, *SHORT[2:-1], "--steps", 4, "--report", "--out", "r")
    results = read("r/results.json")
    assert [arm["lr"] for arm in results["arms"]] == [0.3, 0.03]  # without pretraining, and with, on few labels
    for arm in results["arms"]:
        whole, half = (Path(f"r/cells/search-{arm['name']}-lr{arm['lr']}{part}") for part in ("", "-half"))
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
    assert "supervised: no pretraining; selfie: Selfie (patches of one image, Trinh et al. 2019)" in result.stderr


def test_resume_after_images_or_labels_have_changed(pretrained: Path) -> None:
    """Names of files tell; of shards nothing else than the labels does."""
    pictures = [file.read_bytes() for file in sorted(draw_folder(Path("mine"), train=20, test=0).rglob("*.png"))]

    def pack(classes: str) -> None:
        labels = {f"{number}.cls": text.encode() for number, text in enumerate(classes)}
        write_tar(Path("s.tar"), {f"{number}.png": data for number, data in enumerate(pictures)} | labels)

    pack("01" * 10)
    selfie("finetune", "--dataset", "s.tar", "--from", pretrained, *SHORT, "--out", "whole")
    stopped("whole", "part")
    for labels in ("01" * 9 + "10", "02" * 10):
        pack(labels)
        assert "images have changed, or their labels" in error_of("finetune", "--resume", "part")
    pack("01" * 10)
    change("part", data={**config_of("part")["data"], "unreadable": 1})  # a damaged file that was repaired, say
    assert "the images that can be read have changed since part was started" in error_of("finetune", "--resume", "part")
    change("part", data={**config_of("part")["data"], "unreadable": 0})
    selfie("finetune", "--resume", "part")
    assert same_weights(Path("part"), Path("whole"))


@pytest.mark.parametrize("text", ["nan", "0.1,", "0.1,-1", "", "inf", "0.1,0.1"])
def test_learning_rates_are_positive_and_different(text: str) -> None:
    with pytest.raises(UsageError, match="--lr"):
        learning_rates(text)


@pytest.fixture(scope="module")
def hybrid(asked: Arguments, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All three arms, with the weights that training began with."""
    run = tmp_path_factory.mktemp("runs") / "hybrid"
    selfie(*asked, *STILL, *SHORT, "--arch", "hybrid", "--seeds", 3, "--fraction", 0.5, "--out", run)
    return run


def test_hybrid_has_three_arms_one_of_which_starts_from_the_whole_network(hybrid: Path, pretrained: Path) -> None:
    arms = ("supervised", "hybrid", "hybrid-selfie")
    assert {cell.name for cell in (hybrid / "cells").iterdir()} == {
        f"{arm}-f0.5-s{n}" for arm in arms for n in range(3)
    }
    results = read(hybrid / "results.json")
    assert tuple(arm["name"] for arm in results["arms"]) == arms
    pairs = [(each["arm"], each["baseline"]) for each in results["comparisons"]]
    assert pairs == [("hybrid-selfie", "hybrid"), ("hybrid-selfie", "supervised")]
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


def test_a_finetuned_hybrid_serves_every_verb(hybrid: Path, images: Path) -> None:
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
    again = selfie("finetune", "--dataset", images, "--from", hybrid, *SHORT, "--no-baseline", "--out", "again")
    assert "hybrid was finetuned on labels" in again.stderr
    assert [cell.name for cell in Path("again/cells").iterdir()] == ["finetune-f1-s0"]
