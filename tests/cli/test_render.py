"""Tables as people see them."""

import pytest

from selfie_cli.cli import render
from selfie_cli.commands.eval import Classified


@pytest.mark.parametrize(
    ("names", "shown"),
    [
        (["boat", "cat"], ["boat", "cat"]),
        (["defect_airplane", "defect_bird", "defect_crack"], ["airpla", "bird", "crack"]),
        (["scratches_a", "scratches_b", "dent"], ["1: scr", "2: scr", "3: den"]),
        (["broken", "broken_glass"], ["1: bro", "2: bro"]),
        (["[red]", "c\x1b[31m"], ["[red]", "c\\x1b["]),
    ],
)
def test_columns_of_the_confusion_table_are_told_apart(names: list[str], shown: list[str]) -> None:
    nothing = [[0] * len(names)] * len(names)
    found = Classified(classes=names, top1=0, top5=0, per_class=[0.0] * len(names), confusion=nothing)
    assert [column.header for column in render.confusion(found).columns][2:] == shown


def test_a_notebook_shows_a_result_once(monkeypatch: pytest.MonkeyPatch) -> None:
    def display(*_: object) -> None:
        raise AssertionError("rich has shown what the notebook will show")

    monkeypatch.setattr("rich.console._is_jupyter", lambda: True)
    monkeypatch.setattr("rich.jupyter.display", display)
    assert "a line" in render.as_html(["a line"])
