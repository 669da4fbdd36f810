"""The tiers that rows are read from: mapped segments (cold), RAM (warm), device memory (hot).

A tier holds strata, runs of 4,096 rows by number. What a stratum holds is decided by row numbers
alone, so tiers change what is moved and never what is read.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, Protocol

import numpy as np
import numpy.typing as npt

from mldb.errors import InvalidValueError
from mldb.lake.block import Numbers, Selection
from mldb.lake.rows import Rows

STRATUM_ROWS: Final = 4096
_REPLACE_FROM: Final = STRATUM_ROWS // 32  # a batch that asks for fewer rows pushes nothing out

Floats = npt.NDArray[np.float32]


@dataclass(slots=True)
class TierStats:
    """What one tier did. ``moved_bytes`` came in from the tier below; hits and misses are rows."""

    budget_bytes: int = 0
    resident_bytes: int = 0
    hits: int = 0
    misses: int = 0
    moved_bytes: int = 0
    evicted: int = 0


Gather = Callable[[Selection, Floats], object]
"""Writes mu of rows to a host array: the segments, or the tier below."""


class Slab(Protocol):
    """Memory for strata, in RAM or on a device. What it writes to lives where it does."""

    def fill(self, row: int, data: Floats) -> None:
        """Copy host rows in, from row number *row* of the slab on."""

    def take(self, rows: Numbers, out: Any, places: Numbers | None = None) -> None:
        """Write rows of the slab to *out*, or to *places* in it."""

    def put(self, data: Floats, out: Any, places: Numbers) -> None:
        """Write host rows to *places* in *out*."""


class RamSlab:
    """A slab of host memory. One thread at a time."""

    def __init__(self, rows: int, dim: int) -> None:
        self._memory = np.empty((rows, dim), np.float32)

    def fill(self, row: int, data: Floats) -> None:
        """Copy rows in."""
        self._memory[row : row + len(data)] = data

    def take(self, rows: Numbers, out: Any, places: Numbers | None = None) -> None:
        """Gather rows to *out*, a NumPy array."""
        if places is None:
            np.take(self._memory, rows, 0, out=out, mode="clip")
        else:
            out[places] = self._memory[rows]

    def put(self, data: Floats, out: Any, places: Numbers) -> None:
        """Write rows to *places*."""
        out[places] = data


class Tier:
    """One tier above the segments: strata in a slab, the least recently used one leaves first.

    One thread at a time (that of the stream). A stratum comes in when there is room, or when one
    batch asks for enough of its rows to be worth the eviction; other rows are read from below.
    """

    def __init__(self, rows: Rows, slab: Slab, budget_bytes: int, below: Gather) -> None:
        self.stats = TierStats(budget_bytes=budget_bytes)
        self._rows = rows
        self._slab = slab
        self._below = below
        strata = -(-len(rows) // STRATUM_ROWS)
        self._slots = min(slots_of(budget_bytes, rows.dim), strata)
        self._slot = np.full(strata, -1, np.int64)  # of every stratum
        self._holder = np.full(self._slots, -1, np.int64)  # the stratum in every slot
        self._used = np.zeros(self._slots, np.int64)  # when it was last asked for
        self._clock = 0

    def gather(self, rows: Selection, out: Any) -> None:
        """Write mu of these rows to *out*, which lives where the slab does."""
        if isinstance(rows, slice):
            rows = np.arange(rows.start, rows.stop)
        strata = rows // STRATUM_ROWS
        wanted, counts = np.unique(strata, return_counts=True)
        self._clock += 1
        self._admit(wanted, counts)
        slots = self._slot[strata]
        here = np.flatnonzero(slots >= 0)
        self.stats.hits += len(here)
        places = slots * STRATUM_ROWS + rows % STRATUM_ROWS
        if len(here) == len(rows):
            self._slab.take(places, out)
            return
        self._slab.take(places[here], out, here)
        away = np.flatnonzero(slots < 0)
        self.stats.misses += len(away)
        self._slab.put(self._read(rows[away], len(away)), out, away)

    def _read(self, rows: Selection, count: int) -> Floats:
        part = np.empty((count, self._rows.dim), np.float32)
        self._below(rows, part)
        return part

    def _admit(self, wanted: Numbers, counts: Numbers) -> None:
        """Bring in what is asked for and worth it; note what is used."""
        there = self._slot[wanted] >= 0
        self._used[self._slot[wanted[there]]] = self._clock
        for stratum, count in zip(wanted[~there].tolist(), counts[~there].tolist(), strict=True):
            slot = int(np.argmin(self._used)) if self._slots else -1
            if slot < 0 or self._used[slot] == self._clock:
                return  # all of it is in use by this very batch
            if self._holder[slot] >= 0:
                if count < _REPLACE_FROM:
                    continue
                self._evict(slot)
            self._load(stratum, slot)

    def _evict(self, slot: int) -> None:
        stratum = int(self._holder[slot])
        self.stats.evicted += 1
        self.stats.resident_bytes -= self._bytes(stratum)
        self._slot[stratum] = -1

    def _load(self, stratum: int, slot: int) -> None:
        low = stratum * STRATUM_ROWS
        high = min(low + STRATUM_ROWS, len(self._rows))
        self._slab.fill(slot * STRATUM_ROWS, self._read(slice(low, high), high - low))
        self._slot[stratum], self._holder[slot] = slot, stratum
        self._used[slot] = self._clock
        self.stats.moved_bytes += self._bytes(stratum)
        self.stats.resident_bytes += self._bytes(stratum)

    def _bytes(self, stratum: int) -> int:
        count = min(STRATUM_ROWS, len(self._rows) - stratum * STRATUM_ROWS)
        return 4 * self._rows.dim * count


def slots_of(budget_bytes: int, dim: int) -> int:
    """How many strata fit in *budget_bytes*. Raises InvalidValueError."""
    if budget_bytes < 0:
        raise InvalidValueError(f"a tier of {budget_bytes} bytes")
    return budget_bytes // (4 * dim * STRATUM_ROWS)


def warm_tier(rows: Rows, budget_bytes: int) -> Tier | None:
    """The RAM tier of a stream, or None when the budget holds no stratum."""
    count = _slab_rows(rows, budget_bytes)
    if not count:
        return None
    return Tier(rows, RamSlab(count, rows.dim), budget_bytes, segments_of(rows))


def hot_tier(rows: Rows, budget_bytes: int, below: Gather, device: Any) -> Tier | None:
    """The tier in the memory of a torch device, or None when the budget holds no stratum."""
    count = _slab_rows(rows, budget_bytes)
    if not count:
        return None
    from mldb.lake.torch_slab import TorchSlab

    return Tier(rows, TorchSlab(count, rows.dim, device), budget_bytes, below)


def segments_of(rows: Rows) -> Gather:
    """The lowest tier: the mapped segments."""

    def gather(chosen: Selection, out: Floats) -> None:
        rows.gather("mu", chosen, out)

    return gather


def _slab_rows(rows: Rows, budget_bytes: int) -> int:
    strata = -(-len(rows) // STRATUM_ROWS)
    return min(slots_of(budget_bytes, rows.dim), strata) * STRATUM_ROWS
