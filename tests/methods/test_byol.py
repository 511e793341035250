"""BYOL against its loss written one image at a time, and its target against an average in numpy."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from joint import TAU, check_gradients, features, make_byol, stirred, two_views


def online(method):
    return {name: p for name, p in method.named_parameters() if name.startswith(("encoder.", "projector."))}


def target(method):
    found = {name.removeprefix("target_"): p for name, p in method.named_parameters() if name.startswith("target_")}
    assert found.keys() == online(method).keys()
    return found


# The loss once more: one view and one image at a time; only the encoders are shared.


def naive_mlp(layers, rows):
    first, norm, _, last = layers
    inner = torch.stack([first.weight @ row + first.bias for row in rows])
    mean = sum(inner) / len(inner)
    variance = sum((row - mean) ** 2 for row in inner) / len(inner)
    inner = (inner - mean) / (variance + norm.eps) ** 0.5 * norm.weight + norm.bias
    return [last.weight @ (row * (row > 0)) for row in inner]


def naive_loss(method, view1, view2):
    total, count = 0.0, 0
    for seen, other in ((view1, view2), (view2, view1)):
        predictions = naive_mlp(method.predictor, naive_mlp(method.projector, features(method.encoder, seen)))
        targets = naive_mlp(method.target_projector, features(method.target_encoder, other))
        for q, z in zip(predictions, targets, strict=True):
            z = z.detach()
            total = total + (q / (q @ q) ** 0.5 - z / (z @ z) ** 0.5).square().sum()
            count += 0.5
    return total / count


def test_loss_and_gradients_agree_with_a_loop_over_views_and_images():
    method = stirred(make_byol()).double()
    loss, logged = method.loss(torch.cat(two_views()))
    expected = naive_loss(method, *two_views())
    assert loss.item() == pytest.approx(expected.item(), abs=1e-6)
    assert logged.keys() == {"cosine"}
    assert logged["cosine"].item() == pytest.approx(1 - expected.item() / 4, abs=1e-6)
    norms = check_gradients(method, loss, expected, 1e-7)
    assert norms.keys() == {name for name, _ in method.named_parameters() if not name.startswith("target_")}
    # A batch norm follows the other biases.
    assert {name for name, norm in norms.items() if norm < 1e-7} == {"projector.0.bias", "predictor.0.bias"}


def test_with_several_views_the_target_is_the_mean_of_the_others():
    method = stirred(make_byol(num_views=3)).double()
    views = [*two_views(), two_views()[0].flip(2)]
    predicted = [method.predictor(method.projector(features(method.encoder, view))) for view in views]
    targets = [F.normalize(method.target_projector(features(method.target_encoder, view))) for view in views]
    total = 0.0
    for i in range(3):
        mean = sum(targets[j] for j in range(3) if j != i)
        total += (F.normalize(predicted[i]) - F.normalize(mean)).square().sum(dim=1).mean().item()
    assert method.loss(torch.cat(views))[0].item() == pytest.approx(2 * total / 3, abs=1e-5)


def test_the_target_starts_equal_and_is_a_moving_average():
    """Over ten steps that move the online network anywhere, against numpy in double precision."""
    method, other = make_byol(), stirred(make_byol())
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
            share = (1 - TAU) * math.cos(math.pi * step / 20) ** 2
            expected[name] = (1 - share) * expected[name] + share * parameter.detach().numpy().astype(np.float64)
        before = {name: parameter.clone() for name, parameter in online(method).items()}
        method.after_step(step / 10)
        assert all(parameter.equal(before[name]) for name, parameter in online(method).items())
    for name, parameter in target(method).items():
        np.testing.assert_allclose(parameter.numpy(), expected[name], rtol=1e-5, atol=1e-5)
