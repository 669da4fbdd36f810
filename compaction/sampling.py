"""What encoding the cold versions of a store would save, told from a sample of its bytes.

A plan knows every version, and takes seconds for a million of them. Here the cost is bounded
whatever the size: MARKS bytes of the sealed segments are picked at regular steps, and of each is
asked what it belongs to. The share of them that lie in cold versions is that of all bytes, within a
few percent; and of some of these versions a piece is encoded, to see what that saves.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Final, NamedTuple

import numpy as np

from mldb.arrays import Bools, Numbers
from mldb.compaction.plan import COLD_SHARE
from mldb.compaction.planning import HOT_CHECKPOINTS, columns_of
from mldb.compaction.reads import read_since
from mldb.compaction.rules import EventRules
from mldb.errors import MldbError
from mldb.log import format as fmt
from mldb.log.directory.key_records import KeyList
from mldb.log.index.address import Entry
from mldb.log.index.merge_parts import Columns
from mldb.log.log import Log
from mldb.log.sealed import SealedPart
from mldb.log.view import View

MARKS: Final = 128
"""Bytes that are looked at."""
SAMPLED_SEGMENTS: Final = 16
"""They lie in so many segments at most."""
TRIAL_PIECES: Final = 12
"""Pieces that are encoded."""
TRIAL_BYTES: Final = 1 << 18
_WHOLE_MAX: Final = 1 << 24
"""A base that is encoded itself is decoded as a whole, up to this size."""


class ColdSample(NamedTuple):
    """What a sample told: the sealed bytes, the marks, those in cold versions, what these save."""

    size: int
    marks: int
    cold: int
    share: float

    @property
    def saved(self) -> int:
        """Bytes that encoding would give back, about."""
        return int(self.size * self.cold * self.share / self.marks) if self.marks else 0


def sample_cold(
    log: Log, rules: EventRules, age: int, stays: Callable[[bytes, int], bool]
) -> ColdSample:
    """Look at a sample of the sealed segments; changes nothing. *age* is in nanoseconds.

    *stays* tells of key and commit whether retention keeps the version. Raises SegmentGoneError
    when a segment is replaced meanwhile, CorruptError, StorageIOError.
    """
    view = log.head()
    parts = tuple(view.sealed)
    lengths = np.array([part.info.length for part in parts], np.int64)
    size = int(lengths.sum())
    if not size:
        return ColdSample(0, 0, 0, 0.0)
    look = _Look(view, rules, log.fs.time_ns() - age)
    cold: list[tuple[bytes, Entry]] = []
    marks = 0
    for place, count in _segments(lengths):
        marks += count
        cold += [
            found
            for found in _marked(parts[place], count, look)
            if look.is_cold(*found) and stays(found[0], found[1].commit_lsn)
        ]
    return ColdSample(size, marks, len(cold), _share_saved(log, rules, view, cold))


def _segments(lengths: Numbers) -> Iterator[tuple[int, int]]:
    """Segments and how many marks lie in each: by their bytes."""
    picks = min(SAMPLED_SEGMENTS, MARKS)
    at = (np.arange(picks) + 0.5) * (int(lengths.sum()) / picks)
    places, counts = np.unique(np.searchsorted(np.cumsum(lengths), at), return_counts=True)
    for place, count in zip(places.tolist(), counts.tolist(), strict=True):
        yield place, count * (MARKS // picks)


def _marked(part: SealedPart, count: int, look: _Look) -> Iterator[tuple[bytes, Entry]]:
    """Yield key and entry of the raw versions that the marks of a segment lie in, mark by mark."""
    columns = columns_of(part)
    raw = _raw_rows(columns)
    offset, length = (columns[f"row_{name}"].astype(np.int64) for name in ("offset", "length"))
    rows = np.flatnonzero(raw & look.is_old(columns))
    rows = rows[np.argsort(offset[rows], kind="stable")]
    rows = rows[np.diff(offset[rows], prepend=-1) > 0]  # names may share bytes
    # A segment of which too little would be encoded is not rewritten for that.
    if not len(rows) or length[rows].sum() < COLD_SHARE * part.info.length:
        return
    marks = ((np.arange(count) + 0.5) * (part.info.length / count)).astype(np.int64)
    place = np.searchsorted(offset[rows], marks, "right") - 1
    hit = (place >= 0) & (marks < offset[rows[place]] + length[rows[place]])
    keys = KeyList(columns["key_offset"], columns["key_heap"])
    for row in rows[place[hit]].tolist():
        key = keys[int(np.searchsorted(columns["key_row"], row, "right")) - 1]
        entry = look.view.version_at(key, int(columns["row_commit"][row]))
        if entry is not None:
            yield key, entry


def _raw_rows(columns: Columns) -> Bools:
    """Which rows have bytes of their own that nobody tried to encode."""
    tried = columns["row_flags"] & (fmt.ENTRY_TOMBSTONE | fmt.ENTRY_SETTLED) != 0
    is_raw = columns["row_encoding"] == fmt.ENCODING_RAW
    found: Bools = is_raw & ~tried & (columns["row_length"] > 0)
    return found


class _Look:
    """Whether versions are cold, one at a time, as ``planning`` tells it of all. One thread."""

    def __init__(self, view: View, rules: EventRules, before: int) -> None:
        roots = rules.roots(view)
        hot = {view.commit.lsn, *roots.always, *roots.checkpoints[-HOT_CHECKPOINTS:]}
        last = view.last_commit(((1, view.commit.lsn),), "time", before)
        self.view = view
        self._size_of = rules.size_of
        self._before = before
        self._last_old = 0 if last is None else last.lsn
        self._hot = np.array(sorted(hot), np.int64)
        self._is_read = read_since(rules.reads(), before)

    def is_old(self, columns: Columns) -> Bools:
        """Which rows of a segment were stored long enough ago."""
        found: Bools = columns["row_commit"] <= self._last_old
        return found

    def is_cold(self, key: bytes, entry: Entry) -> bool:
        """Whether a version that is old enough is cold."""
        lsn, view = entry.commit_lsn, self.view
        if not self._size_of(key, entry.attr) or self._is_read(key, lsn):
            return False
        following = (
            view.newest(key, ((lsn + 1, view.commit.lsn),)) if lsn < view.commit.lsn else None
        )
        if following is not None and not (
            lsn < self._last_old and view.newest(key, ((lsn + 1, self._last_old),))
        ):
            return False  # it was the newest until lately
        # What a hot commit sees of a key, those behind it see until there is a newer one; so the
        # first one behind the version tells, but where the log was rewound, the head as well.
        first = int(np.searchsorted(self._hot, lsn))
        return not any(self._sees(int(one), key, lsn) for one in self._hot[[first, -1]])

    def _sees(self, hot: int, key: bytes, lsn: int) -> bool:
        view = self.view
        at_head = hot == view.commit.lsn
        intervals = view.intervals if at_head else view.jumps.intervals_at(hot)
        found = view.newest(key, intervals)
        return found is not None and found.commit_lsn == lsn


def _share_saved(log: Log, rules: EventRules, view: View, cold: list[tuple[bytes, Entry]]) -> float:
    """The share of the bytes of some cold versions that encoding a piece of each saves."""
    if not cold:
        return 0.0
    trial = _Trial(log, rules, view)
    before = after = 0
    picks = np.unique(np.linspace(0, len(cold) - 1, TRIAL_PIECES).astype(np.int64))
    for number, place in enumerate(picks.tolist(), 1):
        try:
            key, entry = cold[place]
            raw, stored = trial.encoded(key, entry, distance=number & -number)
        except MldbError:  # damaged, or replaced meanwhile: a pass tells
            continue
        before, after = before + raw, after + stored
    return max(before - after, 0) / before if before else 0.0


class _Trial:
    """Encodes pieces of versions, as a pass would encode the whole. One thread."""

    def __init__(self, log: Log, rules: EventRules, view: View) -> None:
        self._door = rules.door_of(log.head)
        self._rules = rules
        self._view = view

    def encoded(self, key: bytes, entry: Entry, *, distance: int) -> tuple[int, int]:
        """Return the bytes of a piece, raw and encoded on the version so many before it.

        Of the versions of a forest half build on the one before them, a quarter on the second, and
        so on.
        """
        size = self._rules.size_of(key, entry.attr) or 0
        data = self._piece(key, entry, size)
        base, piece = entry, None
        for _ in range(distance):
            found = (
                self._view.newest(key, ((1, base.commit_lsn - 1),)) if base.commit_lsn > 1 else None
            )
            if found is None or found.attr != entry.attr or found.flags & fmt.ENTRY_TOMBSTONE:
                break
            base = found
        if base is not entry and (base.encoding == fmt.ENCODING_RAW or size <= _WHOLE_MAX):
            piece = self._piece(key, base, size)
        form = self._rules.encode(entry.attr, data, piece)
        return len(data), len(data) if form is None else len(form[1])

    def _piece(self, key: bytes, entry: Entry, size: int) -> memoryview:
        """The middle of a version."""
        count = min(size, TRIAL_BYTES)
        low = (size - count) // 2 // fmt.FRAME_ALIGN * fmt.FRAME_ALIGN
        name = self._rules.shown(key)
        return self._door.part(self._view, key, entry, size, low, low + count, name)
