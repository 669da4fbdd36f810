"""One ``add_splats``: its block is written, then numbered and committed."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import Final

import numpy as np
import numpy.typing as npt

from mldb.arrays import Numbers
from mldb.errors import InvalidValueError, LimitError
from mldb.history.kinds.changes import records_of
from mldb.history.kinds.lakes import lake_created, splats_added
from mldb.history.splats import ID_MAX, LakeInfo
from mldb.lake import projection
from mldb.lake.host import Host, head_scope
from mldb.lake.rows.live import rows_in
from mldb.lake.write.block import block_of, fill_block, write_block
from mldb.lake.write.given import GivenRows
from mldb.log.frame import TO_BE_HASHED, Record
from mldb.log.index.address import CommitRow, Entry
from mldb.log.view import View
from mldb.names import check_name
from mldb.sphere.geometry import Geometry
from mldb.tensors.scope import Scope

_IN_MEMORY: Final = 16 << 20  # larger blocks are written before the commit lock is taken


def add_rows(
    host: Host, name: str, dim: int, geometry: Geometry, given: GivenRows, epoch: int | None
) -> Numbers:
    """Store *given*, at least one row, as one commit of the lake *name*; return their ids.

    The first rows make the lake in the same commit. Raises what ``Lake.add_splats`` does.
    """
    host.settle()
    while True:
        try:
            row, ids = _Addition(host, name, dim, geometry, given).store(epoch)
        except _LakeMovedError:
            continue  # another commit made the lake, or rewound behind it
        host.known.note_ids(row.lsn, ids.copy())  # what is returned is the caller's own
        host.known.note_change(lambda: host.scope(None), name)
        host.note_rows(name, given.count)
        return ids


class _LakeMovedError(Exception):
    """Whether the lake exists is no longer what the records were made for. Internal."""


class _Addition:
    """One try to store rows; one thread, used once.

    The key and the first id are decided under the commit lock, so that no two additions can
    collide; their length is fixed, so that the rows may be written before.
    """

    def __init__(
        self, host: Host, name: str, dim: int, geometry: Geometry, given: GivenRows
    ) -> None:
        self._host, self._name, self._given = host, name, given
        self._dim, self._geometry = dim, geometry
        self._base = host.scope(None)
        found = projection.find_lake(self._base, name)
        self._makes = found is None
        self._lake = LakeInfo(os.urandom(16), dim, geometry, 0) if found is None else found[0]
        self._checked = 0  # the commit of the lake that ids were compared with
        if found is not None and given.ids is not None:
            # Before the rows are written as well: what it reads under the lock is then known.
            _refuse_taken(host, self._base, name, found[0], given.ids)
            self._checked = found[1].commit_lsn
        self._block = block_of(given, dim)
        self._digest = TO_BE_HASHED
        # Key and first id are not known yet: what stands for them here has their length.
        self._records = self._records_behind(0)

    def store(self, epoch: int | None) -> tuple[CommitRow, Numbers]:
        """Write the block and commit it; return the commit and the ids."""
        *before, record = self._records
        given, block, geometry = self._given, self._block, self._geometry
        if record.payload_length <= _IN_MEMORY:
            data = bytearray(record.payload_length)
            record.checks, self._digest = fill_block(data, given, block, geometry)
            record.payload = (memoryview(data),)
            row = self._host.commit(self._records, epoch, self._decide, None)
            return row, self._ids()
        pending = self._host.open_pending()
        try:
            for one in before:
                pending.reserve(one)
            placed = pending.reserve(record)
            record.checks, self._digest = write_block(
                pending.file, placed.payload, given, block, geometry, self._host.buffers
            )
            record.written = True
            row = self._host.commit([], epoch, self._decide, pending)
        finally:
            pending.discard()
        return row, self._ids()

    def _ids(self) -> Numbers:
        if self._given.ids is not None:
            return self._given.ids.astype(np.int64)
        first = self._lake.next_id
        return np.arange(first, first + self._given.count, dtype=np.int64)

    def _decide(self, view: View) -> None:
        """Give the rows their key and ids behind the newest head, or refuse them."""
        scope = head_scope(self._base, view)
        now = projection.find_lake(scope, self._name)
        if now is not None:
            self._refuse(scope, *now)
            self._lake = now[0]
        if (now is None) != self._makes:
            raise _LakeMovedError
        for record, final in zip(self._records, self._records_behind(view.commit.lsn), strict=True):
            record.drafts = final.drafts

    def _refuse(self, scope: Scope, info: LakeInfo, entry: Entry) -> None:
        name, given = self._name, self._given
        if (info.dim, info.geometry) != (self._dim, self._geometry):
            raise InvalidValueError(
                f"lake {name!r} was made by another one in the meantime, with dim={info.dim} and "
                f"geometry={info.geometry!r}; these rows have {self._dim} and {self._geometry!r}. "
                "Nothing was stored; open the lake again, or choose another name."
            )
        if given.ids is not None:
            if entry.commit_lsn != self._checked:
                _refuse_taken(self._host, scope, name, info, given.ids)
        elif info.next_id + given.count > ID_MAX + 1:
            raise LimitError(
                f"lake {name!r} has given out ids up to {info.next_id - 1}; {given.count} more "
                "exceed 2**48. Nothing was stored; pass ids."
            )

    def _records_behind(self, head: int) -> list[Record]:
        """The record of the block behind commit *head*, the last; before it that of a new lake."""
        name, ids, lake = check_name(self._name), self._given.ids, self._lake
        base = lake.next_id if ids is None else 0
        last = lake.next_id + self._given.count if ids is None else int(ids.max()) + 1
        after = replace(lake, next_id=max(lake.next_id, last))
        block = replace(self._block, base=base)
        if not self._makes:
            return [splats_added(name, head, block, after, self._digest)]
        made = records_of([lake_created(name, after)])
        return [*made, splats_added(name, head, block, None, self._digest)]


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
