"""Events: what happened, as frozen dataclasses; and their way into records and out of frames.

The kind numbers are part of the format (FORMAT.md section 5). A kind with the must-understand bit
stops a reader that does not know it; others are skipped and kept.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

import msgpack

from mldb import keys
from mldb.codec import Descriptor, unpack_descriptor, unpack_metadata
from mldb.errors import CorruptError
from mldb.log import format as fmt
from mldb.log.address import CommitRow, Lsn
from mldb.log.frame import DamagedFrame, Draft, Frame, Record, decode_entries, unpack

_MUST = fmt.MUST_UNDERSTAND

TENSOR_STORED: Final = 16 | _MUST
TENSOR_PATCHED: Final = 17 | _MUST  # reserved
TENSOR_DELETED: Final = 18 | _MUST
METADATA_SET: Final = 19 | _MUST
RELATIONSHIP_CREATED: Final = 20 | _MUST
RELATIONSHIP_DELETED: Final = 21 | _MUST
CHECKPOINT_TAKEN: Final = 22 | _MUST
TAG_SET: Final = 23 | _MUST
TAG_DELETED: Final = 24 | _MUST
PIN_SET: Final = 25 | _MUST
PIN_CLEARED: Final = 26 | _MUST
RETENTION_SET: Final = 27 | _MUST  # reserved
REWOUND: Final = 28 | _MUST

_IMPLEMENTED = (
    *(TENSOR_STORED, TENSOR_DELETED, METADATA_SET, RELATIONSHIP_CREATED, RELATIONSHIP_DELETED),
    *(CHECKPOINT_TAKEN, TAG_SET, TAG_DELETED, PIN_SET, PIN_CLEARED, REWOUND),
)
KNOWN_KINDS: Final = frozenset(kind & ~_MUST for kind in _IMPLEMENTED)


@dataclass(frozen=True, slots=True)
class Event:
    """What every event has: ``lsn`` and ``epoch`` of its commit, and ``time`` (UTC)."""

    lsn: Lsn
    epoch: int
    time: datetime


@dataclass(frozen=True, slots=True)
class TensorStored(Event):
    """A new version of a tensor. ``metadata`` is None when it was left as it was."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    nbytes: int
    metadata: dict[str, Any] | None


@dataclass(frozen=True, slots=True)
class TensorDeleted(Event):
    """The tensor and its metadata are gone from here on; earlier versions stay readable."""

    name: str


@dataclass(frozen=True, slots=True)
class MetadataSet(Event):
    """The metadata of a tensor was replaced."""

    name: str
    metadata: dict[str, Any]


@dataclass(frozen=True, slots=True)
class RelationshipCreated(Event):
    """source -> target of this kind exists, with this metadata."""

    source: str
    target: str
    kind: str
    metadata: dict[str, Any]


@dataclass(frozen=True, slots=True)
class RelationshipDeleted(Event):
    """source -> target of this kind is gone from here on."""

    source: str
    target: str
    kind: str


@dataclass(frozen=True, slots=True)
class CheckpointTaken(Event):
    """A model checkpoint; its tensors are TensorStored events of the same commit."""

    name: str
    step: int | None
    metrics: dict[str, Any]


@dataclass(frozen=True, slots=True)
class TagSet(Event):
    """Tag *name* points at commit *target*."""

    name: str
    target: Lsn


@dataclass(frozen=True, slots=True)
class TagDeleted(Event):
    """Tag *name* is gone."""

    name: str


@dataclass(frozen=True, slots=True)
class PinSet(Event):
    """Commit *target* is kept readable whatever retention says."""

    target: Lsn


@dataclass(frozen=True, slots=True)
class PinCleared(Event):
    """Commit *target* is no longer pinned."""

    target: Lsn


@dataclass(frozen=True, slots=True)
class Rewound(Event):
    """The head state became the state at commit *target*."""

    target: Lsn


def to_time(nanoseconds: int) -> datetime:
    """Turn a commit time into an aware datetime (microseconds; the rest is cut)."""
    return datetime.fromtimestamp(nanoseconds // 1_000_000_000, UTC).replace(
        microsecond=nanoseconds % 1_000_000_000 // 1000
    )


# --- into records ---------------------------------------------------------------------------------


def tombstones(kind: int, names: Iterable[bytes]) -> Record:
    """A record that ends these keys."""
    return Record(kind, [Draft(key, fmt.ENTRY_TOMBSTONE, 0, 0, 0, b"", 0, b"") for key in names])


def marks(kind: int, items: Iterable[tuple[bytes, bytes]], extra: object = None) -> Record:
    """A record that sets keys to attrs, without a payload."""
    return Record(kind, [Draft(key, 0, 0, 0, 0, b"", 0, attr) for key, attr in items], extra=extra)


def pack_plain(value: object) -> bytes:
    """msgpack of plain values."""
    packed: bytes = msgpack.packb(value, use_bin_type=True)
    return packed


# --- out of frames --------------------------------------------------------------------------------


def events_of(row: CommitRow, frames: Iterable[tuple[Frame, bytes]], file: str) -> Iterator[Event]:
    """Yield the events of one commit. Raises CorruptError for a body that means nothing."""
    head = (Lsn(row.lsn), row.epoch, to_time(row.time))
    for frame, body in frames:
        try:
            if frame.header.flags & fmt.FLAG_KEYED:
                drafts, extra = decode_entries(body, frame)
            else:
                drafts, extra = [], unpack(body)
            decode = _DECODERS.get(frame.header.kind)
            if decode is not None:
                yield from decode(head, drafts, extra)
        except (DamagedFrame, ValueError, TypeError, KeyError, IndexError) as error:
            raise CorruptError(
                f"an event cannot be decoded: {error}", file=file, offset=frame.offset
            ) from None


_Head = tuple[Lsn, int, datetime]
_Decoder = Callable[[_Head, list[Draft], Any], Iterator[Event]]


def _tensors(head: _Head, drafts: list[Draft], extra: Any) -> Iterator[Event]:
    metadata = {draft.key[1:]: draft.attr for draft in drafts if draft.key[:1] == keys.METADATA}
    for draft in drafts:
        if draft.key[:1] == keys.TENSORS:
            attr = metadata.get(draft.key[1:])
            what: Descriptor = unpack_descriptor(draft.attr)
            yield TensorStored(
                *head,
                keys.name_of(draft.key),
                what.dtype,
                what.shape,
                what.nbytes,
                None if attr is None else unpack_metadata(attr),
            )


def _deleted(head: _Head, drafts: list[Draft], extra: Any) -> Iterator[Event]:
    for draft in drafts:
        if draft.key[:1] == keys.TENSORS:
            yield TensorDeleted(*head, keys.name_of(draft.key))


def _metadata(head: _Head, drafts: list[Draft], extra: Any) -> Iterator[Event]:
    for draft in drafts:
        yield MetadataSet(*head, keys.name_of(draft.key), unpack_metadata(draft.attr))


def _related(head: _Head, drafts: list[Draft], extra: Any) -> Iterator[Event]:
    for draft in drafts:
        if draft.key[:1] == keys.RELATIONS:
            source, kind, target = keys.split_relation(draft.key)
            yield RelationshipCreated(*head, source, target, kind, unpack_metadata(draft.attr))


def _unrelated(head: _Head, drafts: list[Draft], extra: Any) -> Iterator[Event]:
    for draft in drafts:
        if draft.key[:1] == keys.RELATIONS:
            source, kind, target = keys.split_relation(draft.key)
            yield RelationshipDeleted(*head, source, target, kind)


def _checkpoint(head: _Head, drafts: list[Draft], extra: Any) -> Iterator[Event]:
    for draft in drafts:
        if draft.key != keys.LATEST_CHECKPOINT:
            fields = unpack_metadata(draft.attr)
            yield CheckpointTaken(*head, keys.name_of(draft.key), fields["step"], fields["metrics"])


def _tag(head: _Head, drafts: list[Draft], extra: Any) -> Iterator[Event]:
    for draft in drafts:
        (target,) = unpack(draft.attr)
        yield TagSet(*head, keys.name_of(draft.key), Lsn(target))


def _untag(head: _Head, drafts: list[Draft], extra: Any) -> Iterator[Event]:
    for draft in drafts:
        yield TagDeleted(*head, keys.name_of(draft.key))


def _pin(head: _Head, drafts: list[Draft], extra: Any) -> Iterator[Event]:
    for draft in drafts:
        yield PinSet(*head, Lsn.from_bytes(draft.key[1:], "big"))


def _unpin(head: _Head, drafts: list[Draft], extra: Any) -> Iterator[Event]:
    for draft in drafts:
        yield PinCleared(*head, Lsn.from_bytes(draft.key[1:], "big"))


def _rewound(head: _Head, drafts: list[Draft], extra: Any) -> Iterator[Event]:
    yield Rewound(*head, Lsn(extra[0]))


_DECODERS: Final[dict[int, _Decoder]] = {
    TENSOR_STORED: _tensors,
    TENSOR_DELETED: _deleted,
    METADATA_SET: _metadata,
    RELATIONSHIP_CREATED: _related,
    RELATIONSHIP_DELETED: _unrelated,
    CHECKPOINT_TAKEN: _checkpoint,
    TAG_SET: _tag,
    TAG_DELETED: _untag,
    PIN_SET: _pin,
    PIN_CLEARED: _unpin,
    REWOUND: _rewound,
}
