"""Whose process this is: what was opened before a fork belongs to the parent.

A forked child has copies of everything its parent had open, and shares the parent's descriptors:
a write, an unlink, an unlock, even an fsync (which takes the report of a failure from the parent)
would happen to the parent. So whoever can change something keeps the process that made it.
"""

from __future__ import annotations

import os
from typing import Final

from mldb.errors import ClosedError


class Process:
    """One life between two forks. Compared by identity, since the system uses pids again."""

    __slots__ = ("pid",)

    def __init__(self) -> None:
        self.pid = os.getpid()


CURRENT: Final = [Process()]
"""Its only item is this process. Asking the system for the pid would cost every write more."""


def _note_fork() -> None:
    CURRENT[0] = Process()


os.register_at_fork(after_in_child=_note_fork)


def forked(maker: Process, where: str) -> ClosedError:
    """What a change gets in a child of the process that opened *where*."""
    return ClosedError(
        f"{where} was opened in process {maker.pid} and is used in its forked child "
        f"{CURRENT[0].pid}, which changes nothing of its parent's. Nothing was changed; open the "
        "store again in the child."
    )
