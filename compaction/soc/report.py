"""What a consolidation did, as its caller is told."""

from __future__ import annotations

from typing import Any, Literal

from mldb.compaction.soc.avalanches import AvalancheStats
from mldb.deferred import dataclass
from mldb.html import html_of, html_pairs

ConsolidationMethod = Literal["sweep", "sandpile"]
"""The batch, or stress that arrivals drive."""


class PastCapWarning(UserWarning):
    """To keep as few splats as were asked for, rows further apart than the cap were merged."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ConsolidationReport:
    """One run of a consolidation. Immutable.

    lsn:            the commit that stored it, an ``Lsn``; None when nothing was stored: nothing was
                    to merge, or *plan_only*. ``lake.undo(report)`` takes it back.
    lake, method:   which lake, and "sweep" or "sandpile".
    rows_before, rows_after: live rows that the run saw, and what is left of them.
    sources, merged: rows that went into merges, and the splats they became.
    mass:           sum of alpha, the same before and after.
    min_cos:        the cap that was asked for; ``level`` the one that the last merges had, wider
                    only where a number of splats was asked for.
    min_cos_certified: the least certificate of the splats made: no member of any lies further from
                    its mean, members of earlier runs included. 1 when nothing merged.
    min_cos_true:   the least cosine of a source with the splat it became, as stored.
    displacement:   the largest distance |mu_i - mu| of a source to its splat. At one bandwidth
                    kappa the energy of the lake moves by at most kappa times this, anywhere: see
                    :meth:`energy_bound`.
    density_bound:  the most that the normalised density f = sum alpha_i f_i / sum alpha of the lake
                    moved, in total variation, the largest difference of any probability: 0 to 1.
                    sum over sources of (alpha_i / sum alpha) sqrt(KL(f_i || g) / 2), each root
                    at most 1: by convexity, and Pinsker's inequality for f_i and its splat g. It
                    never exceeds the share of mass that merged; in hundreds of dimensions laws so
                    narrow hardly overlap, and it comes close to that share.
    topplings, passes: sites that were looked at for a merge or toppled; searches for neighbours.
    arrivals:       rows whose grains drove a sandpile, 0 for a sweep; ``avalanches`` their
                    statistics, None for a sweep.
    is_relaxed:     whether the pile came to rest within its budget; the rest topples in the next
                    run.
    seconds, search_seconds: all of the run, and its searches for neighbours.
    """

    lsn: Any
    lake: str
    method: ConsolidationMethod
    rows_before: int
    rows_after: int
    sources: int
    merged: int
    mass: float
    min_cos: float
    level: float
    min_cos_certified: float
    min_cos_true: float
    displacement: float
    density_bound: float
    topplings: int
    passes: int
    arrivals: int
    avalanches: AvalancheStats | None
    is_relaxed: bool
    seconds: float
    search_seconds: float

    @property
    def kept(self) -> float:
        """The share of rows that is left; 1 for no rows."""
        return self.rows_after / self.rows_before if self.rows_before else 1.0

    def energy_bound(self, kappa: float = 1.0) -> float:
        """Return the most that the energy of unit-height kernels of one *kappa* moved, in nats.

        Exponents kappa mu.x move by at most kappa |mu_i - mu|, and a log-sum-exp by no more.
        """
        return kappa * self.displacement

    def _repr_html_(self) -> str:
        """The form of notebooks: what the run did, in figures."""
        return html_of(self, self._html)

    def _html(self) -> str:
        pairs: dict[str, object] = {
            "commit": "nothing stored" if self.lsn is None else self.lsn,
            "rows": f"{self.rows_before:,} to {self.rows_after:,} ({self.kept:.1%})",
            "merged": f"{self.sources:,} rows into {self.merged:,}",
            "mass": f"{self.mass:.6g}",
            "least cosine": f"{self.min_cos_true:.6g} (certified {self.min_cos_certified:.6g})",
            "displacement": f"{self.displacement:.4g}",
            "topplings": f"{self.topplings:,} in {self.passes:,} passes",
        }
        if self.avalanches is not None:
            pairs["grains"] = f"{self.arrivals:,}, at rest: {'yes' if self.is_relaxed else 'no'}"
            pairs["largest avalanche"] = f"{self.avalanches.largest:,}"
        pairs["seconds"] = f"{self.seconds:.2f}"
        return html_pairs(pairs, caption=f"{self.method} of lake {self.lake}")
