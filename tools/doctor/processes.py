"""Which processes use a store: their registrations, and whether they are alive. Changes nothing."""

from __future__ import annotations

import os
from dataclasses import dataclass

from mldb.log.fs.protocol import FileSystem
from mldb.log.readers import NEEDS_NOTHING, READERS, registrations
from mldb.tools.doctor.locks import see_lock


@dataclass(frozen=True, slots=True)
class ProcessSeen:
    """One registration. ``lowest`` is the lowest commit that it needs, None for none.

    ``is_alive`` tells whether its kernel lock is held; None where that cannot be told. ``pid`` is 0
    where the file cannot be decoded, and then it counts as needing every commit. ``age`` is in
    seconds, ``acknowledged`` the highest commit that it called durable.
    """

    name: str
    pid: int
    host: str
    age: float
    lowest: int | None
    acknowledged: int
    is_alive: bool | None

    @property
    def is_here(self) -> bool:
        """Whether it runs, or ran, on this machine."""
        return self.host == os.uname().nodename


def processes(fs: FileSystem) -> list[ProcessSeen]:
    """Return every registration, the living ones and the lowest needs first.

    Raises StorageIOError where the folder cannot be listed.
    """
    now = fs.time_ns()
    found = []
    for reader in registrations(fs):
        state = see_lock(fs.root, f"{READERS}/{reader.name}").state
        if state == "absent":  # it ended meanwhile
            continue
        found.append(
            ProcessSeen(
                reader.name,
                reader.pid,
                reader.host,
                max(now - reader.started_ns, 0) / 1e9 if reader.pid else 0.0,
                None if reader.lowest >= NEEDS_NOTHING else reader.lowest,
                reader.acknowledged,
                {"held": True, "free": False}.get(state),
            )
        )
    return sorted(found, key=_rank)


def _rank(item: ProcessSeen) -> tuple[bool, float, str]:
    return item.is_alive is False, item.lowest or float("inf"), item.name
