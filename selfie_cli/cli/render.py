"""Results as tables for eyes."""

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from selfie_cli.recipes.comparison import Curve, Finetuned, Gain, Point, spreads
from selfie_cli.recipes.eval import Evaluated
from selfie_cli.recipes.pull import Pulled
from selfie_cli.recipes.push import Pushed
from selfie_cli.recipes.similar import Similar
from selfie_cli.report.plots import as_text
from selfie_cli.talk import printable


def percent(value: float | None) -> str:
    return "" if value is None else f"{value * 100:.1f}"


def spread(mean: float, std: float | None, *, signed: bool = False, single: str = " (no spread)") -> str:
    """'59.1 ± 0.4', in percent; a single value has no spread, and says so."""
    sign = "+" if signed else ""
    return f"{mean * 100:{sign}.1f}" + (single if std is None else f" ± {std * 100:.1f}")


def finetuned(result: Finetuned) -> RenderableType:
    labels = f"{result.num_labels:,} labels ({result.fraction * 100:.3g} %)"
    table = Table(title=f"{printable(result.dataset)}: test accuracy in % with {labels}", title_justify="left")
    table.add_column("", no_wrap=True)
    table.add_column("mean ± std", justify="right", no_wrap=True)
    table.add_column("learning rate", justify="right")
    shown = result.seeds if len(result.seeds) <= 5 else []  # more than a terminal is wide: they are in results.json
    for seed in shown:
        table.add_column(f"seed {seed}", justify="right", no_wrap=True)
    for arm in result.arms:
        values = [percent(value) for value in arm.accuracies[: len(shown)]]
        table.add_row(printable(arm.name), spread(arm.mean, arm.std), f"{arm.lr:g}", *values)
    table.add_section()
    notes = [f"{result.num_test:,} test images, {result.steps:,} steps for every network."]
    for gain in result.comparisons:
        over = f" over {gain.baseline}" if len(result.comparisons) > 1 else ""
        values = [f"{each * 100:+.1f}" for each in gain.gains[: len(shown)]]
        table.add_row(f"paired gain{over}", spread(gain.mean, gain.std, signed=True), "", *values)
        if gain.interval is not None:
            notes.append(f"95 % paired t-interval of the gain{over}: {interval(gain)} points.")
    return Group(table, *notes, printable(result.sentence))


def interval(gain: Gain) -> str:
    return "" if gain.interval is None else f"{gain.interval[0] * 100:+.1f} to {gain.interval[1] * 100:+.1f}"


def curve(result: Curve) -> RenderableType:
    """Means, paired gains, a plot of characters, and what was found."""
    accuracies = Table(title=f"{printable(result.dataset)}: test accuracy in %, mean ± std", title_justify="left")
    for column in ("labels", "", "seeds", "steps"):
        accuracies.add_column(column, justify="right", no_wrap=True)
    for arm in result.points[0].arms:
        accuracies.add_column(printable(arm.name), justify="right", overflow="fold")
    for each in result.points:
        means = [spread(arm.mean, arm.std, single="") for arm in each.arms]
        accuracies.add_row(percent_of(each), f"{each.num_labels:,}", f"{len(each.seeds)}", f"{each.steps:,}", *means)
    parts: list[RenderableType] = [accuracies, *(f"{name}: {remark}." for name, remark in result.remarks.items())]
    if result.points[0].comparisons:
        gains = Table(title="Gain over supervised in points, paired by seed", title_justify="left")
        for column in ("labels", "arm", "mean ± std", "95 % interval"):
            gains.add_column(column, justify="left" if column == "arm" else "right", overflow="fold")
        for each in result.points:
            for gain in each.comparisons:
                shown = spread(gain.mean, gain.std, signed=True, single="")
                gains.add_row(percent_of(each), printable(gain.arm), shown, interval(gain))
        parts.append(gains)
    lines = {printable(name): values for name, values in spreads(result.points).items()}
    plot = as_text([each.fraction for each in result.points], lines)
    note = f"{result.num_test:,} test images; ± is the standard deviation over seeds."
    if any(gain.interval for each in result.points for gain in each.comparisons):
        note += " Each interval stands for itself: of twenty such, one misses by chance."
    parts += [Text(f"\n{plot}\n", no_wrap=True), note]
    if result.plots:
        parts.append(printable(f"Plots: {', '.join(str(result.run / name) for name in result.plots)}"))
    return Group(*parts, *(printable(sentence) for sentence in result.sentences))


def percent_of(point: Point) -> str:
    return f"{point.fraction * 100:.3g} %"


def evaluated(result: Evaluated) -> RenderableType:
    images = f"{result.num_test:,} test images, {result.num_train:,} for training"
    table = Table(title=f"{printable(result.dataset)}: accuracy in % on {images}", title_justify="left")
    table.add_column("")
    table.add_column("this network", justify="right")
    table.add_column("untrained", justify="right")
    table.add_column("guessing", justify="right")
    majority = percent(result.majority)
    table.add_row(
        f"kNN (k {result.k}, temperature {result.temperature:g})",
        percent(result.trained.knn),
        percent(result.untrained.knn),
        majority,
    )
    table.add_row("linear probe", percent(result.trained.linear), percent(result.untrained.linear), majority)
    if result.chance is not None:
        chance, trained, untrained = percent(result.chance), result.trained, result.untrained
        cut = percent(trained.pretext_accuracy), percent(untrained.pretext_accuracy)
        plain = percent(trained.pretext_accuracy_plain), percent(untrained.pretext_accuracy_plain)
        table.add_row("pretext task, cropped as in training", *cut, chance)
        if result.trained.pretext_accuracy_plain is not None:
            table.add_row("pretext task, plain images", *plain, chance)
    if result.classified is not None:
        table.add_row("top-1", percent(result.classified.top1), "", majority)
        if len(result.classified.per_class) > 5:
            table.add_row("top-5", percent(result.classified.top5), "", "")
    note = f"Features: {result.features}. Guessing is the largest class"
    note += ", and for the pretext task 1 / candidates." if result.chance is not None else "."
    parts: list[RenderableType] = [table, note]
    if result.classified is not None:
        parts.append(confusion(result))
    return Group(*parts)


def confusion(result: Evaluated) -> RenderableType:
    assert result.classified is not None
    names = [printable(name) for name in result.classified.classes]
    table = Table(
        title="Per class: accuracy in %, and how many of each class were taken for which", title_justify="left"
    )
    table.add_column("true class", no_wrap=True)
    table.add_column("accuracy", justify="right")
    shown = names if len(names) <= 12 else []
    for name in shown:
        table.add_column(name[:6], justify="right")
    for name, accuracy, row in zip(names, result.classified.per_class, result.classified.confusion, strict=True):
        table.add_row(name, percent(accuracy), *(str(count) for count in row[: len(shown)]))
    return table


def pushed(result: Pushed) -> list[str]:
    """What is on the Hub now; after a dry run, what would be, with the card."""
    files = [f"{size:>13,} bytes  {name}" for name, size in result.files.items()]
    if result.url is None:
        return [f"would be sent to {result.address}:", *files, "", *result.card.splitlines()]
    made = "made, and " if result.created else ""
    return [*files, f"{result.url}: {made}now at {result.commit}", f"next, anywhere: selfie pull {result.address}"]


def pulled(result: Pulled) -> list[str]:
    """Where the run is, and what to do with it."""
    verb = f"selfie embed photo.jpg --from {result.run}"
    if result.verb != "pretrain":
        verb = f"selfie predict {result.run} photo.jpg"
    return [
        f"{result.run}: {result.address}, checked",
        f"next: {verb}",
        f"or:   selfie finetune --from {result.run} --dataset FOLDER_WITH_A_SUBFOLDER_A_CLASS --fraction 0.2 --seeds 3",
    ]


MEMBERS = 20  # of a group of near-duplicates that are shown


def similar(result: Similar, top: int) -> RenderableType:
    """A table for each query, or of the `top` largest groups."""
    parts: list[RenderableType] = []
    for answer in result.answers or ():
        table = Table(title=f"Most like {printable(answer.query)}", title_justify="left")
        for column in ("rank", "cosine", "path"):
            table.add_column(column, justify="left" if column == "path" else "right", overflow="fold")
        for match in answer.matches:
            table.add_row(str(match.rank), f"{match.cosine:.4f}", printable(match.path))
        parts.append(table)
    if result.groups is not None:
        table = Table(title=f"Groups of near-duplicates in {printable(result.file)}", title_justify="left")
        for column in ("group", "cosine", "same file", "path"):
            table.add_column(column, justify="left" if column == "path" else "right", overflow="fold")
        for number, group in enumerate(result.groups[:top], 1):
            for member in group[:MEMBERS]:
                copy = "yes" if member.copy and member is not group[0] else ""
                table.add_row(str(number), f"{member.cosine:.4f}", copy, printable(member.path))
            if len(group) > MEMBERS:
                table.add_row(str(number), "", "", f"and {len(group) - MEMBERS:,} more")
            table.add_section()
        count, images = len(result.groups), sum(map(len, result.groups))
        note = f"{images:,} of {result.num_vectors:,} images are in {count:,} groups, by cosines from "
        note += f"{result.threshold:g} or equal contents; cosines to each group's first."
        if count > top:
            note += f" The {top} largest are shown: --top shows more, --json all."
        parts += [table, note] if count else [note]
    return Group(*parts)
