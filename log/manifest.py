"""The manifest: which segments make up the store. FORMAT.md section 7.

A manifest is immutable. ``MANIFEST-N`` is linked into place; the link fails when another process
was first. The highest valid N wins. It names its segments in full, or as changes of one *base*, so
that a seal costs the same in a store of ten segments and of ten thousand. The same scheme later
serves object stores, which offer put-if-absent and nothing more.
"""

from __future__ import annotations

import errno
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Final

from mldb.errors import CorruptError, StorageIOError
from mldb.log import format as fmt
from mldb.log.checksum import digest128
from mldb.log.fs.protocol import FileSystem
from mldb.log.index.lineage import NO_JUMPS, Jumps
from mldb.log.lone import PENDING, discard, publish_new, read_file
from mldb.log.manifest_codec import (
    WRITE_FEATURES,
    Features,
    Mark,
    SegmentInfo,
    StoredManifest,
    decode_manifest,
    encode_manifest,
    splice,
    unknown_features,
)

__all__ = ["PENDING", "Features", "Manifest", "Mark", "SegmentInfo"]

_BYTES_MAX: Final = 1 << 30
_NAME = re.compile(r"MANIFEST-([0-9]{10})\Z")

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
    segments: tuple[SegmentInfo, ...]
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
    """A whole manifest that others are written as changes of."""

    number: int
    digest: bytes
    segments: tuple[SegmentInfo, ...]
    jumps: Jumps
    kept: Kept | None


def manifest_name(number: int) -> str:
    """The file name of manifest *number*."""
    return f"MANIFEST-{number:010d}"


def manifest_numbers(names: Sequence[str]) -> list[int]:
    """Return the numbers of the manifests among the names in the folder, ascending."""
    return sorted(int(found.group(1)) for found in map(_NAME.match, names) if found)


# --- reading --------------------------------------------------------------------------------------


def load_manifest(fs: FileSystem, number: int) -> Manifest:
    """Read one manifest with its base.

    Raises CorruptError, StorageIOError, and FormatVersionError when it names a feature that this
    mldb does not know and needs to read the store.
    """
    name = manifest_name(number)
    data = read_file(fs, name, _BYTES_MAX)
    stored = decode_manifest(data, name)
    if stored.number != number:
        raise CorruptError(f"this is manifest {stored.number}", file=name, offset=0)
    base = None if stored.base is None else _load_base(fs, name, *stored.base)
    manifest = _assemble(stored, base, digest128(data), name)
    if base is not None or manifest.version == fmt.FIRST_VERSION:
        return manifest
    return replace(manifest, base=_as_base(manifest))


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
    return Base(number, digest, splice((), stored.changes), Jumps.of(stored.jumps), stored.kept)


def _assemble(stored: StoredManifest, base: Base | None, digest: bytes, name: str) -> Manifest:
    try:
        segments = splice(() if base is None else base.segments, stored.changes)
        changes = sum(count + len(come) for _, count, come in stored.changes)
        if base is not None and changes > fmt.CHANGES_MAX:
            raise ValueError(f"{changes} changes of its base")
        jumps = NO_JUMPS if base is None else base.jumps
        if jumps and stored.jumps and stored.jumps[0][0] <= jumps[-1][0]:
            raise ValueError("the jumps do not ascend")
        jumps = jumps.after(stored.jumps)
        ids = {stored.active, *(info.id for info in segments)}
        if len(ids) != len(segments) + 1:
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
        changes = ((0, 0, manifest.segments),)
        jumps, kept, named = manifest.jumps[:], manifest.kept, None
    else:
        jumps = manifest.jumps[len(base.jumps) :]
        kept = None if manifest.kept == base.kept else manifest.kept
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
    if not manifest.jumps.starts_with(base.jumps):
        return None

    def same(one: SegmentInfo, other: SegmentInfo) -> bool:
        return one is other or one == other

    low = 0
    while low < min(len(old), len(new)) and same(old[low], new[low]):
        low += 1
    high = 0
    while high < min(len(old), len(new)) - low and same(old[-1 - high], new[-1 - high]):
        high += 1
    gone, come = len(old) - low - high, new[low : len(new) - high]
    if gone + len(come) + len(manifest.jumps) - len(base.jumps) > fmt.CHANGES_MAX:
        return None
    return ((low, gone, come),) if gone or come else ()


def install_manifest(fs: FileSystem, manifest: Manifest, owner: str) -> Manifest | None:
    """Publish a manifest durably and return it as it reads; None when its number is taken.

    The caller holds the commit lock. It is decoded again before it gets its name. The two newest
    and their bases stay. Raises StorageFullError, StorageIOError.
    """
    name = manifest_name(manifest.number)
    stored = _stored_form(manifest)
    data = encode_manifest(stored)
    if decode_manifest(data, name) != stored:
        raise AssertionError(f"{name} would not read as it was meant")
    if len(data) > _BYTES_MAX:
        raise StorageIOError(f"{name} would exceed {_BYTES_MAX} bytes. Nothing was stored.")
    if not publish_new(fs, owner, [data], name):
        return None
    digest = digest128(data)
    installed = _assemble(stored, None if stored.base is None else manifest.base, digest, name)
    return replace(installed, base=manifest.base if stored.base else _as_base(installed))


def _as_base(manifest: Manifest) -> Base:
    """A whole manifest as the base of later ones."""
    return Base(manifest.number, manifest.digest, manifest.segments, manifest.jumps, manifest.kept)


def remove_old(fs: FileSystem, previous: Manifest, newest: Manifest) -> None:
    """Remove what is neither of the two newest manifests nor the base of one."""
    stay = {newest.number, previous.number}
    stay.update(item.base.number for item in (previous, newest) if item.base is not None)
    for number in manifest_numbers(fs.list("")):
        if number < newest.number and number not in stay:
            discard(fs, manifest_name(number))
