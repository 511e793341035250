"""Finetuning's own loss, and the average of its weights."""

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from selfie_cli.methods.supervised import Supervised
from selfie_cli.models.classifier import Classifier
from selfie_cli.talk import Talk
from selfie_cli.training.loop import train
from selfie_cli.training.optimizers import make_optimizer
from selfie_cli.training.step import Batch, Step

STEPS = 6
DECAY = math.exp(-1 / 3)


def make() -> tuple[Supervised, Step]:
    torch.manual_seed(0)
    module = Classifier("resnetv2_18_w16", stem="3x3", num_classes=3)
    task = Supervised(module, image_size=8, min_crop=0.5, decay=DECAY)
    optimizer = make_optimizer(
        "sgd", module, lr=0.0, weight_decay=1e-4, scaled={"backbone.stem.conv.weight"}, scale=0.1
    )
    return task, Step(task, task, optimizer, micro_batch=8, precision="fp32", after=task.after_step)


def batch_of(step: int) -> Batch:
    generator = torch.Generator().manual_seed(step)
    pixels = torch.randint(0, 256, (8, 8, 8, 3), dtype=torch.uint8, generator=generator)
    return pixels, torch.arange(8) % 3, torch.randint(0, 9, (8, 3), generator=generator).clamp(max=1)


def run(folder: Path, step: Step, batches: Callable[[int], Batch] = batch_of) -> None:
    folder.mkdir(exist_ok=True)
    train(
        step,
        batches,
        folder=folder,
        total=STEPS,
        lr=0.05,
        warmup=2,
        seed=0,
        save_every=0,
        talk=Talk(),
        what="",
        resume_hint="",
    )


def test_the_average_is_one_of_all_weights_and_statistics(tmp_path: Path) -> None:
    task, step = make()
    before = {name: tensor.clone() for name, tensor in task.classifier.state_dict().items()}
    seen: list[dict[str, torch.Tensor]] = []
    update = step.after

    def noted(done: float) -> None:
        seen.append({name: tensor.clone().double() for name, tensor in task.classifier.state_dict().items()})
        update(done)

    step.after = noted
    run(tmp_path / "run", step)
    expected = seen[0]
    for each in seen[1:]:
        expected = {name: DECAY * tensor + (1 - DECAY) * each[name] for name, tensor in expected.items()}
    for name, tensor in task.judged.state_dict().items():
        if "num_batches" not in name:
            torch.testing.assert_close(tensor.double(), expected[name], rtol=1e-4, atol=1e-6)
            assert not tensor.equal(task.classifier.state_dict()[name]), name
    assert before.keys() == task.judged.state_dict().keys()  # what is kept is a classifier as any other


def test_an_interrupted_average_goes_on_bit_for_bit(tmp_path: Path) -> None:
    whole, step = make()
    run(tmp_path / "whole", step)

    def killed(step: int) -> Batch:
        if step == 4:
            raise MemoryError
        return batch_of(step)

    with pytest.raises(MemoryError):
        run(tmp_path / "part", make()[1], killed)
    part, step = make()
    run(tmp_path / "part", step)
    for name, tensor in whole.state_dict().items():
        assert tensor.equal(part.state_dict()[name]), name


def test_a_scaled_rate_is_the_rate_of_what_is_named_alone() -> None:
    task, step = make()
    fresh, scaled = step.optimizer.param_groups
    assert scaled["params"] == [task.classifier.backbone.stem["conv"].weight]
    assert len(fresh["params"]) + 1 == len(list(task.classifier.parameters()))
    assert (fresh["scale"], scaled["scale"]) == (1.0, 0.1)
