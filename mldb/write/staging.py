"""Staged writes: the last write per key, turned into records at commit.

Small tensors are packed: many share one payload of at most 1 MiB, so that a batch of hundreds costs
a few frames and a read verifies one block. Larger ones get a frame of their own; above
``spill_bytes`` their bytes go to a pending segment at once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Final, NamedTuple

from mldb import keys
from mldb.history.kinds.changes import KeyChange, records_of
from mldb.history.kinds.patches import PatchedVersion, tensor_patched
from mldb.history.kinds.tensors import (
    metadata_set,
    tensor_compressed,
    tensor_stored,
    tensors_packed,
)
from mldb.log import format as fmt
from mldb.log.batch import Placed
from mldb.log.checksum import digest128
from mldb.log.frame import Draft, DraftFields, Record
from mldb.log.fs.protocol import Buffer
from mldb.log.patch import Patch, merge_patches
from mldb.log.pending import PendingSegment
from mldb.tensors.codec import Prepared, pack_metadata, unpack_descriptor
from mldb.tensors.encoding import decode_bytes
from mldb.write.buffers import BufferPool

PACK_BELOW: Final = 64 << 10
PACK_BYTES: Final = fmt.PAGE_ALIGN_FROM
_PACK_ENTRIES: Final = 1 << 14
_ALIGN: Final = 1 << fmt.PAYLOAD_ALIGN_LOG2
_ZEROS: Final = bytes(_ALIGN)
_RAW: Final = fmt.ENCODING_RAW
assert PACK_BYTES <= 1 << fmt.BLOCK_LOG2  # a pack is one block

OpenPending = Callable[[], PendingSegment]


class Staged(NamedTuple):
    """What a transaction would read back for a key.

    ``data`` is None for a deletion or a spilled tensor.
    """

    attr: bytes
    data: tuple[Buffer, ...] | None
    deleted: bool
    placed: Placed | None = None
    encoding: int = fmt.ENCODING_RAW
    patch: Patch | None = None
    """Rows that change; the others are those of the version that was read. ``data`` is None."""


class _Pack:
    """One packed payload being filled: PACK_BYTES of borrowed memory and the drafts into it."""

    __slots__ = ("data", "drafts", "size")

    def __init__(self, data: memoryview) -> None:
        self.data = data
        self.size = 0
        self.drafts: dict[bytes, DraftFields] = {}

    def add(self, key: bytes, prepared: Prepared) -> None:
        """Copy the tensor in; the caller has seen that it fits."""
        data, size, length = self.data, self.size, prepared.nbytes
        start = (size + _ALIGN - 1) & -_ALIGN
        data[size:start] = _ZEROS[: start - size]
        end = start
        for buffer in prepared.buffers:
            size, end = end, end + len(buffer)
            data[size:end] = buffer
        digest = digest128(data[start:end])
        self.size = end
        self.drafts[key] = (key, 0, _RAW, start, length, digest, 0, prepared.attr, b"")

    def record(self) -> Record:
        """The record of this pack; hashed here, outside the commit lock."""
        return tensors_packed(list(self.drafts.values()), self.data[: self.size])


class Staging:
    """The writes of one transaction or checkpoint, in order of first mention. Used by one thread.

    ``fix`` says that values must be fixed at the call (a transaction's promise): buffers that alias
    the caller's memory are copied. Without it they must stay unchanged until the commit returns.
    """

    def __init__(
        self,
        new_pending: OpenPending,
        spill_bytes: int,
        *,
        fix: bool,
        compression: str | None = None,
        buffers: BufferPool | None = None,
    ) -> None:
        self._new_pending = new_pending
        self._buffers = buffers or BufferPool()
        self._borrowed: dict[int, list[memoryview]] = {}  # by the id of the record that holds them
        self._seen: set[bytes] = set()  # keys that were staged at some time
        self._compression = compression
        self._spill_bytes = spill_bytes
        self._fix = fix
        self._packs: list[_Pack] = []
        self._large: dict[bytes, Record] = {}
        self._spilled: dict[bytes, Placed] = {}
        self._outdated = False  # an entry of a spilled record was dropped; its place does not fit
        self._where: dict[bytes, _Pack] = {}
        self._changes: dict[bytes, KeyChange] = {}
        self._patches: dict[bytes, tuple[PatchedVersion, Patch]] = {}
        self._extra: list[Record] = []
        self.pending: PendingSegment | None = None

    def __bool__(self) -> bool:
        """Whether anything is staged."""
        staged = self._where, self._large, self._spilled, self._changes, self._patches, self._extra
        return any(staged)

    # --- staging ----------------------------------------------------------------------------------

    def put_tensor(self, name: bytes, prepared: Prepared, aliases: tuple[bytes, ...] = ()) -> None:
        """Stage a tensor under a checked name, and under aliases of the same bytes."""
        key = keys.TENSORS + name
        if not aliases and prepared.nbytes < PACK_BELOW and key not in self._seen:
            self._seen.add(key)
            pack = self._where[key] = self._open_pack(prepared.nbytes, 1)
            pack.add(key, prepared)
            return
        names = (name, *aliases)
        for item in names:
            self._forget(keys.TENSORS + item)
            if self._changes.pop(keys.TENSORS + item, None) is not None:
                # Deleted before in this transaction, and so its metadata. No TensorDeleted will
                # tell that any more; this event does.
                self.change(metadata_set(item, pack_metadata({})))
        if prepared.nbytes < PACK_BELOW:
            pack = self._open_pack(prepared.nbytes, len(names))
            pack.add(key, prepared)
            self._where[key] = pack
            for item in aliases:
                alias = keys.TENSORS + item
                pack.drafts[alias] = (alias, *pack.drafts[key][1:])
                self._where[alias] = pack
            return
        compressed = self._compression is not None
        record = tensor_compressed(name, prepared, aliases) if compressed else None
        if record is None:
            record = self._raw_record(name, prepared, aliases)
        if record.payload_length >= self._spill_bytes:
            placed = self._spill(record)
            self._spilled.update({keys.TENSORS + item: placed for item in names})
        else:
            self._large.update({keys.TENSORS + item: record for item in names})

    def put_patch(self, key: bytes, below: PatchedVersion, patch: Patch) -> None:
        """Stage rows of a tensor of which nothing but rows is staged. *patch* is not changed."""
        staged = self._patches.get(key)
        if staged is not None:
            below, patch = staged[0], merge_patches(staged[1], patch)
        self._seen.add(key)
        self._patches[key] = below, patch

    def _raw_record(self, name: bytes, prepared: Prepared, aliases: tuple[bytes, ...]) -> Record:
        if not self._fix or prepared.owned or prepared.nbytes >= self._spill_bytes:
            return tensor_stored(name, prepared, aliases)
        copies: list[memoryview] = []
        for part in prepared.buffers:
            copy = self._buffers.take(len(part))
            copy[:] = part
            copies.append(copy)
        record = tensor_stored(name, prepared._replace(buffers=tuple(copies)), aliases)
        self._borrowed[id(record)] = copies
        return record

    def _give_back(self, record: Record) -> None:
        for part in self._borrowed.pop(id(record), ()):
            self._buffers.give(part)

    def _spill(self, record: Record) -> Placed:
        pending = self.open_pending()
        pending.add([record])
        return pending.placed[-1]

    def open_pending(self) -> PendingSegment:
        """Return the pending segment of this transaction, opened when first needed."""
        if self.pending is None:
            self.pending = self._new_pending()
        return self.pending

    def _open_pack(self, size: int, entries: int) -> _Pack:
        """Return a pack with room for *size* bytes and as many entries."""
        if self._packs:
            last = self._packs[-1]
            if (
                last.size + size + _ALIGN <= PACK_BYTES
                and len(last.drafts) + entries <= _PACK_ENTRIES
            ):
                return last
        self._packs.append(_Pack(self._buffers.take(PACK_BYTES)))
        return self._packs[-1]

    def _forget(self, key: bytes) -> None:
        """Drop an earlier write of this transaction to the same key."""
        if key not in self._seen:
            self._seen.add(key)
            return
        self._patches.pop(key, None)
        pack = self._where.pop(key, None)
        if pack is not None:
            del pack.drafts[key]
        record = self._large.pop(key, None)
        if record is None:
            placed = self._spilled.pop(key, None)
            record = None if placed is None else placed.record
            self._outdated |= placed is not None
        if record is not None:
            record.drafts = [draft for draft in record.drafts if draft[0] != key]
            if not record.drafts:
                self._give_back(record)

    def change(self, *changes: KeyChange) -> None:
        """Stage what events without a payload say."""
        for change in changes:
            self._forget(change.key)
            self._changes.pop(change.key, None)
            self._changes[change.key] = change

    def add_record(self, record: Record) -> None:
        """Stage a complete record."""
        self._extra.append(record)

    # --- reading back -----------------------------------------------------------------------------

    def read(self, key: bytes) -> Staged | None:
        """Return what was staged for *key*, or None."""
        change = self._changes.get(key)
        if change is not None:
            return Staged(change.attr or b"", None, change.attr is None)
        pack = self._where.get(key)
        if pack is not None:
            draft = Draft._make(pack.drafts[key])
            part = bytes(pack.data[draft.offset : draft.offset + draft.length])
            return Staged(draft.attr, (part,), False)
        record = self._large.get(key)
        if record is not None:
            draft = _draft(record, key)
            data = tuple(record.payload)
            return Staged(draft.attr, data, False, encoding=draft.encoding)
        placed = self._spilled.get(key)
        if placed is not None:
            draft = _draft(placed.record, key)
            return Staged(draft.attr, None, False, placed, draft.encoding)
        patched = self._patches.get(key)
        if patched is not None:
            return Staged(patched[0].attr, None, False, patch=patched[1])
        return None

    def staged_bytes(self, staged: Staged) -> bytes:
        """Return the bytes of a staged tensor; a spilled one is read back from its pending file."""
        if staged.placed is not None and self.pending is not None:
            length = staged.placed.record.payload_length
            data = self.pending.file.pread(length, staged.placed.payload)
        else:
            data = b"".join(staged.data or ())
        if staged.encoding == fmt.ENCODING_RAW:
            return data
        size = unpack_descriptor(staged.attr).nbytes
        view = decode_bytes(memoryview(data), staged.encoding, size, "pending", 0, "staged")
        return bytes(view)

    def keys(self, prefix: bytes) -> Iterator[tuple[bytes, bool]]:
        """Yield (key, exists) for every staged key with this prefix, unordered."""
        for table in (self._where, self._large, self._spilled, self._patches):
            for key in table:
                if key.startswith(prefix):
                    yield key, True
        for key, change in self._changes.items():
            if key.startswith(prefix):
                yield key, change.attr is not None

    # --- committing -------------------------------------------------------------------------------

    def records(self) -> list[Record]:
        """Return the records not yet in the pending segment; called once."""
        if self._outdated:
            self._spill_again()
        records = [pack.record() for pack in self._packs if pack.drafts]
        records += {id(record): record for record in self._large.values()}.values()
        records += [tensor_patched(key, *staged) for key, staged in self._patches.items()]
        return records + records_of(self._changes.values()) + self._extra

    def _spill_again(self) -> None:
        """Move what is left of the spilled records to another pending segment.

        A frame's body decides where its payload starts, and the payloads are in place already: a
        record that lost an entry needs another place, and one that lost all of them needs none.
        """
        old, self.pending = self.pending, None
        assert old is not None
        try:
            if self._spilled:
                self.open_pending().take_over(old)
        finally:
            old.discard()

    def discard(self) -> None:
        """Drop everything, the pending segment too; borrowed memory goes to the next transaction.

        Called once the commit has returned, or failed.
        """
        if self.pending is not None:
            self.pending.discard()
        for record in list(self._large.values()):
            self._give_back(record)
        for pack in self._packs:
            self._buffers.give(pack.data)
        self._packs = []


def _draft(record: Record, key: bytes) -> Draft:
    return next(draft for draft in record.named_drafts() if draft.key == key)
