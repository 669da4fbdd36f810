"""The time scales of a Langevin walk against the walk itself."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mldb.errors import InvalidValueError
from mldb.sphere import vmf
from mldb.sphere.langevin import expected_cosine, relaxation_rate, step_size, temperature_for


@pytest.mark.parametrize("dim, kappa", [(64, 140.5), (640, 426.4), (640, 3027.0)])
def test_expected_cosine_solves_the_drift(dim: int, kappa: float) -> None:
    """Against small Euler steps of t' = kappa (1 - t^2) - T (d-1) t."""
    temperature, steps = 0.7, 20_000
    total = 2 / relaxation_rate(kappa, dim, temperature)
    t = 1.0
    for _ in range(steps):
        t += total / steps * (kappa * (1 - t * t) - temperature * (dim - 1) * t)
    assert float(expected_cosine(total, kappa, dim, temperature)) == pytest.approx(t, abs=1e-4)


def test_expected_cosine_values() -> None:
    """What the formula gave where it was compared with simulated walks, at T = 1."""
    for dim, kappa, h, steps, expected in (
        (64, 140.5, 0.05, 5, 0.9526),
        (64, 140.5, 0.05, 20, 0.8697),
        (640, 426.4, 0.05, 5, 0.8730),
        (640, 426.4, 0.05, 20, 0.6635),
        (640, 3027.0, 0.05, 5, 0.9770),
        (640, 3027.0, 0.2, 5, 0.9357),
    ):
        time = steps * step_size(h, kappa, dim, 1.0)
        assert float(expected_cosine(time, kappa, dim, 1.0)) == pytest.approx(expected, abs=6e-5)


@given(
    st.integers(2, 4096),
    st.floats(-2, 6).map(lambda power: float(10.0**power)),
    st.floats(-3, 3).map(lambda power: float(10.0**power)),
)
def test_expected_cosine_falls_from_one_to_the_stationary_mean(
    dim: int, kappa: float, temperature: float
) -> None:
    rate = relaxation_rate(kappa, dim, temperature)
    cosines = expected_cosine(np.array([0, 0.1, 1, 3, 60]) / rate, kappa, dim, temperature)
    assert cosines[0] == pytest.approx(1, abs=1e-12)
    assert np.all(np.diff(cosines) <= 1e-15)
    stationary = float(vmf.mean_cosine(kappa / temperature, dim))
    assert float(cosines[-1]) == pytest.approx(stationary, abs=1 / dim)


def test_rate_is_the_one_of_the_stationary_mean() -> None:
    """lam = 2 kappa A + T (d-1), up to the O(1/d) of the mean field."""
    rate = relaxation_rate(426.4, 640, 1.0)
    assert rate == pytest.approx(2 * 426.4 * 0.5 + 639, rel=2e-3)
    assert step_size(0.3, 426.4, 640, 1.0) * rate == pytest.approx(0.3)


@given(
    st.integers(2, 4096), st.floats(0.01, 0.9999), st.floats(-1, 5).map(lambda p: float(10.0**p))
)
def test_temperature_gives_the_strength(dim: int, strength: float, bandwidth: float) -> None:
    temperature = temperature_for(strength, bandwidth, dim)
    assert float(vmf.mean_cosine(bandwidth / temperature, dim)) == pytest.approx(strength, rel=1e-8)


@pytest.mark.parametrize("wrong", [0.0, -1.0, math.nan, math.inf])
def test_wrong_scales(wrong: float) -> None:
    for call in (
        lambda: relaxation_rate(wrong, 3, 1.0),
        lambda: relaxation_rate(1.0, 3, wrong),
        lambda: step_size(wrong, 1.0, 3, 1.0),
        lambda: expected_cosine(1.0, 1.0, 3, wrong),
        lambda: temperature_for(0.5, wrong, 3),
        lambda: temperature_for(wrong, 1.0, 3),
    ):
        with pytest.raises(InvalidValueError):
            call()
    with pytest.raises(InvalidValueError, match="time"):
        expected_cosine([0.0, -1.0], 1.0, 3, 1.0)
    with pytest.raises(InvalidValueError, match="dim"):
        relaxation_rate(1.0, 1, 1.0)
