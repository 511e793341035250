"""The floors of the house: imports go down, nothing goes round in circles, and help is printed without torch."""

import ast
import graphlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import selfie_cli

ROOT = Path(selfie_cli.__file__).parent
# From the ground up. A part is a module or package right below selfie_cli; "" is selfie_cli/__init__.py itself.
FLOORS = (
    (
        "",
        "errors",
        "talk",
        "files",
        "option",
        "recipes",
        "config",
        "weights",
        "hub",
        "schema",
        "foreign",
        "runs",
        "signals",
    ),
    ("models", "data"),
    ("training", "evaluation"),
    ("methods",),
    ("inference",),
    ("comparison", "pretraining"),
    ("reporting",),
    ("commands",),
    ("cli",),
    ("__main__", "api"),
)
FLOOR_OF = {part: floor for floor, parts in enumerate(FLOORS) for part in parts}


def modules() -> dict[str, Path]:
    found = {}
    for path in sorted(ROOT.rglob("*.py")):
        parts = path.relative_to(ROOT.parent).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imported(tree: ast.AST, known: set[str]) -> Iterator[str]:
    """The modules of this package that the code imports, those inside functions and under TYPE_CHECKING included."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in known)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"line {node.lineno}: imports are written in full"
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                if inner in known:
                    yield inner
                elif node.module in known:
                    yield node.module


def import_graph() -> dict[str, set[str]]:
    files = modules()
    return {name: set(imported(ast.parse(path.read_text("utf-8")), set(files))) for name, path in files.items()}


def part_of(module: str) -> str:
    return module.removeprefix("selfie_cli").lstrip(".").partition(".")[0]


def goes_down(importer: str, target: str) -> bool:
    above, below = part_of(importer), part_of(target)
    ground = FLOOR_OF[above] == FLOOR_OF[below] == 0
    return above == below or ground or FLOOR_OF[above] > FLOOR_OF[below]


def test_every_module_has_a_floor() -> None:
    graph = import_graph()
    assert len(graph) > 20
    assert {part_of(module) for module in graph} <= FLOOR_OF.keys()


def test_imports_are_found_wherever_they_stand() -> None:
    code = """
import selfie_cli.errors
from selfie_cli import config, __version__
from selfie_cli.files import write_json
def late():
    from selfie_cli.data import sources
    import torch
"""
    known = {"selfie_cli", *(f"selfie_cli.{name}" for name in ("errors", "config", "files", "data", "data.sources"))}
    assert set(imported(ast.parse(code), known)) == known - {"selfie_cli.data"}


def test_imports_go_down() -> None:
    wrong = [
        f"{importer} imports {target}"
        for importer, targets in import_graph().items()
        for target in sorted(targets)
        if not goes_down(importer, target)
    ]
    assert wrong == []


def test_neighbours_on_a_floor_do_not_import_each_other() -> None:
    assert goes_down("selfie_cli.training.hardware", "selfie_cli.data.pixels")
    assert goes_down("selfie_cli.runs", "selfie_cli.files")
    assert not goes_down("selfie_cli.training.loop", "selfie_cli.evaluation.knn")
    assert not goes_down("selfie_cli.models.resnet", "selfie_cli.data.augment")
    assert not goes_down("selfie_cli.config", "selfie_cli.data.images")


def test_no_import_goes_round_in_a_circle() -> None:
    list(graphlib.TopologicalSorter(import_graph()).static_order())  # raises CycleError, which names the circle


def test_the_command_line_is_imported_without_torch() -> None:
    code = "import sys, selfie_cli.cli.app; print({'torch', 'torchvision'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "set()"
