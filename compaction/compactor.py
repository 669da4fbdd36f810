"""One compaction of a store: plan, rewrite, check, install, one group of segments after another.

Each group is whole in itself: one manifest, and whatever ends the compaction in between leaves the
groups before it done, and nothing of the one it was at. There is one at a time over all processes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Final

from mldb.compaction.check import check_new, planned_view
from mldb.compaction.folds import Anew, Fold
from mldb.compaction.frames import Recode, StoredForm
from mldb.compaction.install import StalePlanError, install, sweep
from mldb.compaction.plan import Group
from mldb.compaction.planning import Planned, make_plan
from mldb.compaction.report import CompactionReport
from mldb.compaction.reporting import Work, report_of
from mldb.compaction.rewrite import Pause, Rewriting, write_group
from mldb.compaction.rules import ColdAge, EventRules
from mldb.compaction.table import NO_ROW, VersionTable
from mldb.errors import ConflictError, LockedError, StorageFullError
from mldb.log import format as fmt
from mldb.log.active import HINTS
from mldb.log.log import Log
from mldb.log.lone import discard
from mldb.log.outline import seal_active
from mldb.log.patch import encode_patch
from mldb.log.segment import SegmentGoneError

COMPACTION_LOCK: Final = f"{HINTS}/compaction.lock"
PLANS_MAX: Final = 8
"""So many plans may become stale before a compaction gives up."""
_SPARE_BYTES: Final = 1 << 20

Told = Callable[[int, int], None]
"""Told the bytes that were written and those that are to be, about."""


def plan_only(log: Log, rules: EventRules, cold: ColdAge) -> CompactionReport:
    """Return what :func:`compact` would do now; changes nothing, and waits for nobody."""
    for _ in range(PLANS_MAX):
        try:
            return report_of(log, rules, make_plan(log, rules, cold, with_active=True), None)
        except SegmentGoneError:
            continue  # a compaction elsewhere replaced it; one that is lost is told by the last
    return report_of(log, rules, make_plan(log, rules, cold, with_active=True), None)


def compact(
    log: Log,
    rules: EventRules,
    cold: ColdAge,
    *,
    progress: Told = lambda done, total: None,
    pause: Pause = lambda written: None,
) -> CompactionReport:
    """Compact the store, and return what came of it.

    *pause* is told how many bytes were just written: it may wait, or raise to give up. Raises
    LockedError when another compaction is at work, ConflictError when others kept changing what was
    planned, InvalidValueError for a retention that cannot be met, StorageFullError, StorageIOError,
    CorruptError, ReadOnlyError. The groups that were installed before stay so.
    """
    log.sequencer  # noqa: B018 - raises ReadOnlyError
    with _alone(log):
        sweep(log)
        work = Work()

        def note(written: int) -> None:
            work.written += written
            progress(work.written, max(work.to_write, work.written))
            pause(written)

        before = log.stats()
        first = planned = _current_plan(log, rules, cold)
        for _ in range(PLANS_MAX):
            try:
                _carry_out(log, rules, planned, work, note)
                if work.groups:
                    log.tidy_directory()
                return report_of(log, rules, first, work, before)
            except (StalePlanError, SegmentGoneError) as error:
                stale = error
                planned = _current_plan(log, rules, cold)
        if isinstance(stale, SegmentGoneError):
            raise stale
        raise ConflictError(
            f"compaction gave up after {PLANS_MAX} plans, each of which others overtook ({stale}). "
            f"{work.groups} groups of segments were compacted, nothing else was changed; try again "
            "when fewer tags, pins and rewinds are made."
        )


@contextmanager
def _alone(log: Log) -> Iterator[None]:
    """Keep every other compaction of the store out. Raises LockedError."""
    lock = log.fs.lock(COMPACTION_LOCK)
    try:
        if not lock.try_acquire():
            raise LockedError(
                f"{lock.holder()} is compacting {log.fs.root}. Nothing was done; try again when it "
                "has finished."
            )
        yield
    finally:
        lock.close()


def _current_plan(log: Log, rules: EventRules, cold: ColdAge) -> Planned:
    """Make a plan; where it wants the active segment, that is sealed first."""
    for _ in range(PLANS_MAX):
        planned = make_plan(log, rules, cold, with_active=True)
        if not planned.wants_active:
            break
        seal_active(log.sequencer)
    else:
        planned = make_plan(log, rules, cold, with_active=False)
    return planned


def _carry_out(log: Log, rules: EventRules, planned: Planned, work: Work, note: Pause) -> None:
    """Rewrite and install one group after another. Raises StalePlanError.

    The newest comes first: a fold takes in what lies in older groups, and must be there before they
    drop it.
    """
    plan = planned.plan
    work.to_write = work.written + sum(plan.group_bytes)
    if not plan.groups:
        if len(plan.pruned):
            install(log, rules, plan)
        return
    anew = {item.row: item for item in plan.anew}
    for group, size in reversed(list(zip(plan.groups, plan.group_bytes, strict=True))):
        _refuse_full(log, size)
        _compact_group(log, rules, planned, group, anew, work, note)


def _compact_group(
    log: Log,
    rules: EventRules,
    planned: Planned,
    group: Group,
    anew: Mapping[int, Anew],
    work: Work,
    note: Pause,
) -> None:
    plan = planned.plan
    gone = planned.parts[group.start : group.start + group.segments]
    rows = plan.rows_of(group)
    low, high = gone[0].info.first_lsn, gone[-1].info.last_lsn
    view = log.head()
    new = write_group(
        _how(log, rules, note),
        plan.table,
        gone,
        group.start,
        rows,
        anew,
        [jump for jump in view.jumps.up_to(high) if jump[0] >= low],
        before=planned.parts[group.start - 1].until if group.start else 0,
        published=log.state.next_number,
    )
    try:
        planned_head = planned_view(log.fs, view, gone, new)
        check_new(view, planned_head, new, plan, rows, rules.size_of, rules.door_of)
        install(log, rules, plan, gone, new)
    finally:
        discard(log.fs, new.name)
    work.read += sum(part.info.length for part in gone)
    work.recoded += new.recoded
    work.recoded_bytes += new.recoded_bytes
    work.groups += 1


def _refuse_full(log: Log, size: int) -> None:
    """Raise StorageFullError before a full disk stops who trains, and not only compaction."""
    free = log.fs.free_bytes()
    if free < size + _SPARE_BYTES:
        raise StorageFullError(
            f"compaction of {log.fs.root} needs up to {size} bytes for a new segment before the "
            f"old ones go, and {free} are free. Nothing was changed by this step; free space and "
            "try again."
        )


def _how(log: Log, rules: EventRules, note: Pause) -> Rewriting:
    door = rules.door_of(log.head)

    def decoded(table: VersionTable, row: int) -> memoryview | None:
        """The decoded bytes of a version, wherever it lies by now."""
        key, view = table.key_of(row), log.head()
        entry = view.version_at(key, int(table.commit[row]))
        size = rules.size_of(key, table.attr_of(row))
        if entry is None or size is None:
            return None
        return door.version(view, key, entry, size, rules.shown(key))

    def folded(table: VersionTable, fold: Fold) -> StoredForm:
        """A patch that does what those down to the base of a fold do."""
        key, below = table.key_of(fold.row), (table.key_of(fold.base), int(table.commit[fold.base]))
        view, shown = log.head(), rules.shown(key)
        entry = view.version_at(key, int(table.commit[fold.row]))
        size = rules.size_of(key, table.attr_of(fold.row))
        if entry is None or size is None:
            raise SegmentGoneError("it was replaced", file=log.fs.root)
        patch = door.patch_onto(view, key, entry, size, shown, below)
        return StoredForm(fmt.ENCODING_PATCH, b"".join(encode_patch(patch)), below[1], below[0])

    def recode(table: VersionTable, cold: Anew) -> StoredForm | None:
        if isinstance(cold, Fold):
            return folded(table, cold)
        data = decoded(table, cold.row)
        base = None if cold.base == NO_ROW else decoded(table, cold.base)
        if data is None:
            return None
        if base is not None and len(base) != len(data):
            base = None
        form = rules.encode(table.attr_of(cold.row), data, base)
        if form is None or len(form[1]) >= int(table.length[cold.row]):
            return None
        encoding, stored = form
        if encoding != fmt.ENCODING_DELTA:
            return StoredForm(encoding, stored)
        return StoredForm(encoding, stored, int(table.commit[cold.base]), table.key_of(cold.base))

    return Rewriting(
        log.fs,
        log.registration.ensure(),
        log.store_id,
        rules.metadata_of,
        rules.kind_of,
        recode,
        note,
    )


def trial_of(log: Log, rules: EventRules) -> Recode:
    """Return what encodes a cold version as :func:`compact` would; it stores nothing."""
    return _how(log, rules, lambda written: None).recode
