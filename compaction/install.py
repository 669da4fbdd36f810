"""Install: put a new segment in the place of others, when all that was planned still holds.

Under the commit lock the commits since the plan are read again. Whoever tagged, pinned, rewound to
or refers to something that was to go makes the plan *stale*, and nothing changes. The order is that
of FORMAT.md sections 7 and 9: the file under its name, announce, read the registrations, manifest;
what was replaced is unlinked when that is durable.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from mldb.compaction.plan import CompactionPlan
from mldb.compaction.rewrite import NewSegment
from mldb.compaction.rules import EventRules
from mldb.compaction.table import NO_ROW
from mldb.errors import StorageIOError
from mldb.log import format as fmt
from mldb.log.active import Active
from mldb.log.grown import Grown
from mldb.log.index.address import Entry
from mldb.log.index.lineage import is_left
from mldb.log.index.mapped import MappedIndex
from mldb.log.index.memory import MemoryIndex
from mldb.log.log import Log
from mldb.log.lone import discard
from mldb.log.manifest import Kept, Manifest, SegmentInfo, manifest_name
from mldb.log.orphans import is_needed, orphans
from mldb.log.outline import change_outline
from mldb.log.readers import lowest_needed, sweep_dead
from mldb.log.sealed import SealedPart
from mldb.log.segment import SEGMENTS, segment_name
from mldb.log.state import LogState
from mldb.log.view import View


class StalePlanError(Exception):
    """Something came since the plan that it would break. Internal: a new plan is made."""


@dataclass(slots=True)
class _Outcome:
    """What happened under the lock."""

    number: int = 0
    stale: str = ""


def install(
    log: Log,
    rules: EventRules,
    plan: CompactionPlan,
    gone: Sequence[SealedPart] = (),
    new: NewSegment | None = None,
) -> Manifest:
    """Install the *new* segment in the place of those that are *gone*, and what the plan keeps.

    Without a segment only the kept commits are set. Raises StalePlanError, and what
    ``change_outline`` raises; then the segments are as they were.
    """
    outcome = _Outcome()

    def decide(state: LogState) -> Manifest | None:
        manifest = state.manifest
        place = _place_of(manifest, gone)
        check_since(plan, rules, state.view, state.active)
        kept = _extended(plan.kept, state.last_lsn())
        outcome.number = state.next_number
        if new is not None:
            _publish(state, new)
        state.announce(state.next_number)
        if _is_needed(plan, manifest, lowest_needed(state.fs)):
            # What was announced comes, since everybody looks for it: as it was.
            outcome.stale = "a process needs a commit that was to go"
            return manifest
        infos = () if new is None else (new.info,)
        segments = manifest.segments
        if gone or new is not None:
            segments = Grown((*segments[:place], *infos, *segments[place + len(gone) :]))
        return replace(manifest, segments=segments, kept=kept)

    try:
        installed = change_outline(log.sequencer, decide)
    except BaseException:
        _take_back(log, new, outcome.number)
        raise
    if outcome.stale:
        _take_back(log, new, 0)
        raise StalePlanError(outcome.stale)
    assert installed is not None
    if new is not None:
        discard(log.fs, new.name)
    for part in gone:
        remove_segment(log, part.info)
    return installed


def remove_segment(log: Log, info: SegmentInfo) -> None:
    """Unlink the files of a segment that the manifest does not name any more."""
    discard(log.fs, segment_name(info.id))
    if info.index_file:
        discard(log.fs, info.index_file)


def _place_of(manifest: Manifest, gone: Sequence[SealedPart]) -> int:
    """Where these segments stand in the manifest. Raises StalePlanError when they do not."""
    if not gone:
        return 0
    wanted = tuple(part.info for part in gone)
    ids = [info.id for info in manifest.segments]
    place = ids.index(wanted[0].id) if wanted[0].id in ids else 0
    if manifest.segments[place : place + len(wanted)] != wanted:
        raise StalePlanError("its segments were replaced by another compaction")
    return place


def _extended(kept: Kept | None, last_lsn: int) -> Kept | None:
    """The kept ranges and every commit since the plan."""
    if not kept:
        return kept
    return (*kept[:-1], (kept[-1][0], max(kept[-1][1], last_lsn)))


def _publish(state: LogState, new: NewSegment) -> None:
    """Give the file its name, and its header the number of the manifest that is to come."""
    fs, number = state.fs, state.next_number
    if new.published != number:
        file = fs.open(new.name, "rw")
        try:
            file.pwritev([new.header(number)], 0)
            file.sync()
        finally:
            file.close()
    if not fs.link(new.name, segment_name(new.info.id)):
        raise StorageIOError(f"{segment_name(new.info.id)} exists already. Nothing was changed.")
    fs.sync_dir(SEGMENTS)


def _take_back(log: Log, new: NewSegment | None, number: int) -> None:
    """Remove the new segment, unless a manifest may name it: one that was linked and not synced."""
    if new is None:
        return
    discard(log.fs, new.name)
    if not (number and log.fs.exists(manifest_name(number))):
        discard(log.fs, segment_name(new.info.id))


def _is_needed(plan: CompactionPlan, manifest: Manifest, lowest: int) -> bool:
    """Whether a commit that is left, and that the plan prunes, is needed by a process."""
    going = plan.pruned[plan.pruned >= lowest].tolist()
    return any(is_left(lsn, manifest.kept) for lsn in going)


# --- what came since the plan ---------------------------------------------------------------------


def check_since(plan: CompactionPlan, rules: EventRules, view: View, active: Active) -> None:
    """Raise StalePlanError when a commit since the plan needs something that is to go."""
    if rules.policy(view) != plan.policy:
        raise StalePlanError("the retention was changed")
    named = [*rules.roots(view).always, *(target for _, target in view.jumps[plan.jumps :])]
    going = np.intersect1d(np.array(named, np.int64), plan.pruned).tolist()
    if any(is_left(lsn, view.kept) for lsn in going):
        raise StalePlanError("a commit that was to go was tagged, pinned or rewound to")
    if view.commit.lsn == plan.head:
        return
    for key, entry in _since(view, active, plan.head):
        if entry.encoding in fmt.BUILT_ENCODINGS and _goes(plan, entry.owner or key, entry.base):
            raise StalePlanError("a version that was to go was referred to")


def _goes(plan: CompactionPlan, owner: bytes, base: int) -> bool:
    row = plan.table.row_of(owner, base)
    return row != NO_ROW and not plan.stays[row]


def _since(view: View, active: Active, lsn: int) -> Iterator[tuple[bytes, Entry]]:
    """Yield the versions that commits above *lsn* stored."""
    for part in view.between(lsn + 1, fmt.LSN_MAX):
        if isinstance(part.index, MappedIndex):
            yield from _mapped_since(part.index, lsn)
    for own in active.parts():
        if isinstance(own, MemoryIndex):
            for key in own.stored_after(lsn):
                yield from ((key, entry) for entry in own.versions(key) if entry.commit_lsn > lsn)
        elif isinstance(own, MappedIndex):
            yield from _mapped_since(own, lsn)


def _mapped_since(index: MappedIndex, lsn: int) -> Iterator[tuple[bytes, Entry]]:
    """Those of them in a mapped index that name others."""
    if index.last_lsn <= lsn:
        return
    reader = index.reader
    rows = index.rows_with_base()
    rows = rows[reader.whole("row_commit")[rows] > lsn]
    numbers = np.searchsorted(reader.whole("key_row"), rows, "right") - 1
    entries = index.entries(rows.tolist())
    yield from (
        (reader.heap("key", int(n)), entry) for n, entry in zip(numbers, entries, strict=True)
    )


# --- leftovers ------------------------------------------------------------------------------------


def sweep(log: Log) -> None:
    """Remove what killed compactions left: replaced segments, and files in ``pending/``."""

    def decide(state: LogState) -> None:
        fs, manifest = state.fs, state.manifest
        for orphan in orphans(fs, manifest):
            if not orphan.kind or orphan.name != segment_name(orphan.id):
                continue  # nothing that this mldb wrote under this name
            # Nobody is about to publish anything: the commit lock is held.
            is_copy = orphan.kind == fmt.FILE_COMPACTED and not is_needed(fs, manifest, orphan)
            if is_copy or orphan.published <= manifest.number:
                discard(fs, orphan.name)
                discard(fs, orphan.name.replace(".seg", ".idx"))
        sweep_dead(fs, log.registration.name, log.sequencer.syncing.logged)

    change_outline(log.sequencer, decide)
