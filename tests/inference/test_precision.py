"""The precision of a job: what is asked for, what "auto" chooses, and when it warns."""

import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from listening import Listener
from running import error_of, selfie

from selfie_cli.inference import stream
from selfie_cli.inference.networks import Network, estimate_batch_norm
from selfie_cli.inference.stream import SHORT_JOB, decode, with_precision
from selfie_cli.models.classifier import Encoder
from selfie_cli.models.quantized import has_vnni
from selfie_cli.models.resnet import PREACTIVATION, TORCHVISION
from selfie_cli.talk import Talk


def network(backbone: str = "resnetv2_18_w16", image_size: int = 32) -> Network:
    torch.manual_seed(0)
    return Network(Encoder(backbone, stem="3x3" if image_size < 64 else "7x7").eval(), image_size, "whole")


@pytest.fixture(autouse=True)
def _bf16(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream, "bf16_pays", lambda device: True)


def first(count: int) -> torch.Tensor:
    return torch.zeros(count, 32, 32, 3, dtype=torch.uint8)


def turned(degrees: float):
    """Vectors that bf16 turns by an angle."""

    def compute(network: Network, pixels: torch.Tensor) -> torch.Tensor:
        coarse = any(tensor.dtype == torch.bfloat16 for tensor in network.module.state_dict().values())
        angle = torch.tensor(np.deg2rad(degrees) if coarse else 0.0)
        return torch.stack([angle.cos(), angle.sin()]).expand(len(pixels), 2).float()

    return compute


@pytest.mark.parametrize(("degrees", "chosen"), [(2.5, "bf16"), (2.6, "fp32")])  # the cosine of 2.56 degrees is 0.999
def test_auto_takes_bf16_where_it_gives_the_same_vectors(degrees: float, chosen: str) -> None:
    talk = Listener()
    assert with_precision(network(), turned(degrees), "auto", SHORT_JOB + 1, first, talk)[1] == chosen
    (line,) = talk.lines
    assert line.startswith(f"precision: {chosen}; in bf16 the cosine to fp32 is at least 0.99")
    assert ("below 0.999" in line) == (chosen == "fp32")


def test_what_is_not_questioned(monkeypatch: pytest.MonkeyPatch) -> None:
    talk = Listener()
    for asked in ("bf16", "fp32"):
        assert with_precision(network(), turned(90), asked, 1000, first, talk)[1] == asked
    assert with_precision(network(), turned(0), "auto", SHORT_JOB, first, talk)[1] == "fp32"
    monkeypatch.setattr(stream, "bf16_pays", lambda device: False)
    assert with_precision(network(), turned(0), "auto", 1000, first, talk)[1] == "fp32"
    assert talk.lines == []


@pytest.fixture(scope="module")
def photos(real_archives: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("photos")
    with tarfile.open(real_archives / "clothing256.tar") as tar:
        members = [member for member in tar if member.isfile()][::90][:16]
        tar.extractall(folder, members, filter="data")
    return [str(folder / member.name) for member in members]


@pytest.mark.parametrize("estimated", [False, True], ids=["as drawn", "with statistics"])
@pytest.mark.parametrize("backbone", [*PREACTIVATION, *TORCHVISION])
def test_real_photos_keep_their_direction(photos: list[str], backbone: str, estimated: bool) -> None:
    """At 224 px, with random weights: what is chosen keeps a cosine of 0.999, on images that had no say in it, too.

    With statistics of its own in each of 16 blocks, a random ResNet-50 makes a rounding error grow, and fp32 is taken.
    """
    exact = network(backbone, 224)
    pixels = decode(photos, range(16), exact, 16).pixels
    if estimated:
        estimate_batch_norm(exact.module, exact.vectors, pixels)
    lean, chosen = with_precision(exact, Network.vectors, "auto", 1000, lambda count: pixels[:count], Talk())
    if not estimated or backbone.startswith("resnetv2_18") or backbone == "resnet18":
        assert chosen == "bf16"
    assert F.cosine_similarity(lean.vectors(pixels[8:]), exact.vectors(pixels[8:])).min() > 0.9985


needs_vnni = pytest.mark.skipif(not has_vnni(torch.device("cpu")), reason="no VNNI here")


@needs_vnni
def test_int8_on_request(images: Path) -> None:
    selfie("embed", images, "--from", "bundled", "--out", "exact.npy", "--precision", "fp32")
    asked = ("embed", images, "--from", "bundled", "--precision", "int8")
    result = selfie(*asked, "--out", "v.npy", "--batch-size", 7)
    assert "precision: int8; in int8 the cosine to fp32 is at least 0.99" in result.stderr
    exact, found = torch.from_numpy(np.load("exact.npy")), torch.from_numpy(np.load("v.npy"))
    assert 0.99 < F.cosine_similarity(found, exact).min() < 0.99999
    assert "--compile on" in error_of(*asked, "--compile", "on", code=2)


@needs_vnni
def test_int8_that_loses_too_much_is_warned_of(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream, "USABLE", 1.1)
    talk = Listener()
    with_precision(network(), Network.vectors, "int8", 1000, first, talk)
    assert "take bf16 or fp32" in talk.lines[1]


def test_int8_is_refused_where_it_is_not_to_be_had(
    pretrained: Path, images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream, "has_vnni", lambda device: False)
    assert "VNNI" in error_of("embed", images, "--from", pretrained, "--precision", "int8", code=2)
