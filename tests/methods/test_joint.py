"""Methods that compare views of an image: their common behaviour."""

import math

import pytest
import torch
import torch.nn.functional as F
from joint import MAKERS, SMALL, augmented, stirred, two_views

from selfie_cli.data import synthetic
from selfie_cli.models.encoder import Encoder

METHODS = pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS.keys())


@pytest.mark.parametrize(("name", "tolerance"), [("byol", 0.1), ("simclr", 0.1), ("many views", 0.3)])
def test_the_loss_is_of_single_precision_under_autocast(name, tolerance):
    method = stirred(MAKERS[name]())
    views = torch.cat(two_views(dtype=torch.float))
    with torch.autocast("cpu", torch.bfloat16):
        loss, logged = method.loss(views)
    assert all(value.dtype == torch.float32 and value.dim() == 0 for value in (loss, *logged.values()))
    assert not any(value.requires_grad for value in logged.values())
    assert loss.item() == pytest.approx(method.loss(views)[0].item(), abs=tolerance)
    loss.backward()
    assert all(parameter.grad.norm() > 0 for parameter in method.encoder.parameters())


@METHODS
@pytest.mark.parametrize("num_stages", [3, 4])
def test_the_encoder_alone_is_exported(make, num_stages):
    method = make(num_stages=num_stages)
    method.loss(torch.cat(two_views(dtype=torch.float)))  # moves batch norm's statistics
    stirred(method).eval()
    encoder = Encoder(SMALL["backbone"], stem="3x3", num_stages=num_stages).eval()
    encoder.load_state_dict(method.export())
    images, _ = two_views(dtype=torch.float)
    with torch.no_grad():
        assert encoder(images).equal(method.encoder(images).mean(dim=(2, 3)))


@METHODS
def test_everything_is_a_function_of_the_seed(make):
    def one_loss(seed):
        method = make(blur=1.0)
        pixels = torch.from_numpy(synthetic.draw(8, seed=0, size=16)[0])
        (views,) = augmented(method, pixels, seed)
        assert views.shape == (16, 3, 16, 16)
        assert not views[:8].equal(views[8:])
        return method.loss(views)[0].item()

    assert one_loss(5) == one_loss(5)
    assert one_loss(5) != one_loss(6)


NUM_IMAGES = 256
BATCH = 64


def train(method, *, steps):
    """Train on drawn images; return the loss of each step."""
    pixels = torch.from_numpy(synthetic.draw(NUM_IMAGES, seed=0, size=16)[0])
    optimizer = torch.optim.SGD([p for p in method.parameters() if p.requires_grad], lr=0.03, momentum=0.9)
    losses = []
    torch.manual_seed(4)
    for step in range(steps):
        loss, _ = method.loss(*augmented(method, pixels[torch.randperm(NUM_IMAGES)[:BATCH]], step))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        method.after_step((step + 1) / steps)
        losses.append(loss.item())
    return losses


def recognized(method, *, draws=4):
    """Share of other images whose second view has the features nearest to those of the first; a mean of draws."""
    pixels = torch.from_numpy(synthetic.draw(NUM_IMAGES, seed=1, size=16)[0])
    shares = []
    for seed in range(draws):
        with torch.no_grad():
            (views,) = augmented(method, pixels, 900 + seed)  # all first ones first
            first, second = method.encoder(views[: 2 * NUM_IMAGES]).mean(dim=(2, 3)).chunk(2)
        first, second = (F.normalize(features - features.mean(dim=0), dim=1) for features in (first, second))
        shares.append(((first @ second.T).argmax(dim=1) == torch.arange(NUM_IMAGES)).float().mean().item())
    return sum(shares) / draws


# Options, the first loss and its tolerance, and the share of the loss that is left.
LEARNS = {"byol": ({"tau": 0.97}, 4.0, 0.5, 0.75), "simclr": ({}, math.log(127), 0.3, 0.9)}
LEARNS["many views"] = ({"attraction": 50.0}, None, None, None)


@pytest.mark.parametrize("name", LEARNS)
def test_training_lowers_the_loss_and_brings_views_of_an_image_together(name):
    options, first, tolerance, share = LEARNS[name]
    method = MAKERS[name](hidden=64, width=32, min_crop=0.6, jitter=0.5, **options)
    before = recognized(method)
    losses = train(method, steps=40)
    if first is None:
        assert sum(losses[-5:]) < sum(losses[:5])
    else:
        assert losses[0] == pytest.approx(first, abs=tolerance)
        assert sum(losses[-5:]) < share * sum(losses[:5])
    assert recognized(method) > 2 * before


# The share of the images of the first and the second view that are blurred.
BLUR = [("simclr", 0.5, (0.25, 0.25)), ("simclr", 1.0, (0.5, 0.5)), ("byol", 0.0, (0, 0)), ("byol", 1.0, (1.0, 0.1))]


@pytest.mark.parametrize(("name", "blur", "shares"), BLUR)
def test_how_often_views_are_blurred(name, blur, shares):
    """Seen in stripes a pixel wide, whole images of which crops leave as they are: any blur takes of their contrast."""
    stripes = (torch.arange(16) % 2 * 255).to(torch.uint8)[:, None, None].expand(2000, 16, 16, 3)
    views = augmented(MAKERS[name](jitter=0.0, min_crop=1.0, blur=blur), stripes, 0)[0].chunk(2)
    for view, share in zip(views, shares, strict=True):
        blurred = view.std(dim=(1, 2, 3)) < 0.999 * view.std(dim=(1, 2, 3)).amax()
        # A sigma below a quarter of a pixel, one in thirteen of the blurred ones, takes too little to see.
        assert blurred.float().mean().item() == pytest.approx(share * 12 / 13, abs=0.03)
