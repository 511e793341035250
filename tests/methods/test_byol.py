"""BYOL against its loss written one image at a time, and its target against an average in numpy."""

import math

import numpy as np
import pytest
import torch
from small_methods import check_gradients, features, make_task, stirred, views_of
from torch import nn


def online(method):
    return {name: p for name, p in method.named_parameters() if name.startswith(("encoder.", "projector."))}


def target(method):
    found = {name.removeprefix("target_"): p for name, p in method.named_parameters() if name.startswith("target_")}
    assert found.keys() == online(method).keys()
    return found


# The loss once more, one view and one image at a time; only the networks are shared.


def naive_loss(method, views):
    """Each view of an image is to predict the mean of the others' targets."""
    predictions = [method.predictor(method.projector(features(method.encoder, view))) for view in views]
    targets = [method.target_projector(features(method.target_encoder, view)) for view in views]
    distances = []
    for seen, vectors in enumerate(predictions):
        for image, q in enumerate(vectors):
            others = [target[image].detach() for view, target in enumerate(targets) if view != seen]
            z = sum(other / (other @ other) ** 0.5 for other in others)
            distances.append((q / (q @ q) ** 0.5 - z / (z @ z) ** 0.5).square().sum())
    return 2 * sum(distances) / len(distances)


@pytest.mark.parametrize("num_views", [2, 3])
def test_loss_and_gradients_agree_with_a_loop_over_views_and_images(num_views):
    method, views = stirred(make_task("byol", num_views=num_views)).double(), views_of(num_views)
    for mlp in (method.projector, method.predictor, method.target_projector):
        assert [type(layer) for layer in mlp] == [nn.Linear, nn.BatchNorm1d, nn.ReLU, nn.Linear]
    loss, logged = method.loss(torch.cat(views))
    expected = naive_loss(method, views)
    assert loss.item() == pytest.approx(expected.item(), abs=1e-6)
    assert logged.keys() == {"cosine"}
    assert logged["cosine"].item() == pytest.approx(1 - expected.item() / 4, abs=1e-6)
    norms = check_gradients(method, loss, expected, 1e-7)
    assert norms.keys() == {name for name, _ in method.named_parameters() if not name.startswith("target_")}
    # A batch norm follows the other biases.
    assert {name for name, norm in norms.items() if norm < 1e-7} == {"projector.0.bias", "predictor.0.bias"}


def test_the_target_starts_equal_and_is_a_moving_average():
    """Over ten steps that move the online network anywhere, against numpy in double precision."""
    method, other = make_task("byol"), stirred(make_task("byol"))
    method.start_from(other.encoder.state_dict())
    for name, parameter in online(method).items():
        assert torch.equal(target(method)[name], parameter)
        assert name.startswith("projector.") or torch.equal(other.get_parameter(name), parameter)
    stirred(method)
    expected = {name: parameter.numpy().astype(np.float64) for name, parameter in target(method).items()}
    generator = torch.Generator().manual_seed(3)
    for step in range(1, 11):
        for name, parameter in online(method).items():
            with torch.no_grad():
                parameter.add_(torch.randn(parameter.shape, generator=generator))
            share = (1 - method.tau) * math.cos(math.pi * step / 20) ** 2
            expected[name] = (1 - share) * expected[name] + share * parameter.detach().numpy().astype(np.float64)
        before = {name: parameter.clone() for name, parameter in online(method).items()}
        method.after_step(step / 10)
        assert all(parameter.equal(before[name]) for name, parameter in online(method).items())
    for name, parameter in target(method).items():
        np.testing.assert_allclose(parameter.numpy(), expected[name], rtol=1e-5, atol=1e-5)
