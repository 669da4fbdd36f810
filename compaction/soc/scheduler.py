"""Compaction where mass arrives: a sandpile on the neighbour graph whose topplings merge.

A row that arrives carries grains, by its id, as if it had stood at rest in the pile all along, and
puts one on the splat nearest to it. A site that topples passes its grains on and merges with its
best eligible neighbour. So work is done where rows come in, about 1/(k p) topplings a row. With one
grain a row, and none carried, compaction would starve.

A share of the links of stress leads anywhere, which keeps a graph full of near-copies critical;
merges are among true neighbours alone. Nothing is lost when a run ends at its budget: sites that
are still unstable are so in the stress that it leaves, and topplings of stress commute.
"""

from __future__ import annotations

from collections.abc import Callable
from time import perf_counter
from typing import Final

import numpy as np

from mldb.arrays import Float32s, Numbers
from mldb.compaction.soc.active import NONE, ActiveSplats, largest_angle
from mldb.compaction.soc.avalanches import AvalancheStats, avalanche_stats, size_counts
from mldb.compaction.soc.merging import merge_groups
from mldb.compaction.soc.rows import SplatRows
from mldb.compaction.soc.sandpile import Sandpile
from mldb.compaction.soc.seeded import check_mix_seed, mix, seeded_order
from mldb.compaction.soc.sweep import Merges, check_width
from mldb.deferred import dataclass
from mldb.errors import InvalidValueError

DEFAULT_LOSS: Final = 0.02
DEFAULT_RANDOM_LINKS: Final = 0.1
STRESS_MAX: Final = (1 << 31) - 1

# What the bits of an id are mixed for; sweeps take the turns from 0 on.
_CARRIED: Final = 1 << 40
_REWIRED: Final = 2 << 40
_TARGET: Final = 3 << 40
_ARRIVAL: Final = 4 << 40


@dataclass(frozen=True, slots=True, eq=False)
class Toppled:
    """What a run of the scheduler left.

    merges:    the splats made of rows that were at hand.
    stress:    int64 [N], grains of every row; of an absorbed one 0, those of a splat made on the
               first of its sources.
    residue:   the counter of losses.
    avalanches: of the arrivals, and ``is_relaxed``, whether none is still unstable.
    size_counts: how many of them took no toppling, 1, 2 to 3, 4 to 7, and so on by powers of two.
    """

    merges: Merges
    stress: Numbers
    residue: int
    lost: int
    avalanches: AvalancheStats
    is_relaxed: bool
    size_counts: tuple[int, ...] = ()


def carried_stress(seed: int, ids: Numbers, k: int) -> Numbers:
    """Return the grains that rows bring along, int64 [n], 0 to k - 1 by seed and id.

    Spread evenly, as they nearly are in a sandpile at rest.
    """
    return (mix(seed, _CARRIED, ids) % np.uint64(k)).astype(np.int64)


def topple_arrivals(
    rows: SplatRows,
    links: Numbers,
    cosines: Float32s,
    arrivals: Numbers,
    *,
    stress: Numbers | None = None,
    residue: int = 0,
    min_cos: float = 0.97,
    p: float = DEFAULT_LOSS,
    random_links: float = DEFAULT_RANDOM_LINKS,
    seed: int = 0,
    budget: int | None = None,
    pause: Callable[[], None] = lambda: None,
) -> Toppled:
    """Let rows arrive and topple: merges within *min_cos*, never across labels.

    *links* int64 [N, k] are the neighbours of each row, of any label, nearest first, NONE where
    there are fewer; *cosines* float32 [N, k] theirs. *arrivals*: the rows that came since the last
    run, which left *stress* int64 [N] (None: what the rows carry) and *residue*. *p*: the share of
    grains that is lost; *random_links*: that of links of stress which lead anywhere. *budget*: the
    most topplings of this run. *pause* is called between arrivals: it may wait, or raise to give
    up. The same arguments give the same result, byte for byte. Raises
    InvalidValueError, InvalidTypeError.
    """
    rows.check()
    check_mix_seed(seed)
    if links.shape != cosines.shape or links.ndim != 2 or len(links) != len(rows):
        raise InvalidValueError(f"links of shape {links.shape} for {len(rows)} rows")
    if not 0 <= random_links <= 1:  # NaN is not
        raise InvalidValueError(f"random_links={random_links} is no share; give 0 to 1")
    if budget is not None and budget < 0:
        raise InvalidValueError(f"budget={budget} topplings; give a number from 0, or None")
    check_width(links.shape[1])
    started = perf_counter()
    run = _Run(rows, links, cosines, largest_angle(min_cos), random_links, seed)
    if stress is None:
        stress = carried_stress(seed, rows.ids, links.shape[1])
    pile = run.pile_of(stress, p, residue)
    sizes = _drive(pile, run, arrivals, budget, pause)
    active = run.active
    sources, starts = active.groups()
    made = merge_groups(rows, sources, starts)
    took = perf_counter() - started
    merges = Merges(
        sources, starts, made, active.count, pile.topplings, 0, min_cos, took, search_seconds=0.0
    )
    every = np.array(sizes, np.int64)
    return Toppled(
        merges,
        np.minimum(np.array(pile.stress, np.int64), STRESS_MAX),
        pile.residue,
        pile.lost,
        avalanche_stats(every, k=links.shape[1], p=p),
        pile.is_stable,
        size_counts(every),
    )


def _drive(
    pile: Sandpile,
    run: _Run,
    arrivals: Numbers,
    budget: int | None,
    pause: Callable[[], None],
) -> list[int]:
    """Put down the grains of all arrivals; topple after each while the budget lasts."""
    ids = run.active.rows.ids[arrivals]
    left = budget
    taken = pile.relax(left)  # what the run before left
    sizes: list[int] = []
    for row in arrivals[seeded_order(run.seed, _ARRIVAL, ids)].tolist():
        pause()
        left = None if budget is None else budget - taken
        target = run.nearest(row)
        if target != NONE:
            pile.add(target)
        size = pile.relax(left)
        taken += size
        if budget is None or taken < budget:
            sizes.append(size)  # one that was cut off says nothing
    return sizes


class _Run:
    """The graph of one run: true neighbours to merge with, and where stress goes. One thread."""

    def __init__(
        self,
        rows: SplatRows,
        links: Numbers,
        cosines: Float32s,
        cap: float,
        random_links: float,
        seed: int,
    ) -> None:
        self.active = ActiveSplats(rows, links.shape[1])
        self.seed = seed
        self._cap = cap
        self._near = links
        same = (links >= 0) & (rows.labels[links] == rows.labels[:, None])
        self.active.links[:] = np.where(same, links, NONE)
        self.active.cosines[:] = np.where(same, cosines, np.float32(-2))
        self.active.mark_clean(cap)
        self._anywhere = _rewired(rows.ids, links, random_links, seed)

    def nearest(self, row: int) -> int:
        """The splat nearest to a row that arrived: of its own label, if one is linked."""
        active = self.active
        for link in (*active.links[row].tolist(), *self._near[row].tolist()):
            if link != NONE:
                site = active.site_of(link)
                if site != active.site_of(row):
                    return site
        return NONE

    def pile_of(self, stress: Numbers, p: float, residue: int) -> Sandpile:
        """The pile on this graph."""
        self.pile = Sandpile(
            (),
            stress.tolist(),
            threshold=self._near.shape[1],
            p=p,
            residue=residue,
            toppled=self._toppled,
            links_of=self._links_of,
        )
        return self.pile

    def _links_of(self, site: int) -> list[int]:
        """Where the grains of a site go: to what its neighbours have become, or anywhere."""
        active = self.active
        near = active.links[site] if active.has_absorbed[site] else self._near[site]
        far = self._anywhere[site]
        links = [
            far_link if far_link != NONE or link == NONE else link
            for link, far_link in zip(near.tolist(), far.tolist(), strict=True)
        ]
        return [NONE if link == NONE else active.site_of(link) for link in links]

    def _toppled(self, site: int) -> None:
        active = self.active
        if active.is_alive[site] and not active.is_clean[site]:
            merged = active.merge_best(site, self._cap)
            if merged is not None:
                self.pile.join(*merged)


def _rewired(ids: Numbers, links: Numbers, share: float, seed: int) -> Numbers:
    """Where links of stress lead anywhere, a row; NONE for those that stay. Missing ones do not.

    By the ids of both ends' places in the order of ids, so that a row's number changes nothing.
    """
    count, width = links.shape
    out = np.full((count, width), NONE, np.int64)
    by_id = np.argsort(ids, kind="stable")
    border = np.uint64(min(int(share * 2.0**32), (1 << 32) - 1))
    for slot in range(width):
        chance = mix(seed, _REWIRED + slot, ids) >> np.uint64(32)
        target = by_id[(mix(seed, _TARGET + slot, ids) % np.uint64(max(count, 1))).astype(np.int64)]
        wanted = (chance < border) | (links[:, slot] == NONE)
        out[wanted, slot] = target[wanted]
    return out
