"""Chances of rows, the weights that keep a risk unbiased, and the effective sample size."""

from __future__ import annotations

from decimal import Decimal, localcontext
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mldb.errors import InvalidTypeError, InvalidValueError
from mldb.lake.order.pass_order import prepare_sampler
from mldb.lake.order.weights import Importance, Replacement, Target, chances
from tests.support.sampling import kish_ess

MASSES = st.lists(st.floats(1e-3, 1e6), min_size=1, max_size=50)
TARGETS: list[Target | None] = ["rows", "distinct", None]


@given(MASSES, st.floats(1e-9, 2), st.floats(0, 2), st.floats(0.01, 0.99), st.data())
def test_weights_keep_the_named_risk_unbiased(
    masses: list[float], beta: float, gamma: float, floor: float, data: st.DataObject
) -> None:
    rows = len(masses)
    salience = data.draw(st.lists(st.floats(0.01, 100), min_size=rows, max_size=rows))
    alpha = np.array(masses)
    for target in TARGETS:
        importance = Importance(beta=beta, gamma=gamma, floor=floor, target=target, least_ess=0.0)
        found = chances(importance, alpha, salience)
        assert found.p.sum() == pytest.approx(1, rel=1e-12)
        assert (found.p >= floor / rows * (1 - 1e-12)).all()
        if target is None:
            assert (found.weights == 1).all()
            continue
        # The mean of w f over draws is sum p w f: the risk, whatever f is.
        wanted = alpha / alpha.sum() if target == "rows" else np.full(rows, 1 / rows)
        np.testing.assert_allclose(found.p * found.weights, wanted, rtol=1e-12)
        if target == "distinct":
            assert (found.weights <= 1 / floor * (1 + 1e-12)).all()


@pytest.mark.parametrize("target", ["rows", "distinct"])
def test_reference_values(rng: np.random.Generator, target: Target) -> None:
    masses = rng.integers(1, 200, 100).tolist()
    salience = rng.integers(1, 50, 100).tolist()
    found = chances(
        Importance(beta=0.5, gamma=1, floor=0.25, target=target, least_ess=0), masses, salience
    )
    with localcontext() as context:
        context.prec = 40
        powers = [Decimal(m).sqrt() * s for m, s in zip(masses, salience, strict=True)]
        shares = [Decimal("0.75") * p / sum(powers) + Decimal("0.25") / 100 for p in powers]
        wanted = [Decimal(m) / sum(masses) if target == "rows" else Decimal("0.01") for m in masses]
        weights = [q / p for q, p in zip(wanted, shares, strict=True)]
    np.testing.assert_allclose(found.p, np.array(shares, np.float64), rtol=1e-12)
    np.testing.assert_allclose(found.weights, np.array(weights, np.float64), rtol=1e-12)


def test_the_default_is_uniform_over_distinct_rows(rng: np.random.Generator) -> None:
    found = chances(Importance(), rng.pareto(1.1, 1000) + 1)
    np.testing.assert_allclose(found.p, 1e-3, rtol=1e-12)
    assert found.ess == pytest.approx(1)


def test_beta_one_draws_as_often_as_ingested() -> None:
    found = chances(Importance(beta=1, floor=0, target="rows"), [1, 2, 5])
    wanted = [float(Fraction(n, 8)) for n in (1, 2, 5)]
    np.testing.assert_allclose(found.p, wanted, rtol=1e-15)
    np.testing.assert_allclose(found.weights, 1, rtol=1e-15)


def test_huge_and_tiny_masses_stay_in_range() -> None:
    found = chances(Importance(beta=8, floor=0), [1e-300, 1e300, 1e300])
    np.testing.assert_allclose(found.p, [0, 0.5, 0.5], rtol=1e-12)


def test_annealing_takes_weights_to_a_power(rng: np.random.Generator) -> None:
    alpha = rng.integers(1, 100, 50)
    whole = chances(Importance(beta=1, target="distinct"), alpha)
    half = chances(Importance(beta=1, target="distinct", anneal=0.5), alpha)
    none = chances(Importance(beta=1, target="distinct", anneal=0), alpha)
    np.testing.assert_allclose(half.weights**2, whole.weights, rtol=1e-12)
    assert (none.weights == 1).all()
    assert whole.ess < half.ess < none.ess == pytest.approx(1)


def test_expected_ess_is_what_samples_show(rng: np.random.Generator) -> None:
    found = chances(Importance(beta=1, target="distinct"), rng.pareto(1.5, 500) + 1)
    drawn = found.weights[rng.choice(500, 200_000, p=found.p)]
    assert kish_ess(drawn) / 200_000 == pytest.approx(found.ess, rel=0.02)


@pytest.mark.parametrize("anneal", [1.0, 0.5])
@pytest.mark.parametrize("target", ["rows", "distinct"])
@pytest.mark.parametrize("draws", [20, 150, 450, 500])
@pytest.mark.parametrize("replacement", ["with", "systematic", "bottom_k"])
def test_expected_ess_of_every_design_is_what_its_samples_show(
    replacement: Replacement,
    draws: int,
    target: Target,
    anneal: float,
    rng: np.random.Generator,
    seed: int,
) -> None:
    """Without replacement it was computed as if with it."""
    importance = Importance(
        beta=0.7, target=target, anneal=anneal, replacement=replacement, least_ess=0.0
    )
    found = chances(importance, rng.pareto(1.5, 500) + 1, draws=draws)
    sampler = prepare_sampler(importance, found)
    weights = []
    for number in range(400):
        order = sampler.order(seed=seed, pass_number=number, length=draws)
        picked = order.at(np.arange(draws))
        assert picked.weights is not None
        weights.append(picked.weights)
    # Of all passes together: Kish's size is a ratio, whose mean over small samples is another.
    seen = kish_ess(np.concatenate(weights)) / (400 * draws)
    noise = 0.04 if draws == 20 else 0.01
    varying = 1 / draws if replacement == "bottom_k" else 0.0  # the rank behind the sample does
    assert seen == pytest.approx(found.ess, rel=noise + varying)
    if replacement != "with" and draws == 500 and target == "distinct":
        assert found.ess == pytest.approx(1)  # every row once, whatever the chances


@pytest.mark.parametrize("replacement", ["systematic", "bottom_k"])
def test_a_sample_of_most_rows_is_not_refused_for_its_chances(replacement: Replacement) -> None:
    """A few heavy rows are in every sample, once: with replacement they would be most draws."""
    alpha = np.r_[np.full(20, 1e4), np.ones(980)]
    settings: dict[str, Any] = {"beta": 1, "floor": 0.01, "target": "distinct"}
    with pytest.raises(InvalidValueError, match="effective sample size"):
        chances(Importance(**settings), alpha, draws=900)
    once = Importance(**settings, replacement=replacement)
    assert chances(once, alpha, draws=900).ess > 0.9
    with pytest.raises(InvalidValueError, match="effective sample size"):
        chances(once, alpha, draws=2)  # of so few draws the heavy rows are most, here as there
    mended = chances(Importance(**settings, replacement=replacement, low_ess="raise_floor"), alpha)
    few = Importance(**settings, replacement=replacement, low_ess="raise_floor")
    assert chances(few, alpha, draws=2).ess >= 0.1
    assert mended.ess == pytest.approx(0.1, rel=1e-6)  # draws unknown: few of many


def test_a_low_effective_sample_size_is_refused_or_mended() -> None:
    salience = np.array([1000.0] + [1e-6] * 999)
    settings: dict[str, Any] = {"gamma": 1.0, "floor": 0.001, "target": "distinct"}
    with pytest.raises(
        InvalidValueError, match=r"effective sample size is .* low_ess='raise_floor'"
    ):
        chances(Importance(**settings), np.ones(1000), salience)
    found = chances(Importance(**settings, low_ess="raise_floor"), np.ones(1000), salience)
    assert found.ess == pytest.approx(0.1, rel=1e-6)
    assert found.floor > 0.05
    looser = chances(
        Importance(**settings | {"floor": found.floor - 1e-6}, least_ess=0), np.ones(1000), salience
    )
    assert looser.ess < 0.1  # the least floor that suffices


def test_no_floor_mends_uniform_draws_of_heavy_rows() -> None:
    alpha = [1e6] + [1] * 999
    with pytest.raises(InvalidValueError, match="beta nearer to 1"):
        chances(Importance(target="rows", low_ess="raise_floor"), alpha)
    assert chances(Importance(beta=1, target="rows"), alpha).ess > 0.9


def test_a_row_without_a_chance_is_refused_only_where_it_matters() -> None:
    blind = Importance(gamma=1, floor=0)
    assert chances(blind, [1, 1], [0, 1]).p.tolist() == [0, 1]
    with pytest.raises(InvalidValueError, match="no chance of being drawn"):
        chances(Importance(gamma=1, floor=0, target="distinct"), [1, 1], [0, 1])


@pytest.mark.parametrize(
    "settings",
    [
        *({"target": "rowz"}, {"replacement": "without"}, {"low_ess": "ignore"}),
        *({"beta": -1}, {"beta": float("nan")}, {"gamma": 9}, {"floor": 1.1}, {"anneal": 2}),
    ],
)
def test_settings_that_cannot_be_meant(settings: dict[str, Any]) -> None:
    with pytest.raises(InvalidValueError, match=next(iter(settings))):
        Importance(**settings)


def test_settings_of_another_type() -> None:
    with pytest.raises(InvalidTypeError, match="beta is a str"):
        Importance(beta="1")  # type: ignore[arg-type]


@pytest.mark.parametrize("alpha", [[], [[1.0]], [1, 0], [1, -1], [1, float("inf")]])
def test_masses_that_are_none(alpha: Any) -> None:
    with pytest.raises(InvalidValueError, match="alpha"):
        chances(Importance(), alpha)


@pytest.mark.parametrize("salience", [None, [1], [1, -1], [0, 0], [1, float("nan")]])
def test_saliences_that_are_none(salience: Any) -> None:
    with pytest.raises(InvalidValueError, match="salience"):
        chances(Importance(gamma=1), [1, 1], salience)
