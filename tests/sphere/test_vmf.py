"""The law: A_d, its slope and inverse, C_d and the estimate from rows.

Reference values come from mpmath (tests/support/vmf_reference.py). Beside them stand a model that
works differently (the whole continued fraction, by modified Lentz) and the identities that tie the
functions to each other, which hold where no reference was computed.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mldb.errors import InvalidTypeError, InvalidValueError, LimitError
from mldb.sphere import vmf
from mldb.sphere.draws import sample
from tests.support import vmf_reference
from tests.support.parts import examples
from tests.support.vmf_reference import INVERSES, LAWS, Inverse, Law

EVERY_DIM = (2, 3, 4, 5, 16, 38, 39, 40, 41, 63, 64, 384, 640, 2048, 4096)  # 40: a seam

dims = st.integers(2, 4096)
kappas = st.floats(-6, 7).map(lambda power: float(10.0**power))


def lentz(kappa: float, dim: int) -> float:
    """A_d by the Gauss continued fraction alone, from its near end to convergence."""
    value = c = 1e-300  # not zero, and gone after the first term
    d = 0.0
    for j in range(1, 100_000):
        b = (dim - 2 + 2 * j) / kappa
        c, d = b + 1 / c, 1 / (b + d)
        value *= c * d
        if abs(c * d - 1) < 1e-16:
            return value
    raise AssertionError("no convergence")


def bound(digits: float, *kappa_terms: float) -> float:
    """An absolute tolerance: *digits*, plus the rounding of terms of this size."""
    return digits + 8 * float(np.finfo(float).eps) * max(map(abs, kappa_terms), default=0.0)


@pytest.mark.parametrize("law", LAWS, ids=lambda law: f"{law.dim}-{law.kappa:g}")
def test_law_equals_reference(law: Law) -> None:
    assert float(vmf.mean_cosine(law.kappa, law.dim)) == pytest.approx(law.mean_cosine, rel=1e-13)
    assert float(vmf.mean_cosine_slope(law.kappa, law.dim)) == pytest.approx(law.slope, rel=1e-11)
    tolerance = bound(1e-9, law.log_normalizer)
    assert abs(float(vmf.log_normalizer(law.kappa, law.dim)) - law.log_normalizer) <= tolerance
    peak = law.log_normalizer + law.kappa
    tolerance = bound(1e-9, law.log_normalizer, law.kappa)
    assert abs(float(vmf.log_peak_density(law.kappa, law.dim)) - peak) <= tolerance


def test_reference_is_what_mpmath_says() -> None:
    pytest.importorskip("mpmath")
    laws = [law for law in LAWS if law.kappa != 3e4 and law.dim in (3, 640)]  # the quick ones
    assert [vmf_reference.compute_law(law.dim, law.kappa) for law in laws] == laws
    inverses = [row for row in INVERSES if row.kappa < 1000]
    assert [vmf_reference.compute_inverse(r.dim, r.mean_cos) for r in inverses] == inverses


@given(dims, st.floats(-3, 3.5).map(lambda power: float(10.0**power)))
def test_mean_cosine_is_the_whole_continued_fraction(dim: int, kappa: float) -> None:
    assert float(vmf.mean_cosine(kappa, dim)) == pytest.approx(lentz(kappa, dim), rel=1e-13)


@pytest.mark.parametrize("dim", EVERY_DIM)
def test_everything_is_finite_and_mean_cosine_increases(dim: int) -> None:
    kappa = np.geomspace(1e-6, 1e7, 300)
    mean = vmf.mean_cosine(kappa, dim)
    assert np.all(np.diff(mean) > 0)
    assert np.all((mean > 0) & (mean < 1))
    slope = vmf.mean_cosine_slope(kappa, dim)
    assert np.all(np.diff(slope) <= 1e-15 * slope[1:])  # A is concave
    assert np.all((slope > 0) & (slope <= (1 + 1e-14) / dim))
    assert np.isfinite(vmf.log_normalizer(kappa, dim)).all()


@given(dims, kappas)
def test_neighbouring_dimensions_fit(dim: int, kappa: float) -> None:
    mean, above = float(vmf.mean_cosine(kappa, dim)), float(vmf.mean_cosine(kappa, dim + 2))
    assert mean * (dim / kappa + above) == pytest.approx(1, rel=1e-13)
    step = float(vmf.log_peak_density(kappa, dim) - vmf.log_peak_density(kappa, dim + 2))
    assert step == pytest.approx(math.log(2 * math.pi * mean / kappa), abs=1e-9)


@given(dims, kappas)
def test_slope_is_the_variance_of_the_cosine(dim: int, kappa: float) -> None:
    mean = float(vmf.mean_cosine(kappa, dim))
    variance = 1 - mean * mean - (dim - 1) * mean / kappa
    assert abs(float(vmf.mean_cosine_slope(kappa, dim)) - variance) <= 1e-14 * (1 + dim)


@given(dims, kappas)
def test_log_normalizer_falls_by_the_mean_cosine(dim: int, kappa: float) -> None:
    """d log C / d kappa = -A_d, here for log C + kappa, over 1 % of kappa (Simpson's rule)."""
    ends = kappa * np.array([1.0, 1.005, 1.01])
    rise = float(np.diff(vmf.log_peak_density(ends[[0, 2]], dim))[0])
    missing = float((1 - vmf.mean_cosine(ends, dim)) @ [1, 4, 1]) / 6 * (ends[2] - ends[0])
    assert rise == pytest.approx(missing, rel=1e-8, abs=1e-10)


def test_three_dimensions_in_closed_form() -> None:
    kappa = np.geomspace(1e-3, 300, 50)
    mean = 1 / np.tanh(kappa) - 1 / kappa
    np.testing.assert_allclose(vmf.mean_cosine(kappa, 3), mean, rtol=1e-9)  # coth cancels
    log_c = np.log(kappa / (4 * np.pi * np.sinh(kappa)))
    np.testing.assert_allclose(vmf.log_normalizer(kappa, 3), log_c, atol=1e-12)


@pytest.mark.parametrize("dim", EVERY_DIM)
def test_limits(dim: int) -> None:
    ends = np.array([0.0, vmf.KAPPA_MAX])
    np.testing.assert_allclose(vmf.mean_cosine(ends, dim), [0, 1], rtol=2e-16)
    slope = vmf.mean_cosine_slope(ends, dim)
    assert slope[0] == pytest.approx(1 / dim)
    assert 0 <= slope[1] < 1e-50
    area = math.log(2) + dim / 2 * math.log(math.pi) - math.lgamma(dim / 2)
    assert float(vmf.log_normalizer(0.0, dim)) == pytest.approx(-area, abs=1e-9)
    assert np.isfinite(vmf.log_normalizer(vmf.KAPPA_MAX, dim))


def test_kappa_ten_is_uniform_at_640_and_peaks_shift_by_173() -> None:
    assert float(vmf.mean_cosine(10.0, 640)) == pytest.approx(0.0156, abs=5e-5)
    peaks = vmf.log_peak_density(np.array([500.0, 1000.0]), 640)
    assert float(peaks[1] - peaks[0]) == pytest.approx(173, abs=0.5)


@pytest.mark.parametrize("dim, error", [(3, 3.1e-2), (64, 1.5e-3), (640, 1.5e-4)])
def test_fast_form_is_a_close_lower_bound(dim: int, error: float) -> None:
    kappa = np.geomspace(1e-6, 1e7, 300)
    exact, fast = vmf.mean_cosine(kappa, dim), vmf.mean_cosine_fast(kappa, dim)
    assert np.all(fast <= exact * (1 + 1e-13))
    shortfall = float((1 - fast / exact).max())
    assert error / 1.2 < shortfall < error
    assert vmf.mean_cosine_fast(kappa.astype(np.float32), dim).dtype == np.float32


@pytest.mark.parametrize("row", INVERSES, ids=lambda row: f"{row.dim}-{row.mean_cos}")
def test_concentration_equals_reference(row: Inverse) -> None:
    assert float(vmf.concentration(row.mean_cos, row.dim)) == pytest.approx(row.kappa, rel=1e-10)


@given(dims, st.floats(*vmf.MEAN_COS_CLAMP))
def test_concentration_is_the_inverse(dim: int, mean_cos: float) -> None:
    kappa = vmf.concentration(mean_cos, dim)
    error = float((vmf.mean_cosine(kappa, dim) - mean_cos) / vmf.mean_cosine_slope(kappa, dim))
    assert abs(error) <= 1e-10 * float(kappa)


@pytest.mark.parametrize(
    "dim, table",
    [
        (64, [1.0, 6.46, 21.05, 42.40, 86.94, 140.5, 298.9, 614.4, 3135]),
        (384, [6.0, 38.8, 126.5, 255.7, 526.2, 851.6, 1815, 3732, 19054]),
        (640, [10.0, 64.6, 210.9, 426.4, 877.5, 1420, 3027, 6227, 31790]),
    ],
)
def test_kappas_of_usual_mean_cosines(dim: int, table: list[float]) -> None:
    mean_cos = [0.0156, 0.1, 0.3, 0.5, 0.7, 0.8, 0.9, 0.95, 0.99]
    found = vmf.concentration(mean_cos, dim, clamp=(0.01, 0.9995))
    np.testing.assert_allclose(found, table, rtol=3e-3)  # three digits; .0156 is rounded too
    np.testing.assert_allclose(found[4:], table[4:], rtol=5e-4)


def test_concentration_clamps() -> None:
    low, high = vmf.concentration(vmf.MEAN_COS_CLAMP, 640)
    found = vmf.concentration([-0.3, 0.0, 0.02, 0.9995, 1.0, 1.00001], 640)
    assert found.tolist() == [low, low, low, high, high, high]
    wide = vmf.concentration([1e-6, 1 - 1e-9], 640, clamp=(1e-6, 1 - 1e-9))
    np.testing.assert_allclose(vmf.mean_cosine(wide, 640), [1e-6, 1 - 1e-9], rtol=1e-12)


def test_shape_follows_the_argument() -> None:
    for shape in ((), (3,), (2, 1, 3), (0,)):
        kappa = np.full(shape, 7, np.int32)
        for function in (vmf.mean_cosine, vmf.mean_cosine_slope, vmf.log_normalizer):
            assert function(kappa, 5).shape == shape
            assert function(kappa, 5).dtype == np.float64
        assert vmf.concentration(np.full(shape, 0.5, np.float32), 5).shape == shape


def test_estimate_is_unbiased_where_the_mean_length_is_not(rng: np.random.Generator) -> None:
    dim, rows, repeats = 640, 11, 150
    mu = np.eye(dim)[0]
    for kappa, naive_least in ((10.0, 190.0), (426.4, 500.0)):
        draws = [sample(mu, kappa, rows, rng) for _ in range(repeats)]
        cosines = np.array([vmf.mean_pairwise_cosine(rows) for rows in draws])
        expected = float(vmf.mean_cosine(kappa, dim)) ** 2
        error = cosines.std(ddof=1) / math.sqrt(repeats)
        assert abs(cosines.mean() - expected) <= 4 * error
        naive = [float(vmf.concentration(np.linalg.norm(d.mean(axis=0)), dim)) for d in draws]
        assert np.mean(naive) > naive_least  # what is avoided
        estimates = [vmf.estimate_concentration(rows) for rows in draws]
        assert abs(np.mean(estimates) - kappa) < 20


@pytest.mark.parametrize("kappas", [(0.0, 4.0), (4.0, 0.0), (3.0, 3.0), (2.0, 50.0), (50.0, 2.0)])
@pytest.mark.parametrize("angle", [0.0, 0.01, 1.0, np.pi])
def test_divergence_is_the_integral(kappas: tuple[float, float], angle: float) -> None:
    """On the circle, where the trapezoid rule is exact to rounding."""
    x = np.linspace(-np.pi, np.pi, 4096, endpoint=False)
    logs = [
        kappa * np.cos(x - at) + float(vmf.log_normalizer(kappa, 2))
        for kappa, at in zip(kappas, (0, angle), strict=True)
    ]
    integral = (np.exp(logs[0]) * (logs[0] - logs[1])).mean() * 2 * np.pi
    assert float(vmf.divergence(*kappas, angle, 2)) == pytest.approx(integral, rel=1e-11, abs=1e-11)


@examples(60)
@given(dims, kappas, kappas, st.floats(0, np.pi))
def test_divergence_is_its_formula(dim: int, one: float, two: float, angle: float) -> None:
    logs = [float(vmf.log_normalizer(kappa, dim)) for kappa in (one, two)]
    plain = logs[0] - logs[1] + float(vmf.mean_cosine(one, dim)) * (one - two * np.cos(angle))
    slack = bound(1e-9, one, two, *logs)
    assert float(vmf.divergence(one, two, angle, dim)) == pytest.approx(max(plain, 0), abs=slack)


@pytest.mark.parametrize("dim", [2, 3, 64, 640])
def test_divergence_of_narrow_laws_keeps_its_digits(dim: int) -> None:
    """In the plain form nothing is left of it: log C is 1e14 there, the divergence below 1."""
    kappa = np.array([1.0, 1e7, 1e14])
    assert (vmf.divergence(kappa, kappa, 0.0, dim) == 0).all()
    angle = 1 / np.sqrt(kappa)
    assert vmf.divergence(kappa, kappa, angle, dim)[1:] == pytest.approx(0.5, rel=1e-4)
    wider = vmf.divergence(kappa, kappa / 2, 0.0, dim)
    flat = (dim - 1) / 2 * (np.log(2) - 0.5)  # of two normal laws
    assert wider[1] == pytest.approx(flat, rel=1e-3)


def test_estimate_of_rows_that_repel_is_the_lower_clamp() -> None:
    rows = np.array([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0]])
    assert vmf.mean_pairwise_cosine(rows) == pytest.approx(-1 / 3)
    lowest = float(vmf.concentration(vmf.MEAN_COS_CLAMP[0], 2))
    assert vmf.estimate_concentration(rows) == lowest
    assert vmf.estimate_concentration(rows[[0, 0]].astype(np.float32)) == pytest.approx(
        float(vmf.concentration(1.0, 2))
    )


@pytest.mark.parametrize("kappa", [-1.0, math.nan, [1.0, math.nan], -math.inf])
def test_wrong_kappas(kappa: float | list[float]) -> None:
    for function in (vmf.mean_cosine, vmf.mean_cosine_slope, vmf.log_normalizer):
        with pytest.raises(InvalidValueError, match="kappa"):
            function(kappa, 3)


def test_wrong_arguments() -> None:
    for huge in (math.inf, 2 * vmf.KAPPA_MAX):
        with pytest.raises(LimitError, match="kappa"):
            vmf.mean_cosine(huge, 3)
    wrong: Any
    for wrong in ("1", 1j, None, True):
        with pytest.raises(InvalidTypeError, match="kappa"):
            vmf.mean_cosine(wrong, 3)
    for wrong in (1, 0, -3):
        with pytest.raises(InvalidValueError, match="dim"):
            vmf.mean_cosine(1.0, wrong)
    for wrong in (3.0, "3", True):
        with pytest.raises(InvalidTypeError, match="dim"):
            vmf.mean_cosine(1.0, wrong)
    for mean_cos in (math.nan, 1.1, -2.0):
        with pytest.raises(InvalidValueError, match="mean_cos"):
            vmf.concentration(mean_cos, 3)
    for clamp in ((0.0, 0.5), (0.5, 1.0), (0.5, 0.4), (math.nan, 0.5)):
        with pytest.raises(InvalidValueError, match="clamp"):
            vmf.concentration(0.5, 3, clamp=clamp)
    for rows in (np.ones((1, 3)), np.ones(3), np.ones((2, 3)), np.full((2, 3), math.nan)):
        with pytest.raises(InvalidValueError, match="unit_rows"):
            vmf.estimate_concentration(rows)
