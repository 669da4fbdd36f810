"""Which commits stay in a replay of some names though nothing of them is left."""

from __future__ import annotations

from mldb import keys
from mldb.history.kinds.timeline import unpack_tag
from mldb.log import format as fmt
from mldb.log.index.lineage import is_left
from mldb.tools.replay.source import ReplaySource


class Staying:
    """Says it of each commit, in log order. Immutable; any thread.

    Those that tags and pins name, set or taken back; both ends of each rewind; the last one; and
    where retention pruned: a commit that it did not leave, so that no older one answers in its
    place, and the first one behind such a commit, so that it answers still.
    """

    def __init__(self, source: ReplaySource, until: int) -> None:
        view = source.view
        self._kept = view.kept
        self._named = found = {until}
        for jump in source.jumps(1, until):
            found.update(jump)
        for key in view.keys(keys.TAGS):
            for entry in view.versions(key):
                if not entry.flags & fmt.ENTRY_TOMBSTONE:
                    found.add(int(unpack_tag(key, entry.attr)))
        found.update(keys.pinned_by(key) for key in view.keys(keys.PINS))

    def keeps(self, lsn: int, before: int) -> bool:
        """Whether commit *lsn* stays, when *before* is the last one that did."""
        kept = self._kept
        return lsn in self._named or not is_left(lsn, kept) or not is_left(before, kept)
