"""Time small commands as whole processes, with warm files.

    python benchmarks/startup.py PHOTO [--lightly LIGHTLY_TRAIN]

LIGHTLY_TRAIN is the `lightly-train` command of an environment that has it. The limit is Python's own start for commands
that need no torch, and `import torch` for commands that do.
"""

import os
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import lightly
import measure

SCRIPT = Path(sys.executable).with_name("selfie")  # the command of users; without it, selfie runs as a module
COMPLETION = {"_SELFIE_COMPLETE": "complete_bash", "COMP_WORDS": "selfie pre", "COMP_CWORD": "1"}


def seconds(command: Sequence[str | Path], **environment: str) -> float:
    """Wall time of a command in seconds, without the memory monitor of `measure.run`."""
    begun = time.perf_counter()
    subprocess.run(command, capture_output=True, check=True, env={**os.environ, **environment})
    return time.perf_counter() - begun


def main() -> None:
    parser = measure.parser(__doc__)
    parser.add_argument("photo")
    parser.add_argument("--lightly", type=Path)
    a = parser.parse_args()
    lines = measure.Lines("startup", a.results)
    selfie: list[str | Path] = [SCRIPT] if SCRIPT.exists() else [*measure.SELFIE]
    contestants = {
        "python": lambda: seconds([sys.executable, "-c", "pass"]),
        "import torch": lambda: seconds([sys.executable, "-c", "import torch"]),
        "selfie --help": lambda: seconds([*selfie, "--help"]),
        "completion of a word": lambda: seconds(selfie, **COMPLETION),
        "selfie embed photo.jpg": lambda: seconds([*selfie, "embed", a.photo, "--from", "bundled"]),
    }
    if a.lightly:
        contestants["lightly-train --help"] = lambda: seconds([a.lightly, "--help"], **lightly.QUIET)
    found = measure.turns(a.rounds, contestants)
    python, torch = (statistics.median(found[name]) for name in ("python", "import torch"))
    help_times = found["selfie --help"]
    peer = {}
    if a.lightly:
        peer = measure.against(
            "LightlyTrain's --help",
            [1 / each for each in help_times],
            [1 / each for each in found["lightly-train --help"]],
        )
    lines.add("selfie --help", help_times, "s", limit=python, bound="python -c pass", at_most=0.3, **peer)
    lines.add(
        "completion of a word", found["completion of a word"], "s", limit=python, bound="python -c pass", at_most=0.15
    )
    lines.add(
        "selfie embed photo.jpg", found["selfie embed photo.jpg"], "s", limit=torch, bound="import torch", at_most=3.0
    )
    if a.lightly:
        lines.add("lightly-train --help", found["lightly-train --help"], "s", limit=python, bound="python -c pass")


if __name__ == "__main__":
    main()
