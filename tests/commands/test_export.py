"""selfie export: other libraries load the file by the code that was printed, and give the features of selfie embed."""

import json
import re
import shlex
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from PIL import Image
from running import change, config_of, draw_folder, error_of, rows, selfie
from safetensors import safe_open

from selfie_cli import runs
from selfie_cli.inference import networks
from selfie_cli.weights import load_weights, save_weights

SIZE = 96  # the smallest at which the stem is 7x7 and Selfie has some patches of 32 px
PAPER = f"pretrain --recipe paper --image-size {SIZE} --backbone"
BYOL = f"pretrain --method byol --num-stages 4 --image-size {SIZE} --backbone"
FINETUNED = f"finetune --from none --image-size {SIZE} --backbone"
# Of each kind of network one: three stages, with and without a closing norm; four; four and a classifier.
KINDS = {
    "selfie": (f"{PAPER} resnetv2_18", ("timm", "onnx", "safetensors")),
    "selfie-open": (f"{PAPER} resnetv2_18 --no-final-norm", ("timm",)),
    "selfie-resnet18": (f"{PAPER} resnet18", ("timm", "torchvision")),
    "photos": (f"{BYOL} resnet50", ("torchvision",)),
    "byol-v2": (f"{BYOL} resnetv2_50", ("timm",)),
    "finetuned": (f"{FINETUNED} resnetv2_18", ("timm", "onnx", "safetensors")),
    "finetuned-resnet18": (f"{FINETUNED} resnet18", ("timm", "torchvision")),
    "patches": ("pretrain --backbone resnetv2_18_w16 --recipe paper --image-size 32", ()),
    "frozen": ("finetune --frozen --from PATCHES", ("onnx", "safetensors")),
    "hybrid": ("finetune --arch hybrid --from PATCHES --no-baseline", ("onnx", "safetensors")),
}
QUICK = (("selfie", "timm"), ("selfie", "onnx"), ("finetuned", "safetensors"))
PAIRS = [
    pytest.param(kind, to, marks=[] if (kind, to) in QUICK else pytest.mark.slow)
    for kind, (_, targets) in KINDS.items()
    for to in targets
]


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draw_folder(tmp_path_factory.mktemp("drawn") / "photos", train=10, test=10, size=130)


@pytest.fixture(scope="module")
def made(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A run of a kind, made when it is first asked for; its batch norms are no longer those of a fresh network."""
    folder = tmp_path_factory.mktemp("made")

    def run(kind: str) -> Path:
        out = folder / kind
        if out.exists():
            return out
        verb, *options = KINDS[kind][0].split()
        given = [run("patches") if option == "PATCHES" else option for option in options]
        data = [photos] if verb == "pretrain" else ["--dataset", photos]
        training = () if "--frozen" in options else ("--steps", 1, "--batch-size", 4, "--warmup-steps", 1)
        selfie(verb, *data, *given, *training, "--precision", "fp32", "--no-report", "--out", out)
        shake(out / "model.safetensors")
        return out

    return run


def shake(file: Path) -> None:
    state, header = load_weights(file)
    generator = torch.Generator().manual_seed(0)
    for name, tensor in state.items():
        if name.endswith("running_mean"):
            tensor += 0.3 * torch.randn(tensor.shape, generator=generator)
        elif name.endswith("running_var") or (tensor.ndim == 1 and name.endswith("weight")):
            tensor *= 0.5 + torch.rand(tensor.shape, generator=generator)
    save_weights(file, state, header)


def loaded(code: str) -> dict[str, Any]:
    """What the printed code defines."""
    names: dict[str, Any] = {}
    exec(compile(code, "printed", "exec"), names)
    return names


def assert_close(found: Any, expected: Any, *, relative: float = 1e-5) -> None:
    found, expected = np.asarray(found), np.asarray(expected)
    assert found.shape == expected.shape
    assert found.dtype == np.float32
    assert np.abs(found - expected).max() <= relative * np.abs(expected).max()


@pytest.mark.parametrize(("kind", "to"), PAIRS)
def test_the_printed_code_gives_the_same(made: Callable[[str], Path], photos: Path, kind: str, to: str) -> None:
    run = made(kind)
    result = selfie("export", run, "--to", to)
    there = loaded(result.stdout)
    network = networks.load_network(runs.open_run(run), features=None, device=torch.device("cpu"))
    module: Any = network.module
    for batch in (1, 2, 7) if to == "onnx" else (2,):
        images = torch.randn(batch, 3, network.image_size, network.image_size)
        as_input = images.numpy() if to == "onnx" else images
        with torch.inference_mode():
            assert ("probabilities" in there) == (network.features == "penultimate")
            if "probabilities" in there:
                expected = module.features(images)
                assert_close(there["probabilities"](as_input), module(images).softmax(1))
            else:
                expected = networks.pooled_maps(module, images)
        assert expected.std(dim=1).min() > 1e-3
        assert_close(there["features"](as_input), expected)

    files = sorted((photos / "test").rglob("*.png"))[:3]
    vectors = rows("embed", *files, "--from", run, "--precision", "fp32")
    found = np.concatenate([there["features"](there["preprocess"](file)) for file in files])
    # Without torch, Pillow resizes, which rounds otherwise.
    close = 2e-3 if to == "onnx" else 1e-5
    assert_close(found, np.array([row["vector"] for row in vectors], np.float32), relative=close)
    labels = rows("predict", run, *files, "--precision", "fp32") if "classes" in there else []
    for file, row in zip(files, labels, strict=bool(labels)):
        scores = np.asarray(there["probabilities"](there["preprocess"](file)))[0]
        assert there["classes"][scores.argmax()] == row["label"]
        assert scores.max() == pytest.approx(row["probability"], abs=close)
    if to != "onnx":  # selfie itself reads the file as well
        (written,) = Path().glob("*.safetensors")
        assert rows("embed", *files, "--from", written, "--precision", "fp32") == vectors
        assert not labels or rows("predict", written, *files, "--precision", "fp32") == labels


def test_onnx_files_are_whole_plain_and_say_nothing_of_this_machine(made: Callable[[str], Path]) -> None:
    selfie("export", made("finetuned"), "--to", "onnx", "--out", "one/model.onnx")
    assert [file.name for file in Path("one").iterdir()] == ["model.onnx"]
    model = onnx.load("one/model.onnx")
    onnx.checker.check_model(model, full_check=True)
    operators = [node.op_type for node in model.graph.node]
    assert operators.count("BatchNormalization") == 9  # those that follow a sum, and the last one
    assert {node.domain for node in model.graph.node} == {""}
    about = {entry.key: entry.value for entry in model.metadata_props}
    assert (about["method"], about["image_size"], about["features"]) == ("finetune", "96", "penultimate")
    preprocessing = json.loads(about["preprocessing"])
    assert (preprocessing["resize"], preprocessing["center_crop"]) == ([110, 110], [96, 96])
    assert preprocessing["mean"] == [0.485, 0.456, 0.406]
    assert len(json.loads(about["classes"])) == 10
    for tensor in model.graph.initializer:
        tensor.ClearField("raw_data")
    for place in (str(Path.home()), str(made("finetuned").parent), "/tmp", ".py", "selfie_cli", "site-packages"):
        assert place not in str(model)


def test_the_bundled_network_a_header_to_rebuild_it_by_and_odd_names() -> None:
    there = loaded(selfie("export", "bundled", "--to", "safetensors").stdout)
    Image.effect_noise((50, 40), 80).convert("RGB").save("noise.png")
    assert there["features"](there["preprocess"]("noise.png")).shape == (1, 128)
    with safe_open("bundled.safetensors", "pt") as file:
        about = file.metadata()
    told = {"backbone": "resnetv2_10_w32", "stem": "3x3", "image_size": "32", "width": "128"}
    assert told.items() <= about.items()
    assert json.loads(about["preprocessing"])["resize"] == [32, 32]
    code = selfie("export", "bundled", "--to", "onnx", "--out", "one.onnx").stdout
    assert loaded(code)["features"](np.zeros((7, 3, 32, 32), np.float32)).shape == (7, 128)
    selfie("export", "bundled", "--to", "onnx")
    assert Path("bundled.onnx").read_bytes() == Path("one.onnx").read_bytes()
    out = 'odd "quoted"\n\u2028\u200b é.safetensors'  # a name that is shown with escapes is still that of the file
    loaded(selfie("export", "bundled", "--to", "safetensors", "--out", out).stdout)


@pytest.mark.parametrize(
    ("to", "changed", "reason"),
    [
        ("timm", {}, "timm has no resnetv2_18_w16"),
        ("timm", {"arch": "hybrid"}, "attention pooling"),
        ("timm", {"backbone": "resnetv2_18"}, "3x3"),
        ("torchvision", {"backbone": "resnetv2_18", "stem": "7x7"}, "torchvision has no resnetv2_18"),
    ],
)
def test_what_does_not_fit_is_refused(pretrained: Path, to: str, changed: dict[str, str], reason: str) -> None:
    shutil.copytree(pretrained, "run")
    change("run", derived=config_of("run")["derived"] | changed)
    message = error_of("export", "run", "--to", to, code=2)
    assert reason in message
    assert message.endswith("onnx, safetensors")


def test_what_is_not_written_over_or_not_installed(pretrained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("pretrained.safetensors").write_bytes(b"dear")
    assert "--overwrite" in error_of("export", pretrained, "--to", "safetensors", code=2)
    assert Path("pretrained.safetensors").read_bytes() == b"dear"
    itself = pretrained / "model.safetensors"
    assert "the network itself" in error_of(
        "export", pretrained, "--to", "safetensors", "--out", itself, "--overwrite", code=2
    )
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    assert "selfie-cli[onnx]" in error_of("export", pretrained, "--to", "onnx", code=2)


@pytest.mark.slow
def test_the_guide(made: Callable[[str], Path], photos: Path) -> None:
    """What docs/guide/export.md tells to run, runs, in its order; commands make the files that code reads."""
    page = (Path(__file__).parents[2] / "docs" / "guide" / "export.md").read_text()
    for name in ("photos", "selfie", "finetuned"):
        shutil.copytree(made(name), Path("runs") / name)
    Image.open(next((photos / "test").rglob("*.png"))).save("photo.jpg")
    blocks = re.findall(r"```(sh|python)\n(.*?)```", page, re.DOTALL)
    assert len(blocks) > 10
    names: dict[str, Any] = {}
    for language, block in blocks:
        if language == "python":
            exec(compile(block, "docs/guide/export.md", "exec"), names)
            continue
        for line in block.splitlines():
            command = shlex.split(line.partition(" > ")[0])
            assert command[:2] == ["selfie", "export"]
            loaded(selfie(*command[1:], "--overwrite").stdout)
    with Image.open("photo.jpg") as photo:
        vectors = [names[each](photo).flatten() for each in ("transform", "same")]
    assert torch.cosine_similarity(*vectors, 0) > 0.99
