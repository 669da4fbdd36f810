"""Splats while a pass runs: which are still there, their moments, certificates and neighbours.

A splat is known by its *site*, the number of the row it was. Of two that merge the smaller site
goes on. What is kept here decides what merges; the merged splats themselves are made of their
sources at the end (``merging.merge_groups``), so that no rounding depends on the order of merges.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, TypeAlias

import numpy as np
import numpy.typing as npt

from mldb.arrays import Bools, Float32s, Float64s, Numbers
from mldb.compaction.soc.merging import CANCELLED, moment_lengths, radii, row_angles
from mldb.compaction.soc.rows import SplatRows
from mldb.errors import InvalidValueError
from mldb.sphere.neighbours import Neighbours

Search: TypeAlias = Callable[[Float32s, Float32s, int, Numbers], Neighbours]
"""From queries [Q, d], a base [N, d], k and the row of the base that each query is, to the k
other rows of the base nearest to each, as ``mldb.sphere.neighbours.nearest`` does."""

NONE: Final = -1
SLACK: Final = 2e-6
"""Radians that a plan stays below the cap, for rounded means and sums of their angles."""
_FLOAT32_STEPS: Final = 2e-7  # of a cosine: certificates are rounded down to float32
_COSINE_SLACK: Final = 1e-5  # of float32 cosines that leave out what cannot merge
_CHUNK: Final = 1 << 14


def largest_angle(min_cos: float) -> float:
    """Return the largest radius that a plan lets a splat have under the cap *min_cos*.

    Raises InvalidValueError for what is no cap.
    """
    if isinstance(min_cos, bool) or not isinstance(min_cos, int | float | np.floating):
        raise InvalidValueError(f"min_cos is {min_cos!r}; give a cosine from 0 up to, not with, 1")
    if not 0 <= min_cos < 1:  # NaN is not
        raise InvalidValueError(
            f"min_cos={min_cos} is not from 0 up to, not with, 1; 0.9999 merges equal rows alone"
        )
    return max(float(np.arccos(min(min_cos + _FLOAT32_STEPS, 1.0))) - SLACK, SLACK)


class ActiveSplats:
    """The splats of one pass. One thread.

    ``links`` int64 [N, k] are the neighbours of each site as last seen, of its own label, NONE
    where there are fewer; sites in them may have been absorbed since (:meth:`site_of`).
    """

    def __init__(self, rows: SplatRows, width: int) -> None:
        """*width* is k, how many neighbours of a splat are looked at."""
        self.rows = rows
        self.count = len(rows)
        self.means = rows.mu.copy()
        self.is_alive: Bools = np.ones(len(rows), np.bool_)
        self.is_clean: Bools = np.zeros(len(rows), np.bool_)
        self.has_absorbed: Bools = np.zeros(len(rows), np.bool_)
        self.is_moved: Bools = np.zeros(len(rows), np.bool_)  # since neighbours were found
        self.links: Numbers = np.full((len(rows), width), NONE, np.int64)
        self.cosines: Float32s = np.full((len(rows), width), -2, np.float32)
        self.alpha: Float64s = rows.alpha.copy()
        self.length = moment_lengths(rows)  # of the first moment of each
        self.rad = radii(rows.min_cos)
        self.tries = 0
        self._norms = _norms_of(self.means)
        self._moments: dict[int, Float64s] = {}
        self._parent = list(range(len(rows)))

    # --- who is who -------------------------------------------------------------------------------

    def site_of(self, site: int) -> int:
        """The site that *site* was merged into, or itself."""
        parent = self._parent
        while parent[site] != site:
            parent[site] = parent[parent[site]]
            site = parent[site]
        return site

    def groups(self) -> tuple[Numbers, Numbers]:
        """The merges so far: source rows, and the start of each group with the end of the last.

        Groups by site, and the sources of each in ascending order; sites of one row are left out.
        """
        merged = np.flatnonzero(self.has_absorbed & self.is_alive)
        roots = self._roots()
        sources = np.flatnonzero(np.isin(roots, merged))
        sources = sources[np.argsort(roots[sources], kind="stable")]
        starts = np.flatnonzero(np.diff(roots[sources], prepend=NONE))
        return sources, np.append(starts, len(sources))

    def _roots(self) -> Numbers:
        parent = np.array(self._parent, np.int64)
        while True:
            above = parent[parent]
            if np.array_equal(above, parent):
                return parent
            parent = above

    # --- merging ----------------------------------------------------------------------------------

    def merge_best(self, site: int, cap: float) -> tuple[int, int] | None:
        """Merge *site* with its best eligible neighbour; return who goes on and who is absorbed.

        Eligible are those whose union has a radius of at most *cap*; the best has the largest mean
        resultant |S|/alpha, of equal ones the smallest site. Without one *site* is clean: None.
        """
        self.tries += 1
        others = self._neighbours_of(site)
        if len(others):
            found = self._judge(site, others, cap)
            if found is not None:
                kept, gone = min(site, found[0]), max(site, found[0])
                self._absorb(kept, gone, found[1])
                return kept, gone
        self.is_clean[site] = True
        return None

    def _neighbours_of(self, site: int) -> Numbers:
        """The live sites that are linked, ascending."""
        links = self.links[site]
        found = {self.site_of(link) for link in links[links >= 0].tolist()}
        found.discard(site)
        return np.array(sorted(found), np.int64)

    def _cosines_to(self, site: int, others: Numbers) -> Float64s:
        products = self.means[others].astype(np.float64) @ self.means[site].astype(np.float64)
        cosines: Float64s = products / (self._norms[others] * self._norms[site])
        return cosines

    def _judge(self, site: int, others: Numbers, cap: float) -> tuple[int, float] | None:
        """The best eligible of *others* and the radius of the union."""
        angle = np.arccos(np.clip(self._cosines_to(site, others), -1, 1))
        radius, resultant = self._unions(np.full(len(others), site), others, angle)
        resultant[~(radius <= cap)] = -1
        best = int(np.argmax(resultant))
        return None if resultant[best] < 0 else (int(others[best]), float(radius[best]))

    def _unions(self, one: Numbers, two: Numbers, angle: Float64s) -> tuple[Float64s, Float64s]:
        """The radius and the mean resultant of the union of each pair, *angle* apart."""
        a, b = self.length[one], self.length[two]
        along, across = b * np.cos(angle), b * np.sin(angle)
        total = np.hypot(a + along, across)
        turn = np.arctan2(across, a + along)  # from the mean of one to that of the union
        radius = np.maximum(self.rad[one] + turn, self.rad[two] + (angle - turn))
        radius[total <= CANCELLED * (a + b)] = np.inf
        return radius, total / (self.alpha[one] + self.alpha[two])

    def _absorb(self, kept: int, gone: int, radius: float) -> None:
        total = self._moment(kept) + self._moment(gone)
        length = float(np.sqrt(total @ total))
        links = np.array(
            sorted({*self._neighbours_of(kept).tolist(), *self._neighbours_of(gone).tolist()}
                   - {kept, gone}), np.int64)  # fmt: skip
        self._parent[gone] = kept
        self._moments.pop(gone, None)
        self._moments[kept] = total
        self.is_alive[gone], self.is_clean[kept] = False, False
        self.is_moved[kept] = self.is_moved[gone] = self.has_absorbed[kept] = True
        self.means[kept] = total / length
        self._norms[kept] = _norms_of(self.means[kept : kept + 1])[0]
        self.length[kept], self.rad[kept] = length, radius
        self.alpha[kept] += self.alpha[gone]
        self.count -= 1
        self._set_links(kept, links, self._cosines_to(kept, links))

    def _moment(self, site: int) -> Float64s:
        found = self._moments.get(site)
        if found is not None:
            return found
        scale = self.length[site] / self._norms[site]
        moment: Float64s = self.means[site].astype(np.float64) * scale
        return moment

    def _set_links(self, site: int, others: Numbers, cosines: Float64s) -> None:
        best = np.argsort(-cosines, kind="stable")[: self.links.shape[1]]
        self.links[site], self.cosines[site] = NONE, -2
        self.links[site, : len(best)] = others[best]
        self.cosines[site, : len(best)] = cosines[best]

    # --- between passes ---------------------------------------------------------------------------

    def refresh(self, sites: Numbers, search: Search) -> None:
        """Find the neighbours of live *sites*, one or more, anew among live ones of their label."""
        alive = np.flatnonzero(self.is_alive)
        labels = self.rows.labels
        alive = alive[np.argsort(labels[alive], kind="stable")]
        starts = np.flatnonzero(np.diff(labels[alive], prepend=labels[alive[0]] - 1))
        wanted = np.zeros(len(self.rows), np.bool_)
        wanted[sites] = True
        self.links[sites], self.cosines[sites] = NONE, -2
        for base in np.split(alive, starts[1:]):
            asked = np.flatnonzero(wanted[base])
            width = min(self.links.shape[1], len(base) - 1)
            if not len(asked) or not width:
                continue
            table = self.means if len(base) == len(self.rows) else self.means[base]
            queries = table if len(asked) == len(base) else table[asked]
            found = search(queries, table, width, asked)
            self.links[base[asked], :width] = base[found.rows]
            self.cosines[base[asked], :width] = found.cosines

    def take_stale(self) -> Numbers:
        """Live sites that merged since this was asked last, or that have a neighbour which did."""
        near = np.zeros(len(self.rows), np.bool_)
        for low in range(0, len(near), _CHUNK):
            links = self.links[low : low + _CHUNK]
            near[low : low + _CHUNK] = (self.is_moved[links] & (links >= 0)).any(axis=1)
        stale = np.flatnonzero((near | self.is_moved) & self.is_alive)
        self.is_moved[:] = False
        return stale

    def mark_clean(self, cap: float) -> None:
        """Mark sites that surely have no eligible neighbour: by cosines of float32, all at once."""
        for low in range(0, len(self.rows), _CHUNK):
            links = self.links[low : low + _CHUNK]
            site, slot = np.nonzero(links >= 0)
            cosine = self.cosines[low : low + _CHUNK][site, slot].astype(np.float64)
            angle = np.arccos(np.clip(cosine + _COSINE_SLACK, -1, 1))
            radius, _ = self._unions(site + low, links[site, slot], angle)
            can = np.zeros(len(links), np.bool_)
            can[site[radius <= cap + _COSINE_SLACK]] = True
            self.is_clean[low : low + _CHUNK] = ~can

    def tighten(self) -> None:
        """Make the radius of every merged site that of its sources: the bound widens by merging."""
        sources, starts = self.groups()
        sites = np.repeat(sources[starts[:-1]], np.diff(starts))
        rad = radii(self.rows.min_cos)
        found = np.zeros(len(self.rows))
        for low in range(0, len(sources), _CHUNK):
            at, of = sources[low : low + _CHUNK], sites[low : low + _CHUNK]
            angles = row_angles(self.rows.mu[at], self.means[of])
            np.maximum.at(found, of, rad[at] + angles)
        merged = sources[starts[:-1]]
        self.rad[merged] = found[merged]


def _norms_of(rows: Float32s) -> Float64s:
    norms: npt.NDArray[np.float64] = np.empty(len(rows))
    for low in range(0, len(rows), _CHUNK):
        part = rows[low : low + _CHUNK].astype(np.float64)
        norms[low : low + _CHUNK] = np.sqrt(np.einsum("ij,ij->i", part, part))
    return norms
