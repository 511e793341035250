"""Networks that selfie has not trained: timm's repositories over real HTTP, and safetensors files.

timm itself makes the repositories, with random weights, and says what they have to give.
"""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
import torchvision
from hub_server import Hub, Repository
from listening import Listener
from PIL import Image
from running import config_of, document, draw_folder, error_of, rows, selfie
from safetensors.torch import load_file, save_file

import selfie_cli
from selfie_cli import runs
from selfie_cli.data.augment import plain_view
from selfie_cli.data.images import decode_square, open_image
from selfie_cli.errors import RunError, WeightsError
from selfie_cli.foreign import IMAGENET
from selfie_cli.inference import networks
from selfie_cli.inference.networks import Network

CPU = torch.device("cpu")
SMALL = ("--steps", 1, "--batch-size", 4, "--precision", "fp32", "--no-report", "--no-check-length", "--lr", 0.01)


def make(folder: Path, name: str, labels: list[str] | None = None, **arguments: Any) -> torch.nn.Module:
    """Write a repository as timm pushes it; return its network, whose batch norms are no longer fresh."""
    torch.manual_seed(1)
    model = timm.create_model(name, pretrained=False, **arguments)
    for norm in (each for each in model.modules() if isinstance(each, torch.nn.BatchNorm2d)):
        norm.running_mean += 0.1 * torch.randn(norm.num_features)
        norm.running_var *= 0.7 + torch.rand(norm.num_features)
        norm.weight.data *= 0.7 + 0.3 * torch.rand(norm.num_features)
    model_config = {"label_names": labels} if labels else {}
    timm.models.save_for_hf(model.eval(), folder, model_config=model_config, safe_serialization=True)
    return model


def changed(folder: Path, **values: Any) -> None:
    """Change values in a repository's config.json, or in its pretrained_cfg if they are there."""
    config = json.loads((folder / "config.json").read_text())
    for name, value in values.items():
        (config["pretrained_cfg"] if name in config["pretrained_cfg"] else config)[name] = value
    (folder / "config.json").write_text(json.dumps(config))


def publish(hub: Hub, repo: str, folder: Path) -> str:
    files = {name: ((folder / name).read_bytes(), name.endswith("safetensors")) for name in ("config.json", WEIGHTS)}
    files["pytorch_model.bin"] = (b"cos\nsystem\n.", True)
    hub.repositories.setdefault(repo, Repository())
    return hub.repositories[repo].commit("main", files)


WEIGHTS = "model.safetensors"


def load(address: object) -> Network:
    run = runs.weights_for("embed", str(address))
    return networks.load_network(run, features=None, device=CPU)


@pytest.fixture(scope="module")
def photo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A smooth picture with edges, not square, as PNG: nothing is lost in JPEG's scaled decoding."""
    y, x = np.mgrid[0:300, 0:400] / 300
    waves = np.stack([np.sin(9 * x + 4 * y), np.cos(7 * y - x), np.sin(5 * x * y)], axis=2)
    waves[80:200, 150:260] *= -1
    file = tmp_path_factory.mktemp("photo") / "photo.png"
    Image.fromarray(((waves + 1) * 127.5).astype(np.uint8)).save(file)
    return file


def assert_close(found: torch.Tensor, expected: torch.Tensor) -> None:
    assert found.shape == expected.shape
    assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()


@torch.inference_mode()
def assert_as_in_timm(network: Network, model: torch.nn.Module, photo: Path) -> None:
    """timm's own transform and forward pass: the same vectors from its pixels, nearly its pixels from the photo."""
    data = timm.data.resolve_model_data_config(model)
    transform = timm.data.create_transform(**data, is_training=False)
    theirs = transform(Image.open(photo).convert("RGB"))[None]
    assert theirs.shape[2] == network.image_size
    expected = model.forward_head(model.forward_features(theirs), pre_logits=True)
    module = network.module
    found = module.features(theirs) if network.features == "penultimate" else networks.pooled_maps(module, theirs)
    assert_close(found, expected)
    assert network.storage_size == math.floor(network.image_size / data["crop_pct"])

    square = decode_square(open_image(photo), network.storage_size, network.preprocessing.interpolation)
    ours = plain_view(torch.from_numpy(square)[None], network.image_size, network.preprocessing)
    difference = (ours - theirs).abs() * torch.tensor(data["std"])[:, None, None]  # in units of 0..1
    # timm resizes the whole photo, ours its centre square, so the two may lie a pixel apart, and borders differ.
    assert difference.mean() < 0.02


@pytest.mark.parametrize("name", IMAGENET)
def test_a_repository_gives_what_timm_does(hub: Hub, tmp_path: Path, photo: Path, name: str) -> None:
    model = make(tmp_path / "made", name)
    publish(hub, f"timm/{name}.mine", tmp_path / "made")
    assert_as_in_timm(load(f"hf://timm/{name}.mine"), model, photo)
    assert_as_in_timm(load(tmp_path / "made"), model, photo)  # and a download of it
    assert_as_in_timm(load(tmp_path / "made" / WEIGHTS), model, photo)


def test_bilinear_and_a_small_crop_are_honoured(tmp_path: Path, photo: Path) -> None:
    model = make(tmp_path / "made", "resnet18")
    own = {"interpolation": "bilinear", "crop_pct": 0.8, "input_size": [3, 160, 160], "mean": [0.1, 0.2, 0.3]}
    changed(tmp_path / "made", **own, std=[0.4, 0.5, 0.6])
    model.pretrained_cfg.update(**{**own, "input_size": (3, 160, 160)}, std=(0.4, 0.5, 0.6))
    assert_as_in_timm(load(tmp_path / "made"), model, photo)


def test_imagenet_weights_are_fetched_once_and_named(
    hub: Hub, tmp_path: Path, photo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make(tmp_path / "made", "resnet50")
    commit = publish(hub, "timm/resnet50.tv_in1k", tmp_path / "made")
    address = f"hf://timm/resnet50.tv_in1k@{commit}"
    result = selfie("embed", photo, "--from", "imagenet", "--precision", "fp32", "--out", "v.parquet")
    assert f"fetching {address}" in result.stderr
    called = "ImageNet's labels (timm/resnet50.tv_in1k), resnet50, 224 px"
    said = f"weights: {address} ({called}); license apache-2.0, from https://"
    assert said in result.stderr
    asked = [path.rpartition("/")[2] for _, path, _ in hub.requests if "/resolve/" in path]
    assert set(asked) == {"config.json", WEIGHTS}
    line = selfie("embed", photo, "--from", address, "--precision", "fp32").stdout
    square = torch.from_numpy(decode_square(open_image(photo), 235))[None]
    expected = model.forward_head(model.forward_features(plain_view(square, 224)), pre_logits=True)[0]
    assert_close(torch.tensor(json.loads(line)["vector"]), expected)

    before = len(hub.requests)
    assert selfie("similar", photo, "--in", "v.parquet", "--json").stdout.count('"cosine": 1.0') == 1
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    selfie("export", "imagenet", "--to", "torchvision")
    assert len(hub.requests) == before
    assert load("resnet50.tv_in1k-torchvision.safetensors").preprocessing.crop == 0.95


def test_imagenet_weights_that_cannot_be_had(hub: Hub, photo: Path) -> None:
    assert "no repository timm/resnet50.tv_in1k" in error_of("embed", photo, "--from", "imagenet")
    unknown = ("finetune", "--dataset", "x", "--from", "imagenet", "--backbone", "resnetv2_10_w32")
    assert "no ImageNet weights of resnetv2_10_w32: choose --backbone resnet50, " in error_of(*unknown, code=2)


OTHERS: dict[str, tuple[dict[str, Any], str]] = {
    "another network": ({"architecture": "vit_base_patch16_224"}, "no 'vit_base_patch16_224'; of timm's it has res"),
    "no name": ({"architecture": ["resnet18"]}, "of timm's it has"),
    "another stem": ({"model_args": {"stem_type": "deep"}}, "model_args.stem_type is not known"),
    "grey": ({"input_size": [1, 224, 224]}, "not squares in RGB"),
    "oblong": ({"input_size": [3, 224, 192]}, "not squares in RGB"),
    "empty": ({"input_size": []}, "not squares in RGB"),
    "huge": ({"input_size": [3, 10**9, 10**9]}, "input_size is 1000000000"),
    "huge before the crop": ({"crop_pct": 0.011}, "more than 4096 px"),
    "squashed": ({"crop_mode": "squash"}, "not squares in RGB"),
    "nearest": ({"interpolation": "nearest"}, "interpolation is 'nearest'"),
    "grey mean": ({"mean": [0.5]}, "not of three channels"),
    "no deviation": ({"std": [0, 0, 0]}, "std is 0"),
    "text for numbers": ({"mean": "0.5"}, "mean is '0.5'"),
    "odd labels": ({"label_names": [1] * 1000}, "classes is 1"),
    "no table": ({"pretrained_cfg": 3}, "pretrained_cfg is 3"),
}


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("repository") / "resnet18"
    make(folder, "resnet18")
    return folder


@pytest.mark.parametrize(("values", "said"), OTHERS.values(), ids=OTHERS)
def test_repositories_that_cannot_be_used(repository: Path, tmp_path: Path, values: dict[str, Any], said: str) -> None:
    (tmp_path / "config.json").write_text((repository / "config.json").read_text())
    (tmp_path / WEIGHTS).symlink_to(repository / WEIGHTS)
    changed(tmp_path, **values)
    with pytest.raises(RunError) as error:
        load(tmp_path)
    assert said in str(error.value)
    assert "\n" not in str(error.value)


def test_tensors_that_do_not_fit(repository: Path, tmp_path: Path) -> None:
    tensors = load_file(repository / WEIGHTS)
    first = tensors["conv1.weight"]
    spoiled: dict[str, dict[str, torch.Tensor]] = {
        r"float32 \[64, 1, 7, 7\], not torch.float32 \[64, 3, 7, 7\]": {"conv1.weight": first[:, :1].contiguous()},
        r"conv1.weight is torch.float16 \[": {"conv1.weight": first.half()},
        "not finite": {"conv1.weight": first * math.nan},
        "differ in 1 name": {"layer1.9.conv1.weight": first.clone()},
    }
    for said, change in spoiled.items():
        save_file(tensors | change, tmp_path / "spoiled.safetensors")
        with pytest.raises(WeightsError, match=said):
            load(tmp_path / "spoiled.safetensors")
    save_file({"x": first}, tmp_path / "none.safetensors")
    with pytest.raises(RunError, match="holds none of resnet50, resnet18"):
        load(tmp_path / "none.safetensors")
    for name, said in (("a.safetensors", "no safetensors file"), ("a.pth", "or a .safetensors file is expected")):
        (tmp_path / name).write_bytes(b"cos\nsystem\n.")
        with pytest.raises(RunError, match=said):
            load(tmp_path / name)
    save_file(tensors, tmp_path / "header.safetensors", {"preprocessing": "[1]", "image_size": "x", "backbone": "y"})
    with pytest.raises(RunError, match="its header is damaged"):
        load(tmp_path / "header.safetensors")


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_a_file_of_torchvisions(tmp_path: Path, name: str) -> None:
    torch.manual_seed(2)
    model = torchvision.models.get_model(name).eval()
    save_file(model.state_dict(), tmp_path / "weights.safetensors")
    listener = Listener()
    runs.weights_for("embed", str(tmp_path / "weights.safetensors"), talk=listener)
    assert f"(weights of a file, {name}, 224 px); preprocessing assumed: ImageNet's" in listener.said[0]
    images = torch.randn(2, 3, 224, 224)
    with torch.inference_mode():
        expected = torch.nn.Sequential(*list(model.children())[:-1])(images).flatten(1)
        module: Any = load(tmp_path / "weights.safetensors").module
        assert_close(networks.pooled_maps(module, images), expected)


def test_named_classes_make_a_classifier(tmp_path: Path, photo: Path) -> None:
    labels = ["boot", "cap", "coat"]
    model = make(tmp_path / "made", "resnetv2_18", labels, num_classes=3)
    (row,) = rows("predict", tmp_path / "made", photo, "--precision", "fp32")
    square = torch.from_numpy(decode_square(open_image(photo), 248))[None]
    network = load(tmp_path / "made")
    scores = model(plain_view(square, 224, network.preprocessing)).softmax(1)[0]
    assert row["label"] == labels[int(scores.argmax())]
    assert row["probability"] == pytest.approx(scores.max().item(), abs=1e-5)
    assert "has no classes" in error_of("predict", runs.bundled_folder(), photo)


def test_runs_that_start_from_them_keep_their_preprocessing(tmp_path: Path, photo: Path) -> None:
    """A network's mean, deviation, crop and interpolation go into the run, and on from there."""
    images = draw_folder(tmp_path / "images", train=20, test=10, size=100)
    make(tmp_path / "made", "resnetv2_18")
    changed(tmp_path / "made", interpolation="bilinear")
    wanted = {"mean": [0.5] * 3, "std": [0.5] * 3, "crop": 0.9, "interpolation": "bilinear"}
    asked = ("--from", tmp_path / "made", "--image-size", 96, *SMALL)
    selfie("finetune", "--dataset", images, *asked, "--out", "r")
    config = config_of("r")
    assert config["derived"]["preprocessing"] == wanted
    assert (config["derived"]["pretraining"], config["derived"]["image_size"]) == ("timm", 96)
    assert config["from"][0]["path"] == str(tmp_path / "made")
    network = load("r")
    assert network.storage_size == 106
    vector = rows("embed", photo, "--from", "r", "--precision", "fp32")[0]["vector"]
    square = torch.from_numpy(decode_square(open_image(photo), 106, "bilinear"))[None]
    expected = network.module.features(plain_view(square, 96, network.preprocessing))[0]  # type: ignore[union-attr]
    assert_close(torch.tensor(vector), expected)

    names: dict[str, Any] = {}
    exec(compile(document("export", "r", "--to", "timm")["code"], "printed", "exec"), names)
    pixels = names["preprocess"](photo)
    assert_close(pixels, plain_view(square, 96, network.preprocessing))
    assert_close(names["features"](pixels)[0], expected)
    assert load("r-timm.safetensors").preprocessing == network.preprocessing
    for run in ("r", "r-timm.safetensors"):
        _, transform = selfie_cli.load(run)
        assert_close(transform(Image.open(photo)), plain_view(square, 96, network.preprocessing)[0])
    assert "knn" in selfie("eval", tmp_path / "made", "--dataset", images, "--json").stdout
    assert sorted(each.name for each in (tmp_path / "made").iterdir()) == ["config.json", WEIGHTS]


def test_pretraining_goes_on_from_imagenet_weights(hub: Hub, repository: Path, tmp_path: Path) -> None:
    """With their mean, deviation and interpolation, also on a page of the run and when it is resumed."""
    changed_copy = tmp_path / "made"
    changed_copy.mkdir()
    (changed_copy / WEIGHTS).symlink_to(repository / WEIGHTS)
    (changed_copy / "config.json").write_text((repository / "config.json").read_text())
    changed(changed_copy, mean=[0.5] * 3, interpolation="bilinear")
    publish(hub, "timm/resnet18.tv_in1k", changed_copy)
    images = draw_folder(tmp_path / "images", train=12, test=4, size=80)
    asked = ("--from", "imagenet", "--backbone", "resnet18", "--image-size", 72, "--steps", 2, "--batch-size", 4)
    result = selfie("pretrain", images / "train", *asked, "--precision", "fp32", "--out", "r")
    derived = config_of("r")["derived"]
    assert (derived["preprocessing"]["mean"], derived["preprocessing"]["interpolation"]) == ([0.5] * 3, "bilinear")
    assert "ImageNet's labels (timm/resnet18.tv_in1k), then Selfie" in result.stderr
    assert load("r").storage_size == 75  # of 72 at 0.95
    assert Path("r/report.html").is_file()


def test_they_are_no_runs_to_push_pull_or_report(hub: Hub, repository: Path) -> None:
    publish(hub, "timm/resnet18.mine", repository)
    for arguments in (("pull", "timm/resnet18.mine"), ("push", repository, "acme/x"), ("report", repository)):
        error_of(*arguments)
