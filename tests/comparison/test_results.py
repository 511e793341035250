"""The sentence that people read: it must say what the numbers say, and no more."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from selfie_cli.comparison.compare import point_at
from selfie_cli.comparison.labels import Share
from selfie_cli.comparison.results import FLAT, RISING, UNKNOWN, ArmResult, Convergence, Finetuned, Point
from selfie_cli.comparison.summary import curve_sentence, explanations, finetuned_table, notes_of, summarize

CONDITIONS = "10 steps per network; learning rate 0.1, not searched; whether more steps would help was not checked."


def point(fraction: float, arms: list[ArmResult], pairs: list[tuple[str, str]], **known: Any) -> Point:
    subsets = {seed: np.arange(40) for seed in range(len(arms[0].accuracies))}
    return point_at(Share(fraction=fraction, subsets=subsets), arms, pairs, **known)


def told(found: Point) -> Finetuned:
    return summarize(found, run=Path("run"), dataset="photos", num_test=100, num_classes=2, left_out={})


def compared(*arms: tuple[str, list[float]], fraction: float = 0.05) -> Finetuned:
    *others, last = (name for name, _ in arms)
    results = [ArmResult.of(name, values, lr=0.1) for name, values in arms]
    return told(point(fraction, results, [(last, other) for other in reversed(others)], steps=10, rates=[0.1]))


# Intervals by hand: mean -+ 4.302653 * std / sqrt(3).
HELPED = "+11.0 points, 95 % interval +8.5 to +13.5, 3 seeds"
HURT = "-10.0 points, 95 % interval -12.5 to -7.5, 3 seeds"
NOTHING = "+0.0 points, 95 % interval -24.8 to +24.8, 3 seeds"
BASE, BETTER, WORSE, WIDE = [0.5] * 3, [0.60, 0.61, 0.62], [0.40, 0.39, 0.41], [0.60, 0.40, 0.50]


@pytest.mark.parametrize(
    ("after", "sentence"),
    [
        (BETTER, f"Selfie helped with 5 % of the labels: {HELPED}."),
        (WORSE, f"Selfie hurt with 5 % of the labels: {HURT}."),
        (WIDE, f"No difference was found between selfie and no pretraining with 5 % of the labels: {NOTHING}."),
    ],
)
def test_the_sentence_follows_the_interval(after: list[float], sentence: str) -> None:
    assert compared(("supervised", BASE), ("selfie", after)).sentence == f"{sentence} {CONDITIONS}"


def test_gains_are_paired_by_seed_and_one_seed_or_arm_claims_nothing() -> None:
    result = compared(("supervised", [0.1, 0.5, 0.9]), ("selfie", [0.2, 0.6, 1.0]))
    assert result.gains == pytest.approx([0.1, 0.1, 0.1])
    assert result.gain_std == pytest.approx(0, abs=1e-12)
    assert result.arms[0].std == pytest.approx(0.4)
    assert "helped" in result.sentence
    result = compared(("supervised", [0.5]), ("selfie", [0.9]), fraction=1.0)
    assert result.gain_interval is None
    assert "in 1 seed;" in result.sentence
    assert "with all labels" in result.sentence
    assert "helped" not in result.sentence
    alone = compared(("selfie", [0.5, 0.6, 0.7]))
    assert alone.gains is None
    assert "nothing to compare" in alone.sentence


def test_three_arms_are_two_comparisons_the_most_alike_first() -> None:
    result = compared(("supervised", BASE), ("hybrid", [0.4] * 3), ("hybrid-selfie", BETTER))
    first, second = result.comparisons
    assert {first.arm, second.arm} == {"hybrid-selfie"}
    assert (first.baseline, second.baseline) == ("hybrid", "supervised")
    assert result.gains == first.gains == pytest.approx([0.20, 0.21, 0.22])
    assert result.gain_interval == first.interval
    assert result.sentence == (
        "Hybrid-selfie helped with 5 % of the labels over hybrid: +21.0 points, 95 % interval +18.5 to +23.5, 3 seeds. "
        f"Hybrid-selfie helped with 5 % of the labels over supervised: {HELPED}. {CONDITIONS}"
    )


def test_learning_rates_are_named_by_arm_where_they_differ() -> None:
    arms = [ArmResult.of("supervised", BASE, lr=0.3), ArmResult.of("selfie", BETTER, lr=0.1)]
    result = told(point(0.05, arms, [("selfie", "supervised")], steps=10))
    assert "; learning rate 0.3 for supervised, 0.1 for selfie, not searched; " in result.sentence
    fewer = point(0.01, [arms[0], ArmResult.of("selfie", BETTER, lr=0.03)], [("selfie", "supervised")], steps=10)
    assert "; learning rate 0.3 for supervised, 0.03 to 0.1 for selfie, " in curve_sentence([fewer, result], 0)


def test_the_table_has_a_column_per_seed_where_they_fit() -> None:
    result = compared(("supervised", [0.5, 0.6]), ("selfie", [0.7, 0.6]))
    table = finetuned_table(result)
    assert table.columns == ["", "mean ± std", "learning rate", "seed 0", "seed 1"]
    assert table.rows[1:] == [
        ["selfie", "65.0 ± 7.1", "0.1", "70.0", "60.0"],
        ["paired gain", "+10.0 ± 14.1", "", "+20.0", "+0.0"],
    ]
    assert finetuned_table(result, most_seeds=1).rows[0] == ["supervised", "55.0 ± 7.1", "0.1"]


def test_frozen_features_are_named_and_compared_with_the_untrained_network() -> None:
    arms = [
        ArmResult.of("untrained", BASE, lr=None, strengths=[1.0, 1.0, 1.0]),
        ArmResult.of("selfie", BETTER, lr=None, strengths=[0.1, 0.001, 0.01]),
    ]
    frozen = point(0.05, arms, [("selfie", "untrained")])
    result = told(frozen)
    assert result.sentence.startswith(
        f"Selfie (frozen features) helped with 5 % of the labels over untrained: {HELPED}. A linear classifier on"
    )
    assert curve_sentence([frozen], 0).startswith(
        f"Selfie (frozen features, over untrained): at 5 % it helped ({HELPED}). A linear classifier on frozen"
    )
    table = finetuned_table(result)
    assert table.columns[2] == "L2 strength"
    assert [row[2] for row in table.rows] == ["1", "0.001 to 0.1", ""]
    assert "without --frozen compares" in " ".join(explanations(result))


def test_a_curves_sentence_says_what_each_interval_says() -> None:
    def measured(fraction: float, **arms: list[float]) -> Point:
        pairs = [(name, "supervised") for name in arms if name != "supervised"]
        return point(fraction, [ArmResult.of(*arm, lr=0.1) for arm in arms.items()], pairs, steps=10, rates=[0.1])

    points = [
        measured(0.01, supervised=[0.5], selfie=[0.6], byol=[0.5]),
        measured(0.05, supervised=BASE, selfie=BETTER, byol=WORSE),
        measured(1.0, supervised=BASE, selfie=WIDE, byol=[0.50, 0.51, 0.52]),
    ]
    assert curve_sentence(points, 0) == (
        "Selfie: at 1 % +10.0 points in 1 seed, too few to say whether that is chance; "
        f"at 5 % it helped ({HELPED}); at 100 % no difference was found ({NOTHING}). {CONDITIONS}"
    )
    said = curve_sentence(points, 1, "another network")
    assert said.startswith("BYOL (another network): at 1 % +0.0 points")
    assert f"at 5 % it hurt ({HURT})" in said


def right(count: int, total: int) -> torch.Tensor:
    """The first `count` of `total` held-out labels are found."""
    return torch.arange(total) < count


@pytest.mark.parametrize(
    ("half", "whole", "total", "verdict"),
    [
        (300, 309, 500, RISING),  # 1.8 points, standard error 0.6
        (300, 302, 500, FLAT),  # 0.4 points: less than half a point
        (300, 290, 500, FLAT),  # it fell
        *((30, 60, 60, RISING), (20, 20, 60, FLAT)),
        *((4, 8, 10, UNKNOWN), (1, 1, 1, UNKNOWN), (0, 0, 0, UNKNOWN)),  # 40 points, but of ten labels
    ],
)
def test_an_arm_converged_if_the_second_half_of_its_steps_brought_nothing(
    half: int, whole: int, total: int, verdict: str
) -> None:
    found = Convergence.of(2000, right(half, total), right(whole, total))
    assert found.verdict == verdict
    assert found.words.startswith(verdict)
    if total > 1:
        assert (found.half, found.whole) == pytest.approx((half / total, whole / total))
        assert f"after 1,000 steps, {whole / total:.1%} after 2,000" in found.words


def test_the_error_of_a_gain_is_paired():
    """Answers that come and go cancel in the mean, not in its error."""
    one = torch.arange(100) % 2 == 0
    assert Convergence.of(100, one, one).error == 0
    swapped = Convergence.of(100, one, ~one)
    assert swapped.error == pytest.approx((100 / 99 / 100) ** 0.5)  # differences of -1 and 1
    assert swapped.verdict == UNKNOWN  # ten points could hide in it


def checked(fraction: float, half: int, whole: int) -> Point:
    found = {"supervised": Convergence.of(2000, right(300, 500), right(300, 500))}
    found["selfie"] = Convergence.of(2000, right(half, 500), right(whole, 500))
    arms = [
        ArmResult.of(name, [0.5, 0.51, 0.6], lr=0.1, called=f"called {name}", convergence=convergence)
        for name, convergence in found.items()
    ]
    return point(fraction, arms, [("selfie", "supervised")], steps=2000, rates=[0.03, 0.1])


def test_what_has_not_converged_is_said_loudly_and_what_was_searched():
    found = checked(0.05, 300, 309)
    assert found.warnings == [
        "not converged: selfie still gained +1.8 points from 1,000 to 2,000 steps; the gain may be one of speed. "
        "Train longer: selfie finetune --steps 4000"
    ]
    assert found.notes[:2] == ["supervised: called supervised.", "selfie: called selfie."]
    assert "selfie still rising: 60.0% after 1,000 steps, 61.8% after 2,000 (+1.8 ± 0.6 points on 500" in found.notes[2]
    assert told(found).sentence.endswith(
        "2,000 steps per network; each arm's learning rate chosen among 0.03, 0.1 on held-out labels; "
        "not converged: selfie still rose, so the gain may be one of speed."
    )
    flat = checked(0.2, 300, 300)
    assert flat.warnings == []
    assert "no arm was found to gain from the last doubling of the steps." in curve_sentence([flat], 0)
    assert "not converged: selfie at 5 % still rose" in curve_sentence([found, flat], 0)
    notes = notes_of([found, flat])
    assert notes[0].startswith("At 5 %: not converged: selfie")
    assert notes.count("selfie: called selfie.") == 1
