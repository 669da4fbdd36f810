"""Check a new segment before it takes the place of others: every frame, every version."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from mldb.arrays import Numbers
from mldb.compaction.cold import SizeOf
from mldb.compaction.plan import CompactionPlan
from mldb.compaction.rewrite import NewSegment
from mldb.compaction.table import NO_ROW, VersionTable
from mldb.errors import CorruptError
from mldb.log import format as fmt
from mldb.log.checksum import digest128
from mldb.log.compacted import check_compacted, entries_of
from mldb.log.directory.units import Units
from mldb.log.door import Door
from mldb.log.fs.protocol import FileSystem
from mldb.log.grown import Grown
from mldb.log.index.address import Entry
from mldb.log.index.mapped import MappedIndex
from mldb.log.mappings import MappingBudget
from mldb.log.sealed import SealedPart
from mldb.log.segment import Segment, SegmentGoneError
from mldb.log.view import View


def planned_view(fs: FileSystem, view: View, gone: Sequence[SealedPart], new: NewSegment) -> View:
    """Return *view* as it will be with the *new* segment in the place of those that are *gone*.

    Raises SegmentGoneError when these were replaced meanwhile.
    """
    budget = MappingBudget(1)
    part = SealedPart(fs, new.info, "first", budget)
    part.segment = Segment(fs, new.info.id, new.info.origin, new.info.length, new.name)
    ids = [item.info.id for item in gone]
    known = [item.info.id for item in view.sealed]
    if ids[0] not in known:
        raise SegmentGoneError("it was replaced", file=gone[0].segment.name)
    place = known.index(ids[0])
    sealed = Grown([*view.sealed[:place], part, *view.sealed[place + len(ids) :]])
    segments = {key: item for key, item in view.segments.items() if key not in ids}
    return view._replace(
        sealed=sealed,
        segments={**segments, new.info.id: part.segment},
        units=Units(sealed, list),
    )


def check_new(
    view: View,
    planned: View,
    new: NewSegment,
    plan: CompactionPlan,
    rows: Numbers,
    size_of: SizeOf,
    door_of: Callable[[Callable[[], View]], Door],
) -> None:
    """Raise CorruptError unless the *new* segment holds exactly *rows*, each with its own bytes.

    They are decoded through the *planned* view and compared by their digests, deltas built on
    their bases wherever these lie. Patches have none: what they set on the version below them is
    compared with what they set in *view*, the store as it is.
    """
    part = next(item for item in planned.sealed if item.info.id == new.info.id)
    index = part.index
    assert isinstance(index, MappedIndex)
    data = part.segment.view(new.info.length)[: new.info.index_offset]
    found = entries_of(index)
    for damage in check_compacted(part.segment, data, index, new.info.chain, found):
        raise CorruptError(
            f"the segment that was to take the place of others is damaged: {damage.message}. "
            "Nothing was changed."
        )
    table, door, was = plan.table, door_of(lambda: planned), door_of(lambda: view)
    folds = {fold.row: fold.base for fold in plan.folds}
    hashed: tuple[int, int, bytes] = (-1, -1, b"")
    for row, ((key, _), entry) in zip(rows.tolist(), found.items(), strict=True):
        if key != table.key_of(row) or not _says_the_same(table, row, entry):
            raise _differs(new, key, entry, "is described in another way")
        if entry.encoding == fmt.ENCODING_REFERENCE:
            door.holder(planned, key, entry, _name(key))
            continue
        size = size_of(key, entry.attr)
        size = entry.length if size is None else size
        if entry.encoding == fmt.ENCODING_PATCH:
            below, _ = door.base_of(planned, key, entry, _name(key))
            base = folds.get(row, int(table.base_row[row]))
            if base == NO_ROW or (below, entry.base) != (table.key_of(base), table.commit[base]):
                raise _differs(new, key, entry, "builds on another version")
            if row in folds and not _sets_the_same(was, view, door, planned, key, entry, size):
                raise _differs(new, key, entry, "sets other rows")
            continue
        if not entry.digest:
            continue
        place = entry.offset, entry.length
        if hashed[:2] == place and hashed[2] == entry.digest and entry.length:
            continue  # another name of the same bytes
        if digest128(door.version(planned, key, entry, size, _name(key))) != entry.digest:
            raise _differs(new, key, entry, "has other bytes")
        hashed = *place, entry.digest


def _sets_the_same(
    was: Door, view: View, door: Door, planned: View, key: bytes, entry: Entry, size: int
) -> bool:
    """Whether a patch does what was done on its base before it was folded."""
    below = entry.owner or key, entry.base
    before = view.version_at(key, entry.commit_lsn)
    if before is None:
        return False
    old = was.patch_onto(view, key, before, size, _name(key), below)
    new = door.patch_onto(planned, key, entry, size, _name(key), below)
    return (
        old.row_bytes == new.row_bytes
        and np.array_equal(old.rows, new.rows)
        and np.array_equal(old.values, new.values)
    )


def _says_the_same(table: VersionTable, row: int, entry: Entry) -> bool:
    digest = bytes(table.digest[row])
    return (
        entry.commit_lsn == int(table.commit[row])
        and entry.attr == table.attr_of(row)
        and (entry.digest or bytes(fmt.DIGEST_SIZE)) == digest
        and (entry.flags | fmt.ENTRY_SETTLED) == (int(table.flags[row]) | fmt.ENTRY_SETTLED)
    )


def _name(key: bytes) -> str:
    return key.decode("utf-8", "replace")


def _differs(new: NewSegment, key: bytes, entry: Entry, what: str) -> CorruptError:
    return CorruptError(
        f"the version of {_name(key)!r:.80} that commit {entry.commit_lsn} stored {what} in the "
        "segment that was to take the place of others. Nothing was changed; db.verify() tells "
        "what is damaged.",
        file=new.name,
        offset=entry.frame,
        key=_name(key),
    )
