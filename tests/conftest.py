"""Fixtures of all tests. Tests use one thread: small networks are faster so, and runs repeat exactly."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hub_server import Hub

os.environ.setdefault("OMP_NUM_THREADS", "1")
HUB = Hub()
# huggingface_hub reads these when it is imported.
os.environ |= {"HF_ENDPOINT": HUB.url, "HF_HUB_DISABLE_XET": "1"}
os.environ.pop("HF_HUB_OFFLINE", None)

SLOW_FIXTURES = {"browser", "compiler", "broken_compiler"}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if SLOW_FIXTURES.intersection(getattr(item, "fixturenames", ())):
            item.add_marker(pytest.mark.slow)


@pytest.fixture(scope="session", autouse=True)
def _brief() -> Iterator[None]:
    """Commands in this process time one step before they train, not a dozen, and choose a probe's strength on two parts
    of the labels, not five. Tests of these numbers put them back."""
    from selfie_cli.evaluation import linear
    from selfie_cli.training import hardware

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hardware, "seconds_a_step", hardware.timed)
        patch.setattr(linear, "NUM_FOLDS", 2)
        yield


@pytest.fixture(scope="session")
def real_archives() -> Path:
    """The folder of real images: SELFIE_TEST_DATA, or shared/data beside the checkout."""
    there = Path(os.environ.get("SELFIE_TEST_DATA", Path(__file__).parents[2] / "shared" / "data"))
    if not there.is_dir():
        pytest.skip("no real images: set SELFIE_TEST_DATA to a folder with clothing256.tar")
    return there


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    """An empty Hub on this machine, with an empty cache and no token. Nobody waits before asking again."""
    from huggingface_hub import constants

    HUB.clear()
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    for name, place in {"HF_HUB_CACHE": "hub", "HF_TOKEN_PATH": "token", "HF_STORED_TOKENS_PATH": "stored"}.items():
        monkeypatch.setattr(constants, name, str(tmp_path / "hf" / place))
    return HUB


@pytest.fixture
def compiler() -> Iterator[None]:
    """Skip the test without a C++ compiler, which torch.compile needs; start and end with nothing compiled."""
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
    """Let torch.compile find no C++ compiler, and nothing compiled before."""
    import torch
    from torch._inductor import config
    from torch._inductor.utils import fresh_cache

    missing = str(tmp_path / "nowhere" / "g++")
    monkeypatch.setenv("CXX", missing)
    torch._dynamo.reset()
    with fresh_cache(), config.patch({"cpp.cxx": (missing,), "force_disable_caches": True}):
        yield
    torch._dynamo.reset()


@pytest.fixture(scope="module")  # not session: while it lives, an event loop runs in this thread
def browser() -> Iterator[Any]:
    """Chromium without a screen. Without Chromium the test is skipped; with SELFIE_REQUIRE_BROWSER=1 it fails."""
    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if chromium is None:
        missing = "no Chromium on PATH"
        pytest.fail(missing) if os.environ.get("SELFIE_REQUIRE_BROWSER") == "1" else pytest.skip(missing)
    from playwright.sync_api import sync_playwright

    flags = ("background-networking", "component-update", "sync", "gpu")
    args = ["--no-sandbox", "--no-first-run", *(f"--disable-{flag}" for flag in flags)]
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=chromium, args=args)
        yield started
        started.close()


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run each test in an empty folder."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from running import draw_folder

    return draw_folder(tmp_path_factory.mktemp("drawn") / "images")


@pytest.fixture(scope="session")
def pretrained(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run by the paper's recipe."""
    from running import SMALL, selfie

    run = tmp_path_factory.mktemp("runs") / "pretrained"
    recipe = ("--recipe", "paper", "--steps", 20, "--warmup-steps", 2, "--lr", 0.05)
    selfie("pretrain", images, *SMALL, *recipe, "--out", run)
    return run


@pytest.fixture(scope="session")
def finetuned(images: Path, pretrained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two arms, three seeds, half of the labels."""
    from running import selfie

    run = tmp_path_factory.mktemp("runs") / "finetuned"
    selfie(
        *("finetune", "--dataset", images, "--from", pretrained, "--fraction", 0.5, "--seeds", 3, "--seed", 4),
        *("--steps", 6, "--warmup-steps", 2, "--lr", 0.03, "--batch-size", 16, "--no-check-length"),
        *("--precision", "fp32", "--out", run),
    )
    return run
