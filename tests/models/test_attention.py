import pytest
import torch

from selfie_cli.models.attention import AttentionPooling


@pytest.mark.parametrize(("width", "heads", "inner"), [(1024, 32, 640), (256, 8, 160), (64, 2, 40), (16, 1, 10)])
def test_heads_and_inner_width_follow_the_papers_network_of_width_1024(width, heads, inner):
    pooling = AttentionPooling(width)
    assert len(pooling.layers) == 3
    assert (pooling.layers[0].num_heads, pooling.layers[0].dropout) == (heads, 0.1)
    attention, norms = 4 * (width * width + width), 2 * 2 * width
    layer = attention + norms + width * inner + inner + inner * width + width
    assert sum(parameter.numel() for parameter in pooling.parameters()) == 3 * layer + width


def test_dropout_acts_in_training_only():
    pooling = AttentionPooling(64)
    vectors = torch.randn(2, 5, 64)
    assert not pooling(vectors).equal(pooling(vectors))
    pooling.eval()
    assert pooling(vectors).equal(pooling(vectors))
