"""The memory estimate: a positive number below what the machine has, bound by the control group."""

from __future__ import annotations

import os

import pytest

from mldb.log.fs import machine as os_memory
from mldb.log.fs.machine import available_memory

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
