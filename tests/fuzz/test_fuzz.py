"""Spoiled files, one after another, into one parser: it reads them or refuses them by an error of the program's own.

`pytest -m slow tests/fuzz` spoils a hundred files of each kind, `--cases 100000` so many. Each has a seed of its own;
`--first NUMBER --cases 1` repeats one.
"""

import random
import shutil
import signal
import tempfile
import traceback
import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
import targets
from running import bounded_memory

from selfie_cli.errors import SelfieError

SECONDS = 20  # that a case may take
MEMORY_DISK = Path("/dev/shm")


def too_long(number: int, frame: object) -> None:
    raise AssertionError(f"took {SECONDS} seconds")


@pytest.fixture(scope="module")
def valid_files(images: Path, pretrained: Path, finetuned: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("valid")
    targets.write_runs(folder / "runs", images, pretrained, finetuned)
    targets.write_tensors(folder / "tensors")
    targets.write_images(folder / "images")
    targets.write_vectors(folder / "vectors")
    return folder


@pytest.fixture
def copies(valid_files: Path) -> Iterator[Path]:
    """Copies of the valid files, where writing is fast, and a limit on time and memory."""
    before = signal.signal(signal.SIGALRM, too_long)
    place = MEMORY_DISK if MEMORY_DISK.is_dir() else None
    with tempfile.TemporaryDirectory(dir=place) as folder, warnings.catch_warnings(), bounded_memory():
        warnings.simplefilter("ignore")
        yield shutil.copytree(valid_files, Path(folder) / "files")
    signal.signal(signal.SIGALRM, before)


@pytest.mark.slow
@pytest.mark.parametrize("name", targets.TARGETS)
def test_spoiled_files_are_read_or_refused(name: str, copies: Path, request: pytest.FixtureRequest) -> None:
    first, count = (request.config.getoption(option, default) for option, default in (("first", 0), ("cases", 100)))
    pattern, spoil, read = targets.TARGETS[name]
    whole = {file: file.read_bytes() for file in sorted(copies.glob(pattern)) if file.is_file()}
    outcomes, failed = Counter[str](), dict[str, str]()
    for number in range(first, first + count):
        rng = random.Random(f"{name} {number}")
        file = [*whole][number % len(whole)]
        file.write_bytes(spoil(whole[file], rng))
        signal.setitimer(signal.ITIMER_REAL, SECONDS)
        try:
            read(file, rng)
            outcomes["read"] += 1
        except SelfieError:
            outcomes["refused"] += 1
        except Exception as error:
            at = traceback.extract_tb(error.__traceback__)[-1]
            failed.setdefault(f"{type(error)} {at.filename} {at.lineno}", f"case {number}: {traceback.format_exc()}")
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
        for each, content in whole.items():
            if each == file or not each.exists():
                each.write_bytes(content)
    print(f"{name}: {dict(outcomes)}")
    assert not failed, "\n".join(failed.values())
