"""What a repair took, and what is lost."""

from __future__ import annotations

from dataclasses import dataclass

from mldb.log.salvage import FileDamage


@dataclass(frozen=True, slots=True)
class Lost:
    """Something that could not be salvaged.

    ``what`` is "tensor", "metadata", "relationship", "checkpoint", "lake" and so on; "commit" for a
    whole one, "unknown" where not even the name is left: then ``name`` is "". ``epoch`` and
    ``lsn`` are None where not known; ``last_lsn`` ends a range.
    """

    what: str
    name: str
    epoch: int | None
    lsn: int | None
    file: str
    offset: int
    why: str
    last_lsn: int | None = None


@dataclass(frozen=True, slots=True)
class RepairReport:
    """The outcome of a repair.

    ``commits`` and ``versions`` are in the new store, with the LSNs they had. ``damage`` are bytes
    that are not what was written, whether anything is lost by it or not. ``unused`` are files that
    are no part of the store, or that newer ones stand for. ``reattached`` are commits whose parent
    is lost, each with the commit that it continues now. ``uncertain``: the newest manifest, or all
    of them, cannot be read, so that nobody can tell whether more stood behind what was found.
    """

    source: str
    target: str
    commits: int
    versions: int
    bytes: int
    files: int
    lost: tuple[Lost, ...]
    damage: tuple[FileDamage, ...]
    unused: tuple[str, ...]
    reattached: tuple[tuple[int, int], ...]
    uncertain: bool
    notes: tuple[str, ...]

    @property
    def ok(self) -> bool:
        """Whether nothing is lost, and that is certain."""
        return not self.lost and not self.uncertain
