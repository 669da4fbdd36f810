"""The manifest: which segments make up the store. FORMAT.md section 7.

A manifest is immutable. ``MANIFEST-N`` is written to a temporary name, synced and linked into
place; the link fails when another process was first. The highest valid N wins, and the one before
it is kept. The same scheme later serves object stores, which offer put-if-absent and nothing more.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Final, TypeVar

from mldb.errors import CorruptError, FormatVersionError, StorageError, StorageIOError
from mldb.log import format as fmt
from mldb.log.frame import (
    DamagedFrame,
    check_body,
    decode_file_header,
    decode_header,
    encode_file_header,
    encode_head,
    pack,
    unpack,
)
from mldb.log.fs.protocol import FileSystem
from mldb.log.index.lineage import Jump, checked_jumps

PENDING: Final = "pending"
_NAME = re.compile(r"MANIFEST-([0-9]{10})\Z")
_BYTES_MAX = 1 << 28
KEPT = 2  # manifests left in the folder


@dataclass(frozen=True, slots=True)
class SegmentInfo:
    """One segment as the manifest describes it.

    ``length`` counts the valid bytes of a sealed segment; bytes behind it are ignored.
    ``index_file`` is "" when the index is the segment's own footer. ``origin`` is the store id
    inside the file, which differs from the store's after a backup.
    """

    number: int
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

    segment: int
    offset: int
    lsn: int
    chain: bytes


@dataclass(frozen=True, slots=True)
class Manifest:
    """One state of the store's outline; ``active`` is the number of the segment appended to."""

    number: int
    store_id: bytes
    created: int
    segments: tuple[SegmentInfo, ...]
    active: int
    active_origin: bytes
    mark: Mark
    lsn_floor: int
    jumps: tuple[Jump, ...]
    kept: tuple[int, ...] | None = None

    def next(self, **changes: object) -> Manifest:
        """Return the following manifest with these changes."""
        return replace(self, number=self.number + 1, **changes)  # type: ignore[arg-type]


def manifest_name(number: int) -> str:
    """The file name of manifest *number*."""
    return f"MANIFEST-{number:010d}"


def encode_manifest(manifest: Manifest) -> bytes:
    """Return the bytes of a manifest file."""
    fields = asdict(manifest)
    body = pack(fields)
    seed = fmt.file_seed(manifest.store_id, manifest.number)
    header = encode_file_header(
        fmt.FILE_MANIFEST, manifest.store_id, manifest.number, 0, manifest.created
    )
    frame = encode_head(
        fmt.KIND_MANIFEST | fmt.MUST_UNDERSTAND,
        1,
        0,
        body,
        b"",
        0,
        0,
        0,
        0,
        0,
        seed,
        fmt.FILE_HEADER_SIZE,
    )
    return header + frame


def decode_manifest(data: bytes, name: str) -> Manifest:
    """Decode a manifest file. Raises CorruptError or FormatVersionError."""
    try:
        header = decode_file_header(data, name)
        if header.kind != fmt.FILE_MANIFEST:
            raise FormatVersionError(
                f"{name} is a {fmt.FILE_KINDS.get(header.kind, 'file of unknown kind')}, not a "
                "manifest"
            )
        seed = fmt.file_seed(header.store_id, header.file_id)
        frame = decode_header(data, fmt.FILE_HEADER_SIZE, seed, len(data))
        body = check_body(data, frame)
        if frame.end != len(data):
            raise DamagedFrame(f"{len(data) - frame.end} bytes follow the manifest")
        return _from_fields(unpack(body), header)
    except (DamagedFrame, ValueError, TypeError, KeyError) as error:
        raise CorruptError(f"the manifest is damaged: {error}", file=name, offset=0) from None


_T = TypeVar("_T")
_TYPES: Final[dict[str, type]] = {"int": int, "bytes": bytes, "str": str}
# The fields that hold one plain value, with its type.
_FIELDS: Final[dict[type, list[tuple[str, type]]]] = {
    kind: [(field.name, _TYPES[str(field.type)]) for field in fields(kind) if field.type in _TYPES]
    for kind in (SegmentInfo, Mark, Manifest)
}


def _build(kind: type[_T], values: Mapping[str, Any]) -> _T:
    """Make a dataclass of decoded fields; raises ValueError or TypeError for impossible ones."""
    built = kind(**values)
    for name, wanted in _FIELDS[kind]:
        value = getattr(built, name)
        other = type(value) is not wanted
        if other:
            raise ValueError(f"the field {name} is a {type(value).__name__}")
        low = fmt.TIME_MIN if name == "created" else 0
        if wanted is int and not low <= value <= fmt.LSN_MAX:
            raise ValueError(f"the field {name} is {value}")
        if wanted is bytes and len(value) != fmt.DIGEST_SIZE:
            raise ValueError(f"the field {name} has {len(value)} bytes")
    return built


def _from_fields(stored: object, header: fmt.FileHeader) -> Manifest:
    if not isinstance(stored, dict):
        raise ValueError("no fields")
    segments = tuple(_build(SegmentInfo, item) for item in stored.pop("segments"))
    mark = _build(Mark, stored.pop("mark"))
    jumps = checked_jumps(stored.pop("jumps"))
    kept = stored.pop("kept")
    if kept is not None:
        kept = tuple(kept)
        if not all(type(lsn) is int for lsn in kept) or list(kept) != sorted(set(kept)):
            raise ValueError("the kept commits do not ascend")
    rest = {"segments": segments, "mark": mark, "jumps": jumps, "kept": kept}
    manifest = _build(Manifest, {**stored, **rest})
    if manifest.number != header.file_id or manifest.store_id != header.store_id:
        raise ValueError("the manifest belongs to another number or store")
    numbers = {manifest.active, *(info.number for info in segments)}
    if len(numbers) != len(segments) + 1:
        raise ValueError("a segment number occurs twice")
    for info in segments:
        if info.first_lsn > info.last_lsn:
            raise ValueError(f"segment {info.number} is described impossibly")
        if info.index_file and not re.fullmatch(r"segments/[0-9]{10}\.idx", info.index_file):
            raise ValueError(f"index file {info.index_file!r} is no name of this store")
    return manifest


def install_manifest(fs: FileSystem, manifest: Manifest) -> bool:
    """Publish a manifest durably; return False when its number is taken.

    The caller holds the commit lock. Raises StorageFullError, StorageIOError.
    """
    name = manifest_name(manifest.number)
    temporary = f"{PENDING}/{name}-{os.urandom(16).hex()}"
    file = fs.open(temporary, "create")
    try:
        file.pwritev([encode_manifest(manifest)], 0)
        file.sync()
    finally:
        file.close()
    try:
        if not fs.link(temporary, name):
            return False
        fs.sync_dir("")
    finally:
        _tidy(fs, temporary)
    old = manifest.number - KEPT
    if old > 0:
        _tidy(fs, manifest_name(old))
    return True


def _tidy(fs: FileSystem, name: str) -> None:
    """Remove a file; one that stays is no reason to call what was published a failure."""
    with contextlib.suppress(StorageError):
        fs.unlink(name)


def newest_announced(fs: FileSystem, number: int) -> Manifest | None:
    """Return manifest *number*, which was announced, when it is the newest for certain.

    None when it is not there, damaged, or no longer the newest: then a listing tells more. A
    listing costs more than all else that opening a store asks of the system.
    """
    if not number or fs.exists(manifest_name(number + 1)):
        return None
    try:
        return load_manifest(fs, number)
    except (CorruptError, StorageIOError):
        return None


def manifest_numbers(fs: FileSystem) -> list[int]:
    """Return the numbers of the manifests present, ascending."""
    return sorted(int(found.group(1)) for found in map(_NAME.match, fs.list("")) if found)


def load_manifest(fs: FileSystem, number: int) -> Manifest:
    """Read one manifest. Raises CorruptError, FormatVersionError, StorageIOError."""
    name = manifest_name(number)
    file = fs.open(name, "r")
    try:
        size = file.size()
        if size > _BYTES_MAX:
            raise CorruptError(
                f"the manifest claims {size} bytes, the limit is {_BYTES_MAX}", file=name, offset=0
            )
        data = file.pread(size, 0)
    finally:
        file.close()
    return decode_manifest(data, name)
