"""What a page shows of a network on real images: its picks, its mistakes, nearest neighbours, a map."""

import numpy as np
import torch
from torch.nn import functional as F

from selfie_cli.data.augment import MEAN, STD, centre_crop, plain_view
from selfie_cli.data.batches import step_generator
from selfie_cli.data.splits import Labels
from selfie_cli.evaluation.metrics import confusion_matrix, per_class_accuracy
from selfie_cli.evaluation.projection import tsne
from selfie_cli.inference import networks
from selfie_cli.inference.networks import Network
from selfie_cli.methods.method import Method
from selfie_cli.methods.selfie import Selfie
from selfie_cli.models.hybrid import AnyClassifier
from selfie_cli.reporting import page as pages
from selfie_cli.reporting.charts import scaled, to_pixels
from selfie_cli.reporting.gallery import Embedded, Gallery
from selfie_cli.reporting.page import Page, percent, piece

PICTURE = 112  # side of the images below each other, in pixels
PUZZLES, QUERIES, NEIGHBOURS, MISTAKES = 8, 8, 6, 12
VIEWS, LARGE_VIEWS = 64, 32  # images whose views are compared, up to 64 px and above


@torch.no_grad()
def paper_picks(module: Selfie, gallery: Gallery, embedded: Embedded, page: Page) -> None:
    rows = embedded.rows[:PUZZLES]
    pixels = gallery.pixels(rows)
    masked, visible = module.draw_masks(len(rows), step_generator(0, 1))
    device = next(module.parameters()).device
    view = plain_view(pixels.to(device), gallery.image_size)
    probabilities = module.logits(view, masked.to(device), visible.to(device)).float().softmax(dim=2).cpu()  # [B, K, K]
    right, total = int((probabilities.argmax(dim=2) == torch.arange(module.num_masked)).sum()), masked.numel()
    grid = gallery.image_size // module.patch_size
    shown = zip(
        centre_crop(pixels, gallery.image_size), gallery.names(rows), masked.tolist(), probabilities, strict=True
    )
    page.add(
        "picks",
        "What it picks for hidden patches",
        piece(
            "paragraph",
            f"{module.num_masked} of {module.num_patches} patches are hidden. For each hidden place the network picks "
            "one of the hidden patches, which are below each image; the others are its distractors. Solid frames and ✓ "
            "are right, dashed ones and ✗ are wrong; numbers are the probability it gave its pick, in percent.",
        ),
        piece(
            "paragraph",
            f"{gallery.note} The images are chosen at random, and cut as they are, without training's crops. Here "
            f"{right} of {total} picks are right ({percent(right / total, 0)}); a guess is right "
            f"{percent(module.chance)} of the time.",
        ),
        piece(
            "group",
            "puzzles",
            [pages.puzzle(number, *each[:2], grid, *each[2:]) for number, each in enumerate(shown)],
            pixels=gallery.image_size <= 64,
        ),
    )


@torch.no_grad()
def view_picks(method: Method, network: Network, gallery: Gallery, embedded: Embedded, page: Page) -> None:
    """For some first views, the second views whose features are most similar, of a batch augmented as in training."""
    rows = embedded.rows[: VIEWS if gallery.image_size <= 64 else LARGE_VIEWS]
    if len(rows) < 2:
        return
    views = method.augment(gallery.pixels(rows), *method.draw(len(rows), step_generator(0, 1)))[0][: 2 * len(rows)]
    assert not isinstance(network.module, AnyClassifier)
    vectors = networks.pooled_maps(network.module, views.to(network.device)).cpu()  # [2B, D]
    first, second = F.normalize(vectors - vectors.mean(dim=0), dim=1).chunk(2)
    cosines = first @ second.T  # [B, B]
    right = int((cosines.argmax(dim=1) == torch.arange(len(rows))).sum())
    pictures = to_pixels(views, MEAN, STD)  # [2B, s, s, 3]
    if pictures.shape[1] > PICTURE:
        pictures = scaled(pictures, PICTURE)
    names = gallery.names(rows)
    lines = []
    for number in range(min(PUZZLES, len(rows))):
        order = cosines[number].argsort(descending=True).tolist()
        told = f"{float(cosines[number, number]):.2f}, place {order.index(number) + 1}"
        figures = [
            pages.picture(pictures[number], "from this view", "", alt=f"A view of {names[number]}"),
            pages.picture(pictures[len(rows) + number], "another view", told, alt=f"Another view of {names[number]}"),
        ]
        for place, candidate in enumerate(order[:4]):
            text = f"{'picked' if not place else f'place {place + 1}'}, {float(cosines[number, candidate]):.2f}"
            mark = candidate == number if not place or candidate == number else None
            alt = f"A view of {names[candidate]}"
            figures.append(pages.picture(pictures[len(rows) + candidate], text, alt=alt, right=mark))
        lines.append(piece("row", figures))
    page.add(
        "picks",
        "What it picks as another view",
        piece(
            "paragraph",
            f"For one view of an image, these are the most similar views of {len(rows)} images, one view each. Views "
            "are cut and coloured as in training. A row shows the given view, the right answer and the four most "
            "similar, with the cosines of their features less the mean: ✓ and a solid frame is right, ✗ and a dashed "
            "one wrong.",
        ),
        piece(
            "paragraph",
            f"{gallery.note} The images are chosen at random. {right} of {len(rows)} picks are right "
            f"({percent(right / len(rows))}); a guess is right {percent(1 / len(rows))} of the time.",
        ),
        piece("group", "rows", lines, pixels=views.shape[-1] <= 64),
    )


def classified(which: str, labels: Labels, gallery: Gallery, embedded: Embedded, page: Page) -> None:
    """Accuracy a class, the confusion matrix, and what it was most sure of and wrong in. `labels` are the gallery's."""
    true, predicted, classes = torch.from_numpy(labels[embedded.rows]), embedded.predicted, gallery.classes
    counts = confusion_matrix(predicted, true, len(classes))
    ranked = sorted((share, c) for c, share in enumerate(per_class_accuracy(counts)) if share is not None)
    shown = ranked[: pages.FEW_CLASSES]
    whole = "all" if embedded.whole else "a random part of the"
    few = f" The {len(shown)} classes with the lowest accuracy of {len(ranked)}:" if len(shown) < len(ranked) else ""
    right = predicted == true
    page.add(
        "classes",
        "Class by class",
        piece(
            "paragraph",
            f"The run's own network ({which}) on {whole} test images, {len(true):,}: "
            f"{percent(right.float().mean().item())} are right.{few}",
        ),
        piece(
            "bars",
            [(classes[c], share, f"{percent(share, 0)} of {int(counts[c].sum()):,}") for share, c in reversed(shown)],
        ),
        pages.confusion(classes, counts.tolist()),
    )
    wrong = (~right).nonzero().squeeze(1)
    worst = wrong[embedded.confidence[wrong].argsort(descending=True, stable=True)][:MISTAKES]
    if not len(worst):
        return
    rows = embedded.rows[worst.numpy()]
    pictures = gallery.pictures(rows, 2 * PICTURE if gallery.image_size > 2 * PICTURE else PICTURE)
    figures = []
    for at, pixels, name in zip(worst.tolist(), pictures, gallery.names(rows), strict=True):
        taken, label, sure = classes[predicted[at]], classes[true[at]], percent(float(embedded.confidence[at]))
        lines = taken, f"{sure} sure; labelled {label}", name
        figures.append(pages.picture(pixels, *lines, alt=f"{name}: {label}, taken for {taken}", right=False))
    page.add(
        "mistakes",
        "Most confidently wrong",
        piece(
            "paragraph", "What it took them for, how sure it was, and what they are labelled as: often a label to mend."
        ),
        piece("group", "wall", figures, pixels=gallery.image_size <= 64),
    )


def neighbours(gallery: Gallery, embedded: Embedded, page: Page) -> None:
    """The nearest images of one query a class, or of some; and how often they share its label."""
    vectors = F.normalize(embedded.vectors, dim=1)
    count = len(vectors)
    similarity = (vectors @ vectors.T).fill_diagonal_(-torch.inf)
    rows = embedded.rows[:count]
    nearest = similarity.topk(min(NEIGHBOURS, count - 1), dim=1)
    queries, told = list(range(min(QUERIES, count))), ""
    if gallery.labels is not None:
        labels = gallery.labels[rows]
        queries = sorted(np.unique(labels, return_index=True)[1].tolist())[:QUERIES]
        same = float((labels[nearest.indices.numpy()] == labels[:, None]).mean())
        sizes = np.bincount(labels)
        chance = float((sizes * (sizes - 1)).sum()) / (count * (count - 1))
        told = (
            f" Over all {count:,} images, {percent(same, 0)} of their {nearest.indices.shape[1]} nearest have the same "
            f"label; of images drawn blindly it would be {percent(chance, 0)}."
        )
    lines = []
    for query in queries:
        members = rows[[query, *nearest.indices[query].tolist()]]
        pictures, names = gallery.pictures(members, PICTURE), gallery.names(members)
        own, *labels_of = [gallery.label(row) for row in members]
        figures = [pages.picture(pictures[0], own or "query", "the query", alt=names[0])]
        for place, label in enumerate(labels_of):
            cosine, right = f"cosine {nearest.values[query, place]:.2f}", None if label is None else label == own
            about = [cosine] if label is None else [label, cosine]
            figures.append(pages.picture(pictures[place + 1], *about, alt=names[place + 1], right=right))
        lines.append(piece("row", figures))
    page.add(
        "neighbours",
        "Nearest neighbours",
        piece("paragraph", f"By the cosine of the network's vectors, among {count:,} images. {gallery.note}{told}"),
        piece("group", "rows", lines, pixels=gallery.image_size <= 64),
    )


def mapped(gallery: Gallery, embedded: Embedded, page: Page) -> None:
    count = len(embedded.vectors)
    rows = embedded.rows[:count]
    labels = None if gallery.labels is None else gallery.labels[rows].tolist()
    bad = f" {len(embedded.bad)} more could not be read." if embedded.bad else ""
    of_all = f" of {len(gallery.source):,}" if count < len(gallery.source) else ""
    page.add(
        "map",
        "Map of the images",
        piece(
            "paragraph",
            f"{count:,} images{of_all}, like ones beside each other as far as a plane allows (t-SNE of the vectors' "
            f"cosines): neighbourhoods mean something, distances and axes do not.{bad}",
        ),
        piece("paragraph", "Point at one, tap it, or use the arrow keys.", kind="screen"),
        pages.chart_map(page, tsne(embedded.vectors), embedded.thumbs, gallery.names(rows), labels, gallery.classes),
    )
