"""The precision of a job: what is asked for, what "auto" chooses, and when it warns."""

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from listening import Listener
from running import error_of, selfie

from selfie_cli.errors import UsageError
from selfie_cli.inference import stream
from selfie_cli.inference.networks import Network
from selfie_cli.inference.stream import SHORT_JOB, with_precision
from selfie_cli.models.classifier import Encoder
from selfie_cli.models.quantized import has_vnni


def network() -> Network:
    torch.manual_seed(0)
    return Network(Encoder("resnetv2_18_w16", stem="3x3").eval(), 32, "whole")


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


def test_what_is_not_questioned_and_what_is_not_to_be_had(monkeypatch: pytest.MonkeyPatch) -> None:
    talk = Listener()
    for asked in ("bf16", "fp32"):
        assert with_precision(network(), turned(90), asked, 1000, first, talk)[1] == asked
    assert with_precision(network(), turned(0), "auto", SHORT_JOB, first, talk)[1] == "fp32"
    monkeypatch.setattr(stream, "bf16_pays", lambda device: False)
    assert with_precision(network(), turned(0), "auto", 1000, first, talk)[1] == "fp32"
    assert talk.lines == []
    monkeypatch.setattr(stream, "has_vnni", lambda device: False)
    with pytest.raises(UsageError, match="VNNI"):
        with_precision(network(), turned(0), "int8", 1000, first, talk)


needs_vnni = pytest.mark.skipif(not has_vnni(torch.device("cpu")), reason="no VNNI here")


@pytest.mark.parametrize(("asked", "taken"), [pytest.param("int8", "int8", marks=needs_vnni), ("auto", "bf16")])
def test_vectors_keep_their_direction(images: Path, asked: str, taken: str) -> None:
    common = ("embed", images, "--from", "bundled", "--precision")
    selfie(*common, "fp32", "--out", "exact.npy")
    result = selfie(*common, asked, "--out", "v.npy", "--batch-size", 7)
    assert f"precision: {taken}; in {taken} the cosine to fp32 is at least 0.99" in result.stderr
    exact, found = torch.from_numpy(np.load("exact.npy")), torch.from_numpy(np.load("v.npy"))
    assert (0.99 if taken == "int8" else 0.999) < F.cosine_similarity(found, exact).min() < 0.99999
    if taken == "int8":
        assert "--compile on" in error_of(*common, asked, "--compile", "on", code=2)


@needs_vnni
def test_int8_that_loses_too_much_is_warned_of(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream, "USABLE", 1.1)
    talk = Listener()
    with_precision(network(), Network.vectors, "int8", 1000, first, talk)
    assert "take bf16 or fp32" in talk.lines[1]
