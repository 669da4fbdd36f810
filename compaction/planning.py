"""Read the indexes of a store and make a plan of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

import numpy as np

from mldb.arrays import Bools, Numbers
from mldb.compaction.cold import cold_rows, forest
from mldb.compaction.folds import Fold, growth_of, plan_folds, segments_of
from mldb.compaction.plan import (
    GAIN_SHARE,
    CompactionPlan,
    bytes_of_groups,
    choose_groups,
    fixed_bytes,
    footer_bytes,
    live_bytes,
    row_bytes,
)
from mldb.compaction.reads import rows_read
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
from mldb.compaction.sight import seen_by, shown_by, with_bases
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
from mldb.log.segment import SegmentGoneError
from mldb.log.view import View

HOT_CHECKPOINTS: Final = 3
"""What the last checkpoints see is not cold."""
_LOOKS: Final = 8
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


class _Active(NamedTuple):
    """Whether the last segment of a table is the active one, and may be rewritten."""

    is_last: bool
    may_be_sealed: bool

    @property
    def stays(self) -> bool:
        """Whether it is there, and is left as it is."""
        return self.is_last and not self.may_be_sealed


def make_plan(log: Log, rules: EventRules, cold: ColdAge, *, with_active: bool) -> Planned:
    """Return what a compaction of the store as it is now would do; changes nothing.

    *with_active*: as if the active segment were sealed. Otherwise it stays as it is; what its
    versions and rewinds need stays all the same. O(versions) in NumPy. Raises InvalidValueError
    for a retention that cannot be met, CorruptError, StorageIOError, SegmentGoneError when a
    segment is replaced meanwhile.
    """
    found = read_sources(log)
    active = _Active(found.footer > 0, with_active)
    with collection_paused():
        plan = _plan(log, rules, found.view, found.sources, cold, active)
    return Planned(plan, found.parts, found.footer > 0, found.footer)


class Sources(NamedTuple):
    """The segments of one moment as a table takes them in, in log order.

    The active one is the last where ``footer`` is not 0: what it would have as a footer.
    """

    view: View
    parts: tuple[SealedPart, ...]
    sources: list[TableSource]
    footer: int


def read_sources(log: Log) -> Sources:
    """Read the indexes of all segments; changes nothing. Raises as :func:`make_plan` does."""
    _, active, view = log.still()
    parts = tuple(view.sealed)
    sources = [TableSource(columns_of(part), _end_of(part), part.info.length) for part in parts]
    footer = 0
    if active.has_commits():
        columns = finish(column_steps(active, view.commit.lsn, None, rows=0))
        end = active.cursor.offset
        footer = footer_bytes(len(columns["row_commit"]), len(columns["commit_lsn"]))
        sources.append(TableSource(columns, end, end + footer))
    return Sources(view, parts, sources, footer)


def steady_sources(log: Log) -> Sources:
    """As :func:`read_sources`, again where a compaction replaced what it was about to read."""
    for _ in range(_LOOKS - 1):
        try:
            return read_sources(log)
        except SegmentGoneError:
            continue
    return read_sources(log)


def columns_of(part: SealedPart) -> Columns:
    """Return the columns of a footer, copied: a store has thousands of mappings, else.

    Raises CorruptError, StorageIOError, SegmentGoneError.
    """
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
    active: _Active,
) -> CompactionPlan:
    table, timeline = make_table(sources), timeline_of(view, sources)
    policy, roots, now = rules.policy(view), rules.roots(view), log.fs.time_ns()
    sight = Sight(rules, table, timeline.jumps[:])
    kept = _kept(log, policy, timeline, roots, view, now, sight)
    shown = sight.shown(kept) if len(kept) < len(timeline.lsn) else np.ones(len(table), np.bool_)
    may_change = np.ones(len(table.sizes), np.bool_)
    may_change[len(may_change) - active.stays :] = False
    folds, stays = _folding(table, shown, may_change, sight.weights, rules)
    recode = forest(
        table,
        stays,
        _cold(sight, rules, timeline, roots, stays, cold, now),
        rules.size_of,
        chain=rules.chain,
    )
    grown = growth_of(table, folds)
    live = live_bytes(table, stays, sight.weights + grown)
    groups = choose_groups(
        table,
        stays,
        recode,
        live,
        segment_bytes=log.options.segment_bytes,
        has_active=active.is_last,
        may_change=may_change,
        limit=policy.max_bytes,
        folded=segments_of(table, folds),
    )
    inside = np.zeros(len(table.sizes), np.bool_)
    for start, count in groups:
        inside[start : start + count] = True
    ranges = ranges_of(kept, timeline.lsn) if view.kept or len(kept) < len(timeline.lsn) else None
    return CompactionPlan(
        table,
        stays,
        [item for item in recode if inside[table.segment[item.row]]],
        folds,
        groups,
        bytes_of_groups(table, live, groups, grown),
        policy,
        ranges,
        left_of(np.setdiff1d(timeline.lsn, kept), view.kept),
        view.commit.lsn,
        len(view.jumps),
        len(timeline.lsn),
        len(kept),
    )


def _folding(
    table: VersionTable, shown: Bools, may_change: Bools, weights: Numbers, rules: EventRules
) -> tuple[list[Fold], Bools]:
    """What is to be folded where that is worth that its segment is rewritten, and what stays then.

    It is for reads that go through too many patches; and where so much goes by it, of that segment
    or of others for it, that the segment would be rewritten if all of that were its own. What a
    fold takes depends on the rows, which nobody looked at: it is hoped that they are the same ones.
    """
    sizes = table.sizes
    every = np.ones(len(sizes), np.bool_)
    found = plan_folds(table, shown, every, weights, rules.size_of, may_change=may_change)
    if found.folds:
        gain = sizes - live_bytes(table, found.stays, weights) + found.freed
        is_worth = found.deep | (gain >= GAIN_SHARE * sizes)
        if not is_worth.all():
            found = plan_folds(
                table, shown, is_worth, weights, rules.size_of, may_change=may_change
            )
    return found.folds, found.stays


def timeline_of(view: View, sources: Sequence[TableSource]) -> Timeline:
    """The commits of these segments, and how lineages lead through them."""

    def joined(name: str) -> Numbers:
        found = [own[name].astype(np.int64) for own, _, _ in sources]
        return np.concatenate([np.empty(0, np.int64), *found])

    return Timeline(joined("commit_lsn"), joined("commit_epoch"), joined("commit_time"), view.jumps)


class Sight:
    """What commits see of a table, and what that takes."""

    def __init__(self, rules: EventRules, table: VersionTable, jumps: Sequence[Jump]) -> None:
        self.table = table
        self.weights = row_bytes(table)
        self._jumps = jumps
        self._store_wide = table.keys_where(rules.is_store_wide)
        self._curves = np.fromiter(map(rules.is_curve, table.keys), np.bool_, len(table.keys))
        self._anchors = table.keys_where(rules.anchors.__contains__)

    def shown(self, commits: Numbers) -> Bools:
        """The rows that these commits see."""
        return shown_by(self.table, commits, self._jumps, self._store_wide, self._curves)

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
    sight: Sight,
) -> Numbers:
    lowest = lowest_needed(log.fs)
    kept = kept_commits(policy, timeline, roots, now=now, already=view.kept, lowest=lowest)
    if not len(kept):
        return kept
    return sight.closed(within_bytes(policy, kept, roots, lowest, sight.bytes_of))


def _cold(
    sight: Sight,
    rules: EventRules,
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
    newest = {int(timeline.lsn[-1]), *roots.always, *roots.checkpoints[-HOT_CHECKPOINTS:]}
    hot = sight.seen(np.array(sorted(newest), np.int64))
    hot |= with_bases(sight.table, rows_read(sight.table, rules.reads(), now - age))
    return cold_rows(sight.table, stays, hot, timeline.lsn, timeline.time, now - age)
