"""Manifests as bytes, of both versions: pure functions. FORMAT.md section 7.

What a file says is a :class:`StoredManifest`; ``mldb.log.manifest`` makes the whole list of
segments of it and its base.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from operator import attrgetter
from typing import Any, Final, TypeVar

import msgpack

from mldb.errors import CorruptError, FormatVersionError
from mldb.log import format as fmt
from mldb.log.file_header import encode_file_header
from mldb.log.frame import DamagedFrame, pack, unpack
from mldb.log.index.lineage import Jump, checked_jumps
from mldb.log.lone import decode_lone, encode_lone

READ_FEATURES: Final[frozenset[str]] = frozenset()
WRITE_FEATURES: Final[frozenset[str]] = frozenset()
"""The features of a store that this mldb knows: to read it, and to write it."""

_INDEX_FILE = re.compile(r"segments/([0-9]{10}|[0-9a-f]{32})\.idx\Z")
_BUFFER: Final = 1 << 12  # a packer that is made for each manifest takes 256 KiB otherwise
_KIND: Final = fmt.KIND_MANIFEST | fmt.MUST_UNDERSTAND


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


@dataclass(slots=True)
class KnownSegment:
    """A segment with its fields and bytes as a manifest has them. Whoever holds the base may ask.

    ``checked``: they were decoded once, and are what was meant.
    """

    info: SegmentInfo
    fields: dict[str, Any]
    data: bytes
    checked: bool = False


KnownSegments = dict[bytes, KnownSegment]
"""Segments by their ids: a few, so that they are not packed and looked at again."""

_SEGMENT_FIELDS: Final = tuple(item.name for item in fields(SegmentInfo))
_SEGMENT_VALUES: Final = attrgetter(*_SEGMENT_FIELDS)


def splice(segments: Sequence[SegmentInfo], changes: Iterable[Splice]) -> tuple[SegmentInfo, ...]:
    """Apply changes to a list of segments. Raises ValueError for places that it does not have."""
    found = list(segments)
    for position, count, come in changes:
        if position + count > len(found):
            raise ValueError(f"a change at {position} of {len(found)} segments")
        found[position : position + count] = come
    return tuple(found)


# --- encoding -------------------------------------------------------------------------------------


def encode_manifest(stored: StoredManifest, known: KnownSegments | None = None) -> bytes:
    """Return the bytes of a manifest file of the newest version.

    *known* keeps the bytes of segments from one manifest to the next, and is added to.
    """
    lists = {"changes", "jumps", "kept", "version"}
    body = {
        item.name: getattr(stored, item.name) for item in fields(stored) if item.name not in lists
    }
    body["mark"] = asdict(stored.mark)
    body["features"] = asdict(stored.features)
    header = encode_file_header(
        fmt.FILE_MANIFEST, stored.store_id, stored.created, number=stored.number
    )
    payload = _packed_lists(stored, known)
    parts = encode_lone(header, _KIND, pack(body), payload, fmt.MANIFEST_BODY_VERSION)
    return b"".join(parts)


def _packed_lists(stored: StoredManifest, known: KnownSegments | None) -> bytes:
    """Return what ``pack((changes, jumps, kept))`` would, of segments packed one by one."""
    packer = msgpack.Packer(use_bin_type=True, autoreset=False, buf_size=_BUFFER)
    packer.pack_array_header(3)
    packer.pack_array_header(len(stored.changes))
    parts = [packer.bytes()]
    for position, count, come in stored.changes:
        packer.reset()
        packer.pack_array_header(3)
        packer.pack(position)
        packer.pack(count)
        packer.pack_array_header(len(come))
        parts.append(packer.bytes())
        parts += [_packed_segment(info, known) for info in come]
    return b"".join([*parts, pack(stored.jumps), pack(stored.kept)])


def _packed_segment(info: SegmentInfo, known: KnownSegments | None) -> bytes:
    found = None if known is None else known.get(info.id)
    if found is not None and (found.info is info or found.info == info):
        return found.data
    fields_ = dict(zip(_SEGMENT_FIELDS, _SEGMENT_VALUES(info), strict=True))
    data = pack(fields_)
    if known is not None:
        if len(known) >= fmt.CHANGES_MAX:
            known.clear()
        known[info.id] = KnownSegment(info, fields_, data)
    return data


# --- decoding -------------------------------------------------------------------------------------


def decode_manifest(data: bytes, name: str, known: KnownSegments | None = None) -> StoredManifest:
    """Decode a manifest file of any known version.

    Segments that *known* has are compared with what it has, which is quicker than looking at each
    field. Raises CorruptError, and FormatVersionError when it names a feature that this mldb does
    not know and needs to read the store: before anything else in it is looked at, which may look
    different.
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
        return _of_version_2(body, features, bytes(file.payload), file.header, known)
    except FormatVersionError:
        raise
    except (DamagedFrame, ValueError, TypeError, LookupError) as error:
        raise CorruptError(f"the manifest is damaged: {error}", file=name, offset=0) from None


def _of_version_2(
    body: Mapping[str, Any],
    features: Features,
    payload: bytes,
    header: fmt.FileHeader,
    known: KnownSegments | None,
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
        tuple(_change(item, known or {}) for item in changes),
        checked_jumps(jumps),
        None if kept is None else _ranges(kept),
        header.version,
    )
    if stored.number != header.file_id or stored.store_id != header.store_id:
        raise ValueError("the manifest belongs to another number or store")
    return stored


def _features(body: Mapping[str, Any]) -> Features:
    stored = body["features"]
    return Features(*(_texts(stored[item.name]) for item in fields(Features)))


def unknown_features(store: str, names: set[str], use: str) -> FormatVersionError:
    """What is raised when a store needs something that this mldb does not know."""
    return FormatVersionError(
        f"{store} uses {', '.join(sorted(names))}, which this mldb does not know and must to {use} "
        "it. Nothing was changed; use a newer mldb."
    )


def _change(item: Sequence[Any], known: KnownSegments) -> Splice:
    position, count, come = item[:3]
    if min(_plain(position, int), _plain(count, int)) < 0:
        raise ValueError("a change in front of the first segment")
    found = []
    for fields_ in come:
        same = known.get(fields_["id"])
        if same is not None and same.checked and same.fields == fields_:
            found.append(same.info)
            continue
        info = _segment(fields_, _segment_id(fields_["id"]))
        if same is not None and same.fields == fields_:
            same.checked = info == same.info
        found.append(info)
    return position, count, tuple(found)


def _of_version_1(body: Mapping[str, Any], header: fmt.FileHeader) -> StoredManifest:
    """Version 1 has numbers for ids, one list of everything, and no ceiling of LSNs."""
    segments = tuple(
        _segment(info, fmt.number_id(_number(info, "number"))) for info in body["segments"]
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


def _segment(stored: Mapping[str, Any], segment_id: bytes) -> SegmentInfo:
    index_file = _plain(stored["index_file"], str)
    if index_file and not _INDEX_FILE.match(index_file):
        raise ValueError(f"index file {index_file!r} is no name of this store")
    info = SegmentInfo(
        segment_id,
        _number(stored, "kind"),
        _bytes(stored, "origin"),
        _number(stored, "length"),
        index_file,
        _number(stored, "index_offset"),
        _number(stored, "first_lsn"),
        _number(stored, "last_lsn"),
        _number(stored, "first_epoch"),
        _number(stored, "last_epoch"),
        _bytes(stored, "chain"),
    )
    if info.first_lsn > info.last_lsn:
        raise ValueError(f"segment {fmt.id_text(segment_id)} is described impossibly")
    return info
