"""Tables as people see them, and the plot of characters, whose marks stand where the numbers say."""

import pytest

from selfie_cli.cli import render
from selfie_cli.commands.eval import Classified
from selfie_cli.comparison.results import ArmResult, Point


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


def point(fraction: float, **arms: tuple[float, float | None]) -> Point:
    found = [ArmResult(name=name, lr=0.1, accuracies=[], mean=mean, std=std) for name, (mean, std) in arms.items()]
    return Point(fraction=fraction, num_labels=1, steps=1, seeds=[0], arms=found, comparisons=[])


def test_the_plot_is_to_scale_and_one_seed_has_no_spread() -> None:
    points = [
        point(0.05, supervised=(0.30, 0.02), selfie=(0.40, 0.05)),
        point(1.0, supervised=(0.50, 0.01), selfie=(0.52, None)),
    ]
    assert [line.rstrip() for line in render.text_plot(points).splitlines()] == [
        "   5 % supervised |      |---o---|                                             |",
        "       selfie     |                    |---------o--------|                    |",
        "                  |                                                            |",
        " 100 % supervised |                                               |-o-|        |",
        "       selfie     |                                                     o      |",
        "                  +------------------------------------------------------------+",
        "                   25                           40                           55",
        "                        test accuracy in %: o mean, |--| one standard deviation",
    ]


@pytest.mark.parametrize("value", [(0.0, 0.0), (1.0, 0.0), (0.5, None), (0.02, 0.4), (0.5, 1e-9)])
def test_plots_of_odd_numbers_and_long_names(value: tuple[float, float | None]) -> None:
    text = render.text_plot([point(0.5, **{"a-very-long-name-of-a-folder-with-a-run-in-it": value})])
    assert max(map(len, text.splitlines())) <= 80
    assert "o" in text
