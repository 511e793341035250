"""Draw the figures of the docs into docs/figures/ (or the folder that is given): python docs/figures.py [FOLDER]

The pictures in them are the demo's; crops, colours and masks are drawn by the code that training uses. Measured values
are read from docs/results/.
"""

import json
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

import matplotlib
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch, Rectangle
from numpy.typing import NDArray

from selfie_cli.data import synthetic
from selfie_cli.data.augment import constants
from selfie_cli.data.views import View
from selfie_cli.models.patches import num_masked, random_masks

FOLDER = Path(__file__).with_name("figures")
SEED = 3
SIDE, GRID = 72, 4  # pixels, and cells a side: the grid of 32 px images, drawn finer
# Okabe and Ito's colours, which colour-blind readers can tell apart; shapes and words say it again.
BLUE, ORANGE, GREEN, GREY, INK = "#0072B2", "#D55E00", "#009E73", "#6e7781", "#1f2328"
PALE = {BLUE: "#d9eaf5", ORANGE: "#fbe3d3", GREEN: "#d5efe6", GREY: "#eceef0"}
# The same file every time: text as shapes, no date, element names that do not vary.
STYLE = {"svg.hashsalt": "selfie", "svg.fonttype": "path", "font.family": "DejaVu Sans", "font.size": 11.5}

Pixels = NDArray[np.uint8]


def canvas(width: float, height: float) -> tuple[Figure, Axes]:
    """A page of width x height, in units of which a line of text is some 0.25 high."""
    figure = Figure(figsize=(width, height), facecolor="white")
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, width), ylim=(0, height))
    axes.axis("off")
    return figure, axes


def picture(axes: Axes, pixels: Pixels, x: float, y: float, side: float, edge: str = INK, width: float = 0.8) -> None:
    """Square pixels [S, S, 3] with the lower left corner at x, y."""
    axes.imshow(pixels, extent=(x, x + side, y, y + side), interpolation="none", aspect="auto", zorder=2)
    axes.add_patch(Rectangle((x, y), side, side, fill=False, edgecolor=edge, linewidth=width, zorder=3))


def box(axes: Axes, x: float, y: float, width: float, height: float, text: str, colour: str, **more: object) -> None:
    """A labelled box about the centre x, y."""
    style = {"facecolor": PALE[colour], "edgecolor": colour, "linewidth": 1.3, **more}
    corner = (x - width / 2, y - height / 2)
    axes.add_patch(FancyBboxPatch(corner, width, height, boxstyle="round,pad=0,rounding_size=0.08", zorder=2, **style))
    axes.text(x, y, text, ha="center", va="center", zorder=4, color=INK, linespacing=1.25)


def arrow(axes: Axes, start: tuple[float, float], end: tuple[float, float], colour: str = INK) -> None:
    style = {"arrowstyle": "-|>", "color": colour, "linewidth": 1.2, "shrinkA": 0, "shrinkB": 0}
    axes.annotate("", end, start, arrowprops=style, zorder=1)


def words(axes: Axes, x: float, y: float, text: str, **more: object) -> None:
    axes.text(x, y, text, **{"ha": "center", "va": "center", "color": INK, "linespacing": 1.3, **more})  # type: ignore[arg-type]


def cell(pixels: Pixels, place: int) -> Pixels:
    side = len(pixels) // GRID
    row, column = divmod(place, GRID)
    return pixels[row * side : (row + 1) * side, column * side : (column + 1) * side]


def corner(place: int, x: float, y: float, side: float) -> tuple[float, float]:
    """The lower left corner of a cell of a grid whose own is at x, y."""
    row, column = divmod(place, GRID)
    return x + column * side / GRID, y + (GRID - 1 - row) * side / GRID


def masked_grid(axes: Axes, pixels: Pixels, hidden: Iterable[int], x: float, y: float, side: float) -> None:
    picture(axes, pixels, x, y, side)
    size = side / GRID
    for place in range(GRID * GRID):
        axes.add_patch(
            Rectangle(corner(place, x, y, side), size, size, fill=False, edgecolor="white", linewidth=1, zorder=3)
        )
    for place in hidden:
        axes.add_patch(
            Rectangle(
                corner(place, x, y, side), size, size, facecolor=PALE[GREY], edgecolor=GREY, linewidth=1, zorder=4
            )
        )


def masks(ratio: float, seed: int) -> tuple[list[int], list[int]]:
    """Hidden and visible places of one image, as pretraining draws them."""
    scores = torch.rand(1, GRID * GRID, generator=torch.Generator().manual_seed(seed))
    hidden, visible = random_masks(scores, num_masked(GRID * GRID, ratio))
    return hidden[0].tolist(), sorted(visible[0].tolist())


def candidates(axes: Axes, shown: list[Pixels], right: int, x: float, names: list[str], top: float) -> None:
    """A column of what there is to choose from, its network's vector, and its score against the query."""
    for index, pixels in enumerate(shown):
        y = top - index * 0.92
        colour = GREEN if index == right else GREY
        picture(axes, pixels, x, y, 0.72, edge=colour, width=2.4 if index == right else 0.8)
        words(axes, x + 0.86, y + 0.36, names[index], ha="left")
        words(axes, x + 3.2, y + 0.36, "✓ right" if index == right else "distractor", ha="left", color=colour)


def paper() -> Figure:
    """Hidden patches of one image, and the question that is asked of one of them."""
    pixels = synthetic.draw(10, seed=SEED, size=SIDE)[0][1]
    hidden, visible = masks(0.25, seed=6)
    asked = 0
    figure, axes = canvas(10.8, 5.0)
    words(axes, 1.6, 4.72, "4 of 16 patches hidden", weight="bold")
    masked_grid(axes, pixels, hidden, 0.3, 1.8, 2.6)
    for index, place in enumerate(hidden):
        x, y = corner(place, 0.3, 1.8, 2.6)
        words(axes, x + 0.325, y + 0.325, "?", size=15, zorder=5, color=ORANGE if index == asked else GREY)
    x, y = corner(hidden[asked], 0.3, 1.8, 2.6)
    axes.add_patch(Rectangle((x, y), 0.65, 0.65, fill=False, edgecolor=ORANGE, linewidth=2.6, zorder=6))
    words(axes, 1.6, 1.35, "What belongs in the orange place?", color=ORANGE)

    words(axes, 4.15, 4.72, "visible patches", weight="bold")
    for index, place in enumerate(visible):
        picture(axes, cell(pixels, place), 3.35 + index % 4 * 0.42, 3.86 - index // 4 * 0.42, 0.36)
    arrow(axes, (4.15, 2.92), (4.15, 2.62))
    box(axes, 4.15, 2.37, 1.7, 0.46, "P  patch network", BLUE)
    arrow(axes, (4.15, 2.12), (4.15, 1.82))
    box(axes, 4.15, 1.5, 1.7, 0.6, "A  attention\npooling", BLUE)
    arrow(axes, (4.15, 1.18), (4.15, 0.92))
    words(axes, 4.15, 0.72, "u  +  position of the place  =  query v")
    words(axes, 4.15, 0.4, "the same u for all four questions", color=GREY, size=10.5)

    words(axes, 8.2, 4.72, "choose among all hidden patches of this image", weight="bold")
    names = [f"P  →  $h_{index + 1}$      score  $v · h_{index + 1}$" for index in range(len(hidden))]
    candidates(axes, [cell(pixels, place) for place in hidden], asked, 6.5, names, 3.72)
    axes.plot([6.1, 6.1], [0.72, 4.4], color=ORANGE, linewidth=1.4)
    axes.plot([5.75, 6.1], [0.72, 0.72], color=ORANGE, linewidth=1.4)
    for index in range(len(hidden)):
        arrow(axes, (6.1, 4.08 - index * 0.92), (6.46, 4.08 - index * 0.92), ORANGE)
    words(axes, 8.2, 0.46, "softmax over the four; loss = cross entropy; chance 1 / 4")
    return figure


def views() -> Figure:
    """Four small views of one image, drawn to their mean and apart from those of other images."""
    scenes = synthetic.draw(10, seed=SEED, size=SIDE)[0][[1]]
    generator = torch.Generator().manual_seed(4)
    mean, scale = (values.view(1, 3, 1, 1) for values in constants(torch.device("cpu")))
    colours = (BLUE, ORANGE, GREEN, GREY)
    figure, axes = canvas(10.8, 4.6)
    words(axes, 1.5, 4.32, "four random views", weight="bold")
    picture(axes, scenes[0], 0.3, 1.65, 2.4)
    words(axes, 1.5, 1.1, "15 to 70 % of the image each,\nresized to half of its side")
    for index, colour in enumerate(colours):
        kind = View(min_crop=0.15, max_crop=0.7, jitter=1.0)
        drawn = kind.draw(1, generator)
        x, y, width, height = corners(drawn.boxes[0])
        place = (0.3 + 2.4 * x, 1.65 + 2.4 * (1 - y - height))
        axes.add_patch(
            Rectangle(place, 2.4 * width, 2.4 * height, fill=False, zorder=4, edgecolor=colour, linewidth=2.6)
        )
        view = kind.apply(torch.from_numpy(scenes), drawn, SIDE // 2)
        shown = (view / scale + mean).round().clamp(0, 255).byte().permute(0, 2, 3, 1).numpy()[0]
        bottom = 3.3 - index * 0.95
        picture(axes, shown, 3.35, bottom, 0.8, edge=colour, width=2.4)
        arrow(axes, (4.2, bottom + 0.4), (4.45, bottom + 0.4))
        box(axes, 5.3, bottom + 0.4, 1.7, 0.62, "P, mean,\nprojector", BLUE)
        arrow(axes, (6.15, bottom + 0.4), (6.5, bottom + 0.4))
        words(axes, 6.72, bottom + 0.4, f"$z_{index + 1}$", color=colour, size=14)
        arrow(axes, (6.95, bottom + 0.4), (7.55, 2.28 + 0.1 * (1.5 - index)), colour)
    words(axes, 5.0, 4.32, "each by itself through the same P", weight="bold")
    box(axes, 8.2, 2.27, 1.2, 0.7, "their mean:\nthe context", ORANGE)
    words(axes, 9.1, 4.32, "the loss", weight="bold")
    words(axes, 9.1, 3.72, "views of an image alike:\nattraction * (1 - mean cosine)")
    words(axes, 9.1, 1.1, "images of a batch apart:\nminus the coding rate,\nlog det(I + E / (Bε) ZᵀZ) / 2")
    return figure


def corners(box: torch.Tensor) -> tuple[float, float, float, float]:
    """Left, top, width and height, as shares of the picture, of one of `draw_boxes`'s."""
    x, y, width, height = box.tolist()
    return (x - abs(width)) / 2 + 0.5, (y - abs(height)) / 2 + 0.5, abs(width), abs(height)


def stages() -> Figure:
    """Which parts are pretrained, and what finetuning starts from."""
    figure, axes = canvas(10.6, 4.9)
    columns = {"stem": 3.75, "stage 1": 4.8, "stage 2": 5.85, "stage 3": 6.9, "stage 4": 7.95, "head": 9.6}

    def row(y: float, title: str, note: str, parts: dict[str, str], head: tuple[str, str] | None) -> None:
        words(axes, 0.25, y + 0.13, title, ha="left", weight="bold")
        words(axes, 0.25, y - 0.17, note, ha="left", size=10.5, color="#57606a")
        previous = None
        for name, colour in parts.items():
            x = columns[name]
            box(axes, x, y, 0.92, 0.46, name, colour, linestyle="--" if colour == GREY else "-")
            if previous is not None:
                arrow(axes, (previous + 0.46, y), (x - 0.46, y))
            previous = x
        if head is not None and previous is not None:
            text, colour = head
            box(axes, columns["head"], y, 1.85, 0.46, text, colour, linestyle="--" if colour == GREY else "-")
            arrow(axes, (previous + 0.46, y), (columns["head"] - 0.925, y))

    three = dict.fromkeys(("stem", "stage 1", "stage 2", "stage 3"), BLUE)
    words(axes, 0.25, 4.6, "Pretraining", ha="left", size=12)
    row(4.1, "Selfie, --recipe paper", "P is three stages", three, ("attention pooling A", BLUE))
    row(3.4, "all others", "on small views", three, ("projector (dropped)", ORANGE))
    axes.plot([0.25, 10.35], [2.98, 2.98], color=GREY, linewidth=0.6)
    words(axes, 0.25, 2.72, "Finetuning starts from", ha="left", size=12)
    row(2.22, "any of them", "the whole image through P", {**three, "stage 4": GREY}, ("classifier", GREY))
    row(1.52, "paper, --arch hybrid", "A in place of stage 4", three, ("A  →  linear", BLUE))
    nothing = dict.fromkeys((*three, "stage 4"), GREY)
    row(0.82, "supervised", "the baseline of every table", nothing, ("classifier", GREY))
    for x, colour, text in ((0.25, BLUE, "pretrained"), (2.2, GREY, "starts fresh"), (4.3, ORANGE, "not kept")):
        line = "--" if colour == GREY else "-"
        axes.add_patch(
            Rectangle((x, 0.14), 0.4, 0.22, facecolor=PALE[colour], edgecolor=colour, linestyle=line, linewidth=1.3)
        )
        words(axes, x + 0.52, 0.25, text, ha="left", size=10.5)
    words(axes, 6.0, 0.25, "The linear layer of the hybrid starts fresh, too.", ha="left", size=10.5)
    return figure


def steps() -> Figure:
    """Test accuracy over the length of finetuning with 500 labels: a line for seed 0, dots for the other seeds."""
    lines = (FOLDER.parent / "results" / "cifar10.jsonl").read_text(encoding="utf-8").splitlines()
    results = [line["result"] for line in map(json.loads, lines) if line.get("figure") == "steps"]
    results.sort(key=lambda result: result["steps"])
    figure = Figure(figsize=(7.2, 3.9), facecolor="white", layout="constrained")
    axes = figure.add_subplot(xscale="log", xlabel="finetuning steps of 32 images", ylabel="test accuracy in %")
    for name, label, colour, line in (
        ("selfie", "pretrained", BLUE, "o-"),
        ("supervised", "no pretraining", INK, "s--"),
    ):
        found = {result["steps"]: arm for result in results for arm in result["arms"] if arm["name"] == name}
        first = [100 * arm["accuracies"][0] for arm in found.values()]
        axes.plot(list(found), first, line, color=colour)
        for length, arm in found.items():
            others = [100 * each for each in arm["accuracies"][1:]]
            axes.plot([length] * len(others), others, line[0], color=colour, alpha=0.35, markersize=4)
        axes.annotate(label, (500, first[1]), (0, -20), textcoords="offset points", color=colour, weight="bold")
    lengths = sorted({result["steps"] for result in results})
    axes.set_xticks(lengths, [f"{each:,}" for each in lengths])
    axes.minorticks_off()
    axes.grid(axis="y", color=PALE[GREY])
    axes.spines[["top", "right"]].set_visible(False)
    return figure


FIGURES: dict[str, Callable[[], Figure]] = {"paper": paper, "many-views": views, "stages": stages, "steps": steps}


def main(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, draw in FIGURES.items():
        with matplotlib.rc_context(STYLE):
            draw().savefig(folder / f"{name}.svg", metadata={"Date": None, "Creator": None})


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else FOLDER)
