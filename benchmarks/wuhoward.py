"""Run the loop of github.com/wuhoward/SELFIE as a peer, imported at run time from a checkout given by the user.

Its own train_model runs, with its own networks, optimizer and settings, in fp32 as in its script. Only its data loader
is replaced, by one batch in memory; a function is called before each batch, so that another program can take a turn.
"""

import argparse
import contextlib
import io
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor


class Batches:
    """Replacement for its data loader; `seconds` are the loop's times per batch."""

    def __init__(self, batch_size: int, count: int, before_each: Callable[[], object]) -> None:
        self.dataset = range(batch_size * count)
        self.batch = (torch.randn(batch_size, 3, 32, 32), torch.zeros(batch_size, dtype=torch.long))
        self.before_each = before_each
        self.seconds: list[float] = []

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        while len(self.seconds) * len(self.batch[0]) < len(self.dataset):
            self.before_each()
            begun = time.perf_counter()
            yield self.batch  # the loop asks for the next batch when its step is done
            self.seconds.append(time.perf_counter() - begun)


def seconds_a_step(
    checkout: Path, *, batch_size: int, steps: int, before_each: Callable[[], object] = lambda: None
) -> list[float]:
    """Seconds of each step of an epoch of `steps` batches. `before_each` is called before each step."""
    sys.path.insert(0, str(checkout.resolve()))
    import preact_resnet  # type: ignore[import-not-found]
    import train_selfie  # type: ignore[import-not-found]

    sys.path.pop(0)
    asked: Any = argparse.Namespace(
        **{"lr": 0.1, "weight_decay": 1e-4, "val_cycle": 2, "batch_size": batch_size, "total_epoch": 1},
        **{"warm_up": 1000, "resume": None, "all_patch": False},
    )
    network = preact_resnet.PreActResNet50()
    network.layer4 = torch.nn.Identity()
    network.linear = torch.nn.Identity()
    encoder = train_selfie.Encoder(train_selfie.FEATURE_SIZE, 3, 16)
    optimizer = torch.optim.SGD(
        [*network.parameters(), *encoder.parameters()],
        lr=asked.lr,
        momentum=0.9,
        weight_decay=asked.weight_decay,
        nesterov=True,
    )
    batches = Batches(batch_size, steps, before_each)
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder), contextlib.redirect_stdout(io.StringIO()):
        train_selfie.train_model(network, encoder, optimizer, {"train": batches}, asked)
    return batches.seconds
