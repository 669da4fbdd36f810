"""A sandpile on a directed graph: stress that is passed on, and a little of it lost.

A site topples when it has k grains or more: it loses k, and each of its k neighbours gets one. Of
all grains that are moved a share p is lost, by a counter and not by chance; a neighbour NONE is an
edge of the pile, where a grain is lost, too. Grains that come in are lost in the end, so a grain
causes 1/(k p) topplings on average, on any graph (Zapperi, Lauritsen, Stanley 1995). Without loss
by the counter the order of topplings changes nothing (Dhar 1990).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import Final

from mldb.compaction.soc.active import NONE
from mldb.errors import InvalidTypeError, InvalidValueError

LOSS_UNITS: Final = 1 << 32
"""The counter of losses counts in these parts of a grain."""


def loss_units(share: float) -> int:
    """Return a share of grains in LOSS_UNITS. Raises InvalidTypeError, InvalidValueError."""
    if isinstance(share, bool) or not isinstance(share, int | float):
        raise InvalidTypeError(f"p is a {type(share).__name__}; give a share of grains, 0 to 1")
    if not 0 <= share <= 1:  # NaN is not
        raise InvalidValueError(f"p={share} is no share of grains; give a number from 0 to 1")
    return round(share * LOSS_UNITS)


class Sandpile:
    """Stress of sites and what topples. One thread.

    ``stress`` holds the grains of each site, ``residue`` what the counter of losses has, in
    LOSS_UNITS; both are all that a later run needs. ``topplings``, ``lost`` and ``added`` count
    since this was made. Sites of *threshold* grains or more wait in a queue until :meth:`relax`.
    """

    def __init__(
        self,
        links: Sequence[Sequence[int]],
        stress: list[int],
        *,
        threshold: int,
        p: float,
        residue: int = 0,
        toppled: Callable[[int], object] | None = None,
        links_of: Callable[[int], Sequence[int]] | None = None,
    ) -> None:
        """*toppled* is told of every site that toppled, and may call :meth:`join`.

        *links_of* gives the neighbours of a site where they change; else they are ``links[site]``.
        Raises InvalidTypeError, InvalidValueError.
        """
        if threshold < 1 or not 0 <= residue < LOSS_UNITS:
            raise InvalidValueError(f"a threshold of {threshold} grains, residue {residue}")
        self.stress = stress
        self.threshold = threshold
        self.residue = residue
        self.topplings = self.lost = self.added = 0
        self._loss = loss_units(p)
        self._links_of = links.__getitem__ if links_of is None else links_of
        self._toppled = toppled
        self._queue = deque(i for i, grains in enumerate(stress) if grains >= threshold)

    @property
    def is_stable(self) -> bool:
        """Whether no site waits to topple."""
        return not self._queue

    def add(self, site: int) -> None:
        """Put a grain on a site."""
        self.added += 1
        self._put(site)

    def _put(self, site: int) -> None:
        self.stress[site] += 1
        if self.stress[site] == self.threshold:
            self._queue.append(site)

    def join(self, kept: int, gone: int) -> None:
        """Move the grains of a site that was absorbed to the one that goes on."""
        before = self.stress[kept]
        self.stress[kept], self.stress[gone] = before + self.stress[gone], 0
        if before < self.threshold <= self.stress[kept]:
            self._queue.append(kept)

    def relax(self, budget: int | None = None) -> int:
        """Topple until all is stable, or *budget* times; return how often. First in, first out."""
        before = self.topplings
        queue, stress, threshold = self._queue, self.stress, self.threshold
        while queue and (budget is None or self.topplings - before < budget):
            site = queue.popleft()
            if stress[site] < threshold:
                continue  # absorbed since
            stress[site] -= threshold
            self.topplings += 1
            self._spread(site)
            if self._toppled is not None:
                self._toppled(site)
            if stress[site] >= threshold:
                queue.append(site)
        return self.topplings - before

    def _spread(self, site: int) -> None:
        """Give the grains of a site that toppled to its neighbours, but for those that are lost."""
        links = self._links_of(site)
        spent = self.residue + self._loss * len(links)
        if spent < LOSS_UNITS and NONE not in links:  # none is lost
            self.residue = spent
            stress, threshold = self.stress, self.threshold
            for link in links:
                grains = stress[link] = stress[link] + 1
                if grains == threshold:
                    self._queue.append(link)
            return
        for link in links:
            self.residue += self._loss
            if self.residue >= LOSS_UNITS:
                self.residue -= LOSS_UNITS
                self.lost += 1
            elif link == NONE:
                self.lost += 1
            else:
                self._put(link)
