import json
import subprocess
import sys
from pathlib import Path

import pytest
import table

LINE = {
    "unit": "images/s",
    "command": "python benchmarks/embed.py photos",
    "machine": {"processor": "a CPU", "features": ["avx2"], "cores": 2, "gpu": None, "gpus": 0},
    "versions": {"torch": "2.15.0"},
    "commit": "abc1234",
}
PAGE = "# Speed\n\n<!-- speed: embed -->\nold\n<!-- /speed -->\n\nEnd.\n"


LIMIT = {"limit": 80.0, "bound": "bf16 arithmetic", "share": 0.5}
PEER = {"peer": "LightlyTrain", "ratio": 4.0, "ratios": [4.0], "target": 2.5}
LINES = [
    {"row": "ours", "value": 12.0},
    {"row": "theirs", "value": 10.0},
    {"row": "ours", "value": 40.0, **LIMIT, **PEER, "lowest_cosine_to_fp32": 0.99991},
]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw" / "embed.jsonl").write_text("".join(json.dumps({**LINE, **line}) + "\n" for line in LINES))
    return tmp_path / "raw"


def test_a_table_shows_the_newest_line_of_each_row(folder: Path) -> None:
    made = table.render(PAGE, folder)
    shown = "| ours | 40 images/s | 50% | 80 images/s: bf16 arithmetic | 4.00 x LightlyTrain (aim 2.5) | cosine to fp32"
    assert shown in made
    assert "| theirs | 10 images/s |" in made
    assert "12 images/s" not in made
    assert "old" not in made
    assert "a CPU (avx2), 2 cores; torch 2.15.0; commit `abc1234`" in made
    assert made.endswith("<!-- /speed -->\n\nEnd.\n")
    assert table.render(made, folder) == made


def test_the_command_writes_page_and_plot_and_checks_them(folder: Path, tmp_path: Path) -> None:
    page = tmp_path / "speed.md"
    page.write_text(PAGE)
    command = [sys.executable, table.__file__, "--results", folder, "--page", page]
    stale = subprocess.run([*command, "--check"], capture_output=True, text=True)
    assert stale.returncode == 1
    assert "python benchmarks/table.py" in stale.stderr
    subprocess.run(command, check=True)
    assert "40 images/s" in page.read_text()
    assert page.with_suffix(".png").stat().st_size > 1000
    assert subprocess.run([*command, "--check"]).returncode == 0
    assert "Not measured yet." in table.render(PAGE, tmp_path)


def test_the_page_is_what_the_raw_lines_give() -> None:
    page = (table.RESULTS / "speed.md").read_text(encoding="utf-8")
    assert table.render(page, table.RESULTS / "speed") == page
