import itertools
import math

import pytest

from selfie_cli.errors import UsageError
from selfie_cli.training.schedule import budget_seconds, check_lengths, cosine_with_warmup, num_steps


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


def test_length_as_asked_or_a_hundred_epochs_within_bounds_and_not_two():
    def steps(num_images, **asked):
        return num_steps(**{"steps": None, "epochs": None} | asked, num_images=num_images, batch_size=100)

    assert (steps(1000, steps=7), steps(1000, epochs=0.25), steps(1000, epochs=0.001)) == (7, 2, 1)
    assert [steps(num_images) for num_images in (10, 5_000, 10**7)] == [2_000, 5_000, 120_000]
    for given in ({"steps": 1, "epochs": 1.0}, {"steps": 1, "budget": "2m"}, {"epochs": 1.0, "budget": "2m"}):
        with pytest.raises(UsageError, match="one length"):
            check_lengths(**({"steps": None, "epochs": None, "budget": None} | given))


def test_budgets_and_what_is_none():
    assert [budget_seconds(budget) for budget in ("90s", "20m", "1.5h", " 10 m ")] == [90, 1200, 5400, 600]
    for budget in ("", "20", "0m", "-5m", "2d", "1h30m", "1,5h", "nan s", f"{'9' * 400}h", "9999999h"):
        with pytest.raises(UsageError, match="--budget"):
            budget_seconds(budget)
