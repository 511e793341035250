"""Selfie over many small views: its loss against one written view by view."""

import pytest
import torch
from small_methods import augmented, check_gradients, features, make_task

from selfie_cli.data import synthetic


@pytest.mark.parametrize("num_views", [2, 4])
def test_loss_and_gradients_agree_with_a_loop_over_views(num_views):
    """Of six images whose views are alike."""
    method = make_task("many-view selfie", num_views=num_views).double()
    generator = torch.Generator().manual_seed(2)
    image, noise = (torch.randn(count, 6, 3, 8, 8, generator=generator).double() for count in (1, num_views))
    views = (image + 0.5 * noise).flatten(0, 1)
    loss, logged = method.loss(views)
    vectors = [z / z.norm() for z in method.projector(features(method.encoder, views))]
    by_view = [vectors[6 * view : 6 * view + 6] for view in range(num_views)]
    rate = 0.0
    for zs in by_view:
        outer = sum(torch.outer(z, z) for z in zs)
        rate = rate + torch.logdet(torch.eye(10, dtype=torch.double) + 10 / (6 * 0.2) * outer) / 2 / num_views
    similarity = 0.0
    for image in range(6):
        centre = sum(zs[image] for zs in by_view) / num_views
        similarity = similarity + sum(zs[image] @ centre / centre.norm() for zs in by_view) / (6 * num_views)
    expected = 20 * (1 - similarity) - rate
    assert loss.item() == pytest.approx(expected.item(), abs=1e-4)
    assert logged["similarity"].item() == pytest.approx(similarity.item(), abs=1e-5)
    assert logged["coding_rate"].item() == pytest.approx(rate.item(), abs=1e-4)
    right = [max(range(6), key=lambda k: (by_view[0][i] @ by_view[1][k]).item()) == i for i in range(6)]
    assert logged["pretext_accuracy"].item() == pytest.approx(sum(right) / 6)
    assert logged["chance"].item() == pytest.approx(1 / 6)
    check_gradients(method, loss, expected, 1e-5)


def test_views_are_small_crops_of_the_images():
    method = make_task("many-view selfie", image_size=16, min_crop=0.2, max_crop=0.7)
    boxes = method.draw(500, torch.Generator().manual_seed(0))[0]  # [B, V, 4]
    area = boxes[..., 2].abs() * boxes[..., 3]
    assert boxes.shape == (500, 4, 4)
    assert 0.2 <= area.min().item() < 0.21
    assert 0.69 < area.max().item() <= 0.7001
    (views,) = augmented(method, torch.from_numpy(synthetic.draw(8, seed=0, size=16)[0]), 0)
    assert views.shape == (32, 3, 8, 8)
