"""What a replay did."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from mldb.arrays import Numbers
from mldb.log.index.address import Lsn


@dataclass(frozen=True, slots=True)
class Comparison:
    """What :func:`~mldb.tools.replay.comparing.compare` looked at, and each difference it found.

    ``versions`` are those whose bytes were decoded or whose digests were compared.
    """

    commits: int
    versions: int
    differences: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether every kept commit shows what it should."""
        return not self.differences


@dataclass(frozen=True, slots=True)
class ReplayReport:
    """What went from one store into the other.

    ``until`` is the last commit, ``commits`` how many were written, ``left_out`` those that had
    nothing left. ``checkpoints_left_out`` name tensors that were left out. ``verified`` is None
    where nothing was compared. Every commit that is there has the LSN, epoch, time and id it had.
    """

    source: str
    target: str
    until: Lsn
    epoch: int
    commits: int
    left_out: int
    versions: int
    bytes: int
    segments: int
    resumed: bool
    seconds: float
    checkpoints_left_out: tuple[str, ...] = ()
    verified: Comparison | None = None
    commit_lsns: Numbers = field(default_factory=lambda: np.zeros(0, np.int64), repr=False)
    """The LSNs of the commits that are there, ascending."""

    def lsn(self, old: int) -> Lsn:
        """Return the commit of the target that shows what commit *old* of the source showed.

        That is itself, or where it was left out the one before it; 0 is the empty state. Between
        two commits that are there the lineage does not branch, so this holds on every lineage.
        """
        place = int(np.searchsorted(self.commit_lsns, old, "right"))
        return Lsn(int(self.commit_lsns[place - 1]) if place else 0)
