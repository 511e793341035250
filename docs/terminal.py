"""Write docs/figures/terminal.svg, the picture of a terminal in README.md: python docs/terminal.py [RESULTS.json [SVG]]

It shows what the command line shows of a real result, docs/figures/terminal.json: a results.json of `selfie
finetune` (docs/results/index.md says how its networks were trained). Nothing in the picture but the command is typed by
hand.
"""

import io
import re
import sys
from pathlib import Path

from rich.console import Console
from rich.text import Text

from selfie_cli.cli.render import finetuned
from selfie_cli.comparison.results import Finetuned, read_results

FIGURES = Path(__file__).with_name("figures")
COMMAND = "selfie finetune --from bundled --dataset cifar10 --fraction 0.01 --seeds 5 --no-check-length"


def picture(result: Finetuned) -> str:
    """SVG that asks no network for a font: rich's own names one on a server."""
    console = Console(record=True, width=100, file=io.StringIO(), highlight=False, markup=False)
    console.print(Text("$ ", style="green") + Text(COMMAND, style="bold"))
    console.print(*finetuned(result))
    svg = console.export_svg(title="selfie", unique_id="selfie")
    svg = re.sub(r"@font-face \{.*?\}\s*", "", svg, flags=re.DOTALL)
    return svg.replace("Fira Code, monospace", "ui-monospace, Menlo, Consolas, monospace")


def main(source: Path, target: Path) -> None:
    result = read_results(source)
    assert isinstance(result, Finetuned)
    target.write_text(picture(result), encoding="utf-8")


if __name__ == "__main__":
    given = [Path(each) for each in sys.argv[1:]]
    main(*(given + [FIGURES / "terminal.json", FIGURES / "terminal.svg"][len(given) :]))
