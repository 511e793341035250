"""Options of the fuzzing."""

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--cases", type=int, default=100, help="spoiled files per parser")
    parser.addoption("--first", type=int, default=0, help="number of the first one, to run them in slices")
