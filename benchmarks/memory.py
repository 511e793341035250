"""Measure whether the memory of a long run stays flat.

    python benchmarks/memory.py IMAGES [--epochs 3] [--count 20000]

Pretrain on all images below IMAGES for some epochs, embed --count of them, and read the memory of the processes five
times per second. This gives a peak for each epoch, and for each tenth of the vectors except the first, in which the
program starts up. `value` says by how many percent the highest peak exceeds the lowest.

Only memory that the system cannot drop and read again is counted. The files of libraries are not: some 100 MB of them
are first read when a process ends and the libraries clean up.
"""

import json
import os
import subprocess
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import measure


def peaks(command: list[str | Path], done: Callable[[], float], parts: int, out: Path) -> dict[int, int]:
    """Peak memory in bytes in each part of a command; `done` returns its progress, from 0 to 1."""
    found: dict[int, int] = defaultdict(int)
    with out.open("w") as stdout:
        child = subprocess.Popen(
            [str(word) for word in command],
            stdout=stdout,
            env={**os.environ, "PYTHONPATH": str(measure.ROOT)},
            start_new_session=True,
        )
        while child.poll() is None:
            part = min(int(done() * parts), parts - 1)
            found[part] = max(found[part], measure.memory_of_session(child.pid, "Anon", "Shmem"))
            time.sleep(0.2)
    if child.returncode:
        raise SystemExit(f"{measure.shown([str(word) for word in command])} failed ({child.returncode})")
    return found


def share_of_steps(run: Path) -> float:
    """The share of a training that its log covers, 0 to 1."""
    try:
        steps = json.loads((run / "config.json").read_text())["derived"]["steps"]
        with (run / "metrics.jsonl").open() as log:
            return float(max((json.loads(line)["step"] for line in log), default=0) / steps)
    except (OSError, ValueError):  # no log yet, or a line that is half written
        return 0.0


def main() -> None:
    parser = measure.parser(__doc__)
    parser.add_argument("images", type=Path)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--count", type=int, default=20_000)
    parser.add_argument("--backbone", default="resnetv2_18_w16")
    options = parser.parse_args()
    lines = measure.Lines("memory", options.results)
    options.work.mkdir(parents=True, exist_ok=True)
    run = options.work / "memory"
    asked = ["--backbone", options.backbone, "--epochs", str(options.epochs), "--no-report"]
    pretrain = [*measure.SELFIE, "pretrain", options.images, *asked, "--out", run, "--overwrite"]
    found = peaks(pretrain, lambda: share_of_steps(run), options.epochs, options.work / "memory.txt")
    add(lines, f"pretrain, {options.epochs} epochs of {options.images.name}", found)

    few = measure.linked(options.images, options.work / f"few-{options.count}", options.count)
    rows = options.work / "memory.jsonl"
    embed = [*measure.SELFIE, "embed", few, "--from", "bundled"]
    whole = options.count * 1e3  # estimated bytes of JSON, until the length of the first row is known

    def share_of_rows() -> float:
        nonlocal whole
        with rows.open("rb") as file:
            if whole == options.count * 1e3 and (row := file.readline()).endswith(b"\n"):
                whole = float(options.count * len(row))
        return rows.stat().st_size / whole

    found = peaks(embed, share_of_rows, 10, rows)
    del found[0]
    add(lines, f"embed, {options.count:,} images", found)


def add(lines: measure.Lines, row: str, found: dict[int, int]) -> None:
    megabytes = {part + 1: round(most / 1e6, 1) for part, most in sorted(found.items())}
    apart = max(found.values()) / min(found.values()) - 1
    lines.add(row, 100 * apart, "%", peaks_mb=megabytes, note=f"{'flat within' if apart <= 0.05 else 'MORE THAN'} 5 %")


if __name__ == "__main__":
    main()
