"""What a background worker last said of itself: a hint, which every process may read or lose."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, field, fields
from typing import Any, Final

from mldb.deferred import dataclass
from mldb.log.active import HINTS
from mldb.log.fs.protocol import FileSystem
from mldb.log.hints import load_hint, save_hint

STATUS: Final = "worker"
WORKER_LOCK: Final = f"{HINTS}/worker.lock"
"""Held by the one worker of a store for as long as it lives."""
_ERROR_CHARACTERS: Final = 2000


@dataclass(frozen=True, slots=True)
class WorkerStatus:
    """One worker: the one that runs, or the last one. Sizes in bytes, times in ns since 1970.

    ``job`` is what it is at or was at last, ``state`` "looking", "working", "paused", "ended" or
    "failed". ``reports`` are those of its jobs by name. ``size`` is that of the store when it was
    looked at, ``expected`` what a pass would have given back then, and ``left`` that of it which
    was not carried out.
    """

    pid: int
    started: int
    state: str = "looking"
    job: str = ""
    done: int = 0
    total: int = 0
    error: str = ""
    looked: int = 0
    size: int = 0
    expected: int = 0
    left: int = 0
    returned: int = 0
    """What this worker and those before it gave back, as far as their status was not lost."""
    reports: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    @property
    def is_unfinished(self) -> bool:
        """Whether the worker did not say that it has ended."""
        return self.pid > 0 and self.state not in ("ended", "failed")

    def save(self, fs: FileSystem) -> None:
        """Save it where the disk lets it; one that cannot be saved changes nothing."""
        value = asdict(self)
        value["error"] = self.error[:_ERROR_CHARACTERS]
        save_hint(fs, STATUS, value)


def load_status(fs: FileSystem) -> WorkerStatus | None:
    """Return what the last worker said; None where none did, or where it cannot be read."""
    found = load_hint(fs, STATUS)
    if not isinstance(found, dict):
        return None
    known = {item.name: item for item in fields(WorkerStatus)}
    values = {name: value for name, value in found.items() if name in known}
    blank = WorkerStatus(0, 0)
    if not {"pid", "started"} <= values.keys() or not all(
        type(value) is type(getattr(blank, name)) for name, value in values.items()
    ):
        return None  # of a version that says other things
    return WorkerStatus(**values)


def has_worker(fs: FileSystem) -> bool:
    """Whether a worker of any process is at the store now. Raises StorageIOError, ReadOnlyError."""
    lock = fs.lock(WORKER_LOCK)
    try:
        return not lock.try_acquire()
    finally:
        lock.close()


def outcome_of(pid: int, status: int, said: str) -> str:
    """Say how a worker ended that did not do its work: its last words, or its exit status."""
    lines = [line for line in said.splitlines() if line.strip()]
    if lines:
        return lines[-1].strip()
    if status < 0:
        import signal

        return f"process {pid} was ended by {signal.Signals(-status).name}"
    return f"process {pid} ended with status {status} and said nothing"
