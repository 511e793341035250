"""Spoiled files, one after another, into one parser: each case by a seed of its own, so that it can be had again."""

import contextlib
import random
import resource
import shutil
import signal
import tempfile
import traceback
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from targets import Target

from selfie_cli.errors import SelfieError

MEMORY_DISK = Path("/dev/shm")
SECONDS = 20
"""That a case may take."""
MEMORY = 2 * 2**30
"""Bytes that a case may ask for beyond what the process has."""


@dataclass
class Outcome:
    """How many cases were `read` to the end or `refused` by an error of the program's own; `failed` by any other."""

    read: int = 0
    refused: int = 0
    failed: dict[str, tuple[int, int, str]] = field(default_factory=dict)
    """where and what -> how often, the first case, its traceback."""


@contextlib.contextmanager
def bounded_memory() -> Iterator[None]:
    """Within, asking for much more memory raises MemoryError, which is no error of the program's own."""
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    pages = int(Path("/proc/self/statm").read_text().split()[0]) if Path("/proc/self/statm").exists() else None
    if pages is not None:
        resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + MEMORY, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def too_long(number: int, frame: object) -> None:
    raise AssertionError(f"took {SECONDS} seconds")


def fuzz(name: str, target: Target, cases: Iterable[int], seed: int = 0, *, keep: Path | None = None) -> Outcome:
    """`keep` is a folder for the first file of each failure."""
    outcome = Outcome()
    before = signal.signal(signal.SIGALRM, too_long)
    place = MEMORY_DISK if MEMORY_DISK.is_dir() else None
    with tempfile.TemporaryDirectory(dir=place) as folder, warnings.catch_warnings(), bounded_memory():
        warnings.simplefilter("ignore")
        files = target.make(Path(folder))
        whole = {file: file.read_bytes() for file in files}
        for number in cases:
            rng = random.Random(f"{name} {seed} {number}")
            file = files[number % len(files)]
            file.write_bytes(target.spoil(whole[file], rng))
            signal.setitimer(signal.ITIMER_REAL, SECONDS)
            try:
                target.read(file, rng)
                outcome.read += 1
            except SelfieError:
                outcome.refused += 1
            except Exception as error:
                last = traceback.extract_tb(error.__traceback__)[-1]
                ours = [each for each in traceback.extract_tb(error.__traceback__) if "selfie_cli" in each.filename]
                at = ours[-1] if ours else last
                key = f"{type(error).__name__} at {Path(at.filename).name}:{at.lineno} in {at.name}"
                count, first, text = outcome.failed.get(key, (0, number, traceback.format_exc()))
                outcome.failed[key] = count + 1, first, text
                if keep is not None and not count:
                    keep.mkdir(parents=True, exist_ok=True)
                    shutil.copyfile(file, keep / f"{name}-{number}-{file.name}")
            finally:
                signal.setitimer(signal.ITIMER_REAL, 0)
            for each, content in whole.items():
                if each == file or not each.exists():
                    each.write_bytes(content)
    signal.signal(signal.SIGALRM, before)
    return outcome
