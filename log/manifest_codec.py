"""Manifest files decoded, of both versions: pure functions. FORMAT.md section 7.

What a file says is a :class:`StoredManifest`; ``mldb.log.manifest`` makes the whole list of
segments of it and its base.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from operator import itemgetter
from typing import Any, Final, TypeVar

from mldb.deferred import compiled, dataclass, field_names
from mldb.errors import CorruptError, FormatVersionError
from mldb.log import format as fmt
from mldb.log.frame import DamagedFrame, unpack
from mldb.log.index.lineage import Jump, checked_jumps
from mldb.log.index.pause import collection_paused
from mldb.log.lone import decode_lone

READ_FEATURES: Final[frozenset[str]] = frozenset()
WRITE_FEATURES: Final[frozenset[str]] = frozenset()
"""The features of a store that this mldb knows: to read it, and to write it."""

_NUMBER_NAMES: Final = (
    "kind",
    "length",
    "index_offset",
    "first_lsn",
    "last_lsn",
    "first_epoch",
    "last_epoch",
)
_SEGMENT_NUMBERS: Final = itemgetter(*_NUMBER_NAMES)
_INDEX_FILE = r"segments/([0-9]{10}|[0-9a-f]{32})\.idx\Z"


@dataclass(frozen=True, slots=True)
class SegmentInfo:
    """One segment as the manifest describes it.

    ``length`` counts the valid bytes of a sealed segment; bytes behind it are ignored.
    ``index_file`` is "" when the index is the segment's own footer. ``origin`` is the store id
    inside the file, which differs from the store's after a backup.
    """

    id: bytes
    kind: int
    origin: bytes
    length: int
    index_file: str
    index_offset: int
    first_lsn: int
    last_lsn: int
    first_epoch: int
    last_epoch: int
    chain: bytes


@dataclass(frozen=True, slots=True)
class Mark:
    """A place in the active segment known to be durable: everything before it must be there."""

    segment: bytes
    offset: int
    lsn: int
    chain: bytes


@dataclass(frozen=True, slots=True)
class Features:
    """What a store uses beyond its format version: to be known to read it, to write it, or not."""

    read: tuple[str, ...] = ()
    write: tuple[str, ...] = ()
    ignore: tuple[str, ...] = ()


Splice = tuple[int, int, tuple[SegmentInfo, ...]]
"""From this position, so many segments are replaced by these."""


@dataclass(frozen=True, slots=True)
class StoredManifest:
    """What one manifest file says. ``base`` is the number and digest of another, or None."""

    number: int
    store_id: bytes
    created: int
    active: bytes
    active_origin: bytes
    mark: Mark
    lsn_floor: int
    lsn_ceiling: int
    origins: tuple[bytes, ...]
    features: Features
    predecessor: bytes
    base: tuple[int, bytes] | None
    changes: tuple[Splice, ...]
    jumps: tuple[Jump, ...]
    kept: tuple[tuple[int, int], ...] | None
    version: int


def splice(segments: Sequence[SegmentInfo], changes: Iterable[Splice]) -> tuple[SegmentInfo, ...]:
    """Apply changes to a list of segments. Raises ValueError for places that it does not have."""
    found = list(segments)
    for position, count, come in changes:
        if position + count > len(found):
            raise ValueError(f"a change at {position} of {len(found)} segments")
        found[position : position + count] = come
    return tuple(found)


# --- decoding -------------------------------------------------------------------------------------


def decode_manifest(data: bytes, name: str) -> StoredManifest:
    """Decode a manifest file of any known version.

    Raises CorruptError, and FormatVersionError when it names a feature that this mldb does not know
    and needs to read the store: before anything else in it is looked at, which may look different.
    """
    try:
        file = decode_lone(memoryview(data), name, fmt.FILE_MANIFEST, fmt.KIND_MANIFEST)
        body = unpack(file.body)
        if not isinstance(body, dict):
            raise ValueError("no fields")
        if file.end != len(data):
            raise ValueError(f"{len(data) - file.end} bytes follow its frame")
        if file.header.version == fmt.FIRST_VERSION:
            return _of_version_1(body, file.header)
        features = _features(body)
        unknown = set(features.read) - READ_FEATURES
        if unknown:
            raise unknown_features(f"the store of {name}", unknown, "read")
        with collection_paused():  # of thousands of segments
            return _of_version_2(body, features, bytes(file.payload), file.header)
    except FormatVersionError:
        raise
    except (DamagedFrame, ValueError, TypeError, LookupError) as error:
        raise CorruptError(f"the manifest is damaged: {error}", file=name, offset=0) from None


def _of_version_2(
    body: Mapping[str, Any], features: Features, payload: bytes, header: fmt.FileHeader
) -> StoredManifest:
    changes, jumps, kept = unpack(payload)[:3]
    base = body["base"]
    stored = StoredManifest(
        _number(body, "number"),
        _bytes(body, "store_id"),
        _number(body, "created", fmt.TIME_MIN),
        _segment_id(body["active"]),
        _bytes(body, "active_origin"),
        _mark(body["mark"], _segment_id(body["mark"]["segment"])),
        _number(body, "lsn_floor"),
        _number(body, "lsn_ceiling"),
        tuple(_plain(item, bytes) for item in body["origins"]),
        features,
        _plain(body["predecessor"], bytes),
        None if base is None else (_plain(base[0], int), _plain(base[1], bytes)),
        tuple(_change(item) for item in changes),
        checked_jumps(jumps),
        None if kept is None else _ranges(kept),
        header.version,
    )
    if stored.number != header.file_id or stored.store_id != header.store_id:
        raise ValueError("the manifest belongs to another number or store")
    return stored


def _features(body: Mapping[str, Any]) -> Features:
    stored = body["features"]
    return Features(*(_texts(stored[name]) for name in field_names(Features)))


def unknown_features(store: str, names: set[str], use: str) -> FormatVersionError:
    """What is raised when a store needs something that this mldb does not know."""
    return FormatVersionError(
        f"{store} uses {', '.join(sorted(names))}, which this mldb does not know and must to {use} "
        "it. Nothing was changed; use a newer mldb."
    )


def _change(item: Sequence[Any]) -> Splice:
    position, count, come = item[:3]
    if min(_plain(position, int), _plain(count, int)) < 0:
        raise ValueError("a change in front of the first segment")
    return position, count, tuple(decode_segment(found, _segment_id(found["id"])) for found in come)


def _of_version_1(body: Mapping[str, Any], header: fmt.FileHeader) -> StoredManifest:
    """Version 1 has numbers for ids, one list of everything, and no ceiling of LSNs."""
    segments = tuple(
        decode_segment(info, fmt.number_id(_number(info, "number"))) for info in body["segments"]
    )
    mark = body["mark"]
    kept = body["kept"]
    stored = StoredManifest(
        _number(body, "number"),
        _bytes(body, "store_id"),
        _number(body, "created", fmt.TIME_MIN),
        fmt.number_id(_number(body, "active")),
        _bytes(body, "active_origin"),
        _mark(mark, fmt.number_id(_number(mark, "segment"))),
        _number(body, "lsn_floor"),
        0,
        (),
        Features(),
        b"",
        None,
        ((0, 0, segments),),
        checked_jumps(body["jumps"]),
        None if kept is None else _ranges([(lsn, lsn) for lsn in kept]),
        header.version,
    )
    if stored.number != header.file_id or stored.store_id != header.store_id:
        raise ValueError("the manifest belongs to another number or store")
    return stored


_T = TypeVar("_T")


def _plain(value: Any, kind: type[_T]) -> _T:
    if type(value) is not kind:
        raise ValueError(f"{value!r:.40} is a {type(value).__name__}")
    return value


def _number(fields_: Mapping[str, Any], name: str, low: int = 0) -> int:
    value = _plain(fields_[name], int)
    if not low <= value <= fmt.LSN_MAX:
        raise ValueError(f"the field {name} is {value}")
    return value


def _bytes(fields_: Mapping[str, Any], name: str) -> bytes:
    value = _plain(fields_[name], bytes)
    if len(value) != fmt.DIGEST_SIZE:
        raise ValueError(f"the field {name} has {len(value)} bytes")
    return value


def _segment_id(value: Any) -> bytes:
    if len(_plain(value, bytes)) not in (len(fmt.NO_ID), len(fmt.number_id(0))):
        raise ValueError(f"{value!r:.40} is no id of a segment")
    return bytes(value)


def _texts(values: Any) -> tuple[str, ...]:
    return tuple(_plain(item, str) for item in _plain(values, list))


def _ranges(stored: Iterable[Sequence[Any]]) -> tuple[tuple[int, int], ...]:
    found: list[tuple[int, int]] = []
    last = -1
    for first, end in stored:
        if not last < _plain(first, int) <= _plain(end, int) <= fmt.LSN_MAX:
            raise ValueError("the kept commits do not ascend")
        found.append((first, end))
        last = end
    return tuple(found)


def _mark(stored: Mapping[str, Any], segment: bytes) -> Mark:
    return Mark(segment, _number(stored, "offset"), _number(stored, "lsn"), _bytes(stored, "chain"))


def decode_segment(stored: Mapping[str, Any], segment_id: bytes) -> SegmentInfo:
    """Return what one entry of a manifest says. Raises ValueError, LookupError."""
    index_file = _plain(stored["index_file"], str)
    if index_file and not compiled(_INDEX_FILE).match(index_file):
        raise ValueError(f"index file {index_file!r} is no name of this store")
    numbers = _SEGMENT_NUMBERS(stored)
    # All at once: whoever opens a store of thousands of segments waits for this.
    if {*map(type, numbers)} != {int} or min(numbers) < 0 or max(numbers) > fmt.LSN_MAX:
        for name in _NUMBER_NAMES:
            _number(stored, name)
    kind, length, index_offset, first_lsn, last_lsn, first_epoch, last_epoch = numbers
    if first_lsn > last_lsn:
        raise ValueError(f"segment {fmt.id_text(segment_id)} is described impossibly")
    return SegmentInfo(
        segment_id,
        kind,
        _bytes(stored, "origin"),
        length,
        index_file,
        index_offset,
        first_lsn,
        last_lsn,
        first_epoch,
        last_epoch,
        _bytes(stored, "chain"),
    )
