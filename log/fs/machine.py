"""What the machine has: memory, cores, kinds of disks. Questions to the system are asked here."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from typing import Final

_OCTAL: Final = re.compile(r"\\([0-7]{3})")
"""How /proc/self/mountinfo writes a blank."""

_ELSEWHERE: Final = frozenset(
    {
        *("9p", "afs", "beegfs", "ceph", "cifs", "coda", "gfs2", "glusterfs", "gpfs", "lustre"),
        *("ncpfs", "nfs", "nfs4", "ocfs2", "orangefs", "smb3", "smbfs", "virtiofs"),
    }
)
"""Kinds of file systems whose bytes lie on another machine, beside all of FUSE."""


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


def boot_id() -> str:
    """Return what tells this machine, since its last start, from every other; "" if unknown."""
    return "".join(_lines("/proc/sys/kernel/random/boot_id")).strip()


def allowed_cores() -> float:
    """Return how many cores this process may use: those it is bound to, and its group's quota."""
    bound = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return min([float(bound or 1), *_quotas()])


def _quotas() -> Iterator[float]:
    """The quotas of the control groups that this process is in, and of those around them."""
    for line in _lines("/proc/self/cgroup"):
        number, _, rest = line.partition(":")
        kinds, _, path = rest.partition(":")
        if number != "0" and "cpu" not in kinds.split(","):
            continue
        base = "/sys/fs/cgroup" if number == "0" else "/sys/fs/cgroup/cpu"
        parts = [part for part in path.split("/") if part]
        for depth in range(len(parts) + 1):
            folder = "/".join([base, *parts[:depth]])
            if number == "0":
                yield from _quota(" ".join(_lines(f"{folder}/cpu.max")[:1]))
            else:
                files = (f"{folder}/cpu.cfs_quota_us", f"{folder}/cpu.cfs_period_us")
                yield from _quota(" ".join(line for file in files for line in _lines(file)))


def _quota(text: str) -> Iterator[float]:
    """The cores that a quota and its period mean; none where there is no limit."""
    quota, _, period = text.partition(" ")
    if quota.isdigit() and period.isdigit() and int(period):
        yield int(quota) / int(period)


def filesystem_kind(folder: str) -> str:
    """Return the kind of the file system that a folder lies on, as "ext4"; "" where unknown."""
    path = os.path.realpath(folder)
    found, longest = "", -1
    for line in _lines("/proc/self/mountinfo"):
        mount, _, source = line.partition(" - ")
        fields = mount.split()
        if len(fields) < 5 or not source:
            continue
        point = _OCTAL.sub(lambda match: chr(int(match[1], 8)), fields[4])
        inside = path == point or path.startswith(point.rstrip("/") + "/")
        if inside and len(point) >= longest:  # the last one of a point hides those before
            found, longest = source.split()[0], len(point)
    return found


def is_local(folder: str) -> bool:
    """Tell whether a folder lies on a disk of this machine; where that is unknown it does not."""
    kind = filesystem_kind(folder)
    return bool(kind) and not kind.startswith("fuse") and kind not in _ELSEWHERE
