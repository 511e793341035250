"""Faults injected into real runs, at a moment or place drawn at random; docs/reliability.md shows how they ended.

`pytest -m slow tests/faults` injects each fault once, with `--long` as often as its marker says. A test names its fault
with the marker `fault`.
"""

import functools
import random
import sys
from pathlib import Path

import pytest
from processes import COMMANDS, Reference, Undisturbed, run_undisturbed


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--long", action="store_true", help="inject each fault as often as its marker says")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "fault(name, times=1): a fault, and how often --long injects it")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if fault := metafunc.definition.get_closest_marker("fault"):
        long = metafunc.config.getoption("long", False)
        metafunc.parametrize("number", range(fault.kwargs.get("times", 1) if long else 1))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.get_closest_marker("fault"):
            item.add_marker(pytest.mark.slow)
            item.add_marker(pytest.mark.skipif(sys.platform != "linux", reason="faults need /proc and resource limits"))


@pytest.fixture
def chance(number: int, request: pytest.FixtureRequest) -> random.Random:
    """The source of all random choices of one injection."""
    name = request.node.get_closest_marker("fault").args[0].format(**request.node.callspec.params)
    return random.Random(f"{name} {number}")


@pytest.fixture(scope="session")
def undisturbed(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Reference:
    """Return a function that gives the undisturbed run of a command, made once."""

    @functools.cache
    def make(what: str, processes: int = 1, suffix: str = "") -> Undisturbed:
        words = [images if word == "IMAGES" else word for word in COMMANDS[what]]
        return run_undisturbed(words, tmp_path_factory.mktemp("undisturbed") / f"run{suffix}", processes)

    return make
