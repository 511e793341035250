"""The sentence that people read: it must say what the numbers say, and no more."""

from pathlib import Path

import pytest

from selfie_cli.recipes.comparison import Finetuned, summarize


def compared(*arms: tuple[str, list[float]], fraction: float = 0.05) -> Finetuned:
    return summarize(
        run=Path("run"),
        dataset="photos",
        fraction=fraction,
        num_labels=40,
        num_test=100,
        num_classes=2,
        steps=10,
        seeds=list(range(len(arms[0][1]))),
        accuracies={name: (0.1, values) for name, values in arms},
    )


# Intervals by hand: mean -+ 4.302653 * std / sqrt(3).
@pytest.mark.parametrize(
    ("after", "sentence"),
    [
        (
            [0.60, 0.61, 0.62],
            "Selfie helped with 5 % of the labels: +11.0 points, 95 % interval +8.5 to +13.5, 3 seeds.",
        ),
        ([0.40, 0.39, 0.41], "Selfie hurt with 5 % of the labels: -10.0 points, 95 % interval -12.5 to -7.5, 3 seeds."),
        (
            [0.60, 0.40, 0.50],
            "No difference was found between selfie and no pretraining with 5 % of the labels: "
            "+0.0 points, 95 % interval -24.8 to +24.8, 3 seeds.",
        ),
    ],
)
def test_the_sentence_follows_the_interval(after, sentence):
    assert compared(("supervised", [0.50, 0.50, 0.50]), ("selfie", after)).sentence == sentence


def test_gains_are_paired_by_seed():
    result = compared(("supervised", [0.1, 0.5, 0.9]), ("selfie", [0.2, 0.6, 1.0]))
    assert result.gains == pytest.approx([0.1, 0.1, 0.1])
    assert result.gain_std == pytest.approx(0, abs=1e-12)
    assert result.arms[0].std == pytest.approx(0.4)
    assert "helped" in result.sentence


def test_one_seed_claims_nothing():
    result = compared(("supervised", [0.5]), ("selfie", [0.9]), fraction=1.0)
    assert result.gain_interval is None
    assert "in 1 seed;" in result.sentence
    assert "with all labels" in result.sentence
    assert "helped" not in result.sentence


def test_one_arm_is_compared_with_nothing():
    result = compared(("selfie", [0.5, 0.6, 0.7]))
    assert result.gains is None
    assert "nothing to compare" in result.sentence
