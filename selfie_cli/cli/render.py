"""Results of verbs as lines and tables for people. A line is not wrapped when it is printed."""

from __future__ import annotations

import dataclasses
import io
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from shlex import quote
from typing import TYPE_CHECKING, Any

from rich.console import Console, Group, RenderableType
from rich.filesize import decimal as amount
from rich.table import Table
from rich.text import Text

from selfie_cli.comparison.results import Curve, Finetuned, Point
from selfie_cli.comparison.summary import Table as ComparisonTable
from selfie_cli.comparison.summary import curve_tables, evaluation_rows, explanations, finetuned_table, percent
from selfie_cli.talk import counted, printable
from selfie_cli.training.hardware import duration

if TYPE_CHECKING:
    from selfie_cli.commands.demo import Demo
    from selfie_cli.commands.doctor import Diagnosis, Plan
    from selfie_cli.commands.eval import Classified, Evaluated
    from selfie_cli.commands.pretrain import Pretrained
    from selfie_cli.commands.pull import Pulled
    from selfie_cli.commands.push import Pushed
    from selfie_cli.commands.similar import Similar
    from selfie_cli.data.examination import Finding
    from selfie_cli.inference.outputs import Predictions

FINETUNE = "--dataset FOLDER_WITH_A_SUBFOLDER_PER_CLASS --fraction 0.2 --seeds 3"
MEMBERS = 20
"""Number of images shown per group of near-duplicates, and of predictions."""
SHOWN = {"problem": 10, "remark": 3}
"""Number of files shown per finding of doctor."""
PLOT_WIDTH = 80
LEGEND = "test accuracy in %: o mean, |--| one standard deviation"


def rendered(verb: str, result: Any, options: Any) -> Sequence[RenderableType]:
    """Return the lines and tables to print for a verb's result."""
    return similar(result, options.top) if verb == "similar" else RENDERERS[verb](result)


def titled(title: str, columns: Iterable[str], *, left: str | None = None, **style: Any) -> Table:
    """Return an empty table with all columns aligned to the right, except the one named `left`."""
    table = Table(title=printable(title), title_justify="left")
    for name in columns:
        table.add_column(printable(name), justify="left" if name == left else "right", **style)
    return table


def pretrained(result: Pretrained) -> list[RenderableType]:
    last = result.last
    pretext = ""
    if "pretext_accuracy" in last:
        pretext = f"pretext accuracy {last['pretext_accuracy']:.1%} (chance {last['chance']:.1%}), "
    return [
        f"{result.run}: {counted(result.step, 'step')}, loss {last['loss']:.3f}, {pretext}"
        f"{result.images_per_second:,.0f} images/s, data wait {result.data_wait:.1%}",
        f"next: selfie finetune --from {quote(str(result.run))} {FINETUNE}",
    ]


def comparison_table(table: ComparisonTable, **style: Any) -> Table:
    """Return a table of finetune or curve, with a line below its arms."""
    drawn = titled(table.title, table.columns, left=table.left, **style)
    for number, row in enumerate(table.rows, 1):
        drawn.add_row(*map(printable, row), end_section=number == table.num_arms)
    return drawn


def finetuned(result: Finetuned) -> list[RenderableType]:
    table = comparison_table(finetuned_table(result, most_seeds=5))  # more do not fit into a terminal
    for column in table.columns:
        column.no_wrap = column.header != "learning rate"
    lines = [*explanations(result), *result.warnings, *result.notes, result.sentence]
    return [Group(table, *map(printable, lines))]


def curve(result: Curve) -> list[RenderableType]:
    """Return means, paired gains, a text plot, and the findings."""
    tables = [comparison_table(table, overflow="fold") for table in curve_tables(result)]
    plot = Text(f"\n{text_plot(result.points)}\n", no_wrap=True)
    plots = [f"Plots: {', '.join(str(result.run / name) for name in result.plots)}"] if result.plots else []
    lines = [*explanations(result), *plots, *result.notes, *result.sentences]
    return [Group(*tables, plot, *map(printable, lines))]


def text_plot(points: list[Point]) -> str:
    """Draw accuracy over the share of the labels, a line per point and arm: o at the mean, in a bar of one standard
    deviation to each side."""
    arms = [arm for point in points for arm in point.arms]
    ends = [100 * (arm.mean + sign * (arm.std or 0)) for arm in arms for sign in (-1, 1)]
    high = min(100, 5 * (max(ends) // 5 + 1))
    low = max(0, min(5 * (min(ends) // 5), high - 5))
    names = [printable(arm.name) for arm in points[0].arms]
    names = [name if len(name) <= 24 else name[:21] + "..." for name in names]
    head = max(map(len, names)) + 8
    room = PLOT_WIDTH - head - 2

    def column(value: float) -> int:
        return round(min(1, max(0, (100 * value - low) / (high - low))) * (room - 1))

    lines = []
    for point in points:
        share = point.share
        for name, arm in zip(names, point.arms, strict=True):
            bar = [" "] * room
            if arm.std is not None:
                left, right = column(arm.mean - arm.std), column(arm.mean + arm.std)
                bar[left : right + 1] = "|" + "-" * (right - left - 1) + "|" if right > left else "|"
            bar[column(arm.mean)] = "o"
            lines.append(f"{share:>6} {name:<{head - 7}}|{''.join(bar)}|")
            share = ""
        lines.append(f"{'':{head}}|{' ' * room}|")
    lines[-1] = f"{'':{head}}+{'-' * room}+"
    scale = [f"{low:g}", f"{(low + high) / 2:g}", f"{high:g}"]
    gap = room - sum(map(len, scale))
    lines.append(f"{'':{head + 1}}{scale[0]}{'':{gap // 2}}{scale[1]}{'':{gap - gap // 2}}{scale[2]}")
    lines.append(f"{LEGEND:>{head + 1 + room}}")
    return "\n".join(lines)


def evaluated(result: Evaluated) -> list[RenderableType]:
    trained, classified = result.trained, result.classified
    note = f"Features: {result.features}. Guessing is the largest class."
    searched = (
        f"Of the linear probe, the L2 strength ({trained.linear_strength:g}) was chosen on held-out training images; "
        "k and temperature were not searched. One network and one seed: a difference has no interval."
    )
    if result.chance is not None:
        note = note.removesuffix(".") + ", and for the pretext task 1 / candidates."
    images = f"{result.num_test:,} test images, {result.num_train:,} for training"
    columns = ["", "this network", "untrained", "guessing"]
    table = titled(f"{result.dataset}: accuracy in % on {images}", columns, left="")
    for row in evaluation_rows(dataclasses.asdict(result)):
        table.add_row(*row)
    return [Group(table, note, searched, *([] if classified is None else [confusion(classified)]))]


def confusion(found: Classified) -> Table:
    names = [printable(name) for name in found.classes]
    shown = short(names) if len(names) <= 12 else []
    title = "Per class: accuracy in %, and confusion matrix (columns: predicted class)"
    table = titled(title, ["true class", "accuracy", *shown], left="true class")
    table.columns[0].no_wrap = True
    for name, accuracy, row in zip(names, found.per_class, found.confusion, strict=True):
        table.add_row(name, percent(accuracy), *(str(count) for count in row[: len(shown)]))
    return table


def short(names: list[str]) -> list[str]:
    """Return distinct short names: six characters from the start or after the common prefix, else numbered names."""
    for start in (0, len(os.path.commonprefix(names))):  # noqa: RUF071 - characters, not folders
        cut = [name[start : start + 6] for name in names]
        if all(cut) and len({*cut}) == len(names):
            return cut
    return [f"{number}: {name[:3]}" for number, name in enumerate(names, 1)]


def diagnosis(result: Diagnosis) -> list[str]:
    """Return the verdict, the findings, the facts about images and machine, and the time of pretraining.

    This is about one screen, whatever the number of images.
    """
    findings = {"problem": result.problems, "remark": result.remarks}
    counts = [counted(len(each), word) for word, each in findings.items() if each]
    verdict = "Healthy" if result.healthy else "Not healthy"
    if result.healthy and any(each.kind == "finetune stops" for each in result.remarks):
        verdict += " for pretraining"
    lines = [f"{verdict}: {', '.join(counts) or 'no problems, no remarks'}"]
    for word, each in findings.items():
        lines += ["", f"{word.capitalize()}s"] if each else []
        for finding in each:
            lines += lines_of(finding, SHOWN[word])
    facts = [f"{name:<18} {text}" for name, text in facts_of(result) if text]
    return [*lines, "", *facts, "", *(line for plan in result.plans for line in plan_lines(plan))]


def lines_of(finding: Finding, shown: int) -> list[str]:
    """Return the finding and its first `shown` files."""
    names = [f"{item.name}: {item.note}" if item.note else item.name for item in finding.items[:shown]]
    if len(finding.items) > shown:
        names.append(f"and {len(finding.items) - shown:,} more, see --json")
    count = f" ({len(finding.items):,})" if names else ""
    return [f"  {finding.kind}{count}: {finding.text}", *(f"      {name}" for name in names)]


def facts_of(result: Diagnosis) -> Iterator[tuple[str, str]]:
    parts = [f"{count:,} {part}".strip() for part, count in result.images.items()]
    yield "images", " + ".join(parts) + ("; pretraining uses train only" if len(parts) > 1 else "")
    yield "formats", ", ".join(f"{name} {count:,}" for name, count in result.formats.items())
    for name, side in (("short side", result.short_side), ("long side", result.long_side)):
        if side and side.smallest == side.largest:
            yield name, f"{side.median:,} px, all images"
        elif side:
            yield name, f"{side.smallest:,} to {side.largest:,} px, median {side.median:,}"
    if (size := result.file_bytes) and result.all_bytes:
        least, most, median = (amount(each) for each in (size.smallest, size.largest, size.median))
        yield "file size", f"{least} to {most}, median {median}, {amount(result.all_bytes)} in total"
    for part, classes in result.classes.items():
        if not classes:
            continue
        few, many = (pick(classes, key=classes.__getitem__) for pick in (min, max))
        sizes = f"from {classes[few]:,} ({few}) to {classes[many]:,} images ({many})"
        if classes[few] == classes[many]:
            sizes = f"{counted(classes[few], 'image')} each"
        yield f"{part} classes".strip(), f"{len(classes)}, {sizes}"
    machine = result.machine
    gpu = f"{machine.gpu} with {amount(machine.gpu_memory or 0)}" if machine.gpu else "no GPU in use"
    cores = counted(machine.cores, "core")
    yield "machine", f"{cores}, {amount(machine.memory)} of memory available, {gpu} ({machine.device})"
    if machine.disk is not None:
        yield "disk", f"{amount(machine.disk)} free in {machine.store}, the cache of decoded images"
    if result.images_per_second:
        yield "decoding", f"{result.images_per_second:,.0f} images/s with {counted(result.workers, 'thread')}"


def plan_lines(plan: Plan) -> list[str]:
    text = f"{plan.backbone} at {plan.image_size} px, {plan.steps:,} steps of {plan.batch_size} images"
    if plan.micro_batch not in (plan.batch_size, None):
        text += f" in micro-batches of {plan.micro_batch}"
    if plan.seconds is not None:
        speed = plan.steps * plan.batch_size / plan.seconds
        text += f" in {plan.precision}: about {duration(plan.seconds)} at {speed:,.0f} images/s"
        if plan.reading >= 1:
            text += f", plus {duration(plan.reading)} to read the images"
    where = "in memory" if plan.in_memory else "on disk"
    return [f"{text}; {amount(plan.pixels)} of pixels {where}", f"    {plan.command}"]


def demo(result: Demo) -> list[RenderableType]:
    return [*evaluated(result.evaluated), *finetuned(result.finetuned), f"Images and runs are in {result.folder}."]


def pushed(result: Pushed) -> list[RenderableType]:
    """Return the uploaded files; after a dry run, the files that would be uploaded and the model card."""
    files = [f"{size:>13,} bytes  {name}" for name, size in result.files.items()]
    if result.url is None:
        return [f"would be uploaded to {result.address}:", *files, "", *result.card.splitlines()]
    created = "created, " if result.created else ""
    return [*files, f"{result.url}: {created}now at {result.commit}", f"next, anywhere: selfie pull {result.address}"]


def pulled(result: Pulled) -> list[RenderableType]:
    run = quote(str(result.run))
    verb = f"selfie embed photo.jpg --from {run}" if result.verb == "pretrain" else f"selfie predict {run} photo.jpg"
    return [
        f"{result.run}: {result.address}, verified",
        f"next: {verb}",
        f"or:   selfie finetune --from {run} {FINETUNE}",
    ]


def similar(result: Similar, top: int) -> list[RenderableType]:
    """Return a table per query, or one table of the `top` largest groups of near-duplicates."""
    parts: list[RenderableType] = []
    for answer in result.answers or ():
        table = titled(f"Most similar to {answer.query}", ["rank", "cosine", "path"], left="path", overflow="fold")
        for match in answer.matches:
            table.add_row(str(match.rank), f"{match.cosine:.4f}", printable(match.path))
        parts.append(table)
    if result.groups is not None:
        title = f"Groups of near-duplicates in {result.file}"
        table = titled(title, ["group", "cosine", "same contents", "path"], left="path", overflow="fold")
        for number, group in enumerate(result.groups[:top], 1):
            for member in group[:MEMBERS]:
                copy = {True: "yes", None: "not known"}.get(member.copy, "") if member is not group[0] else ""
                table.add_row(str(number), f"{member.cosine:.4f}", copy, printable(member.path))
            if len(group) > MEMBERS:
                table.add_row(str(number), "", "", f"and {len(group) - MEMBERS:,} more")
            table.add_section()
        count, images = len(result.groups), sum(map(len, result.groups))
        note = f"{images:,} of {result.num_vectors:,} images are in {counted(count, 'group')}: cosine of at least "
        hashed = not any(member.copy is None for group in result.groups for member in group)
        note += f"{result.threshold:g}{', or the same contents' if hashed else ''}. Cosines are to the first of each."
        if count > top:
            note += f" The {top} largest groups are shown: --top shows more, --json all."
        parts += [table, note] if count else [note]
    return [Group(*parts)]


def predictions(result: Predictions) -> list[RenderableType]:
    table = titled("Predictions", ["path", "label", "probability"], left="path")
    for row in result.rows[:MEMBERS]:
        table.add_row(printable(row["path"]), printable(row["label"]), f"{row['probability']:.3f}")
    return [table, *([f"and {len(result.rows) - MEMBERS:,} more"] if len(result.rows) > MEMBERS else [])]


def as_html(parts: Sequence[RenderableType]) -> str:
    """Return lines and tables for a notebook."""
    plain: dict[str, Any] = {"highlight": False, "markup": False, "emoji": False}
    # Without force_jupyter=False, rich would show the text in a notebook, which would then show it a second time.
    console = Console(file=io.StringIO(), force_jupyter=False, record=True, width=120, **plain)
    console.print(*(printable(part) if isinstance(part, str) else part for part in parts), sep="\n", soft_wrap=True)
    return console.export_html(inline_styles=True, code_format='<pre style="line-height: normal">{code}</pre>')


RENDERERS: dict[str, Callable[[Any], Sequence[RenderableType]]] = {
    "pretrain": pretrained,
    "finetune": finetuned,
    "embed": lambda result: [f"{result.out}: {counted(result.images, 'vector')}"],
    "eval": evaluated,
    "demo": demo,
    "predict": lambda result: [f"{result.out}: {counted(result.images, 'prediction')}"],
    "curve": curve,
    "doctor": diagnosis,
    "report": lambda result: [f"{result.out}"],
    "export": lambda result: result.code.rstrip().split("\n"),
    "push": pushed,
    "pull": pulled,
    "vectors": lambda result: [f"{counted(len(result.paths), 'vector')} of {result.vectors.shape[1]:,} features"],
    "predictions": predictions,
}
