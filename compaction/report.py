"""What a compaction did, or would do."""

from __future__ import annotations

from dataclasses import dataclass

from mldb.html import html_of, html_pairs, html_table
from mldb.printable import shown_bytes


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

    def _repr_html_(self) -> str:
        """The form of notebooks: the figures, and the names that gave back most."""
        return html_of(self, self._html)

    def _html(self) -> str:
        sizes = f"{shown_bytes(self.bytes_before)} to {shown_bytes(self.bytes_after)}"
        figures = html_pairs(
            {
                "bytes": sizes,
                "returned": shown_bytes(self.bytes_returned),
                "segments": f"{self.segments_before:,} to {self.segments_after:,}",
                "commits": f"{self.commits_kept:,} kept, {self.commits_pruned:,} pruned",
                "versions": f"{self.versions_kept:,} kept, {self.versions_dropped:,} dropped",
                "encoded anew": f"{self.recoded:,} ({shown_bytes(self.recoded_bytes)})",
                "seconds": f"{self.seconds:.2f}",
            },
            caption="compaction, planned only" if self.planned_only else "compaction",
        )
        if not self.names:
            return figures
        return figures + html_table(
            ("name", "versions", "dropped", "bytes dropped"),
            (
                (item.name, item.versions, item.dropped, shown_bytes(item.bytes_dropped))
                for item in self.names
            ),
            right=("versions", "dropped", "bytes dropped"),
            rest=f"{len(self.names):,} names in all",
        )
