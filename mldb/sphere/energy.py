"""The energy of a mixture of splats (mu_j, kappa_j, alpha_j), its gradient and responsibilities.

E = -logsumexp_j(z_j), and the share of splat j in a point is softmax(z)_j:

==========  ==========  =====================================================================
geometry    normalized  z_j
==========  ==========  =====================================================================
sphere      False       log alpha_j + kappa_j (mu_j.x - 1)
sphere      True        log(alpha_j / sum alpha) + log C_d(kappa_j) + kappa_j mu_j.x
euclid      False       log alpha_j - (kappa_j / 2) |x - mu_j|^2
euclid      True        log(alpha_j / sum alpha) + (d/2) log(kappa_j / 2 pi)
                        - (kappa_j / 2) |x - mu_j|^2
==========  ==========  =====================================================================

Normalized, alpha is mass and E = -log f with f a density; otherwise alpha is the height of a peak.
The two share points alike only where all kappa are equal. Nothing is clamped, so that a far point
keeps its force.

All functions are pure, take the same arguments and hold [..., N] numbers at a time. They raise
InvalidTypeError, InvalidValueError (shapes, NaN, rows that are no unit vectors on the sphere, a
kappa or alpha that is not above 0) and LimitError (kappa above vmf.KAPPA_MAX).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from mldb.arrays import Float64s, Floats
from mldb.errors import InvalidValueError
from mldb.sphere import vmf
from mldb.sphere.geometry import Geometry


@dataclass(frozen=True, slots=True, eq=False)
class _Mixture:
    """Checked arguments in one dtype, and the scores z [..., N]."""

    x: Floats
    mu: Floats
    kappa: Floats
    scores: Floats

    def responsibilities(self) -> Floats:
        shares: Floats = np.exp(self.scores - self.scores.max(axis=-1, keepdims=True))
        shares /= shares.sum(axis=-1, keepdims=True)
        return shares


def energy(
    x: npt.ArrayLike,
    mu: npt.ArrayLike,
    kappa: npt.ArrayLike,
    alpha: npt.ArrayLike,
    *,
    normalized: bool = True,
    geometry: Geometry = "sphere",
) -> Floats:
    """Return E [...] in nats at the points x [..., d] for splats mu [N, d], N >= 1.

    kappa and alpha are [N] or one number for all. On the sphere the rows of x and mu are unit
    vectors. The result is float32 where x and mu are, else float64. In float32 a cosine is known
    to 1e-7, so expect errors of 1e-7 kappa.
    """
    scores = _mixture(x, mu, kappa, alpha, normalized, geometry).scores
    top = scores.max(axis=-1)
    return np.asarray(-(top + np.log(np.exp(scores - top[..., None]).sum(axis=-1))))


def responsibilities(
    x: npt.ArrayLike,
    mu: npt.ArrayLike,
    kappa: npt.ArrayLike,
    alpha: npt.ArrayLike,
    *,
    normalized: bool = True,
    geometry: Geometry = "sphere",
) -> Floats:
    """Return softmax(z) [..., N], the share of each splat in each point. As ``energy``."""
    return _mixture(x, mu, kappa, alpha, normalized, geometry).responsibilities()


def gradient(
    x: npt.ArrayLike,
    mu: npt.ArrayLike,
    kappa: npt.ArrayLike,
    alpha: npt.ArrayLike,
    *,
    normalized: bool = True,
    geometry: Geometry = "sphere",
) -> Floats:
    """Return grad E [..., d], on the sphere the Riemannian one, tangent at x. As ``energy``.

    With r = softmax(z), on the sphere g - x (x.g) where g = -sum_j r_j kappa_j mu_j; in Euclid's
    space sum_j r_j kappa_j (x - mu_j).
    """
    mixture = _mixture(x, mu, kappa, alpha, normalized, geometry)
    weights = mixture.responsibilities() * mixture.kappa
    pull = weights @ mixture.mu
    if geometry == "euclid":
        return np.asarray(weights.sum(axis=-1, keepdims=True) * mixture.x - pull)
    # Close to a mean nearly all of g lies along x, and one projection leaves its rounding: twice.
    return _tangent(mixture.x, _tangent(mixture.x, -pull))


def _tangent(x: Floats, vectors: Floats) -> Floats:
    along = (x * vectors).sum(axis=-1, keepdims=True) / (x * x).sum(axis=-1, keepdims=True)
    return np.asarray(vectors - x * along)


def _mixture(
    x: npt.ArrayLike,
    mu: npt.ArrayLike,
    kappa: npt.ArrayLike,
    alpha: npt.ArrayLike,
    normalized: bool,
    geometry: Geometry,
) -> _Mixture:
    points, means = _points(x, mu, geometry)
    count, dim = means.shape
    kappas = _positive("kappa", vmf.checked_kappa(kappa), count)
    alphas = _positive("alpha", vmf.real_numbers("alpha", alpha), count)
    offsets = _log_weights(kappas, alphas, dim, normalized, geometry).astype(points.dtype)
    kappas = kappas.astype(points.dtype)
    if geometry == "sphere":
        return _Mixture(points, means, kappas, kappas * (points @ means.T - 1) + offsets)
    center = means.mean(axis=0)  # the squares cancel less the shorter the vectors are
    points, means = points - center, means - center
    squares = (points * points).sum(axis=-1)[..., None] + (means * means).sum(axis=-1)
    squares = np.maximum(squares - 2 * (points @ means.T), 0)
    return _Mixture(points, means, kappas, offsets - kappas * squares / 2)


def _log_weights(
    kappas: Float64s, alphas: Float64s, dim: int, normalized: bool, geometry: Geometry
) -> Float64s:
    """What is added to -kappa (1 - mu.x), or to -kappa |x - mu|^2 / 2, to give z."""
    heights: Float64s = np.log(alphas)
    if normalized:
        heights -= np.log(alphas.sum())
        if geometry == "sphere":
            heights += vmf.log_peak_density(kappas, dim)
        else:
            heights += dim / 2 * np.log(kappas / (2 * np.pi))
    return heights


def _points(x: npt.ArrayLike, mu: npt.ArrayLike, geometry: Geometry) -> tuple[Floats, Floats]:
    if geometry not in ("sphere", "euclid"):
        raise InvalidValueError(f"geometry is {geometry!r}; give 'sphere' or 'euclid'")
    points, means = np.asarray(x), np.asarray(mu)
    if not points.dtype == means.dtype == np.float32:
        points, means = vmf.real_numbers("x", points), vmf.real_numbers("mu", means)
    if means.ndim != 2 or not len(means) or points.shape[-1:] != means.shape[1:]:
        raise InvalidValueError(
            f"x has shape {points.shape} and mu {means.shape}; give [..., d] and [N, d], N >= 1"
        )
    for name, rows in (("x", points), ("mu", means)):
        if geometry == "sphere":
            vmf.check_unit_rows(name, rows)
        elif not np.isfinite(rows).all():
            raise InvalidValueError(f"{name} holds NaN or infinity; leave such rows out")
    return points, means


def _positive(name: str, values: Float64s, count: int) -> Float64s:
    if not np.all((values > 0) & (values < np.inf)):
        raise InvalidValueError(f"{name} holds a number that is not above 0 and finite, or NaN")
    return vmf.one_per_row(name, values, count)
