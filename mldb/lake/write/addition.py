"""One ``add_splats``: its block is written, then numbered and committed."""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import replace
from typing import Final

import numpy as np
import numpy.typing as npt

from mldb.arrays import Numbers
from mldb.errors import InvalidValueError, LimitError
from mldb.history.kinds.changes import records_of
from mldb.history.kinds.lakes import lake_created, splats_added
from mldb.history.splats import ID_MAX, BlockInfo, LakeInfo
from mldb.lake import projection
from mldb.lake.host import Host, head_scope
from mldb.lake.rows.live import rows_in
from mldb.lake.write.block import block_of, fill_block, write_block
from mldb.lake.write.given import GivenRows
from mldb.log.frame import TO_BE_HASHED, Record
from mldb.log.view import View
from mldb.names import check_name
from mldb.sphere.geometry import Geometry
from mldb.tensors.scope import Scope

_IN_MEMORY: Final = 16 << 20  # larger blocks are written before the commit lock is taken


def add_rows(
    host: Host, name: str, dim: int, geometry: Geometry, given: GivenRows, epoch: int | None
) -> Numbers:
    """Store *given*, at least one row, as one commit of the lake *name*; return their ids.

    The key and the first id are decided under the commit lock, so that no two additions can
    collide; their length is fixed, so that the rows may be written before. Raises what
    ``Lake.add_splats`` does.
    """
    host.settle()
    base = host.scope(None)
    found = projection.find_lake(base, name)
    checked = 0  # the commit of the lake that ids were compared with
    if found is not None and given.ids is not None:
        # Before the rows are written as well: what it reads under the lock is then known.
        _refuse_taken(host, base, name, found[0], given.ids)
        checked = found[1].commit_lsn
    block = block_of(given, dim)
    # Key and first id are not known yet: what stands for them here has their length.
    nothing = LakeInfo(bytes(16), dim, geometry, 0)
    record = _record(name, 0, nothing, given, block, TO_BE_HASHED)
    size, digest, first_id = record.payload_length, TO_BE_HASHED, 0

    def decide(view: View) -> None:
        nonlocal first_id
        scope = head_scope(base, view)
        info, lake = projection.require_lake(scope, name)
        if (info.dim, info.geometry) != (dim, geometry):
            raise InvalidValueError(
                f"lake {name!r} was made by another one in the meantime, with dim={info.dim} and "
                f"geometry={info.geometry!r}; these rows have {dim} and {geometry!r}. Nothing was "
                "stored; open the lake again, or choose another name."
            )
        if given.ids is not None:
            if lake.commit_lsn != checked:
                _refuse_taken(host, scope, name, info, given.ids)
        elif info.next_id + given.count > ID_MAX + 1:
            raise LimitError(
                f"lake {name!r} has given out ids up to {info.next_id - 1}; {given.count} more "
                "exceed 2**48. Nothing was stored; pass ids."
            )
        first_id = info.next_id
        record.drafts = _record(name, view.commit.lsn, info, given, block, digest).drafts

    if size <= _IN_MEMORY:
        data = bytearray(size)
        record.checks, digest = fill_block(data, given, block, geometry)
        record.payload = (memoryview(data),)
        if found is None:
            _make_lake(host, name, dim, geometry, epoch)
        row = host.commit([record], epoch, decide, None)
    else:
        pending = host.open_pending()
        try:
            placed = pending.reserve(record)
            record.checks, digest = write_block(
                pending.file, placed.payload, given, block, geometry, host.buffers
            )
            record.written = True
            _make_lake(host, name, dim, geometry, epoch)  # it may have been rewound meanwhile
            row = host.commit([], epoch, decide, pending)
        finally:
            pending.discard()
    if given.ids is not None:
        ids = given.ids.astype(np.int64)
    else:
        ids = np.arange(first_id, first_id + given.count, dtype=np.int64)
    host.known.note_ids(row.lsn, ids.copy())  # what is returned is the caller's own
    host.known.note_change(lambda: host.scope(None), name)
    return ids


def _record(
    name: str, head: int, lake: LakeInfo, given: GivenRows, block: BlockInfo, digest: bytes
) -> Record:
    """The record of the block behind commit *head*, and of the lake after it."""
    ids, next_id = given.ids, lake.next_id
    base = next_id if ids is None else 0
    after = next_id + given.count if ids is None else max(next_id, int(ids.max()) + 1)
    state = replace(lake, next_id=after)
    return splats_added(check_name(name), head, replace(block, base=base), state, digest)


def _make_lake(host: Host, name: str, dim: int, geometry: Geometry, epoch: int | None) -> None:
    """Make the lake, unless it exists, in a commit of its own before that of its first rows."""
    base = host.scope(None)
    if projection.find_lake(base, name) is not None:
        return
    info = LakeInfo(os.urandom(16), dim, geometry, 0)
    records = records_of([lake_created(check_name(name), info)])

    def decide(view: View) -> None:
        if projection.find_lake(head_scope(base, view), name) is not None:
            raise _ExistsAlready

    with suppress(_ExistsAlready):
        host.commit(records, epoch, decide, None)


class _ExistsAlready(Exception):
    """Another commit made the lake first. Internal."""


def _refuse_taken(
    host: Host, scope: Scope, name: str, info: LakeInfo, ids: npt.NDArray[np.uint64]
) -> None:
    """Raise InvalidValueError when a live row has one of these ids."""
    if int(ids.min()) >= info.next_id:
        return
    rows = rows_in(scope, name, host.known)
    taken = np.flatnonzero(rows.stored_of(ids.astype(np.int64)) >= 0)
    if taken.size:
        row = int(taken[0])
        raise InvalidValueError(
            f"id {int(ids[row])} at row {row} is taken by a row of lake {name!r} "
            f"({taken.size} of {len(ids)} ids are). Nothing was stored; remove() that row "
            "first, or leave ids out."
        )
