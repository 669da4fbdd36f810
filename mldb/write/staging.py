"""Staged writes: the last write per key, turned into records at commit.

Small tensors are packed: many share one payload of at most 1 MiB, so that a batch of hundreds costs
a few frames and a read verifies one block. Larger ones get a frame of their own; above
``spill_bytes`` their bytes go to a pending segment at once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Final, NamedTuple

from mldb import keys
from mldb.history import kinds
from mldb.log import format as fmt
from mldb.log.batch import OVERLAP_BYTES, Placed
from mldb.log.checksum import block_check, checks_and_digest, digest128
from mldb.log.frame import TO_BE_HASHED, Draft, Record, make_draft
from mldb.log.fs.protocol import Buffer
from mldb.log.pending import PendingSegment
from mldb.tensors.codec import Prepared, pack_metadata, unpack_descriptor
from mldb.tensors.dtypes import itemsize_of
from mldb.tensors.encoding import ENCODING_ZSTD, decode_bytes, encode_bytes
from mldb.write.buffers import BufferPool

PACK_BELOW: Final = 64 << 10
PACK_BYTES: Final = fmt.PAGE_ALIGN_FROM
_PACK_ENTRIES: Final = 1 << 14
_BODY_BYTES: Final = 4 << 20
_ALIGN: Final = 1 << fmt.PAYLOAD_ALIGN_LOG2
_ZEROS: Final = bytes(_ALIGN)
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


class _Pack:
    """One packed payload being filled: PACK_BYTES of borrowed memory and the drafts into it."""

    __slots__ = ("data", "drafts", "size")

    def __init__(self, data: memoryview) -> None:
        self.data = data
        self.size = 0
        self.drafts: dict[bytes, Draft] = {}

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
        self.drafts[key] = make_draft(
            (key, 0, fmt.ENCODING_RAW, start, length, digest, 0, prepared.attr)
        )

    def record(self) -> Record:
        """The record of this pack; hashed here, outside the commit lock."""
        payload = self.data[: self.size]
        checks = block_check(payload) if self.size else b""
        drafts = list(self.drafts.values())
        return Record(kinds.TENSOR_STORED, drafts, (payload,), self.size, checks=checks)


def metadata_draft(key: bytes, attr: bytes) -> Draft:
    """An entry that sets metadata next to its tensor in one record."""
    return Draft(key, 0, 0, 0, 0, b"", 0, attr)


def tensor_record(key: bytes, prepared: Prepared, aliases: tuple[bytes, ...] = ()) -> Record:
    """A record of one tensor with its own payload; *aliases* are further keys for the same bytes.

    Small payloads are hashed here, outside the commit lock; large ones while they are written.
    """
    length = prepared.nbytes
    checks: bytes | None = None
    digest = TO_BE_HASHED
    if length < OVERLAP_BYTES:
        checks, digest = checks_and_digest(prepared.buffers, fmt.BLOCK_LOG2)
    attr = prepared.attr
    drafts = [make_draft((key, 0, fmt.ENCODING_RAW, 0, length, digest, 0, attr))]
    for name in aliases:
        drafts.append(drafts[0]._replace(key=name))
    return Record(
        kinds.TENSOR_STORED,
        drafts,
        prepared.buffers,
        length,
        align_log2=fmt.payload_align_log2(length),
        checks=checks,
    )


def compressed_record(key: bytes, prepared: Prepared, aliases: tuple[bytes, ...]) -> Record | None:
    """Like :func:`tensor_record`, zstd-compressed; None when that saves too little.

    Block checksums are of the compressed bytes, the digest is of the decoded ones.
    """
    packed = encode_bytes(prepared.buffers, itemsize_of(prepared.descriptor.dtype))
    if packed is None:
        return None
    _, digest = checks_and_digest(prepared.buffers, fmt.BLOCK_LOG2)
    checks, _ = checks_and_digest((packed,), fmt.BLOCK_LOG2)
    length = len(packed)
    drafts = [
        Draft(name, 0, ENCODING_ZSTD, 0, length, digest, 0, prepared.attr)
        for name in (key, *aliases)
    ]
    align = fmt.payload_align_log2(length)
    return Record(kinds.TENSOR_STORED, drafts, (packed,), length, align_log2=align, checks=checks)


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
        self._marks: dict[
            bytes, tuple[int, bytes | None]
        ] = {}  # key -> (event kind, attr or None for an end)
        self._extra: list[Record] = []
        self.pending: PendingSegment | None = None

    def __bool__(self) -> bool:
        """Whether anything is staged."""
        return bool(self._where or self._large or self._spilled or self._marks or self._extra)

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
            if self._marks.pop(keys.TENSORS + item, None) is not None:
                # Deleted before in this transaction, and so its metadata. No TensorDeleted will
                # tell that any more; this event does.
                self.mark(kinds.METADATA_SET, keys.METADATA + item, pack_metadata({}))
        if prepared.nbytes < PACK_BELOW:
            pack = self._open_pack(prepared.nbytes, len(names))
            pack.add(key, prepared)
            self._where[key] = pack
            for item in aliases:
                alias = keys.TENSORS + item
                pack.drafts[alias] = pack.drafts[key]._replace(key=alias)
                self._where[alias] = pack
            return
        held = tuple(keys.TENSORS + item for item in aliases)
        record = compressed_record(key, prepared, held) if self._compression is not None else None
        if record is None:
            record = self._raw_record(key, prepared, held)
        if record.payload_length >= self._spill_bytes:
            placed = self._spill(record)
            self._spilled.update({keys.TENSORS + item: placed for item in names})
        else:
            self._large.update({keys.TENSORS + item: record for item in names})

    def _raw_record(self, key: bytes, prepared: Prepared, aliases: tuple[bytes, ...]) -> Record:
        if not self._fix or prepared.owned or prepared.nbytes >= self._spill_bytes:
            return tensor_record(key, prepared, aliases)
        copies: list[memoryview] = []
        for part in prepared.buffers:
            copy = self._buffers.take(len(part))
            copy[:] = part
            copies.append(copy)
        record = tensor_record(key, prepared._replace(buffers=tuple(copies)), aliases)
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
        pack = self._where.pop(key, None)
        if pack is not None:
            del pack.drafts[key]
        record = self._large.pop(key, None)
        if record is None:
            placed = self._spilled.pop(key, None)
            record = None if placed is None else placed.record
            self._outdated |= placed is not None
        if record is not None:
            record.drafts = [draft for draft in record.drafts if draft.key != key]
            if not record.drafts:
                self._give_back(record)

    def mark(self, kind: int, key: bytes, attr: bytes | None) -> None:
        """Stage an entry without a payload, or the end of a key (*attr* None)."""
        self._forget(key)
        self._marks.pop(key, None)
        self._marks[key] = (kind, attr)

    def add_record(self, record: Record) -> None:
        """Stage a complete record."""
        self._extra.append(record)

    # --- reading back -----------------------------------------------------------------------------

    def read(self, key: bytes) -> Staged | None:
        """Return what was staged for *key*, or None."""
        mark = self._marks.get(key)
        if mark is not None:
            return Staged(mark[1] or b"", None, mark[1] is None)
        pack = self._where.get(key)
        if pack is not None:
            draft = pack.drafts[key]
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
        for table in (self._where, self._large, self._spilled):
            for key in table:
                if key.startswith(prefix):
                    yield key, True
        for key, (_, attr) in self._marks.items():
            if key.startswith(prefix):
                yield key, attr is not None

    # --- committing -------------------------------------------------------------------------------

    def records(self) -> list[Record]:
        """Return the records not yet in the pending segment; called once."""
        if self._outdated:
            self._spill_again()
        records = [pack.record() for pack in self._packs if pack.drafts]
        records += {id(record): record for record in self._large.values()}.values()
        grouped: dict[tuple[int, bool], list[tuple[bytes, bytes | None]]] = {}
        for key, (kind, attr) in self._marks.items():
            grouped.setdefault((kind, attr is None), []).append((key, attr))
        for (kind, ended), items in grouped.items():
            for part in _portions(items):
                if ended:
                    records.append(kinds.tombstones(kind, [key for key, _ in part]))
                else:
                    records.append(kinds.marks(kind, [(key, attr or b"") for key, attr in part]))
        return records + self._extra

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


def _portions(
    items: list[tuple[bytes, bytes | None]],
) -> Iterator[list[tuple[bytes, bytes | None]]]:
    """Split entries into bodies well below the limits of a frame."""
    part: list[tuple[bytes, bytes | None]] = []
    size = 0
    for key, attr in items:
        size += len(key) + len(attr or b"") + 32
        part.append((key, attr))
        if size > _BODY_BYTES or len(part) == fmt.ENTRIES_MAX:
            yield part
            part, size = [], 0
    if part:
        yield part


def _draft(record: Record, key: bytes) -> Draft:
    return next(draft for draft in record.drafts if draft.key == key)
