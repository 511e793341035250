"""What all tests share: one thread (small networks are faster so, and runs repeat exactly), real data where it lies."""

import os
from pathlib import Path

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")


def real_data() -> Path | None:
    """Archives of real images: SELFIE_TEST_DATA, or shared/data beside the checkout."""
    there = Path(os.environ.get("SELFIE_TEST_DATA", Path(__file__).parents[2] / "shared" / "data"))
    return there if there.is_dir() else None


@pytest.fixture(scope="session")
def real_archives() -> Path:
    found = real_data()
    if found is None:
        pytest.skip("no real images: set SELFIE_TEST_DATA to a folder with cifar10-jpeg.tar.xz and clothing256.tar")
    return found
