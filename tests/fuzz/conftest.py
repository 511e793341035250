"""Options of the fuzzing, and the valid files that it spoils."""

from pathlib import Path

import pytest
from targets import write_files


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--cases", type=int, default=100, help="spoiled files per parser")
    parser.addoption("--first", type=int, default=0, help="number of the first one, to run them in slices")


@pytest.fixture(scope="session")
def valid_files(images: Path, pretrained: Path, finetuned: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("valid")
    write_files(folder, images, pretrained, finetuned)
    return folder
