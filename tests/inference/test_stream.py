"""Images through a network: batches, order, compiling."""

import os
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from running import COMMAND, ENVIRONMENT, selfie
from test_precision import network
from torch import nn
from torch._dynamo.testing import CompileCounter

from selfie_cli.inference.networks import Network
from selfie_cli.inference.stream import Compute, Result, Stream
from selfie_cli.talk import Talk


@pytest.fixture
def names(images: Path) -> list[str]:
    return [str(path) for path in sorted(images.rglob("*.png"))]


def streaming(names: list[str], batch_size: int, compute: Compute = Network.vectors) -> Stream:
    how = {"what": "x", "precision": "fp32", "workers": 1, "batch_size": batch_size}
    return Stream(names=names, network=network(), compute=compute, talk=Talk(), **how)


def results(names: list[str], batch_size: int) -> list[Result]:
    with streaming(names, batch_size) as stream:
        return list(stream)


def test_batches_are_padded_to_one_shape(names: list[str]) -> None:
    seen: list[torch.Size] = []

    def compute(network: Network, pixels: torch.Tensor) -> torch.Tensor:
        seen.append(pixels.shape)
        return network.vectors(pixels)

    Path("bad.png").write_bytes(b"no image")
    with streaming([*names[:5], "bad.png", names[5]], 4, compute) as stream:
        found = list(stream)
    assert seen == [(4, 32, 32, 3)] * 2
    assert [result.name for result in found] == names[:6]
    assert [one.name for one in stream.bad] == ["bad.png"]
    (alone,) = results(names[4:5], 1)
    np.testing.assert_allclose(found[4].vector, alone.vector, rtol=1e-4, atol=1e-6)


def test_a_compiled_network_takes_over(names: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """The network is compiled as it is, with a backend that needs no compiler: what counts is what is used after."""
    real, backend = nn.Module.compile, CompileCounter()
    monkeypatch.setattr(nn.Module, "compile", lambda self, **how: real(self, dynamic=how["dynamic"], backend=backend))
    with streaming(names[:8], 4) as stream:
        plain = stream.lean
        stream.use_compiled()
        found = list(stream)
    assert stream.lean is not plain
    assert backend.frame_count == 1  # one shape, compiled once
    for one, other in zip(results(names[:8], 4), found, strict=True):
        np.testing.assert_allclose(one.vector, other.vector, rtol=1e-4, atol=1e-6)


@pytest.mark.slow
def test_without_a_compiler_it_goes_on(pretrained: Path, images: Path) -> None:
    environment = {**ENVIRONMENT, "CXX": "/nowhere", "TORCHINDUCTOR_CACHE_DIR": os.path.abspath("cache")}
    asked = ("embed", str(images / "test"), "--from", str(pretrained), "--out")
    argv = [*COMMAND, *asked, "v.npy", "--compile", "on"]
    done = subprocess.run(argv, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "torch.compile does not work here, continuing without it (" in done.stderr
    selfie(*asked, "w.npy")
    np.testing.assert_allclose(np.load("v.npy"), np.load("w.npy"), rtol=1e-5, atol=1e-6)
