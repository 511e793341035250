"""The long form, by hand: python tests/fuzz/run.py --cases 100000 [--first N] [--target NAME]... [--case NUMBER]."""

import argparse
import faulthandler
import os
import resource
import sys
import time
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path[:0] = [str(Path(__file__).parents[2])]

from fuzzing import fuzz  # noqa: E402
from targets import TARGETS  # noqa: E402


def main() -> int:
    parser = argparse.ArgumentParser(description="Feed every parser with spoiled files.")
    parser.add_argument("--cases", type=int, default=100_000, help="for each parser")
    parser.add_argument("--first", type=int, default=0, help="the number of the first: so they can be run in slices")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--target", action="append", choices=TARGETS, help="all of them, if none is named")
    parser.add_argument("--case", type=int, help="only this one")
    parser.add_argument("--keep", type=Path, help="a folder for files that were not refused as they should be")
    given = parser.parse_args()
    faulthandler.enable()
    failures = 0
    print("| parser | cases | read | refused | other errors | seconds | peak memory, MB |\n" + "| --- " * 7 + "|")
    for name in given.target or TARGETS:
        begun = time.perf_counter()
        cases = range(given.first, given.first + given.cases) if given.case is None else [given.case]
        outcome = fuzz(name, TARGETS[name], cases, given.seed, keep=given.keep)
        failures += len(outcome.failed)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
        wrong = sum(count for count, _, _ in outcome.failed.values())
        row = (name, len(cases), outcome.read, outcome.refused, wrong, round(time.perf_counter() - begun), peak)
        print("| " + " | ".join(map(str, row)) + " |", flush=True)
        for key, (count, first, text) in outcome.failed.items():
            print(f"{count} x {key}, first in case {first}:\n{text}", file=sys.stderr, flush=True)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
