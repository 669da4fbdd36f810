"""The commit of one small payload under one key, for loops that store tensor after tensor.

It writes the bytes that a batch of one record has (:mod:`mldb.log.batch`), without the loops and
the objects on the way, which cost more than the write. Whatever is not plain is left to
:meth:`Writer.commit`: a log that grew meanwhile, a full segment, a failed handle.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from mldb.log import format as fmt
from mldb.log.checksum import block_check, digest128
from mldb.log.frame import encode_commit, encode_head, pack
from mldb.log.fs.protocol import Buffer
from mldb.log.index.address import make_entry, make_row
from mldb.log.sequencer import LSN_ROOM, Writer
from mldb.log.view import View

BYTES_MAX: Final = fmt.PAGE_ALIGN_FROM - 1
"""Larger payloads are aligned to pages and have more than one block."""

_ZEROS: Final = bytes(fmt.FRAME_ALIGN)
_ALIGN_MASK: Final = fmt.FRAME_ALIGN - 1
_JOIN: Final = 16 << 10  # up to here copying the payload costs less than writing from four places

Choose = Callable[[View, int | None], int]
"""Called under the commit lock with the newest head and the epoch asked for; returns the epoch."""


class SingleLane:
    """Any thread; calls queue at the commit lock with all other commits."""

    __slots__ = ("_lock", "_state", "_writer")

    def __init__(self, writer: Writer) -> None:
        self._writer = writer
        self._state = writer.state
        self._lock = writer.lock

    def commit(
        self,
        kind: int,
        key: bytes,
        attr: bytes,
        buffers: tuple[Buffer, ...],
        epoch: int | None,
        choose: Choose,
    ) -> int | None:
        """Store at most BYTES_MAX bytes as a version of *key*; return the LSN of the commit.

        None when the usual way has to be taken; then nothing was done. Raises whatever *choose*
        raises, LockedError, StorageFullError, StorageIOError; then nothing is stored.
        """
        if len(buffers) != 1 or not buffers[0]:
            return None
        payload = buffers[0]
        length = len(payload)
        check, digest = block_check(payload), digest128(payload)
        body = pack((((key, 0, fmt.ENCODING_RAW, 0, length, digest, 0, attr),), None))
        writer, state = self._writer, self._state
        try:
            with self._lock:
                try:
                    if not self._begin(length):
                        return None
                    view, active = state.view, state.active
                    cursor, segment = active.cursor, active.segment
                    seed, offset, parent = segment.seed, cursor.offset, view.commit
                    epoch = choose(view, epoch)
                    lsn = max(cursor.last_lsn, state.manifest.lsn_floor) + 1
                    commit_lsn = lsn + 1
                    head = encode_head(
                        kind,
                        1,
                        fmt.FLAG_KEYED,
                        body,
                        check,
                        length,
                        fmt.BLOCK_LOG2,
                        fmt.PAYLOAD_ALIGN_LOG2,
                        lsn,
                        commit_lsn,
                        seed,
                        offset,
                    )
                    place = offset + len(head)
                    end = place + length
                    padding = -end & _ALIGN_MASK
                    end += padding
                    clock = state.fs.time_ns()
                    time = max(clock, parent.time)
                    row = make_row((commit_lsn, parent.lsn, epoch, time, clock, offset, end))
                    chain = digest128(cursor.chain + head[: fmt.FRAME_HEADER_SIZE])
                    commit = encode_commit(row, 1, chain, writer.durable_lsn, seed)
                    parts = (head, payload, _ZEROS[:padding], commit)
                    active.file.pwritev((b"".join(parts),) if length <= _JOIN else parts, offset)
                    at = (commit_lsn, segment.number, offset, place, length)
                    entry = make_entry((*at, attr, 0, fmt.ENCODING_RAW, 0, digest))
                    state.appended(row, ((key, entry),), end + len(commit), chain)
                finally:
                    state.writing = False
                writer.commits += 1
        except BaseException:
            self._lock.recover()
            raise
        if writer.options.durability == "commit":
            writer.sync(row.lsn)
        return row.lsn

    def _begin(self, length: int) -> bool:
        """Become the one source of new views if a plain append will do. The lock is held."""
        writer, state = self._writer, self._state
        with state.mutex:
            if (
                writer.failed is not None
                or state.active.cursor.last_lsn > LSN_ROOM
                or writer.is_full(length, 1)
                or not state.is_current()
            ):
                return False
            state.writing = True
            return True
