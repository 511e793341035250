"""Which images each step uses, what is drawn for them, and batches made ahead of time."""

import contextlib
import threading
import time

import numpy as np
import pytest
import torch

from selfie_cli.data.batches import AHEAD, Prefetch, SampleOrder, make_batches


def epochs_of(order: SampleOrder, num_epochs: int) -> np.ndarray:
    """Images of one process, one row per epoch."""
    batches = order.epoch_length // len(order.batch(0))
    return np.concatenate([order.batch(step).numpy() for step in range(num_epochs * batches)]).reshape(num_epochs, -1)


@pytest.mark.parametrize(("num_images", "batch_size"), [(10, 4), (300, 256), (12, 4), (7, 7)])
def test_an_epoch_is_whole_batches_without_an_image_twice(num_images, batch_size):
    epochs = epochs_of(SampleOrder(num_images, batch_size, seed=0), 60)
    assert epochs.shape == (60, num_images // batch_size * batch_size)
    assert all(len(np.unique(epoch)) == epoch.size for epoch in epochs)
    assert len(np.unique(epochs)) == num_images  # those left over differ
    assert len(np.unique(epochs, axis=0)) > 50


@pytest.mark.parametrize(("num_images", "batch_size"), [(3, 10), (1, 5), (5, 12)])
def test_every_image_of_a_set_smaller_than_a_batch_comes_equally_often(num_images, batch_size):
    order = SampleOrder(num_images, batch_size, seed=0)
    row = np.concatenate([order.batch(step).numpy() for step in range(3 * num_images)])  # a whole number of epochs
    for epoch in row.reshape(3 * batch_size, num_images):
        assert sorted(epoch) == list(range(num_images))


def test_the_order_is_frozen_and_older_runs_keep_theirs():
    def of(**options):
        return [SampleOrder(10, 4, 0, **options).batch(step).tolist() for step in range(3)]

    assert of() == [[2, 1, 6, 7], [4, 8, 5, 9], [2, 1, 9, 5]]
    assert of(version=1) == [[8, 0, 1, 5], [3, 9, 6, 4], [7, 2, 2, 3]]
    for version, batch in ((2, [43, 16]), (1, [113, 162])):
        assert SampleOrder(200, 4, 3, block=4, rank=1, world=2, version=version).batch(51).tolist() == batch


@pytest.mark.parametrize("how", [{}, {"block": 64}, {"block": 64, "rank": 1, "world": 2}])
def test_the_order_is_a_function_of_seed_and_step(how):
    def order(seed=3):
        return SampleOrder(5_000, 64, seed, **how)

    going = order()
    forwards = [going.batch(step) for step in range(200)]
    assert all(len(batch) == 64 // how.get("world", 1) for batch in forwards)
    for step in (199, 0, 77, 76, 150):
        assert order().batch(step).equal(forwards[step])
        assert going.batch(step).equal(forwards[step])
    assert not order(seed=2).batch(0).equal(forwards[0])


@pytest.mark.parametrize(
    ("num_images", "block", "world"),
    [(10_000, 64, 1), (10_001, 64, 1), (4096, 64, 2), (9_999, 64, 3), (100_003, 64, 7), (500, 64, 4), (33, 64, 8)],
)
def test_streamed_epochs_are_disjoint_and_all_but_complete(num_images, block, world):
    orders = [SampleOrder(num_images, world, 5, block=block, rank=rank, world=world) for rank in range(world)]
    size = orders[0].block
    seen = np.stack([epochs_of(order, 3) for order in orders], axis=1)  # [3, world, epoch_length]: of one length
    for epoch in seen:
        assert len(np.unique(epoch)) == epoch.size  # no image twice, in any process
        assert 0 <= num_images - epoch.size < max(1, 2 * (world - 1) * size)
        owners = [set((part // size).tolist()) for part in epoch]
        assert sum(map(len, owners)) == len(set.union(*owners))  # one process reads a block
    if world > 1:
        left_out = [np.setdiff1d(np.arange(num_images), epoch) for epoch in seen]
        assert all(not np.array_equal(left_out[0], other) for other in left_out[1:] if len(other))


def test_streamed_windows_are_few_blocks_well_mixed():
    epoch = epochs_of(SampleOrder(100_000, 128, 0, block=64), 1)[0]
    for window in epoch[: 2048 * 48].reshape(48, 2048):
        assert len(set((window // 64).tolist())) == 32
        assert len(set((window[:128] // 64).tolist())) > 20  # a batch has images of most of them
    assert abs(np.corrcoef(epoch, np.arange(len(epoch)))[0, 1]) < 0.05  # blocks are shuffled as well


@pytest.mark.parametrize("block", [1, 4])
def test_the_parts_of_processes_are_the_batch_with_its_draws(block):
    def draw(count: int, generator: torch.Generator) -> list[torch.Tensor]:
        return [torch.rand(count, generator=generator), torch.arange(count)]

    def batches(rank: int, world: int):
        order = SampleOrder(300, 6, 1, block=block, rank=rank, world=world)
        return make_batches(order, lambda rows: (10 * rows, -rows), draw)

    for step in (0, 7):
        parts = [batches(rank, 2)(step) for rank in (0, 1)]
        images, same, drawn, place = (torch.cat(each) for each in zip(*parts, strict=True))
        assert images.equal(-10 * same)
        assert place.tolist() == list(range(6))
        whole = batches(0, 1)(step)
        assert drawn.equal(whole[2])
        assert block > 1 or images.equal(whole[0])
    with pytest.raises(ValueError, match="4 processes"):
        batches(0, 4)


class Maker:
    """Batches that hold their step; records which were made, and in which threads."""

    def __init__(self) -> None:
        self.made: list[int] = []
        self.threads: set[threading.Thread] = set()

    def __call__(self, step: int) -> tuple[torch.Tensor, ...]:
        self.made.append(step)
        self.threads.add(threading.current_thread())
        if step == 2:
            raise ZeroDivisionError
        return torch.full((2,), step), torch.get_num_threads() * torch.ones(1)


def test_batches_come_in_order_and_a_bounded_number_is_ahead():
    maker = Maker()
    with Prefetch(maker) as batch_of:
        assert maker.made == []
        for step in range(7, 20):
            assert batch_of(step)[0].tolist() == [step, step]
            deadline = time.monotonic() + 5
            while maker.made[-1] != step + AHEAD:
                assert time.monotonic() < deadline
                time.sleep(0.005)
            time.sleep(0.005)
            assert maker.made == list(range(7, step + AHEAD + 1))
        assert batch_of(20)[1].item() == 1  # torch starts no threads of its own there
    assert threading.current_thread() not in maker.threads


def test_any_step_may_be_asked_for_and_errors_are_raised_at_their_own():
    maker, found = Maker(), []
    with pytest.raises(KeyboardInterrupt), Prefetch(maker, end=7) as batch_of:  # noqa: PT012
        for step in (0, 1, 2, 3, 5, 5, 6, 0, 8):
            with contextlib.suppress(ZeroDivisionError):
                found.append(batch_of(step)[0][0].item())
        raise KeyboardInterrupt
    assert found == [0, 1, 3, 5, 5, 6, 0, 8]
    assert 7 not in maker.made  # only what is asked for beyond the end
    assert not any(thread.is_alive() for thread in maker.threads)  # it ends with its block


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_batches_are_copied_to_a_gpu():
    with Prefetch(Maker(), device=torch.device("cuda")) as batch_of:
        for step in range(3, 8):
            assert all(tensor.is_cuda and bool((tensor == step).all()) for tensor in batch_of(step))
