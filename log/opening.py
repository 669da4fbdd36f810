"""Find the manifest of a store, or make the store, and open what the manifest names."""

from __future__ import annotations

from collections.abc import Callable

from mldb.log.birth import create_store
from mldb.log.fs.protocol import File, FileSystem
from mldb.log.manifest import Manifest, manifest_numbers, newest_announced
from mldb.log.newest import load_newest, open_announced
from mldb.log.segment import SegmentGoneError
from mldb.log.state import LogState
from mldb.options import Options


def find_store(
    fs: FileSystem, options: Options, distrusted: list[str]
) -> tuple[Manifest, File | None, bool]:
    """Return the newest manifest, the lock file when it is open, whether this call made the store.

    Raises FormatVersionError, CorruptError, LockedError, StorageIOError, ReadOnlyError.
    """
    writable, born = options.mode == "rw", False
    announced = open_announced(fs, writable=writable)
    manifest = None if announced is None else newest_announced(fs, announced.size())
    if manifest is None:
        names = fs.list("")
        numbers = manifest_numbers(names)
        if not numbers:
            born = create_store(fs, names, options.lock_timeout, writable=writable)
            announced = announced or open_announced(fs, writable=writable)
        manifest = load_newest(fs, distrusted, numbers)
    return manifest, announced, born


def open_state(
    fs: FileSystem,
    manifest: Manifest,
    distrusted: list[str],
    make: Callable[[Manifest], LogState],
) -> LogState:
    """Return what *make* makes of *manifest*, or of the newest where the active segment is missing.

    It may have been sealed and compacted since the manifest was read. Raises SegmentGoneError when
    the newest manifest names it.
    """
    while True:
        try:
            return make(manifest)
        except SegmentGoneError:
            newer = load_newest(fs, distrusted)
            if newer.number <= manifest.number:
                raise
            manifest = newer
