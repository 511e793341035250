"""Sections that show images: picks of the pretext task, classes, mistakes, nearest neighbours, a map."""

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from selfie_cli.data.augment import centre_crop, plain_view
from selfie_cli.data.batches import step_generator
from selfie_cli.data.splits import Integers
from selfie_cli.evaluation.metrics import confusion_matrix, per_class_accuracy
from selfie_cli.inference import networks
from selfie_cli.inference.networks import Network
from selfie_cli.methods.method import Method
from selfie_cli.methods.selfie import Selfie
from selfie_cli.reporting import page as pages
from selfie_cli.reporting.images import Embedded, Images
from selfie_cli.reporting.page import Page, Picture, columns_of, percent, scaled, to_pixels
from selfie_cli.talk import printable

PICTURE = 112
"""Side of the images in rows, in pixels."""
PUZZLES, QUERIES, NEIGHBOURS, MISTAKES = 8, 8, 6, 12
VIEWS, LARGE_VIEWS = 64, 32
"""Number of images whose views are compared, up to 64 px and above."""


@torch.no_grad()
def patch_picks(module: Selfie, images: Images, embedded: Embedded, page: Page) -> None:
    """Add a section that shows, for each hidden patch of some images, the patch that the network picks."""
    rows = embedded.rows[:PUZZLES]
    pixels = images.pixels(rows)
    masked, visible = module.draw_masks(len(rows), step_generator(0, 1))
    device = next(module.parameters()).device
    view = plain_view(pixels.to(device), images.image_size, images.preprocessing)
    probabilities = module.logits(view, masked.to(device), visible.to(device)).float().softmax(dim=2).cpu()  # [B, K, K]
    picks = probabilities.argmax(dim=2)  # [B, K]
    cropped, names = centre_crop(pixels, images.image_size), images.names(rows)
    puzzles = [
        {"name": name, "pixels": seen, "masked": places, "picks": taken, "probabilities": each}
        for name, seen, places, taken, each in zip(
            names, cropped, masked.tolist(), picks.tolist(), probabilities.tolist(), strict=True
        )
    ]
    about = {"module": module, "note": images.note, "small": images.small}
    right = int((picks == torch.arange(module.num_masked)).sum())
    grid = images.image_size // module.patch_size
    shown = {"puzzles": puzzles, "grid": grid, "right": right, "total": masked.numel()}
    page.add("picks", "What it picks for hidden patches", "patch_picks", **about, **shown)


@torch.no_grad()
def view_picks(method: Method, network: Network, images: Images, embedded: Embedded, page: Page) -> None:
    """Add a section that shows, for some first views, the most similar second views of a batch as in training."""
    rows = embedded.rows[: VIEWS if images.image_size <= 64 else LARGE_VIEWS]
    if len(rows) < 2:
        return
    views = method.augment(images.pixels(rows), *method.draw(len(rows), step_generator(0, 1)))[0][: 2 * len(rows)]
    vectors = networks.pooled_maps(network.module, views.to(network.device)).cpu()  # [2B, D]
    first, second = F.normalize(vectors - vectors.mean(dim=0), dim=1).chunk(2)
    cosines = first @ second.T  # [B, B]
    right = int((cosines.argmax(dim=1) == torch.arange(len(rows))).sum())
    pictures = to_pixels(views, images.preprocessing.mean, images.preprocessing.std)  # [2B, s, s, 3]
    if pictures.shape[1] > PICTURE:
        pictures = scaled(pictures, PICTURE)
    given, others = pictures.chunk(2)
    names = images.names(rows)
    lines = []
    for query in range(min(PUZZLES, len(rows))):
        order = cosines[query].argsort(descending=True).tolist()
        own = f"{float(cosines[query, query]):.2f}, place {order.index(query) + 1}"
        line = [
            Picture(given[query], ["from this view", ""], f"A view of {names[query]}"),
            Picture(others[query], ["another view", own], f"Another view of {names[query]}"),
        ]
        for place, candidate in enumerate(order[:4]):
            told = f"{f'place {place + 1}' if place else 'picked'}, {float(cosines[query, candidate]):.2f}"
            mark = candidate == query if place == 0 or candidate == query else None
            line.append(Picture(others[candidate], [told], f"A view of {names[candidate]}", mark))
        lines.append(line)
    shown = {"note": images.note, "rows": lines, "right": right, "total": len(rows), "small": views.shape[-1] <= 64}
    page.add("picks", "What it picks as another view", "view_picks", **shown)


def classified(which: str, labels: Integers, images: Images, embedded: Embedded, page: Page) -> None:
    """Add accuracy per class, confusion matrix and the most confident mistakes. `labels` are those of `images`."""
    true, predicted, classes = torch.from_numpy(labels[embedded.rows]), embedded.predicted, images.classes
    counts = confusion_matrix(predicted, true, len(classes))
    ranked = sorted((share, c) for c, share in enumerate(per_class_accuracy(counts)) if share is not None)
    right = predicted == true
    about = {"which": which, "whole": embedded.whole, "num_images": len(true), "num_ranked": len(ranked)}
    matrix = {"classes": classes, "counts": counts.tolist(), "confused": pages.most_confused(classes, counts.tolist())}
    shown = [(classes[c], share, int(counts[c].sum())) for share, c in ranked[: pages.FEW_CLASSES]]
    accuracy = right.float().mean().item()
    page.add("classes", "Class by class", "by_class", **about, **matrix, shown=shown, accuracy=accuracy)
    wrong = (~right).nonzero().squeeze(1)
    worst = wrong[embedded.confidence[wrong].argsort(descending=True, stable=True)][:MISTAKES]
    if not len(worst):
        return
    rows = embedded.rows[worst.numpy()]
    seen = images.pictures(rows, 2 * PICTURE if images.image_size > 2 * PICTURE else PICTURE)
    pictures = []
    for at, pixels, name in zip(worst.tolist(), seen, images.names(rows), strict=True):
        taken, label, sure = classes[predicted[at]], classes[true[at]], percent(float(embedded.confidence[at]))
        lines = [taken, f"{sure} sure; labelled {label}", name]
        pictures.append(Picture(pixels, lines, f"{name}: {label}, taken for {taken}", right=False))
    page.add("mistakes", "Most confidently wrong", "mistakes", pictures=pictures, small=images.small)


def neighbours(images: Images, embedded: Embedded, page: Page) -> None:
    """Add the nearest images of one query per class, or of some images, and how often neighbours share a label."""
    vectors = F.normalize(embedded.vectors, dim=1)
    count = len(vectors)
    similarity = (vectors @ vectors.T).fill_diagonal_(-torch.inf)
    rows = embedded.rows[:count]
    nearest = similarity.topk(min(NEIGHBOURS, count - 1), dim=1)
    queries, same, chance = list(range(min(QUERIES, count))), None, None
    if images.labels is not None:
        labels = images.labels[rows]
        queries = sorted(np.unique(labels, return_index=True)[1].tolist())[:QUERIES]
        same = float((labels[nearest.indices.numpy()] == labels[:, None]).mean())
        sizes = np.bincount(labels)
        chance = float((sizes * (sizes - 1)).sum()) / (count * (count - 1))
    lines = []
    for query in queries:
        members = rows[[query, *nearest.indices[query].tolist()]]
        pictures, names = images.pictures(members, PICTURE), images.names(members)
        own, *labels_of = [images.label(row) for row in members]
        line = [Picture(pictures[0], [own or "query", "the query"], names[0])]
        for pixels, name, label, cosine in zip(
            pictures[1:], names[1:], labels_of, nearest.values[query].tolist(), strict=True
        ):
            about = [f"cosine {cosine:.2f}"] if label is None else [label, f"cosine {cosine:.2f}"]
            line.append(Picture(pixels, about, name, None if label is None else label == own))
        lines.append(line)
    numbers = {"num_images": count, "num_nearest": nearest.indices.shape[1], "same": same, "chance": chance}
    shown = {"note": images.note, "rows": lines, "small": images.small}
    page.add("neighbours", "Nearest neighbours", "neighbours", **numbers, **shown)


def mapped(images: Images, embedded: Embedded, page: Page) -> None:
    """Add a two-dimensional map (t-SNE) of the images that have vectors, and store for the page's script what each
    point shows."""
    rows, thumbs = embedded.rows[: len(embedded.vectors)], embedded.thumbs
    labels = None if images.labels is None else images.labels[rows].tolist()
    page.data["map"] = {
        "names": [printable(name) for name in images.names(rows)],
        "labels": labels,
        "classes": [printable(name) for name in images.classes],
        "columns": columns_of(len(rows)),
        "side": thumbs.shape[1],
    }
    page.num_colours = max(page.num_colours, len(images.classes))
    places = tsne(embedded.vectors)
    low, high = places.amin(dim=0), places.amax(dim=0)
    room = torch.tensor([pages.MAP_WIDTH, pages.MAP_HEIGHT]) - 60
    points = ((places - low) / (high - low).clamp(min=1e-6) * room + 30).round(decimals=1).tolist()
    shown = {"points": points, "labels": labels, "classes": images.classes, "thumbs": thumbs}
    counts = {"num_images": len(images.source), "num_bad": len(embedded.bad)}
    page.add("map", "Map of the images", "map_of_images", **shown, **counts)


def tsne(vectors: Tensor, *, seed: int = 0) -> Tensor:
    """Return places, float32 [N, 2] on the CPU, from the cosine distances of vectors, float [N, D]. N and D >= 2.

    t-SNE starts from the first two principal components (Kobak and Berens 2019, "The art of using t-SNE"). A little
    noise from `seed` separates equal vectors. It runs in one thread; otherwise the order of sums, and so the places,
    would depend on the number of threads.
    """
    from sklearn.manifold import TSNE
    from threadpoolctl import threadpool_limits

    x = F.normalize(vectors.detach().float().cpu(), dim=1)
    x = x + 1e-4 * torch.randn(x.shape, generator=torch.Generator().manual_seed(seed))
    perplexity = min(30.0, (len(x) - 1) / 3)  # about how many neighbours a point has
    with threadpool_limits(1):
        found = TSNE(perplexity=perplexity, init="pca", random_state=seed, n_jobs=1).fit_transform(x.numpy())
    return torch.from_numpy(found).float()
