"""What ``db.stats()`` says that a compaction would give back: found anew now and then."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Final

from mldb.deferred import dataclass
from mldb.errors import MldbError
from mldb.log.log import Log
from mldb.log.view import View

if TYPE_CHECKING:  # a process that only trains needs none of it
    from mldb.compaction.retention import Retention
    from mldb.compaction.rules import EventRules
    from mldb.compaction.sampling import ColdSample

GROWTH: Final = 16
"""Found anew when the sealed segments grew by one part in so many."""
ANEW_SECONDS: Final = 3600.0
"""And after so long: versions become cold with time alone."""
COST: Final = 20
"""Nothing is found anew by growth before so many times passed as finding it took."""


@dataclass(frozen=True, slots=True)
class _Found:
    """What was found, of what, and when."""

    policy: Retention
    segments: frozenset[bytes]
    size: int
    dropped: int
    sample: ColdSample
    at: float
    seconds: float

    def is_current(self, view: View, policy: Retention) -> bool:
        """Whether it still holds, about, of another view."""
        if policy != self.policy or not self.segments <= {part.info.id for part in view.sealed}:
            return False
        since = time.monotonic() - self.at
        if since >= ANEW_SECONDS:
            return False
        grown = sum(part.info.length for part in view.sealed) - self.size
        return grown * GROWTH < self.size or since < COST * self.seconds


class Reclaimable:
    """The figure of one handle. Any thread; two that find it at once do so twice."""

    def __init__(self) -> None:
        self._found: _Found | None = None

    def parts(self, log: Log, view: View, rules: EventRules, age: int) -> dict[str, Any]:
        """Return what goes by retention, what encoding saves, both, and from what it was told.

        *age* in nanoseconds makes versions cold. The sizes are None where they cannot be told: the
        retention cannot be met, something is damaged, or this is inside a commit.
        """
        from mldb.history.retention import retention_of

        try:
            policy = retention_of(view)
            found = self._found
            if found is None or not found.is_current(view, policy):
                found = self._found = _find(log, view, policy, rules, age)
        except MldbError:
            nothing = dict.fromkeys(("bytes", "dropped", "encoded"))
            return {**nothing, "marks": 0, "cold_marks": 0, "saved_share": 0.0, "seconds": 0.0}
        sample = found.sample
        return {
            "bytes": found.dropped + sample.saved,
            "dropped": found.dropped,
            "encoded": sample.saved,
            "marks": sample.marks,
            "cold_marks": sample.cold,
            "saved_share": sample.share,
            "seconds": found.seconds,
        }


def _find(log: Log, view: View, policy: Retention, rules: EventRules, age: int) -> _Found:
    from mldb.compaction.planning import make_plan
    from mldb.compaction.sampling import sample_cold

    began = time.monotonic()
    dropped = 0

    def stays(key: bytes, commit: int) -> bool:
        return True

    if not policy.keeps_all or view.kept is not None:
        plan = make_plan(log, rules, "none", with_active=False).plan
        table = plan.table
        dropped = max(int(table.sizes.sum()) - plan.bytes_after, 0)

        def stays(key: bytes, commit: int) -> bool:
            row = table.row_of(key, commit)
            return row >= 0 and bool(plan.stays[row])

    sample = sample_cold(log, rules, age, stays)
    segments = frozenset(part.info.id for part in view.sealed)
    size = sum(part.info.length for part in view.sealed)
    now = time.monotonic()
    return _Found(policy, segments, size, dropped, sample, now, now - began)
