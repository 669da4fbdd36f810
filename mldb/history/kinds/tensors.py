"""Tensors and their metadata: TensorStored, TensorDeleted, MetadataSet."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Final

from mldb import keys
from mldb.history.kinds import METADATA_SET, TENSOR_DELETED, TENSOR_STORED
from mldb.history.kinds.changes import KeyChange, attr_draft, portions
from mldb.log import format as fmt
from mldb.log.aside import OVERLAP_BYTES
from mldb.log.checksum import (
    block_check,
    block_checks,
    check_of_block,
    checks_and_digest,
    digest128,
    whole_digest,
)
from mldb.log.frame import TO_BE_HASHED, Draft, DraftFields, Record
from mldb.log.fs.protocol import Buffer
from mldb.tensors.codec import (
    Descriptor,
    Prepared,
    pack_descriptor,
    unpack_descriptor,
    unpack_metadata,
)
from mldb.tensors.dtypes import itemsize_of

_SMALL_BELOW: Final = fmt.PAGE_ALIGN_FROM
_TENSORS: Final = keys.TENSORS
_RAW: Final = fmt.ENCODING_RAW
_ALIGN: Final = fmt.PAYLOAD_ALIGN_LOG2
_BLOCK: Final = fmt.BLOCK_LOG2
assert OVERLAP_BYTES >= _SMALL_BELOW <= 1 << _BLOCK  # hashed here, as one block

# --- TensorStored ---------------------------------------------------------------------------------


def tensor_draft(
    key: bytes,
    attr: bytes,
    offset: int,
    length: int,
    digest: bytes,
    encoding: int = fmt.ENCODING_RAW,
) -> DraftFields:
    """The entry of a tensor whose stored bytes lie at *offset* of the payload."""
    return key, 0, encoding, offset, length, digest, 0, attr, b""


def tensor_stored(
    name: bytes,
    prepared: Prepared,
    aliases: tuple[bytes, ...] = (),
    *,
    metadata: bytes | None = None,
    hashed: tuple[bytes | None, bytes] | None = None,
) -> Record:
    """A record of one tensor with its own payload; *aliases* are further names of the same bytes.

    *hashed* are its block checksums and digest where they are known, or None and the digest.
    Otherwise small payloads are hashed here, outside the commit lock; large ones while they are
    written.
    """
    length = prepared.nbytes
    checks: bytes | None = None
    digest = TO_BE_HASHED
    if hashed is None and length < OVERLAP_BYTES:
        hashed = checks_and_digest(prepared.buffers, fmt.BLOCK_LOG2)
    if hashed is not None:
        checks, digest = hashed
    draft = tensor_draft(keys.TENSORS + name, prepared.attr, 0, length, digest)
    return Record(
        TENSOR_STORED,
        _named(draft, name, aliases, metadata),
        prepared.buffers,
        length,
        align_log2=fmt.payload_align_log2(length),
        checks=checks,
    )


def small_tensor_stored(name: bytes, prepared: Prepared) -> Record | None:
    """What :func:`tensor_stored` returns of one short buffer, in fewer steps; else None.

    For loops that store one small tensor after another.
    """
    payload = prepared.buffers
    length = prepared.nbytes
    if len(payload) != 1 or not 0 < length < _SMALL_BELOW:
        return None
    data = payload[0]
    digest = digest128(data)
    draft = (_TENSORS + name, 0, _RAW, 0, length, digest, 0, prepared.attr, b"")
    check = check_of_block(data, digest)
    return Record(TENSOR_STORED, (draft,), payload, length, None, 1, _ALIGN, _BLOCK, check)


def tensor_compressed(
    name: bytes,
    prepared: Prepared,
    aliases: tuple[bytes, ...] = (),
    *,
    digest: bytes | None = None,
) -> Record | None:
    """Like :func:`tensor_stored`, zstd-compressed; None when that saves too little.

    Block checksums are of the compressed bytes, the digest is of the decoded ones, where it is not
    known.
    """
    from mldb.tensors.encoding import ENCODING_ZSTD, encode_bytes

    packed = encode_bytes(prepared.buffers, itemsize_of(prepared.descriptor.dtype))
    if packed is None:
        return None
    if digest is None:
        digest = whole_digest(prepared.buffers)
    checks = block_checks((packed,), fmt.BLOCK_LOG2)
    length = len(packed)
    key = keys.TENSORS + name
    draft = tensor_draft(key, prepared.attr, 0, length, digest, ENCODING_ZSTD)
    align = fmt.payload_align_log2(length)
    drafts = _named(draft, name, aliases, None)
    return Record(TENSOR_STORED, drafts, (packed,), length, align_log2=align, checks=checks)


def tensors_packed(drafts: Sequence[DraftFields], payload: Buffer) -> Record:
    """A record of many small tensors in one payload, of at most one block; hashed here."""
    checks = block_check(payload) if len(payload) else b""
    return Record(TENSOR_STORED, drafts, (payload,), len(payload), checks=checks)


def tensor_referring(key: bytes, attr: bytes, owner: bytes, lsn: int, digest: bytes) -> DraftFields:
    """The entry of a tensor whose bytes are those of the version of *owner* that *lsn* stored."""
    return key, 0, fmt.ENCODING_REFERENCE, 0, 0, digest, lsn, attr, b"" if owner == key else owner


def tensors_referring(entries: Iterable[tuple[DraftFields, bytes | None]]) -> list[Record]:
    """Records of tensors that have no bytes of their own, each with its new metadata or None."""
    drafts: list[DraftFields] = []
    for draft, metadata in entries:
        drafts.append(draft)
        if metadata is not None:
            drafts.append(attr_draft(keys.METADATA + draft[0][1:], metadata))
    return [Record(TENSOR_STORED, part) for part in portions(drafts)]


def tensor_reserved(name: bytes, what: Descriptor, metadata: bytes | None) -> Record:
    """A record of a tensor whose bytes are still to come."""
    draft = tensor_draft(keys.TENSORS + name, pack_descriptor(what), 0, what.nbytes, TO_BE_HASHED)
    drafts = _named(draft, name, (), metadata)
    align = fmt.payload_align_log2(what.nbytes)
    return Record(TENSOR_STORED, drafts, (), what.nbytes, align_log2=align)


def _named(
    draft: DraftFields, name: bytes, aliases: tuple[bytes, ...], metadata: bytes | None
) -> list[DraftFields]:
    drafts = [draft, *((keys.TENSORS + alias, *draft[1:]) for alias in aliases)]
    if metadata is not None:
        drafts.append(attr_draft(keys.METADATA + name, metadata))
    return drafts


def read_tensor_stored(drafts: list[Draft], extra: Any) -> Iterator[tuple[Any, ...]]:
    """Yield name, dtype, shape, nbytes and metadata (None: left as they were) of each tensor.

    One that ends here was damaged, and a repair had nothing of it to store.
    """
    drafts = [draft for draft in drafts if not draft.flags & fmt.ENTRY_TOMBSTONE]
    metadata = {draft.key[1:]: draft.attr for draft in drafts if draft.key[:1] == keys.METADATA}
    for draft in drafts:
        if draft.key[:1] == keys.TENSORS:
            attr = metadata.get(draft.key[1:])
            what = unpack_descriptor(draft.attr)
            fields = None if attr is None else unpack_metadata(attr)
            yield keys.name_of(draft.key), what.dtype, what.shape, what.nbytes, fields


# --- TensorDeleted --------------------------------------------------------------------------------


def tensor_deleted(name: bytes) -> tuple[KeyChange, KeyChange]:
    """The end of a tensor and of its metadata."""
    return (
        KeyChange(TENSOR_DELETED, keys.TENSORS + name, None),
        KeyChange(TENSOR_DELETED, keys.METADATA + name, None),
    )


def read_tensor_deleted(drafts: list[Draft], extra: Any) -> Iterator[tuple[Any, ...]]:
    """Yield the name of each tensor."""
    for draft in drafts:
        if draft.key[:1] == keys.TENSORS:
            yield (keys.name_of(draft.key),)


# --- MetadataSet ----------------------------------------------------------------------------------


def metadata_set(name: bytes, packed: bytes) -> KeyChange:
    """New metadata of a tensor, packed; they take the place of those it had."""
    return KeyChange(METADATA_SET, keys.METADATA + name, packed)


def read_metadata_set(drafts: list[Draft], extra: Any) -> Iterator[tuple[Any, ...]]:
    """Yield name and metadata of each tensor."""
    for draft in drafts:
        yield keys.name_of(draft.key), unpack_metadata(draft.attr)
