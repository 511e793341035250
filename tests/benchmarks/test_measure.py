import json
import sys
from pathlib import Path

import measure


def test_a_line_holds_median_share_and_circumstances_and_names_no_folder(tmp_path: Path) -> None:
    lines = measure.Lines("some", tmp_path)
    lines.add("rate", [10.0, 40.0, 20.0], "images/s", limit=80.0, bound="memory")
    lines.add("time", 0.5, "s", limit=0.1, bound="python")
    rate, time = (json.loads(line) for line in (tmp_path / "some.jsonl").read_text().splitlines())
    assert (rate["value"], rate["values"], rate["share"]) == (20.0, [10.0, 40.0, 20.0], 0.25)
    assert (time["value"], time["share"]) == (0.5, 0.2)
    assert {"command", "machine", "versions", "commit"} <= rate.keys()
    shown = measure.shown(["python", "benchmarks/embed.py", "photos", "--lightly", "/opt/there/bin/lightly-train"])
    assert shown == "python benchmarks/embed.py photos --lightly lightly-train"


def test_a_command_gives_its_output_and_the_memory_of_all_its_processes() -> None:
    held = "import time; held = b'x' * 60_000_000; time.sleep(1.5)"
    script = f"""
import subprocess, sys
children = [subprocess.Popen([sys.executable, "-c", {held!r}]) for _ in range(2)]
print(sum(child.wait() for child in children))
"""
    finished = measure.run([sys.executable, "-c", script])
    assert finished.stdout == "0\n"
    assert finished.seconds > 1.5
    if Path("/proc/self/smaps_rollup").exists():
        assert finished.peak_memory > 120_000_000
