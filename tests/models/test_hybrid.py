"""Patches, attention pooling, and the hybrid against Selfie's own modules, put together here by hand."""

import pytest
import torch

from selfie_cli.models.attention import AttentionPooling
from selfie_cli.models.hybrid import Hybrid
from selfie_cli.models.patches import cut, encode, num_masked, random_masks
from selfie_cli.models.resnet import resnet
from tests.methods.small_methods import BACKBONE, NETWORK, PATCHES, make_task


def hybrid(**changed):
    return Hybrid(**{**NETWORK, **PATCHES, "num_classes": 3, **changed})


def pooled(selfie, images):
    """Attention-pooled vectors, one patch after the other."""
    rows = []
    for image in images:
        patches = [image[:, y : y + 8, x : x + 8] for y in range(0, 32, 8) for x in range(0, 32, 8)]
        vectors = torch.stack([selfie.patch_network(patch[None]).mean(dim=(2, 3))[0] for patch in patches])
        context = vectors + selfie.positions() if selfie.encoder_positions else vectors
        rows.append(selfie.attention_pooling(context[None])[0])
    return torch.stack(rows)


@pytest.mark.parametrize("encoder_positions", [True, False])
@pytest.mark.parametrize("factorized", [True, False])
def test_features_are_selfies_pooled_vectors_and_the_head_stays(encoder_positions, factorized):
    shape = {"encoder_positions": encoder_positions, "factorized_positions": factorized}
    selfie, module = make_task("selfie", logit_scale="cosine", **shape).eval(), hybrid(**shape).eval()
    head = module.head.weight.clone()
    module.take_over(selfie.state_dict())  # with a temperature, which only pretraining needs
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        features = module.features(images)
        torch.testing.assert_close(features, pooled(selfie, images), atol=1e-6, rtol=0)
        torch.testing.assert_close(module(images), features @ head.T + module.head.bias)


def test_what_does_not_fit_is_refused():
    state = make_task("selfie").state_dict()
    without_positions = {name: tensor for name, tensor in state.items() if name != "positions.vectors"}
    for wrong in ({}, without_positions, make_task("selfie", final_norm=False).state_dict()):
        with pytest.raises(RuntimeError, match="missing"):
            hybrid().take_over(wrong)
    with pytest.raises(RuntimeError):
        hybrid(image_size=64).take_over(state)


@pytest.mark.parametrize(("stem", "p", "size"), [("3x3", 8, 32), ("7x7", 32, 96)])
def test_encoded_whole_a_patch_is_its_cell_of_the_images_map(stem, p, size):
    """Encoded apart, it is by itself: see tests/methods/test_selfie.py."""
    network = resnet(BACKBONE, stem=stem, num_stages=3).eval()
    images = torch.randn(2, 3, size, size)
    for layout in (torch.contiguous_format, torch.channels_last):
        patches = cut(images.contiguous(memory_format=layout), p)
        assert patches.is_contiguous(memory_format=torch.channels_last)
    with torch.no_grad():
        whole, maps = encode(network, images, p, apart=False), network(images)
    assert whole.shape == (2, (size // p) ** 2, 64)
    cell = maps.shape[-1] * p // size
    for place in range(whole.shape[1]):
        y, x = divmod(place, size // p)
        there = maps[:, :, y * cell : (y + 1) * cell, x * cell : (x + 1) * cell]
        torch.testing.assert_close(whole[:, place], there.mean(dim=(2, 3)))


@pytest.mark.parametrize(("width", "heads", "inner"), [(1024, 32, 640), (256, 8, 160), (64, 2, 40), (16, 1, 10)])
def test_heads_and_inner_width_follow_the_papers_network_of_width_1024(width, heads, inner):
    pooling = AttentionPooling(width)
    assert len(pooling.layers) == 3
    assert (pooling.layers[0].num_heads, pooling.layers[0].dropout) == (heads, 0.1)
    attention, norms = 4 * (width * width + width), 2 * 2 * width
    layer = attention + norms + width * inner + inner + inner * width + width
    assert sum(parameter.numel() for parameter in pooling.parameters()) == 3 * layer + width


def test_every_image_has_its_own_mask_and_every_place_its_share():
    scores = torch.rand(16_000, 16, generator=torch.Generator().manual_seed(0))
    masked, _ = random_masks(scores, 4)
    assert len({frozenset(row) for row in masked.tolist()}) == 1820  # all ways to choose 4 of 16
    for column in masked.T:  # 1,000 expected of each place; within five standard deviations
        assert (column.bincount(minlength=16) - 1000).abs().max() < 5 * (1000 * 15 / 16) ** 0.5


@pytest.mark.parametrize(
    ("num_patches", "ratio", "expected"), [(16, 0.25, 4), (49, 0.25, 12), (4, 0.25, 2), (4, 0.99, 3), (16, 0.001, 2)]
)
def test_at_least_two_are_masked_and_one_is_visible(num_patches, ratio, expected):
    assert num_masked(num_patches, ratio) == expected
