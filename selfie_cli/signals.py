"""Ctrl-C, SIGTERM and SIGHUP: a command gives up tidily, and exits as shells expect."""

import contextlib
import os
import signal
from collections.abc import Callable, Iterator
from types import FrameType

STOPPING = (signal.SIGINT, signal.SIGTERM, *([signal.SIGHUP] if hasattr(signal, "SIGHUP") else []))
"""SIGHUP comes when a terminal or an SSH connection closes."""


def is_alone() -> bool:
    """Whether this is not one of several processes that torchrun has started, and ends by SIGTERM as they come.

    Those may be waiting for each other where Python's handlers would not run.
    """
    return os.environ.get("WORLD_SIZE", "1") in ("", "1")


def leave(number: int, frame: FrameType | None) -> None:
    """While there is nothing to tidy up."""
    os._exit(128 + number)


def give_up(number: int, frame: FrameType | None) -> None:
    """Raise KeyboardInterrupt(number); leave at once from within an import.

    Libraries take an exception in the middle of theirs for one of their own, go on without what was to be imported, or
    abort.
    """
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            leave(number, frame)
        frame = frame.f_back
    raise KeyboardInterrupt(number)


def ignored(number: int) -> bool:
    """Whether this process was started with nohup, or the like."""
    return number not in (signal.SIGINT, signal.SIGTERM) and signal.getsignal(number) == signal.SIG_IGN


@contextlib.contextmanager
def handled(handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    """SIGINT, SIGTERM and, unless it is ignored, SIGHUP call `handler`, if this is the main thread; elsewhere, whoever
    runs us sees to them."""
    try:
        before = {number: signal.signal(number, handler) for number in STOPPING if not ignored(number)}
    except ValueError:
        before = {}
    try:
        yield
    finally:
        for number, previous in before.items():
            signal.signal(number, previous)
