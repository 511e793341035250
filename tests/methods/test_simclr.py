"""SimCLR against its loss written one pair of views at a time."""

import math

import pytest
import torch
from joint import check_gradients, features, make_simclr, stirred, two_views

from selfie_cli.methods.simclr import nt_xent
from selfie_cli.training.distributed import Group


def naive_loss(vectors, temperature):
    """Equation 1 of the paper over rows 2k and 2k + 1 that belong together: the loss, and the share that was right."""
    losses, right = [], []
    for i, z in enumerate(vectors):
        partner = i + 1 if i % 2 == 0 else i - 1
        lengths = [(z @ z).sqrt() * (other @ other).sqrt() for other in vectors]
        powers = {k: torch.exp(z @ vectors[k] / lengths[k] / temperature) for k in range(len(vectors)) if k != i}
        losses.append(-torch.log(powers[partner] / sum(powers.values())))
        right.append(max(powers, key=lambda k: powers[k].item()) == partner)
    return sum(losses) / len(losses), sum(right) / len(right)


@pytest.mark.parametrize("temperature", [0.1, 0.5])
def test_loss_and_gradients_agree_with_a_loop_over_views(temperature):
    method = stirred(make_simclr(temperature=temperature)).double()
    view1, view2 = two_views()
    loss, logged = method.loss(torch.cat([view1, view2]))
    # All views at once, so that batch norm sees them together, and here as neighbours.
    images = torch.stack([image for pair in zip(view1, view2, strict=True) for image in pair])
    expected, accuracy = naive_loss(list(method.projector(features(method.encoder, images))), temperature)
    assert loss.item() == pytest.approx(expected.item(), abs=1e-5)
    assert logged["pretext_accuracy"].item() == pytest.approx(accuracy)
    assert 0 < accuracy < 1  # neither is trivial
    assert logged["chance"].item() == pytest.approx(1 / 11)
    check_gradients(method, loss, expected, 1e-6)


def test_with_several_views_each_pair_is_told_from_the_other_images():
    """Three views of four images: every positive against itself and the nine views of other images."""
    z = torch.randn(12, 5, generator=torch.Generator().manual_seed(0), dtype=torch.double)
    loss, logged = nt_xent(z, 3, 0.3, Group())
    unit = [row / (row @ row).sqrt() for row in z]
    losses, right = [], []
    for i in range(12):
        others = [k for k in range(12) if k != i]
        negatives = sum(math.exp(unit[i] @ unit[k] / 0.3) for k in others if k % 4 != i % 4)
        for k in others:
            if k % 4 == i % 4:
                score = math.exp(unit[i] @ unit[k] / 0.3)
                losses.append(-math.log(score / (score + negatives)))
        right.append(max(others, key=lambda k: float(unit[i] @ unit[k])) % 4 == i % 4)
    assert len(losses) == 24
    assert loss.item() == pytest.approx(sum(losses) / len(losses), rel=1e-5)
    assert logged["pretext_accuracy"].item() == pytest.approx(sum(right) / len(right))
    assert logged["chance"].item() == pytest.approx(2 / 11)
