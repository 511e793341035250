"""Write the tables of docs/results, and the plot of speed.md, from raw lines.

    python benchmarks/table.py [--check]                            docs/results/speed.md, from docs/results/speed/
    python benchmarks/table.py --accuracy docs/results/NAME.jsonl   on stdout, from lines of benchmarks/evidence.py

The table between `<!-- speed: NAME -->` and `<!-- /speed -->` is made from the newest line of each row and machine in
NAME.jsonl. The plot between `<!-- plot -->` and `<!-- /plot -->` shows all rows that have a peer. With --check, only
report whether the page agrees with the lines.
"""

import argparse
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from selfie_cli.evaluation.metrics import paired_interval

RESULTS = Path(__file__).parents[1] / "docs" / "results"
MARKED = re.compile(r"(<!-- speed: ([\w-]+) -->\n).*?(<!-- /speed -->)", re.DOTALL)
PLOTTED = re.compile(r"(<!-- plot -->\n).*?(<!-- /plot -->)", re.DOTALL)
HEAD = "| | measured | share of the limit | limit | beside | notes |\n| --- | --- | --- | --- | --- | --- |"

Line = dict[str, Any]

# Other fields of a line, in words for the column of notes.
NOTES: dict[str, Callable[[Any], str]] = {
    "at_most": lambda value: f"aim {value:g} s",
    "seconds": lambda value: f"{sorted(value)[len(value) // 2]:.1f} s",
    "gflops": lambda value: f"{value:,.0f} GFLOP/s",
    "data_wait": lambda value: f"data wait {value:.1%}",
    "peak_memory_mb": lambda value: f"peak {value:,.0f} MB",
    "memory_of_peer": lambda value: f"{value:.2f} of its memory",
    "lowest_cosine_to_fp32": lambda value: f"cosine to fp32 at least {value:.5f}",
    "knn_accuracy": lambda value: f"kNN {value:.1%}",
    "times_the_first": lambda value: f"{value:.2f} times the first row's time an image",
    "seconds_around": lambda value: f"{value:.1f} s before and after the loop",
    "first_step_seconds": lambda value: f"first step {value:.1f} s",
    "aim_rate": lambda value: f"aim {value:,.0f} on an H200",
    "note": lambda value: " ".join(value.split())[:200],
}


def read(file: Path) -> list[Line]:
    """The newest line of each row and machine, in the order of their first lines."""
    newest: dict[tuple[str, str], Line] = {}
    for text in file.read_text(encoding="utf-8").splitlines() if file.exists() else []:
        line = json.loads(text)
        newest[line["row"], json.dumps(line["machine"], sort_keys=True)] = line
    return list(newest.values())


def number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def row(line: Line) -> str:
    share = f"{line['share']:.0%}" if "share" in line else ""
    limit = f"{number(line['limit'])} {line['unit']}: {line['bound']}" if "limit" in line else ""
    beside = f"{line['ratio']:.2f} x {line['peer']}" if "ratio" in line else ""
    if "target" in line:
        beside += f" (aim {line['target']:g})"
    notes = ", ".join(words(line[name]) for name, words in NOTES.items() if line.get(name) is not None)
    return f"| {line['row']} | {number(line['value'])} {line['unit']} | {share} | {limit} | {beside} | {notes} |"


def circumstances(line: Line) -> str:
    """Machine, versions and commit of a line, in words."""
    machine, versions = line["machine"], line["versions"]
    features = f" ({', '.join(machine['features'])})" if machine["features"] else ""
    cores = f"{machine['cores']} core{'s' * (machine['cores'] > 1)}"
    gpu = f", {machine['gpus']} x {machine['gpu']}" if machine["gpu"] else ""
    return f"{machine['processor']}{features}, {cores}{gpu}; torch {versions['torch']}; commit `{line['commit']}`"


def table(lines: list[Line], name: str) -> str:
    """A Markdown table, and below it the commands and machines of its rows."""
    if not lines:
        return "Not measured yet.\n"
    commands = list(dict.fromkeys(line["command"] for line in lines))
    places = list(dict.fromkeys(circumstances(line) for line in lines))
    below = [*(f"- `{command}`" for command in commands), *(f"- {place}" for place in places)]
    raw = f"- raw lines: [{name}.jsonl](speed/{name}.jsonl)"
    return "\n".join(["", HEAD, *map(row, lines), "", *below, raw, ""])


def render(page: str, folder: Path) -> str:
    image = "\n![How many times as fast as others](speed.png)\n\n" if beside_others(page, folder) else ""
    page = PLOTTED.sub(lambda found: found[1] + image + found[2], page)
    return MARKED.sub(lambda found: found[1] + table(read(folder / f"{found[2]}.jsonl"), found[2]) + found[3], page)


def beside_others(page: str, folder: Path) -> list[Line]:
    """Rows that have a peer, from all tables of a page."""
    names = [found[2] for found in MARKED.finditer(page)]
    return [line for name in names for line in read(folder / f"{name}.jsonl") if "ratio" in line]


def plot(lines: list[Line], file: Path) -> None:
    """Plot a bar per row, as long as its ratio to the peer, with a mark at the aim."""
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(9, 0.5 + 0.45 * len(lines)))
    places = range(len(lines))[::-1]
    axes.barh(places, [line["ratio"] for line in lines], color="#00897b")
    for place, line in zip(places, lines, strict=True):
        if "target" in line:
            axes.plot([line["target"]] * 2, [place - 0.4, place + 0.4], color="black")
        axes.text(line["ratio"], place, f" {line['ratio']:.1f}", va="center")
    axes.set_yticks(places, [f"{line['row']}\nbeside {line['peer']}" for line in lines], fontsize=7)
    axes.set_xscale("log")
    axes.axvline(1, color="grey", linewidth=0.8)
    axes.set_xlabel("times as fast as the other; a black line is the aim")
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(file, dpi=120, bbox_inches="tight")


def accuracies(lines: list[Line]) -> str:
    """Tables from evidence.py's lines: the pretrainings, each comparison, and accuracy over finetuning steps."""
    found: dict[tuple[str, str], Line] = {}
    for line in lines:  # keep the newest line of each run
        found[line["kind"], str(line["result"].get("run"))] = line["result"]
    of = {
        kind: [result for (each, _), result in found.items() if each == kind] for kind in ("pretrain", "eval", "curve")
    }
    points = [point for result in of["curve"] for point in result["points"]]
    checked = [point for point in points if any(arm.get("convergence") for arm in point["arms"])]
    lengths = sorted((point for point in points if point not in checked), key=lambda point: point["steps"])
    judged = {result["run"]: result for result in of["eval"]}
    parts = [pretrainings(of["pretrain"], judged)] if of["pretrain"] else []
    parts += [compared(point) for point in checked]
    return "\n\n".join([*parts, *([over_steps(lengths)] if lengths else [])]) + "\n"


def markdown(head: list[str], rows: list[list[str]]) -> str:
    return "\n".join("| " + " | ".join(row) + " |" for row in [head, ["---"] * len(head), *rows])


def percents(*values: float) -> list[str]:
    return [f"{100 * value:.1f}" for value in values]


def mean_of(found: Line) -> str:
    return f"{100 * found['mean']:.1f}" + (f" ± {100 * found['std']:.1f}" if found["std"] is not None else "")


def pretrainings(results: list[Line], judged: dict[str, Line]) -> str:
    rows = []
    for each in results:
        both = judged.get(each["run"])
        values = [both[which][kind] for which in ("trained", "untrained") for kind in ("knn", "linear")] if both else []
        rows.append([each["run"], f"{each['step']:,}", f"{each['images_per_second']:,.0f}", *percents(*values)])
    head = ["pretraining", "steps", "images/s", "kNN", "linear probe", "kNN, untrained", "linear probe, untrained"]
    return markdown(head, rows)


def compared(point: Line) -> str:
    """Table of one fraction of the labels: the gain of each arm over none, and Selfie's best recipe minus each arm."""
    gains = {gain["arm"]: gain for gain in point["comparisons"]}
    best = next((arm for arm in point["arms"] if arm["name"] in ("selfie-best", "selfie")), None)
    rows = []
    for arm in point["arms"]:
        gain, ahead = gains.get(arm["name"]), ""
        if best is not None and arm is not best:
            pairs = zip(best["accuracies"], arm["accuracies"], strict=True)
            ahead = interval([ours - theirs for ours, theirs in pairs])
        beside = "" if gain is None else interval(gain["gains"])
        length = (arm.get("convergence") or {}).get("words", "not checked")
        rows.append([arm["name"], arm.get("called", ""), f"{arm['lr']:g}", mean_of(arm), beside, ahead, length])
    head = ["arm", "pretraining", "learning rate", "mean ± std", "gain, 95 % interval", "Selfie best minus it"]
    about = f"{100 * point['fraction']:.3g} % of the labels ({point['num_labels']:,}), {point['steps']:,} steps, seeds "
    return f"{about}{', '.join(map(str, point['seeds']))}:\n\n" + markdown([*head, "half of the steps"], rows)


def interval(differences: list[float]) -> str:
    """Mean and 95 % interval in points, as in '+3.1 (+2.2 to +4.0)'; only the mean for fewer than three differences."""
    found = paired_interval(differences)
    mean = f"{100 * sum(differences) / len(differences):+.1f}"
    return mean if found is None else f"{mean} ({100 * found[0]:+.1f} to {100 * found[1]:+.1f})"


def over_steps(points: list[Line]) -> str:
    names = [arm["name"] for arm in points[0]["arms"]]
    rows = [[name, *(mean_of(point["arms"][i]) for point in points)] for i, name in enumerate(names)]
    about = f"Test accuracy over finetuning steps, {100 * points[0]['fraction']:.3g} % of the labels:"
    return f"{about}\n\n" + markdown(["steps", *(f"{point['steps']:,}" for point in points)], rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--results", type=Path, default=RESULTS / "speed", help="Folder of the raw lines.")
    parser.add_argument("--page", type=Path, default=RESULTS / "speed.md")
    parser.add_argument("--accuracy", type=Path, help="A file of evidence.py's lines.")
    a = parser.parse_args()
    if a.accuracy:
        print(accuracies([json.loads(line) for line in a.accuracy.read_text(encoding="utf-8").splitlines()]))
        return
    page = a.page.read_text(encoding="utf-8")
    made = render(page, a.results)
    if a.check:
        sys.exit(0 if made == page else f"{a.page.name} is not what the raw lines give: python benchmarks/table.py")
    a.page.write_text(made, encoding="utf-8")
    if lines := beside_others(page, a.results):
        plot(lines, a.page.with_suffix(".png"))


if __name__ == "__main__":
    main()
