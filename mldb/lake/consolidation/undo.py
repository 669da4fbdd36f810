"""Taking merges back: what was made ends, and what it was made of is live again."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from mldb.arrays import Numbers
from mldb.errors import ConflictError, InvalidValueError
from mldb.history.kinds.lakes import consolidation_undone
from mldb.history.merged import UndoInfo
from mldb.lake.consolidation.store import require_unchanged
from mldb.lake.consolidation.told import ToldMerge, merge_at, told_merges, undone_merges
from mldb.lake.host import Host, head_scope
from mldb.lake.rows.live import Rows, rows_in
from mldb.log.frame import hash_record
from mldb.log.index.address import Lsn
from mldb.log.view import View
from mldb.names import check_name

_NOTHING = "Nothing was changed."


class _Return(NamedTuple):
    """Ids of the rows made that end and of the sources that are live again, ascending."""

    ended: Numbers
    restored: Numbers
    stored: Numbers  # the numbers of the rows that end


def undo_merges(host: Host, name: str, target: int, epoch: int | None) -> Lsn:
    """Take the merges of commit *target* back; return the commit. Raises as ``Lake.undo`` does."""
    host.settle()
    scope = host.scope(None)
    rows = rows_in(scope, name, host.known)
    back = _returned(rows, target)
    info = UndoInfo(target, len(back.ended), len(back.restored))
    ids = np.concatenate([back.ended, back.restored]).astype("<u8").view(np.uint8).data
    key = check_name(name)
    record = consolidation_undone(key, 0, info, ids, rows.state.info)
    hash_record(record)
    digest = record.named_drafts()[0].digest

    def decide(view: View) -> None:
        lake = require_unchanged(host, rows, view, back.stored)
        if view.commit.lsn != rows.lsn:
            again = _returned(rows_in(head_scope(scope, view), name, host.known), target)
            same = np.array_equal(again.ended, back.ended)
            if not same or not np.array_equal(again.restored, back.restored):
                raise ConflictError(
                    f"rows that commit {target} made in lake {name!r} were changed by another "
                    f"commit. {_NOTHING} Undo again."
                )
        placed = consolidation_undone(key, view.commit.lsn, info, ids, lake, digest)
        record.drafts = placed.drafts

    lsn = Lsn(host.commit([record], epoch, decide, None).lsn)
    host.known.note_change(lambda: host.scope(None), name)
    return lsn


def _returned(rows: Rows, target: int) -> _Return:
    merge = merge_at(rows, target)
    by = undone_merges(rows).get(target)
    if by is not None:
        raise InvalidValueError(
            f"the merges of commit {target} were taken back by commit {by}. {_NOTHING}"
        )
    if not merge.info.rows:
        raise InvalidValueError(f"commit {target} only moved stress and merged nothing. {_NOTHING}")
    made = np.arange(merge.info.rows) + merge.first_row
    size = rows.state.size
    is_live = rows.chain.are_live(made, size)
    _refuse_merged_again(rows, made[~is_live], target)
    if not is_live.any():
        raise InvalidValueError(
            f"all rows that commit {target} made in lake {rows.name!r} were removed since, and "
            f"what they were made of with them. {_NOTHING} lake.at(as_of) still has those rows."
        )
    starts, sources = merge.part("starts"), merge.part("sources")
    restored = sources[np.repeat(is_live, np.diff(starts))]
    _refuse_reused(rows, restored, merge)
    block = merge.info.block
    base = 0 if block is None else block.base
    return _Return(base + np.flatnonzero(is_live), np.sort(restored), made[is_live])


def _refuse_merged_again(rows: Rows, gone: Numbers, target: int) -> None:
    """Raise InvalidValueError when a later merge took in rows that this one made."""
    ends = rows.chain.ends
    by = ends.ended_by(gone, rows.state.size.removals, rows.state.stored)
    commits = np.unique(ends.commits.first(rows.state.size.removals)[np.unique(by)])
    merged = [commit for commit, _ in told_merges(rows)]
    later = [commit for commit in commits.tolist() if commit in merged]
    if later:
        raise InvalidValueError(
            f"rows that commit {target} made were merged again by commit {later[-1]}: undo that "
            f"one first, lake.undo(mldb.Lsn({later[-1]})). {_NOTHING}"
        )


def _refuse_reused(rows: Rows, ids: Numbers, merge: ToldMerge) -> None:
    """Raise InvalidValueError when an id that would come back names another row by now."""
    chain, size = rows.chain, rows.state.size
    newest = rows.newest_of(ids)
    by = chain.ends.ended_by(newest, size.removals, rows.state.stored)
    here = int(np.searchsorted(chain.ends.commits.first(size.removals), merge.commit))
    other = np.flatnonzero(by != here)
    if len(other):
        raise InvalidValueError(
            f"id {int(ids[other[0]])}, of a row that commit {merge.commit} merged, was given to "
            f"another row since ({len(other)} of {len(ids)} were): the merges cannot be taken "
            f"back. {_NOTHING} lake.at(as_of) still has the rows."
        )
