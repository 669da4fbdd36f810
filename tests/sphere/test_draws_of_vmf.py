"""Draws against the exact law of the angle to the mean.

The law of the angle is integrated numerically here; a law that is a tenth too concentrated must
fail the same test.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from mldb.errors import InvalidTypeError, InvalidValueError, LimitError
from mldb.sphere import vmf
from mldb.sphere.draws import ROUNDS_MAX, sample, sample_rows

DRAWS = 5000
LAWS = [(2, 1.0), (2, 50.0), (3, 5.0), (16, 0.0), (64, 42.4), (640, 426.4), (640, 3027.0)]
SHARP = [(2, 1e6), (3, 1e6), (640, 1e6), (4096, 1e7)]


class CountingGenerator(np.random.Generator):
    """Counts the rounds of rejection."""

    rounds = 0

    def beta(self, *args: Any, **kwargs: Any) -> Any:
        self.rounds += 1
        return super().beta(*args, **kwargs)


class StuckGenerator(np.random.Generator):
    """Proposes the same refused cosine for ever."""

    def beta(self, a: Any, b: Any, size: Any = None) -> Any:
        return np.full(size, 1 - 1e-9)

    def standard_exponential(self, size: Any = None, *args: Any, **kwargs: Any) -> Any:
        return np.zeros(size)


def direction(rng: np.random.Generator, dim: int) -> npt.NDArray[np.float64]:
    row = rng.standard_normal(dim)
    return np.asarray(row / np.linalg.norm(row))


def angles_to(mu: npt.NDArray[Any], rows: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """Angles, accurate for small ones, whose cosines round to 1."""
    return np.asarray(2 * np.arcsin(np.minimum(np.linalg.norm(rows - mu, axis=1) / 2, 1)))


def angle_p_value(angles: npt.NDArray[Any], kappa: float, dim: int) -> float:
    """The Kolmogorov-Smirnov p of angles, whose density is sin(a)^(d-2) exp(kappa cos(a))."""
    grid = np.linspace(0, np.pi, 400_001)[1:-1]
    for _ in range(2):  # the second time where the mass is
        logs = (dim - 2) * np.log(np.sin(grid)) - 2 * kappa * np.sin(grid / 2) ** 2
        inside = grid[logs > logs.max() - 50]
        grid = np.linspace(inside[0], inside[-1], 400_001)[1:-1]
    logs = (dim - 2) * np.log(np.sin(grid)) - 2 * kappa * np.sin(grid / 2) ** 2
    cdf = np.cumsum(np.exp(logs - logs.max()))
    cdf = (cdf - np.exp(logs - logs.max()) / 2) / cdf[-1]
    return float(stats.kstest(angles, lambda a: np.interp(a, grid, cdf)).pvalue)


@pytest.mark.parametrize("dim, kappa", LAWS)
def test_draws_follow_the_law(dim: int, kappa: float, rng: np.random.Generator) -> None:
    mu = direction(rng, dim)
    rows = sample(mu, kappa, DRAWS, rng)
    assert rows.shape == (DRAWS, dim)
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-14)
    error = math.sqrt(float(vmf.mean_cosine_slope(kappa, dim)) / DRAWS)
    assert abs((rows @ mu).mean() - float(vmf.mean_cosine(kappa, dim))) <= 4 * error
    angles = angles_to(mu, rows)
    assert angle_p_value(angles, kappa, dim) > 1e-3
    if kappa > 30:
        assert angle_p_value(angles, 1.2 * kappa, dim) < 1e-6


@pytest.mark.parametrize("dim, kappa", SHARP)
def test_sharp_draws_follow_the_law(dim: int, kappa: float, rng: np.random.Generator) -> None:
    count = min(DRAWS, 4_000_000 // dim)
    mu = direction(rng, dim)
    angles = angles_to(mu, sample(mu, kappa, count, rng))
    assert angle_p_value(angles, kappa, dim) > 1e-3
    assert angle_p_value(angles, 1.2 * kappa, dim) < 1e-6


@pytest.mark.parametrize("dim", [3, 64])
def test_directions_around_the_mean_are_uniform(dim: int, rng: np.random.Generator) -> None:
    mu = direction(rng, dim)
    rows = sample(mu, 3.0 * dim, DRAWS, rng)
    rest = rows - np.outer(rows @ mu, mu)
    rest /= np.linalg.norm(rest, axis=1, keepdims=True)
    for _ in range(2):
        across = direction(rng, dim)
        across -= mu * (mu @ across)
        cosines = rest @ (across / np.linalg.norm(across))
        halves = (dim - 2) / 2
        assert stats.kstest((1 + cosines) / 2, stats.beta(halves, halves).cdf).pvalue > 1e-3


@pytest.mark.parametrize("dim", [2, 3, 640, 4096])
def test_rejection_takes_few_rounds(dim: int) -> None:
    rng = CountingGenerator(np.random.PCG64(dim))
    kappas = np.repeat([0.0, 1e-6, 1.0, 1e3, 1e6, 1e7, vmf.KAPPA_MAX], 40)
    sample_rows(np.broadcast_to(np.eye(dim)[0], (len(kappas), dim)), kappas, rng)
    assert 1 <= rng.rounds <= 30


def test_rejection_ends_with_a_broken_generator() -> None:
    with pytest.raises(InvalidValueError, match=f"{ROUNDS_MAX} rounds"):
        sample(np.eye(3)[0], 5.0, 2, StuckGenerator(np.random.PCG64(0)))


@given(
    st.integers(0, 2**32 - 1),
    st.integers(2, 50),
    st.floats(-6, 7).map(lambda power: float(10.0**power)),
)
def test_draws_are_unit_vectors_on_any_side(seed: int, dim: int, kappa: float) -> None:
    rng = np.random.default_rng(seed)
    means = np.concatenate([np.eye(dim), -np.eye(dim), [direction(rng, dim)]])
    rows = sample_rows(means, kappa, rng)
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-14)
    distances = np.linalg.norm(rows - means, axis=1)
    typical = math.sqrt(2 - 2 * float(vmf.mean_cosine(kappa, dim)))
    assert np.all(distances <= 12 * typical)


def test_each_row_has_its_own_law(rng: np.random.Generator) -> None:
    means = np.repeat([direction(rng, 16), direction(rng, 16)], 2000, axis=0)
    kappas = np.repeat([4.0, 400.0], 2000)
    rows = sample_rows(means, kappas, rng)
    for half, kappa in ((slice(2000), 4.0), (slice(2000, None), 400.0)):
        assert angle_p_value(angles_to(means[half], rows[half]), kappa, 16) > 1e-3


def test_the_generator_decides(seed: int) -> None:
    mu = np.eye(5)[2]
    first, again, other = (
        sample(mu, 9.0, 4, np.random.default_rng(number)) for number in (seed, seed, seed + 1)
    )
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)
    assert sample(mu, 9.0, 0, np.random.default_rng(seed)).shape == (0, 5)


def test_wrong_arguments(rng: np.random.Generator) -> None:
    mu = np.eye(3)[0]
    for wrong_mu in (mu * 2, mu * math.nan, np.eye(3), np.ones(1), np.float64(1)):
        with pytest.raises(InvalidValueError):
            sample(wrong_mu, 1.0, 2, rng)
    for wrong_kappa in (-1.0, math.nan):
        with pytest.raises(InvalidValueError, match="kappa"):
            sample(mu, wrong_kappa, 2, rng)
    with pytest.raises(LimitError, match="kappa"):
        sample(mu, math.inf, 2, rng)
    with pytest.raises(InvalidValueError, match="count"):
        sample(mu, 1.0, -1, rng)
    for count in (1.5, True, "2"):
        with pytest.raises(InvalidTypeError, match="count"):
            sample(mu, 1.0, count, rng)  # type: ignore[arg-type]
    with pytest.raises(InvalidValueError, match="kappa"):
        sample_rows(np.eye(3), [1.0, 2.0], rng)
    with pytest.raises(InvalidValueError, match="mu"):
        sample_rows(mu, 1.0, rng)
