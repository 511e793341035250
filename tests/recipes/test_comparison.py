"""The sentence that people read: it must say what the numbers say, and no more."""

from pathlib import Path

import pytest

from selfie_cli.recipes.comparison import Finetuned, Point, curve_sentence, point, spreads, summarize


def compared(*arms: tuple[str, list[float]], fraction: float = 0.05) -> Finetuned:
    *others, last = (name for name, _ in arms)
    found = point(
        fraction=fraction,
        num_labels=40,
        steps=10,
        seeds=list(range(len(arms[0][1]))),
        accuracies={name: (0.1, values) for name, values in arms},
        pairs=[(last, other) for other in reversed(others)],
    )
    return summarize(found, run=Path("run"), dataset="photos", num_test=100, num_classes=2)


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


def test_three_arms_are_two_comparisons_the_most_alike_first():
    result = compared(("supervised", [0.5] * 3), ("hybrid", [0.4] * 3), ("hybrid-selfie", [0.60, 0.61, 0.62]))
    assert [(gain.arm, gain.baseline) for gain in result.comparisons] == [
        ("hybrid-selfie", "hybrid"),
        ("hybrid-selfie", "supervised"),
    ]
    assert result.gains == result.comparisons[0].gains == pytest.approx([0.20, 0.21, 0.22])
    assert result.gain_interval == result.comparisons[0].interval
    assert result.sentence == (
        "Hybrid-selfie helped with 5 % of the labels over hybrid: +21.0 points, 95 % interval +18.5 to +23.5, 3 seeds. "
        "Hybrid-selfie helped with 5 % of the labels over supervised: +11.0 points, 95 % interval +8.5 to +13.5, "
        "3 seeds."
    )


def measured(fraction: float, **arms: list[float]) -> Point:
    return point(
        fraction=fraction,
        num_labels=40,
        steps=10,
        seeds=list(range(len(arms["supervised"]))),
        accuracies={name: (0.1, values) for name, values in arms.items()},
        pairs=[(name, "supervised") for name in arms if name != "supervised"],
    )


def test_a_curves_sentence_says_what_each_interval_says():
    points = [
        measured(0.01, supervised=[0.5], selfie=[0.6], byol=[0.5]),
        measured(0.05, supervised=[0.50, 0.50, 0.50], selfie=[0.60, 0.61, 0.62], byol=[0.40, 0.39, 0.41]),
        measured(1.0, supervised=[0.50, 0.50, 0.50], selfie=[0.60, 0.40, 0.50], byol=[0.50, 0.51, 0.52]),
    ]
    assert curve_sentence(points, 0) == (
        "Selfie: at 1 % +10.0 points in 1 seed, too few to say whether that is chance; "
        "at 5 % it helped (+11.0 points, 95 % interval +8.5 to +13.5, 3 seeds); "
        "at 100 % no difference was found (+0.0 points, 95 % interval -24.8 to +24.8, 3 seeds)."
    )
    said = curve_sentence(points, 1, "another network")
    assert said.startswith("BYOL (another network): at 1 % +0.0 points")
    assert "at 5 % it hurt (-10.0 points, 95 % interval -12.5 to -7.5, 3 seeds)" in said
    assert spreads(points)["selfie"] == [
        (0.6, None),
        (pytest.approx(0.61), pytest.approx(0.01)),
        (pytest.approx(0.5), pytest.approx(0.1)),
    ]
