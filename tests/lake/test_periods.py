"""No design of sampling follows a period in the order of rows.

Rows are often stored class after class in turn, or in rounds of some length. Labels are
``row % period`` here, and what is drawn must hold them as chance would. Every check is a test of
statistics with a false-alarm rate of 1e-6 over seeds; a seed repeats itself, so a run does too. All
checks of this file together raise a false alarm for one seed in about 10,000.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import pytest
from scipy import stats

from mldb.arrays import Float64s, Numbers
from mldb.lake.order.pass_order import (
    PassOrder,
    PlainOrder,
    plain_order,
    prepare_sampler,
)
from mldb.lake.order.sampling import inclusion, rank_inclusion
from mldb.lake.order.weights import Importance, Replacement, chances

ROWS: Final = 5000
TAKEN: Final = 500
PASSES: Final = 40
ALARM: Final = 1e-6
PERIODS: Final = (2, 3, 7, 10, 16, 25, 100, 250)
REPLACEMENTS: Final[list[Replacement]] = ["with", "systematic", "bottom_k"]


def counts_of(orders: list[PassOrder], period: int, taken: int = TAKEN) -> Numbers:
    """How often each label is among the first rows of each pass, int64 [passes, period]."""
    drawn = [order.at(np.arange(taken)).rows % period for order in orders]
    return np.stack([np.bincount(labels, minlength=period) for labels in drawn])


def check_even(counts: Numbers, *, rows: int, once: bool) -> None:
    """Refuse counts that *rows* equal rows would not give, neither too uneven nor too even.

    Pearson's statistic of each pass; a sample of n of N rows without replacement varies (N - n) /
    (N - 1) times as much as draws do.
    """
    passes, period = counts.shape
    taken = counts[0].sum()
    expected = taken / period
    shrunk = (rows - taken) / (rows - 1) if once else 1.0
    statistic = ((counts - expected) ** 2 / expected).sum() / shrunk
    law = stats.chi2(passes * (period - 1))
    assert law.cdf(statistic) > ALARM / 2
    assert law.sf(statistic) > ALARM / 2


def drawn_passes(
    replacement: Replacement, alpha: Float64s, seed: int, beta: float = 0.0
) -> list[PassOrder]:
    importance = Importance(beta=beta, replacement=replacement)
    sampler = prepare_sampler(importance, chances(importance, alpha))
    return [sampler.order(seed=seed, pass_number=n, length=TAKEN) for n in range(PASSES)]


@pytest.mark.parametrize("period", PERIODS)
@pytest.mark.parametrize("replacement", REPLACEMENTS)
def test_draws_of_equal_rows_follow_no_period(
    replacement: Replacement, period: int, seed: int
) -> None:
    """500 of 5,000 rows, labels in turn: systematic sampling gave 500 rows of one label."""
    orders = drawn_passes(replacement, np.ones(ROWS), seed)
    check_even(counts_of(orders, period), rows=ROWS, once=replacement != "with")


@pytest.mark.parametrize("period", PERIODS)
@pytest.mark.parametrize("replacement", REPLACEMENTS)
def test_draws_of_unequal_rows_follow_no_period(
    replacement: Replacement, period: int, seed: int, rng: np.random.Generator
) -> None:
    """Each label has its share of the chances, in every pass: Poisson bounds the variance."""
    alpha = rng.pareto(2.0, ROWS) + 0.2
    orders = drawn_passes(replacement, alpha, seed, beta=1.0)
    importance = Importance(beta=1.0, replacement=replacement)
    p = chances(importance, alpha).p
    design = inclusion if replacement == "systematic" else rank_inclusion
    pi = TAKEN * p if replacement == "with" else design(p, TAKEN)
    label = np.arange(ROWS) % period
    expected = np.bincount(label, weights=pi)
    variance = expected if replacement == "with" else np.bincount(label, weights=pi * (1 - pi))
    statistic = ((counts_of(orders, period) - expected) ** 2 / variance).sum()
    # In a pass the errors of all labels add up to nothing, or nearly so.
    assert stats.chi2(PASSES * (period - 1)).sf(statistic) > ALARM


@pytest.mark.parametrize("period", PERIODS)
@pytest.mark.parametrize("kind", ["permutation", "windowed"])
@pytest.mark.parametrize("rows", [ROWS, 40_000])  # a table, and rounds of hashes
def test_the_first_rows_of_a_pass_follow_no_period(
    kind: PlainOrder, period: int, rows: int, seed: int
) -> None:
    """Windows hold whole strata, so periods shorter than a stratum are those they could follow."""
    strata = {"stratum_rows": 1000, "window_strata": 5}
    orders = [plain_order(kind, rows, seed=seed, pass_number=n, **strata) for n in range(PASSES)]
    window = rows if kind == "permutation" else 5000
    check_even(counts_of(orders, period), rows=window, once=True)


def test_row_order_is_what_this_test_calls_periodic() -> None:
    """The checks have the power to find what they look for."""
    orders: list[PassOrder] = [plain_order("sequential", ROWS)] * PASSES
    for period in PERIODS:
        with pytest.raises(AssertionError):
            check_even(counts_of(orders, period), rows=ROWS, once=True)  # too even
    stride = np.stack([np.bincount(np.full(TAKEN, n % 10), minlength=10) for n in range(PASSES)])
    with pytest.raises(AssertionError):
        check_even(stride, rows=ROWS, once=True)


@pytest.mark.parametrize("replacement", ["systematic", "bottom_k"])
def test_pairs_of_rows_are_drawn_together_as_chance_would(
    replacement: Replacement, seed: int
) -> None:
    """A fixed line would draw rows a step apart together always, and neighbours never."""
    count, taken, passes = 40, 8, 6000
    importance = Importance(replacement=replacement)
    sampler = prepare_sampler(importance, chances(importance, np.ones(count)))
    together = np.zeros((count, count))
    for number in range(passes):
        rows = sampler.order(seed=seed, pass_number=number, length=taken).at(np.arange(taken)).rows
        together[np.ix_(rows, rows)] += 1
    pairs = together[np.triu_indices(count, 1)]
    wanted = passes * taken * (taken - 1) / (count * (count - 1))
    z = np.abs(pairs - wanted) / np.sqrt(wanted)  # binomial; the shares are about .036
    assert z.max() < stats.norm.isf(ALARM / 2 / len(pairs))
