"""Says which images were being decoded when this process dies without a word: of a crash in a decoder, or killed.

Only another process can say so. This file is its program as well: it waits for the end of a pipe, which comes with our
own end, however we end, and then looks for names in memory that it shares with us.
"""

import atexit
import contextlib
import mmap
import os
import subprocess
import sys
import threading
from types import TracebackType

SLOTS = 512  # threads that decode at once; more of them would share the first
WIDTH = 1024  # bytes of a name, with a zero at its end; those of a free slot begin with one
MEMORY = SLOTS * WIDTH


class Guard:
    """Started when the first image is read; without one (it needs Linux, and room for a process) nothing is said."""

    def __init__(self) -> None:
        self.free = list(range(0, MEMORY, WIDTH))
        self.slots: mmap.mmap | bytearray = bytearray(MEMORY)
        if not hasattr(os, "memfd_create"):
            return
        with contextlib.suppress(OSError), open(os.memfd_create("selfie"), "r+b") as shared:
            shared.truncate(MEMORY)
            self.process = subprocess.Popen(
                (sys.executable, "-I", "-S", __file__, str(shared.fileno())),
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                pass_fds=[shared.fileno()],
                start_new_session=True,  # Ctrl-C is not for it
                cwd="/",
            )
            self.slots = mmap.mmap(shared.fileno(), MEMORY)
            atexit.register(self.dismiss)

    def dismiss(self) -> None:
        with contextlib.suppress(OSError, ValueError, subprocess.TimeoutExpired):  # it was killed, or dismissed before
            self.process.communicate(b"goodbye", timeout=5)


_guard: Guard | None = None
_starting = threading.Lock()


def _started() -> Guard:
    global _guard
    with _starting:
        _guard = _guard or Guard()
    return _guard


class reading:
    """For the length of a with block, this thread decodes the image `name`. Costs 2 microseconds, as a generator 4."""

    __slots__ = ("guard", "slot")

    def __init__(self, name: str) -> None:
        self.guard = _guard or _started()
        self.slot = self.guard.free.pop() if self.guard.free else 0
        noted = name.encode("utf-8", "backslashreplace")[: WIDTH - 1] + b"\0"
        self.guard.slots[self.slot : self.slot + len(noted)] = noted

    def __enter__(self) -> None:
        pass

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.guard.slots[self.slot] = 0
        self.guard.free.append(self.slot)


def dismiss() -> None:
    """This process is about to end, as it should: whoever lets it end without Python's own clearing up says so."""
    if _guard is not None and isinstance(_guard.slots, mmap.mmap):
        _guard.dismiss()


def watch(shared: int) -> None:
    """Wait for those who started us to end. If they say no goodbye, tell what they were decoding."""
    if sys.stdin.buffer.read():
        return
    noted = os.pread(shared, MEMORY, 0)
    slots = (noted[start : start + WIDTH] for start in range(0, MEMORY, WIDTH))
    names = ", ".join(slot[: slot.index(0)].decode("utf-8", "replace") for slot in slots if slot[0])
    if names:
        # As talk.printable: this program imports nothing of ours, to be small and there soon.
        names = "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in names)
        print(
            f"error: selfie ended without a word (killed, out of memory, or a crash in a decoder) while it decoded "
            f"{names}: look at them with selfie doctor, and take out what is broken, unless you have ended it",
            file=sys.stderr,
        )


if __name__ == "__main__":
    watch(int(sys.argv[1]))
