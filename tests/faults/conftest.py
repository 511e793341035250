"""Faults injected into real runs, at a moment or place drawn at random; docs/reliability.md shows how they ended.

`pytest -m slow tests/faults` injects each fault once, with `--long` as often as its marker says. `--results FILE`
appends one JSON line per fault. A test names its fault with the marker `fault`, and passes the outcome to `happened`.
"""

import functools
import json
import random
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from processes import COMMANDS, Undisturbed, run_undisturbed

ROWS: dict[str, dict[str, Any]] = {}
"""The outcomes of each fault: `lost` counts failed tests by their message."""
Record = Callable[[str, object], None]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--long", action="store_true", help="inject each fault as often as its marker says")
    parser.addoption("--results", type=Path, help="append one JSON line per fault to this file")


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
def chance(number: int, request: pytest.FixtureRequest, record_property: Record) -> random.Random:
    """The source of all random choices of one injection."""
    name = request.node.get_closest_marker("fault").args[0].format(**request.node.callspec.params)
    record_property("fault", name)
    return random.Random(f"{name} {number}")


@pytest.fixture
def happened(record_property: Record) -> Callable[[str], None]:
    """Record the outcome; equal outcomes are counted."""
    return functools.partial(record_property, "happened")


@pytest.fixture(scope="session")
def undisturbed(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Undisturbed]:
    """Return a function that gives the undisturbed run of a command, made once."""

    @functools.cache
    def make(what: str, processes: int = 1, suffix: str = "") -> Undisturbed:
        words = [images if word == "IMAGES" else word for word in COMMANDS[what]]
        return run_undisturbed(words, tmp_path_factory.mktemp("undisturbed") / f"run{suffix}", processes)

    return make


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    known = dict(report.user_properties)
    if report.when != "call" or report.skipped or "fault" not in known:
        return
    new = {"fault": known["fault"], "injected": 0, "happened": Counter(), "lost": Counter(), "seconds": 0.0}
    row = ROWS.setdefault(str(known["fault"]), new)
    row["injected"] += 1
    row["seconds"] = round(row["seconds"] + report.duration, 1)
    if report.passed:
        row["happened"][str(known["happened"])] += 1
    else:
        crash = getattr(report.longrepr, "reprcrash", None)
        row["lost"][crash.message.splitlines()[0] if crash else "failed"] += 1


def pytest_sessionfinish(session: pytest.Session) -> None:
    if ROWS and (results := session.config.getoption("results", None)):
        from benchmarks.measure import commit, machine, shown
        from selfie_cli.runs import versions

        about = {"command": shown(["pytest", *session.config.invocation_params.args]), "machine": machine()}
        about |= {"versions": versions(), "commit": commit(), "date": time.strftime("%Y-%m-%d")}
        with results.open("a", encoding="utf-8") as file:
            file.writelines(json.dumps(row | about) + "\n" for row in ROWS.values())
