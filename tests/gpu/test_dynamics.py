"""Steps and chains on the sphere against textbook formulas and exact laws (lake.md section 9)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from scipy import special, stats

from mldb.gpu import dynamics
from mldb.gpu.device import Dynamics
from mldb.sphere.draws import sample_rows
from mldb.sphere.langevin import expected_cosine, relaxation_rate
from mldb.sphere.vmf import mean_cosine, mean_cosine_slope

Array = npt.NDArray[Any]


class RandomDraws:
    """Noise of a NumPy generator, in the order of the calls."""

    def __init__(self, rng: np.random.Generator, rows: int, dtype: Any = np.float64) -> None:
        self.rng, self.rows, self.dtype = rng, rows, dtype

    def normals(self, step: int, dim: int) -> Array:
        return self.rng.standard_normal((self.rows, dim), self.dtype)

    def uniforms(self, step: int) -> Array:
        return self.rng.random(self.rows, self.dtype)


def unit(x: Array) -> Array:
    rows: Array = x / np.linalg.norm(x, axis=-1, keepdims=True)
    return rows


def uniform_rows(rng: np.random.Generator, count: int, dim: int, dtype: Any = np.float64) -> Array:
    return unit(rng.standard_normal((count, dim), dtype))


def cosine_density(dim: int, kappa: float) -> tuple[Array, Array]:
    """The exact law of mu.x under exp(kappa mu.x): (1 - t^2)^((d - 3) / 2) exp(kappa t)."""
    grid = np.linspace(-1, 1, 400_001)[1:-1]
    log_density = (dim - 3) / 2 * np.log1p(-grid * grid) + kappa * grid
    density = np.exp(log_density - log_density.max())
    return grid, density / np.trapezoid(density, grid)


def cosine_pvalue(cosines: Array, dim: int, kappa: float) -> float:
    grid, density = cosine_density(dim, kappa)
    cumulative = np.concatenate([[0], np.cumsum((density[1:] + density[:-1]) / 2 * np.diff(grid))])
    law = np.interp(cosines, grid, cumulative / cumulative[-1])
    return float(stats.kstest(law, "uniform").pvalue)


def plain_step(
    x: Array, mu: Array, kappa: Array, weight: Array, xi: Array, eps: float, temperature: float
) -> tuple[Array, float]:
    """One row, by the textbook: the step, and the log of its acceptance."""

    def energy(point: Array) -> tuple[float, Array]:
        exponents = weight + kappa * (mu @ point - 1)
        value = -float(special.logsumexp(exponents))
        g = -(np.exp(exponents + value) * kappa) @ mu
        return value, g - point * (point @ g)

    value, gradient = energy(x)
    v = -eps * gradient + np.sqrt(2 * eps * temperature) * (xi - x * (x @ xi))
    size = np.linalg.norm(v)
    moved = np.cos(size) * x + np.sin(size) * v / size
    moved /= np.linalg.norm(moved)
    other, other_gradient = energy(moved)
    back = -size * (np.cos(size) * v / size - np.sin(size) * x)
    forth_square = np.sum((v + eps * gradient) ** 2)
    back_square = np.sum((back + eps * other_gradient) ** 2)
    log_ratio = -(other - value) / temperature
    log_ratio += (forth_square - back_square) / (4 * eps * temperature)
    return moved, log_ratio if size < np.pi else -np.inf


@pytest.mark.parametrize(("dim", "eps"), [(3, 0.02), (64, 0.002), (640, 2e-4), (640, 0.01)])
def test_one_step_is_the_textbook_step(dim: int, eps: float, rng: np.random.Generator) -> None:
    x, mu = uniform_rows(rng, 20, dim), uniform_rows(rng, 20 * 5, dim).reshape(20, 5, dim)
    mu[0, 1:] = mu[0, 0]
    x[1] = mu[1, 2]
    kappa, weight = rng.uniform(10, 300, (20, 5)), rng.normal(size=(20, 5))
    xi, temperature = rng.standard_normal((20, dim)), 0.7

    value, gradient = dynamics.mixture_energy(x, mu, kappa, weight)
    v = dynamics.velocity(x, gradient, xi, eps, temperature)
    moved = dynamics.exponential(x, v)
    other, other_gradient = dynamics.mixture_energy(moved, mu, kappa, weight)
    start = dynamics.Point(x, value, dynamics.tangent(x, gradient))
    end = dynamics.Point(moved, other, dynamics.tangent(moved, other_gradient))
    ratio = dynamics.log_acceptance(start, v, end, eps, temperature)
    for row in range(20):
        arguments = (x[row], mu[row], kappa[row], weight[row], xi[row])
        expected, expected_ratio = plain_step(*arguments, eps, temperature)
        assert np.abs(moved[row] - expected).max() < 1e-10
        assert ratio[row] == pytest.approx(expected_ratio, rel=1e-10, abs=1e-9)


def test_steps_of_half_a_turn_are_rejected(rng: np.random.Generator) -> None:
    x = uniform_rows(rng, 2, 8)
    v = dynamics.tangent(x, rng.standard_normal((2, 8)))
    v *= np.array([[3.1], [3.2]]) / np.linalg.norm(v, axis=1, keepdims=True)
    moved = dynamics.exponential(x, v)
    flat = np.zeros((2, 8))
    points = [dynamics.Point(p, np.zeros(2), flat) for p in (x, moved)]
    ratio = dynamics.log_acceptance(points[0], v, points[1], 0.1, 1.0)
    assert np.isfinite(ratio[0])
    assert ratio[1] == -np.inf


def test_logarithm_undoes_exponential(rng: np.random.Generator) -> None:
    x = uniform_rows(rng, 50, 9)
    v = dynamics.tangent(x, rng.standard_normal((50, 9)))
    v *= rng.uniform(0, 3, (50, 1)) / np.linalg.norm(v, axis=1, keepdims=True)
    assert np.abs(dynamics.logarithm(x, dynamics.exponential(x, v)) - v).max() < 1e-12
    assert np.array_equal(dynamics.exponential(x, v * 0), dynamics.unit_length(x))


def self_energy(x: Array, mu: Array, kappa: Array) -> tuple[Array, Array]:
    """E [B] = -kappa (mu.x - 1) of rows under their own splats, and its gradient [B, d]."""
    force = kappa[:, None] * mu
    return kappa - dynamics.dot(force, x)[:, 0], -force


def test_self_energy_is_a_mixture_of_one(rng: np.random.Generator) -> None:
    x, mu, kappa = uniform_rows(rng, 9, 12), uniform_rows(rng, 9, 12), rng.uniform(1, 99, 9)
    value, gradient = self_energy(x, mu, kappa)
    mixture = dynamics.mixture_energy(x, mu[:, None], kappa[:, None], np.zeros((9, 1)))
    assert np.allclose(value, mixture[0], rtol=1e-13)
    assert np.allclose(gradient, mixture[1], rtol=1e-13)


def run_from_uniform(
    rng: np.random.Generator, dim: int, kappa: float, settings: Dynamics, dtype: Any
) -> tuple[Array, Array]:
    """Cosines to mu and accepted steps of 1 500 chains."""
    rows = 1500
    mu = np.zeros((1, dim), dtype)
    mu[0, 0] = 1
    concentrations = np.full(rows, kappa, dtype)
    x, accepted = dynamics.run_chain(
        uniform_rows(rng, rows, dim, dtype),
        lambda at: self_energy(at, mu, concentrations),
        RandomDraws(rng, rows, dtype),
        settings,
    )
    assert x.dtype == dtype
    return x[:, 0].astype(np.float64), accepted


@pytest.mark.slow
@pytest.mark.parametrize(("dim", "kappa"), [(3, 5.0), (64, 42.4), (640, 426.4)])
def test_long_mala_chains_have_the_exact_law(
    dim: int, kappa: float, rng: np.random.Generator
) -> None:
    settings = Dynamics(120, 0.1 / relaxation_rate(kappa, dim, 1.0), method="mala")
    cosines, accepted = run_from_uniform(rng, dim, kappa, settings, np.float32)
    mean, slope = mean_cosine(kappa, dim), mean_cosine_slope(kappa, dim)
    assert abs(cosines.mean() - mean) <= 4 * np.sqrt(slope / len(cosines))
    assert cosine_pvalue(cosines, dim, kappa) > 1e-3
    assert 0.9 < accepted.mean() / settings.steps < 1


def test_coarse_ula_fails_the_same_test(rng: np.random.Generator) -> None:
    """The bias of ULA is there and the test has the power to see it."""
    settings = Dynamics(40, 0.3 / relaxation_rate(426.4, 640, 1.0))
    cosines, _ = run_from_uniform(rng, 640, 426.4, settings, np.float32)
    assert cosine_pvalue(cosines, 640, 426.4) < 1e-6
    assert abs(cosines.mean() - 0.482) < 0.005


@pytest.mark.parametrize("relative_step", [0.05, 0.5])
def test_near_its_mean_a_chain_is_an_ornstein_uhlenbeck_process(
    relative_step: float, rng: np.random.Generator
) -> None:
    """At kappa 10^6 the sphere is flat: each tangent axis has variance T / (kappa (1 - h / 2))."""
    rows, kappa, temperature = 8000, 1e6, 2.0
    eps = relative_step / kappa
    mu = np.zeros((1, 3))
    mu[0, 0] = 1
    x, _ = dynamics.run_chain(
        np.repeat(mu, rows, 0),
        lambda at: self_energy(at, mu, np.full(rows, kappa)),
        RandomDraws(rng, rows),
        Dynamics(round(12 / relative_step), eps, temperature),
    )
    ratio = (x[:, 1:] ** 2).mean() / (temperature / kappa / (1 - relative_step / 2))
    bound = 5 * np.sqrt(2 / (2 * rows))
    assert abs(ratio - 1) <= bound
    if relative_step == 0.5:  # the discretisation is visible: the continuous law must fail
        assert abs((x[:, 1:] ** 2).mean() / (temperature / kappa) - 1) > bound


@pytest.mark.parametrize(
    ("dim", "kappa", "steps"), [(64, 140.5, 5), (64, 140.5, 20), (640, 3027.0, 5)]
)
def test_expected_cosine_follows_the_riccati_equation(
    dim: int, kappa: float, steps: int, rng: np.random.Generator
) -> None:
    rows, eps = 1000, 0.05 / relaxation_rate(kappa, dim, 1.0)
    mu = uniform_rows(rng, 1, dim)
    x, _ = dynamics.run_chain(
        np.repeat(mu, rows, 0),
        lambda at: self_energy(at, mu, np.full(rows, kappa)),
        RandomDraws(rng, rows),
        Dynamics(steps, eps),
    )
    expected = float(expected_cosine(steps * eps, kappa, dim, 1.0))
    assert abs((x @ mu[0]).mean() - expected) < 0.01


def test_mala_keeps_samples_of_a_mixture(rng: np.random.Generator) -> None:
    dim, kappa, rows = 24, 40.0, 3000
    mu, weights = uniform_rows(rng, 4, dim), np.array([4.0, 2.0, 1.0, 1.0])
    mu[1] = unit(mu[0] + 0.5 * mu[1])  # two of them overlap
    shared = (
        np.broadcast_to(mu, (rows, 4, dim)),
        np.full((rows, 4), kappa),
        np.broadcast_to(np.log(weights), (rows, 4)),
    )
    settings = Dynamics(100, 0.15 / relaxation_rate(kappa, dim, 1.0), method="mala")
    owners = rng.choice(4, (2, rows), p=weights / weights.sum())
    start, fresh = (sample_rows(mu[owner], kappa, rng) for owner in owners)

    def at(x: Array) -> tuple[Array, Array]:
        return dynamics.mixture_energy(x, *shared)

    x, _ = dynamics.run_chain(start, at, RandomDraws(rng, rows), settings)
    assert np.abs(dynamics.dot(x, start)).mean() < 0.9  # the chains have moved
    assert stats.ks_2samp(at(x)[0], at(fresh)[0]).pvalue > 1e-3
    for component in range(4):
        shares = [(np.argmax(rows_ @ mu.T, 1) == component).mean() for rows_ in (x, start)]
        deviation = np.sqrt(shares[1] * (1 - shares[1]) / rows)
        assert abs(shares[0] - shares[1]) <= 4 * np.sqrt(2) * deviation

    coarse = replace(settings, step_size=settings.step_size * 8, method="ula")
    x, _ = dynamics.run_chain(start, at, RandomDraws(rng, rows), coarse)
    assert stats.ks_2samp(at(x)[0], at(fresh)[0]).pvalue < 1e-6
