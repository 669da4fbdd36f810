"""What the folder of a store tells by itself, whether the store opens or not. Changes nothing."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from mldb.errors import MldbError
from mldb.log import format as fmt
from mldb.log.active import HINTS
from mldb.log.fs.machine import filesystem_kind, is_local
from mldb.log.fs.protocol import FileSystem
from mldb.log.lock import LOCK
from mldb.log.lone import PENDING
from mldb.log.manifest import Manifest, manifest_numbers
from mldb.log.mappings import MappingBudget
from mldb.log.newest import load_newest
from mldb.log.orphans import orphans
from mldb.log.readers import READERS
from mldb.log.recovery import LOST
from mldb.log.sealed import SealedPart
from mldb.log.segment import SEGMENTS, segment_name
from mldb.tools.doctor.findings import Finding, Level

_FOLDERS: Final = (SEGMENTS, HINTS, PENDING, READERS, LOST)
_LOW_BYTES: Final = 1 << 30
_SHOWN: Final = 3


@dataclass(frozen=True, slots=True)
class FolderSeen:
    """What lies in the folder: files and bytes of each part, "" for the top; sizes in bytes.

    ``manifests`` are their numbers. ``manifest`` is the newest that can be read, None where none
    can. ``distrusted`` says of damaged ones what is wrong. ``free_bytes`` is None where the system
    does not tell.
    """

    root: str
    files: dict[str, int]
    bytes: dict[str, int]
    manifests: tuple[int, ...]
    manifest: Manifest | None
    distrusted: tuple[str, ...]
    announced: int
    free_bytes: int | None
    kind: str
    is_local: bool
    is_writable: bool


def look_at_folder(fs: FileSystem) -> FolderSeen:
    """Look at the folder of a store. Raises StorageIOError where it cannot be listed."""
    announced = fs.look(LOCK)  # first: a manifest is announced before it is there
    files: dict[str, int] = {}
    sizes: dict[str, int] = {}
    for folder in ("", *_FOLDERS):
        names = [name for name in fs.list(folder) if folder or name not in _FOLDERS]
        found = [fs.look(f"{folder}/{name}" if folder else name) for name in names]
        files[folder] = len(names)
        sizes[folder] = sum(item[2] for item in found if item is not None)
    distrusted: list[str] = []
    manifest = None
    try:
        manifest = load_newest(fs, distrusted)
    except MldbError as error:
        distrusted.append(str(error))
    return FolderSeen(
        fs.root,
        files,
        sizes,
        tuple(manifest_numbers(fs.list(""))),
        manifest,
        tuple(dict.fromkeys(distrusted)),
        0 if announced is None else announced[2],
        _free(fs),
        filesystem_kind(fs.root),
        is_local(fs.root),
        os.access(fs.root, os.W_OK),
    )


def _free(fs: FileSystem) -> int | None:
    try:
        return fs.free_bytes()
    except MldbError:
        return None


def folder_findings(seen: FolderSeen) -> Iterator[Finding]:
    """What there is to say of a folder."""
    yield from _of_disk(seen)
    yield from _of_manifests(seen)
    if seen.files[LOST]:
        yield Finding(
            "note",
            "lost+found",
            f"{seen.files[LOST]:,} files, {seen.bytes[LOST]:,} bytes: what recovery cut off or "
            "moved aside, none of it ever called stored",
            "keep them while anything is missing; then they may be deleted",
        )
    if seen.files[PENDING]:
        yield Finding(
            "note",
            "pending",
            f"{seen.files[PENDING]:,} files, {seen.bytes[PENDING]:,} bytes: of transactions under "
            "way, or of dead processes, whose files the next writer removes",
        )


def _of_disk(seen: FolderSeen) -> Iterator[Finding]:
    kind = seen.kind or "of a kind that is not known"
    if seen.free_bytes is not None:
        level: Level = "note" if seen.free_bytes < _LOW_BYTES else "ok"
        yield Finding(
            "problem" if seen.free_bytes == 0 else level,
            "disk",
            f"{seen.free_bytes:,} bytes are free on a file system {kind}",
            "" if level == "ok" else "mldb compact STORE --plan tells what would come back",
        )
    if not seen.is_local:
        yield Finding(
            "note",
            "disk",
            f"the file system ({kind}) is not known to be of this machine: locks are as good as "
            "its locks are, and no background work starts by itself",
            "let one machine write at a time, or keep the store on a local disk",
        )
    if not seen.is_writable:
        yield Finding("note", "disk", "this user may not write here; reading is all that works")


def _of_manifests(seen: FolderSeen) -> Iterator[Finding]:
    if not seen.manifests:
        yield Finding(
            "problem",
            "manifests",
            "there is none, so the folder is no store, or they were deleted",
            "restore the MANIFEST files from a backup; mldb repair STORE TARGET reads without them",
        )
        return
    newest = seen.manifests[-1]
    for text in seen.distrusted:
        yield Finding(
            "problem",
            "manifests",
            text,
            "mldb backup STORE TARGET makes a copy with a manifest of its own"
            if seen.manifest is not None
            else "restore it from a backup, or mldb repair STORE TARGET",
        )
    if not seen.distrusted:
        yield Finding("ok", "manifests", f"{len(seen.manifests)}, the newest is {newest}")
    if seen.announced > newest + 1:
        yield Finding(
            "problem",
            "manifests",
            f"manifest {seen.announced} was announced, and {newest} is the newest that is there",
            "restore the MANIFEST files from a backup if any were deleted",
        )
    elif seen.announced == newest + 1:
        yield Finding(
            "note",
            "manifests",
            f"manifest {seen.announced} was announced and did not come: it is being made, or a "
            "process died; the next writer makes it",
        )
    elif not seen.announced:
        yield Finding("note", "manifests", "the lock file is gone; the next writer makes it")


def segment_findings(fs: FileSystem, manifest: Manifest) -> Iterator[Finding]:
    """What there is to say of the segments that a manifest names, and of those it does not."""
    lost, unindexed, beside = [], [], 0
    budget = MappingBudget(1)
    for info in manifest.segments:
        name = segment_name(info.id)
        found = fs.look(name)
        if found is None or found[2] < info.length:
            lost.append(name)
            continue
        beside += bool(info.index_file)
        part = SealedPart(fs, info, "first", budget)
        try:
            part.own_index()
        except MldbError as error:
            unindexed.append(f"{name}: {error}")
        finally:
            part.release()
    if lost:
        yield Finding(
            "problem",
            "segments",
            f"missing or cut off: {_listed(lost)}",
            "restore them from a backup, or mldb repair STORE TARGET",
        )
    if unindexed:
        yield Finding(
            "problem",
            "segments",
            f"without an index that can be read: {_listed(unindexed)}",
            "mldb repair STORE TARGET reads them frame by frame",
        )
    if not lost and not unindexed:
        beside_text = f", {beside} of them with an index beside" if beside else ""
        count = len(manifest.segments)
        yield Finding("ok", "segments", f"{count} sealed{beside_text}, and one that is appended to")
    yield from _of_orphans(fs, manifest)


def _of_orphans(fs: FileSystem, manifest: Manifest) -> Iterator[Finding]:
    found = [orphan for orphan in orphans(fs, manifest) if not orphan.is_empty]
    if found:
        damaged = sum(orphan.kind == 0 for orphan in found)
        kinds = f", {damaged} of them with a damaged header" if damaged else ""
        compacted = sum(orphan.kind == fmt.FILE_COMPACTED for orphan in found)
        kinds += f", {compacted} written by compaction" if compacted else ""
        yield Finding(
            "note",
            "orphans",
            f"{len(found)} segment files that no manifest names, "
            f"{sum(orphan.size for orphan in found):,} bytes{kinds}: being made now, or left by a "
            f"process that died ({_listed([orphan.name for orphan in found])})",
            "none: the next writer and the next compaction look after them",
        )


def _listed(names: list[str]) -> str:
    more = len(names) - _SHOWN
    return ", ".join(names[:_SHOWN]) + (f" and {more} more" if more > 0 else "")
