"""How much memory there is: a question to the system, so it is asked here."""

from __future__ import annotations

import os


def available_memory() -> int:
    """Return about how many bytes of memory this process can still take without swapping.

    Linux: what the kernel calls available, and no more than the limit of the control group;
    elsewhere the memory of the machine. An estimate of this moment.
    """
    memory = dict(line.split(":") for line in _lines("/proc/meminfo") if line.count(":") == 1)
    free = memory.get("MemAvailable")
    whole = total_memory()
    return whole if free is None else min(whole, int(free.split()[0]) * 1024)


def total_memory() -> int:
    """Return how many bytes of memory this process may have: the machine's, or its group's."""
    found = [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
    for path in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        found.extend(int(line) for line in _lines(path) if line.strip().isdigit())
    return min(found)


def _lines(path: str) -> list[str]:
    try:
        with open(path, "rb") as file:
            return file.read().decode("utf-8", "replace").splitlines()
    except OSError:
        return []
