"""A FileSystem in which something else happens right before one of its calls."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from mldb.log.fs.protocol import FileSystem
from tests.support.faults import FaultFileSystem


class Hooked(FaultFileSystem):
    """Runs an act before the n-th call from now on; ``happened`` names that call then."""

    def __init__(self, inner: FileSystem) -> None:
        super().__init__(inner)
        self.happened = ""
        self._left = 0
        self._act: Callable[[], object] = lambda: None

    def at(self, number: int, act: Callable[[], object]) -> None:
        """Let *act* happen once, before the *number*-th call."""
        self._left, self._act, self.happened = number, act, ""

    def fault_of(self, kind: str) -> Any:
        """Count a call, after doing it if it is time."""
        self._left -= 1
        if self._left == 0:
            self.happened = kind
            self._act()
        return super().fault_of(kind)
