"""When versions were last read: what keeps them from being cold. A hint, and how it is told.

A read is one row: which version, and the second. There is a bound on rows, whatever is read: beyond
it those that were read last stay, and of the others age decides, as it does of all where the hint
is lost.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import numpy as np

from mldb.arrays import Bools
from mldb.log.active import HINTS
from mldb.log.checksum import check64
from mldb.log.fs.protocol import FileSystem

if TYPE_CHECKING:
    import numpy.typing as npt

    from mldb.compaction.table import VersionTable

READS: Final = "reads"
READS_LOCK: Final = f"{HINTS}/reads.lock"
"""Held by who adds to the hint, so that no other takes back what it adds."""
READS_MAX: Final = 1 << 16
AHEAD_SECONDS: Final = 60
"""A read that lies further in the future counts for none: the clock that told it was wrong."""
_VERSION: Final = 1
_LOOK_SECONDS: Final = 0.02
_ROW: Final = np.dtype([("key", "<u8"), ("commit", "<i8"), ("second", "<i8")])
_FILE_MAX: Final = READS_MAX * _ROW.itemsize + (1 << 14)
_NS: Final = 10**9

Reads: TypeAlias = np.ndarray[Any, np.dtype[Any]]
"""Rows of the xxh3-64 of a key, the commit that stored the version, and seconds since 1970."""


def no_reads() -> Reads:
    """Return no rows."""
    return np.empty(0, _ROW)


def reads_of(told: Sequence[tuple[bytes, int, int]]) -> Reads:
    """Return rows of key, commit and second."""
    return np.array([(check64(key), commit, second) for key, commit, second in told], _ROW)


def merge_reads(parts: Sequence[Reads], now: int) -> Reads:
    """Return the last read of every version in *parts*, READS_MAX at most: those read last.

    *now* is in nanoseconds; what lies in its future is left out.
    """
    every = np.concatenate([no_reads(), *parts])
    second = every["second"]
    every = every[(second >= 0) & (second <= now // _NS + AHEAD_SECONDS)]
    every = every[np.lexsort((every["second"], every["commit"], every["key"]))]
    is_last = np.ones(len(every), np.bool_)
    same = every["key"][1:] == every["key"][:-1]
    is_last[:-1] = ~(same & (every["commit"][1:] == every["commit"][:-1]))
    every = every[is_last]
    if len(every) > READS_MAX:
        every = every[np.sort(np.argsort(every["second"], kind="stable")[-READS_MAX:])]
    return every


def rows_read(table: VersionTable, reads: Reads, since: int) -> Bools:
    """Return the rows that were read behind *since*, in nanoseconds. O(rows)."""
    found = np.zeros(len(table), np.bool_)
    recent = reads[reads["second"] > since // _NS]
    if not len(recent):
        return found
    rows = np.flatnonzero(np.isin(table.commit, recent["commit"]))
    numbers, place = np.unique(table.key[rows], return_inverse=True)
    checks = np.array([check64(table.keys[number]) for number in numbers.tolist()], np.uint64)
    told = _mixed(recent["key"], recent["commit"])
    found[rows] = np.isin(_mixed(checks[place], table.commit[rows]), told)
    return found


def read_since(reads: Reads, since: int) -> Callable[[bytes, int], bool]:
    """Return what tells of key and commit whether the version was read behind *since*."""
    recent = reads[reads["second"] > since // _NS]
    told = frozenset(zip(recent["key"].tolist(), recent["commit"].tolist(), strict=True))
    return lambda key, commit: (check64(key), commit) in told


def _mixed(key: npt.NDArray[Any], commit: npt.NDArray[Any]) -> npt.NDArray[np.uint64]:
    """One number for a version: two that share it by chance are both left as they are."""
    spread = commit.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)  # 2^64 / golden ratio, odd
    mixed: npt.NDArray[np.uint64] = key.astype(np.uint64) ^ spread
    return mixed


# --- the hint -------------------------------------------------------------------------------------


def load_reads(fs: FileSystem, store_id: bytes) -> Reads:
    """Return what the hint tells; nothing where it is lost, damaged, or of another store."""
    from mldb.log.hints import load_hint_bytes

    found = load_hint_bytes(fs, READS, limit=_FILE_MAX)
    if found is None:
        return no_reads()
    value, payload = found
    rows, rest = divmod(len(payload), _ROW.itemsize)
    if value != [_VERSION, store_id, rows] or rest or rows > READS_MAX:
        return no_reads()
    return np.frombuffer(payload, _ROW)


def add_reads(fs: FileSystem, store_id: bytes, reads: Reads, patience: float) -> int | None:
    """Add rows to the hint; return how many it has then.

    None where others held it for *patience* seconds. Raises StorageIOError, StorageFullError,
    ReadOnlyError, StoreMovedError; a hint that cannot be written is none.
    """
    from mldb.log.hints import save_hint

    lock = fs.lock(READS_LOCK)
    try:
        deadline = time.monotonic() + patience
        while not lock.try_acquire():
            if time.monotonic() >= deadline:
                return None
            fs.pause(_LOOK_SECONDS)
        every = merge_reads([load_reads(fs, store_id), reads], fs.time_ns())
        save_hint(fs, READS, [_VERSION, store_id, len(every)], every.tobytes())
        return len(every)
    finally:
        lock.close()
