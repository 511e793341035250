import itertools
import math

import pytest
import torch
from small_methods import check_gradients, features, make_task, stirred
from torch import nn

PLACES = {"image_size": 32, "patch_size": 8}  # 4 x 4, a vector each
ROWS_AND_COLUMNS = {"image_size": 224, "patch_size": 32, "factorized_positions": True}  # 7 x 7
OPTIONS = [
    {"encoder_positions": positions, "logit_scale": scale, "final_norm": norm}
    for positions, scale, norm in itertools.product((True, False), ("dot", "sqrt", "cosine"), (True, False))
]


def made(**options):
    """Without dropout."""
    method = stirred(make_task("selfie", **options)).double()
    if method.logit_scale == "dot":  # raw products of these would be too large to compare to five decimals
        last = method.attention_pooling.layers[-1].norm2
        with torch.no_grad():
            for tensor in (last.weight, last.bias, method.positions.vectors):
                tensor.mul_(0.3)
    for layer in method.attention_pooling.layers:
        layer.dropout = 0.0
    return method


# The method once more, one image and one place at a time. The patch network is shared, the attention is torch's.

TORCHS_NAMES = {"qkv": "self_attn.in_proj_", "out": "self_attn.out_proj.", "expand": "linear1.", "contract": "linear2."}


def attention_pooling_by_torch(pooling, context):
    tokens = torch.stack([pooling.u0, *context])  # [T, D]
    for layer in pooling.layers:
        sizes = len(pooling.u0), layer.num_heads, layer.expand.out_features
        torchs = nn.TransformerEncoderLayer(*sizes, dropout=0.0, activation="gelu")
        weights = {}
        for name, parameter in layer.named_parameters():
            part, kind = name.split(".")
            weights[TORCHS_NAMES.get(part, f"{part}.") + kind] = parameter
        tokens = torch.func.functional_call(torchs, weights, tokens, strict=True)
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
        u = attention_pooling_by_torch(method.attention_pooling, context)
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
            losses.append(-torch.stack(scores).log_softmax(dim=0)[hole])
            right.append(max(range(len(scores)), key=lambda i: scores[i].item()) == hole)
    return sum(losses) / len(losses), sum(right) / len(right)


@pytest.mark.parametrize("options", OPTIONS, ids=lambda options: " ".join(map(str, options.values())))
@pytest.mark.parametrize(("grid", "num_vectors"), [(PLACES, 16), (ROWS_AND_COLUMNS, 14)], ids=["4x4", "7x7"])
def test_loss_logits_and_gradients_agree_with_a_loop_over_images_and_holes(grid, num_vectors, options):
    """In training, batch norm looks at all patches of the batch; in evaluation, each patch is alone."""
    method = made(**grid, **options).eval()
    assert len(method.positions.vectors) == num_vectors
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
