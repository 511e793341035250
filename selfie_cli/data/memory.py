"""How much memory there is to take."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path


def available_memory() -> int:
    """Bytes that this process may still take: what the machine has free, within the limits of its control groups."""
    found = list(_control_group_room(Path("/proc/self/cgroup"), Path("/sys/fs/cgroup")))
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                found.append(int(line.split()[1]) * 1024)
    except OSError:
        pass  # not Linux
    if not found and hasattr(os, "sysconf"):
        found.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2)
    return min(found, default=4 * 2**30)


def shared_memory() -> int | None:
    """Bytes of shared memory (/dev/shm), free or not; None where there is none.

    A container has 64 MB unless it was started with another --shm-size.
    """
    try:
        return shutil.disk_usage("/dev/shm").total
    except OSError:
        return None


def share_of_memory() -> int:
    """Bytes of pixels that this process may hold: half of what is available, divided among the processes of a job that
    are on this machine, whose number torchrun puts into the environment."""
    processes = os.environ.get("LOCAL_WORLD_SIZE", "")
    return available_memory() // 2 // max(1, int(processes) if processes.isdecimal() else 1)


def _control_group_room(membership: Path, mount: Path) -> Iterator[int]:
    """Limit less use for each control group this process is in, of version 1 or 2; page cache counts as free."""
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
        # A container sees its own group as the root, whatever the name says: the root is read as well.
        for folder in [group, *(parent for parent in group.parents if parent.is_relative_to(root))]:
            try:
                limit, used = ((folder / file).read_text().strip() for file in files)
                counters = dict(row.split() for row in (folder / "memory.stat").read_text().splitlines())
            except OSError:
                continue
            if limit.isdigit() and int(limit) < 2**60:  # "max", or version 1's huge number: no limit
                cache = counters.get("total_inactive_file", counters.get("inactive_file", "0"))
                yield max(0, int(limit) - int(used) + int(cache))
