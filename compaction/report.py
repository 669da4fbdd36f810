"""What a compaction did, or would do."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class NameReport:
    """What becomes of one name. Sizes are bytes as stored."""

    name: str
    versions: int
    """How many there were."""
    dropped: int
    """How many of them go."""
    bytes: int
    bytes_dropped: int


@dataclass(frozen=True, slots=True)
class CompactionReport:
    """The outcome of ``db.compact()``, or with ``plan_only=True`` what it would be. Sizes in bytes.

    ``bytes_before`` and ``bytes_after`` are what the segments take, the active one included. Of a
    plan ``bytes_after`` is an estimate, which counts what would be encoded anew as it is.
    """

    planned_only: bool
    bytes_before: int
    bytes_after: int
    segments_before: int
    segments_after: int
    commits_kept: int
    commits_pruned: int
    """Commits that can be read no more, those of earlier passes included."""
    versions_kept: int
    versions_dropped: int
    bytes_dropped: int
    """Of the versions that go, as stored."""
    recoded: int
    """Versions that are encoded anew; of a plan those that would be tried."""
    recoded_bytes: int
    """What these take as they are."""
    bytes_read: int = 0
    """Of the segments that were rewritten."""
    seconds: float = 0.0
    names: tuple[NameReport, ...] = ()
    """The names of which versions go, those first that give back most."""

    @property
    def bytes_returned(self) -> int:
        """What comes back; below zero where the new files take more."""
        return self.bytes_before - self.bytes_after
