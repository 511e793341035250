"""The losses of a few seeded steps, as they were when they were known to be right.

A change here means that every run made before means something else: it needs a reason, and new numbers from
`SELFIE_WRITE_GOLDEN=1 pytest tests/test_golden.py`.
"""

import json
import os
from pathlib import Path

import pytest
import torch

from selfie_cli.data import synthetic
from selfie_cli.data.batches import SampleOrder, step_generator
from selfie_cli.methods.selfie import Selfie
from selfie_cli.talk import Talk
from selfie_cli.training.loop import Plan, train
from selfie_cli.training.step import Step

GOLDEN = Path(__file__).with_name("golden_losses.json")
STEPS = 6
LR = 0.003  # moves the loss by hundredths; more would let rounding, which differs between processors, grow too far
GRIDS = {"32 px, 4x4 places": (32, 8, 24), "224 px, 7x7 rows and columns": (224, 32, 4)}


def losses(folder, image_size, patch_size, batch_size):
    stored = image_size if image_size <= 64 else 256
    pixels = torch.from_numpy(synthetic.draw(30, seed=0, size=stored)[0])
    torch.manual_seed(0)
    method = Selfie(
        backbone="resnetv2_18_w16",
        image_size=image_size,
        patch_size=patch_size,
        mask_ratio=0.25,
        factorized_positions=image_size // patch_size > 4,
        encoder_positions=True,
        final_norm=True,
        logit_scale="sqrt",
        flip=True,
        min_crop=0.5,
        apart=True,
    )
    for layer in method.attention_pooling.layers:
        layer.dropout = 0.0  # the one draw that differs between kinds of processors
    order = SampleOrder(len(pixels), batch_size, seed=0)
    optimizer = torch.optim.SGD(method.parameters(), lr=LR, momentum=0.9, nesterov=True, weight_decay=1e-4)
    train(
        Step(method, method, optimizer, micro_batch=batch_size, precision="fp32"),
        lambda step: (pixels[order.batch(step)], *method.draw(batch_size, step_generator(0, step))),
        Plan(folder=folder, steps=STEPS, lr=LR, warmup_steps=2, seed=0, save_every=0, name="golden"),
        talk=Talk(),
    )
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [round(json.loads(line)["loss"], 4) for line in lines]


@pytest.mark.parametrize("name", GRIDS)
def test_losses_are_what_they_were(name, tmp_path):
    found = losses(tmp_path, *GRIDS[name])
    assert len(found) == STEPS
    golden = json.loads(GOLDEN.read_text()) if GOLDEN.exists() else {}
    if os.environ.get("SELFIE_WRITE_GOLDEN") == "1":
        GOLDEN.write_text(json.dumps(golden | {name: found}, indent=2) + "\n")
        pytest.skip("new numbers written")
    assert found == pytest.approx(golden[name], abs=2e-3)
