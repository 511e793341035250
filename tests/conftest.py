"""What all tests share: one thread (small networks are faster so, and runs repeat exactly), real data where it lies."""

import os
from collections.abc import Iterator
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


@pytest.fixture
def compiler() -> Iterator[None]:
    """What torch.compile needs on a CPU, or the test is skipped; before and after, it knows of nothing compiled."""
    import torch
    from torch._inductor import cpp_builder
    from torch._inductor.exc import InvalidCxxCompiler

    try:
        cpp_builder.get_cpp_compiler()
    except InvalidCxxCompiler:
        pytest.skip("no C++ compiler")
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.fixture
def broken_compiler(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """No C++ compiler where torch.compile looks for one, and nothing compiled before."""
    import torch
    from torch._inductor import config
    from torch._inductor.utils import fresh_cache

    missing = str(tmp_path / "nowhere" / "g++")
    monkeypatch.setenv("CXX", missing)
    torch._dynamo.reset()
    with fresh_cache(), config.patch({"cpp.cxx": (missing,), "force_disable_caches": True}):
        yield
    torch._dynamo.reset()
