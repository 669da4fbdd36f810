"""How workers of a DataLoader start: forked, or anew with nothing but what was pickled for them.

A spawned worker imports torch for three seconds. One of a fork server gets the same bytes and is
forked from a process that has torch, and nothing of the test; so these run by default, and the
spawned ones with ``-m large``.
"""

from __future__ import annotations

import multiprocessing
from typing import Any, Final

import pytest

METHODS: Final[list[Any]] = [
    "fork",
    "forkserver",
    pytest.param("spawn", marks=pytest.mark.large),
]
"""For ``multiprocessing_context``."""

multiprocessing.set_forkserver_preload(
    ["torch", "mldb.gpu.reference", "mldb.lake.stream.dataset", "tests.support.lakes"]
)
