"""What a version is decoded from: its stored bytes, and those of the versions that it builds on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, Protocol

from mldb.deferred import NamedTuple
from mldb.errors import CorruptError
from mldb.log import format as fmt
from mldb.log.index.address import Entry
from mldb.log.segment import segment_name

DEPTH_MAX: Final = 64
"""Versions that a delta may build on, one on another. No writer makes as many."""


class Stored(NamedTuple):
    """The stored bytes of one version, and where they lie, for errors."""

    data: memoryview
    encoding: int
    file: str
    offset: int


class Decode(Protocol):
    """Decodes the last version of a chain; see :func:`mldb.tensors.encoding.decode_stored`."""

    def __call__(
        self,
        chain: list[Stored],
        size: int,
        key: str,
        base: memoryview | None = None,
        start: int = 0,
    ) -> memoryview:
        """Return decoded bytes of a version of *size* bytes, each of *chain* on the one before.

        The first one is on *base*, the decoded bytes from *start* on, of which as many are
        returned; or it is none that builds on others, and all bytes are returned. *key* is for
        errors.
        """


class Cache(Protocol):
    """Where decoded bytes are kept. Any thread."""

    def get(self, key: Any, nbytes: int, make: Callable[[], memoryview], /) -> memoryview:
        """Return the value of a key, made with *make* when it is absent."""

    def find(self, key: Any, /) -> tuple[memoryview] | None:
        """Return the value of a key in a tuple, or None."""

    def keeps(self, nbytes: int, /) -> bool:
        """Whether a value of as many bytes would be kept."""


def stored_form(entry: Entry, data: memoryview) -> Stored:
    """The stored bytes of this version with what the entry says of them."""
    return Stored(data, entry.encoding, segment_name(entry.segment), entry.offset)


def wrong_base(entry: Entry, name: str, what: str) -> CorruptError:
    """Return what says that the version which another one has its bytes from is none."""
    return CorruptError(
        f"the version of {name!r} that commit {entry.commit_lsn} stored has its bytes from one "
        f"of commit {entry.base}, which {what}. Other names and versions stay readable.",
        file=segment_name(entry.segment),
        offset=entry.frame,
        key=name,
    )


def base_fault(entry: Entry, base: Entry | None) -> str:
    """Return what is wrong with the version that an entry names as its owner or base, or ""."""
    if base is None:
        return "is not there"
    if base.flags & fmt.ENTRY_TOMBSTONE or base.encoding == fmt.ENCODING_REFERENCE:
        return "has no bytes of its own"
    if entry.encoding == fmt.ENCODING_REFERENCE and base.digest != entry.digest:
        return "has other bytes"
    return ""
