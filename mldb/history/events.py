"""Events: what happened, as frozen dataclasses, and the way to them out of frames.

How each kind is stored is said in ``mldb.history.kinds``, which costs a loop that only writes less.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, NamedTuple

from mldb.compaction.retention import Retention
from mldb.errors import CorruptError
from mldb.history import kinds
from mldb.history.kinds import (
    checkpoints,
    lakes,
    metrics,
    patches,
    relationships,
    retention,
    tensors,
    timeline,
)
from mldb.history.kinds.changes import ReadFields
from mldb.log import format as fmt
from mldb.log.frame import DamagedFrame, Frame, decode_entries, unpack
from mldb.log.index.address import CommitRow, Lsn, to_time


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
class TensorPatched(Event):
    """Rows of a tensor changed: ``rows`` of them; dtype and shape are as they were."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    rows: int


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
class RetentionSet(Event):
    """The store keeps what *policy* says from here on."""

    policy: Retention


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


@dataclass(frozen=True, slots=True)
class SplatsConsolidated(Event):
    """Rows of a lake were merged: ``rows`` splats stand for ``sources`` rows that end here.

    The ids of those made start at ``base``, and their alpha sums to ``alpha_sum``; which sources
    each has, ``lake.sources(id)`` says. ``run`` has the settings by name: ``method``, ``min_cos``
    and others. Without rows only stress of the sandpile moved.
    """

    lake: str
    rows: int
    base: int
    sources: int
    alpha_sum: float
    run: dict[str, Any]


@dataclass(frozen=True, slots=True)
class ConsolidationUndone(Event):
    """The merges of commit *target* were taken back: so many rows ended, and are live again."""

    lake: str
    target: Lsn
    ended: int
    restored: int


@dataclass(frozen=True, slots=True)
class LakePolicySet(Event):
    """How a lake is to be consolidated in the background; ``policy`` is None for not at all."""

    lake: str
    policy: dict[str, Any] | None


@dataclass(frozen=True, slots=True)
class MetricsLogged(Event):
    """Metrics were logged at *moment* (UTC): one event for each call, with its values by name."""

    values: dict[str, float]
    step: int | None
    moment: datetime


# --- out of frames --------------------------------------------------------------------------------


class EventKind(NamedTuple):
    """How the event of a kind is made: its class, and what reads its fields."""

    event: Callable[..., Event]
    read: ReadFields


EVENT_KINDS: Final[Mapping[int, EventKind]] = {
    kinds.TENSOR_STORED: EventKind(TensorStored, tensors.read_tensor_stored),
    kinds.TENSOR_PATCHED: EventKind(TensorPatched, patches.read_tensor_patched),
    kinds.TENSOR_DELETED: EventKind(TensorDeleted, tensors.read_tensor_deleted),
    kinds.METADATA_SET: EventKind(MetadataSet, tensors.read_metadata_set),
    kinds.RELATIONSHIP_CREATED: EventKind(
        RelationshipCreated, relationships.read_relationship_created
    ),
    kinds.RELATIONSHIP_DELETED: EventKind(
        RelationshipDeleted, relationships.read_relationship_deleted
    ),
    kinds.CHECKPOINT_TAKEN: EventKind(CheckpointTaken, checkpoints.read_checkpoint_taken),
    kinds.TAG_SET: EventKind(TagSet, timeline.read_tag_set),
    kinds.TAG_DELETED: EventKind(TagDeleted, timeline.read_tag_deleted),
    kinds.PIN_SET: EventKind(PinSet, timeline.read_pin),
    kinds.PIN_CLEARED: EventKind(PinCleared, timeline.read_pin),
    kinds.RETENTION_SET: EventKind(RetentionSet, retention.read_retention_set),
    kinds.REWOUND: EventKind(Rewound, timeline.read_rewound),
    kinds.LAKE_CREATED: EventKind(LakeCreated, lakes.read_lake_created),
    kinds.SPLATS_ADDED: EventKind(SplatsAdded, lakes.read_splats_added),
    kinds.SPLATS_DELETED: EventKind(SplatsDeleted, lakes.read_splats_deleted),
    kinds.SPLATS_CONSOLIDATED: EventKind(SplatsConsolidated, lakes.read_splats_consolidated),
    kinds.CONSOLIDATION_UNDONE: EventKind(ConsolidationUndone, lakes.read_consolidation_undone),
    kinds.LAKE_POLICY_SET: EventKind(LakePolicySet, lakes.read_lake_policy_set),
    kinds.METRICS_LOGGED: EventKind(MetricsLogged, metrics.read_metrics_logged),
}
"""By the number in the log. A kind that is not here is skipped: it may be read over, or the log
would not have been opened."""


def events_of(row: CommitRow, frames: Iterable[tuple[Frame, bytes]], file: str) -> Iterator[Event]:
    """Yield the events of one commit.

    Raises CorruptError for a body that means nothing, FormatVersionError for one of a newer mldb.
    """
    head = (Lsn(row.lsn), row.epoch, to_time(row.time))
    for frame, body in frames:
        kind = EVENT_KINDS.get(frame.header.kind)
        if kind is None:
            continue
        try:
            if frame.header.flags & fmt.FLAG_KEYED:
                drafts, extra = decode_entries(body, frame)
            else:
                drafts, extra = [], unpack(body)
            for fields in kind.read(drafts, extra):
                yield kind.event(*head, *fields)
        except (DamagedFrame, ValueError, TypeError, KeyError, IndexError) as error:
            raise CorruptError(
                f"an event cannot be decoded: {error}", file=file, offset=frame.offset
            ) from None
