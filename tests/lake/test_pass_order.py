"""Orders of a pass: every row once, any piece alone, and weights that go with the draws."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mldb.errors import InvalidTypeError, InvalidValueError, LimitError
from mldb.lake.order.pass_order import (
    Chosen,
    PassOrder,
    PlainOrder,
    Shuffled,
    Windowed,
    plain_order,
    prepare_sampler,
)
from mldb.lake.order.permutation import SORTED_MAX
from mldb.lake.order.plan import Plan, Quality, shuffle_quality
from mldb.lake.order.sampling import inclusion
from mldb.lake.order.weights import Importance, Replacement, Target, chances
from tests.support.sampling import kish_ess

KINDS: list[PlainOrder] = ["sequential", "permutation", "windowed"]


def whole(order: PassOrder) -> list[int]:
    rows: list[int] = order.at(np.arange(order.length)).rows.tolist()
    return rows


@st.composite
def orders(draw: st.DrawFn) -> PassOrder:
    """Plain orders of any size, with strata and windows of any size."""
    return plain_order(
        draw(st.sampled_from(KINDS)),
        draw(st.integers(0, 600)),
        seed=draw(st.integers(0, 2**64 - 1)),
        pass_number=draw(st.integers(0, 2**32 - 1)),
        stratum_rows=draw(st.integers(1, 70)),
        window_strata=draw(st.integers(1, 9)),
    )


@given(orders())
def test_a_pass_visits_every_row_once(order: PassOrder) -> None:
    assert sorted(whole(order)) == list(range(order.length))


@given(orders(), st.data())
def test_any_selection_of_positions_is_that_of_the_whole(
    order: PassOrder, data: st.DataObject
) -> None:
    rows = np.array(whole(order))
    positions = data.draw(st.lists(st.integers(0, max(order.length - 1, 0)), max_size=50))
    if order.length:
        some = np.array(positions, np.int64)
        assert np.array_equal(order.at(some).rows, rows[some])


@given(orders())
def test_windows_are_made_of_the_strata_they_name(order: PassOrder) -> None:
    if not isinstance(order, Windowed):
        return
    rows, start, strata = whole(order), 0, []
    for window in range(order.windows):
        named = order.strata(window).tolist()
        strata += named
        within = [
            row
            for stratum in named
            for row in range(stratum * order.stratum_rows, (stratum + 1) * order.stratum_rows)
            if row < order.length
        ]
        assert sorted(rows[start : start + len(within)]) == sorted(within)
        start += len(within)
    assert sorted(strata) == list(range(len(strata)))
    assert start == order.length


@pytest.mark.parametrize("kind", ["permutation", "windowed"])
@pytest.mark.parametrize("rows", [1000, SORTED_MAX + 1000])
def test_passes_and_seeds_give_other_orders(kind: PlainOrder, rows: int) -> None:
    def order(seed: int, pass_number: int) -> list[int]:
        return whole(
            plain_order(
                kind, rows, seed=seed, pass_number=pass_number, stratum_rows=16, window_strata=16
            )
        )

    base = order(1, 1)
    assert base == order(1, 1)
    for other in (order(1, 2), order(2, 1)):
        assert sum(a == b for a, b in zip(base, other, strict=True)) < 20


def test_windows_of_a_pass_are_shuffled_differently() -> None:
    order = Windowed(64 * 64, 0, 0, stratum_rows=16, window_strata=4)
    inner = [
        np.argsort(order.at(np.arange(start, start + 64)).rows).tolist()
        for start in range(0, order.length, 64)
    ]
    assert len({tuple(places) for places in inner}) == len(inner)


# --- quality --------------------------------------------------------------------------------------


def quality(kind: PlainOrder, rows: int, **sizes: int) -> Quality:
    plan = Plan(order=plain_order(kind, rows, seed=3, **sizes), batch_size=256, drop_last=True)
    return shuffle_quality([batch.rows for batch in plan.read()], rows)


def test_shuffle_quality_of_each_order() -> None:
    rows = 200_000
    assert quality("permutation", rows) == pytest.approx((1, 1), abs=0.005)
    flat = quality("sequential", rows)
    assert flat.mix < 0.01
    assert flat.spread < 0.01
    narrow = quality("windowed", rows, stratum_rows=256, window_strata=8)
    wide = quality("windowed", rows, stratum_rows=256, window_strata=256)
    assert narrow.mix < 0.1
    assert 0.6 < wide.mix < 1
    assert narrow.spread < wide.spread
    assert wide.spread > 0.95


def test_quality_of_one_window_is_that_of_a_full_shuffle() -> None:
    assert quality("windowed", 60_000, stratum_rows=256, window_strata=256) == pytest.approx(
        (1, 1), abs=0.01
    )


# --- orders with weights --------------------------------------------------------------------------

REPLACEMENTS: list[Replacement] = ["with", "systematic", "bottom_k"]


@pytest.mark.parametrize("replacement", REPLACEMENTS)
@pytest.mark.parametrize("target", ["rows", "distinct"])
def test_weighted_passes_are_unbiased_for_the_named_risk(
    replacement: Replacement, target: Target, rng: np.random.Generator, seed: int
) -> None:
    alpha = rng.integers(1, 60, 400).astype(np.float64)
    values = rng.normal(2, 1, 400) + np.log(alpha)
    importance = Importance(beta=0.5, target=target, replacement=replacement)
    sampler = prepare_sampler(importance, chances(importance, alpha), ids=rng.permutation(400))
    estimates = np.empty(800)
    for number in range(len(estimates)):
        order = sampler.order(seed=seed, pass_number=number, length=60)
        rows, weights = order.at(np.arange(60))
        assert weights is not None
        estimates[number] = (weights * values[rows]).mean()
    truth = values.mean() if target == "distinct" else np.average(values, weights=alpha)
    error = estimates.std(ddof=1) / np.sqrt(len(estimates))
    assert abs(estimates.mean() - truth) <= 4 * error
    other = values.mean() if target == "rows" else np.average(values, weights=alpha)
    assert abs(estimates.mean() - other) > 8 * error  # the two risks can be told apart


@pytest.mark.parametrize("replacement", ["systematic", "bottom_k"])
def test_samples_without_replacement_hold_a_row_once(replacement: Replacement) -> None:
    alpha = np.arange(1.0, 301)
    importance = Importance(beta=1, floor=0.2, target="distinct", replacement=replacement)
    sampler = prepare_sampler(importance, chances(importance, alpha))
    order = sampler.order(seed=5, pass_number=1, length=100)
    assert isinstance(order, Chosen)
    rows, weights = order.at(np.arange(100))
    assert weights is not None
    assert len(set(rows.tolist())) == 100
    assert not np.array_equal(rows, np.sort(rows))
    if replacement == "systematic":
        pi = inclusion(sampler.chances.p, 100)
        np.testing.assert_allclose(weights, 100 / (300 * pi[rows]), rtol=1e-12)
    assert sampler.order(seed=5, pass_number=2, length=100).at(np.arange(100)).rows.tolist() != (
        rows.tolist()
    )
    everything = sampler.order(seed=5, pass_number=1, length=300).at(np.arange(300))
    assert sorted(everything.rows.tolist()) == list(range(300))
    assert everything.weights is not None
    np.testing.assert_allclose(everything.weights, 1, rtol=1e-12)


def test_without_a_target_weights_are_one() -> None:
    for replacement in REPLACEMENTS:
        importance = Importance(beta=1, replacement=replacement)
        sampler = prepare_sampler(importance, chances(importance, [1, 2, 30, 4]))
        weights = sampler.order(seed=0, pass_number=0, length=3).at(np.arange(3)).weights
        assert weights is not None
        assert kish_ess(weights) == 3


def test_a_pass_with_replacement_may_have_any_length() -> None:
    sampler = prepare_sampler(Importance(), chances(Importance(), np.ones(10)))
    assert sampler.order(seed=0, pass_number=0).length == 10
    far = sampler.order(seed=0, pass_number=0, length=10**12)
    assert far.at(np.array([10**12 - 1])).rows[0] < 10


# --- plans: batches, slices and refusals ----------------------------------------------------------


def make_orders() -> list[PassOrder]:
    """One of each kind, small enough to be read whole."""
    alpha = np.arange(1.0, 501)
    found: list[PassOrder] = [
        plain_order(kind, 500, seed=1, stratum_rows=30, window_strata=4) for kind in KINDS
    ]
    for replacement in REPLACEMENTS:
        importance = Importance(beta=1, target="distinct", replacement=replacement)
        sampler = prepare_sampler(importance, chances(importance, alpha))
        found.append(sampler.order(seed=2, pass_number=3, length=123))
    return found


@pytest.mark.parametrize("order", make_orders(), ids=lambda order: str(type(order).__name__))
def test_resume_at_any_batch_is_the_uninterrupted_order(order: PassOrder) -> None:
    plan = Plan(order=order, batch_size=7)
    batches = list(plan.read())
    rows, weights = order.at(np.arange(order.length))
    assert np.concatenate([batch.rows for batch in batches]).tolist() == rows.tolist()
    for cursor in range(len(plan) + 1):
        again = list(plan.read(cursor))
        assert [batch.number for batch in again] == list(range(cursor, len(plan)))
        for left, right in zip(again, batches[cursor:], strict=True):
            assert np.array_equal(left.rows, right.rows)
            if left.weights is None or right.weights is None:
                assert left.weights is right.weights is weights
            else:
                assert np.array_equal(left.weights, right.weights)
    one = plan.batch(9)
    assert np.array_equal(one.rows, batches[9].rows)
    assert np.array_equal(plan.rows(9), batches[9].rows)
    assert (plan.weights(9) is None) == (weights is None)


@given(st.integers(0, 500), st.integers(1, 60), st.booleans())
def test_batches_cut_the_pass(rows: int, batch_size: int, drop_last: bool) -> None:
    plan = Plan(order=Shuffled(rows, 0, 0), batch_size=batch_size, drop_last=drop_last)
    batches = [batch.rows for batch in plan.read()]
    assert len(batches) == len(plan)
    covered = np.concatenate([np.empty(0, np.int64), *batches])
    kept = rows - rows % batch_size if drop_last else rows
    assert covered.tolist() == whole(Shuffled(rows, 0, 0))[:kept]
    assert all(len(batch) == batch_size for batch in batches[:-1])


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: plain_order("random", 5), InvalidValueError, "kind='random'"),  # type: ignore[arg-type]
        (lambda: plain_order("permutation", -1), LimitError, "-1 rows"),
        (lambda: plain_order("permutation", 2**48), LimitError, "48 bits"),
        (lambda: plain_order("permutation", 5, seed=2**64), InvalidValueError, "64 bits"),
        (lambda: plain_order("permutation", 5, pass_number=-1), InvalidValueError, "32 bits"),
        (lambda: plain_order("permutation", 5.0), InvalidTypeError, "float"),  # type: ignore[arg-type]
        (lambda: plain_order("windowed", 5, stratum_rows=0), InvalidValueError, "stratum_rows"),
        (lambda: plain_order("windowed", 5, window_strata=2**40), LimitError, "choose other"),
        (lambda: Plan(order=Shuffled(5, 0, 0), batch_size=0), InvalidValueError, "batch_size"),
        (lambda: Plan(order=Shuffled(5, 0, 0), batch_size=2).read(4), InvalidValueError, "cursor"),
        (lambda: Plan(order=Shuffled(5, 0, 0), batch_size=2).rows(3), InvalidValueError, "batch 3"),
    ],
)
def test_what_cannot_be_is_refused(call: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()


def test_a_sample_without_replacement_needs_a_length() -> None:
    importance = Importance(replacement="systematic")
    sampler = prepare_sampler(importance, chances(importance, np.ones(4)))
    with pytest.raises(InvalidValueError, match="needs a length"):
        sampler.order(seed=0, pass_number=0)
    with pytest.raises(InvalidValueError, match="5 rows were asked for"):
        sampler.order(seed=0, pass_number=0, length=5)
    with pytest.raises(InvalidValueError, match="ids have shape"):
        prepare_sampler(importance, chances(importance, np.ones(4)), ids=np.arange(3))
