"""Tensors with a payload of their own, of one batch: held, or written at the call.

A small batch is one gathered write, so its tensors are held. Memory that was used before holds
them: up to 64 MiB come back to the next transaction, and what is more would be fresh memory, which
takes longer than a write. So from there on a batch *streams*: what is held is written to a pending
segment, and every further tensor at its call, straight from the caller's memory and hashed
meanwhile. What is in the page cache is fixed, and on its way to the disk. A pending segment becomes
a segment of the log: publishing it took 3 ms more than an append, as long as a write of 3 MiB, and
no batch below the border leaves one behind.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

from mldb.log import format as fmt
from mldb.log.batch import Placed, place
from mldb.log.frame import Record
from mldb.log.pending import PendingSegment
from mldb.write.buffers import BufferPool
from mldb.write.packs import PACK_ENTRIES
from mldb.write.staged import Staged, draft_of, with_names

OpenPending = Callable[[], PendingSegment]
NEVER = fmt.PAYLOAD_BYTES_MAX


class LargeTensors:
    """The large tensors of one batch, by key. Used by one thread.

    It streams from *alone* bytes of one tensor on, or *together* bytes of all that are held. An
    interrupt may come between any two steps: where a key is both held and written, what is held
    counts, and :meth:`records` drops whatever else the pending segment has.
    """

    def __init__(
        self, new_pending: OpenPending, buffers: BufferPool, *, alone: int, together: int
    ) -> None:
        self._new_pending = new_pending
        self._buffers = buffers
        self._alone, self._together = alone, together
        self._held: dict[bytes, Record] = {}
        self._written: dict[bytes, Placed] = {}
        self._borrowed: dict[int, list[memoryview]] = {}  # by the id of the record that holds them
        self._bytes = 0  # of the records that are held
        self._outdated = False  # a written record lost an entry: its place does not fit
        self.pending: PendingSegment | None = None

    def __contains__(self, key: object) -> bool:
        """Whether this key is one of them."""
        return key in self._held or key in self._written

    def __iter__(self) -> Iterator[bytes]:
        """The keys, each of them once."""
        return iter(self._held.keys() | self._written.keys())

    def __len__(self) -> int:
        """How many there are."""
        return len(self._held.keys() | self._written.keys())

    def open_pending(self) -> PendingSegment:
        """Return the pending segment of this batch, opened when first needed."""
        if self.pending is None:
            self.pending = self._new_pending()
        return self.pending

    # --- putting ----------------------------------------------------------------------------------

    def streams(self, nbytes: int) -> bool:
        """Whether a tensor of this size is written at the call."""
        if self.pending is not None or nbytes >= self._alone:
            return True
        return self._bytes + nbytes > self._together

    def hold(self, keys: list[bytes], record: Record, copies: list[memoryview]) -> None:
        """Hold a record until the commit; *copies* is memory that was taken for it."""
        if copies:
            self._borrowed[id(record)] = copies
        self._held.update(dict.fromkeys(keys, record))
        self._bytes += record.payload_length

    def write(self, keys: list[bytes], record: Record) -> None:
        """Write a record now, and first what is held."""
        self._write_held()
        placed = self.open_pending().add([self._on_a_page(record)])[0]
        self._written.update(dict.fromkeys(keys, placed))

    def _write_held(self) -> None:
        held = list({id(record): record for record in self._held.values()}.values())
        if not held:
            return
        # They are copies: what is held is whole until it is held no more.
        places = self.open_pending().add(list(map(self._on_a_page, held)))
        at = {id(record): placed for record, placed in zip(held, places, strict=True)}
        self._written.update({key: at[id(record)] for key, record in self._held.items()})
        self._held, self._bytes = {}, 0
        for record in held:
            self._give_back(record)

    def _on_a_page(self, record: Record) -> Record:
        """A copy of a record, aligned to a page unless its size alone decides where it goes."""
        if record.payload_length >= self._alone:
            return replace(record)
        return replace(record, align_log2=max(record.align_log2, fmt.PAGE_ALIGN_LOG2))

    def _give_back(self, record: Record) -> None:
        for part in self._borrowed.pop(id(record), ()):
            self._buffers.give(part)

    def forget(self, key: bytes) -> None:
        """Drop what this key has."""
        placed = self._written.pop(key, None)
        if placed is not None:
            self._outdated = True
            _drop(placed.record, key)
        record = self._held.pop(key, None)
        if record is not None:
            _drop(record, key)
            if not record.drafts:
                self._bytes -= record.payload_length
                self._give_back(record)

    def share(self, holder: bytes, added: list[bytes], attr: bytes) -> bool:
        """Let further keys have the bytes of *holder*; False where its frame has no room for them.

        What is written starts on a page, so that some 2 KiB are free in front of it, mostly: half a
        page for each is what that costs, at most 3 %.
        """
        record = self._held.get(holder)
        if record is not None:
            if len(record.drafts) + len(added) > PACK_ENTRIES:
                return False
            record.drafts = with_names(record, holder, added, attr)
            self._held.update(dict.fromkeys(added, record))
            return True
        placed = self._written.get(holder)
        if placed is None:
            return False
        record = placed.record
        before, record.drafts = record.drafts, with_names(record, holder, added, attr)
        if place(record, placed.offset) != placed:
            record.drafts = before
            return False
        self._written.update(dict.fromkeys(added, placed))
        return True

    # --- reading back and committing --------------------------------------------------------------

    def read(self, key: bytes) -> Staged | None:
        """Return what is staged for *key*."""
        record = self._held.get(key)
        if record is not None:
            draft = draft_of(record, key)
            data = tuple(record.payload)
            return Staged(draft.attr, data, False, None, draft.encoding, draft.digest)
        placed = self._written.get(key)
        if placed is None:
            return None
        draft = draft_of(placed.record, key)
        return Staged(draft.attr, None, False, placed, draft.encoding, draft.digest)

    def records(self) -> list[Record]:
        """Return the records that are held; those in the pending segment are as they should be."""
        if self.pending is not None and not self._is_whole(self.pending):
            self._write_again()
        if not self._held:
            return []
        held = list({id(record): record for record in self._held.values()}.values())
        for record in held:
            record.drafts = [draft for draft in record.drafts if self._held.get(draft[0]) is record]
        return held

    def _keys_of(self, placed: Placed) -> set[bytes]:
        """The keys that still have what was written here."""
        held, written = self._held, self._written
        keys = {draft[0] for draft in placed.record.drafts}
        return {key for key in keys if key not in held and written.get(key) is placed}

    def _is_whole(self, pending: PendingSegment) -> bool:
        """Whether all that is in it is to be stored, and stands where it belongs.

        A call that failed may have left bytes behind the last record.
        """
        if self._outdated or pending.file.size() > pending.tail:
            return False
        places = pending.placed
        return all(len(self._keys_of(each)) == len(each.record.drafts) for each in places)

    def _write_again(self) -> None:
        """Move what is left of the written records to another pending segment.

        A frame's body decides where its payload starts, and the payloads are in place already: a
        record that lost an entry needs another place, and one that lost all of them needs none.
        """
        old, self.pending = self.pending, None
        assert old is not None
        try:
            for placed in old.placed:
                kept = self._keys_of(placed)
                drafts = {draft[0]: draft for draft in placed.record.drafts if draft[0] in kept}
                placed.record.drafts = list(drafts.values())
            if any(placed.record.drafts for placed in old.placed):
                self.open_pending().take_over(old)
        finally:
            old.discard()

    def discard(self) -> None:
        """Drop everything; borrowed memory goes to the next batch."""
        if self.pending is not None:
            self.pending.discard()
        for record in list(self._held.values()):
            self._give_back(record)


def _drop(record: Record, key: bytes) -> None:
    record.drafts = [draft for draft in record.drafts if draft[0] != key]
