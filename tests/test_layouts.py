"""Every case of the corpus of odd layouts does and says what it should."""

from pathlib import Path

import pytest
from layouts import CASES, Case, is_right, outcome


@pytest.mark.parametrize("case", CASES, ids=[case.title for case in CASES])
def test_layouts(case: Case, tmp_path: Path) -> None:
    code, text = outcome(case, tmp_path)
    assert is_right(case, code, text), (code, text)
