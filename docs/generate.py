"""Write docs/reference.md and the types of the Python interface from the option classes, the map in CONTRIBUTING.md
from the docstrings of packages and modules, and the table in docs/reliability.md from the results of tests/faults.

With --check, only report whether the files are up to date.
"""

import ast
import html
import inspect
import json
import re
import sys
import textwrap
from importlib import import_module
from pathlib import Path
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from typer.models import ArgumentInfo

from selfie_cli.cli.options import parameters_of
from selfie_cli.commands import VERBS, function_name
from selfie_cli.option import Option, options_of

REFERENCE = Path(__file__).with_name("reference.md")
CONTRIBUTING = REFERENCE.parents[1] / "CONTRIBUTING.md"
PACKAGE = REFERENCE.parents[1] / "selfie_cli"
STUB = PACKAGE / "__init__.pyi"
MAP = re.compile(r"(?<=<!-- map: written by docs/generate.py -->\n).*?(?=<!-- /map -->)", re.DOTALL)
RELIABILITY = REFERENCE.with_name("reliability.md")
FAULTS = REFERENCE.with_name("results") / "reliability.jsonl"
TABLE = re.compile(r"(?<=<!-- table: written by docs/generate.py -->\n).*?(?=<!-- /table -->)", re.DOTALL)
FLOORS = (
    "cli commands",
    "reporting",
    "comparison pretraining",
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
| 1 | an error that you can fix: the message says how |
| 2 | wrong usage |
| 129, 130, 143 | stopped by a closed terminal, Ctrl-C or SIGTERM; a training run has saved its state |

`SELFIE_DEBUG=1` shows the traceback of every error.
"""


def reference() -> str:
    """Return the page, verbs in the order of the help."""
    lines = [INTRODUCTION]
    for verb, kind in VERBS.items():
        usage = [f"selfie {verb} [OPTIONS]"]
        panels: dict[str, list[str]] = {}
        for parameter in parameters_of(kind):
            info = parameter.annotation.__metadata__[0]
            repeated = isinstance(parameter.default, list)
            if isinstance(info, ArgumentInfo):
                usage.append(f"[{info.metavar}]" + ("..." if repeated else ""))
                panels.setdefault("Arguments", []).append(f"| `{info.metavar}` | | {meaning(parameter)} |")
            else:
                flags = ", ".join(f"`{flag}`" for flag in info.default.split("/"))  # where typer keeps it in Annotated
                row = f"| {flags} | {shown(parameter.default)} | {meaning(parameter)} |"
                panels.setdefault(info.rich_help_panel or "Options", []).append(row)
        lines += [f"## selfie {verb}", "", f"{kind.__doc__}", "", "```", " ".join(usage), "```", ""]
        for panel, rows in panels.items():
            lines += [f"**{panel}**", "", "| option | default | |", "| --- | --- | --- |", *rows, ""]
    return "\n".join(lines)


def meaning(parameter: inspect.Parameter) -> str:
    """Return the help of an option, and its values if they are a closed list."""
    hint, info = get_args(parameter.annotation)
    text = html.escape(info.help.replace("\\[", "["), quote=False)
    for part in (hint, *get_args(hint)):
        if get_origin(part) is Literal:
            return f"{text} One of {', '.join(f'`{value}`' for value in get_args(part))}."
    return text


def shown(default: Any) -> str:
    if isinstance(default, bool):
        return "yes" if default else "no"
    return "" if default in (None, []) else f"`{default}`"


def house() -> str:
    """Return the map: packages from the top floor down with their docstrings and modules, then single modules."""
    lines = [f"- **`api`** {summary(PACKAGE / 'api.py')}"]
    for folders in FLOORS:
        for folder in folders.split():
            files = sorted((PACKAGE / folder).glob("[!_]*.py"))
            modules = ", ".join(f"`{file.stem}`" for file in files)
            lines.append(f"- **`{folder}/`** {summary(PACKAGE / folder / '__init__.py')} *Modules:* {modules}.")
    lines += ["", "Below them, modules that any package may import:", ""]
    below = sorted(file for file in PACKAGE.glob("[!_]*.py") if file.stem != "api")
    lines += [f"- `{file.stem}`: {summary(file)}" for file in below]
    return "\n".join([*lines, ""])


def summary(file: Path) -> str:
    """Return a package's docstring, or the first sentence of a module's, in one line."""
    text = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or ""
    told = text if file.stem == "__init__" else re.split(r"\n\n|(?<=[.]) (?=[A-Z])", text)[0]
    return " ".join(told.split())


STUB_BEGINNING = """# Types of the Python interface, for editors and type checkers.
# Written by docs/generate.py. Do not edit.
# fmt: off
from collections.abc import Callable, Iterable
from os import PathLike
from typing import Literal, overload

from PIL import Image
from torch import Tensor, nn

"""
STUB_NAMES = """
Name = str | PathLike[str]
Names = Name | Iterable[Name]
Numbers = str | float | Iterable[float]
__version__: str

def load(run: Name) -> tuple[nn.Module, Callable[[Image.Image], Tensor]]: ...
"""
IN_MEMORY = {"embed": "Vectors", "predict": "Predictions"}
"""Results without `out`."""


def stub() -> str:
    """Return the signature of each verb's function, with the types that it accepts."""
    imports = {
        "selfie_cli.errors": {"SelfieError as SelfieError"},
        "selfie_cli.inference.outputs": {*IN_MEMORY.values()},
    }
    functions = []
    for verb, kind in VERBS.items():
        function = getattr(import_module(f"selfie_cli.commands.{verb}"), function_name(verb))
        result = get_type_hints(function)["return"]
        imports.setdefault(result.__module__, set()).add(result.__name__)
        words = {one.name: f"{accepted(one)} = {one.field.default!r}" for one in options_of(kind) if one.name != "json"}
        num_arguments = sum(one.field.metadata["argument"] for one in options_of(kind))
        if verb in IN_MEMORY:
            without = signature(function, words | {"out": "None = None"}, num_arguments, IN_MEMORY[verb])
            functions += ["@overload\n", f"{without} ...\n", "@overload\n"]
            words["out"] = "Name"
        functions.append(f'{signature(function, words, num_arguments, result.__name__)}\n    """{kind.__doc__}"""\n')
    ours = [f"from {module} import {', '.join(sorted(names))}\n" for module, names in sorted(imports.items())]
    return "".join([STUB_BEGINNING, *ours, STUB_NAMES, *functions])


def signature(function: Any, words: dict[str, str], num_arguments: int, result: str) -> str:
    """Return the beginning of a definition; the parameters after the first `num_arguments` are keywords."""
    parameters = [f"{name}: {text}" for name, text in words.items()]
    parameters.insert(num_arguments, "*")
    lines = textwrap.fill(", ".join(parameters), 120, initial_indent="    ", subsequent_indent="    ")
    return f"def {function.__name__}(\n{lines},\n) -> {result}:"


def accepted(one: Option) -> str:
    """Return the types that a keyword takes, as `selfie_cli.api.as_given` reads them."""
    if get_origin(one.hint) is tuple:
        return "Names"
    if one.hint is str and re.fullmatch(r"[\d.,]+", one.field.default):
        return "Numbers"
    parts = get_args(one.hint) if get_origin(one.hint) in (Union, UnionType) else (one.hint,)
    return " | ".join(
        f"Literal[{', '.join(map(repr, get_args(part)))}]"
        if get_origin(part) is Literal
        else {"str": "Name", "NoneType": "None"}.get(part.__name__, part.__name__)
        for part in parts
    )


def faults() -> str:
    """Return a row per fault, from the last line about it, and the machines of the rows."""
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
        STUB: stub(),
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
