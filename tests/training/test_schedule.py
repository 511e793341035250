import itertools
import math

import pytest

from selfie_cli.errors import UsageError
from selfie_cli.training.schedule import budget_seconds, check_length, cosine_with_warmup, num_steps


def test_warm_up_rises_in_a_line_to_one():
    shares = [cosine_with_warmup(step, total=1000, warmup=100) for step in range(101)]
    assert shares[:100] == pytest.approx([(step + 1) / 100 for step in range(100)])
    assert shares[100] == 1


def test_the_cosine_falls_to_zero():
    shares = [cosine_with_warmup(step, total=1000, warmup=100) for step in range(100, 1000)]
    assert all(before > after for before, after in itertools.pairwise(shares))
    assert cosine_with_warmup(550, total=1000, warmup=100) == pytest.approx(0.5)
    assert cosine_with_warmup(325, total=1000, warmup=100) == pytest.approx((1 + math.cos(math.pi / 4)) / 2)
    assert 0 < shares[-1] < 1e-5
    assert cosine_with_warmup(1000, total=1000, warmup=100) == pytest.approx(0)


@pytest.mark.parametrize("total", [1, 2, 3, 10, 199])
def test_a_short_run_warms_up_over_half_of_its_length(total):
    shares = [cosine_with_warmup(step, total=total, warmup=100) for step in range(total)]
    assert all(0 < share <= 1 for share in shares)
    assert max(shares) == 1
    assert shares.index(1) == max(0, total // 2 - 1)


def test_without_warm_up_it_starts_at_one():
    assert cosine_with_warmup(0, total=10, warmup=0) == 1


def length(**given):
    settings = {"steps": None, "epochs": None, "num_images": 1000, "batch_size": 100}
    return num_steps(**(settings | given))


def test_length_as_asked():
    assert length(steps=7) == 7
    assert length(epochs=3) == 30
    assert length(epochs=0.25) == 2
    assert length(epochs=0.001) == 1


@pytest.mark.parametrize(("num_images", "expected"), [(10, 2_000), (5_000, 5_000), (10**7, 120_000)])
def test_length_unasked_is_a_hundred_epochs_within_bounds(num_images, expected):
    assert length(num_images=num_images) == expected


def test_two_lengths_are_refused():
    for given in ({"steps": 1, "epochs": 1.0}, {"steps": 1, "budget": "2m"}, {"epochs": 1.0, "budget": "2m"}):
        with pytest.raises(UsageError, match="one length"):
            check_length(**({"steps": None, "epochs": None, "budget": None} | given))


@pytest.mark.parametrize(
    ("budget", "expected"), [("90s", 90), ("20m", 1200), ("2h", 7200), ("1.5h", 5400), (" 10 m ", 600), ("0.5s", 0.5)]
)
def test_budgets(budget, expected):
    assert budget_seconds(budget) == expected


@pytest.mark.parametrize(
    "budget", ["", "20", "m", "0m", "0.0s", "-5m", "2d", "1h30m", "1,5h", "nan s", "1e3s", f"{'9' * 400}h", "9999999h"]
)
def test_what_is_no_budget_is_refused(budget):
    with pytest.raises(UsageError, match="--budget"):
        budget_seconds(budget)
