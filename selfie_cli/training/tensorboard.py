"""Metrics as the event files that TensorBoard shows."""

import contextlib
import importlib.util
import os
import platform
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from selfie_cli.errors import UsageError
from selfie_cli.files import naming


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
    # Not torch's SummaryWriter: a thread of its own writes, and shows a traceback where a disk is full.
    from tensorboard.compat.proto.event_pb2 import Event, SessionLog
    from tensorboard.compat.proto.summary_pb2 import Summary
    from tensorboard.summary.writer.record_writer import RecordWriter

    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"events.out.tfevents.{time.time_ns()}.{platform.node()}.{os.getpid()}"
    with contextlib.ExitStack() as stack:
        records = RecordWriter(path.open("wb"))
        stack.callback(naming(path)(records.close))

        @naming(path)
        def write(**what: Any) -> None:
            records.write(Event(wall_time=time.time(), **what).SerializeToString())
            records.flush()  # else what a saved state has seen could be lost in a kill

        def log(step: int, values: dict[str, float]) -> None:
            shown = [Summary.Value(tag=name, simple_value=value) for name, value in values.items()]
            write(step=step, summary=Summary(value=shown))

        write(file_version="brain.Event:2")
        write(step=step + 1, session_log=SessionLog(status=SessionLog.START))
        yield log
