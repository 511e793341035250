"""Write docs/reference.md from the option classes, the map in CONTRIBUTING.md from what modules say of themselves, and
the table in docs/reliability.md from the lines of tests/faults/run.py.

With --check, only say whether the files are what they would be.
"""

import ast
import dataclasses
import html
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

from selfie_cli import config
from selfie_cli.cli.app import app
from selfie_cli.option import flag_of, negated

REFERENCE = Path(__file__).with_name("reference.md")
OPTIONS: dict[str, type] = {
    "pretrain": config.PretrainOptions,
    "finetune": config.FinetuneOptions,
    "embed": config.EmbedOptions,
    "eval": config.EvalOptions,
    "demo": config.DemoOptions,
    "predict": config.PredictOptions,
    "curve": config.CurveOptions,
    "similar": config.SimilarOptions,
    "doctor": config.DoctorOptions,
    "report": config.ReportOptions,
    "export": config.ExportOptions,
    "push": config.PushOptions,
    "pull": config.PullOptions,
}
CONTRIBUTING = REFERENCE.parents[1] / "CONTRIBUTING.md"
PACKAGE = REFERENCE.parents[1] / "selfie_cli"
MAP = re.compile(r"(?<=<!-- map: written by docs/generate.py -->\n).*?(?=<!-- /map -->)", re.DOTALL)
RELIABILITY = REFERENCE.with_name("reliability.md")
FAULTS = REFERENCE.with_name("results") / "reliability.jsonl"
TABLE = re.compile(r"(?<=<!-- table: written by docs/generate.py -->\n).*?(?=<!-- /table -->)", re.DOTALL)
FLOORS = (
    "cli commands",
    "comparison pretraining reporting",
    "inference",
    "methods",
    "training evaluation",
    "models data",
)
INTRODUCTION = """# Command line

<!-- Written by docs/generate.py from selfie_cli/config.py. Do not edit. -->

`selfie VERB --help` prints the same. Results go to stdout, everything else to stderr.

| exit code | meaning |
| --- | --- |
| 0 | done |
| 1 | something that you can mend: the message says how |
| 2 | wrong usage |
| 129, 130, 143 | stopped by a closed terminal, Ctrl-C or SIGTERM; a training run has saved its state |

`SELFIE_DEBUG=1` shows the traceback of every error.
"""


def reference() -> str:
    """The page, verbs in the order of the help. KeyError for a verb that OPTIONS lacks."""
    lines = [INTRODUCTION]
    for command in app.registered_commands:
        assert command.name is not None
        assert command.callback is not None
        kind = OPTIONS[command.name]
        lines += [f"## selfie {command.name}", "", f"{command.callback.__doc__}", ""]
        lines += ["```", usage(command.name, kind), "```", ""]
        for panel, rows in panels(kind).items():
            lines += [f"**{panel}**", "", "| option | default | |", "| --- | --- | --- |", *rows, ""]
    return "\n".join(lines)


def usage(verb: str, kind: type) -> str:
    shown = [f"selfie {verb} [OPTIONS]"]
    for field in dataclasses.fields(kind):
        if field.metadata.get("argument"):
            dots = "..." if isinstance(field.default, tuple) else ""
            shown.append(f"[{field.name.upper()}]{dots}")
    return " ".join(shown)


def panels(kind: type) -> dict[str, list[str]]:
    """The rows of each group of options, arguments and ungrouped options first."""
    grouped: dict[str, list[str]] = {"Arguments": [], "Options": []}
    for panel, row in rows_of(kind, None):
        grouped.setdefault(panel, []).append(row)
    return {panel: rows for panel, rows in grouped.items() if rows}


def rows_of(kind: type, method: str | None) -> Iterator[tuple[str, str]]:
    hints = get_type_hints(kind)
    for field in dataclasses.fields(kind):
        hint = hints[field.name]
        if isinstance(hint, type) and dataclasses.is_dataclass(hint):
            yield from rows_of(hint, f"Only with --method {field.name}")
        elif field.metadata["argument"]:
            yield "Arguments", f"| `{field.name.upper()}` | | {html.escape(field.metadata['help'], quote=False)} |"
        else:
            flag = flag_of(field.name)
            two_sided = bool in (hint, *get_args(hint)) and field.default is not False
            name = f"`{flag}`, `{negated(field)}`" if two_sided else f"`{flag}`"
            meaning = " ".join([html.escape(field.metadata["help"], quote=False), *choices(hint)])
            yield field.metadata["panel"] or method or "Options", f"| {name} | {shown(field.default)} | {meaning} |"


def choices(hint: Any) -> list[str]:
    """A sentence that lists the allowed values, if they are a closed list."""
    for part in (hint, *get_args(hint)):
        if get_origin(part) is Literal:
            return [f"One of {', '.join(f'`{value}`' for value in get_args(part))}."]
    return []


def shown(default: Any) -> str:
    if isinstance(default, bool):
        return "yes" if default else "no"
    return "" if default in (None, ()) else f"`{default}`"


def house() -> str:
    """The packages, from the top floor down, as their `__init__` tells of them, with their modules; then the ground."""
    lines = []
    for folders in FLOORS:
        for folder in folders.split():
            files = sorted((PACKAGE / folder).glob("[!_]*.py"))
            modules = ", ".join(f"`{file.stem}`" for file in files)
            lines.append(f"- **`{folder}/`** {told(PACKAGE / folder / '__init__.py')} *Modules:* {modules}.")
    lines += ["", "Below them, modules that any package may import:", ""]
    lines += [f"- `{file.stem}`: {told(file)}" for file in sorted(PACKAGE.glob("[!_]*.py"))]
    return "\n".join([*lines, ""])


def told(file: Path) -> str:
    """A module's docstring, in one line; of a module on the ground its first sentence."""
    text = " ".join((ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or "").split())
    return text if file.stem == "__init__" else re.split(r"(?<=[.]) (?=[A-Z])", text)[0]


def faults() -> str:
    """A row for each fault, of its last line, and what the rows were measured on."""
    lines = {line["fault"]: line for line in map(json.loads, FAULTS.read_text(encoding="utf-8").splitlines())}
    rows, machines = [], []
    for name, line in lines.items():
        happened = "; ".join(f"{count:,} x {what}" for what, count in line["happened"].items())
        what_lost = "; ".join(f"**{count:,} x {what}**" for what, count in line["lost"].items()) or "nothing"
        rows.append(f"| {name} | {line['injected']:,} | {happened} | {what_lost} |".replace("<", "&lt;"))
        machine, versions = line["machine"], line["versions"]
        cores = f"{machine['cores']} core{'s' * (machine['cores'] > 1)}"
        machines.append(
            f"- `{line['command']}`: {machine['processor']}, {cores}, Python {versions['python']}, "
            f"torch {versions['torch']}, commit `{line['commit']}`, {line['date']}"
        )
    injected = sum(line["injected"] for line in lines.values())
    lost = sum(sum(line["lost"].values()) for line in lines.values())
    total = f"{injected:,} injections of {len(lines)} faults; something was lost in {lost:,}."
    head = ["| fault | injected | what happened | lost |", "| --- | --- | --- | --- |"]
    return "\n".join([total, "", *head, *rows, "", "Made by:", "", *dict.fromkeys(machines)])


def main() -> None:
    contributing = CONTRIBUTING.read_text(encoding="utf-8")
    reliability = RELIABILITY.read_text(encoding="utf-8")
    pages = {
        REFERENCE: reference(),
        CONTRIBUTING: MAP.sub(lambda _: f"\n{house()}\n", contributing),
        RELIABILITY: TABLE.sub(lambda _: f"\n{faults()}\n\n", reliability),
    }
    for file, page in pages.items():
        if "--check" not in sys.argv[1:]:
            file.write_text(page, encoding="utf-8")
        elif not file.exists() or file.read_text(encoding="utf-8") != page:
            sys.exit(f"{file.name} is stale: run python docs/generate.py")


if __name__ == "__main__":
    main()
