"""The tiers that rows are read from: mapped segments (cold), RAM (warm), device memory (hot).

A tier holds chunks, runs of 4,096 rows by number. What a chunk holds is decided by row numbers
alone, so tiers change what is moved and never what is read.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, Protocol

import numpy as np

from mldb.arrays import Float32s, Numbers
from mldb.errors import InvalidValueError
from mldb.lake.rows.block import Copier, Selection
from mldb.lake.rows.copier import copier_of
from mldb.lake.rows.live import Rows
from mldb.lake.rows.take import take_rows

CHUNK_ROWS: Final = 4096
_REPLACE_FROM: Final = CHUNK_ROWS // 32  # a batch that asks for fewer rows pushes nothing out


@dataclass(slots=True)
class TierStats:
    """What one tier did. ``moved_bytes`` came in from the tier below; hits and misses are rows."""

    budget_bytes: int = 0
    resident_bytes: int = 0
    hits: int = 0
    misses: int = 0
    moved_bytes: int = 0
    evicted: int = 0


Gather = Callable[[Selection, Float32s], object]
"""Writes mu of rows to a host array: the segments, or the tier below."""


class Slab(Protocol):
    """Memory for chunks, in RAM or on a device. What it writes to lives where it does."""

    def fill(self, row: int, data: Float32s) -> None:
        """Copy host rows in, from row number *row* of the slab on."""

    def take(self, rows: Numbers, out: Any, places: Numbers | None = None) -> None:
        """Write rows of the slab to *out*, or to *places* in it."""

    def put(self, data: Float32s, out: Any, places: Numbers) -> None:
        """Write host rows to *places* in *out*."""


class RamSlab:
    """A slab of host memory. One thread at a time."""

    def __init__(self, rows: int, dim: int) -> None:
        self._memory = np.empty((rows, dim), np.float32)

    def fill(self, row: int, data: Float32s) -> None:
        """Copy rows in."""
        self._memory[row : row + len(data)] = data

    def take(self, rows: Numbers, out: Any, places: Numbers | None = None) -> None:
        """Gather rows to *out*, a NumPy array."""
        if places is None:
            take_rows(self._memory, rows, out)
        else:
            out[places] = self._memory[rows]

    def put(self, data: Float32s, out: Any, places: Numbers) -> None:
        """Write rows to *places*."""
        out[places] = data


class Tier:
    """One tier above the segments: chunks in a slab, the least recently used one leaves first.

    One thread at a time (that of the stream). A chunk comes in when there is room, or when one
    batch asks for enough of its rows to be worth the eviction; other rows are read from below.
    """

    def __init__(
        self, rows: Rows, slab: Slab, slots: int, below: Gather, *, budget_bytes: int
    ) -> None:
        """*slab* has *slots* places for a chunk, at least one."""
        self.stats = TierStats(budget_bytes=budget_bytes)
        self._rows = rows
        self._slab = slab
        self._below = below
        self._slot = np.full(_chunks(rows), -1, np.int64)  # of every chunk
        self._holder = np.full(slots, -1, np.int64)  # the chunk in every slot
        self._used = np.zeros(slots, np.int64)  # when it was last asked for
        self._clock = 0

    def gather(self, rows: Selection, out: Any) -> None:
        """Write mu of these rows to *out*, which lives where the slab does."""
        if isinstance(rows, slice):
            rows = np.arange(rows.start, rows.stop)
        chunks = rows // CHUNK_ROWS
        wanted, counts = np.unique(chunks, return_counts=True)
        self._clock += 1
        self._admit(wanted, counts)
        slots = self._slot[chunks]
        here = np.flatnonzero(slots >= 0)
        self.stats.hits += len(here)
        places = slots * CHUNK_ROWS + rows % CHUNK_ROWS
        if len(here) == len(rows):
            self._slab.take(places, out)
            return
        self._slab.take(places[here], out, here)
        away = np.flatnonzero(slots < 0)
        self.stats.misses += len(away)
        self._slab.put(self._read(rows[away], len(away)), out, away)

    def _read(self, rows: Selection, count: int) -> Float32s:
        part = np.empty((count, self._rows.dim), np.float32)
        self._below(rows, part)
        return part

    def _admit(self, wanted: Numbers, counts: Numbers) -> None:
        """Bring in what is asked for and worth it; note what is used."""
        there = self._slot[wanted] >= 0
        self._used[self._slot[wanted[there]]] = self._clock
        for chunk, count in zip(wanted[~there].tolist(), counts[~there].tolist(), strict=True):
            slot = int(np.argmin(self._used))
            if self._used[slot] == self._clock:
                return  # all of it is in use by this very batch
            if self._holder[slot] >= 0:
                if count < _REPLACE_FROM:
                    continue
                self._evict(slot)
            self._load(chunk, slot)

    def _evict(self, slot: int) -> None:
        chunk = int(self._holder[slot])
        self.stats.evicted += 1
        self.stats.resident_bytes -= self._bytes(chunk)
        self._slot[chunk] = -1

    def _load(self, chunk: int, slot: int) -> None:
        low = chunk * CHUNK_ROWS
        high = min(low + CHUNK_ROWS, len(self._rows))
        self._slab.fill(slot * CHUNK_ROWS, self._read(slice(low, high), high - low))
        self._slot[chunk], self._holder[slot] = slot, chunk
        self._used[slot] = self._clock
        self.stats.moved_bytes += self._bytes(chunk)
        self.stats.resident_bytes += self._bytes(chunk)

    def _bytes(self, chunk: int) -> int:
        count = min(CHUNK_ROWS, len(self._rows) - chunk * CHUNK_ROWS)
        return 4 * self._rows.dim * count


class Segments:
    """The lowest tier: the mapped segments. One thread at a time."""

    def __init__(self, rows: Rows) -> None:
        self.moved_bytes = 0
        self._rows = rows
        self._copy: Copier | None = None  # once all rows are verified

    def gather(self, rows: Selection, out: Float32s) -> None:
        """Copy mu of these rows to *out*."""
        if isinstance(rows, slice) or self._copy is None or not self._copy(rows, out):
            self._rows.gather_checked("mu", rows, out)
            if self._copy is None:
                self._copy = copier_of(self._rows, "mu")
        self.moved_bytes += out.nbytes


def warm_tier(rows: Rows, budget_bytes: int, below: Gather) -> Tier | None:
    """The RAM tier of a stream, or None when the budget holds no chunk."""
    slots = slots_of(rows, budget_bytes)
    if not slots:
        return None
    slab = RamSlab(slots * CHUNK_ROWS, rows.dim)
    return Tier(rows, slab, slots, below, budget_bytes=budget_bytes)


def hot_tier(rows: Rows, budget_bytes: int, below: Gather, device: Any) -> Tier | None:
    """The tier in the memory of a torch device, or None when the budget holds no chunk."""
    slots = slots_of(rows, budget_bytes)
    if not slots:
        return None
    from mldb.lake.rows.torch_slab import TorchSlab

    slab = TorchSlab(slots * CHUNK_ROWS, rows.dim, device)
    return Tier(rows, slab, slots, below, budget_bytes=budget_bytes)


def slots_of(rows: Rows, budget_bytes: int) -> int:
    """How many chunks fit in *budget_bytes*, as far as there are any. Raises InvalidValueError."""
    if budget_bytes < 0:
        raise InvalidValueError(f"a tier of {budget_bytes} bytes")
    return min(budget_bytes // (4 * rows.dim * CHUNK_ROWS), _chunks(rows))


def _chunks(rows: Rows) -> int:
    return -(-len(rows) // CHUNK_ROWS)
