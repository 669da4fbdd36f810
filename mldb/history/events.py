"""Events: what happened, as frozen dataclasses, and how they are read out of frames."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from mldb import keys
from mldb.errors import CorruptError
from mldb.history import kinds
from mldb.history.splats import BlockInfo, unpack_lake, unpack_splats
from mldb.log import format as fmt
from mldb.log.frame import DamagedFrame, Draft, Frame, decode_entries, unpack
from mldb.log.index.address import CommitRow, Lsn, to_time
from mldb.tensors.codec import Descriptor, unpack_descriptor, unpack_metadata


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


@dataclass(frozen=True, slots=True)
class LakeCreated(Event):
    """A splat lake exists from here on."""

    name: str
    dim: int
    geometry: str


@dataclass(frozen=True, slots=True)
class SplatsAdded(Event):
    """Rows were added to a lake; their ids are those of its id column, from ``base`` on."""

    lake: str
    rows: int
    base: int
    alpha_sum: float


@dataclass(frozen=True, slots=True)
class SplatsDeleted(Event):
    """Rows of a lake are gone from here on; earlier commits still have them."""

    lake: str
    rows: int


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


def _lake(head: _Head, drafts: list[Draft], extra: Any) -> Iterator[Event]:
    for draft in drafts:
        info = unpack_lake(draft.attr)
        yield LakeCreated(*head, keys.name_of(draft.key), info.dim, info.geometry)


def _splats(head: _Head, drafts: list[Draft], extra: Any) -> Iterator[Event]:
    for draft in drafts:
        if draft.key[:1] != keys.SPLATS:
            continue
        lake, part = keys.lake_of(draft.key), unpack_splats(draft.attr, draft.length)
        if isinstance(part, BlockInfo):
            yield SplatsAdded(*head, lake, part.rows, part.base, part.alpha_sum)
        else:
            yield SplatsDeleted(*head, lake, part.count)


_DECODERS: Final[dict[int, _Decoder]] = {
    kinds.TENSOR_STORED: _tensors,
    kinds.TENSOR_DELETED: _deleted,
    kinds.METADATA_SET: _metadata,
    kinds.RELATIONSHIP_CREATED: _related,
    kinds.RELATIONSHIP_DELETED: _unrelated,
    kinds.CHECKPOINT_TAKEN: _checkpoint,
    kinds.TAG_SET: _tag,
    kinds.TAG_DELETED: _untag,
    kinds.PIN_SET: _pin,
    kinds.PIN_CLEARED: _unpin,
    kinds.REWOUND: _rewound,
    kinds.LAKE_CREATED: _lake,
    kinds.SPLATS_ADDED: _splats,
    kinds.SPLATS_DELETED: _splats,
}
