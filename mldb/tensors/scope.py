"""Where bytes come from, one snapshot of a store, and one version read out of it."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

from mldb import keys
from mldb.errors import InvalidTypeError, TensorNotFoundError
from mldb.log import format as fmt
from mldb.log.door import Door
from mldb.log.index.address import CommitRow, Entry, Intervals
from mldb.log.log import Log
from mldb.log.view import View
from mldb.names import check_name
from mldb.tensors.border import SIZES, MapBorder
from mldb.tensors.cache import DecodedCache
from mldb.tensors.codec import Descriptor, rebuild, unpack_descriptor, unpack_metadata, view_numpy
from mldb.tensors.encoding import decode_bytes


def _tensor_key(name: str) -> bytes:
    return keys.TENSORS + check_name(name)


class Source:
    """Where bytes come from: the log, the map/copy border and the cache of one handle. Any thread.

    Counters may miss a read when two threads count at once.
    """

    __slots__ = ("border", "cache", "copied_reads", "door", "log", "mapped_reads")

    def __init__(self, log: Log, border: MapBorder, cache: DecodedCache) -> None:
        self.log = log
        self.door = Door(log.head, log.options.verify, decode_bytes, cache, _tensor_key)
        self.border = border
        self.cache = cache
        self.mapped_reads = 0
        self.copied_reads = 0

    def is_mapped(self, view: View, entry: Entry) -> bool:
        """Whether this version is handed out as a view (True) or as a copy."""
        border = self.border
        if entry.length >= SIZES[0] and not border.known:
            border.learn(self.door.file(view, entry))
        if entry.length >= border.value:
            self.mapped_reads += 1
            return True
        self.copied_reads += 1
        return False


class Scope(NamedTuple):
    """One snapshot: a view, the commit it is fixed at, and the LSN intervals it sees."""

    source: Source
    view: View
    commit: CommitRow
    intervals: Intervals

    def find(self, key: bytes) -> Entry | None:
        """Return the newest version of *key*, or None when it does not exist here."""
        entry = self.view.newest(key, self.intervals)
        return None if entry is None or entry.flags & fmt.ENTRY_TOMBSTONE else entry

    def tensor_entry(self, name: str) -> Entry:
        """Return the newest version of tensor *name*. Raises TensorNotFoundError."""
        entry = self.view.newest(keys.TENSORS + check_name(name), self.intervals)
        if entry is None or entry.flags & fmt.ENTRY_TOMBSTONE:
            raise self._not_found(name)
        return entry

    def _not_found(self, name: str) -> TensorNotFoundError:
        near: list[str] = []
        for count, key in enumerate(self.view.keys(keys.TENSORS)):
            if count >= 2000:
                break
            near.append(keys.name_of(key))
        guess = difflib.get_close_matches(name, near, 1)
        hint = f" Did you mean {guess[0]!r}?" if guess and guess[0] != name else ""
        where = f"commit {self.commit.lsn} (epoch {self.commit.epoch})"
        return TensorNotFoundError(f"no tensor is named {name[:80]!r} at {where}.{hint}")

    def names(self, prefix: str = "") -> Iterator[str]:
        """Yield the names of tensors in byte order."""
        if not isinstance(prefix, str):
            raise InvalidTypeError(f"prefix is a {type(prefix).__name__}, not a str")
        start = keys.TENSORS + prefix.encode("utf-8", "surrogatepass")
        for key, _ in self.view.live(start, self.intervals):
            yield keys.name_of(key)

    def metadata(self, name: str) -> dict[str, Any]:
        """Return the metadata of *name* (a fresh dict), {} when it has none."""
        entry = self.find(keys.METADATA + check_name(name))
        return {} if entry is None else unpack_metadata(entry.attr)


make_scope: Callable[[tuple[Source, View, CommitRow, Intervals]], Scope] = partial(
    tuple.__new__, Scope
)
"""Make a Scope of its fields in order, at half the cost of a call: once per read."""


def stored_bytes(scope: Scope, entry: Entry, name: str) -> memoryview:
    """Return the decoded bytes of one version: a view of the log, or of the cache when encoded.

    They have been verified, and live as long as they are held. Raises CorruptError.
    """
    size = unpack_descriptor(entry.attr).nbytes
    return scope.source.door.version(scope.view, None, entry, size, name)


def own_bytes(scope: Scope, entry: Entry, name: str) -> memoryview | bytearray:
    """Return the decoded bytes of one version as writable memory that is the caller's alone.

    Large raw ones are a copy-on-write mapping of the log. Raises CorruptError.
    """
    source, view, _, _ = scope
    if not source.door.is_raw(entry) or not source.is_mapped(view, entry):
        return bytearray(stored_bytes(scope, entry, name))
    return source.door.private(view, None, entry, entry.length, name)


def read_array(scope: Scope, entry: Entry, name: str) -> Any:
    """Return one version as it was given: a read-only NumPy array, or the sparse layout stored.

    Large arrays are views of the mapped segment, small ones copies; both live as long as they are
    held.
    """
    what: Descriptor = unpack_descriptor(entry.attr)
    source, view, _, _ = scope
    data = source.door.version(view, None, entry, what.nbytes, name)
    if what.layout != "dense":
        return rebuild(what, data)  # a copy: what is handed out writable must be the caller's own
    return view_numpy(what, data if source.is_mapped(view, entry) else bytes(data))
