"""Which manifest counts: the highest valid one, unless stepping over a damaged one would lose data.

FORMAT.md section 7. A manifest of a newer format, or with features that are not known, is never
stepped over.
"""

from __future__ import annotations

import errno
from collections.abc import Sequence
from typing import Final

from mldb.errors import CorruptError, StorageIOError
from mldb.log.fs.protocol import File, FileSystem
from mldb.log.lock import LOCK
from mldb.log.manifest import Manifest, load_manifest, manifest_name, manifest_numbers

_LISTINGS: Final = 8


def open_announced(fs: FileSystem, *, writable: bool) -> File | None:
    """Open the lock file, whose length is the number of the newest manifest announced."""
    return fs.open(LOCK, "rw" if writable else "r") if fs.exists(LOCK) else None


def load_newest(
    fs: FileSystem,
    distrusted: list[str],
    numbers: Sequence[int] = (),
    known: Manifest | None = None,
) -> Manifest:
    """Load the highest valid manifest; *numbers* are a listing just made, if there is one.

    The base of a *known* manifest is not read again.

    Raises CorruptError when none is valid, FormatVersionError for one of a newer mldb.
    """
    for _ in range(_LISTINGS):
        try:
            return _load_highest(fs, distrusted, numbers or manifest_numbers(fs.list("")), known)
        except StorageIOError as error:
            # Between the listing and the reading a writer may have replaced the manifests.
            if error.errno != errno.ENOENT:
                raise
            last, numbers = error, ()
    raise last


def is_damaged(fs: FileSystem, number: int) -> bool:
    """Tell whether manifest *number* is there and unreadable."""
    if not fs.exists(manifest_name(number)):
        return False
    try:
        load_manifest(fs, number)
    except CorruptError:
        return True
    except StorageIOError as error:
        # It came and went; its successor waits.
        if error.errno != errno.ENOENT:
            raise
    return False


def _load_highest(
    fs: FileSystem, distrusted: list[str], numbers: Sequence[int], known: Manifest | None
) -> Manifest:
    damage: CorruptError | None = None
    damaged = 0
    for number in reversed(numbers):
        try:
            manifest = load_manifest(fs, number, known)
        except CorruptError as error:
            distrusted.append(str(error))
            damage, damaged = error, number
            continue
        if damage is not None:
            from mldb.log.orphans import published_by

            # A damaged manifest may have published a segment; falling back would drop that.
            if published_by(fs, manifest, damaged):
                raise damage
        return manifest
    raise damage or CorruptError(
        "no manifest is left: this folder holds no usable store", file=manifest_name(1)
    )
