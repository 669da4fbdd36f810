"""What is staged for one key, and the entries of staged records."""

from __future__ import annotations

from typing import NamedTuple

from mldb.log import format as fmt
from mldb.log.batch import Placed
from mldb.log.frame import Draft, DraftFields, Record
from mldb.log.fs.protocol import Buffer
from mldb.log.patch import Patch
from mldb.log.pending import PendingSegment
from mldb.tensors.codec import Prepared, unpack_descriptor
from mldb.tensors.encoding import decode_bytes


class Staged(NamedTuple):
    """What a transaction would read back for a key.

    ``data`` is None for a deletion or a spilled tensor.
    """

    attr: bytes
    data: tuple[Buffer, ...] | None
    deleted: bool
    placed: Placed | None = None
    encoding: int = fmt.ENCODING_RAW
    digest: bytes = b""
    patch: Patch | None = None
    """Rows that change; the others are those of the version that was read. ``data`` is None."""


class Asked(NamedTuple):
    """A tensor that is looked up, under names of the same bytes; ``buffers`` do not change now."""

    names: tuple[bytes, ...]
    prepared: Prepared
    buffers: tuple[Buffer, ...]


def staged_parts(staged: Staged, pending: PendingSegment | None) -> tuple[Buffer, ...]:
    """The decoded bytes of a staged tensor, copied only where they have to be.

    Those of a spilled one are read from *pending*.
    """
    parts = staged.data or ()
    if staged.placed is not None and pending is not None:
        start, length = staged.placed.payload, staged.placed.record.payload_length
        parts = (pending.file.map(start + length)[start:],)
    if staged.encoding == fmt.ENCODING_RAW:
        return parts
    size = unpack_descriptor(staged.attr).nbytes
    data = memoryview(b"".join(parts))
    return (decode_bytes(data, staged.encoding, size, "pending", 0, "staged"),)


def drafts_like(draft: DraftFields, added: list[bytes], attr: bytes) -> dict[bytes, DraftFields]:
    """Entries of further keys with the bytes of an entry."""
    return {key: (key, *draft[1:7], attr, draft[8]) for key in added}


def with_names(record: Record, holder: bytes, added: list[bytes], attr: bytes) -> list[DraftFields]:
    """The entries of a record, and those of further keys with the bytes of *holder*."""
    return [*record.drafts, *drafts_like(draft_of(record, holder), added, attr).values()]


def draft_of(record: Record, key: bytes) -> Draft:
    """The entry of this key in a record that has one."""
    return next(draft for draft in record.named_drafts() if draft.key == key)
