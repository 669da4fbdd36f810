"""One run on one state of a lake: its rows as the algorithm takes them, and what it merges."""

from __future__ import annotations

from collections.abc import Callable
from math import isqrt
from time import perf_counter
from typing import Any, Final

import numpy as np

from mldb.arrays import Float32s, Numbers
from mldb.compaction.soc.avalanches import AvalancheStats
from mldb.compaction.soc.rows import SplatRows
from mldb.compaction.soc.scheduler import carried_stress, topple_arrivals
from mldb.compaction.soc.sweep import Merges, exact_search, sweep_rows
from mldb.deferred import dataclass
from mldb.lake.augment.graph_store import GRAPH_NEIGHBOURS, lake_graph
from mldb.lake.consolidation.settings import ConsolidationPolicy, kept_rows
from mldb.lake.consolidation.told import AVALANCHES, arrivals_since, told_stress
from mldb.lake.rows.live import Rows
from mldb.sphere.approximate import approximate_nearest
from mldb.sphere.graph import EXACT_ROWS_MAX, build_graph
from mldb.sphere.neighbours import Neighbours
from mldb.sphere.vmf import KAPPA_MAX

_FEW_ROOTS: Final = 4  # times the root of N: so few queries are compared with all rows


@dataclass(frozen=True, slots=True, eq=False)
class StressTold:
    """What a run tells of stress: grains of the rows made, and of others by id, ascending."""

    made: Numbers
    ids: Numbers
    grains: Numbers
    is_whole: bool


@dataclass(frozen=True, slots=True, eq=False)
class PlannedMerges:
    """What a run on *rows* would do. ``stress`` is None for a sweep.

    ``run`` are the settings that are stored with it.
    """

    rows: Rows
    splats: SplatRows
    merges: Merges
    run: dict[str, Any]
    stress: StressTold | None = None
    arrivals: int = 0
    avalanches: AvalancheStats | None = None
    is_relaxed: bool = True

    @property
    def changes(self) -> bool:
        """Whether there is anything to store."""
        told = self.stress
        return len(self.merges) > 0 or (
            told is not None and (self.arrivals > 0 or len(told.ids) > 0)
        )


def plan_run(
    rows: Rows,
    settings: ConsolidationPolicy,
    target_keep: float | None,
    pause: Callable[[], None] = lambda: None,
) -> PlannedMerges:
    """Run the method of *settings* on a state. Raises InvalidValueError, CorruptError.

    *pause* is called now and then: it may wait, or raise to give up.
    """

    def search(queries: Float32s, base: Float32s, k: int, exclude: Numbers) -> Neighbours:
        pause()
        return lake_search(queries, base, k, exclude)

    if settings.method == "sandpile":
        return _plan_sandpile(rows, settings, pause)
    keep = kept_rows(target_keep, len(rows))
    splats = splat_rows(rows)
    merges = sweep_rows(
        splats,
        min_cos=settings.min_cos,
        keep=keep,
        k=settings.k,
        seed=settings.seed,
        search=search,
    )
    run = _run(rows, settings, ("min_cos", "k", "seed"))
    return PlannedMerges(
        rows, splats, merges, run | {"target_keep": target_keep, "level": merges.level}
    )


def splat_rows(rows: Rows) -> SplatRows:
    """Return the live rows of a state, as the algorithm takes them; mu is not copied if it can."""
    every = slice(0, len(rows))
    norm, kappa, alpha, min_cos = (
        rows.gather(name, every).astype(np.float64)
        for name in ("norm", "kappa", "alpha", "min_cos")
    )
    has_labels = "label" in rows.columns
    labels = rows.gather("label", every) if has_labels else np.zeros(len(rows), np.int64)
    kappa = np.minimum(kappa, KAPPA_MAX)
    return SplatRows(rows.table(), norm, kappa, alpha, min_cos, labels, rows.ids())


def lake_search(queries: Float32s, base: Float32s, k: int, exclude: Numbers) -> Neighbours:
    """Neighbours of all pairs while these are few enough, else by lists of near rows."""
    few = len(queries) <= _FEW_ROOTS * isqrt(len(base))
    if len(base) <= EXACT_ROWS_MAX or few:
        return exact_search(queries, base, k, exclude)
    found, _ = approximate_nearest(base, k)
    return Neighbours(found.rows[exclude], found.cosines[exclude])


def _run(rows: Rows, settings: ConsolidationPolicy, names: tuple[str, ...]) -> dict[str, Any]:
    chosen = {name: getattr(settings, name) for name in names}
    return {"method": settings.method, **chosen, "seen": rows.state.version}


def _plan_sandpile(
    rows: Rows, settings: ConsolidationPolicy, pause: Callable[[], None]
) -> PlannedMerges:
    started = perf_counter()
    splats, before = splat_rows(rows), told_stress(rows)
    arrivals = arrivals_since(rows, before.seen)
    links, cosines = _links(rows, splats.mu, settings.k)
    searched = perf_counter() - started
    carried = carried_stress(settings.seed, splats.ids, settings.k)
    stress = _known(splats.ids, before.ids, before.grains, carried)
    done = topple_arrivals(
        splats,
        links,
        cosines,
        arrivals,
        stress=stress,
        residue=before.residue,
        min_cos=settings.min_cos,
        p=settings.p,
        random_links=settings.random_links,
        seed=settings.seed,
        budget=settings.budget,
        pause=pause,
    )
    merges = done.merges
    left = np.ones(len(rows), np.bool_)
    left[merges.sources] = False
    moved = left & (done.stress != stress)
    is_whole = before.told + int(moved.sum()) + len(merges) > merges.kept
    told = np.flatnonzero(left & (done.stress != carried) if is_whole else moved)
    told = told[np.argsort(splats.ids[told])]
    first = merges.sources[merges.starts[:-1]]
    run = _run(rows, settings, ("min_cos", "k", "seed", "p", "random_links", "budget"))
    return PlannedMerges(
        rows,
        splats,
        _timed(merges, searched),
        run
        | {"residue": done.residue, "arrivals": len(arrivals)}
        | {AVALANCHES: " ".join(map(str, done.size_counts))},
        StressTold(done.stress[first], splats.ids[told], done.stress[told], is_whole),
        len(arrivals),
        done.avalanches,
        done.is_relaxed,
    )


def _timed(merges: Merges, searched: float) -> Merges:
    return Merges(
        *(merges.sources, merges.starts, merges.made, merges.kept, merges.tries, 1, merges.level),
        merges.seconds + searched,
        searched,
    )


def _links(rows: Rows, mu: Float32s, k: int) -> tuple[Numbers, Float32s]:
    """The neighbours of every row, [N, k]; NONE where there are fewer."""
    graph = lake_graph(rows, mu) if k <= GRAPH_NEIGHBOURS else build_graph(mu, k)
    width = min(k, graph.neighbours.shape[1])
    links = np.full((len(mu), k), -1, np.int64)
    cosines = np.full((len(mu), k), -2, np.float32)
    links[:, :width] = graph.neighbours[:, :width]
    cosines[:, :width] = graph.cosines[:, :width]
    return links, cosines


def _known(ids: Numbers, told: Numbers, grains: Numbers, otherwise: Numbers) -> Numbers:
    """The grains that were told of each id, else what it carries."""
    if not len(told):
        return otherwise.copy()
    place = np.minimum(np.searchsorted(told, ids), len(told) - 1)
    return np.where(told[place] == ids, grains[place], otherwise)
