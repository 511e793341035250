import itertools
import math

import numpy as np
import pytest
import torch

from selfie_cli.errors import UsageError
from selfie_cli.training.schedule import SampleOrder, check_length, cosine_with_warmup, num_steps, seconds, step_seed


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
    assert seconds(budget) == expected


@pytest.mark.parametrize(
    "budget", ["", "20", "m", "0m", "0.0s", "-5m", "2d", "1h30m", "1,5h", "nan s", "1e3s", f"{'9' * 400}h", "9999999h"]
)
def test_what_is_no_budget_is_refused(budget):
    with pytest.raises(UsageError, match="--budget"):
        seconds(budget)


def test_step_seeds_differ_by_step_and_seed():
    found = {step_seed(seed, step) for seed in range(30) for step in range(30)}
    assert len(found) == 900
    assert all(0 <= seed < 2**63 for seed in found)
    assert step_seed(3, 4) == step_seed(3, 4)


@pytest.mark.parametrize(("num_images", "batch_size"), [(10, 4), (300, 256), (12, 4), (7, 7)])
def test_an_epoch_is_whole_batches_without_an_image_twice(num_images, batch_size):
    order = SampleOrder(num_images, batch_size, seed=0)
    batches = num_images // batch_size
    epochs = [
        torch.cat([order.batch(step) for step in range(first, first + batches)])
        for first in range(0, 60 * batches, batches)
    ]
    assert all(len(epoch.unique()) == batches * batch_size for epoch in epochs)
    assert len(torch.cat(epochs).unique()) == num_images  # those left over differ


@pytest.mark.parametrize(("num_images", "block", "world"), [(513, 64, 4), (33, 64, 8), (10_001, 64, 1), (999, 64, 3)])
def test_processes_see_no_image_twice_in_a_batch(num_images, block, world):
    size = num_images // (2 * world) * world if num_images > 600 else num_images // world * world
    orders = [SampleOrder(num_images, size, 5, block=block, rank=rank, world=world) for rank in range(world)]
    for step in range(30):
        assert len(torch.cat([order.batch(step) for order in orders]).unique()) == size


def test_the_order_is_frozen_and_older_runs_keep_theirs():
    def of(**options):
        return [SampleOrder(10, 4, 0, **options).batch(step).tolist() for step in range(3)]

    assert of() == [[2, 1, 6, 7], [4, 8, 5, 9], [2, 1, 9, 5]]
    assert of(version=1) == [[8, 0, 1, 5], [3, 9, 6, 4], [7, 2, 2, 3]]
    assert SampleOrder(200, 4, 3, block=4, rank=1, world=2).batch(51).tolist() == [43, 16]
    assert SampleOrder(200, 4, 3, block=4, rank=1, world=2, version=1).batch(51).tolist() == [113, 162]


@pytest.mark.parametrize(("num_images", "batch_size"), [(3, 10), (1, 5), (5, 12)])
def test_every_image_of_a_set_smaller_than_a_batch_comes_equally_often(num_images, batch_size):
    order = SampleOrder(num_images, batch_size, seed=0)
    # So many steps are a whole number of epochs.
    row = np.concatenate([order.batch(step).numpy() for step in range(3 * num_images)])
    assert len(row) == 3 * num_images * batch_size
    assert np.bincount(row, minlength=num_images).tolist() == [3 * batch_size] * num_images
    for epoch in row.reshape(-1, num_images):
        assert sorted(epoch) == list(range(num_images))


def test_the_order_is_a_function_of_seed_and_step():
    order = SampleOrder(50, 16, seed=1)
    forwards = [order.batch(step) for step in range(20)]
    for step in (19, 0, 7, 3, 18):
        assert SampleOrder(50, 16, seed=1).batch(step).equal(forwards[step])
        assert order.batch(step).equal(forwards[step])
    assert not SampleOrder(50, 16, seed=2).batch(0).equal(forwards[0])


def test_epochs_are_shuffled_anew():
    order = SampleOrder(32, 32, seed=0)
    assert len({tuple(order.batch(step).tolist()) for step in range(10)}) == 10


def epochs_of(order: SampleOrder, num_epochs: int) -> np.ndarray:
    """What one process sees, a row an epoch."""
    batches = order.epoch_length // order.batch_size
    return np.concatenate([order.batch(step).numpy() for step in range(num_epochs * batches)]).reshape(num_epochs, -1)


@pytest.mark.parametrize(
    ("num_images", "block", "world"),
    [(10_000, 64, 1), (10_001, 64, 1), (4096, 64, 2), (9_999, 64, 3), (100_003, 64, 7), (500, 64, 4), (33, 64, 8)],
)
def test_streamed_epochs_are_disjoint_and_all_but_complete(num_images, block, world):
    orders = [SampleOrder(num_images, world, 5, block=block, rank=rank, world=world) for rank in range(world)]
    size = orders[0].block
    seen = np.stack([epochs_of(order, 3) for order in orders], axis=1)  # [3, world, epoch_length]: of one length
    for epoch in seen:
        assert len(np.unique(epoch)) == epoch.size  # nothing twice, in whichever process
        assert 0 <= num_images - epoch.size < max(1, 2 * (world - 1) * size)
        owners = [set((part // size).tolist()) for part in epoch]
        assert not set.intersection(*owners) or world == 1  # a block is read by one process
        assert sum(map(len, owners)) == len(set.union(*owners))
    if world > 1:
        left_out = [np.setdiff1d(np.arange(num_images), epoch) for epoch in seen]
        assert all(not np.array_equal(left_out[0], other) for other in left_out[1:] if len(other))


def test_streamed_windows_are_few_blocks_well_mixed():
    order = SampleOrder(100_000, 128, 0, block=64)
    epoch = epochs_of(order, 1)[0]
    windows = epoch[: 2048 * 48].reshape(48, 2048)
    for window in windows:
        assert len(set((window // 64).tolist())) == 32
        assert len(set((window[:128] // 64).tolist())) > 20  # a batch has images of most of them
    assert abs(np.corrcoef(epoch, np.arange(len(epoch)))[0, 1]) < 0.05  # blocks are shuffled as well
    assert not np.array_equal(epoch, epochs_of(SampleOrder(100_000, 128, 1, block=64), 1)[0])


def test_the_streamed_order_is_a_function_of_seed_and_step():
    def order() -> SampleOrder:
        return SampleOrder(5_000, 64, 3, block=64, rank=1, world=2)

    forwards = [order().batch(0)]
    going = order()
    forwards = [going.batch(step) for step in range(200)]
    assert all(len(batch) == 32 for batch in forwards)
    for step in (199, 0, 77, 76, 150):
        assert order().batch(step).equal(forwards[step])
        assert going.batch(step).equal(forwards[step])


def test_processes_must_share_equally():
    with pytest.raises(ValueError, match="3 processes"):
        SampleOrder(1000, 64, 0, block=64, world=3)
    assert len(SampleOrder(1000, 64, 0, rank=1, world=3).batch(0)) == 64  # without blocks, the whole batch
