"""The floors of the house: imports go down, nothing goes round in circles, and help is printed without torch."""

import ast
import graphlib
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


def test_imports_go_down() -> None:
    wrong = [
        f"{importer} imports {target}"
        for importer, targets in import_graph().items()
        for target in sorted(targets)
        if not goes_down(importer, target)
    ]
    assert wrong == []


def test_no_import_goes_round_in_a_circle() -> None:
    list(graphlib.TopologicalSorter(import_graph()).static_order())  # raises CycleError, which names the circle
