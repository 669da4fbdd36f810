"""The manifest: which segments make up the store. FORMAT.md section 7.

A manifest is immutable. ``MANIFEST-N`` is linked into place; the link fails when another process
was first. The highest valid N wins. It names its segments in full, or as changes of one *base*, so
that a seal costs the same in a store of ten segments and of ten thousand. The same scheme later
serves object stores, which offer put-if-absent and nothing more.
"""

from __future__ import annotations

import errno
from collections.abc import Sequence
from typing import Final

from mldb.deferred import dataclass, field, replace
from mldb.errors import CorruptError, StorageIOError
from mldb.log import format as fmt
from mldb.log.checksum import digest128
from mldb.log.fs.protocol import FileSystem
from mldb.log.grown import Grown
from mldb.log.index.lineage import NO_JUMPS, Jumps
from mldb.log.lone import PENDING, discard, publish_new, read_file
from mldb.log.manifest_codec import (
    WRITE_FEATURES,
    Features,
    Mark,
    SegmentInfo,
    StoredManifest,
    decode_manifest,
    splice,
    unknown_features,
)
from mldb.log.manifest_encoder import PackedSegments, encode_manifest, reads_as_meant

__all__ = ["PENDING", "Features", "Manifest", "Mark", "SegmentInfo"]

_BYTES_MAX: Final = 1 << 30
_PREFIX, _DIGITS = "MANIFEST-", 10

Kept = tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True)
class Manifest:
    """One state of the store's outline; ``active`` is the id of the segment appended to.

    ``digest`` is that of the file, b"" until it is installed. ``base`` is the manifest that this
    one is written as changes of, itself when it is written whole. ``kept`` are ranges of the
    commits that retention left; None when nothing was ever pruned.
    """

    number: int
    store_id: bytes
    created: int
    segments: Grown[SegmentInfo]
    active: bytes
    active_origin: bytes
    mark: Mark
    lsn_floor: int
    lsn_ceiling: int
    jumps: Jumps
    kept: Kept | None = None
    origins: tuple[bytes, ...] = ()
    features: Features = field(default_factory=Features)
    version: int = fmt.FORMAT_VERSION
    predecessor: bytes = b""
    digest: bytes = b""
    base: Base | None = None


@dataclass(frozen=True, slots=True)
class Base:
    """A whole manifest that others are written as changes of; they share its lists.

    ``ids`` are those of its segments.
    """

    number: int
    digest: bytes
    segments: Grown[SegmentInfo]
    jumps: Jumps
    kept: Kept | None
    ids: frozenset[bytes] = field(repr=False, compare=False)
    packed: PackedSegments = field(default_factory=PackedSegments, repr=False, compare=False)
    """Segments as bytes, for the manifests that this handle writes."""


def manifest_name(number: int) -> str:
    """The file name of manifest *number*."""
    return f"{_PREFIX}{number:0{_DIGITS}d}"


def manifest_numbers(names: Sequence[str]) -> list[int]:
    """Return the numbers of the manifests among the names in the folder, ascending."""
    digits = [name.removeprefix(_PREFIX) for name in names if name.startswith(_PREFIX)]
    return sorted(int(each) for each in digits if len(each) == _DIGITS and _is_number(each))


def _is_number(digits: str) -> bool:
    return digits.isascii() and digits.isdigit()


# --- reading --------------------------------------------------------------------------------------


def load_manifest(fs: FileSystem, number: int, known: Manifest | None = None) -> Manifest:
    """Read one manifest with its base, or with that of a *known* manifest when it is the same.

    So whoever follows reads what changed. Raises CorruptError, StorageIOError, and
    FormatVersionError when it names a feature that this mldb does not know and needs to read the
    store.
    """
    name = manifest_name(number)
    data = read_file(fs, name, _BYTES_MAX)
    base = None if known is None else known.base
    stored = decode_manifest(data, name)
    if stored.number != number:
        raise CorruptError(f"this is manifest {stored.number}", file=name, offset=0)
    if stored.base is None:
        base = None
    elif base is None or stored.base != (base.number, base.digest):
        base = _load_base(fs, name, *stored.base)
    manifest = _assemble(stored, base, digest128(data), name)
    if base is not None or manifest.version == fmt.FIRST_VERSION:
        return manifest
    return replace(manifest, base=_as_base(manifest, _packed(known)))


def _load_base(fs: FileSystem, name: str, number: int, digest: bytes) -> Base:
    base_name = manifest_name(number)
    try:
        data = read_file(fs, base_name, _BYTES_MAX)
    except StorageIOError as error:
        # Damaged is only what lacks its base: not what could not be read just now, and not what a
        # writer has replaced together with its base since.
        if error.errno != errno.ENOENT or not fs.exists(name):
            raise
        raise CorruptError(
            f"its base {base_name} cannot be read: {error}", file=name, offset=0
        ) from error
    if digest128(data) != digest:
        raise CorruptError(f"{base_name} is not the base that it names", file=name, offset=0)
    stored = decode_manifest(data, base_name)
    if stored.base is not None:
        raise CorruptError("its base has a base itself", file=name, offset=0)
    segments = splice((), stored.changes)
    ids = frozenset(info.id for info in segments)
    return Base(number, digest, Grown(segments), Jumps.of(stored.jumps), stored.kept, ids)


def _assemble(stored: StoredManifest, base: Base | None, digest: bytes, name: str) -> Manifest:
    try:
        segments = _segments_of(stored, base)
        changes = sum(count + len(come) for _, count, come in stored.changes)
        if base is not None and changes > fmt.CHANGES_MAX:
            raise ValueError(f"{changes} changes of its base")
        jumps = NO_JUMPS if base is None else base.jumps
        if jumps and stored.jumps and stored.jumps[0][0] <= jumps[-1][0]:
            raise ValueError("the jumps do not ascend")
        jumps = jumps.after(stored.jumps)
        if _occurs_twice(stored, base, segments):
            raise ValueError("a segment occurs twice")
    except ValueError as error:
        raise CorruptError(f"the manifest is damaged: {error}", file=name, offset=0) from None
    kept = stored.kept
    if kept is None and base is not None:
        kept = base.kept
    return Manifest(
        stored.number,
        stored.store_id,
        stored.created,
        segments,
        stored.active,
        stored.active_origin,
        stored.mark,
        stored.lsn_floor,
        stored.lsn_ceiling,
        jumps,
        kept,
        stored.origins,
        stored.features,
        stored.version,
        stored.predecessor,
        digest,
        base,
    )


def _segments_of(stored: StoredManifest, base: Base | None) -> Grown[SegmentInfo]:
    """The segments that a manifest leads to; those of its base are shared when more only came."""
    before = Grown[SegmentInfo]() if base is None else base.segments
    if len(stored.changes) == 1:
        ((place, count, come),) = stored.changes
        if place == len(before) and not count:
            return before.then(come)
    return Grown(splice(before, stored.changes)) if stored.changes else before


def _occurs_twice(
    stored: StoredManifest, base: Base | None, segments: Sequence[SegmentInfo]
) -> bool:
    """Whether two of the segments are the same one; only what came is looked at where none went."""
    if base is None or any(count for _, count, _ in stored.changes):
        come, known = [info.id for info in segments], frozenset[bytes]()
    else:
        come, known = [info.id for _, _, infos in stored.changes for info in infos], base.ids
    come.append(stored.active)
    ids = set(come)
    return len(ids) != len(come) or not ids.isdisjoint(known)


def refuse_to_write(fs: FileSystem, manifest: Manifest) -> None:
    """Raise FormatVersionError when a writer must know something that this mldb does not."""
    unknown = set(manifest.features.write) - WRITE_FEATURES
    if unknown:
        raise unknown_features(fs.root, unknown, "write")


def newest_announced(fs: FileSystem, number: int) -> Manifest | None:
    """Return manifest *number*, which was announced, when it is the newest for certain.

    None when it is not there, damaged, or no longer the newest: then a listing tells more. A
    listing costs more than all else that opening a store asks of the system. After a power loss the
    announcement may be an old one, and a whole manifest may have stayed as the base of newer ones.
    """
    if not number or fs.exists(manifest_name(number + 1)):
        return None
    try:
        manifest = load_manifest(fs, number)
    except (CorruptError, StorageIOError):
        return None
    base = manifest.base
    return None if base is not None and base.number == number else manifest


# --- writing --------------------------------------------------------------------------------------


def _stored_form(manifest: Manifest) -> StoredManifest:
    """What is written: changes of the base where they are few, otherwise everything."""
    base = manifest.base
    changes = None if base is None else _changes(base, manifest)
    if base is None or changes is None:
        changes = ((0, 0, manifest.segments[:]),)
        jumps, kept, named = manifest.jumps[:], manifest.kept, None
    else:
        jumps = manifest.jumps[len(base.jumps) :]
        shared = manifest.kept is base.kept or manifest.kept == base.kept
        kept = None if shared else manifest.kept
        named = (base.number, base.digest)
    return StoredManifest(
        manifest.number,
        manifest.store_id,
        manifest.created,
        manifest.active,
        manifest.active_origin,
        manifest.mark,
        manifest.lsn_floor,
        manifest.lsn_ceiling,
        manifest.origins,
        manifest.features,
        manifest.predecessor,
        named,
        changes,
        jumps,
        kept,
        fmt.FORMAT_VERSION,
    )


def _changes(
    base: Base, manifest: Manifest
) -> tuple[tuple[int, int, tuple[SegmentInfo, ...]], ...] | None:
    """The one splice that leads from the base's segments to these; None when it is too large."""
    old, new = base.segments, manifest.segments
    if new.starts_with(old):
        low, high = len(old), 0
    else:
        low = _alike(old, new)
        high = min(_alike(old[low:][::-1], new[low:][::-1]), min(len(old), len(new)) - low)
    if not manifest.jumps.starts_with(base.jumps):
        return None
    gone, coming = len(old) - low - high, len(new) - high - low
    if gone + coming + len(manifest.jumps) - len(base.jumps) > fmt.CHANGES_MAX:
        return None
    return ((low, gone, new[low : low + coming]),) if gone or coming else ()


def _alike(one: Sequence[SegmentInfo], other: Sequence[SegmentInfo]) -> int:
    """How many stand the same in front. Slices are compared: quick for the same objects."""
    shorter = min(len(one), len(other))
    low, step = 0, shorter
    while step:
        if low + step <= shorter and one[low : low + step] == other[low : low + step]:
            low += step
        else:
            step //= 2
    return low


def install_manifest(fs: FileSystem, manifest: Manifest, owner: str) -> Manifest | None:
    """Publish a manifest durably and return it as it reads; None when its number is taken.

    The caller holds the commit lock. It is decoded again before it gets its name. The two newest
    and their bases stay. Raises StorageFullError, StorageIOError.
    """
    name = manifest_name(manifest.number)
    stored, packed = _stored_form(manifest), _packed(manifest)
    base = None if stored.base is None else manifest.base
    data = encode_manifest(stored, packed)
    installed = _assemble(stored, base, digest128(data), name)
    if not reads_as_meant(data, name, stored) or installed.segments != manifest.segments:
        raise AssertionError(f"{name} would not read as it was meant")
    if len(data) > _BYTES_MAX:
        raise StorageIOError(f"{name} would exceed {_BYTES_MAX} bytes. Nothing was stored.")
    if not publish_new(fs, owner, [data], name):
        return None
    if base is None:
        packed.keep(installed.segments)
        return replace(installed, base=_as_base(installed, packed))
    changes = len(installed.segments) - len(base.segments)
    packed.make_ahead(base.segments, (fmt.CHANGES_MAX - changes) // 2)
    return installed


def _packed(manifest: Manifest | None) -> PackedSegments:
    """What of the segments is packed already."""
    return PackedSegments() if manifest is None or not manifest.base else manifest.base.packed


def _as_base(manifest: Manifest, packed: PackedSegments) -> Base:
    """A whole manifest as the base of later ones."""
    return Base(
        manifest.number,
        manifest.digest,
        manifest.segments,
        manifest.jumps,
        manifest.kept,
        frozenset(info.id for info in manifest.segments),
        packed,
    )


def remove_old(fs: FileSystem, previous: Manifest, newest: Manifest) -> None:
    """Remove what is neither of the two newest manifests nor the base of one."""
    stay = {newest.number, previous.number}
    stay.update(item.base.number for item in (previous, newest) if item.base is not None)
    for number in manifest_numbers(fs.list("")):
        if number < newest.number and number not in stay:
            discard(fs, manifest_name(number))
