import json
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


def test_the_command_writes_the_newest_line_of_each_row_and_a_plot_and_checks_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("raw").mkdir()
    Path("raw/embed.jsonl").write_text("".join(json.dumps({**LINE, **line}) + "\n" for line in LINES))
    page = tmp_path / "speed.md"
    page.write_text(PAGE)
    command = ["table.py", "--results", "raw", "--page", str(page)]
    monkeypatch.setattr("sys.argv", [*command, "--check"])
    with pytest.raises(SystemExit, match=r"python benchmarks/table\.py"):
        table.main()
    monkeypatch.setattr("sys.argv", command)
    table.main()
    made = page.read_text()
    shown = "| ours | 40 images/s | 50% | 80 images/s: bf16 arithmetic | 4.00 x LightlyTrain (aim 2.5) | cosine to fp32"
    assert shown in made
    assert "| theirs | 10 images/s |" in made
    assert "12 images/s" not in made
    assert "a CPU (avx2), 2 cores; torch 2.15.0; commit `abc1234`" in made
    assert page.with_suffix(".png").stat().st_size > 1000
    assert table.render(made, Path("raw")) == made
    assert "Not measured yet." in table.render(PAGE, tmp_path)


def test_the_page_is_what_the_raw_lines_give() -> None:
    page = (table.RESULTS / "speed.md").read_text(encoding="utf-8")
    assert table.render(page, table.RESULTS / "speed") == page
