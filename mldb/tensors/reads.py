"""What one handle reads of versions that are not the newest, told to all now and then.

The newest version of a name is never cold, and one that was the newest until lately counts as read
until then. So who reads the newest notes nothing: a comparison of two objects tells it.
"""

from __future__ import annotations

import atexit
import time
import weakref
from contextlib import suppress
from typing import Any, Final

from mldb import keys
from mldb.compaction.reads import (
    READS_MAX,
    Reads,
    add_reads,
    load_reads,
    merge_reads,
    no_reads,
    reads_of,
)
from mldb.errors import MldbError
from mldb.log.aside import Aside
from mldb.log.fs.process import CURRENT
from mldb.log.fs.protocol import FileSystem
from mldb.log.ownership import OwnedLock

GRAIN_SECONDS: Final = 60
"""A read of a version is noted when the last one is so long ago."""
TELL_SECONDS: Final = 60.0
"""What was noted is told at most so often, and when the handle closes."""
FRESH_MAX: Final = 1 << 14
"""So many reads are held as they are noted, before they become rows."""
_PATIENCE: Final = 1.0
_NS: Final = 10**9
GRAIN_NS: Final = GRAIN_SECONDS * _NS
_NEVER: Final = 1 << 63

_all: Final[weakref.WeakSet[ReadNotes]] = weakref.WeakSet()


class ReadNotes:
    """The reads of one handle. Any thread.

    ``_fresh`` is changed in single steps; a race costs a note. ``_turn`` guards the rest.
    """

    __slots__ = (
        *(
            "__weakref__",
            "_fresh",
            "_fs",
            "_notes",
            "_now",
            "_process",
            "_rows",
            "_store_id",
            "_told_at",
            "_turn",
        ),
        *("noted", "told"),
    )

    def __init__(self, fs: FileSystem, store_id: bytes, *, notes: bool = True) -> None:
        self._fs = fs
        self._notes = notes
        self._now = fs.time_ns
        self._store_id = store_id
        self._process = CURRENT[0]
        self._turn = OwnedLock("the read notes of this handle")
        self._fresh: dict[tuple[str, int], int] = {}
        self._rows = no_reads()  # noted and not told yet
        self._told_at = time.monotonic()
        self.noted = 0
        self.told = 0  # versions in the hint, as it was when this handle wrote it last
        _all.add(self)

    def note(self, name: str, commit: int) -> None:
        """Note that the version of tensor *name* that *commit* stored is read now."""
        if not self._notes:
            return
        now = self._now()
        version = name, commit
        if 0 <= now - self._fresh.get(version, _NEVER) <= GRAIN_NS:
            return
        self._fresh[version] = now
        self.noted += 1
        if len(self._fresh) >= FRESH_MAX:
            guard = self._turn.try_hold()
            if guard is not None:
                with guard:
                    self._gather()

    def _gather(self) -> None:
        """Make rows of what was noted."""
        fresh, self._fresh = self._fresh, {}
        told = [
            (keys.TENSORS + name.encode(), commit, now // _NS)
            for (name, commit), now in tuple(fresh.items())
        ]
        self._rows = merge_reads([self._rows, reads_of(told)], self._fs.time_ns())

    def tell_if_due(self) -> None:
        """Tell in a thread aside, where something was noted and the last time is long ago.

        Costs a comparison where nothing was noted.
        """
        if not self._fresh and not len(self._rows):
            return
        now = time.monotonic()
        if now - self._told_at >= TELL_SECONDS and self._process is CURRENT[0]:
            self._told_at = now
            Aside(self.tell)

    def tell(self) -> None:
        """Add what was noted to the hint that all processes share. Never raises."""
        if self._process is not CURRENT[0] or not (self._fresh or len(self._rows)):
            return
        guard = self._turn.hold_unless_inside()
        if guard is None:
            return
        with guard, suppress(MldbError):
            self._gather()
            self._told_at = time.monotonic()
            if not len(self._rows):
                return
            count = add_reads(self._fs, self._store_id, self._rows, _PATIENCE)
            if count is not None:
                self._rows, self.told = no_reads(), count

    def known(self) -> Reads:
        """Return the last reads by any handle, as far as they were told, and by this one."""
        guard = self._turn.hold_unless_inside()
        if guard is not None:
            with guard:
                self._gather()
        return merge_reads([load_reads(self._fs, self._store_id), self._rows], self._fs.time_ns())

    def stats(self) -> dict[str, Any]:
        """How much was noted here, is not told yet, was in the hint when it was; and the bounds."""
        return {
            "noted": self.noted,
            "untold": len(self._fresh) + len(self._rows),
            "told": self.told,
            "limit": READS_MAX,
            "grain_seconds": GRAIN_SECONDS,
            "tell_seconds": TELL_SECONDS,
        }


def _end() -> None:
    """At the end of the program, where stores were left open."""
    for notes in list(_all):
        notes.tell()


atexit.register(_end)
