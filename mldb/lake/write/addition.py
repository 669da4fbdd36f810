"""One ``add_splats`` on its way into the log: its block is written, then numbered in the commit."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from typing import Final

import numpy as np
import numpy.typing as npt

from mldb import keys
from mldb.errors import InvalidValueError, LimitError
from mldb.history.splats import ID_MAX, LakeInfo, pack_block, pack_lake
from mldb.lake import projection
from mldb.lake.host import Host, head_scope
from mldb.lake.write.batch_input import GivenRows
from mldb.lake.write.ingest import BlockWriter, block_record, describe
from mldb.log.frame import Draft
from mldb.log.fs.protocol import Buffer
from mldb.log.pending import PendingSegment
from mldb.log.view import View
from mldb.names import check_name
from mldb.tensors.scope import Scope

_IN_MEMORY: Final = 16 << 20  # larger blocks are written before the commit lock is taken

Refuse = Callable[[Scope, npt.NDArray[np.uint64]], None]


class Addition:
    """The rows of one call and their record. One thread; run once.

    Its key and first id are decided under the commit lock, so that no two additions can collide;
    their length is fixed, so that the rows may be written before.
    """

    def __init__(self, host: Host, name: str, info: LakeInfo, given: GivenRows) -> None:
        self._host = host
        self._name = name
        self._given = given
        self._lake = info
        self._info = describe(given)
        self._record = block_record(self._info, keys.splats_key(check_name(name), 0), b"")
        self._base = 0
        self._number(0, info)

    def commit(
        self, epoch: int | None, create: Callable[[], None], refuse: Refuse
    ) -> npt.NDArray[np.int64]:
        """Write and commit the rows; return their ids.

        *create* makes the lake where there is none, once the rows were found to be good; *refuse*
        raises for ids that are taken.
        """
        base = self._host.scope(None)

        def decide(view: View) -> None:
            self._decide(head_scope(base, view), refuse)

        if self._info.nbytes <= _IN_MEMORY:
            self._write_in_memory()
            create()
            self._host.commit([self._record], epoch, decide, None)
            return self._ids()
        pending = self._host.open_pending()
        try:
            self._write_ahead(pending)
            create()
            self._host.commit([], epoch, decide, pending)
        finally:
            pending.discard()
        return self._ids()

    # --- under the commit lock --------------------------------------------------------------------

    def _decide(self, scope: Scope, refuse: Refuse) -> None:
        info, _ = projection.require(scope, self._name)
        shape = (self._lake.dim, self._lake.geometry)
        if (info.dim, info.geometry) != shape:
            raise InvalidValueError(
                f"lake {self._name!r} was made by another one in the meantime, with dim={info.dim} "
                f"and geometry={info.geometry!r}; these rows have {shape[0]} and {shape[1]!r}. "
                "Nothing was stored; open the lake again, or choose another name."
            )
        if self._given.ids is not None:
            refuse(scope, self._given.ids)
        elif info.next_id + self._given.rows > ID_MAX + 1:
            raise LimitError(
                f"lake {self._name!r} has given out ids up to {info.next_id - 1}; "
                f"{self._given.rows} more exceed 2**48. Nothing was stored; pass ids."
            )
        self._number(scope.commit.lsn, info)

    def _number(self, head: int, info: LakeInfo) -> None:
        """Set the entries of the record: behind which commit it stands, and from which id on."""
        ids, next_id = self._given.ids, info.next_id
        self._base = next_id if ids is None else 0
        after = next_id + self._given.rows if ids is None else max(next_id, int(ids.max()) + 1)
        key = keys.splats_key(check_name(self._name), head)
        attr = pack_block(replace(self._info, base=self._base))
        block = self._record.drafts[0]._replace(key=key, attr=attr)
        self._record.drafts = [block, lake_draft(self._name, replace(info, next_id=after))]

    def _ids(self) -> npt.NDArray[np.int64]:
        if self._given.ids is not None:
            return self._given.ids.astype(np.int64)
        return np.arange(self._base, self._base + self._given.rows, dtype=np.int64)

    # --- writing ----------------------------------------------------------------------------------

    def _write_in_memory(self) -> None:
        payload = memoryview(bytearray(self._info.nbytes))
        place = 0

        def write(parts: list[Buffer]) -> None:
            nonlocal place
            for part in parts:
                payload[place : place + len(part)] = part
                place += len(part)

        with closing(self._writer(write)) as writer:
            self._run(writer)
        self._record.payload = (payload,)

    def _write_ahead(self, pending: PendingSegment) -> None:
        """Write to a pending segment, outside the lock; one piece while the next is made."""
        placed = pending.reserve(self._record)
        behind: Future[int] | None = None
        place = placed.payload

        def write(parts: list[Buffer]) -> None:
            nonlocal behind, place
            if behind is not None:
                behind.result()
            behind = pool.submit(pending.file.pwritev, parts, place)
            place += sum(map(len, parts))

        # The pool ends first, and with it the last write: only then may others have its memory.
        with closing(self._writer(write)) as writer, ThreadPoolExecutor(1, "mldb-ingest") as pool:
            self._run(writer)
            if behind is not None:
                behind.result()
        placed.written = True

    def _writer(self, write: Callable[[list[Buffer]], None]) -> BlockWriter:
        return BlockWriter(write, self._lake.geometry, self._host.buffers)

    def _run(self, writer: BlockWriter) -> None:
        record = self._record
        record.checks, digest = writer.run(self._given, self._info)
        record.drafts = [record.drafts[0]._replace(digest=digest), *record.drafts[1:]]


def lake_draft(name: str, info: LakeInfo) -> Draft:
    """The entry that tells the state of a lake with every change of it."""
    return Draft(keys.LAKES + check_name(name), 0, 0, 0, 0, b"", 0, pack_lake(info))
