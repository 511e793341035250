"""Ctrl-C, SIGTERM and SIGHUP: commands clean up and exit with the codes that shells expect."""

import contextlib
import os
import signal
from collections.abc import Callable, Iterator
from types import FrameType

STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
"""SIGHUP comes when a terminal or an SSH connection closes."""


def is_alone() -> bool:
    """Return whether this is the only process of a job, not one of several started by torchrun.

    Processes of torchrun keep the default handlers outside training: Python handlers do not run while they wait for
    each other.
    """
    return os.environ.get("WORLD_SIZE", "1") in ("", "1")


def is_first() -> bool:
    """Return whether this process is alone, or the first one of its job, which writes and talks for all."""
    return is_alone() or os.environ.get("RANK", "0") in ("", "0")


def leave(number: int, frame: FrameType | None) -> None:
    """Exit at once. Used before there is anything to clean up."""
    os._exit(128 + number)


def give_up(number: int, frame: FrameType | None) -> None:
    """Raise KeyboardInterrupt(number). During an import, exit at once instead: libraries would treat the exception as a
    failed import, and continue without the module or abort."""
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            leave(number, frame)
        frame = frame.f_back
    raise KeyboardInterrupt(number)


def ignored(number: int) -> bool:
    """Return whether a signal is ignored because this process was started with nohup or similar."""
    return number not in (signal.SIGINT, signal.SIGTERM) and signal.getsignal(number) == signal.SIG_IGN


@contextlib.contextmanager
def handled(handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    """Call `handler` on SIGINT, SIGTERM and, unless it is ignored, SIGHUP. Do nothing outside the main thread."""
    try:
        before = {number: signal.signal(number, handler) for number in STOPPING if not ignored(number)}
    except ValueError:
        before = {}
    try:
        yield
    finally:
        for number, previous in before.items():
            signal.signal(number, previous)
