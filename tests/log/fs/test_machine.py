"""The memory estimate: a positive number below what the machine has, bound by the control group."""

from __future__ import annotations

import os

import pytest

from mldb.log.fs import machine as os_memory
from mldb.log.fs.machine import (
    allowed_cores,
    available_memory,
    filesystem_kind,
    is_local,
)

MACHINE = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
GROUP = "/sys/fs/cgroup/memory.max"
OLD_GROUP = "/sys/fs/cgroup/memory/memory.limit_in_bytes"


def test_there_is_some_memory_and_not_more_than_the_machine_has() -> None:
    assert 0 < available_memory() <= MACHINE


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, MACHINE),
        ({"/proc/meminfo": "MemTotal: 9 kB\nMemAvailable:    7 kB\nHugePages_Total: 0\n"}, 7 << 10),
        ({"/proc/meminfo": "MemAvailable: 7 kB\n", GROUP: "5000\n"}, 5000),
        ({"/proc/meminfo": "MemAvailable: 7 kB\n", OLD_GROUP: "6000\n"}, 6000),
        ({"/proc/meminfo": "MemAvailable: 7 kB\n", GROUP: "max\n"}, 7 << 10),
        ({"/proc/meminfo": "nonsense\na:b:c\n", GROUP: "", OLD_GROUP: "-1"}, MACHINE),
    ],
)
def test_the_least_of_what_the_system_says_counts(
    monkeypatch: pytest.MonkeyPatch, files: dict[str, str], expected: int
) -> None:
    monkeypatch.setattr(
        os_memory, "_lines", lambda path: files.get(path, "").splitlines(keepends=True)
    )
    assert available_memory() == expected
    # What is free at the moment has no part in the whole.
    limits = [
        int(limit)
        for name in (GROUP, OLD_GROUP)
        if (limit := files.get(name, "").strip()).isdecimal()
    ]
    assert os_memory.total_memory() == min([MACHINE, *map(int, limits)])


def test_a_file_that_cannot_be_read_says_nothing() -> None:
    assert os_memory._lines("/proc/this is not there") == []
    assert os_memory._lines("/proc") == []


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, 8.0),
        ({"/proc/self/cgroup": "0::/\n", "/sys/fs/cgroup/cpu.max": "max 100000\n"}, 8.0),
        ({"/proc/self/cgroup": "0::/\n", "/sys/fs/cgroup/cpu.max": "150000 100000\n"}, 1.5),
        (
            {  # the group of the job has none, that of the user around it has
                "/proc/self/cgroup": "0::/user/job\n",
                "/sys/fs/cgroup/user/cpu.max": "300000 100000\n",
                "/sys/fs/cgroup/user/job/cpu.max": "max 100000\n",
            },
            3.0,
        ),
        (
            {
                "/proc/self/cgroup": "9:name=systemd:/x\n4:cpu,cpuacct:/box\n0::/\n",
                "/sys/fs/cgroup/cpu/box/cpu.cfs_quota_us": "50000\n",
                "/sys/fs/cgroup/cpu/box/cpu.cfs_period_us": "100000\n",
            },
            0.5,
        ),
        (
            {
                "/proc/self/cgroup": "4:cpu:/\n",
                "/sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1\n",
                "/sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
            },
            8.0,
        ),
        ({"/proc/self/cgroup": "nonsense\n\n0\n", "/sys/fs/cgroup/cpu.max": "1 0\n"}, 8.0),
    ],
)
def test_the_cores_are_those_a_process_is_bound_to_and_its_groups_may_use(
    monkeypatch: pytest.MonkeyPatch, files: dict[str, str], expected: float
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: range(8))
    monkeypatch.setattr(os_memory, "_lines", lambda path: files.get(path, "").splitlines())
    assert allowed_cores() == expected


def test_there_is_a_core_to_run_on() -> None:
    assert 0 < allowed_cores() <= (os.cpu_count() or 1)


MOUNTS = """\
21 1 254:0 / / rw - ext4 /dev/vda rw
22 21 0:21 / /mnt/far rw shared:1 - nfs4 server:/x rw
23 21 0:22 / /mnt/a\\040blank rw - fuse.sshfs host: rw
24 21 0:23 / /mnt/twice rw - cifs //x rw
25 21 0:24 / /mnt/twice rw - xfs /dev/vdb rw
26 22 0:25 / /mnt/far/scratch rw - btrfs /dev/vdc rw
nonsense
"""


@pytest.mark.parametrize(
    ("folder", "kind", "local"),
    [
        ("/some/store", "ext4", True),
        ("/", "ext4", True),
        ("/mnt/far", "nfs4", False),
        ("/mnt/far/run", "nfs4", False),
        ("/mnt/farther", "ext4", True),
        ("/mnt/far/scratch/run", "btrfs", True),
        ("/mnt/a blank/run", "fuse.sshfs", False),
        ("/mnt/twice/run", "xfs", True),
    ],
)
def test_a_folder_is_local_where_its_mount_is(
    monkeypatch: pytest.MonkeyPatch, folder: str, kind: str, local: bool
) -> None:
    monkeypatch.setattr(os_memory, "_lines", lambda path: MOUNTS.splitlines())
    monkeypatch.setattr(os.path, "realpath", lambda path: path)
    assert filesystem_kind(folder) == kind
    assert is_local(folder) == local


def test_where_the_system_says_nothing_a_disk_is_not_known_to_be_local(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(os_memory, "_lines", lambda path: [])
    assert not is_local("/some/store")


def test_a_machine_is_told_from_others(monkeypatch: pytest.MonkeyPatch) -> None:
    assert os_memory.boot_id() == os_memory.boot_id()
    monkeypatch.setattr(os_memory, "_lines", lambda path: ["ab-cd"])
    assert os_memory.boot_id() == "ab-cd"
    monkeypatch.setattr(os_memory, "_lines", lambda path: [])
    assert os_memory.boot_id() == ""
