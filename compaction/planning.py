"""Read the indexes of a store and make a plan of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mldb.arrays import Bools, Numbers
from mldb.compaction.cold import cold_rows, forest
from mldb.compaction.plan import (
    CompactionPlan,
    bytes_of_groups,
    choose_groups,
    fixed_bytes,
    footer_bytes,
    live_bytes,
    row_bytes,
)
from mldb.compaction.retention import (
    Retention,
    Roots,
    Timeline,
    kept_commits,
    left_of,
    ranges_of,
    within_bytes,
)
from mldb.compaction.rules import ColdAge, EventRules
from mldb.compaction.sight import seen_by
from mldb.compaction.table import TableSource, VersionTable, make_table
from mldb.log import format as fmt
from mldb.log.index.footer import column_steps
from mldb.log.index.lineage import Jump
from mldb.log.index.mapped import MappedIndex
from mldb.log.index.merge_parts import Columns
from mldb.log.index.pause import collection_paused
from mldb.log.index.steps import finish
from mldb.log.log import Log
from mldb.log.readers import lowest_needed
from mldb.log.sealed import SealedPart
from mldb.log.view import View

_HOT_CHECKPOINTS = 3
_NEW_SEGMENT_BYTES = 1 << 12
"""Room for an active segment that begins."""


@dataclass(frozen=True, slots=True)
class Planned:
    """A plan, and the segments that its numbers mean; ``has_active``: the last one is active."""

    plan: CompactionPlan
    parts: tuple[SealedPart, ...]
    has_active: bool
    footer: int
    """What the table counts as the footer that the active segment does not have yet."""

    @property
    def wants_active(self) -> bool:
        """Whether the active segment is to be rewritten, so that it must be sealed."""
        groups = self.plan.groups
        return self.has_active and bool(groups) and sum(groups[-1]) > len(self.parts)


def make_plan(log: Log, rules: EventRules, cold: ColdAge, *, with_active: bool) -> Planned:
    """Return what a compaction of the store as it is now would do; changes nothing.

    *with_active*: as if the active segment were sealed. O(versions) in NumPy. Raises
    InvalidValueError for a retention that cannot be met, CorruptError, StorageIOError,
    SegmentGoneError when a segment is replaced meanwhile.
    """
    _, active, view = log.still()
    parts = tuple(view.sealed)
    sources = [TableSource(_columns_of(part), _end_of(part), part.info.length) for part in parts]
    has_active, footer = with_active and active.has_commits(), 0
    if has_active:
        columns = finish(column_steps(active, view.commit.lsn, None, rows=0))
        end = active.cursor.offset
        footer = footer_bytes(len(columns["row_commit"]), len(columns["commit_lsn"]))
        sources.append(TableSource(columns, end, end + footer))
    with collection_paused():
        plan = _plan(log, rules, view, sources, cold, has_active)
    return Planned(plan, parts, has_active, footer)


def _columns_of(part: SealedPart) -> Columns:
    """The columns of a footer, copied: a store has thousands, and each mapping a descriptor."""
    was_mapped = part.mapped_bytes > 0
    columns = MappedIndex(part.own_index().reader.copied()).columns()
    if not was_mapped:
        part.release()
    return columns


def _end_of(part: SealedPart) -> int:
    return part.info.length if part.info.index_file else part.info.index_offset


def _plan(
    log: Log,
    rules: EventRules,
    view: View,
    sources: Sequence[TableSource],
    cold: ColdAge,
    has_active: bool,
) -> CompactionPlan:
    table, timeline = make_table(sources), _timeline(view, sources)
    policy, roots, now = rules.policy(view), rules.roots(view), log.fs.time_ns()
    sight = _Sight(rules, table, timeline.jumps[:])
    kept = _kept(log, policy, timeline, roots, view, now, sight)
    stays = sight.seen(kept) if len(kept) < len(timeline.lsn) else np.ones(len(table), np.bool_)
    live = live_bytes(table, stays, sight.weights)
    recode = forest(
        table,
        stays,
        _cold(sight, policy, timeline, roots, stays, cold, now),
        rules.size_of,
        chain=rules.chain,
    )
    groups = choose_groups(
        table,
        stays,
        recode,
        live,
        segment_bytes=log.options.segment_bytes,
        has_active=has_active,
        limit=policy.max_bytes,
    )
    inside = np.zeros(len(table.sizes), np.bool_)
    for start, count in groups:
        inside[start : start + count] = True
    ranges = ranges_of(kept, timeline.lsn) if view.kept or len(kept) < len(timeline.lsn) else None
    return CompactionPlan(
        table,
        stays,
        [item for item in recode if inside[table.segment[item.row]]],
        groups,
        bytes_of_groups(table, live, groups),
        policy,
        ranges,
        left_of(np.setdiff1d(timeline.lsn, kept), view.kept),
        view.commit.lsn,
        len(view.jumps),
        len(timeline.lsn),
        len(kept),
    )


def _timeline(view: View, sources: Sequence[TableSource]) -> Timeline:
    def joined(name: str) -> Numbers:
        found = [own[name].astype(np.int64) for own, _, _ in sources]
        return np.concatenate([np.empty(0, np.int64), *found])

    return Timeline(joined("commit_lsn"), joined("commit_epoch"), joined("commit_time"), view.jumps)


class _Sight:
    """What commits see of a table, and what that takes."""

    def __init__(self, rules: EventRules, table: VersionTable, jumps: Sequence[Jump]) -> None:
        self.table = table
        self.weights = row_bytes(table)
        self._jumps = jumps
        self._store_wide = table.keys_where(rules.is_store_wide)
        self._curves = np.fromiter(map(rules.is_curve, table.keys), np.bool_, len(table.keys))
        self._anchors = table.keys_where(rules.anchors.__contains__)

    def seen(self, commits: Numbers) -> Bools:
        """The rows that these commits see, and what they refer to."""
        return seen_by(self.table, commits, self._jumps, self._store_wide, self._curves)

    def closed(self, commits: Numbers) -> Numbers:
        """These commits, and those that must be readable because of what they see."""
        if not self._anchors.any():
            return commits
        anchors = self.seen(commits) & self._anchors
        anchors &= self.table.flags & fmt.ENTRY_TOMBSTONE == 0
        return np.union1d(commits, self.table.commit[anchors])

    def bytes_of(self, commits: Numbers) -> int:
        """What a store takes that keeps these commits, about."""
        taken = int(self.weights[self.seen(self.closed(commits))].sum())
        return taken + int(fixed_bytes(self.table).sum()) + _NEW_SEGMENT_BYTES


def _kept(
    log: Log,
    policy: Retention,
    timeline: Timeline,
    roots: Roots,
    view: View,
    now: int,
    sight: _Sight,
) -> Numbers:
    lowest = lowest_needed(log.fs)
    kept = kept_commits(policy, timeline, roots, now=now, already=view.kept, lowest=lowest)
    if not len(kept):
        return kept
    return sight.closed(within_bytes(policy, kept, roots, lowest, sight.bytes_of))


def _cold(
    sight: _Sight,
    policy: Retention,
    timeline: Timeline,
    roots: Roots,
    stays: Bools,
    age: ColdAge,
    now: int,
) -> Bools:
    """Which rows may be encoded anew: *age* is in nanoseconds."""
    if age == "none" or not len(timeline.lsn):
        return np.zeros(len(stays), np.bool_)
    if age == "all":
        return stays
    newest = {int(timeline.lsn[-1]), *roots.always, *roots.checkpoints[-_HOT_CHECKPOINTS:]}
    hot = sight.seen(np.array(sorted(newest), np.int64))
    return cold_rows(sight.table, stays, hot, timeline.lsn, timeline.time, now - age)
