"""Metrics as the event files that TensorBoard shows."""

import contextlib
import importlib.util
from collections.abc import Callable, Iterator
from pathlib import Path

from selfie_cli.errors import UsageError


def check_log(log: str | None) -> None:
    """Raises UsageError if what `--log` asks for is not installed."""
    if log == "tensorboard" and importlib.util.find_spec("tensorboard") is None:
        raise UsageError("--log tensorboard needs it: pip install 'selfie-cli[tensorboard]'")


@contextlib.contextmanager
def events(folder: Path | None, step: int) -> Iterator[Callable[[int, dict[str, float]], None]]:
    """A function to call with a step and its values, which go to an event file in `folder`; nothing does if it is None.

    What an earlier part of the run has written there of later steps than `step` is marked as void.
    """
    if folder is None:
        yield lambda step, values: None
        return
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(str(folder), purge_step=step + 1) as writer:

        def log(step: int, values: dict[str, float]) -> None:
            for name, value in values.items():
                writer.add_scalar(name, value, step)
            writer.flush()  # else what a saved state has seen could be lost in a kill

        yield log
