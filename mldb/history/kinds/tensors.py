"""Tensors and their metadata: TensorStored, TensorDeleted, MetadataSet."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from mldb import keys
from mldb.history.kinds import METADATA_SET, TENSOR_DELETED, TENSOR_STORED
from mldb.history.kinds.changes import KeyChange, attr_draft
from mldb.log import format as fmt
from mldb.log.batch import OVERLAP_BYTES
from mldb.log.checksum import block_check, checks_and_digest, digest128
from mldb.log.frame import TO_BE_HASHED, Draft, Record, make_draft
from mldb.log.fs.protocol import Buffer
from mldb.tensors.codec import (
    Descriptor,
    Prepared,
    pack_descriptor,
    unpack_descriptor,
    unpack_metadata,
)
from mldb.tensors.dtypes import itemsize_of
from mldb.tensors.encoding import ENCODING_ZSTD, encode_bytes

# --- TensorStored ---------------------------------------------------------------------------------


def tensor_draft(key: bytes, attr: bytes, offset: int, length: int, digest: bytes) -> Draft:
    """The entry of a tensor whose bytes lie at *offset* of the payload as they are."""
    return make_draft((key, 0, fmt.ENCODING_RAW, offset, length, digest, 0, attr, b""))


def tensor_stored(
    name: bytes,
    prepared: Prepared,
    aliases: tuple[bytes, ...] = (),
    *,
    metadata: bytes | None = None,
) -> Record:
    """A record of one tensor with its own payload; *aliases* are further names of the same bytes.

    Small payloads are hashed here, outside the commit lock; large ones while they are written.
    """
    length = prepared.nbytes
    checks: bytes | None = None
    digest = TO_BE_HASHED
    if length < OVERLAP_BYTES:
        payload = prepared.buffers
        if metadata is None and not aliases and 0 < length < fmt.PAGE_ALIGN_FROM:
            # The same in fewer steps, for loops that store one small tensor after another.
            if len(payload) == 1:
                checks, digest = block_check(payload[0]), digest128(payload[0])
            else:
                checks, digest = checks_and_digest(payload, fmt.BLOCK_LOG2)
            key = keys.TENSORS + name
            one = make_draft((key, 0, fmt.ENCODING_RAW, 0, length, digest, 0, prepared.attr, b""))
            align, block = fmt.PAYLOAD_ALIGN_LOG2, fmt.BLOCK_LOG2
            return Record(TENSOR_STORED, [one], payload, length, None, 1, align, block, checks)
        checks, digest = checks_and_digest(payload, fmt.BLOCK_LOG2)
    draft = tensor_draft(keys.TENSORS + name, prepared.attr, 0, length, digest)
    return Record(
        TENSOR_STORED,
        _named(draft, name, aliases, metadata),
        prepared.buffers,
        length,
        align_log2=fmt.payload_align_log2(length),
        checks=checks,
    )


def tensor_compressed(
    name: bytes, prepared: Prepared, aliases: tuple[bytes, ...] = ()
) -> Record | None:
    """Like :func:`tensor_stored`, zstd-compressed; None when that saves too little.

    Block checksums are of the compressed bytes, the digest is of the decoded ones.
    """
    packed = encode_bytes(prepared.buffers, itemsize_of(prepared.descriptor.dtype))
    if packed is None:
        return None
    _, digest = checks_and_digest(prepared.buffers, fmt.BLOCK_LOG2)
    checks, _ = checks_and_digest((packed,), fmt.BLOCK_LOG2)
    length = len(packed)
    draft = tensor_draft(keys.TENSORS + name, prepared.attr, 0, length, digest)
    draft = draft._replace(encoding=ENCODING_ZSTD)
    align = fmt.payload_align_log2(length)
    drafts = _named(draft, name, aliases, None)
    return Record(TENSOR_STORED, drafts, (packed,), length, align_log2=align, checks=checks)


def tensors_packed(drafts: list[Draft], payload: Buffer) -> Record:
    """A record of many small tensors in one payload, of at most one block; hashed here."""
    checks = block_check(payload) if len(payload) else b""
    return Record(TENSOR_STORED, drafts, (payload,), len(payload), checks=checks)


def tensor_reserved(name: bytes, what: Descriptor, metadata: bytes | None) -> Record:
    """A record of a tensor whose bytes are still to come."""
    draft = tensor_draft(keys.TENSORS + name, pack_descriptor(what), 0, what.nbytes, TO_BE_HASHED)
    drafts = _named(draft, name, (), metadata)
    align = fmt.payload_align_log2(what.nbytes)
    return Record(TENSOR_STORED, drafts, (), what.nbytes, align_log2=align)


def _named(
    draft: Draft, name: bytes, aliases: tuple[bytes, ...], metadata: bytes | None
) -> list[Draft]:
    drafts = [draft, *(draft._replace(key=keys.TENSORS + alias) for alias in aliases)]
    if metadata is not None:
        drafts.append(attr_draft(keys.METADATA + name, metadata))
    return drafts


def read_tensor_stored(drafts: list[Draft], extra: Any) -> Iterator[tuple[Any, ...]]:
    """Yield name, dtype, shape, nbytes and metadata (None: left as they were) of each tensor."""
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
