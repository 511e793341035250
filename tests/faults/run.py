"""The long form, by hand: python tests/faults/run.py [--fault PART_OF_A_NAME]... [--times N] [--out FILE.jsonl].

docs/reliability.md shows what it found (--out docs/results/reliability.jsonl); the tests inject each fault once.
"""

import argparse
import json
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
TESTS = Path(__file__).parents[1]
sys.path[:0] = [str(TESTS), str(TESTS.parent), str(TESTS.parent / "benchmarks")]

from catalogue import FAULTS  # noqa: E402
from injection import inject  # noqa: E402
from measure import commit, machine, shown  # noqa: E402

from selfie_cli.runs import versions  # noqa: E402


def main() -> int:
    parser = argparse.ArgumentParser(description="Put faults into real runs, and count what comes of them.")
    parser.add_argument("--fault", action="append", help="only those with this in their names")
    parser.add_argument("--times", type=int, help="how often each; unset: as often as each says")
    parser.add_argument("--out", type=Path, help="a file that gets a line a fault")
    given = parser.parse_args()
    chosen = [one for one in FAULTS if not given.fault or any(part in one.name for part in given.fault)]
    here = {
        "command": shown(["python", "tests/faults/run.py", *sys.argv[1:]]),
        "machine": machine(),
        "versions": versions(),
        "commit": commit(),
        "date": time.strftime("%Y-%m-%d"),
    }
    lost = 0
    for fault in chosen:
        if reason := fault.unfit():
            print(f"{fault.name}: left out, {reason}", flush=True)
            continue
        folder = Path(tempfile.mkdtemp(prefix="faults-"))
        try:
            times = given.times or fault.times
            line = inject(fault, times, folder, tell=lambda line: print(line, flush=True))
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        lost += sum(line["lost"].values())
        print(json.dumps(line), flush=True)
        if given.out:
            with given.out.open("a") as file:
                file.write(json.dumps(line | here) + "\n")
    return 1 if lost else 0


if __name__ == "__main__":
    sys.exit(main())
