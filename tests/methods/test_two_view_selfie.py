"""Selfie with two views: its loss against one written image by image, where boxes lie, and what it learns."""

import math

import pytest
import torch
from trained import augmented, recognized, train

from selfie_cli.data import synthetic
from selfie_cli.data.augment import draw_boxes
from selfie_cli.methods.selfie import TwoViewSelfie, relative_place
from selfie_cli.models import patches

SMALL = {"image_size": 32, "patch_size": 8, "factorized_positions": False}
LARGE = {"image_size": 224, "patch_size": 32, "factorized_positions": True}
GRIDS = [pytest.param(SMALL, id="4x4"), pytest.param(LARGE, id="7x7")]


def make(grid=SMALL, **options):
    torch.manual_seed(0)
    settings = {
        "mask_ratio": 0.5,
        "encoder_positions": True,
        "final_norm": True,
        "apart": False,
        "hidden": 24,
        "width": 10,
        "temperature": 0.2,
        "view_scale": 0.75,
        "min_crop": 0.3,
        "jitter": 1.0,
        "blur": 0.0,
    }
    return TwoViewSelfie(backbone="resnetv2_18_w16", **grid, **(settings | options))


def stirred(method):
    """Weights away from their start, so that no term of the loss is close to nothing; no dropout."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in method.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    for layer in method.attention_pooling.layers:
        layer.dropout = 0.0
    return method


def drawn_views(method, num_images, dtype=torch.double):
    generator = torch.Generator().manual_seed(2)
    views = torch.randn(2 * num_images, 3, method.view_size, method.view_size, generator=generator, dtype=dtype)
    boxes = draw_boxes(2 * num_images, generator, min_area=0.3).to(dtype)
    return views, boxes, method.draw_masks(2 * num_images, generator)[1]


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("options", [{}, {"encoder_positions": False}, {"apart": True, "mask_ratio": 0.25}])
def test_loss_and_gradients_agree_with_a_loop_over_views(grid, options):
    method = stirred(make(grid, **options)).double()
    num_images = 4 if grid is SMALL else 2
    views, boxes, visible = drawn_views(method, num_images)
    loss, logged = method.loss(views, boxes, visible)
    loss.backward()
    gradients = {name: parameter.grad for name, parameter in method.named_parameters()}
    method.zero_grad(set_to_none=True)

    table = method.positions()
    h = patches.encode(method.patch_network, views, method.cell_size, apart=method.apart)
    contexts, candidates = [], []
    for i in range(2 * num_images):
        other = (i + num_images) % (2 * num_images)
        assert len(set(visible[i].tolist())) == method.num_patches - method.num_masked
        seen = [h[i, j] + (table[j] if method.encoder_positions else 0) for j in visible[i]]
        u = method.attention_pooling(torch.stack(seen)[None])[0] + sum(h[i, j] for j in visible[i]) / len(visible[i])
        x, y, w, height = boxes[i].tolist()
        x2, y2, w2, height2 = boxes[other].tolist()
        place = [(x2 - x) / w, (y2 - y) / height, math.log(abs(w2 / w)), math.log(height2 / height)]
        contexts.append(u + method.place(torch.tensor([*place, 1.0 if w * w2 > 0 else -1.0], dtype=torch.double)))
        candidates.append(sum(h[i]) / len(h[i]))
    # Their batch norms see all contexts, and all candidates, at once.
    queries, answers = method.query_head(torch.stack(contexts)), method.candidate_head(torch.stack(candidates))
    losses, right = [], []
    for i, query in enumerate(queries):
        other = (i + num_images) % (2 * num_images)
        powers = {
            k: torch.exp(query @ answer / query.norm() / answer.norm() / method.temperature)
            for k, answer in enumerate(answers)
            if k != i
        }
        losses.append(-torch.log(powers[other] / sum(powers.values())))
        right.append(max(powers, key=lambda k: powers[k].item()) == other)
    expected = sum(losses) / len(losses)
    expected.backward()

    assert loss.item() == pytest.approx(expected.item(), abs=1e-5)
    assert logged["pretext_accuracy"].item() == pytest.approx(sum(right) / len(right))
    assert logged["chance"].item() == pytest.approx(1 / (2 * num_images - 1))
    unused = set() if method.encoder_positions else {"positions.vectors"}
    assert {name for name, gradient in gradients.items() if gradient is None} == unused
    for name in gradients.keys() - unused:
        parameter = method.get_parameter(name)
        # The softmax is taken in single precision whatever comes in, which leaves about six digits.
        assert (gradients[name] - parameter.grad).norm() < 1e-4 * parameter.grad.norm() + 1e-6, name
        assert gradients[name].norm() > 0, name


def test_hidden_cells_do_not_make_the_context():
    method = stirred(make()).eval()
    h = torch.randn(2, 16, method.patch_network.num_features)
    visible = torch.tensor([[0, 3, 5, 9], [1, 2, 3, 4]])
    u = method.context(h, visible)
    h[0, 1] += 1
    h[1, 0] += 1
    assert method.context(h, visible).equal(u)
    h[0, 3] += 1
    assert not method.context(h, visible)[0].equal(u[0])


@pytest.mark.parametrize(("scale", "side"), [(1.0, 224), (0.75, 168), (0.5, 112)])
def test_views_are_smaller_by_their_scale_with_as_many_cells(scale, side):
    method = make(LARGE, view_scale=scale)
    pixels = torch.from_numpy(synthetic.draw(2, seed=0, size=256)[0])
    views, boxes, visible = augmented(method, pixels, 0)
    assert views.shape == (4, 3, side, side)
    assert boxes.shape == (4, 4)
    assert visible.shape == (4, 49 - method.num_masked)
    h = patches.encode(method.patch_network, views, method.cell_size, apart=False)
    assert h.shape[1] == 49


def test_places_are_seen_from_the_context():
    whole = torch.tensor([[0.0, 0.0, 1.0, 1.0]])
    quarter = torch.tensor([[0.5, -0.5, 0.5, 0.5]])  # top right
    mirrored = torch.tensor([[0.5, -0.5, -0.5, 0.5]])
    half = math.log(0.5)
    assert relative_place(whole, whole).tolist() == [[0, 0, 0, 0, 1]]
    assert relative_place(whole, quarter)[0].tolist() == pytest.approx([0.5, -0.5, half, half, 1])
    assert relative_place(quarter, whole)[0].tolist() == pytest.approx([-1, 1, -half, -half, 1])
    # In a mirrored view, what lies to the left in the image lies to the right.
    assert relative_place(mirrored, whole)[0].tolist() == pytest.approx([1, 1, -half, -half, -1])
    assert relative_place(whole, mirrored)[0].tolist() == pytest.approx([0.5, -0.5, half, half, -1])


def test_the_loss_is_of_single_precision_under_autocast():
    method = stirred(make())
    views = drawn_views(method, 4, torch.float)
    with torch.autocast("cpu", torch.bfloat16):
        loss, _ = method.loss(*views)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(method.loss(*views)[0].item(), abs=0.15)


def test_everything_is_a_function_of_the_seed():
    def one_loss(seed):
        method = make(blur=1.0)
        pixels = torch.from_numpy(synthetic.draw(8, seed=0)[0])
        torch.manual_seed(1)  # of dropout
        return method.loss(*augmented(method, pixels, seed))[0].item()

    assert one_loss(5) == one_loss(5)
    assert one_loss(5) != one_loss(6)


def test_training_lowers_the_loss_and_brings_views_of_an_image_together():
    grid = {"image_size": 16, "patch_size": 4, "factorized_positions": False}
    method = make(grid, hidden=64, width=32, min_crop=0.6, jitter=0.5, view_scale=1.0)
    before = recognized(method)
    losses = train(method, steps=50)
    assert losses[0] == pytest.approx(math.log(127), abs=0.4)
    assert sum(losses[-5:]) < 0.9 * sum(losses[:5])
    assert recognized(method) > 1.5 * before
