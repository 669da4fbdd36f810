"""The energy of a mixture: references, densities that integrate to one, gradients, far points."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mldb.errors import InvalidTypeError, InvalidValueError, LimitError
from mldb.sphere.energy import energy, gradient, responsibilities
from mldb.sphere.geometry import Geometry
from tests.support import vmf_reference
from tests.support.vmf_reference import ENERGIES, Point

GEOMETRIES: tuple[Geometry, ...] = ("sphere", "euclid")

seeds = st.integers(0, 2**32 - 1)
some_dims = st.sampled_from([2, 3, 7, 64, 640])


def unit(rows: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    return np.asarray(rows / np.linalg.norm(rows, axis=-1, keepdims=True))


def random_mixture(seed: int, dim: int, points: int = 3, splats: int = 5) -> tuple[Any, ...]:
    """Points, means, kappas and masses that are near enough to each other to matter."""
    rng = np.random.default_rng(seed)
    center = unit(rng.standard_normal(dim)) * 1.5
    rows = unit(center + rng.standard_normal((points + splats, dim)) / math.sqrt(dim))
    kappa = dim * rng.uniform(0.2, 3, splats)
    return rows[:points], rows[points:], kappa, rng.uniform(0.1, 50, splats)


def geodesic(x: npt.NDArray[Any], step: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Exp_x: along the great circle of a tangent step."""
    angle = np.linalg.norm(step, axis=-1, keepdims=True)
    return np.asarray(np.cos(angle) * x + np.sin(angle) * step / angle)


@pytest.mark.parametrize(
    "point", ENERGIES, ids=lambda p: f"{p.dim}-{p.geometry}-{p.normalized}-{p.number}"
)
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_energy_and_gradient_equal_reference(point: Point, dtype: type[Any]) -> None:
    single = dtype is np.float32
    x, mu, kappa, alpha = vmf_reference.mixture(point.dim, point.geometry)
    x, mu = x[point.number].astype(dtype), mu.astype(dtype)
    found = energy(x, mu, kappa, alpha, normalized=point.normalized, geometry=point.geometry)
    assert found.dtype == dtype
    assert abs(float(found) - point.energy) <= (1e-3 if single else 1e-9)
    force = gradient(x, mu, kappa, alpha, normalized=point.normalized, geometry=point.geometry)
    assert force.dtype == dtype
    tolerance = (1e-3 if single else 1e-8) * point.length
    np.testing.assert_allclose(force[: len(point.gradient)], point.gradient, 0, tolerance)
    assert abs(float(np.linalg.norm(force)) - point.length) <= tolerance


def test_reference_is_what_mpmath_says() -> None:
    pytest.importorskip("mpmath")
    points = [point for point in ENERGIES if point.dim == 3]
    computed = [vmf_reference.compute_point(*point[:4]) for point in points]
    assert computed == points


def test_single_splat_in_closed_form() -> None:
    mu, alpha, kappa = np.eye(4)[:1], 7.0, 30.0
    assert float(energy(mu[0], mu, kappa, alpha, normalized=False)) == -math.log(alpha)
    assert not gradient(mu[0], mu, kappa, alpha, normalized=False).any()
    across = np.eye(4)[1]
    found = float(energy(across, mu, kappa, alpha, normalized=False))
    assert found == pytest.approx(kappa - math.log(alpha), rel=1e-15)
    force = gradient(across, mu, kappa, alpha, normalized=False)
    np.testing.assert_array_equal(force, -kappa * mu[0])


def test_far_points_keep_energy_and_force() -> None:
    x, mu = np.array([40.0, 0.0, 0.0]), np.zeros((1, 3))
    assert float(energy(x, mu, 2.0, 1.0, normalized=False, geometry="euclid")) == 1600
    found = gradient(x, mu, 2.0, 1.0, normalized=False, geometry="euclid")
    np.testing.assert_array_equal(found, [80, 0, 0])
    mu = np.array([[0.0, 0.0, 0.0], [1.0, 0.0, 0.0]])
    for distance in (1e3, 1e6, 1e9):
        far = np.array([distance, distance, 0.0])
        force = gradient(far, mu, [2.0, 3.0], 1.0, geometry="euclid")
        np.testing.assert_allclose(force, 2 * far, rtol=1e-6)  # the wider one holds it
    opposite = gradient(np.array([-0.6, 0.8]), np.eye(2)[:1], 1e7, 1.0)
    assert np.linalg.norm(opposite) == pytest.approx(0.8e7)


def test_distance_from_the_origin_costs_no_digits() -> None:
    x, mu, kappa, alpha = random_mixture(5, 16)
    shift = np.full(16, 2.0**20)  # what it leaves of x and mu is exact from here on
    x, mu = x + shift, mu + shift
    for function in (energy, gradient):
        near = function(x - shift, mu - shift, kappa, alpha, geometry="euclid")
        np.testing.assert_allclose(
            function(x, mu, kappa, alpha, geometry="euclid"), near, rtol=1e-8, atol=1e-8
        )


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_rounding_makes_no_distance_negative(dtype: type[Any]) -> None:
    mu = random_mixture(6, 64, splats=50)[1].astype(dtype)
    found = energy(mu, mu, 1e12, 1.0, normalized=False, geometry="euclid")
    assert found.min() >= -1e-6  # its own peak has height 1, the others are far


@pytest.mark.parametrize("kappa", [0.5, 20.0, 300.0])
def test_normalized_density_integrates_to_one_on_the_circle(kappa: float) -> None:
    angles = np.linspace(0, 2 * np.pi, 4000, endpoint=False)
    x = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    density = np.exp(-energy(x, unit(np.array([[1.0, 2.0], [-3.0, 1.0]])), [kappa, 3.0], [1, 8]))
    assert density.sum() * 2 * np.pi / len(angles) == pytest.approx(1, rel=1e-10)


def test_normalized_density_integrates_to_one_in_the_plane() -> None:
    axis = np.linspace(-12, 12, 241)
    x = np.stack(np.meshgrid(axis, axis), axis=-1)
    mu = np.array([[0.0, 1.0], [2.0, -1.0]])
    density = np.exp(-energy(x, mu, [0.7, 2.5], [3.0, 1.0], geometry="euclid"))
    assert density.sum() * (axis[1] - axis[0]) ** 2 == pytest.approx(1, rel=1e-10)


@given(seeds, some_dims, st.sampled_from(GEOMETRIES), st.booleans())
def test_gradient_is_the_slope_of_the_energy(
    seed: int, dim: int, geometry: Geometry, normalized: bool
) -> None:
    x, mu, kappa, alpha = random_mixture(seed, dim)
    force = gradient(x, mu, kappa, alpha, normalized=normalized, geometry=geometry)
    along = np.random.default_rng(seed + 1).standard_normal(x.shape)
    if geometry == "sphere":
        along -= x * (x * along).sum(axis=1, keepdims=True)
    along = unit(along) * 1e-4 / math.sqrt(dim)
    ends = [geodesic(x, s * along) if geometry == "sphere" else x + s * along for s in (1, -1)]
    up, down = (
        energy(end, mu, kappa, alpha, normalized=normalized, geometry=geometry) for end in ends
    )
    scale = np.linalg.norm(force, axis=1) * np.linalg.norm(along, axis=1)
    error = np.abs((up - down) / 2 - (force * along).sum(axis=1))
    assert np.all(error <= 1e-5 * scale + 1e-11)


@given(seeds, some_dims, st.booleans())
def test_gradient_on_the_sphere_is_tangent_and_descends(
    seed: int, dim: int, normalized: bool
) -> None:
    x, mu, kappa, alpha = random_mixture(seed, dim)
    x = np.concatenate([x, unit(mu + 1e-7 * x[:1])])  # and right beside the means
    force = gradient(x, mu, kappa, alpha, normalized=normalized)
    length = np.linalg.norm(force, axis=1)
    assert np.all(np.abs((x * force).sum(axis=1)) <= 1e-10 * length)
    there = geodesic(x, -0.1 / kappa.max() * force)
    before = energy(x, mu, kappa, alpha, normalized=normalized)
    after = energy(there, mu, kappa, alpha, normalized=normalized)
    assert np.all(after[:3] < before[:3])


@given(seeds, some_dims, st.sampled_from(GEOMETRIES), st.booleans())
def test_responsibilities_are_shares(
    seed: int, dim: int, geometry: Geometry, normalized: bool
) -> None:
    x, mu, kappa, alpha = random_mixture(seed, dim)
    shares = responsibilities(x, mu, kappa, alpha, normalized=normalized, geometry=geometry)
    np.testing.assert_allclose(shares.sum(axis=1), 1, rtol=1e-14)
    alone = [
        -energy(x, mu[j : j + 1], kappa[j], alpha[j], normalized=False, geometry=geometry)
        for j in range(len(mu))
    ]
    if not normalized:
        odds = np.stack(alone, axis=1)
        odds -= odds.max(axis=1, keepdims=True)
        expected = np.exp(odds) / np.exp(odds).sum(axis=1, keepdims=True)
        np.testing.assert_allclose(shares, expected, rtol=1e-9, atol=1e-14)


@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_both_models_agree_only_at_one_bandwidth(geometry: Geometry) -> None:
    x, mu, kappa, alpha = random_mixture(1, 64)
    as_mass = responsibilities(x, mu, 90.0, alpha, geometry=geometry)
    as_height = responsibilities(x, mu, 90.0, alpha, normalized=False, geometry=geometry)
    np.testing.assert_allclose(as_mass, as_height, rtol=1e-10)
    as_mass = responsibilities(x, mu, kappa, alpha, geometry=geometry)
    as_height = responsibilities(x, mu, kappa, alpha, normalized=False, geometry=geometry)
    assert np.abs(as_mass - as_height).max() > 0.1


@given(seeds, some_dims, st.sampled_from(GEOMETRIES))
def test_mass_scales_out_and_order_does_not_matter(seed: int, dim: int, geometry: Geometry) -> None:
    x, mu, kappa, alpha = random_mixture(seed, dim)
    found = energy(x, mu, kappa, alpha, geometry=geometry)
    order = np.random.default_rng(seed).permutation(len(mu))
    other = energy(x, mu[order], kappa[order], 1e6 * alpha[order], geometry=geometry)
    np.testing.assert_allclose(other, found, rtol=1e-12, atol=1e-9)
    twins = energy(
        x,
        np.concatenate([mu, mu]),
        np.tile(kappa, 2),
        np.tile(alpha, 2),
        normalized=False,
        geometry=geometry,
    )
    once = energy(x, mu, kappa, alpha, normalized=False, geometry=geometry)
    np.testing.assert_allclose(twins, once - math.log(2), rtol=1e-12, atol=1e-9)


@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_shapes_and_types_follow_the_arguments(geometry: Geometry) -> None:
    x, mu, kappa, alpha = random_mixture(2, 7, points=6)
    whole = gradient(x, mu, kappa, alpha, geometry=geometry)
    for shape in ((6,), (2, 3), (6, 1)):
        points = x.reshape(*shape, 7)
        assert energy(points, mu, kappa, alpha, geometry=geometry).shape == shape
        shares = responsibilities(points, mu, kappa, alpha, geometry=geometry)
        assert shares.shape == (*shape, len(mu))
        force = gradient(points, mu, kappa, alpha, geometry=geometry)
        np.testing.assert_allclose(force, whole.reshape(points.shape), rtol=1e-9)
    assert energy(x[0], mu, kappa, alpha, geometry=geometry).shape == ()
    assert gradient(x[0], mu, kappa, alpha, geometry=geometry).shape == (7,)
    assert energy(x[:0], mu, kappa, alpha, geometry=geometry).shape == (0,)
    assert gradient(x.astype("f4"), mu, kappa, alpha, geometry=geometry).dtype == np.float64
    assert responsibilities(x.astype("f4"), mu.astype("f4"), 1, 1, geometry=geometry).dtype == "f4"


@pytest.mark.parametrize("geometry", GEOMETRIES)
@pytest.mark.parametrize("function", [energy, gradient, responsibilities])
def test_wrong_arguments(function: Any, geometry: Geometry) -> None:
    x, mu, kappa, alpha = random_mixture(3, 5)
    given_as: dict[str, Any] = {"x": x, "mu": mu, "kappa": kappa, "alpha": alpha}

    def expect(error: type[Exception], **changed: Any) -> None:
        with pytest.raises(error, match=next(iter(changed))):
            function(**{**given_as, "geometry": geometry, **changed})

    function(**given_as, geometry=geometry)
    wrong: Any
    for name in ("kappa", "alpha"):
        for wrong in (0.0, -1.0, math.nan, [1.0, 2.0], [[1.0]], [1.0, 1.0, 0.0, 1.0, 1.0]):
            expect(InvalidValueError, **{name: wrong})
        for wrong in ("one", 1j, True):
            expect(InvalidTypeError, **{name: wrong})
    expect(InvalidValueError, alpha=math.inf)
    expect(LimitError, kappa=math.inf)
    for name, rows in (("x", x), ("mu", mu)):
        for bad in (math.nan, math.inf):
            spoiled = rows.copy()
            spoiled[1, 2] = bad
            expect(InvalidValueError, **{name: spoiled})
        expect(InvalidValueError, **{name: rows[:, :4]})
        expect(InvalidTypeError, **{name: rows.astype(complex)})
        if geometry == "sphere":
            expect(InvalidValueError, **{name: rows * 1.001})
    expect(InvalidValueError, x=np.float64(1))
    expect(InvalidValueError, mu=mu[:0])
    expect(InvalidValueError, mu=mu[0])
    expect(InvalidValueError, geometry="torus")
