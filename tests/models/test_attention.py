import pytest
import torch

from selfie_cli.models.attention import AttentionPooling, Positions


def pooling_with_large_weights(width, **options):
    """Weights far from their start, so that attention is far from uniform and every bias counts."""
    torch.manual_seed(0)
    pooling = AttentionPooling(width, **options).double().eval()
    with torch.no_grad():
        for parameter in pooling.parameters():
            parameter.copy_(torch.randn_like(parameter) * (0.2 if parameter.dim() == 2 else 0.5))
    return pooling


def test_the_order_of_the_vectors_does_not_matter():
    pooling = pooling_with_large_weights(64)
    vectors = torch.randn(3, 12, 64, dtype=torch.double)
    torch.testing.assert_close(pooling(vectors[:, torch.randperm(12)]), pooling(vectors))
    assert not pooling(vectors + 0.01).allclose(pooling(vectors))


def test_the_last_layer_needs_to_compute_one_token_only():
    pooling = pooling_with_large_weights(64)
    vectors = torch.randn(3, 12, 64, dtype=torch.double)
    x = torch.cat([pooling.u0.expand(3, 1, 64), vectors], dim=1)
    for layer in pooling.layers:
        x = layer(x, num_queries=13)
    torch.testing.assert_close(pooling(vectors), x[:, 0])


def test_width_1024_has_the_numbers_of_the_paper():
    pooling = AttentionPooling(1024)
    assert len(pooling.layers) == 3
    layer = pooling.layers[0]
    assert (layer.num_heads, layer.expand.out_features, layer.dropout) == (32, 640, 0.1)
    attention = 4 * (1024 * 1024 + 1024)
    feed_forward = 1024 * 640 + 640 + 640 * 1024 + 1024
    norms = 2 * 2 * 1024
    assert sum(parameter.numel() for parameter in pooling.parameters()) == 3 * (attention + feed_forward + norms) + 1024


@pytest.mark.parametrize(("width", "heads", "intermediate"), [(64, 2, 40), (256, 8, 160), (16, 1, 10)])
def test_other_widths_keep_the_width_of_a_head(width, heads, intermediate):
    layer = AttentionPooling(width).layers[0]
    assert (layer.num_heads, layer.expand.out_features) == (heads, intermediate)


def test_dropout_acts_in_training_only():
    pooling = AttentionPooling(64)
    vectors = torch.randn(2, 5, 64)
    assert not pooling(vectors).equal(pooling(vectors))
    pooling.eval()
    assert pooling(vectors).equal(pooling(vectors))


def test_a_position_is_a_vector_a_place_or_row_plus_column():
    places = Positions(4, 8, factorized=False)
    assert places.vectors.shape == (16, 8)
    assert places().equal(places.vectors)

    factorized = Positions(7, 8, factorized=True)
    assert factorized.vectors.shape == (14, 8)
    table = factorized()
    assert table.shape == (49, 8)
    for row in range(7):
        for column in range(7):
            assert table[row * 7 + column].equal(factorized.vectors[row] + factorized.vectors[7 + column])
