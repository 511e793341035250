import itertools
import math

import pytest
import torch
from joint import augmented, check_gradients, features

from selfie_cli.methods.selfie import Selfie

SMALL = {"image_size": 32, "patch_size": 8}  # 4 x 4 places, a vector each
LARGE = {"image_size": 224, "patch_size": 32}  # 7 x 7 places, row + column
LOGIT_SCALES = ("dot", "sqrt", "cosine")
OPTIONS = [
    {"encoder_positions": positions, "logit_scale": scale, "final_norm": norm}
    for positions, scale, norm in itertools.product((True, False), LOGIT_SCALES, (True, False))
]
GRIDS = [pytest.param(SMALL, id="4x4"), pytest.param(LARGE, id="7x7")]


def make(grid, **options):
    own = {"mask_ratio": 0.25, "factorized_positions": grid is LARGE, "encoder_positions": True, "final_norm": True}
    own |= {"logit_scale": "sqrt", "flip": True, "min_crop": 0.5, "apart": True, "backbone": "resnetv2_18_w16"}
    return Selfie(**grid, **(own | options))


def stirred(method):
    """Weights and statistics away from their start, so that no term of the loss is close to nothing; no dropout."""
    generator = torch.Generator().manual_seed(1)

    def noise(tensor):
        return torch.randn(tensor.shape, generator=generator)

    with torch.no_grad():
        for name, tensor in method.state_dict().items():
            if name.endswith("running_var"):
                tensor.add_(noise(tensor).abs())
            elif name.startswith(("positions", "attention_pooling.u0")):
                tensor.copy_(noise(tensor))
            elif tensor.is_floating_point() and tensor.dim() < 4:  # convolutions start far from zero
                tensor.add_(0.1 * noise(tensor))
        if method.logit_scale == "dot":  # raw products of these would be too large to compare to five decimals
            last = method.attention_pooling.layers[-1].norm2
            for tensor in (last.weight, last.bias, method.positions.vectors):
                tensor.mul_(0.1)
    for layer in method.attention_pooling.layers:
        layer.dropout = 0.0
    return method


# The method once more, one image, one place and one number at a time; only the patch network is shared.


def naive_softmax(scores):
    """Over the last dimension."""
    powers = torch.exp(scores - scores.detach().amax(dim=-1, keepdim=True))
    return powers / powers.sum(dim=-1, keepdim=True)


def naive_layer_norm(x, norm):
    centred = x - x.mean(dim=1, keepdim=True)
    return centred / (centred.square().mean(dim=1, keepdim=True) + norm.eps) ** 0.5 * norm.weight + norm.bias


def naive_attention_pooling(pooling, context):
    tokens = torch.stack([pooling.u0, *context])
    for layer in pooling.layers:
        queries, keys, values = (tokens @ layer.qkv.weight.T + layer.qkv.bias).chunk(3, dim=1)
        heads = []
        side = len(pooling.u0) // layer.num_heads
        for head in range(layer.num_heads):
            part = slice(head * side, (head + 1) * side)
            weights = naive_softmax(queries[:, part] @ keys[:, part].T / math.sqrt(side))
            heads.append(weights @ values[:, part])
        mixed = torch.cat(heads, dim=1) @ layer.out.weight.T + layer.out.bias
        tokens = naive_layer_norm(tokens + mixed, layer.norm1)
        inner = tokens @ layer.expand.weight.T + layer.expand.bias
        inner = inner * (1 + torch.erf(inner / math.sqrt(2))) / 2
        tokens = naive_layer_norm(tokens + inner @ layer.contract.weight.T + layer.contract.bias, layer.norm2)
    return tokens[0]


def naive_position(positions, place, grid):
    if len(positions.vectors) == grid * grid:
        return positions.vectors[place]
    return positions.vectors[place // grid] + positions.vectors[grid + place % grid]


def naive_patch_vectors(method, images):
    """h of every patch, h[image][place]: each by itself, or all at once where batch norm looks at all of them."""
    p, g = method.patch_size, method.image_size // method.patch_size
    places = [(row * p, column * p) for row in range(g) for column in range(g)]
    cells = [image[None, :, y : y + p, x : x + p] for image in images for y, x in places]
    batches = [torch.cat(cells)] if method.training else cells
    h = torch.cat([features(method.patch_network, batch) for batch in batches])
    return h.view(len(images), g * g, -1)


def naive_scores(method, images, masked):
    """For every image and hidden place (in the order of `masked`), the scores of that image's hidden patches."""
    grid = method.image_size // method.patch_size
    table = []
    for vectors, hidden in zip(naive_patch_vectors(method, images), masked.tolist(), strict=True):
        context = []
        for place in range(grid * grid):
            if place not in hidden:
                position = naive_position(method.positions, place, grid)
                context.append(vectors[place] + position if method.encoder_positions else vectors[place])
        u = naive_attention_pooling(method.attention_pooling, context)
        rows = []
        for hole in hidden:
            query = u + naive_position(method.positions, hole, grid)
            scores = []
            for candidate in hidden:
                score = query @ vectors[candidate]
                if method.logit_scale == "sqrt":
                    score = score / math.sqrt(len(query))
                elif method.logit_scale == "cosine":
                    lengths = torch.sqrt(query @ query) * torch.sqrt(vectors[candidate] @ vectors[candidate])
                    score = score / lengths / torch.exp(method.log_temperature)
                scores.append(score)
            rows.append(scores)
        table.append(rows)
    return table


def naive_loss(table):
    losses, right = [], []
    for rows in table:
        for hole, scores in enumerate(rows):
            losses.append(-torch.log(naive_softmax(torch.stack(scores))[hole]))
            right.append(max(range(len(scores)), key=lambda i: scores[i].item()) == hole)
    return sum(losses) / len(losses), sum(right) / len(right)


@pytest.mark.parametrize("options", OPTIONS, ids=lambda options: " ".join(map(str, options.values())))
@pytest.mark.parametrize("grid", GRIDS)
def test_loss_logits_and_gradients_agree_with_a_loop_over_images_and_holes(grid, options):
    """In training, batch norm looks at all patches of the batch; in evaluation, each patch is alone."""
    torch.manual_seed(0)
    method = stirred(make(grid, **options)).double().eval()
    images = torch.randn(2, 3, grid["image_size"], grid["image_size"]).double()
    masked, visible = method.draw_masks(2, torch.Generator().manual_seed(7))
    with torch.no_grad():
        loss, logged = method.loss(images, masked, visible)
        table = naive_scores(method, images, masked)
        logits = method.logits(images, masked, visible)
    expected, accuracy = naive_loss(table)
    torch.testing.assert_close(logits.double(), torch.tensor(table, dtype=torch.double), atol=1e-5, rtol=1e-5)
    assert loss.item() == pytest.approx(expected.item(), abs=1e-5)
    assert logged["pretext_accuracy"].item() == pytest.approx(accuracy)
    assert abs(loss.item() - math.log(method.num_masked)) > 1e-3  # the comparison is not one of trivial numbers

    loss, _ = method.train().loss(images, masked, visible)
    expected, _ = naive_loss(naive_scores(method, images, masked))
    assert loss.item() == pytest.approx(expected.item(), abs=1e-6)
    assert min(check_gradients(method, loss, expected, 1e-9).values()) > 1e-7


def test_the_paper_network():
    method = make(SMALL, backbone="resnetv2_50")
    assert method.patch_network.num_features == 1024
    assert method.positions.vectors.shape == (16, 1024)
    assert (method.num_masked, method.chance) == (4, 0.25)
    large = make(LARGE)
    assert large.positions.vectors.shape == (14, 64)
    assert (large.num_masked, large.chance) == (12, 1 / 12)


@pytest.mark.parametrize("grid", GRIDS)
def test_views_and_masks_are_functions_of_the_seed(grid):
    method = make(grid)
    stored = 32 if grid is SMALL else 256
    pixels = torch.randint(0, 256, (4, stored, stored, 3), dtype=torch.uint8)
    images, masked, visible = augmented(method, pixels, 5)
    assert images.shape == (4, 3, grid["image_size"], grid["image_size"])
    assert images.dtype == torch.float32
    places = torch.arange(method.num_patches).expand(4, method.num_patches)
    assert torch.cat([masked, visible], dim=1).sort(dim=1).values.equal(places)
    assert masked.shape == (4, method.num_masked)
    torch.rand(1)  # the default generator has no part in it
    assert all(a.equal(b) for a, b in zip(augmented(method, pixels, 5), (images, masked, visible), strict=True))
    others = augmented(method, pixels, 6)
    assert not others[0].equal(images)
    assert not others[1].equal(masked)
