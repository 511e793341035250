"""SimCLR against its loss written one pair of views at a time."""

import pytest
import torch
from small_methods import check_gradients, features, make_task, stirred, views_of


def naive_loss(vectors, images, temperature):
    """The mean loss, and the share that was right; `images` has the image of each vector. Equation 1: a view is to find
    another one of its image among all views of other images."""
    losses, right = [], []
    for i, z in enumerate(vectors):
        lengths = [(z @ z).sqrt() * (other @ other).sqrt() for other in vectors]
        powers = {k: torch.exp(z @ vectors[k] / lengths[k] / temperature) for k in range(len(vectors)) if k != i}
        negatives = sum(power for k, power in powers.items() if images[k] != images[i])
        losses += [-torch.log(power / (power + negatives)) for k, power in powers.items() if images[k] == images[i]]
        right.append(images[max(powers, key=lambda k: powers[k].item())] == images[i])
    return sum(losses) / len(losses), sum(right) / len(right)


@pytest.mark.parametrize(("num_views", "temperature"), [(2, 0.1), (2, 0.5), (3, 0.5)])
def test_loss_and_gradients_agree_with_a_loop_over_views(num_views, temperature):
    method = stirred(make_task("simclr", num_views=num_views, temperature=temperature)).double()
    views = views_of(num_views)
    loss, logged = method.loss(torch.cat(views))
    # All views at once, so that batch norm sees them together, and here as neighbours.
    neighbours = torch.stack([image for group in zip(*views, strict=True) for image in group])
    images = [row // num_views for row in range(len(neighbours))]
    vectors = list(method.projector(features(method.encoder, neighbours)))
    expected, accuracy = naive_loss(vectors, images, temperature)
    assert loss.item() == pytest.approx(expected.item(), abs=1e-5)
    assert logged["pretext_accuracy"].item() == pytest.approx(accuracy)
    assert 0 < accuracy < 1  # neither is trivial
    assert logged["chance"].item() == pytest.approx((num_views - 1) / (len(vectors) - 1))
    check_gradients(method, loss, expected, 1e-6)
