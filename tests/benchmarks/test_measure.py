import json
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
