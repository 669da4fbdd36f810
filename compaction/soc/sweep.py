"""The batch: every site once and again until nothing merges, under a cap on the certificate.

It is the plain greedy form of the sandpile, which passes no stress on: as many splats are kept, for
a sixth of the topplings. A pass finds neighbours, sweeps until every site is clean, and re-tightens
the certificates from the members, since the bound widens with every merge; passes follow until one
merges nothing. Neighbours are found anew only for sites that merged or had a neighbour that did.
"""

from __future__ import annotations

from time import perf_counter
from typing import Final

import numpy as np

from mldb.arrays import Float32s, Numbers
from mldb.compaction.soc.active import ActiveSplats, Search, largest_angle
from mldb.compaction.soc.merging import MergedGroups, merge_groups
from mldb.compaction.soc.rows import SplatRows
from mldb.compaction.soc.seeded import check_mix_seed, seeded_order
from mldb.deferred import dataclass
from mldb.errors import InvalidValueError
from mldb.integers import integer
from mldb.sphere.neighbours import Neighbours, nearest

LEVELS: Final = (0.995, 0.98, 0.95, 0.9, 0.8, 0.65, 0.5, 0.3, 0.0)
"""Caps that are tried one after the other where a number of splats is asked for."""
NEIGHBOURS_MAX: Final = 1 << 10


def exact_search(queries: Float32s, base: Float32s, k: int, exclude: Numbers) -> Neighbours:
    """The nearest rows of all pairs: a :data:`~mldb.compaction.soc.active.Search`."""
    return nearest(queries, base, k, exclude=exclude)


def check_width(k: object) -> int:
    """Return a number of neighbours. Raises InvalidTypeError, InvalidValueError."""
    width = integer("k", k)
    if not 1 <= width <= NEIGHBOURS_MAX:
        raise InvalidValueError(f"k={width} neighbours is outside 1 .. {NEIGHBOURS_MAX}")
    return width


@dataclass(frozen=True, slots=True, eq=False)
class Merges:
    """What a run merges. ``sources[starts[g] : starts[g + 1]]`` are the rows of merge g, ascending.

    ``made`` are the splats made, their ``cosines`` with the furthest source and ``heaviest``
    source. ``kept`` counts the splats afterwards, ``tries`` the sites looked at (topplings), and
    ``passes`` the searches for neighbours, which took ``search_seconds`` of ``seconds``. ``level``
    is the cap that the last merges had.
    """

    sources: Numbers
    starts: Numbers
    made: MergedGroups
    kept: int
    tries: int
    passes: int
    level: float
    seconds: float
    search_seconds: float

    def __len__(self) -> int:
        """The number of merged splats."""
        return len(self.starts) - 1


def sweep_rows(
    rows: SplatRows,
    *,
    min_cos: float = 0.97,
    keep: int | None = None,
    k: int = 16,
    seed: int = 0,
    search: Search = exact_search,
) -> Merges:
    """Merge what lies within *min_cos* of its merged mean, never across labels.

    *keep*: merge on until so many splats are left, under caps that widen step by step (LEVELS), be
    they wider than *min_cos* or not. *k*: neighbours of a splat that are looked at. The same
    arguments give the same merges, byte for byte. Raises InvalidValueError, InvalidTypeError.
    """
    rows.check()
    check_width(k)
    check_mix_seed(seed)
    if keep is not None and integer("keep", keep) < 0:
        raise InvalidValueError(f"keep={keep} splats; give a number from 0")
    levels = (min_cos,) if keep is None else LEVELS
    sweep = _Sweep(rows, k, seed, search, 0 if keep is None else int(keep))
    started = perf_counter()
    for level in levels:
        sweep.merge_under(largest_angle(level), level)
        if sweep.is_done:
            break
    return sweep.merges(started)


class _Sweep:
    """One run of the batch. One thread, used once."""

    def __init__(self, rows: SplatRows, k: int, seed: int, search: Search, keep: int) -> None:
        self._active = ActiveSplats(rows, min(k, max(len(rows) - 1, 1)))
        self._seed, self._search, self._keep = seed, search, keep
        self._turn = 0
        self._passes = 0
        self._level = 1.0
        self._search_seconds = 0.0
        self._stale: Numbers = np.arange(len(rows))

    @property
    def is_done(self) -> bool:
        """Whether as few are left as were asked for."""
        return self._active.count <= self._keep

    def merge_under(self, cap: float, level: float) -> None:
        """Merge until a whole pass merges nothing, or few enough are left."""
        active = self._active
        self._level = level
        while not self.is_done:
            self._find_neighbours()
            active.mark_clean(cap)
            before = active.count
            while not self.is_done and self._sweep(cap):
                pass
            if active.count == before:
                return
            active.tighten()
            self._stale = active.take_stale()

    def _find_neighbours(self) -> None:
        started = perf_counter()
        if len(self._stale):
            self._active.refresh(self._stale, self._search)
            self._passes += 1
        self._stale = self._stale[:0]
        self._search_seconds += perf_counter() - started

    def _sweep(self, cap: float) -> bool:
        """Look at every site that is not clean once; return whether there was any."""
        active = self._active
        sites = np.flatnonzero(active.is_alive & ~active.is_clean)
        order = seeded_order(self._seed, self._turn, active.rows.ids[sites])
        self._turn += 1
        for site in sites[order].tolist():
            if active.is_alive[site] and not active.is_clean[site]:
                active.merge_best(site, cap)
                if self.is_done:
                    break
        return len(sites) > 0

    def merges(self, started: float) -> Merges:
        """What was merged."""
        active = self._active
        sources, starts = active.groups()
        made = merge_groups(active.rows, sources, starts)
        seconds = perf_counter() - started
        return Merges(
            sources,
            starts,
            made,
            active.count,
            active.tries,
            self._passes,
            self._level,
            seconds,
            self._search_seconds,
        )
