"""Faults that are put into real runs of the program, and how what came of them is counted."""

import random
import time
import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any


class Lost(Exception):
    """Something was lost, altered or let in, or nobody was told: says what."""


def never() -> None:
    """Nothing stands in the way of injecting a fault here."""


@dataclass(frozen=True, kw_only=True)
class Fault:
    """What is done to the program, and how often.

    inject: given an empty folder and a source of chance, does it once, looks at the outcome, and says in a few words
        what happened, the same words for the same kind of outcome: they are counted. Raises Lost.
    times: how often in the long form; in the tests, once.
    unfit: says why it cannot be injected on this machine, if so.
    """

    name: str
    inject: Callable[[Path, random.Random], str]
    times: int = 1
    unfit: Callable[[], str | None] = never


def inject(fault: Fault, times: int, folder: Path, tell: Callable[[str], None] = lambda line: None) -> dict[str, Any]:
    """Put it in `times` times; returns a line of the results: what happened, and what was lost, how often each."""
    happened: Counter[str] = Counter()
    lost: Counter[str] = Counter()
    begun = time.perf_counter()
    for number in range(times):
        here = folder / f"{number:04d}"
        here.mkdir(parents=True)
        try:
            happened[fault.inject(here, random.Random(f"{fault.name} {number}"))] += 1
        except KeyboardInterrupt:
            tell(f"{fault.name}: stopped after {number}")
            break
        except Exception as error:  # a bug, in the program or in the injection, is no reason to stop counting
            lost[str(error) if isinstance(error, Lost) else f"{type(error).__name__}: {error}"] += 1
            tell(f"{fault.name}, number {number}: LOST {traceback.format_exc()}")
    return {
        "fault": fault.name,
        "injected": happened.total() + lost.total(),
        "happened": dict(happened.most_common()),
        "lost": dict(lost.most_common()),
        "seconds": round(time.perf_counter() - begun, 1),
    }
