"""Results as tables for eyes."""

from rich.console import Group, RenderableType
from rich.table import Table

from selfie_cli.cli.console import printable
from selfie_cli.recipes.comparison import Finetuned
from selfie_cli.recipes.eval import Evaluated


def percent(value: float | None) -> str:
    return "" if value is None else f"{value * 100:.1f}"


def spread(mean: float, std: float | None, *, signed: bool = False) -> str:
    """'59.1 ± 0.4', in percent; a single value has no spread, and says so."""
    sign = "+" if signed else ""
    return f"{mean * 100:{sign}.1f} " + ("(no spread)" if std is None else f"± {std * 100:.1f}")


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
    if result.gains is not None and result.gain_mean is not None:
        table.add_section()
        values = [f"{gain * 100:+.1f}" for gain in result.gains[: len(shown)]]
        table.add_row("paired gain", spread(result.gain_mean, result.gain_std, signed=True), "", *values)
    notes = [f"{result.num_test:,} test images, {result.steps:,} steps for every network."]
    if result.gain_interval is not None:
        low, high = result.gain_interval
        notes.append(f"95 % paired t-interval of the gain: {low * 100:+.1f} to {high * 100:+.1f} points.")
    return Group(table, *notes, printable(result.sentence))


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
        table.add_row("pretext task, plain images", *plain, chance)
    if result.classified is not None:
        table.add_row("top-1", percent(result.classified.top1), "", majority)
        if len(result.classified.per_class) > 5:
            table.add_row("top-5", percent(result.classified.top5), "", "")
    note = f"Features: {result.features}. Guessing is the largest class, and for the pretext task 1 / masked patches."
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
