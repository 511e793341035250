"""Ctrl-C, SIGTERM and SIGHUP: commands clean up and exit with the codes that shells expect."""

import contextlib
import os
import signal
from collections.abc import Callable, Iterator
from types import FrameType

STOPPING = (signal.SIGINT, signal.SIGTERM, *([signal.SIGHUP] if hasattr(signal, "SIGHUP") else []))
"""SIGHUP comes when a terminal or an SSH connection closes."""


def is_alone() -> bool:
    """Whether this process is not one of several that torchrun has started.

    Those keep the default handlers outside of training: they may wait for each other where Python's would not run.
    """
    return os.environ.get("WORLD_SIZE", "1") in ("", "1")


def leave(number: int, frame: FrameType | None) -> None:
    """Exit at once, while there is nothing to clean up."""
    os._exit(128 + number)


def give_up(number: int, frame: FrameType | None) -> None:
    """Raise KeyboardInterrupt(number); within an import, exit at once: libraries take an exception there for a failed
    import, and go on without it or abort."""
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            leave(number, frame)
        frame = frame.f_back
    raise KeyboardInterrupt(number)


def ignored(number: int) -> bool:
    """Whether this process was started with nohup or similar."""
    return number not in (signal.SIGINT, signal.SIGTERM) and signal.getsignal(number) == signal.SIG_IGN


@contextlib.contextmanager
def handled(handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    """Let SIGINT, SIGTERM and, unless it is ignored, SIGHUP call `handler`. Outside the main thread nothing changes."""
    try:
        before = {number: signal.signal(number, handler) for number in STOPPING if not ignored(number)}
    except ValueError:
        before = {}
    try:
        yield
    finally:
        for number, previous in before.items():
            signal.signal(number, previous)
