import math
import os
import signal

import pytest
import torch
from running import lines_of
from torch import nn

from selfie_cli.errors import Diverged, Stopped
from selfie_cli.talk import Talk
from selfie_cli.training import loop
from selfie_cli.training.checkpoint import read_state, saved_states
from selfie_cli.training.loop import Plan, train
from selfie_cli.training.optimizers import make_optimizer
from selfie_cli.training.schedule import cosine_with_warmup
from selfie_cli.training.step import Step


class Toy:
    """A linear network that is to find another one's weights."""

    def __init__(self, folder, *, noise=0.0):
        torch.manual_seed(0)
        folder.mkdir(exist_ok=True)
        self.folder = folder
        self.module = nn.Linear(5, 1)
        self.target = torch.randn(5, 1)
        self.optimizer = torch.optim.SGD(self.module.parameters(), lr=0.1, momentum=0.9, nesterov=True)
        self.steps_seen = []
        self.rates = []
        self.noise = noise
        self.signal = None

    def batch_of(self, step):
        self.steps_seen.append(step)
        self.rates.append(self.optimizer.param_groups[0]["lr"])
        x = torch.randn(12, 5, generator=torch.Generator().manual_seed(step))
        return x, x @ self.target

    def augment(self, *batch):
        return batch

    def loss(self, x, y):
        if self.signal and self.steps_seen[-1] == self.signal[0]:
            os.kill(os.getpid(), self.signal[1])
        loss = (self.module(x) - y + self.noise * torch.randn_like(y)).square().mean()
        return loss, {"double": 2 * loss.detach()}

    def train(self, total=60, *, micro_batch=12, after=lambda done: None, watch=dict, **given):
        settings = {"folder": self.folder, "steps": total, "lr": 0.05, "warmup_steps": 5, "seed": 0, "save_every": 1e9}
        plan = Plan(**settings | given, name="toy")
        step = Step(self.module, self, self.optimizer, micro_batch=micro_batch, precision="fp32", after=after)
        return train(step, self.batch_of, plan, talk=Talk(), watch=watch)

    def interrupted_at(self, step, number, **given):
        """Train, with a signal on the way; returns what was raised."""
        self.signal = step, number
        with pytest.raises(Stopped) as caught:
            self.train(**given)
        return caught.value


def lines(folder):
    return lines_of(folder / "metrics.jsonl")


def names_of_states(toy):
    return [path.name for path in saved_states(toy.folder / "state")]


@pytest.fixture
def toy(tmp_path):
    return Toy(tmp_path)


def test_the_loss_falls_and_the_network_is_watched(toy, monkeypatch):
    monkeypatch.setattr(loop, "WATCH_STEPS", 3)
    done = []
    trained = toy.train(after=done.append, watch=lambda: {"seen": float(len(done))}, save_every=0)
    assert done == [step / 60 for step in range(1, 61)]
    found = lines(toy.folder)
    assert [line["step"] for line in found] == list(range(1, 61))
    assert [line.get("seen") for line in found] == [None if step % 3 else step for step in range(1, 61)]
    assert found[-1]["loss"] < 1e-3 * found[0]["loss"]
    assert all(line["double"] == pytest.approx(2 * line["loss"]) for line in found)
    assert (trained.step, names_of_states(toy)[-1]) == (60, "00000060")
    again = Toy(toy.folder).train(save_every=0)  # killed before the caller kept the weights
    assert (again.step, again.last) == (60, trained.last)
    assert trained.last["loss"] == found[-1]["loss"]
    assert trained.images_per_second == pytest.approx(60 * 12 / trained.seconds)
    assert 0 <= trained.data_wait < 1
    assert toy.rates == pytest.approx([0.05 * cosine_with_warmup(step, total=60, warmup=5) for step in range(60)])
    settings = {"folder": toy.folder, "steps": 60, "lr": 0.1, "warmup_steps": 0, "seed": 0, "save_every": 60.0}
    timetable = loop.Timetable(Plan(**settings, name="toy"), loop.Group(), 0)
    timetable.saved -= 6  # seconds
    assert [timetable.due(step, [], 0, smaller=False)[1] for step in (59, 60)] == [False, True]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_the_state_and_stops(toy, number):
    handlers = [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)]
    stopped = toy.interrupted_at(7, number)
    assert stopped.exit_code == 128 + number
    assert str(stopped) == "stopped after step 8, nothing is lost"
    assert toy.steps_seen[-1] == 7  # the step in hand is finished, no other begun
    assert names_of_states(toy) == ["00000008"]
    assert lines(toy.folder)[-1]["step"] == 8
    assert [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)] == handlers


def test_stopped_and_resumed_equals_uninterrupted(tmp_path):
    straight, folder = Toy(tmp_path / "straight", noise=0.5), tmp_path / "stopped"
    straight.train(30)
    for step in (4, 5, 17):
        Toy(folder, noise=0.5).interrupted_at(step, signal.SIGINT, total=30)
    last = Toy(folder, noise=0.5)
    with torch.no_grad():
        last.module.weight.zero_()  # what a new process starts with does not matter
    last.train(30)
    assert last.steps_seen == list(range(18, 30))
    assert last.module.weight.equal(straight.module.weight)
    assert last.module.bias.equal(straight.module.bias)


@pytest.mark.parametrize("factor", [math.inf, math.nan])
def test_a_loss_that_is_not_finite_stops_and_a_state_that_leads_there_at_once_is_removed(toy, factor):
    class Exploding(Toy):
        def loss(self, x, y):
            loss, extra = super().loss(x, y)
            return loss * factor if self.steps_seen[-1] >= 6 else loss, extra

    with pytest.raises(Diverged, match=r"in step 7, the last good state is .*/state/00000006.*--lr"):
        Exploding(toy.folder).train(save_every=0)
    assert names_of_states(toy) == ["00000005", "00000006"]
    assert all(math.isfinite(line["loss"]) for line in lines(toy.folder))
    with pytest.raises(Diverged, match="in step 7, at once from the state of step 6, which is removed"):
        Exploding(toy.folder).train()
    assert names_of_states(toy) == ["00000005"]
    with pytest.raises(Diverged, match=r"in step 7, the last good state is .*00000005"):
        Exploding(toy.folder).train()
    other = Toy(toy.folder)
    other.train()
    assert other.steps_seen[0] == 5
    assert other.module.weight.isfinite().all()


def test_a_run_that_went_on_in_smaller_pieces_does_so_when_resumed(toy):
    """Not before, and from that step on, for a resumed run has to do what was done."""

    class Hungry(Toy):
        pieces = ()

        def loss(self, x, y):
            self.pieces += ((self.steps_seen[-1], len(x)),)
            if len(x) > 6 and self.steps_seen[-1] >= 20:
                raise torch.OutOfMemoryError
            return super().loss(x, y)

    hungry = Hungry(toy.folder)
    hungry.interrupted_at(30, signal.SIGTERM)
    assert [size for step, size in hungry.pieces if step in (19, 20, 21)] == [12, 12, 6, 6, 6, 6]
    states = {int(path.name): read_state(path)[1] for path in saved_states(toy.folder / "state")}
    assert states == {21: 6, 31: 6}
    resumed = Hungry(toy.folder)
    resumed.train(total=40)
    assert {size for _, size in resumed.pieces} == {6}


def test_a_gradient_that_is_not_finite_is_noticed_later_and_stops_at_once(toy):
    """Nobody waits for the device at each step; what was not to happen has not happened."""

    class Steep(Toy):
        def loss(self, x, y):
            if self.steps_seen[-1] == 6:
                self.module.weight.register_hook(lambda gradient: gradient / 0)
            return super().loss(x, y)

    steep = Steep(toy.folder)
    steep.optimizer = make_optimizer("sgd", steep.module, lr=0.1, weight_decay=0.0)
    with pytest.raises(Diverged, match="the gradient is not a finite number in step 7, no state had been saved"):
        steep.train()  # neither logged nor saved before the end
    toy.optimizer = make_optimizer("sgd", toy.module, lr=0.1, weight_decay=0.0)
    toy.interrupted_at(5, signal.SIGINT)  # after the sixth
    assert steep.module.weight.equal(toy.module.weight)


def test_a_second_signal_raises_where_the_process_is_not_the_command_lines(monkeypatch):
    """A notebook's kernel, with all that it holds, must survive two interrupts."""
    clock = [0.0]
    monkeypatch.setattr(loop.time, "monotonic", lambda: clock[0])
    with loop.signals_noted() as noted:
        for clock[0] in (0.0, 0.5):
            signal.raise_signal(signal.SIGINT)
        assert noted == [signal.SIGINT]
        clock[0] = 2.0
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
