"""Sections made from the files of a run: verdict, data, results, training charts, details."""

import contextlib
import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from shlex import quote
from typing import Any

from selfie_cli.comparison.results import Curve, Finetuned, Point, in_percent, read_results
from selfie_cli.comparison.summary import curve_tables, evaluation_rows, explanations, finetuned_table
from selfie_cli.data.bad_files import BAD_FILES
from selfie_cli.evaluation.collapse import LEAST_RANK, LEAST_STD
from selfie_cli.files import read_json
from selfie_cli.recipes import called, cuts_patches, titled
from selfie_cli.reporting import page as pages
from selfie_cli.reporting.page import Line, Page, markup, percent
from selfie_cli.runs import Run
from selfie_cli.talk import counted

POINTS = 300  # most points per line; more are averaged
LISTED = 10  # most files in a list
LABELLED_DATA = ("finetune", "curve")  # verbs that compare networks, each in a cell

Values = dict[str, float]


def read_lines(file: Path) -> list[dict[str, Any]]:
    """Read JSON Lines up to the first damaged line, which a killed process may leave; [] if there is no file."""
    found = []
    with contextlib.suppress(FileNotFoundError):
        for line in file.read_text(encoding="utf-8").splitlines():
            try:
                found.append(json.loads(line))
            except (ValueError, RecursionError):
                break
    return found


def comparison_of(run: Run) -> Finetuned | Curve | None:
    """Return the results of a finetune or curve run; None if there are none yet."""
    file = run.path / "results.json"
    return read_results(file) if run.verb in LABELLED_DATA and file.is_file() else None


def heading_of(run: Run) -> str:
    """Return the heading: verdict, notes, and facts about the network, the data and the run."""
    metrics = read_lines(run.path / "metrics.jsonl")
    last: Values = {key: value for row in metrics for key, value in row.items()}
    verdict, notes = list[str](), list[str]()
    found, cell = comparison_of(run), None
    if run.verb == "pretrain":
        if not run.finished:
            step = metrics[-1]["step"] if metrics else 0
            notes.append(f"Not finished: step {step:,} of {run.derived.get('steps', 0):,}.")
        verdict, remarks = pretraining_verdict(last, run.derived)
        notes += remarks
    elif not run.finished:
        notes.append(f"Not finished. When it is: selfie report {quote(str(run))}")
    if found is not None:
        verdict = found.sentences or ["One arm: no comparison."]
        notes += [warning for point in found.points for warning in point.warnings]
    elif (run.path / "results.json").is_file():
        cell = read_json(run.path / "results.json")
        verdict = [f"{percent(cell['accuracy'])} of {cell['num_test']:,} images are right."]
    told = "left out" if run.config["asked"].get("exclude_seen") else "tested on all the same; see --exclude-seen"
    for key, where in (("seen_test_images", "Seen in pretraining"), ("like_training_images", "Like training images")):
        if count := run.config.get("data", {}).get(key):
            notes.append(f"{where}: {counted(count, 'test image')}, copies or near-duplicates ({told}).")
    origins = ", ".join(Path(each["path"]).name for each in run.config.get("from", []) if each["path"])
    shown = {"origins": origins, "last": last, "found": found, "cell": cell, "verdict": verdict, "notes": notes}
    return markup("sections.html.jinja", "heading", run, **shown)


def pretraining_verdict(last: Values, derived: dict[str, Any]) -> tuple[list[str], list[str]]:
    """Return sentences on the last logged values, and remarks on them."""
    sentences, notes = [], []
    method = str(derived.get("method"))
    if "pretext_accuracy" in last:
        right, chance = last["pretext_accuracy"], last["chance"]
        what = "right patch" if cuts_patches(derived[method]) else "other view"
        times = f": {right / chance:,.0f} times as often" if right > 1.5 * chance > 0 else ""
        sentences.append(
            f"It picks the {what} {percent(right)} of the time, where a guess is right {percent(chance)}{times}."
        )
    elif "loss" in last:
        sentences.append(f"{titled(method)} has no task that can be right or wrong.")
    if "feature_std" in last and "effective_rank" in last:
        std, rank = last["feature_std"], last["effective_rank"]
        well = std >= LEAST_STD and rank >= LEAST_RANK
        kept = "Images are kept apart, no collapse" if well else "The network has collapsed: images come out alike"
        notes.append(f"{kept} (spread {std:.2f}, healthy is 0.1 to 1; about {rank:.0f} directions in use).")
    notes.append("Whether pretraining helps is for labels to say: selfie finetune, or selfie curve.")
    return sentences, notes


def results(run: Run, page: Page) -> None:
    """Add the results of finetune or curve, and of every selfie eval of this run."""
    if (found := comparison_of(run)) is not None:
        title, drawn, lines = "With pretraining and without", None, list[Line]()
        if isinstance(found, Curve):
            title, (lines, how) = "Accuracy over the share of the labels", accuracy_lines(found.points)
            over = "Test accuracy over the share of the training labels (mean ± standard deviation)"
            drawn = pages.chart(page, over, lines, **how)
        tables = curve_tables(found) if isinstance(found, Curve) else [finetuned_table(found)]
        shown = {"drawn": drawn, "names": [line.name for line in lines], "tables": tables}
        page.add("results", title, "compared", **shown, notes=[*explanations(found), *found.notes])
    evaluated = [read_json(file) for file in sorted(run.path.glob("eval-*.json"))]
    if evaluated:
        rows = [
            [f"{each['dataset']} ({each['num_test']:,} test images): {what}", *values]
            for each in evaluated
            for what, *values in evaluation_rows(each)
        ]
        page.add("evaluated", "What its features are worth", "evaluated", rows=rows)


def accuracy_lines(points: list[Point]) -> tuple[list[Line], dict[str, Any]]:
    """Return a line per arm over the share of the labels, and the arguments with which `chart` draws them."""
    lines = []
    for i, arm in enumerate(points[0].arms):
        means = [(point.fraction, point.arms[i].mean) for point in points]
        lines.append(Line(arm.name, means, [point.arms[i].std or 0.0 for point in points]))
    return lines, {"show": percent, "show_x": in_percent, "x_ticks": [point.fraction for point in points], "log": True}


METRICS: dict[str, tuple[str, Callable[[float], str]]] = {
    "loss": ("Loss", "{:.3g}".format),
    "pretext_accuracy": ("Pretext accuracy", in_percent),
    "train_accuracy": ("Accuracy on its training images", in_percent),
    "cosine": ("Cosine between the views", "{:.3g}".format),
    "feature_std": ("Spread of the features", "{:.3g}".format),
    "effective_rank": ("Directions in use", "{:.3g}".format),
    "lr": ("Learning rate", "{:.3g}".format),
    "images_per_second": ("Images a second", "{:,.0f}".format),
    "data_wait": ("Waiting for data", in_percent),
}
"""Titles and formats of logged values; others, such as the terms of a method's loss, are charted under their names."""


def thinned(rows: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Return at most POINTS points, by averaging neighbours."""
    width = -(-len(rows) // POINTS)
    parts = [rows[start : start + width] for start in range(0, len(rows), width)]
    return [(part[-1][0], sum(y for _, y in part) / len(part)) for part in parts]


def training(run: Run, page: Page) -> None:
    """Add charts of logged values over steps; for finetune and curve, of each arm's first seed with the most labels."""
    logged, told = {called(run.derived): run.path}, "Over steps."
    if run.verb in LABELLED_DATA:
        if (found := comparison_of(run)) is not None:
            last = found.points[-1]
            cell = f"f{last.fraction:g}-s{last.seeds[0]}"
            logged = {arm.name: run.path / "cells" / f"{arm.name}-{cell}" for arm in last.arms}
            told = f"Over steps, with {last.share} of the labels, seed {last.seeds[0]}."
        else:
            logged = {each.name: each for each in sorted(run.path.glob("cells/*-f*-s[0-9]*"))[:4]}
    rows_of = {name: read_lines(folder / "metrics.jsonl") for name, folder in logged.items()}
    chances = [row["chance"] for rows in rows_of.values() for row in rows if "chance" in row]
    keys = dict.fromkeys([*METRICS, *(key for rows in rows_of.values() for row in rows for key in row)])
    charts = []
    for key in (each for each in keys if each not in ("step", "chance")):
        title, show = METRICS.get(key, (key.replace("_", " ").capitalize(), "{:.3g}".format))
        lines = []
        for name, rows in rows_of.items():
            values = [(row["step"], float(row[key])) for row in rows if math.isfinite(row.get(key, math.nan))]
            if len(values) > 1:
                lines.append(Line(name, thinned(values)))
        guide = (chances[-1], f"chance {percent(chances[-1])}") if key == "pretext_accuracy" and chances else None
        how: dict[str, Any] = {"show_x": "{:,.0f}".format, "at": "at step", "from_zero": key != "loss"}
        if lines:
            charts.append(pages.chart(page, title, lines, show=show, guide=guide, **how))
    if charts:
        page.add("training", "Training", "training", told=told, names=list(logged), charts=charts)


def details(run: Run, page: Page) -> None:
    """Add all that was asked, derived and recorded, and images that are unreadable or were seen in pretraining."""
    listed = []
    for file, title in (
        (BAD_FILES, "Unreadable images"),
        ("seen_test_images.jsonl", "Test images seen before"),
    ):
        lines = read_lines(run.path / file)
        rows = [
            (each["path"], each.get("reason") or f"{each['kind']}, in {each['run'] or 'the training part'}")
            for each in lines[:LISTED]
        ]
        listed.append((title, file, len(lines), rows))
    page.add("details", "Details", "details", config=run.config, listed=listed)
