"""Statistics that are known, by what was looked at: in memory, and in a hint for others."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from typing import Final

import numpy as np

from mldb import keys
from mldb.errors import CorruptError
from mldb.log.checksum import digest128
from mldb.log.hints import load_hint_bytes, save_hint
from mldb.log.index.address import Entry
from mldb.query.statistics import TensorStatistics, statistics_of
from mldb.tensors.codec import unpack_descriptor
from mldb.tensors.scope import Scope, stored_bytes

KNOWN_MAX: Final = 1 << 17
"""Versions whose statistics are kept: 70 bytes each in the hint, some 250 in memory."""
HINT: Final = "statistics"
_VERSION: Final = 1
_ROW: Final = np.dtype([("key", "S16"), ("values", "<f8", (7,))])
_EMPTY_DIGEST: Final = b""


class KnownStatistics:
    """The statistics of one handle. Any thread, but ``save`` where none calls ``of``.

    What is known is named by the digest of the bytes and the description of the tensor, so that a
    version that came again, under any name, is not looked at again. A version without a digest is
    named by its name and commit.
    """

    def __init__(self, *, saves: bool) -> None:
        """*saves*: whether the hint may be written."""
        self._saves = saves
        self._known: dict[bytes, TensorStatistics] = {}
        self._by_version: dict[tuple[str, int], bytes] = {}
        self._lock = threading.Lock()  # guards what follows, and the dicts where they change
        self._is_loaded = False
        self._new = 0
        self.computed = 0
        """Versions that this handle looked at."""

    def of(self, scope: Scope, name: str, lsn: int, check: Callable[[], None]) -> TensorStatistics:
        """Return the statistics of the version of *name* that commit *lsn* stored.

        Raises CorruptError naming the tensor, VersionGoneError, and what *check* raises.
        """
        self._load(scope)
        key = self._by_version.get((name, lsn))
        found = None if key is None else self._known.get(key)
        if found is not None:
            return found
        entry = scope.view.version_at(keys.TENSORS + name.encode(), lsn)
        if entry is None:
            raise CorruptError(f"the version of {name!r} at commit {lsn} is not there", key=name)
        key = _key_of(name, entry)
        found = self._known.get(key)
        if found is None:
            what = unpack_descriptor(entry.attr)
            found = statistics_of(what, stored_bytes(scope, entry, name), check)
            self._note(key, found)
        with self._lock:
            if len(self._by_version) >= KNOWN_MAX:
                self._by_version.clear()
            self._by_version[name, lsn] = key
        return found

    def _note(self, key: bytes, found: TensorStatistics) -> None:
        with self._lock:
            self.computed += 1
            self._new += 1
            while len(self._known) >= KNOWN_MAX:
                self._known.pop(next(iter(self._known)))  # the oldest one
            self._known[key] = found

    # --- the hint ---------------------------------------------------------------------------------

    def _load(self, scope: Scope) -> None:
        with self._lock:
            if not self._is_loaded:
                self._read_hint(scope)
                self._is_loaded = True

    def _read_hint(self, scope: Scope) -> None:
        found = load_hint_bytes(scope.source.log.fs, HINT, limit=2 * KNOWN_MAX * _ROW.itemsize)
        if found is None:
            return
        value, payload = found
        if value != [_VERSION, scope.source.log.store_id] or len(payload) % _ROW.itemsize:
            return  # of another mldb, or of the store that this one is a copy of
        for key, values in np.frombuffer(payload, _ROW)[-KNOWN_MAX:]:
            self._known[key.ljust(16, b"\0")] = TensorStatistics(*values.tolist())

    def save(self, scope: Scope) -> None:
        """Write the hint when there is something new; failures are ignored.

        Of two processes that write at once the later one wins; the other computes again.
        """
        if not self._new or not self._saves:
            return
        self._new = 0
        table = np.zeros(len(self._known), _ROW)
        table["key"] = list(self._known)
        table["values"] = np.array(list(self._known.values())).reshape(-1, 7)
        log = scope.source.log
        save_hint(log.fs, HINT, [_VERSION, log.store_id], table.tobytes())


def _key_of(name: str, entry: Entry) -> bytes:
    if entry.digest == _EMPTY_DIGEST:
        own = keys.TENSORS + name.encode() + b"\0" + entry.commit_lsn.to_bytes(8, "little")
        return digest128(own)
    return digest128(entry.digest + entry.attr)


def shown_value(value: float) -> float | None:
    """Return a statistic as SQL has it: None where there is none."""
    return None if math.isnan(value) else value
