"""Where bytes come from, one snapshot of a store, and one version read out of it."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from mldb import keys
from mldb.deferred import NamedTuple
from mldb.errors import InvalidTypeError, MldbError, TensorNotFoundError
from mldb.log import format as fmt
from mldb.log import native
from mldb.log.counts import KeyCounts
from mldb.log.door import Door
from mldb.log.fs.process import CURRENT
from mldb.log.index.address import CommitRow, Entry, Intervals
from mldb.log.view import View
from mldb.names import check_name
from mldb.options import Options
from mldb.tensors.border import SIZES, MapBorder
from mldb.tensors.cache import ByteCache
from mldb.tensors.codec import Descriptor, rebuild, unpack_descriptor, unpack_metadata, view_numpy
from mldb.tensors.dtypes import dtype_of
from mldb.tensors.reads import GRAIN_NS, ReadNotes

if TYPE_CHECKING:
    import numpy.typing as npt

    from mldb.log.chain import Stored
    from mldb.log.log import Log

_NEAR: Final = 64
"""Names of each side, in each of a few parts, among which a similar one is looked for."""
_SAMPLE: Final = 1000
"""The first names, among which it is looked for as well."""


_KNOWN_MAX: Final = 4096
_Epochs = dict[int, tuple[CommitRow, Intervals]]
_Known = tuple[CommitRow, Entry, tuple[int, ...], np.dtype[Any]]
"""A raw dense version: the commit that is looked back to, its entry, shape and dtype."""

# Only ever read, added to or emptied as a whole, so threads need no lock.
_keys: dict[str, bytes] = {}
"""The index keys of names."""
_plain: dict[bytes, tuple[tuple[int, ...], np.dtype[Any], int]] = {}
"""By the packed descriptors of dense tensors: shape, dtype and bytes."""


def _tensor_key(name: str) -> bytes:
    key = keys.TENSORS + check_name(name)
    if type(name) is str:
        if len(_keys) >= _KNOWN_MAX:
            _keys.clear()
        _keys[name] = key
    return key


def _remember(what: Descriptor, attr: bytes) -> None:
    """Keep what an array needs of the descriptor of a dense tensor."""
    if what.layout == "dense":
        if not _plain and native.loaded is not None:  # without a descriptor it reads nothing
            native.loaded.meet((Scope, Source, Door, MapBorder, ReadNotes), SIZES[0], _keys, _plain)
        if len(_plain) >= _KNOWN_MAX:
            _plain.clear()
        _plain[attr] = what.shape, dtype_of(what.dtype), what.nbytes


def names_prefix(prefix: str) -> bytes:
    """Return the prefix of the keys of tensors whose names start with *prefix*."""
    if not isinstance(prefix, str):
        raise InvalidTypeError(f"prefix is a {type(prefix).__name__}, not a str")
    return keys.TENSORS + prefix.encode("utf-8", "surrogatepass")


def _notes_reads(options: Options) -> bool:
    """Whether a handle tells what it reads: one that only reads writes nothing, no hint either."""
    return options.note_reads and options.mode == "rw"


def _decode_stored(
    chain: Sequence[Stored],
    size: int,
    key: str,
    base: memoryview | None = None,
    start: int = 0,
) -> memoryview:
    """Decode what is encoded; see :func:`mldb.tensors.encoding.decode_stored`."""
    from mldb.tensors.encoding import decode_stored

    return decode_stored(chain, size, key, base, start)


class Source:
    """Where bytes come from: the log, the map/copy border and the cache of one handle. Any thread.

    ``private`` says that every array gets bytes of its own, whoever writes to it (Options.arrays).
    ``counts`` says how many keys exist, ``reads`` which versions but the newest were read lately.
    ``found`` are versions by name and epoch, for the lineage whose ``View.epochs`` stands beside
    them; replaced as a whole, and emptied when full. Counters may miss a read when two threads
    count at once.
    """

    __slots__ = (
        *("border", "cache", "copied_reads", "counts", "door", "found", "log", "mapped_reads"),
        *("private", "reads", "state"),
    )

    def __init__(self, log: Log, border: MapBorder, cache: ByteCache) -> None:
        self.log = log
        self.state = log.state
        self.reads = ReadNotes(log.fs, log.store_id, notes=_notes_reads(log.options))
        self.door = Door(log.head, log.options.verify, _decode_stored, cache, _tensor_key)
        self.border = border
        self.cache = cache
        self.counts = KeyCounts()
        self.private = log.options.arrays == "private"
        self.mapped_reads = 0
        self.copied_reads = 0
        self.found: tuple[_Epochs, dict[tuple[str, int], _Known]] = ({}, {})

    def remember(self, scope: Scope, epoch: int, name: str, entry: Entry) -> None:
        """Keep what :func:`read_known` needs of a version that was read as of *epoch*.

        Only where the epoch is kept as well: no commit can join it along this lineage.
        """
        view, plain = scope.view, _plain.get(entry.attr)
        usual = plain is not None and entry.encoding == fmt.ENCODING_RAW and not self.private
        if plain is None or not usual or epoch not in view.epochs or entry.length != plain[2]:
            return
        epochs, found = self.found
        if epochs is not view.epochs or len(found) >= _KNOWN_MAX:
            found = {}
            self.found = view.epochs, found
        found[name, epoch] = scope.commit, entry, plain[0], plain[1]

    def note_read(self, commit: CommitRow, entry: Entry, name: str) -> None:
        """Note a read of a snapshot at *commit*; at the head nothing is to be noted."""
        if commit is not self.state.view.commit:
            self.reads.note(name, entry.commit_lsn)

    def is_mapped(self, view: View, entry: Entry) -> bool:
        """Whether this version is handed out as a view (True) or as a copy."""
        border, length = self.border, entry[4]
        if not border.known and length >= SIZES[0]:
            border.learn(self.door.file(view, entry))
        if length >= border.value:
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
        key = _keys.get(name) if type(name) is str else None
        entry = self.view.newest(key or _tensor_key(name), self.intervals)
        if entry is None or entry.flags & fmt.ENTRY_TOMBSTONE:
            raise self._not_found(name)
        return entry

    def _not_found(self, name: str) -> TensorNotFoundError:
        _, view, commit, intervals = self
        process = CURRENT[0]  # the view of a parent is not for its children
        return TensorNotFoundError(
            f"no tensor is named {name[:80]!r} at commit {commit.lsn} (epoch {commit.epoch}).",
            suggest=lambda: _similar(view, intervals, name) if CURRENT[0] is process else "",
        )

    def names(self, prefix: str = "") -> Iterator[str]:
        """Yield the names of tensors in byte order."""
        found = self.view.live_keys(names_prefix(prefix), self.intervals)
        return itertools.chain.from_iterable(map(keys.plain_names, found))

    def count_names(self, prefix: str = "") -> int:
        """Return how many names :meth:`names` yields; see ``mldb.log.counts``."""
        return self.source.counts.count(self.view, names_prefix(prefix), self.intervals)

    def metadata(self, name: str) -> dict[str, Any]:
        """Return the metadata of *name* (a fresh dict), {} when it has none."""
        entry = self.find(keys.METADATA + check_name(name))
        return {} if entry is None else unpack_metadata(entry.attr)


def _similar(view: View, intervals: Intervals, name: str) -> str:
    """Propose the name that was perhaps meant: done for who reads the message, nobody else.

    It is looked for among the names where this one would stand and among the first ones.
    """
    import difflib

    try:
        key = _tensor_key(name)
        sample = view.near(keys.TENSORS, key, _NEAR)
        first = itertools.chain.from_iterable(view.live_keys(keys.TENSORS, intervals))
        sample.update(itertools.islice(first, _SAMPLE))
        names = sorted(map(keys.name_of, sample - {key}))
        for guess in difflib.get_close_matches(name, names, 3):
            entry = view.newest(_tensor_key(guess), intervals)
            if entry is not None and not entry.flags & fmt.ENTRY_TOMBSTONE:
                return f" Did you mean {guess!r}?"
    except (MldbError, ValueError):
        pass  # what is damaged or gone by now is no reason to hide what was not found
    return ""


make_scope: Callable[[tuple[Source, View, CommitRow, Intervals]], Scope] = partial(
    tuple.__new__, Scope
)
"""Make a Scope of its fields in order, at half the cost of a call: once per read."""


def holder(scope: Scope, entry: Entry, name: str) -> tuple[bytes | None, Entry]:
    """Return key (None: that of *name*) and entry of the version that has the bytes of this one."""
    if entry.encoding != fmt.ENCODING_REFERENCE:
        return None, entry
    return scope.source.door.holder(scope.view, None, entry, name)


def stored_bytes(scope: Scope, entry: Entry, name: str) -> memoryview:
    """Return the decoded bytes of one version: a view of the log, or of the cache when encoded.

    They have been verified, and live as long as they are held. Raises CorruptError.
    """
    size = unpack_descriptor(entry.attr).nbytes
    scope.source.note_read(scope.commit, entry, name)
    return scope.source.door.version(scope.view, None, entry, size, name)


def own_bytes(scope: Scope, entry: Entry, name: str) -> memoryview | bytearray:
    """Return the decoded bytes of one version as writable memory that is the caller's alone.

    Large raw ones are a copy-on-write mapping of the log. Raises CorruptError.
    """
    source, view, commit, _ = scope
    source.note_read(commit, entry, name)
    key, held = holder(scope, entry, name)
    if source.door.is_own(held):
        nbytes = unpack_descriptor(entry.attr).nbytes
        return source.door.private(view, key, held, nbytes, name)
    if not source.door.is_raw(held) or not source.is_mapped(view, held):
        return bytearray(stored_bytes(scope, entry, name))
    return source.door.private(view, key, held, held.length, name)


def stored_rows(
    scope: Scope, entry: Entry, name: str, rows: npt.NDArray[np.int64]
) -> memoryview | bytearray:
    """Return the bytes of some rows of a dense version, at least one of them, in the order given.

    *rows* are numbers of steps of the first axis, ascending. No more is read than has to be.
    """
    what = unpack_descriptor(entry.attr)
    key, held = holder(scope, entry, name)
    door, view, size = scope.source.door, scope.view, what.nbytes
    row = size // what.shape[0]
    if not door.has_parts(held) or door.is_own(held):
        # A part of a patched version costs a look at every patch, so there is one part of all.
        first, stop = int(rows[0]), int(rows[-1]) + 1
        data = door.part(view, key, held, size, first * row, stop * row, name)
        table = np.frombuffer(data, np.uint8).reshape(stop - first, row)
        return np.ascontiguousarray(table[rows - first]).data.cast("B")
    found = bytearray()
    ends = [*(np.flatnonzero(np.diff(rows) != 1) + 1).tolist(), len(rows)]
    start = 0
    for end in ends:
        low, high = int(rows[start]) * row, (int(rows[end - 1]) + 1) * row
        found += door.part(view, key, held, size, low, high, name)
        start = end
    return found


def read_named(scope: Scope, name: str) -> Any:
    """Return the newest version of tensor *name* here, as :func:`read_array` does.

    Raises TensorNotFoundError.
    """
    twin = native.twin
    if twin is not None:
        found = twin.read(scope, name, GRAIN_NS)
        if found is not None:
            return found
    return read_array(scope, scope.tensor_entry(name), name)


def read_known(source: Source, view: View, known: _Known, name: str) -> Any:
    """Return a version that was read before, as :func:`read_array` does."""
    commit, entry, shape, dtype = known
    if commit is not source.state.view.commit:
        source.reads.note(name, entry[0])
    data = source.door.raw(view, entry, name)
    return np.ndarray(shape, dtype, data if source.is_mapped(view, entry) else bytes(data))


def read_array(scope: Scope, entry: Entry, name: str) -> Any:
    """Return one version as it was given: a read-only NumPy array, or the sparse layout stored.

    Large arrays are views of the mapped segment, small ones copies; both live as long as they are
    held. With ``arrays="private"`` no two of them share memory.
    """
    source, view, commit, _ = scope
    if commit is not source.state.view.commit:
        source.reads.note(name, entry.commit_lsn)
    plain = _plain.get(entry.attr)
    if plain is not None and entry.encoding == fmt.ENCODING_RAW and not source.private:
        shape, dtype, size = plain
        data = source.door.raw(view, entry, name) if entry.length == size else b""
        if len(data) == size:
            return np.ndarray(shape, dtype, data if source.is_mapped(view, entry) else bytes(data))
    what: Descriptor = unpack_descriptor(entry.attr)
    _remember(what, entry.attr)
    if source.private and what.layout == "dense":
        return view_numpy(what, memoryview(own_bytes(scope, entry, name)).toreadonly())
    key, held = holder(scope, entry, name)
    data = source.door.version(view, key, held, what.nbytes, name)
    if what.layout != "dense":
        return rebuild(what, data)  # a copy: what is handed out writable must be the caller's own
    is_lasting = source.door.is_own(held) or source.is_mapped(view, held)
    return view_numpy(what, data if is_lasting else bytes(data))
