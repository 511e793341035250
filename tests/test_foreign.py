"""Networks that selfie has not trained: timm's repositories over real HTTP, and safetensors files.
timm itself makes the repositories, with random weights, and says what they have to give."""

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torchvision
from hub_server import Hub, Repository
from listening import Listener
from PIL import Image
from running import config_of, document, draw_folder, error_of, read, rows, same_weights, selfie, stopped
from safetensors.torch import load_file, save_file

import selfie_cli
from selfie_cli import runs
from selfie_cli.data.augment import plain_view
from selfie_cli.data.images import decode_square, open_image
from selfie_cli.errors import RunError, WeightsError
from selfie_cli.foreign import IMAGENET
from selfie_cli.inference import networks
from selfie_cli.inference.networks import Network
from selfie_cli.weights import load_weights
from tests.data.corpus import PICTURE

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


WEIGHTS = "model.safetensors"


def publish(hub: Hub, repo: str, folder: Path) -> str:
    """Return the address of the commit."""
    files = {name: ((folder / name).read_bytes(), name == WEIGHTS) for name in ("config.json", WEIGHTS)}
    hub.repositories[repo] = Repository()
    return f"hf://{repo}@{hub.repositories[repo].commit('main', files | {'pytorch_model.bin': (b'cos', True)})}"


def load(address: object) -> Network:
    run = runs.weights_for("embed", str(address))
    return networks.load_network(run, features=None, device=torch.device("cpu"))


@pytest.fixture(scope="module")
def photo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A picture with edges, not square, as PNG: nothing is lost in JPEG's scaled decoding."""
    file = tmp_path_factory.mktemp("photo") / "photo.png"
    Image.fromarray(PICTURE).resize((400, 300), Image.Resampling.NEAREST).save(file)
    return file


def assert_close(found: torch.Tensor, expected: torch.Tensor) -> None:
    assert found.shape == expected.shape
    assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()


def pixels_of(photo: Path, network: Network) -> torch.Tensor:
    square = decode_square(open_image(photo), network.storage_size, network.preprocessing.interpolation)
    return plain_view(torch.from_numpy(square)[None], network.image_size, network.preprocessing)


@torch.inference_mode()
def timms(model: Any, pixels: torch.Tensor) -> torch.Tensor:
    """The vectors that timm gives."""
    found: torch.Tensor = model.forward_head(model.forward_features(pixels), pre_logits=True)
    return found


@torch.inference_mode()
def assert_as_in_timm(network: Network, model: torch.nn.Module, photo: Path) -> None:
    """timm's own transform and forward pass: the same vectors from its pixels, nearly its pixels from the photo."""
    data = timm.data.resolve_model_data_config(model)
    theirs = timm.data.create_transform(**data, is_training=False)(Image.open(photo).convert("RGB"))[None]
    assert theirs.shape[2] == network.image_size
    module = network.module
    found = module.features(theirs) if network.features == "penultimate" else networks.pooled_maps(module, theirs)
    assert_close(found, timms(model, theirs))
    assert network.storage_size == math.floor(network.image_size / data["crop_pct"])
    # timm resizes the whole photo, ours its centre square, so the two may lie a pixel apart, and borders differ.
    difference = (pixels_of(photo, network) - theirs).abs() * torch.tensor(data["std"])[:, None, None]
    assert difference.mean() < 0.02  # in units of 0..1


@pytest.mark.parametrize("name", IMAGENET)
def test_a_repository_gives_what_timm_does(hub: Hub, tmp_path: Path, photo: Path, name: str) -> None:
    made = tmp_path / "made"
    model, address = make(made, name), publish(hub, f"timm/{name}.mine", made)
    for source in (address, made, made / WEIGHTS):  # on the Hub, as a download of it, and the file alone
        assert_as_in_timm(load(source), model, photo)


def test_bilinear_and_a_small_crop_are_honoured(tmp_path: Path, photo: Path) -> None:
    model = make(tmp_path / "made", "resnet18")
    own = {"interpolation": "bilinear", "crop_pct": 0.8, "input_size": [3, 160, 160], "mean": [0.1, 0.2, 0.3]}
    changed(tmp_path / "made", **own, std=[0.4, 0.5, 0.6])
    model.pretrained_cfg.update(**{**own, "input_size": (3, 160, 160)}, std=(0.4, 0.5, 0.6))
    assert_as_in_timm(load(tmp_path / "made"), model, photo)


def test_imagenet_weights_are_fetched_once_and_named(
    hub: Hub, tmp_path: Path, photo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "no repository timm/resnet50.tv_in1k" in error_of("embed", photo, "--from", "imagenet")
    model = make(tmp_path / "made", "resnet50")
    address = publish(hub, "timm/resnet50.tv_in1k", tmp_path / "made")
    said = selfie("embed", photo, "--from", "imagenet", "--precision", "fp32", "--out", "v.parquet").stderr
    called = "ImageNet's labels (timm/resnet50.tv_in1k), resnet50, 224 px"
    for words in (f"fetching {address}", f"weights: {address} ({called}); license apache-2.0, from https://"):
        assert words in said
    asked = [path.rpartition("/")[2] for _, path, _ in hub.requests if "/resolve/" in path]
    assert set(asked) == {"config.json", WEIGHTS}
    (row,) = rows("embed", photo, "--from", address, "--precision", "fp32")
    assert_close(torch.tensor(row["vector"]), timms(model, pixels_of(photo, load(address)))[0])

    before = len(hub.requests)
    assert selfie("similar", photo, "--in", "v.parquet", "--json").stdout.count('"cosine": 1.0') == 1
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    selfie("export", "imagenet", "--to", "torchvision")
    assert len(hub.requests) == before
    assert load("resnet50.tv_in1k-torchvision.safetensors").preprocessing.crop == 0.95


OTHERS: dict[str, tuple[dict[str, Any], str]] = {
    "another network": ({"architecture": "vit_base_patch16_224"}, "no 'vit_base_patch16_224'; of timm's it has res"),
    "no name": ({"architecture": ["resnet18"]}, "of timm's it has"),
    "another stem": ({"model_args": {"stem_type": "deep"}}, "model_args.stem_type is not known"),
    "grey": ({"input_size": [1, 224, 224]}, "not squares in RGB"),
    "huge": ({"input_size": [3, 10**9, 10**9]}, "input_size is 1000000000"),
    "huge before the crop": ({"crop_pct": 0.011}, "more than 4096 px"),
    "squashed": ({"crop_mode": "squash"}, "not squares in RGB"),
    "nearest": ({"interpolation": "nearest"}, "interpolation is 'nearest'"),
    "grey mean": ({"mean": [0.5]}, "not of three channels"),
    "no deviation": ({"std": [0, 0, 0]}, "std is 0"),
    "odd labels": ({"label_names": [1] * 1000}, "classes is 1"),
    "no table": ({"pretrained_cfg": 3}, "pretrained_cfg is 3"),
}


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("repository") / "resnet18"
    make(folder, "resnet18.tv_in1k")
    return folder


def copy_of(repository: Path, folder: Path, **values: Any) -> Path:
    """A repository with the same weights and other values."""
    folder.mkdir(exist_ok=True)
    (folder / WEIGHTS).symlink_to(repository / WEIGHTS)
    (folder / "config.json").write_text((repository / "config.json").read_text())
    changed(folder, **values)
    return folder


@pytest.mark.parametrize(("values", "said"), OTHERS.values(), ids=OTHERS)
def test_repositories_that_cannot_be_used(repository: Path, tmp_path: Path, values: dict[str, Any], said: str) -> None:
    with pytest.raises(RunError) as error:
        load(copy_of(repository, tmp_path, **values))
    assert said in str(error.value)
    assert "\n" not in str(error.value)


def test_tensors_that_do_not_fit(repository: Path, tmp_path: Path) -> None:
    tensors = load_file(repository / WEIGHTS)
    first = tensors["conv1.weight"]
    for found, header, said in (
        (tensors | {"conv1.weight": first[:, :1].contiguous()}, None, r"\[64, 1, 7, 7\], not .* \[64, 3, 7, 7\]"),
        (tensors | {"conv1.weight": first.half()}, None, r"conv1.weight is torch.float16 \["),
        (tensors | {"conv1.weight": first * math.nan}, None, "not finite"),
        (tensors | {"layer1.9.conv1.weight": first.clone()}, None, "differ in 1 name"),
        ({"x": first}, None, "holds none of resnet50, resnet18"),
        (tensors, {"preprocessing": "[1]", "image_size": "x", "backbone": "y"}, "its header is damaged"),
        (tensors, {"preprocessing": "[" * 10**5, "image_size": "8", "backbone": "y"}, "its header is damaged"),
    ):
        save_file(found, tmp_path / "spoiled.safetensors", header)
        with pytest.raises((RunError, WeightsError), match=said):
            load(tmp_path / "spoiled.safetensors")
    for name, said in (("a.safetensors", "no safetensors file"), ("a.pth", "or a .safetensors file is expected")):
        (tmp_path / name).write_bytes(b"cos\nsystem\n.")
        with pytest.raises(RunError, match=said):
            load(tmp_path / name)


def test_a_file_of_torchvisions(tmp_path: Path) -> None:
    model = torchvision.models.resnet18().eval()
    save_file(model.state_dict(), tmp_path / "weights.safetensors")
    listener = Listener()
    runs.weights_for("embed", str(tmp_path / "weights.safetensors"), talk=listener)
    assert "(weights of a file, resnet18, 224 px); preprocessing assumed: ImageNet's" in listener.said[0]
    images = torch.randn(2, 3, 224, 224)
    with torch.inference_mode():
        expected = torch.nn.Sequential(*list(model.children())[:-1])(images).flatten(1)
        module: Any = load(tmp_path / "weights.safetensors").module
        assert_close(networks.pooled_maps(module, images), expected)


def test_named_classes_make_a_classifier(tmp_path: Path, photo: Path) -> None:
    labels = ["boot", "cap", "coat"]
    model = make(tmp_path / "made", "resnetv2_18", labels, num_classes=3)
    (row,) = rows("predict", tmp_path / "made", photo, "--precision", "fp32")
    scores = model(pixels_of(photo, load(tmp_path / "made"))).softmax(1)[0]
    assert row["label"] == labels[int(scores.argmax())]
    assert row["probability"] == pytest.approx(scores.max().item(), abs=1e-5)
    assert "has no classes" in error_of("predict", runs.bundled_folder(), photo)


def test_runs_that_start_from_them_keep_their_preprocessing(tmp_path: Path, photo: Path) -> None:
    """A network's mean, deviation, crop and interpolation go into the run, and on from there."""
    images = draw_folder(tmp_path / "images", train=10, test=10, size=72)
    make(tmp_path / "made", "resnetv2_18")
    changed(tmp_path / "made", interpolation="bilinear")
    wanted = {"mean": [0.5] * 3, "std": [0.5] * 3, "crop": 0.9, "interpolation": "bilinear"}
    asked = ("--from", tmp_path / "made", "--image-size", 70, *SMALL)
    selfie("finetune", "--dataset", images, *asked, "--out", "r")
    config = config_of("r")
    derived = {"preprocessing": wanted, "pretraining": "timm", "image_size": 70}
    assert {name: config["derived"][name] for name in derived} == derived
    assert config["from"][0]["path"] == str(tmp_path / "made")
    network = load("r")
    assert network.storage_size == 77
    expected_pixels = pixels_of(photo, network)
    expected = network.module.features(expected_pixels)[0]  # type: ignore[union-attr]
    (row,) = rows("embed", photo, "--from", "r", "--precision", "fp32")
    assert_close(torch.tensor(row["vector"]), expected)

    names: dict[str, Any] = {}
    exec(compile(document("export", "r", "--to", "timm")["code"], "printed", "exec"), names)
    pixels = names["preprocess"](photo)
    assert_close(pixels, expected_pixels)
    assert_close(names["features"](pixels)[0], expected)
    assert load("r-timm.safetensors").preprocessing == network.preprocessing
    for run in ("r", "r-timm.safetensors"):
        _, transform = selfie_cli.load(run)
        assert_close(transform(Image.open(photo)), expected_pixels[0])
    assert "knn" in selfie("eval", tmp_path / "made", "--dataset", images, "--json").stdout
    assert sorted(each.name for each in (tmp_path / "made").iterdir()) == ["config.json", WEIGHTS]


def test_pretraining_goes_on_from_imagenet_weights(hub: Hub, repository: Path, tmp_path: Path) -> None:
    """With their mean, deviation and interpolation, also on a page of the run and when it is resumed."""
    made = copy_of(repository, tmp_path / "made", mean=[0.5] * 3, interpolation="bicubic")
    publish(hub, "timm/resnet18.tv_in1k", made)
    images = draw_folder(tmp_path / "images", train=10, test=4, size=80)
    asked = ("--from", "imagenet", "--backbone", "resnet18", "--image-size", 72, "--steps", 2, "--batch-size", 4)
    result = selfie("pretrain", images / "train", *asked, "--precision", "fp32", "--out", "r")
    derived = config_of("r")["derived"]
    assert (derived["preprocessing"]["mean"], derived["preprocessing"]["interpolation"]) == ([0.5] * 3, "bicubic")
    assert "ImageNet's labels (timm/resnet18.tv_in1k), then Selfie" in result.stderr
    assert load("r").storage_size == 82  # of 72 at 0.875
    assert Path("r/report.html").is_file()
    for arguments in (("pull", "timm/resnet18.tv_in1k"), ("push", repository, "acme/x"), ("report", repository)):
        error_of(*arguments)  # it is no run


CURVE = ("--fractions", "1", "--seeds", 1, *SMALL, "--out", "r")


def test_imagenet_weights_are_an_arm_like_any_other(images: Path, pretrained: Path, hub: Hub, repository: Path) -> None:
    """Another network than the runs', with its own mean, at their size: what it learned stays as far as it fits."""
    address = publish(hub, "timm/resnet18.tv_in1k", repository)
    sources = ("--from", pretrained, "--from", "imagenet")
    arguments = ("curve", "--dataset", images, *sources, *CURVE, "--lr", "1e-30", "--weight-decay", 0)
    said = selfie(*arguments).stderr
    assert f"fetching {address} (46.8 MB) from {hub.url.partition('://')[2]}" in said
    assert "224 px); license bsd-3-clause, from https://github.com/pytorch/vision" in said
    results = read("r/results.json")
    assert [arm["name"] for arm in results["points"][0]["arms"]] == ["supervised", "selfie", "imagenet"]
    assert "another network than supervised: resnet18, stem 7x7" in results["sentences"][1]
    after, header = load_weights(Path("r/cells/imagenet-f1-s0/model.safetensors"))
    assert (header["backbone"], header["stem"], header["image_size"]) == ("resnet18", "7x7", "32")
    for name, tensor in load_file(repository / WEIGHTS).items():
        assert tensor.ndim != 4 or after[f"backbone.{name}"].equal(tensor)  # zeros move by any rate
    assert same_weights(Path("r"), Path("r/cells/selfie-f1-s0"))
    config = config_of("r")
    assert config["derived"]["pretraining"] == "selfie"
    assert [each["path"] for each in config["from"]] == [str(pretrained), address]

    before = len(hub.requests)
    stopped("r", "part")
    shutil.rmtree("part/cells/imagenet-f1-s0")
    selfie("curve", "--resume", "part", "--no-report")
    assert read("part/results.json")["points"] == results["points"]
    assert len(hub.requests) == before


def test_the_first_network_decides_how_images_are_decoded(images: Path, hub: Hub, repository: Path) -> None:
    address = publish(hub, "timm/resnet18.tv_in1k", repository)
    make(Path("other"), "resnetv2_18")
    arguments = ("curve", "--dataset", images, "--from", "imagenet", "--backbone", "resnet18", "--from", "other")
    assert "--backbone resnet18 conflicts with" in error_of(*arguments, code=2)
    selfie("curve", "--dataset", images, "--from", "other", "--from", address, "--image-size", 48, *CURVE)
    for name, mean in {"imagenet": 0.485, "timm": 0.5, "supervised": 0.5}.items():
        derived = config_of(f"r/cells/{name}-f1-s0")["derived"]
        seen = derived["preprocessing"]
        found = (derived["image_size"], seen["mean"][0], seen["crop"], seen["interpolation"])
        assert found == (48, mean, 0.9, "bicubic")
