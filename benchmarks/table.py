"""The tables and the plot of docs/results/speed.md, from the raw lines in docs/results/speed/.

    python benchmarks/table.py [--check]

A table stands between `<!-- speed: NAME -->` and `<!-- /speed -->`, made from NAME.jsonl: the newest line of each row
and machine. The plot, of all rows beside a peer, stands between `<!-- plot -->` and `<!-- /plot -->`. With --check,
only say whether the page is what the lines would give.
"""

import argparse
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parents[1] / "docs" / "results"
MARKED = re.compile(r"(<!-- speed: ([\w-]+) -->\n).*?(<!-- /speed -->)", re.DOTALL)
PLOTTED = re.compile(r"(<!-- plot -->\n).*?(<!-- /plot -->)", re.DOTALL)
HEAD = "| | measured | share of the limit | limit | beside | notes |\n| --- | --- | --- | --- | --- | --- |"

Line = dict[str, Any]

# What else a line may hold, in words.
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
    """The newest line of each row and machine, in the order in which they first came."""
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
    """Where and how a line was measured, in a sentence."""
    machine, versions = line["machine"], line["versions"]
    features = f" ({', '.join(machine['features'])})" if machine["features"] else ""
    cores = f"{machine['cores']} core{'s' * (machine['cores'] > 1)}"
    gpu = f", {machine['gpus']} x {machine['gpu']}" if machine["gpu"] else ""
    return f"{machine['processor']}{features}, {cores}{gpu}; torch {versions['torch']}; commit `{line['commit']}`"


def table(lines: list[Line], name: str) -> str:
    """A Markdown table, and below it how and where its rows were measured."""
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
    """The rows that have a peer, of all tables of a page."""
    names = [found[2] for found in MARKED.finditer(page)]
    return [line for name in names for line in read(folder / f"{name}.jsonl") if "ratio" in line]


def plot(lines: list[Line], file: Path) -> None:
    """A bar for each row that has a peer, as long as we are faster, and a mark where the aim is."""
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--results", type=Path, default=RESULTS / "speed", help="Folder of the raw lines.")
    parser.add_argument("--page", type=Path, default=RESULTS / "speed.md")
    a = parser.parse_args()
    page = a.page.read_text(encoding="utf-8")
    made = render(page, a.results)
    if a.check:
        sys.exit(0 if made == page else f"{a.page.name} is not what the raw lines give: python benchmarks/table.py")
    a.page.write_text(made, encoding="utf-8")
    if lines := beside_others(page, a.results):
        plot(lines, a.page.with_suffix(".png"))


if __name__ == "__main__":
    main()
