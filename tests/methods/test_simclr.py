import math

import pytest
import torch
from torch import nn
from trained import augmented, recognized, train

from selfie_cli.data import synthetic
from selfie_cli.methods.simclr import SimCLR, nt_xent
from selfie_cli.models.encoder import Encoder
from selfie_cli.training.distributed import Group


def make(**options):
    torch.manual_seed(0)
    settings = {
        "backbone": "resnetv2_18_w16",
        "image_size": 16,
        "stem": "3x3",
        "hidden": 24,
        "width": 10,
        "temperature": 0.5,
        "min_crop": 0.3,
        "jitter": 1.0,
        "blur": 0.0,
    }
    return SimCLR(**(settings | options))


def stirred(method):
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in method.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return method


def two_views(num_images=6, dtype=torch.double):
    generator = torch.Generator().manual_seed(2)
    view = torch.randn(num_images, 3, 16, 16, generator=generator, dtype=dtype)
    return view, view.flip(3) + 0.5 * torch.randn(view.shape, generator=generator, dtype=dtype) + 0.3


def naive_loss(vectors, temperature):
    """Equation 1 of the paper over rows 2k and 2k + 1 that belong together: the loss, and the share that was right."""
    losses, right = [], []
    for i, z in enumerate(vectors):
        partner = i + 1 if i % 2 == 0 else i - 1
        powers = {
            k: torch.exp(z @ other / (z @ z).sqrt() / (other @ other).sqrt() / temperature)
            for k, other in enumerate(vectors)
            if k != i
        }
        losses.append(-torch.log(powers[partner] / sum(powers.values())))
        right.append(max(powers, key=lambda k: powers[k].item()) == partner)
    return sum(losses) / len(losses), sum(right) / len(right)


@pytest.mark.parametrize("temperature", [0.1, 0.5])
def test_loss_and_gradients_agree_with_a_loop_over_views(temperature):
    method = stirred(make(temperature=temperature)).double()
    view1, view2 = two_views()
    loss, logged = method.loss(torch.cat([view1, view2]))
    loss.backward()
    gradients = {name: parameter.grad for name, parameter in method.named_parameters()}
    method.zero_grad(set_to_none=True)
    # All views at once, so that batch norm sees them together, and here as neighbours.
    images = torch.stack([image for pair in zip(view1, view2, strict=True) for image in pair])
    features = torch.stack([maps.sum(dim=(1, 2)) / maps[0].numel() for maps in method.encoder(images)])
    expected, accuracy = naive_loss(list(method.projector(features)), temperature)
    expected.backward()
    assert loss.item() == pytest.approx(expected.item(), abs=1e-5)
    assert logged["pretext_accuracy"].item() == pytest.approx(accuracy)
    assert 0 < accuracy < 1  # neither is trivial
    for name, parameter in method.named_parameters():
        # The loss is taken in single precision whatever comes in, which leaves about six digits.
        assert (gradients[name] - parameter.grad).norm() < 1e-5 * parameter.grad.norm() + 1e-6, name


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


@pytest.mark.parametrize("num_images", [2, 5])
def test_chance_is_one_in_all_other_views(num_images):
    _, logged = make().loss(torch.cat(two_views(num_images, torch.float)))
    assert logged["chance"].item() == pytest.approx(1 / (2 * num_images - 1))
    assert all(value.dim() == 0 and not value.requires_grad for value in logged.values())


@pytest.mark.parametrize(("same", "accuracy"), [(True, 1.0), (False, 0.0)])
def test_the_loss_of_vectors_that_are_known(same, accuracy):
    """Two images on two axes: partners alike and others at right angles, or the other way round."""
    method = make(temperature=0.5)
    method.encoder, method.projector = nn.Identity(), nn.Identity()
    x, y = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])
    view1, view2 = torch.stack([x, y]), torch.stack([x, y] if same else [y, x])
    loss, logged = method.loss(torch.cat([view1, 3 * view2]).view(4, 2, 1, 1))
    scores = [2, 0, 0] if same else [0, 2, 0]  # the partner's first: cosine / temperature
    assert loss.item() == pytest.approx(math.log(sum(map(math.exp, scores))) - scores[0])
    assert logged["pretext_accuracy"].item() == accuracy


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
        loss, _ = method.loss(torch.cat([view1, view2]))
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(method.loss(torch.cat([view1, view2]))[0].item(), abs=0.1)
    loss.backward()
    assert all(parameter.grad.norm() > 0 for parameter in method.encoder.parameters())


def test_the_encoder_alone_is_exported():
    method = make()
    method.loss(torch.cat(two_views(dtype=torch.float)))  # moves batch norm's statistics
    stirred(method).eval()
    encoder = Encoder("resnetv2_18_w16", stem="3x3").eval()
    encoder.load_state_dict(method.export())
    images, _ = two_views(dtype=torch.float)
    with torch.no_grad():
        assert encoder(images).equal(method.encoder(images).mean(dim=(2, 3)))


def test_everything_is_a_function_of_the_seed():
    def one_loss(seed):
        method = make(blur=1.0)
        pixels = torch.from_numpy(synthetic.draw(8, seed=0, size=16)[0])
        (views,) = augmented(method, pixels, seed)
        assert views.shape == (16, 3, 16, 16)
        assert not views[:8].equal(views[8:])
        return method.loss(views)[0].item()

    assert one_loss(5) == one_loss(5)
    assert one_loss(5) != one_loss(6)


@pytest.mark.parametrize("blur", [0.0, 0.5, 1.0])
def test_blur_one_is_half_of_both_views(blur):
    """Seen in stripes a pixel wide, whole images of which crops leave as they are: any blur takes of their contrast."""
    stripes = (torch.arange(16) % 2 * 255).to(torch.uint8)[:, None, None].expand(2000, 16, 16, 3)
    for view in augmented(make(jitter=0.0, min_crop=1.0, blur=blur), stripes, 0)[0].chunk(2):
        blurred = view.std(dim=(1, 2, 3)) < 0.999 * view.std(dim=(1, 2, 3)).amax()
        # A sigma below a quarter of a pixel, one in thirteen of the blurred ones, takes too little to see.
        assert blurred.float().mean().item() == pytest.approx(0.5 * blur * 12 / 13, abs=0.05)


def test_training_lowers_the_loss_and_brings_views_of_an_image_together():
    method = make(hidden=64, width=32, min_crop=0.6, jitter=0.5)
    before = recognized(method)
    losses = train(method, steps=40)
    assert losses[0] == pytest.approx(math.log(127), abs=0.3)
    assert sum(losses[-5:]) < 0.9 * sum(losses[:5])
    assert recognized(method) > 2 * before
