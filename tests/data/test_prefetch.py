import threading
import time

import pytest
import torch

from selfie_cli.data.prefetch import ReadAhead


class Maker:
    """Batches that hold their step; notes which were made, and by whom."""

    def __init__(self, failing: int | None = None) -> None:
        self.failing = failing
        self.made: list[int] = []
        self.threads: set[threading.Thread] = set()

    def __call__(self, step: int) -> tuple[torch.Tensor, ...]:
        self.made.append(step)
        self.threads.add(threading.current_thread())
        if step == self.failing:
            raise ZeroDivisionError(f"step {step}")
        return torch.full((2,), step), torch.get_num_threads() * torch.ones(1)


def wait_for(condition) -> None:
    deadline = time.monotonic() + 5
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


@pytest.mark.parametrize("depth", [1, 2, 5])
def test_batches_come_in_order_and_no_more_than_asked_are_ahead(depth):
    maker = Maker()
    with ReadAhead(maker, depth=depth) as ahead:
        assert maker.made == []
        for step in range(7, 20):
            assert ahead(step)[0].tolist() == [step, step]
            wait_for(lambda done=step + depth: maker.made[-1] == done)
            time.sleep(0.005)
            assert maker.made == list(range(7, step + depth + 1))
    assert threading.current_thread() not in maker.threads


def test_any_other_step_begins_anew():
    maker = Maker()
    with ReadAhead(maker) as ahead:
        assert [ahead(step)[0][0].item() for step in (0, 1, 5, 5, 6, 0)] == [0, 1, 5, 5, 6, 0]


def test_what_is_raised_comes_at_its_own_step():
    maker = Maker(failing=2)
    with ReadAhead(maker) as ahead:
        for step in (0, 1):
            assert ahead(step)[0][0] == step
        with pytest.raises(ZeroDivisionError, match="step 2"):
            ahead(2)
        assert ahead(3)[0][0] == 3


@pytest.mark.parametrize("error", [None, KeyboardInterrupt, RuntimeError])
def test_it_ends_with_its_block(error):
    maker = Maker()
    with pytest.raises(error or StopIteration), ReadAhead(maker) as ahead:  # noqa: PT012
        ahead(0)
        raise error or StopIteration
    assert not any(thread.is_alive() for thread in maker.threads)
    assert len(maker.made) <= 3


def test_its_thread_starts_no_team():
    with ReadAhead(Maker()) as ahead:
        assert ahead(0)[1].item() == 1


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_batches_are_pinned_if_asked():
    with ReadAhead(Maker(), device=torch.device("cuda")) as ahead:
        assert all(tensor.is_pinned() for tensor in ahead(0))


def test_nothing_is_made_beyond_the_end_unless_asked_for():
    maker = Maker()
    with ReadAhead(maker, depth=3) as ahead:
        ahead.end = 5
        assert [ahead(step)[0][0].item() for step in range(5)] == list(range(5))
    assert maker.made == list(range(5))
    with ReadAhead(maker, end=5) as ahead:
        assert ahead(7)[0][0] == 7
    assert maker.made == [*range(5), 7]
