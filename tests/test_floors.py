"""The floors of the house: imports go down, and nothing goes round in circles."""

import ast
import graphlib
from collections.abc import Iterator
from pathlib import Path

import selfie_cli

ROOT = Path(selfie_cli.__file__).parent
# From the ground up. A part is a module or package right below selfie_cli; the ground has selfie_cli/__init__.py too.
FLOORS = """
errors talk files option recipes config weights hub schema foreign runs signals
models data
training evaluation
methods
inference
comparison pretraining
reporting
commands
cli
__main__ api
"""
FLOOR_OF = {"": 0} | {part: floor for floor, parts in enumerate(FLOORS.split("\n")[1:]) for part in parts.split()}


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
    files = {}
    for path in sorted(ROOT.rglob("*.py")):
        parts = path.relative_to(ROOT.parent).with_suffix("").parts
        files[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return {name: set(imported(ast.parse(path.read_text("utf-8")), set(files))) for name, path in files.items()}


def part_of(module: str) -> str:
    return module.removeprefix("selfie_cli").lstrip(".").partition(".")[0]


def goes_down(importer: str, target: str) -> bool:
    above, below = part_of(importer), part_of(target)
    ground = FLOOR_OF[above] == FLOOR_OF[below] == 0
    return above == below or ground or FLOOR_OF[above] > FLOOR_OF[below]


def test_imports_go_down_from_floor_to_floor_and_never_in_a_circle() -> None:
    graph = import_graph()
    assert len(graph) > 20
    assert {part_of(module) for module in graph} <= FLOOR_OF.keys()
    pairs = [(importer, target) for importer, targets in graph.items() for target in sorted(targets)]
    assert [f"{importer} imports {target}" for importer, target in pairs if not goes_down(importer, target)] == []
    list(graphlib.TopologicalSorter(graph).static_order())  # raises CycleError, which names the circle
