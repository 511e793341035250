"""The protocol of finetune and curve: equal training for all arms, and cells that are looked up, not repeated."""

import dataclasses
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from listening import Listener
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend

from selfie_cli import runs
from selfie_cli.comparison import trainer
from selfie_cli.comparison.arms import Arm
from selfie_cli.comparison.compare import plan_steps
from selfie_cli.comparison.labels import Part, Share, take_share
from selfie_cli.comparison.trainer import Cell, Fitted, Trainer, Training, fit_to_machine, usual_batch_size
from selfie_cli.config import CurveOptions
from selfie_cli.data.batches import IMAGE_ORDER
from selfie_cli.errors import Diverged
from selfie_cli.inference.networks import estimate_batch_norm
from selfie_cli.option import pick
from selfie_cli.talk import Talk
from selfie_cli.training.step import Forward

SHAPE: dict[str, Any] = {"method": "finetune", "arch": "resnet", "pretraining": "none", "classes": ["a", "b"]}
SHAPE |= {"backbone": "resnetv2_18_w16", "stem": "3x3", "image_size": 8}
ARM = Arm(name="supervised", shape=SHAPE, state=None)
OPTIONS = CurveOptions(check_length=False, warmup_steps=1)
MEASURED: dict[str, Any] = {"image_size": 8, "device": torch.device("cpu"), "batch_sizes": [4, 4], "rates": [0.1]}
ASKED = pick(Training, OPTIONS, **MEASURED)
FITTED = Fitted(batch_size=4, micro_batch=4, precision="fp32", compiles=True, processes=1, image_order=IMAGE_ORDER)


def part(num_images: int = 40) -> Part:
    labels = torch.arange(num_images) % 2
    pixels = torch.randint(0, 255, (num_images, 8, 8, 3), dtype=torch.uint8)
    return Part(pixels=pixels, labels=labels, names=[f"{i}.png" for i in range(num_images)])


def share(fraction: float, num_seeds: int, talk: Talk | None = None) -> Share:
    return take_share(part(), fraction, range(num_seeds), 1, talk or Talk())


def test_a_share_of_less_than_an_image_per_class_is_told() -> None:
    talk = Listener()
    assert [share(fraction, 1, talk).num_labels for fraction in (0.01, 0.05)] == [2, 2]
    assert talk.warned == ["with 1 %, some classes would have no image: they get one each, 2 labels in all"]


def test_a_rate_that_diverges_loses_the_search(tmp_path: Path) -> None:
    found = trainer_in(tmp_path / "one", rates=[1e-3, 1e35])
    assert found.tune(ARM, share(1.0, 1), 6, part()) == (1e-3, None)
    with pytest.raises(Diverged):
        trainer_in(tmp_path / "all", rates=[1e35, 1e36]).tune(ARM, share(1.0, 1), 6, part())


@pytest.mark.parametrize(
    ("asked", "seconds"),
    [
        ({}, 25),  # five cells per arm; a step of all three arms takes 5 s
        ({"rates": [0.03, 0.1, 0.3]}, 55),  # three searches per share
        ({"check_length": True}, 40),  # one and a half per share
    ],
)
def test_a_budget_is_for_all_cells_of_all_shares(asked: dict[str, object], seconds: int) -> None:
    training, talk = dataclasses.replace(ASKED, budget="10m", **asked), Listener()
    assert plan_steps([share(0.1, 3), share(1.0, 2)], 3, 5 / 3, training, talk) == [600 // seconds] * 2
    assert re.fullmatch("the whole curve: about (9|10) min", talk.lines[-1])


def test_epochs_are_of_the_labels_used_and_few_labels_are_repeated() -> None:
    asked, talk = dataclasses.replace(ASKED, epochs=10, batch_sizes=[2, 4]), Listener()
    assert plan_steps([share(0.2, 1), share(1.0, 1)], 1, 60.0, asked, talk) == [10 * 8 // 2, 10 * 40 // 4]
    assert re.match(r"20 % .* 40 steps \(10 epochs\) .* about 20 min each, 20 min in all", talk.lines[0])
    assert plan_steps([share(1.0, 1)], 1, 9.0, dataclasses.replace(ASKED, batch_sizes=[32]), talk) == [8_000]
    assert talk.lines[-1].startswith("for a first look, give --steps 2000")  # this takes 20 hours


def test_batch_norm_averages_over_images() -> None:
    """Although there are two more than fit into a batch."""
    norm, pixels = nn.BatchNorm2d(3), part(130).pixels
    estimate_batch_norm(norm, lambda batch: norm(batch.permute(0, 3, 1, 2).float()), pixels)
    torch.testing.assert_close(norm.running_mean, pixels.float().mean(dim=(0, 1, 2)))


def test_a_step_takes_the_mean_of_all_arms(monkeypatch: pytest.MonkeyPatch) -> None:
    """torchvision's network takes three times as long."""
    monkeypatch.setattr(trainer, "fit", lambda step, *_: 3.0 if hasattr(step.module.encoder, "layer1") else 1.0)
    wider = Arm(name="c", shape={**SHAPE, "backbone": "resnet18"}, state=None)
    asked = dataclasses.replace(ASKED, micro_batch=2, precision="fp32")
    fitted, seconds = fit_to_machine([ARM, ARM, wider], part(), asked, Talk())
    assert fitted == dataclasses.replace(FITTED, micro_batch=2)
    assert seconds == pytest.approx(5 / 3)


def weights_of(found: Trainer, cells: list[Cell], data: Part) -> list[dict[str, torch.Tensor]]:
    states = []
    for cell in cells:
        found.folder(cell).mkdir(parents=True)
        module, _ = found.trained(cell, data)
        states.append({name: tensor.clone() for name, tensor in module.state_dict().items()})
    return states


def trainer_in(folder: Path, **changed: object) -> Trainer:
    run = runs.create(folder, verb="curve", asked={}, derived=SHAPE | dataclasses.asdict(FITTED))
    return Trainer(run=run, training=dataclasses.replace(ASKED, **changed), fitted=FITTED, talk=Talk())


def test_a_cell_does_not_know_which_were_trained_before_it(tmp_path: Path) -> None:
    """Bit for bit, although cells of a kind take turns on one network; also where one had run out of memory."""
    pretrained = dataclasses.replace(ARM, name="x", state=ARM.make().encoder.state_dict())
    wide = Arm(name="wide", shape={**SHAPE, "backbone": "resnetv2_10_w32"}, state=None)
    arms, data = [ARM, pretrained, wide], part()
    cells = [Cell(name=f"{arm.name}{seed}", arm=arm, lr=0.1, seed=seed, steps=3) for seed in (0, 1) for arm in arms]
    together = trainer_in(tmp_path / "together")
    found = weights_of(together, cells[:3], data)
    assert len(together.steps) == 2
    together.steps[ARM.kind][2].set_micro_batch(2)  # as if memory had run out in the next one
    found += weights_of(together, cells[3:], data)
    alone = [weights_of(trainer_in(tmp_path / cell.name), [cell], data)[0] for cell in cells]
    for number, (one, other) in enumerate(zip(found, alone, strict=True)):
        assert all(tensor.equal(other[name]) for name, tensor in one.items()) == (number != 3)
    assert not found[0]["head.weight"].equal(found[1]["head.weight"])


def test_many_cells_are_compiled_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """More of them than torch.compile would compile of one function."""
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("eager")
    monkeypatch.setattr(Forward, "compile", lambda self, **how: nn.Module.compile(self, backend=counter, dynamic=False))
    trainer, data, counts = trainer_in(tmp_path / "run", compile="on"), part(), []
    for seed in range(10):
        cell = Cell(name=str(seed), arm=ARM, lr=0.1, seed=seed, steps=2)
        trainer.folder(cell).mkdir(parents=True)
        trainer.trained(cell, data)
        counts.append(counter.frame_count)
    assert counts == [1] * 10
    assert trainer.steps[ARM.kind][2].compiled
    torch._dynamo.reset()


def test_few_labels_make_small_batches_and_low_rates_for_pretrained_weights() -> None:
    expected = {(32, 10): 32, (32, 639): 32, (64, 640): 64, (64, 1_280): 128, (32, 50_000): 128, (96, 3): 32}
    expected |= {(96, 154): 32, (224, 640): 64, (224, 2_047): 128, (224, 10**6): 512}
    assert {case: usual_batch_size(*case) for case in expected} == expected
    pretrained = dataclasses.replace(ARM, state={})
    rates = {500: (0.3, 0.03), 501: (0.3, 0.1)}
    assert {labels: (ARM.usual_rate(labels), pretrained.usual_rate(labels)) for labels in rates} == rates
