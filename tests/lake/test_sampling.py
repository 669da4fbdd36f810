"""Designs of sampling: their chances, their estimates, merges and slices."""

from __future__ import annotations

from decimal import Decimal, localcontext
from fractions import Fraction
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from mldb.errors import InvalidTypeError, InvalidValueError
from mldb.lake.order.sampling import (
    AliasTable,
    Sketch,
    alias_table,
    bottom_k,
    held_bytes,
    inclusion,
    merge,
    rank_inclusion,
    systematic,
)
from tests.support.sampling import chances_of

WEIGHTS = st.lists(st.integers(0, 1000), min_size=1, max_size=60).filter(any)
REPEATS = 4000
ROWS, TAKEN = 2000, 200

# --- with replacement -----------------------------------------------------------------------------


@given(WEIGHTS)
def test_alias_table_draws_by_weight(weights: list[int]) -> None:
    table = alias_table(weights)
    assert ((table.keep >= 0) & (table.keep <= 1)).all()
    wanted = [float(Fraction(w, sum(weights))) for w in weights]
    np.testing.assert_allclose(chances_of(table), wanted, rtol=1e-12, atol=1e-15)


def test_alias_table_of_many_uneven_weights(rng: np.random.Generator) -> None:
    weights = rng.pareto(0.8, 100_000)
    table = alias_table(weights)
    np.testing.assert_allclose(chances_of(table), weights / weights.sum(), atol=1e-14)


def test_a_table_of_equal_weights_takes_no_memory() -> None:
    """And every table half as much for its aliases: 42 bytes a row were kept for each setting."""
    table = alias_table(np.full(1000, 0.1))
    assert held_bytes(table.keep) + held_bytes(table.alias) < 16
    uneven = alias_table(np.arange(1000.0))
    assert held_bytes(uneven.keep) + held_bytes(uneven.alias) == 12 * 1000
    assert uneven.draw(np.arange(5), seed=0, pass_number=0).dtype == np.int64


@pytest.mark.parametrize("weights", [[1.0] * 49, [0.1] * 10, [5], [0, 0, 3], [1e-300, 1e-300]])
def test_alias_table_of_even_and_single_weights(weights: list[float]) -> None:
    wanted = np.array(weights) / sum(weights)
    np.testing.assert_allclose(chances_of(alias_table(weights)), wanted, rtol=1e-12)


def test_draws_follow_the_table(seed: int) -> None:
    weights = np.array([5.0, 1, 0, 3, 11, 0.5])
    drawn = alias_table(weights).draw(np.arange(100_000), seed=seed, pass_number=0)
    counts = np.bincount(drawn, minlength=6)
    assert counts[2] == 0
    some = weights > 0
    expected = 100_000 * weights[some] / weights.sum()
    assert stats.chisquare(counts[some], expected).pvalue > 1e-4


def test_each_draw_is_made_alone(seed: int) -> None:
    table = alias_table(np.arange(1, 100))
    whole = table.draw(np.arange(20_000), seed=seed, pass_number=3)
    for start, stop in ((0, 1), (777, 1033), (19_000, 20_000)):
        part = table.draw(np.arange(start, stop), seed=seed, pass_number=3)
        assert np.array_equal(part, whole[start:stop])
    assert not np.array_equal(whole, table.draw(np.arange(20_000), seed=seed, pass_number=4))
    assert not np.array_equal(whole, table.draw(np.arange(20_000), seed=seed + 1, pass_number=3))


# --- systematic -----------------------------------------------------------------------------------


def exact_inclusion(weights: list[int], count: int) -> list[Fraction]:
    """Cap and redistribute in rational numbers, one certain row at a time, the largest first."""
    pi = [Fraction(0)] * len(weights)
    rest = sorted(range(len(weights)), key=lambda i: weights[i])
    while rest and count:
        total = sum(weights[i] for i in rest)
        if weights[rest[-1]] * count < total:
            for i in rest:
                pi[i] = Fraction(weights[i] * count, total)
            break
        pi[rest.pop()] = Fraction(1)
        count -= 1
    return pi


@given(WEIGHTS, st.data())
def test_inclusion_probabilities_are_those_of_exact_arithmetic(
    weights: list[int], data: st.DataObject
) -> None:
    count = data.draw(st.integers(0, sum(w > 0 for w in weights)))
    pi = inclusion(weights, count)
    wanted = [float(p) for p in exact_inclusion(weights, count)]
    np.testing.assert_allclose(pi, wanted, rtol=1e-12, atol=1e-15)
    assert pi.sum() == pytest.approx(count, abs=1e-9)


@given(WEIGHTS, st.integers(0, 2**32 - 1), st.data())
def test_systematic_takes_that_many_rows_once_in_order(
    weights: list[int], pass_number: int, data: st.DataObject
) -> None:
    count = data.draw(st.integers(0, sum(w > 0 for w in weights)))
    pi = inclusion(weights, count)
    rows = systematic(pi, seed=0, pass_number=pass_number)
    assert len(rows) == count
    assert (np.diff(rows) > 0).all()
    assert (pi[rows] > 0).all()
    assert set(np.flatnonzero(pi == 1)) <= set(rows.tolist())


def test_systematic_includes_each_row_with_its_probability(seed: int) -> None:
    pi = inclusion(np.arange(1, 21), 7)
    taken = np.zeros(20)
    for number in range(REPEATS):
        taken[systematic(pi, seed=seed, pass_number=number)] += 1
    error = np.sqrt(pi * (1 - pi) / REPEATS) + 1e-12
    assert (np.abs(taken / REPEATS - pi) <= 4.5 * error).all()


def test_systematic_of_nearly_certain_rows_takes_none_twice(seed: int) -> None:
    pi = np.full(100_000, 1 - 1e-16)  # is 1.0 or the float below it
    assert np.array_equal(systematic(pi, seed=seed, pass_number=0), np.arange(100_000))


# --- bottom-k -------------------------------------------------------------------------------------


def same(a: Sketch, b: Sketch) -> bool:
    return (
        np.array_equal(a.rows, b.rows)
        and np.array_equal(a.ranks, b.ranks)
        and np.array_equal(a.inclusion(), b.inclusion())
    )


@given(WEIGHTS, st.integers(0, 12), st.data())
def test_merged_sketches_are_the_sketch_of_all(
    weights: list[int], count: int, data: st.DataObject
) -> None:
    ids = np.array(data.draw(st.permutations(range(7, 7 + len(weights)))))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(weights)), max_size=4)))
    cuts = [0, *cuts, len(weights)]
    whole = bottom_k(weights, count, ids=ids, seed=1, pass_number=2)
    parts = [
        bottom_k(weights[a:b], count, ids=ids[a:b], seed=1, pass_number=2, first_row=a)
        for a, b in pairwise(cuts)
    ]
    assert same(merge(parts), whole)
    assert same(merge(parts[::-1]), whole)
    assert same(merge([merge(parts[:2]), *parts[2:]]), whole)


def test_a_rank_belongs_to_an_id_whatever_else_is_there(rng: np.random.Generator) -> None:
    ids, weights = rng.permutation(1000), rng.pareto(1.2, 1000)
    whole = bottom_k(weights, 50, ids=ids, seed=4, pass_number=0)
    turned = rng.permutation(1000)
    again = bottom_k(weights[turned], 50, ids=ids[turned], seed=4, pass_number=0)
    assert ids[whole.chosen].tolist() == ids[turned][again.chosen].tolist()
    # Without the newest 100 rows, the sample is what it was but for those that they pushed out.
    fewer = bottom_k(weights[:900], 50, ids=ids[:900], seed=4, pass_number=0)
    assert set(whole.chosen[whole.chosen < 900]) <= set(fewer.chosen)


def test_rank_conditioned_inclusion_is_that_of_exact_arithmetic(rng: np.random.Generator) -> None:
    weights = rng.integers(1, 1000, 300)
    sketch = bottom_k(weights, 40, ids=np.arange(300), seed=9, pass_number=0)
    with localcontext() as context:
        context.prec = 40
        tau = Decimal(float(sketch.ranks[40]))
        wanted = [1 - (-int(weights[row]) * tau).exp() for row in sketch.chosen]
    np.testing.assert_allclose(sketch.inclusion(), np.array(wanted, np.float64), rtol=1e-12)


@pytest.mark.parametrize("count", [1, 7, 60, 99])
def test_inclusion_by_ranks_is_what_samples_show(
    count: int, rng: np.random.Generator, seed: int
) -> None:
    weights = rng.pareto(1.2, 100) + 0.05
    pi = rank_inclusion(weights, count)
    assert pi.sum() == pytest.approx(count, abs=1e-9)
    taken = np.zeros(100)
    for number in range(REPEATS):
        sketch = bottom_k(weights, count, ids=np.arange(100), seed=seed, pass_number=number)
        taken[sketch.chosen] += 1
    error = np.sqrt(pi * (1 - pi) / REPEATS)
    # The rank behind the sample varies: of one row much, else it moves a pi by a hundredth or so.
    assert (np.abs(taken / REPEATS - pi) <= 4.5 * error + (0.1 if count == 1 else 0.02)).all()


def test_inclusion_by_ranks_at_its_ends() -> None:
    assert rank_inclusion([3, 0, 1], 2).tolist() == [1, 0, 1]
    assert rank_inclusion([3, 0, 1], 0).tolist() == [0, 0, 0]
    even = rank_inclusion(np.ones(1000), 999)
    np.testing.assert_allclose(even, 0.999, rtol=1e-9)
    with pytest.raises(InvalidValueError, match="3 rows were asked for"):
        rank_inclusion([1, 0, 2], 3)


def test_rows_of_no_weight_and_samples_of_all() -> None:
    sketch = bottom_k([0, 3, 0, 1], 5, ids=np.arange(4), seed=0, pass_number=0)
    assert sorted(sketch.chosen.tolist()) == [1, 3]
    assert sketch.inclusion().tolist() == [1, 1]


# --- estimates ------------------------------------------------------------------------------------


def bias(estimates: npt.NDArray[np.float64], truth: float) -> float:
    """How many standard errors the mean of the estimates is from the truth."""
    return float((estimates.mean() - truth) / (estimates.std(ddof=1) / np.sqrt(len(estimates))))


@pytest.fixture
def population(rng: np.random.Generator) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Weights with a heavy tail, and values that have nothing to do with them."""
    return rng.pareto(1.5, ROWS) + 0.1, rng.normal(1, 1, ROWS)


Population = tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]


def test_draws_with_replacement_are_unbiased(population: Population, seed: int) -> None:
    weights, values = population
    table = alias_table(weights)
    rows = table.draw(np.arange(REPEATS * TAKEN), seed=seed, pass_number=0)
    terms = values / (ROWS * weights / weights.sum())
    estimates = terms[rows].reshape(REPEATS, TAKEN).mean(axis=1)
    assert abs(bias(estimates, values.mean())) <= 4


def test_systematic_samples_are_unbiased(population: Population, seed: int) -> None:
    weights, values = population
    pi = inclusion(weights, TAKEN)
    terms = values / (ROWS * pi)
    estimates = np.array(
        [terms[systematic(pi, seed=seed, pass_number=n)].sum() for n in range(REPEATS)]
    )
    assert abs(bias(estimates, values.mean())) <= 4


@pytest.mark.slow
def test_bottom_k_is_unbiased_and_the_naive_weight_is_caught(
    population: Population, seed: int
) -> None:
    weights, values = population
    ids, shares = np.arange(ROWS), weights / weights.sum()
    conditioned, naive = np.empty(REPEATS), np.empty(REPEATS)
    for number in range(REPEATS):
        sketch = bottom_k(weights, TAKEN, ids=ids, seed=seed, pass_number=number)
        chosen = sketch.chosen
        conditioned[number] = (values[chosen] / sketch.inclusion()).sum() / ROWS
        naive[number] = (values[chosen] / (TAKEN * shares[chosen])).sum() / ROWS
    assert abs(bias(conditioned, values.mean())) <= 4
    assert abs(bias(naive, values.mean())) > 20  # so this test has the power to find a bias


# --- refusals -------------------------------------------------------------------------------------


@pytest.mark.parametrize("weights", [[], [[1.0]], [0, 0], [1, -1], [1, float("nan")]])
def test_weights_that_are_none(weights: Any) -> None:
    with pytest.raises(InvalidValueError, match="weights"):
        alias_table(weights)
    with pytest.raises(InvalidValueError, match="weights"):
        inclusion(weights, 0)


def test_counts_and_numbers_that_cannot_be() -> None:
    with pytest.raises(InvalidValueError, match="3 rows were asked for"):
        inclusion([1, 0, 2], 3)
    with pytest.raises(InvalidValueError, match="negative"):
        inclusion([1], -1)
    with pytest.raises(InvalidTypeError, match="count is a float"):
        inclusion([1], 1.0)  # type: ignore[arg-type]
    with pytest.raises(InvalidValueError, match="ids of shape"):
        bottom_k([1, 2], 1, ids=np.arange(3), seed=0, pass_number=0)
    with pytest.raises(InvalidValueError, match="below 2\\^48"):
        bottom_k([1], 1, ids=np.array([2**48]), seed=0, pass_number=0)
    with pytest.raises(InvalidValueError, match="cannot be merged"):
        merge([])


@pytest.mark.parametrize("seed", [-1, 2**64])
def test_seeds_that_do_not_fit(seed: int) -> None:
    table = AliasTable(np.ones(1), np.zeros(1, np.int64))
    with pytest.raises(InvalidValueError, match="seed"):
        table.draw(np.arange(1), seed=seed, pass_number=0)
    with pytest.raises(InvalidValueError, match="pass_number"):
        table.draw(np.arange(1), seed=0, pass_number=seed)
