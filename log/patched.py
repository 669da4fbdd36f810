"""The patches between a version and one below it: the walk that a read of a patched one makes."""

from __future__ import annotations

from typing import Protocol

from mldb.deferred import NamedTuple
from mldb.errors import CorruptError
from mldb.log import format as fmt
from mldb.log.chain import wrong_base
from mldb.log.index.address import Entry
from mldb.log.patch import Patch, PatchError, decode_patch
from mldb.log.segment import segment_name
from mldb.log.view import View


class Opener(Protocol):
    """What the walk asks of the door. Any thread."""

    def opened(
        self, view: View, key: bytes | None, entry: Entry, name: str
    ) -> tuple[View, Entry, memoryview]:
        """Return the stored bytes of a holder, with its entry as it lies now and the view of it."""

    def base_of(
        self, view: View, key: bytes | None, entry: Entry, name: str
    ) -> tuple[bytes, Entry]:
        """Return key and entry of the version that this one names."""


class Layers(NamedTuple):
    """Patches, newest first, all with rows of one length, and the version below the last one."""

    patches: list[Patch]
    view: View
    key: bytes
    entry: Entry
    row_bytes: int


def layers_of(
    door: Opener,
    view: View,
    key: bytes | None,
    entry: Entry,
    data: memoryview,
    size: int,
    name: str,
    until: tuple[bytes, int] | None,
) -> Layers:
    """Walk from a patched version, whose stored bytes are *data*, down to one that is whole.

    Or to that of key and commit *until*. The patches are views of the log, or of what the caller
    gave. Raises CorruptError, VersionGoneError.
    """
    patches = [patch_of(entry, data, size, name)]
    while True:
        key, below = door.base_of(view, key, entry, name)
        if below.commit_lsn >= entry.commit_lsn:
            raise wrong_base(entry, name, "is not older, so that it builds on itself")
        entry = below
        if (key, entry.commit_lsn) == until or entry.encoding != fmt.ENCODING_PATCH:
            break
        view, entry, data = door.opened(view, key, entry, name)
        if entry.encoding != fmt.ENCODING_PATCH:
            break
        patches.append(patch_of(entry, data, size, name))
    row = patches[0].row_bytes
    if any(patch.row_bytes != row for patch in patches):
        raise wrong_base(entry, name, "has rows of another length")
    return Layers(patches, view, key, entry, row)


def patch_of(entry: Entry, data: memoryview, size: int, name: str) -> Patch:
    """Return the patch that a version of *size* bytes is stored as. Raises CorruptError."""
    try:
        return decode_patch(data, size)
    except PatchError as error:
        raise CorruptError(
            f"the patch of {name!r} that commit {entry.commit_lsn} stored is none: {error}. Other "
            "names and versions stay readable.",
            file=segment_name(entry.segment),
            offset=entry.offset,
            key=name,
        ) from None
