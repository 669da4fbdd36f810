"""How a store comes to exist: its folders, its first segment, the manifest that makes it one."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Final

from mldb.errors import CorruptError, FormatVersionError
from mldb.log import format as fmt
from mldb.log.active import HINTS, chain_start
from mldb.log.file_header import encode_file_header
from mldb.log.fs.protocol import FileSystem
from mldb.log.grown import Grown
from mldb.log.index.lineage import NO_JUMPS, Jumps
from mldb.log.lock import GATE, LOCK, CommitLock
from mldb.log.lone import PENDING
from mldb.log.manifest import (
    Kept,
    Manifest,
    Mark,
    SegmentInfo,
    install_manifest,
    manifest_numbers,
)
from mldb.log.readers import READERS
from mldb.log.recovery import LOST
from mldb.log.segment import SEGMENTS, segment_name

FOLDERS: Final = (SEGMENTS, PENDING, READERS, HINTS, LOST)
UNFINISHED_MARK: Final = "REPLAY"
"""Stands in the folder of a store that replay or repair is still building (mldb.tools.replay)."""

_OWN_NAMES: Final = frozenset({*FOLDERS, LOCK, GATE})


def create_store(
    fs: FileSystem, names: Sequence[str], lock_timeout: float, *, writable: bool
) -> bool:
    """Make a store in a folder that has these *names* and no manifest; tell whether this call did.

    False when another process was first: a folder is looked at once, so what it makes meanwhile is
    never taken for something foreign. Raises FormatVersionError for a folder of something else,
    CorruptError for one whose manifests were deleted.
    """
    if UNFINISHED_MARK in names:
        raise FormatVersionError(
            f"{fs.root} is no store yet: a replay or repair into it was not finished. Nothing was "
            "changed. Call it again with the same arguments to finish it, or delete the folder."
        )
    foreign = [name for name in names if name not in _OWN_NAMES]
    if foreign or not writable:
        shown = ", ".join(map(repr, foreign[:5])) or "nothing"
        raise FormatVersionError(
            f"{fs.root} is not an mldb store: it has no manifest and holds {shown}. Nothing "
            "was changed. Check the path, or give an empty or new folder with mode='rw' to "
            "create a store."
        )
    for folder in FOLDERS:
        fs.mkdir(folder)
    lock = CommitLock(fs, lock_timeout)
    try:
        with lock.hold():
            if manifest_numbers(fs.list("")):
                return False
            _give_birth(fs)
            return True
    finally:
        lock.close()


def _give_birth(fs: FileSystem) -> None:
    """Make the first segment and manifest 1; a store exists once its first manifest does."""
    for name in fs.list(SEGMENTS):
        path = f"{SEGMENTS}/{name}"
        file = fs.open(path, "r")
        size = file.size()
        file.close()
        if size > fmt.FILE_HEADER_SIZE:
            raise CorruptError(
                "segments are here but no manifest: manifests were deleted. Nothing was "
                "changed; restore the MANIFEST files from a backup.",
                file=path,
            )
        fs.unlink(path)  # left by a creation that died before its manifest
    # Its maker goes on to write: LSNs up to the ceiling are free already.
    publish_first(fs, Grown(), 0, 1 + fmt.LSN_CEILING_STEP, NO_JUMPS, None, ())


def publish_first(
    fs: FileSystem,
    segments: Grown[SegmentInfo],
    lsn_floor: int,
    lsn_ceiling: int,
    jumps: Jumps,
    kept: Kept | None,
    origins: tuple[bytes, ...],
) -> None:
    """Make manifest 1 of a new store, with these sealed *segments* and an empty active one.

    The caller has made the folders. LSNs go on behind *lsn_floor*.
    """
    store_id, segment_id, created = os.urandom(16), os.urandom(16), fs.time_ns()
    header = encode_file_header(
        fmt.FILE_SEGMENT,
        store_id,
        created,
        segment_id=segment_id,
        base_lsn=lsn_floor + 1,
        published=1,
    )
    file = fs.open(segment_name(segment_id), "create")
    try:
        file.pwritev([header], 0)
        file.sync()
    finally:
        file.close()
    fs.sync_dir(SEGMENTS)
    fs.sync_dir("")  # the folders themselves, before a manifest relies on them
    mark = Mark(segment_id, fmt.FILE_HEADER_SIZE, lsn_floor, chain_start(store_id, segment_id))
    manifest = Manifest(
        1,
        store_id,
        created,
        segments,
        segment_id,
        store_id,
        mark,
        lsn_floor,
        lsn_ceiling,
        jumps,
        kept,
        (store_id, *origins),
    )
    install_manifest(fs, manifest, os.urandom(16).hex())


def restore_folders(fs: FileSystem) -> None:
    """Make the folders that a copy of the store lost, since many tools skip empty ones."""
    for folder in FOLDERS:
        if not fs.exists(folder):
            fs.mkdir(folder)
