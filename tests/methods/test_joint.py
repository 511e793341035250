"""Methods that compare views of an image: their common behaviour."""

import pytest
import torch
from joint import MAKERS, SMALL, augmented, stirred, two_views

from selfie_cli.data import synthetic
from selfie_cli.models.classifier import Encoder

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
