"""What methods have in common, most of all those that compare views of an image."""

from pkgutil import resolve_name

import pytest
import torch
from small_methods import BACKBONE, METHODS, augmented, make_task, stirred, views_of

from selfie_cli import recipes
from selfie_cli.data import synthetic
from selfie_cli.data.batches import step_generator
from selfie_cli.models.classifier import Encoder


@pytest.mark.parametrize("name", METHODS)
def test_views_are_a_function_of_the_seed_alone(name):
    method, pixels = make_task(name), torch.from_numpy(synthetic.draw(8, seed=0)[0])
    views, same, others = (augmented(method, pixels, seed) for seed in (5, 5, 6))
    assert all(map(torch.equal, views, same))
    assert not any(map(torch.equal, views, others))
    assert not torch.equal(*views[0].chunk(2))


def test_every_method_is_among_the_small_ones_that_all_tests_of_methods_take():
    assert {resolve_name(each.code) for each in recipes.METHODS.values()} <= {kind for kind, _ in METHODS.values()}


MANY, TWO = [0.156, 0.304, 0.005, 0.26, 0.0], [0.159, 0.308, -0.007, 0.442, 0.188]


def test_the_draws_of_a_seed_are_what_they_were():
    """Runs are resumed with them; the golden losses know them for patches only."""
    for name, means in {"many-view selfie": MANY, "byol": TWO}.items():
        drawn = make_task(name).draw(8, step_generator(0, 3))
        assert [round(field.double().mean().item(), 3) for field in drawn] == means


@pytest.mark.parametrize("name", ["byol", "simclr", "many-view selfie"])
def test_the_loss_is_of_single_precision_under_autocast(name):
    """The network computes in double precision, which autocast leaves alone."""
    method, views = stirred(make_task(name, num_views=2)).double(), torch.cat(views_of())
    with torch.autocast("cpu", torch.bfloat16):
        loss, logged = method.loss(views)
    assert all(value.dtype == torch.float32 and value.dim() == 0 for value in (loss, *logged.values()))
    assert not any(value.requires_grad for value in logged.values())
    assert loss.item() == pytest.approx(method.loss(views)[0].item(), abs=1e-5)
    loss.backward()
    assert all(parameter.grad.norm() > 0 for parameter in method.encoder.parameters())


@pytest.mark.parametrize("name", ["byol", "simclr", "many-view selfie"])
@pytest.mark.parametrize("num_stages", [3, 4])
def test_the_encoder_alone_is_exported(name, num_stages):
    method = make_task(name, num_stages=num_stages, num_views=2)
    method.loss(torch.cat(views_of(dtype=torch.float)))  # moves batch norm's statistics
    stirred(method).eval()
    encoder = Encoder(BACKBONE, stem="3x3", num_stages=num_stages).eval()
    encoder.load_state_dict(method.export())
    images, _ = views_of(dtype=torch.float)
    with torch.no_grad():
        assert encoder(images).equal(method.encoder(images).mean(dim=(2, 3)))


# The share of the images of the first and the second view that are blurred.
BLUR = [("simclr", 0.5, (0.25, 0.25)), ("simclr", 1.0, (0.5, 0.5)), ("byol", 0.0, (0, 0)), ("byol", 1.0, (1.0, 0.1))]


@pytest.mark.parametrize(("name", "blur", "shares"), BLUR)
def test_how_often_views_are_blurred(name, blur, shares):
    """Seen in stripes a pixel wide, whole images of which crops leave as they are: any blur takes of their contrast."""
    stripes = (torch.arange(16) % 2 * 255).to(torch.uint8)[:, None, None].expand(2000, 16, 16, 3)
    method = make_task(name, image_size=16, jitter=0.0, min_crop=1.0, blur=blur, solarize=0.0)
    views = augmented(method, stripes, 0)[0].chunk(2)
    for view, share in zip(views, shares, strict=True):
        blurred = view.std(dim=(1, 2, 3)) < 0.999 * view.std(dim=(1, 2, 3)).amax()
        # A sigma below a quarter of a pixel, one in thirteen of the blurred ones, takes too little to see.
        assert blurred.float().mean().item() == pytest.approx(share * 12 / 13, abs=0.03)
