"""Is the pile critical? Exponent, cut-off and gain on a graph of neighbours, and counterexamples.

Bounds are those of the reference for lakes: tau in [1.40, 1.62], KS <= .02, gain >= .5 nats, the
cut-off 5 to 14 times as far at a third of the loss.
"""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import numpy as np
import pytest

from mldb.arrays import Numbers
from mldb.compaction.soc.avalanches import (
    AvalancheStats,
    avalanche_stats,
    size_counts,
    truncated_exponent,
)
from mldb.compaction.soc.sandpile import Sandpile
from mldb.sphere.neighbours import nearest
from tests.support.splats import unit

K = 16


@cache
def gaussian_graph(count: int) -> list[list[int]]:
    mu = unit(np.random.default_rng(0).standard_normal((count, 16)))
    return nearest(mu, mu, K, exclude=np.arange(count)).rows.tolist()  # type: ignore[no-any-return]


class Fitted(NamedTuple):
    """The figures of a fit, of which none is missing."""

    mean_kp: float
    tau: float
    ks: float
    cutoff: float
    llr: float


def fitted(stats: AvalancheStats) -> Fitted:
    found = stats.tau, stats.ks, stats.cutoff, stats.llr
    assert None not in found
    return Fitted(stats.mean_kp, *(float(figure or 0) for figure in found))


def driven(count: int, p: float, grains: int) -> Fitted:
    """The avalanches of a pile but for the first third, in which it comes to its own state."""
    rng = np.random.default_rng(1)
    pile = Sandpile(gaussian_graph(count), rng.integers(0, K, count).tolist(), threshold=K, p=p)
    sizes = []
    for site in rng.integers(0, count, grains).tolist():
        pile.add(site)
        sizes.append(pile.relax())
    return fitted(avalanche_stats(np.array(sizes[grains // 3 :]), k=K, p=p))


def leaky(count: int, grains: int) -> Numbers:
    """Sizes under a rule that conserves nothing: 30 % is released, and half of that is lost."""
    rng = np.random.default_rng(2)
    graph = gaussian_graph(count)
    stress = rng.uniform(0, 1, count)
    sizes = np.zeros(grains, np.int64)
    for grain, site in enumerate(rng.integers(0, count, grains).tolist()):
        stress[site] += 1 / K
        queue = [site] if stress[site] >= 1 else []
        while queue:
            one = queue.pop()
            if stress[one] < 1:
                continue
            released = 0.3 * stress[one]
            stress[one] -= released
            sizes[grain] += 1
            stress[graph[one]] += released / 2 / K
            queue += [other for other in (*graph[one], one) if stress[other] >= 1]
    return sizes


@pytest.mark.slow
def test_the_pile_of_a_graph_of_neighbours_is_critical() -> None:
    stats = driven(4000, 0.03, 120_000)
    assert stats.mean_kp == pytest.approx(1, abs=0.05)
    assert 1.35 <= stats.tau <= 1.65
    assert stats.ks <= 0.02
    assert stats.llr >= 0.5


@pytest.mark.large
def test_the_cut_off_moves_with_the_loss() -> None:
    """10,000 sites and 300,000 grains; theory says nine times."""
    far, near = driven(10_000, 0.01, 300_000), driven(10_000, 0.03, 300_000)
    for stats in (far, near):
        assert 1.40 <= stats.tau <= 1.62
        assert stats.ks <= 0.02
        assert stats.llr >= 0.5
        assert stats.mean_kp == pytest.approx(1, abs=0.05)
    assert 5 <= far.cutoff / near.cutoff <= 14


@pytest.mark.slow
def test_a_rule_that_conserves_nothing_is_not() -> None:
    sizes = leaky(2000, 20_000)
    stats = fitted(avalanche_stats(sizes[len(sizes) // 3 :], k=K, p=0.01))
    assert stats.cutoff < 5
    assert stats.llr < 0.1


def power_law(tau: float, least: int, most: int, count: int, rng: np.random.Generator) -> Numbers:
    sizes = np.arange(least, most + 1)
    weights = sizes**-tau
    return rng.choice(sizes, count, p=weights / weights.sum())


@pytest.mark.parametrize("tau", [1.3, 1.5, 2.2])
def test_the_exponent_of_a_drawn_law_is_found(tau: float, rng: np.random.Generator) -> None:
    """Cut at x_max, as draws of a pile are; small sizes that do not follow the law are left out."""
    drawn = power_law(tau, 4, 3000, 60_000, rng)
    sizes = np.concatenate([drawn, rng.integers(1, 4, 20_000)])
    found, first, ks = truncated_exponent(sizes, 3000)
    assert found == pytest.approx(tau, abs=0.02)
    assert 4 <= first <= 8
    assert ks <= 0.01


def test_the_cut_off_of_a_drawn_law_is_found(rng: np.random.Generator) -> None:
    sizes = np.arange(1, 20_000)
    weights = sizes**-1.5 * np.exp(-sizes / 300)
    drawn = rng.choice(sizes, 100_000, p=weights / weights.sum())
    stats = fitted(avalanche_stats(drawn, k=16, p=0.03))
    assert stats.cutoff == pytest.approx(300, rel=0.1)
    assert stats.llr > 0.5


def test_an_exponential_gains_nothing(rng: np.random.Generator) -> None:
    stats = fitted(avalanche_stats(rng.geometric(0.3, 50_000), k=16, p=0.01))
    assert abs(stats.llr) < 0.01


@pytest.mark.parametrize("sizes", [[], [0, 0, 3], [1] * 99])
def test_few_avalanches_have_no_exponent(sizes: list[int]) -> None:
    stats = avalanche_stats(np.array(sizes, np.int64), k=16, p=0.02)
    assert stats.count == len(sizes)
    assert (stats.tau, stats.x_min, stats.ks, stats.cutoff, stats.llr) == (None,) * 5


def test_avalanches_of_one_size(rng: np.random.Generator) -> None:
    stats = avalanche_stats(np.ones(200, np.int64), k=16, p=0.02)
    assert stats.mean == stats.largest == 1
    assert stats.tau is not None
    assert np.isfinite(stats.tau)


def test_sizes_are_counted_by_powers_of_two() -> None:
    sizes = np.array([0, 0, 1, 2, 3, 4, 7, 8, 1000])
    assert size_counts(sizes) == (2, 1, 2, 2, 1, 0, 0, 0, 0, 0, 1)
    assert size_counts(sizes[:0]) == ()
