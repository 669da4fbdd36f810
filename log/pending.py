"""A pending segment: payloads too large to hold in memory or to write under the commit lock.

It is a segment file in ``pending/`` whose frame heads are still missing; the commit that publishes
it writes them, since only then LSNs are known. Until then nobody else looks at it.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

from mldb.log import format as fmt
from mldb.log.batch import OVERLAP_BYTES, Placed, place, write_payloads
from mldb.log.frame import Record, hash_record
from mldb.log.fs.protocol import FileSystem
from mldb.log.lone import PENDING, discard


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
        self.tail = fmt.FILE_HEADER_SIZE
        self._kept = True
        self.file = fs.open(self.name, "create")

    @property
    def records(self) -> list[Record]:
        """The records, in their order."""
        return [item.record for item in self.placed]

    def reserve(self, record: Record) -> Placed:
        """Give a record its place; its payload may then be written at ``placed.payload``.

        The payloads of several records may be written in any order; ``record.written`` is to be set
        then. Raises LimitError.
        """
        placed = place(record, self.tail)
        self.placed.append(placed)
        self.tail = placed.end
        return placed

    def add(self, records: Sequence[Record]) -> None:
        """Place records behind each other and write their payloads now.

        The caller may change the buffers afterwards.
        """
        placed = [self.reserve(record) for record in records]
        large = [item for item in placed if item.record.payload_length >= OVERLAP_BYTES]
        if large:
            write_payloads(self.file, large)
        for record, _, payload, _ in placed:
            hash_record(record)
            if not record.written and record.payload_length:
                self.file.pwritev(record.payload, payload)
                record.written = True
            record.payload = ()

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
