"""The order of the tests when several workers share them.

With ``--dist worksteal`` a worker begins with one of as many equal parts of the tests as there are
workers, in their order; who is done helps another from the end of its part. So what takes long
stands at the beginnings of the parts: at the end nobody is left alone with it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest


def dealt(items: Sequence[pytest.Item], workers: int) -> list[pytest.Item]:
    """Return the tests in *workers* parts of one length, each with files of slow tests first.

    A file stays together as far as the lengths allow, for what its tests share.
    """
    files: dict[Path, list[pytest.Item]] = {}
    for item in items:
        files.setdefault(item.path, []).append(item)

    def slow(path: Path) -> int:
        return sum(item.get_closest_marker("slow") is not None for item in files[path])

    parts: list[list[pytest.Item]] = [[] for _ in range(workers)]
    for number, path in enumerate(sorted(files, key=slow, reverse=True)):
        part = parts[number % workers] if slow(path) else min(parts, key=len)
        part += files[path]
    length = len(items) // workers
    spare = [item for part in parts for item in part[length:]]
    for part in parts:
        del part[length:]
        missing = length - len(part)
        part += spare[:missing]
        del spare[:missing]
    return [item for part in [*parts, spare] for item in part]
