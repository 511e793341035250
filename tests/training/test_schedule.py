import itertools
import math

import pytest

from selfie_cli.errors import UsageError
from selfie_cli.training.schedule import budget_seconds, check_length, cosine_with_warmup, num_steps


def test_a_line_up_to_one_then_a_cosine_down_to_zero():
    shares = [cosine_with_warmup(step, total=1000, warmup=100) for step in range(1001)]
    assert shares[:100] == pytest.approx([(step + 1) / 100 for step in range(100)])
    assert shares[100] == 1
    assert all(before > after for before, after in itertools.pairwise(shares[100:]))
    assert (shares[550], shares[325]) == pytest.approx((0.5, (1 + math.cos(math.pi / 4)) / 2))
    assert shares[1000] == pytest.approx(0)
    assert cosine_with_warmup(0, total=10, warmup=0) == 1


@pytest.mark.parametrize("total", [1, 2, 3, 10, 199])
def test_a_short_run_warms_up_over_half_of_its_length(total):
    shares = [cosine_with_warmup(step, total=total, warmup=100) for step in range(total)]
    assert all(0 < share <= 1 for share in shares)
    assert shares.index(1) == max(0, total // 2 - 1)


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        ({"steps": 7}, 7),
        ({"epochs": 0.25}, 2),
        ({"epochs": 0.001}, 1),
        ({"num_images": 10}, 2_000),
        ({"num_images": 5_000}, 5_000),
        ({"num_images": 10**7}, 120_000),
    ],
)
def test_length_as_asked_or_a_hundred_epochs_within_bounds(asked, expected):
    assert num_steps(**({"steps": None, "epochs": None, "num_images": 1000, "batch_size": 100} | asked)) == expected


def test_two_lengths_are_refused():
    for given in ({"steps": 1, "epochs": 1.0}, {"steps": 1, "budget": "2m"}, {"epochs": 1.0, "budget": "2m"}):
        with pytest.raises(UsageError, match="one length"):
            check_length(**({"steps": None, "epochs": None, "budget": None} | given))


@pytest.mark.parametrize(("budget", "expected"), [("90s", 90), ("20m", 1200), ("1.5h", 5400), (" 10 m ", 600)])
def test_budgets(budget, expected):
    assert budget_seconds(budget) == expected


@pytest.mark.parametrize("budget", ["", "20", "0m", "-5m", "2d", "1h30m", "1,5h", "nan s", f"{'9' * 400}h", "9999999h"])
def test_what_is_no_budget_is_refused(budget):
    with pytest.raises(UsageError, match="--budget"):
        budget_seconds(budget)
