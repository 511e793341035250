"""The benchmarks are scripts that import each other by name: their folder is where Python looks first."""

import sys
from pathlib import Path

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))
