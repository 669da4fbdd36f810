"""A pending segment: payloads too large to hold in memory or to write under the commit lock.

It is a segment file in ``pending/`` whose frame heads are still missing; the commit that publishes
it writes them, since only then LSNs are known. Until then nobody else looks at it.

What is written is on its way to the disk from then on, so that the sync at the end finds little
left. One writer allocates no space ahead: for large writes that gained nothing, with or without it,
and the heads that come last do not tear a file into more extents. For several see
:meth:`mldb.write.shared_checkpoint.SharedCheckpoint.allocate`.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import partial
from typing import Final

from mldb.log import format as fmt
from mldb.log.aside import BESIDE_BYTES, OVERLAP_BYTES, Aside
from mldb.log.batch import Placed, hash_all, place, place_all
from mldb.log.frame import Record, hash_record
from mldb.log.fs.protocol import FileSystem
from mldb.log.lone import PENDING, discard

WRITEBACK_BYTES: Final = 4 << 20  # what is worth a call that starts it


class PendingSegment:
    """One batch on its way into a segment of its own. One thread; discarded or published once.

    When it is collected, the file goes with it. ``owner`` is the registration of the process, whose
    name the file has, so that nobody else removes it while the process lives.
    """

    def __init__(self, fs: FileSystem, owner: str) -> None:
        self._fs = fs
        self.id = os.urandom(16)
        self.name = f"{PENDING}/{owner}-{self.id.hex()}.seg"
        self.placed: list[Placed] = []
        self._started = fmt.FILE_HEADER_SIZE  # up to here writeback was asked for
        self._kept = True
        self.file = fs.open(self.name, "create")

    @property
    def records(self) -> list[Record]:
        """The records, in their order."""
        return [item.record for item in self.placed]

    @property
    def tail(self) -> int:
        """Where the next frame starts."""
        return self.placed[-1].end if self.placed else fmt.FILE_HEADER_SIZE

    def reserve(self, record: Record) -> Placed:
        """Give a record its place; its payload may then be written at ``placed.payload``.

        The payloads of several records may be written in any order; ``record.written`` is to be set
        then. Raises LimitError.
        """
        placed = place(record, self.tail)
        self.placed.append(placed)
        return placed

    def add(self, records: Sequence[Record]) -> list[Placed]:
        """Place records behind each other and write their payloads now; return their places.

        The caller may change the buffers afterwards. Large payloads that are not hashed yet are
        hashed meanwhile. When this raises, or is interrupted, none of them has a place; what is in
        the file then is written over by what comes next, or the file is longer than ``tail``.
        """
        placed = list(place_all(records, self.tail))
        late = [item for item in records if _is_late(item)]
        if sum(item.payload_length for item in late) < BESIDE_BYTES:
            late = []
        hashing = Aside(partial(hash_all, late)) if late else None
        try:
            for item in placed:
                if not late or not _is_late(item.record):
                    hash_record(item.record)
                self._write(item)
        finally:
            if hashing is not None:
                hashing.result()  # also when a write failed: nobody may change the payload before
        for record in records:
            record.written, record.payload = record.payload_length > 0, ()
        self.placed += placed  # one step, which an interrupt does not part
        return placed

    def _write(self, item: Placed) -> None:
        record = item.record
        if record.written or not record.payload_length:
            return
        self.file.pwritev(record.payload, item.payload)
        self._started = min(self._started, item.offset)  # again, when a call failed before
        if item.end - self._started >= WRITEBACK_BYTES:
            self.file.start_writeback(self._started, item.end - self._started)
            self._started = item.end

    def take_over(self, other: PendingSegment) -> None:
        """Copy the records of another pending segment that still have entries."""
        for record, _, payload, _ in other.placed:
            if record.drafts:
                data = other.file.map(payload + record.payload_length)
                record.payload = (data[payload:],)
                record.written = False
                self.add([record])

    def discard(self) -> None:
        """Drop the file; a later call, or one after publishing, does nothing.

        A file that cannot be removed stays until a later handle sweeps it.
        """
        if self._kept:
            self._kept = False
            self.file.close()
            discard(self._fs, self.name)

    def __del__(self) -> None:
        # Nobody will publish it any more: a writer that was dropped, a transaction that was.
        if hasattr(self, "file"):
            self.discard()


def _is_late(record: Record) -> bool:
    """Whether a record is left to be hashed while it is written."""
    return record.checks is None and record.payload_length >= OVERLAP_BYTES
