import math

import numpy as np
import pytest
import torch

from selfie_cli import runs
from selfie_cli.data import synthetic
from selfie_cli.data.augment import plain_view
from selfie_cli.evaluation.collapse import collapse_warning, feature_spread
from selfie_cli.inference import networks
from selfie_cli.models.classifier import Encoder


def warning_of(vectors):
    std, rank = feature_spread(vectors)
    return collapse_warning(std, rank, vectors.shape[1])


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
def test_agrees_with_the_naive_reference(num):
    vectors = torch.randn(num, 32, generator=torch.Generator().manual_seed(0)) * torch.linspace(0.1, 3, 32) + 1
    assert feature_spread(vectors) == pytest.approx(naive(vectors), rel=1e-4)


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


# As measured: BYOL without its predictor and slow target, and healthy networks.
@pytest.mark.parametrize(("std", "rank"), [(0.023, 2.3), (0.017, 1.9), (0.023, 9.0), (0.3, 1.9)])
def test_collapsed_networks_warn(std, rank):
    assert "collapse" in collapse_warning(std, rank, 128)
    for healthy in ((0.054, 3.6), (0.12, 4.3), (0.043, 2.8)):
        assert collapse_warning(*healthy, 128) is None


@pytest.mark.parametrize("num", [16, 256])
@pytest.mark.parametrize("num_stages", [3, 4])
def test_untrained_networks_and_the_bundled_one_do_not_warn(num, num_stages):
    images = plain_view(torch.from_numpy(synthetic.draw(num, seed=0)[0]), 32)
    torch.manual_seed(0)
    network = Encoder("resnetv2_18_w16", stem="3x3", num_stages=num_stages)
    bundled = networks.load_module(runs.open_run(runs.bundled_folder()))
    with torch.no_grad():  # batch norms are new in evaluation
        for module in (network.eval(), network.train(), bundled.eval()):
            assert warning_of(module(images)) is None
