"""How many keys exist: counted once by columns, then kept up from what was committed since.

A count belongs to a commit and never changes, whatever is committed after it. So the count of a
later commit of the same lineage is that one, and the keys that have newer versions: for these alone
it is asked whether they existed before. Nothing is done when something is stored.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Final

from mldb.log import format as fmt
from mldb.log.index.address import Intervals
from mldb.log.index.lineage import is_left, is_visible
from mldb.log.view import View

_COUNTS_MAX: Final = 64
_CATCH_UP_MIN: Final = 64
"""So many changed keys are always looked up."""
_KEYS_PER_LOOKUP: Final = 16
"""A lookup in one part costs about as much as counting this many keys by columns."""


class KeyCounts:
    """The counts of one handle. Any thread; two that ask at once count twice.

    ``_known`` is only read as a copy, added to and cut, each in one call of a dictionary, so there
    is no lock. The counters may miss a call when two threads count at once.
    """

    __slots__ = ("_known", "caught_up", "looked_up", "walked")

    def __init__(self) -> None:
        self._known: OrderedDict[tuple[bytes, int], tuple[int, Intervals]] = OrderedDict()
        self.walked = 0  # counts made by columns
        self.caught_up = 0  # counts made from an earlier one
        self.looked_up = 0  # keys asked for that

    def stats(self) -> dict[str, int]:
        """Return how many counts are remembered, and what it took to make them."""
        return {
            "remembered": len(self._known),
            "walked": self.walked,
            "caught_up": self.caught_up,
            "looked_up": self.looked_up,
        }

    def count(self, view: View, prefix: bytes, intervals: Intervals) -> int:
        """Return how many keys with this prefix exist in a snapshot of *view*.

        *intervals* are what one commit of a lineage sees, not a choice of commits.
        """
        if not intervals:
            return 0
        at = intervals[-1][1]
        known = self._known.get((prefix, at))
        if known is not None:
            return known[0]
        found = self._catch_up(view, prefix, at, intervals)
        if found is None:
            found = view.count_live(prefix, intervals)
            self.walked += 1
        self._known[prefix, at] = found, intervals
        while len(self._known) > _COUNTS_MAX:
            try:
                self._known.popitem(last=False)
            except KeyError:  # another thread cut it
                break
        return found

    def _catch_up(self, view: View, prefix: bytes, at: int, intervals: Intervals) -> int | None:
        """The count from the nearest one before it, None where counting anew is cheaper."""
        base = 0
        for kind, lsn in list(self._known):
            if kind == prefix and base < lsn < at and is_visible(lsn, intervals):
                base = lsn
        known = self._known.get((prefix, base))
        if known is None or _is_pruned(view, base):
            return None
        count, before = known
        changes = view.changes(prefix, base, intervals)
        cost = len(changes) * len(view.parts(before)) * _KEYS_PER_LOOKUP
        if len(changes) > _CATCH_UP_MIN and cost > count:
            return None
        for key, (_, deleted) in changes.items():
            entry = view.newest(key, before)
            existed = entry is not None and not entry.flags & fmt.ENTRY_TOMBSTONE
            count += (not deleted) - existed
        self.caught_up += 1
        self.looked_up += len(changes)
        return count


def _is_pruned(view: View, lsn: int) -> bool:
    """Whether retention may have taken versions that commit *lsn* saw."""
    return not is_left(lsn, view.kept)
