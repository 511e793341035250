"""What finetune and curve share: whose plan is fair to all arms, and whose cells are looked up, not repeated."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from listening import Listener

from selfie_cli import runs
from selfie_cli.comparison import trainer as trainers
from selfie_cli.comparison.arms import Arm
from selfie_cli.comparison.labels import Data, Part, Share, take, take_share
from selfie_cli.comparison.trainer import Cell, Trainer
from selfie_cli.config import CurveOptions
from selfie_cli.data.bad_files import BadFile
from selfie_cli.data.batches import IMAGE_ORDER
from selfie_cli.errors import UsageError
from selfie_cli.methods.supervised import Supervised
from selfie_cli.talk import Talk
from selfie_cli.training.step import Batch

SHAPE = {
    "method": "finetune",
    "arch": "resnet",
    "pretraining": "none",
    "backbone": "resnetv2_18_w16",
    "stem": "3x3",
    "image_size": 8,
    "classes": ["a", "b"],
}
WIDER = {**SHAPE, "backbone": "resnet18"}


def part(num_images: int = 40) -> Part:
    labels = torch.arange(num_images) % 2
    pixels = torch.randint(0, 255, (num_images, 8, 8, 3), dtype=torch.uint8)
    return Part(pixels=pixels, labels=labels, names=[f"{i}.png" for i in range(num_images)])


def data() -> Data:
    bad: list[BadFile] = []
    return Data(name="d", classes=["a", "b"], train=part(), test=part(), record={}, bad=bad, num_images=80, seen=[])


def trainer(talk: Talk, **options: object) -> Trainer:
    asked = CurveOptions(batch_size=4, **{"check_length": False, **options})  # type: ignore[arg-type]
    device = torch.device("cpu")
    return Trainer(options=asked, image_size=8, device=device, talk=talk)


def share(fraction: float, num_seeds: int) -> Share:
    return take_share(data(), fraction, range(num_seeds), 1)


@pytest.fixture
def _a_second_a_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """torchvision's network takes three times as long."""
    monkeypatch.setattr(trainers, "fit", lambda step, *_: 3.0 if hasattr(step.module.encoder, "layer1") else 1.0)


@pytest.mark.usefixtures("_a_second_a_step")
def test_a_budget_is_for_all_cells_of_all_shares() -> None:
    arms = [Arm(name=name, shape=shape, state=None) for name, shape in (("a", SHAPE), ("b", SHAPE), ("c", WIDER))]
    shares = [share(0.1, 3), share(1.0, 2)]
    talk = Listener()
    _, steps = trainer(talk, budget="10m").plan(arms, part(), shares)
    # Five cells an arm; a step of all three arms takes 5 s.
    assert steps == [600 // 25, 600 // 25]
    assert "about 10 min" in talk.lines[-1]
    _, steps = trainer(talk, budget="10m", lr="0.03,0.1,0.3").plan(arms, part(), shares)  # and three searches a share
    assert steps == [int(600 / 55)] * 2
    _, steps = trainer(talk, budget="10m", check_length=True).plan(arms, part(), shares)  # one and a half a share
    assert steps == [int(600 / 40)] * 2


@pytest.mark.usefixtures("_a_second_a_step")
def test_epochs_are_of_the_labels_used() -> None:
    arms = [Arm(name="a", shape=SHAPE, state=None)]
    talk = Listener()
    asked = trainer(talk, epochs=10, micro_batch=2, precision="fp32")
    sizes, steps = asked.plan(arms, part(), [share(0.2, 1), share(1.0, 1)])
    assert sizes == {"batch_size": 4, "micro_batch": 2, "precision": "fp32", "compiles": True, "processes": 1} | {
        "image_order": IMAGE_ORDER
    }
    assert steps == [10 * 8 // 4, 10 * 40 // 4]
    assert talk.lines[0].startswith("20 % of the labels: 1 networks of 20 steps (10 epochs)")


def test_a_share_too_small_to_choose_a_rate_with() -> None:
    assert take_share(data(), 0.05, range(1), 1).num_labels == 2
    with pytest.raises(UsageError, match="one label a class"):
        take_share(data(), 0.05, range(1), 2)


def test_no_batch_is_made_past_the_last_step(tmp_path: Path) -> None:
    made = []

    class Noting(Trainer):
        def batches(self, task: Supervised, part: Part, seed: int, sizes: dict[str, Any]) -> Callable[[int], Batch]:
            batch_of = super().batches(task, part, seed, sizes)

            def noted(step: int) -> Batch:
                made.append(step)
                return batch_of(step)

            return noted

    options = CurveOptions(batch_size=4, warmup_steps=1)
    noting = Noting(options=options, image_size=8, device=torch.device("cpu"), talk=Talk())
    sizes = {"batch_size": 4, "micro_batch": 4, "precision": "fp32", "compiles": False, "processes": 1, "steps": 3}
    sizes["image_order"] = IMAGE_ORDER
    run = runs.create(tmp_path / "run", verb="curve", asked={}, derived={**SHAPE, **sizes})
    arm = Arm(name="supervised", shape=SHAPE, state=None)
    assert 0 <= noting.train(run, Cell(name="one", arm=arm, lr=0.1, seed=0, steps=3), sizes, part(), part()) <= 1
    assert set(made) == {0, 1, 2}
    run.finish({})


def test_names_and_parts() -> None:
    some = share(0.25, 2)
    assert some.seeds == [0, 1]
    assert some.cell("x", 1) == "x-f0.25-s1"
    whole = part()
    taken = take(whole, np.array([3, 5]))
    assert taken.names == ["3.png", "5.png"]
    assert taken.pixels.equal(whole.pixels[[3, 5]])
    assert taken.labels.tolist() == [1, 1]


def test_an_arm_makes_what_its_shape_says_and_learns_its_classes() -> None:
    arm = Arm(name="x", shape=SHAPE, state=None).for_classes(["a", "b", "c"])
    assert arm.make().head.out_features == 3
    assert SHAPE["classes"] == ["a", "b"]
