"""Memory that this process may use, and arrays for pixels."""

import contextlib
import math
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from selfie_cli.errors import DataError


def available_memory() -> int:
    """Return the bytes this process may still use: free on this machine, within the limits of its control groups."""
    found = list(_control_group_room(Path("/proc/self/cgroup"), Path("/sys/fs/cgroup")))
    with contextlib.suppress(OSError):  # not Linux
        lines = Path("/proc/meminfo").read_text().splitlines()
        found += [int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")]
    if not found:
        found.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2)
    return min(found)


def shared_memory() -> int | None:
    """Return the size of /dev/shm in bytes, None where there is none. A container has 64 MB without --shm-size."""
    try:
        return shutil.disk_usage("/dev/shm").total
    except OSError:
        return None


def share_of_memory() -> int:
    """Return the bytes of pixels that this process may hold: half of what is available, divided among the processes of
    a torchrun job on this machine."""
    processes = os.environ.get("LOCAL_WORLD_SIZE", "")
    return available_memory() // 2 // max(1, int(processes) if processes.isdecimal() else 1)


def allocate(shape: tuple[int, int, int, int]) -> NDArray[np.uint8]:
    """Allocate uint8 in memory within `share_of_memory`, else in an unnamed temporary file, or raise DataError."""
    needed, memory = math.prod(shape), share_of_memory()
    if needed <= memory:
        return np.empty(shape, np.uint8)
    with tempfile.TemporaryFile() as file:  # the mapping outlives the file's handle
        try:
            if hasattr(os, "posix_fallocate"):  # a full disk would otherwise kill the process at some later write
                os.posix_fallocate(file.fileno(), 0, needed)
        except OSError as error:
            raise DataError(
                f"the pixels need {needed / 1e9:.1f} GB: {memory / 1e9:.1f} GB of memory may be used, and "
                f"{tempfile.gettempdir()} has no room for them ({error.strerror}). Take a smaller --image-size, or set "
                "TMPDIR to a folder on a larger disk"
            ) from error
        return np.memmap(file, np.uint8, "r+", shape=shape)


def _control_group_room(membership: Path, mount: Path) -> Iterator[int]:
    """Yield the free bytes within each memory limit of control groups, version 1 or 2. Page cache counts as free."""
    try:
        lines = membership.read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, name = line.split(":", 2)
        if controllers not in ("", "memory"):
            continue
        files = ("memory.limit_in_bytes", "memory.usage_in_bytes") if controllers else ("memory.max", "memory.current")
        root = mount / controllers
        group = root / name.lstrip("/")
        # A container sees its own group as the root, under any name: so the root is read as well.
        for folder in [group, *(parent for parent in group.parents if parent.is_relative_to(root))]:
            try:
                limit, used = ((folder / file).read_text().strip() for file in files)
                counters = dict(row.split() for row in (folder / "memory.stat").read_text().splitlines())
            except OSError:
                continue
            if limit.isdigit() and int(limit) < 2**60:  # "max", or version 1's huge number: no limit
                cache = counters.get("total_inactive_file", counters.get("inactive_file", "0"))
                yield max(0, int(limit) - int(used) + int(cache))
