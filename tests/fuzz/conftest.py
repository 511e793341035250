"""Options of the fuzzing, and the valid files that it spoils."""

from pathlib import Path

import pytest
import targets


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--cases", type=int, default=100, help="spoiled files per parser")
    parser.addoption("--first", type=int, default=0, help="number of the first one, to run them in slices")


@pytest.fixture(scope="session")
def valid_files(images: Path, pretrained: Path, finetuned: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("valid")
    targets.write_runs(folder / "runs", images, pretrained, finetuned)
    targets.write_tensors(folder / "tensors")
    targets.write_images(folder / "images")
    targets.write_vectors(folder / "vectors")
    return folder
