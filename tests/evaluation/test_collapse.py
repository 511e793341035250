import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from selfie_cli import runs
from selfie_cli.data import synthetic
from selfie_cli.data.augment import plain_view
from selfie_cli.evaluation.collapse import collapse_warning, feature_spread
from selfie_cli.inference import networks
from selfie_cli.models.classifier import Encoder


def warning_of(vectors):
    std, rank = feature_spread(vectors)
    return collapse_warning(std, rank, vectors.shape[1])


@pytest.fixture
def normal():
    return torch.randn(256, 32, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def drawn():
    return torch.from_numpy(synthetic.draw(256, seed=0)[0])


def naive(vectors):
    """Both numbers from their definitions, with eigenvalues of the covariance in place of singular values."""
    rows = [[value / math.hypot(*row) for value in row] for row in vectors.tolist()]
    columns = list(zip(*rows, strict=True))
    std = sum(float(np.std(column)) for column in columns) / len(columns) * math.sqrt(len(columns))
    centred = vectors.double().numpy() - vectors.double().numpy().mean(axis=0)
    eigenvalues = np.linalg.eigvalsh(centred.T @ centred).clip(min=0)
    shares = np.sqrt(eigenvalues) / np.sqrt(eigenvalues).sum()
    return std, math.exp(-sum(share * math.log(share) for share in shares if share > 1e-6))


@pytest.mark.parametrize("num", [9, 64, 256])
def test_agrees_with_the_naive_reference(normal, num):
    vectors = normal[:num] * torch.linspace(0.1, 3, 32) + 1
    assert feature_spread(vectors) == pytest.approx(naive(vectors), rel=1e-4)


def test_what_does_not_matter(normal):
    std, rank = feature_spread(normal)
    for same, tolerance in ((normal * 1e-12, 1e-4), (normal * 1e25, 1e-4), (normal.flip(0), 1e-6)):
        assert feature_spread(same) == pytest.approx((std, rank), rel=tolerance)
    assert feature_spread(normal.bfloat16()) == pytest.approx((std, rank), rel=1e-2)
    assert feature_spread(normal.requires_grad_()) == pytest.approx((std, rank))


CONSTANT = torch.full((256, 64), 0.3)
ROUNDING = 3e-8 * torch.eye(64).repeat(4, 1)  # float32's last digit


@pytest.mark.parametrize("vectors", [CONSTANT, CONSTANT + ROUNDING, torch.zeros(256, 64), torch.ones(1, 64)])
def test_constant_features_have_no_spread(vectors):
    assert feature_spread(vectors) == (pytest.approx(0, abs=1e-6), 0)
    assert "collapse" in warning_of(vectors)


def test_the_warning_says_what_was_seen_and_what_to_try():
    for words in ("0.012", "7.0 of 128", "collapse", "--lr", "--batch-size", "--method"):
        assert words in collapse_warning(0.012, 7.0, 128)
    for words in ("one way", "0.400", "1.3 of 256"):
        assert words in collapse_warning(0.4, 1.26, 256)


@pytest.mark.parametrize("num", [16, 256])
@pytest.mark.parametrize("num_stages", [3, 4])
def test_untrained_networks_and_the_bundled_one_do_not_warn(drawn, num, num_stages):
    torch.manual_seed(0)
    network = Encoder("resnetv2_18_w16", stem="3x3", num_stages=num_stages)
    bundled = networks.load_module(runs.open_run(runs.bundled_folder()))
    with torch.no_grad():  # batch norms are new in evaluation
        for module in (network.eval(), network.train(), bundled.eval()):
            assert warning_of(module(plain_view(drawn[:num], 32))) is None


def variance(both):
    return both.var(dim=0).sum()


def share_off_an_axis(both):
    centred = both - both.mean(dim=0)
    return 1 - centred.mean(dim=1).square().sum() * both.shape[1] / centred.square().sum()


@pytest.mark.parametrize("loss_of", [variance, share_off_an_axis])
def test_a_network_driven_to_collapse_warns(drawn, loss_of):
    """A small projection of two views of 16 x 16 pictures; nothing in the loss keeps images apart."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(768, 64), nn.ReLU(), nn.Linear(64, 32))
    views = F.avg_pool2d(plain_view(torch.cat([drawn, drawn.flip(2)]), 32), 2)
    assert warning_of(network(views[:256])) is None
    optimizer = torch.optim.SGD(network.parameters(), lr=0.05, momentum=0.9)
    for _ in range(400):
        optimizer.zero_grad()
        loss_of(network(views)).backward()
        optimizer.step()
    assert "collapse" in warning_of(network(views[:256]))
