"""A network made for inference against the one that it was made from."""

import copy

import pytest
import torch
import torch.nn.functional as F
from test_hybrid import hybrid

from selfie_cli.inference.networks import Network
from selfie_cli.models.classifier import Classifier, Encoder
from selfie_cli.models.resnet import TORCHVISION
from tests.methods.small_methods import BACKBONE, make_task, stirred


def network(module, features="whole"):
    torch.manual_seed(0)
    return Network(stirred(module).eval(), 32, features)


KINDS = {
    **{f"encoder {name}": (lambda name=name: Encoder(name, stem="3x3"), "whole")
       for name in (BACKBONE, "resnetv2_50", *TORCHVISION)},
    "classifier": (lambda: Classifier(BACKBONE, stem="3x3", num_classes=3), "penultimate"),
    **{f"selfie {features}": (lambda: make_task("selfie"), features) for features in ("whole", "patches", "pooled")},
    "selfie, whole images": (lambda: make_task("selfie", apart=False), "pooled"),
    "selfie without a closing norm": (lambda: make_task("selfie", final_norm=False), "patches"),
    "hybrid": (hybrid, "penultimate"),
    "hybrid, whole images": (lambda: hybrid(apart=False), "penultimate"),
}  # fmt: skip


@pytest.fixture(params=["oneDNN", "plain"])
def _kernels(request, monkeypatch):
    """Once with oneDNN's fused operators, once as on machines that lack them."""
    if request.param == "plain":
        monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    elif not torch.backends.mkldnn.is_available():
        pytest.skip("torch has no oneDNN here")


def pixels():
    return torch.randint(0, 256, (3, 32, 32, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


@pytest.mark.usefixtures("_kernels")
@pytest.mark.parametrize("kind", KINDS)
def test_the_same_vectors_within_rounding_and_in_bf16_of_the_same_direction(kind):
    make, features = KINDS[kind]
    exact = network(make(), features)
    before, expected = copy.deepcopy(exact.module.state_dict()), exact.vectors(pixels())
    lean, coarse = exact.lean(torch.float32), exact.lean(torch.bfloat16)
    assert {tensor.dtype for tensor in coarse.module.state_dict().values() if tensor.dim() == 4} == {torch.bfloat16}
    for some in (pixels(), pixels()[:1]):
        found, rounded, right = lean.vectors(some), coarse.vectors(some), expected[: len(some)]
        assert found.dtype == rounded.dtype == torch.float32
        assert (found - right).norm() < 1e-5 * right.norm()
        assert F.cosine_similarity(rounded, right).min() > 0.999
        assert not rounded.bfloat16().float().equal(rounded)  # the average over space is no longer bf16
    assert all(tensor.equal(before[name]) for name, tensor in exact.module.state_dict().items())
    assert exact.vectors(pixels()).equal(expected)  # the network it was made from is unchanged
    if features == "penultimate":
        torch.testing.assert_close(lean.probabilities(pixels()), exact.probabilities(pixels()))
