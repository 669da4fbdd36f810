"""A pending segment: payloads too large to hold in memory or to write under the commit lock.

It is a segment file in ``pending/`` whose frame heads are still missing; the commit that publishes
it writes them, since only then LSNs and the segment's number are known. Until then nobody else
looks at it.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Sequence

from mldb.errors import StorageError
from mldb.log import format as fmt
from mldb.log.batch import OVERLAP_BYTES, Placed, place, write_payloads
from mldb.log.frame import Record, hash_record
from mldb.log.fs.protocol import FileSystem
from mldb.log.manifest import PENDING

_numbers = itertools.count(1)


class PendingSegment:
    """One batch on its way into a segment of its own. One thread; discarded or published once."""

    def __init__(self, fs: FileSystem, owner: str) -> None:
        self._fs = fs
        self.name = f"{PENDING}/{owner}-{next(_numbers)}.seg"
        self.file = fs.open(self.name, "create")
        self.placed: list[Placed] = []
        self.tail = fmt.FILE_HEADER_SIZE

    def reserve(self, record: Record) -> Placed:
        """Give a record its place; its payload may then be written at ``placed.payload``.

        The payloads of several records may be written in any order. Raises LimitError.
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
        for item in placed:
            if not item.written and item.record.payload_length:
                hash_record(item.record)
                self.file.pwritev(item.record.payload, item.payload)
                item.written = True
            item.record.payload = ()

    def take_over(self, other: PendingSegment) -> None:
        """Copy the records of another pending segment that still have entries."""
        for item in other.placed:
            record = item.record
            if record.drafts:
                data = other.file.map(item.payload + record.payload_length)
                record.payload = (data[item.payload :],)
                self.add([record])

    def discard(self) -> None:
        """Drop the file; a later call, or one after publishing, does nothing.

        A file that cannot be removed stays until a later handle sweeps it.
        """
        self.file.close()
        with contextlib.suppress(StorageError):
            self._fs.unlink(self.name)


def sweep_pending(fs: FileSystem, owners: frozenset[str]) -> None:
    """Remove pending files except segments of the live *owners*; the caller holds the commit lock.

    Everything else is made and published under that lock, but for small hints, which may be lost.
    """
    for name in fs.list(PENDING):
        if not (name.endswith(".seg") and name.split("-")[0] in owners):
            fs.unlink(f"{PENDING}/{name}")
