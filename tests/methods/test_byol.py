import copy
import math

import numpy as np
import pytest
import torch
from trained import augmented, recognized, train

from selfie_cli.data import synthetic
from selfie_cli.data.augment import MEAN, STD
from selfie_cli.methods.byol import Byol
from selfie_cli.models.encoder import Encoder

TAU = 0.9


def make(**options):
    torch.manual_seed(0)
    settings = {
        "backbone": "resnetv2_18_w16",
        "image_size": 16,
        "stem": "3x3",
        "hidden": 24,
        "width": 10,
        "tau": TAU,
        "min_crop": 0.3,
        "jitter": 1.0,
        "blur": 0.0,
        "solarize": 0.0,
    }
    return Byol(**(settings | options))


def stirred(method):
    """Every parameter away from its start and from its counterpart's in the other network."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in method.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return method


def two_views(num_images=6, dtype=torch.double):
    generator = torch.Generator().manual_seed(2)
    view = torch.randn(num_images, 3, 16, 16, generator=generator, dtype=dtype)
    return view, view.flip(3) + 0.5 * torch.randn(view.shape, generator=generator, dtype=dtype) + 0.3


def online(method):
    return {
        name: parameter for name, parameter in method.named_parameters() if name.startswith(("encoder.", "projector."))
    }


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
        features = [maps.sum(dim=(1, 2)) / maps[0].numel() for maps in method.encoder(seen)]
        predictions = naive_mlp(method.predictor, naive_mlp(method.projector, features))
        features = [maps.sum(dim=(1, 2)) / maps[0].numel() for maps in method.target_encoder(other)]
        targets = naive_mlp(method.target_projector, features)
        for q, z in zip(predictions, targets, strict=True):
            z = z.detach()
            total = total + (q / (q @ q) ** 0.5 - z / (z @ z) ** 0.5).square().sum()
            count += 0.5
    return total / count


def test_loss_and_gradients_agree_with_a_loop_over_views_and_images():
    method = stirred(make()).double()
    loss, logged = method.loss(torch.cat(two_views()))
    loss.backward()
    gradients = {name: parameter.grad for name, parameter in method.named_parameters()}
    method.zero_grad(set_to_none=True)
    expected = naive_loss(method, *two_views())
    expected.backward()
    assert loss.item() == pytest.approx(expected.item(), abs=1e-6)
    assert logged.keys() == {"cosine"}
    assert logged["cosine"].item() == pytest.approx(1 - expected.item() / 4, abs=1e-6)
    assert not logged["cosine"].requires_grad
    for name, parameter in method.named_parameters():
        if name.startswith("target_"):
            assert gradients[name] is None
            assert not parameter.requires_grad
        else:
            assert parameter.grad.norm() > 1e-7 or name == "projector.0.bias" or name == "predictor.0.bias", name
            # The cosine is taken in single precision whatever comes in, which leaves about six digits.
            assert (gradients[name] - parameter.grad).norm() < 1e-5 * parameter.grad.norm() + 1e-7, name


def test_with_several_views_the_target_is_the_mean_of_the_others():
    method = stirred(make(num_views=3)).double()
    views = torch.cat([*two_views(), two_views()[0].flip(2)])
    loss, _ = method.loss(views)
    parts = [slice(6 * i, 6 * i + 6) for i in range(3)]
    predicted = [method.predictor(method.projector(method.encoder(views[part]).mean(dim=(2, 3)))) for part in parts]
    targets = [method.target_projector(method.target_encoder(views[part]).mean(dim=(2, 3))) for part in parts]
    total = 0.0
    for i in range(3):
        for image in range(6):
            mean = sum(targets[j][image] / targets[j][image].norm() for j in range(3) if j != i)
            q = predicted[i][image]
            total += (q / q.norm() - mean / mean.norm()).square().sum().item()
    assert loss.item() == pytest.approx(2 * total / 18, abs=1e-5)


def test_images_may_come_in_any_order_and_views_may_be_swapped():
    method = stirred(make()).double()
    view1, view2 = two_views()
    loss = method.loss(torch.cat([view1, view2]))[0].item()
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    assert method.loss(torch.cat([view1[order], view2[order]]))[0].item() == pytest.approx(loss, abs=1e-6)
    assert method.loss(torch.cat([view2, view1]))[0].item() == pytest.approx(loss, abs=1e-6)
    assert method.loss(torch.cat([view1[order], view2]))[0].item() != pytest.approx(loss, abs=1e-3)


def test_the_loss_is_of_single_precision_under_autocast():
    method = stirred(make())
    view1, view2 = two_views(dtype=torch.float)
    with torch.autocast("cpu", torch.bfloat16):
        loss, logged = method.loss(torch.cat([view1, view2]))
    assert loss.dtype == logged["cosine"].dtype == torch.float32
    assert loss.item() == pytest.approx(method.loss(torch.cat([view1, view2]))[0].item(), abs=0.1)
    loss.backward()
    assert all(parameter.grad.norm() > 0 for parameter in method.encoder.parameters())


def test_the_target_starts_as_the_online_network():
    method = make()
    ours, theirs = online(method), target(method)
    assert all(ours[name].equal(theirs[name]) and ours[name] is not theirs[name] for name in ours)


def test_the_target_is_a_moving_average():
    """Over ten steps that move the online network anywhere, against numpy in double precision."""
    method = stirred(make())
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


@pytest.mark.parametrize(("done", "tau"), [(0.0, TAU), (0.5, (1 + TAU) / 2), (1.0, 1.0)])
def test_the_ends_and_the_middle_of_the_schedule(done, tau):
    method = stirred(make())
    before = {name: parameter.clone() for name, parameter in target(method).items()}
    method.after_step(done)
    for name, parameter in target(method).items():
        torch.testing.assert_close(parameter, tau * before[name] + (1 - tau) * online(method)[name].detach())
        assert parameter.equal(before[name]) == (tau == 1)


def test_the_target_uses_its_batch_and_keeps_its_own_statistics():
    method = stirred(make()).train()
    view1, view2 = two_views(dtype=torch.float)
    loss = method.loss(torch.cat([view1, view2]))[0].item()
    buffers = {name: tensor.clone() for name, tensor in method.named_buffers()}
    method.after_step(0.0)
    assert all(tensor.equal(buffers[name]) for name, tensor in method.named_buffers())
    method = stirred(make()).train()
    for name, tensor in method.named_buffers():
        if name.startswith("target_"):
            tensor.fill_(7)
    assert method.loss(torch.cat([view1, view2]))[0].item() == loss


def test_the_encoder_alone_is_exported():
    method = make()
    method.loss(torch.cat(two_views(dtype=torch.float)))  # moves batch norm's statistics
    stirred(method).eval()
    encoder = Encoder("resnetv2_18_w16", stem="3x3").eval()
    encoder.load_state_dict(method.export())
    images, _ = two_views(dtype=torch.float)
    with torch.no_grad():
        assert encoder(images).equal(method.encoder(images).mean(dim=(2, 3)))


def test_a_copy_with_the_same_state_goes_on_the_same_way():
    method, other = stirred(make()), make()
    other.load_state_dict(method.state_dict())
    copied = copy.deepcopy(method)
    for one in (method, other, copied):
        one.after_step(0.3)
    losses = [one.loss(torch.cat(two_views(dtype=torch.float)))[0].item() for one in (method, other, copied)]
    assert losses[0] == losses[1] == losses[2]


def test_everything_is_a_function_of_the_seed():
    def one_loss(seed):
        method = make(blur=1.0, solarize=0.2)
        pixels = torch.from_numpy(synthetic.draw(8, seed=0, size=16)[0])
        (views,) = augmented(method, pixels, seed)
        assert views.shape == (16, 3, 16, 16)
        assert not views[:8].equal(views[8:])
        return method.loss(views)[0].item()

    assert one_loss(5) == one_loss(5)
    assert one_loss(5) != one_loss(6)


def shade(view):
    """Back to 0..1."""
    return view * torch.tensor(STD).view(3, 1, 1) + torch.tensor(MEAN).view(3, 1, 1)


def test_only_the_second_view_is_solarized():
    white = torch.full((200, 16, 16, 3), 255, dtype=torch.uint8)
    first, second = (shade(view) for view in augmented(make(jitter=0.0, solarize=0.3), white, 0)[0].chunk(2))
    torch.testing.assert_close(first, torch.ones_like(first))
    black = second.amax(dim=(1, 2, 3)) < 1e-5
    torch.testing.assert_close(second[~black], torch.ones_like(second[~black]))
    assert black.float().mean().item() == pytest.approx(0.3, abs=0.15)


@pytest.mark.parametrize(("blur", "shares"), [(0.0, (0.0, 0.0)), (1.0, (1.0, 0.1)), (0.5, (0.5, 0.05))])
def test_the_first_view_is_blurred_ten_times_as_often(blur, shares):
    """Seen in stripes a pixel wide, whole images of which crops leave as they are: any blur takes of their contrast."""
    stripes = (torch.arange(16) % 2 * 255).to(torch.uint8)[:, None, None].expand(2000, 16, 16, 3)
    views = augmented(make(jitter=0.0, min_crop=1.0, blur=blur), stripes, 0)[0].chunk(2)
    for view, share in zip(views, shares, strict=True):
        blurred = view.std(dim=(1, 2, 3)) < 0.999 * view.std(dim=(1, 2, 3)).amax()
        # A sigma below a quarter of a pixel, one in thirteen of the blurred ones, takes too little to see.
        assert blurred.float().mean().item() == pytest.approx(share * 12 / 13, abs=0.03)


def test_training_lowers_the_loss_and_brings_views_of_an_image_together():
    method = make(hidden=64, width=32, tau=0.97, min_crop=0.6, jitter=0.5)
    before = recognized(method)
    losses = train(method, steps=40)
    assert losses[0] == pytest.approx(4, abs=0.5)
    assert sum(losses[-5:]) < 0.75 * sum(losses[:5])
    assert recognized(method) > 2 * before
