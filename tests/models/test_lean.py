"""A network made for inference against the one that it was made from."""

import copy

import pytest
import torch
import torch.nn.functional as F
from test_resnet import with_statistics

from selfie_cli.inference.networks import Network
from selfie_cli.methods.selfie import Selfie
from selfie_cli.models.classifier import Classifier, Encoder
from selfie_cli.models.hybrid import Hybrid
from selfie_cli.models.lean import for_inference
from selfie_cli.models.resnet import PREACTIVATION, TORCHVISION

SMALL = "resnetv2_18_w16"
SHAPE = {"image_size": 32, "patch_size": 8, "factorized_positions": False, "encoder_positions": True}


def selfie(*, apart=True, final_norm=True):
    own = {"mask_ratio": 0.25, "logit_scale": "dot", "flip": False}
    return Selfie(backbone=SMALL, final_norm=final_norm, apart=apart, **own, **SHAPE)


def hybrid(*, apart=True):
    return Hybrid(SMALL, **SHAPE, final_norm=True, apart=apart, num_classes=3)


def network(module, features="whole"):
    torch.manual_seed(0)
    return Network(with_statistics(module), 32, features)


KINDS = {
    **{f"encoder {name}": (lambda name=name: Encoder(name, stem="3x3"), "whole")
       for name in (*PREACTIVATION, *TORCHVISION)},
    **{f"classifier {name}": (lambda name=name: Classifier(name, stem="3x3", num_classes=3), "penultimate")
       for name in (SMALL, "resnet18")},
    **{f"selfie {features}": (selfie, features) for features in ("whole", "patches", "pooled")},
    "selfie, whole images": (lambda: selfie(apart=False), "pooled"),
    "selfie without a closing norm": (lambda: selfie(final_norm=False), "patches"),
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


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_input_is_left_alone(dtype):
    images = torch.randn(2, 3, 32, 32).contiguous(memory_format=torch.channels_last)
    before = images.clone()
    with torch.no_grad():
        for_inference(network(Encoder(SMALL, stem="3x3")).module, dtype)(images)
    assert images.equal(before)
