import pytest
import torch
from torch import nn

from selfie_cli.methods.joint import mlp
from selfie_cli.models.encoder import Encoder


@pytest.mark.parametrize("name", ["resnetv2_18_w16", "resnet18"])
def test_features_are_averages_over_space(name):
    torch.manual_seed(0)
    encoder = Encoder(name, stem="3x3").eval()
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        maps = encoder.encoder(images)
        features = encoder(images)
    assert maps.shape == (2, encoder.encoder.num_features, 4, 4)
    torch.testing.assert_close(features, maps.flatten(2).sum(dim=2) / 16)
    assert all(name.startswith("encoder.") for name in encoder.state_dict())


def test_the_head_is_linear_norm_relu_linear():
    torch.manual_seed(0)
    head = mlp(5, 7, 3).double()
    first, norm, _, last = head
    assert last.bias is None
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    x = torch.randn(6, 5, dtype=torch.double)
    inner = x @ first.weight.T + first.bias
    inner = (inner - inner.mean(dim=0)) / (inner.var(dim=0, correction=0) + norm.eps).sqrt() * norm.weight + norm.bias
    torch.testing.assert_close(head(x), torch.where(inner > 0, inner, 0.0) @ last.weight.T)
