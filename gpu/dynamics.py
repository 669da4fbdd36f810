"""Steps on the unit sphere: isotropic, Langevin (ULA) and Metropolis-adjusted Langevin (MALA).

Pure functions of rows x [B, d], energies, gradients and noise. ``xp`` is the library whose arrays
they are, NumPy or torch; dtypes pass through. The target law is proportional to exp(-E(x) / T).

With the Euclidean gradient g of E at x and standard normals xi, one step of size eps is

    grad = g - x (x.g)                                     tangent at x
    v    = -eps grad + sqrt(2 eps T) (xi - x (x.xi))
    x'   = cos|v| x + sin|v| v / |v|                       then renormalised

Roberts and Tweedie 1996 (MALA), carried over to geodesics; the volume factor of the exponential map
is the same both ways and cancels.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import pi, sqrt
from typing import Any, Final, Protocol, TypeAlias

import numpy as np

from mldb.gpu.device import Dynamics

AnyArray: TypeAlias = Any
"""An array of NumPy or a tensor of torch."""

EnergyAt: TypeAlias = Callable[[AnyArray], tuple[AnyArray, AnyArray]]
"""From rows [B, d] to their energy [B] and its Euclidean gradient [B, d]."""

TINY_SQUARE: Final = 1e-30
"""Keeps a quotient finite where its numerator is zero as well; below every square that matters."""


def dot(a: AnyArray, b: AnyArray) -> AnyArray:
    """Return the row-wise products [..., 1] of [..., d] and [..., d]."""
    return (a * b).sum(-1)[..., None]


def tangent(x: AnyArray, vector: AnyArray) -> AnyArray:
    """Return the part of ``vector`` [B, d] that is tangent at unit rows x [B, d]."""
    return vector - x * dot(x, vector)


def unit_length(x: AnyArray, *, xp: Any = np) -> AnyArray:
    """Return rows scaled to length 1; they must not be zero."""
    return x / xp.sqrt(dot(x, x))


def isotropic_step(x: AnyArray, noise: AnyArray, strength: float, *, xp: Any = np) -> AnyArray:
    """Return rho x + sqrt(1 - rho^2) u with u uniform among the unit tangents at x.

    The cosine to x is exactly ``strength`` = rho. Normals projected and scaled are uniform.
    """
    along = tangent(x, noise)
    size = xp.sqrt(dot(along, along))
    moved = strength * x + sqrt(1 - strength * strength) * (along / (size + TINY_SQUARE))
    return unit_length(moved, xp=xp)


def mixture_energy(
    x: AnyArray, mu: AnyArray, kappa: AnyArray, log_weight: AnyArray, *, xp: Any = np
) -> tuple[AnyArray, AnyArray]:
    """Return E [B] = -logsumexp_j(log_weight + kappa (mu.x - 1)) and its gradient [B, d].

    mu [B, K, d], kappa and log_weight [B, K]. The largest exponent is taken out first, so no sum
    over- or underflows.
    """
    cosines = xp.matmul(mu, x[:, :, None])[:, :, 0]
    energy, force = mixture_forces(cosines, kappa, log_weight, xp=xp)
    return energy, -xp.matmul(force[:, None, :], mu)[:, 0, :]


def mixture_forces(
    cosines: AnyArray, kappa: AnyArray, log_weight: AnyArray, *, xp: Any = np
) -> tuple[AnyArray, AnyArray]:
    """Return E [B] and by how much each neighbour pulls, responsibility times kappa [B, K]."""
    exponents = log_weight + kappa * (cosines - 1)
    top = xp.amax(exponents, -1)[:, None]
    parts = xp.exp(exponents - top)
    total = parts.sum(-1)[:, None]
    return -(top + xp.log(total))[:, 0], parts / total * kappa


def velocity(
    x: AnyArray, gradient: AnyArray, noise: AnyArray, step_size: float, temperature: float
) -> AnyArray:
    """Return v [B, d], by which a step moves along its geodesic; ``gradient`` is Euclidean."""
    spread = sqrt(2 * step_size * temperature)
    return tangent(x, spread * noise - step_size * gradient)


def exponential(x: AnyArray, v: AnyArray, *, xp: Any = np) -> AnyArray:
    """Return where the geodesic from unit rows x with velocity v, tangent at x, ends after time 1.

    Renormalised, so that rounding does not add up over steps.
    """
    size = xp.sqrt(dot(v, v))
    return unit_length(xp.cos(size) * x + sine_quotient(size, xp=xp) * v, xp=xp)


def sine_quotient(angle: AnyArray, *, xp: Any = np) -> AnyArray:
    """Return sin(angle) / angle, which is 1 at 0."""
    return xp.where(angle > 0, xp.sin(angle) / (angle + TINY_SQUARE), xp.ones_like(angle))


def logarithm(x: AnyArray, moved: AnyArray) -> AnyArray:
    """Return the velocity at x whose geodesic ends at ``moved``: the inverse of ``exponential``.

    float64 arrays of NumPy; both have unit rows, not antipodal. For tests and readers: the log
    acceptance below needs only products with it.
    """
    across = tangent(x, moved)
    size = np.sqrt(dot(across, across))
    return across / (size + TINY_SQUARE) * np.arctan2(size, dot(x, moved))


@dataclass(frozen=True, slots=True, eq=False)
class Point:
    """Rows x [B, d] with their energy [B] and its Riemannian (tangent) gradient [B, d]."""

    x: AnyArray
    energy: AnyArray
    gradient: AnyArray


def log_acceptance(
    start: Point, v: AnyArray, end: Point, step_size: float, temperature: float, *, xp: Any = np
) -> AnyArray:
    """Return the log acceptance [B] of the step from ``start`` by v to ``end``.

    With w = Log_end(start), so |w| = |v|, the two squares of the textbook formula

        -(E' - E) / T - |w + eps grad'|^2 / (4 eps T) + |v + eps grad|^2 / (4 eps T)

    share |v|^2, which at 640 dimensions is a thousand times their difference. It is taken out:

        -(E' - E) / T - (2 (w.grad' - v.grad) + eps (|grad'|^2 - |grad|^2)) / (4 T)

    and w = -cos|v| v + |v| sin|v| x. Steps of |v| >= pi have no inverse: their value is -inf.
    """
    size = xp.sqrt(dot(v, v))
    back = xp.sin(size) * size * start.x - xp.cos(size) * v
    turn = dot(back, end.gradient) - dot(v, start.gradient)
    steep = dot(end.gradient, end.gradient) - dot(start.gradient, start.gradient)
    rise = end.energy - start.energy
    log_ratio = -(rise + (2 * turn + step_size * steep)[:, 0] / 4) / temperature
    return xp.where(size[:, 0] < pi, log_ratio, xp.full_like(log_ratio, -np.inf))


class StepDraws(Protocol):
    """Where the noise of a batch of B rows comes from."""

    def normals(self, step: int, dim: int) -> AnyArray:
        """Return the standard normals [B, dim] of a step."""

    def uniforms(self, step: int) -> AnyArray:
        """Return the uniforms [B] in (0, 1) by which MALA accepts or rejects a step."""


def run_chain(
    x: AnyArray, energy: EnergyAt, draws: StepDraws, dynamics: Dynamics, *, xp: Any = np
) -> tuple[AnyArray, AnyArray]:
    """Return where the chains end, [B, d], and how many of their steps each accepted, int32 [B].

    ``energy`` maps rows to (E [B], Euclidean gradient [B, d]). ULA accepts every step.
    """
    eps, temperature = dynamics.step_size, dynamics.temperature
    value, gradient = energy(x)
    accepted = xp.zeros_like(value, dtype=xp.int32)
    for step in range(dynamics.steps):
        v = velocity(x, gradient, draws.normals(step, x.shape[1]), eps, temperature)
        moved = exponential(x, v, xp=xp)
        moved_value, moved_gradient = energy(moved)
        if dynamics.method == "mala":
            start = Point(x, value, tangent(x, gradient))
            end = Point(moved, moved_value, tangent(moved, moved_gradient))
            ratio = log_acceptance(start, v, end, eps, temperature, xp=xp)
            take = xp.log(draws.uniforms(step)) < ratio
            accepted += take
            moved = xp.where(take[:, None], moved, x)
            moved_gradient = xp.where(take[:, None], moved_gradient, gradient)
            moved_value = xp.where(take, moved_value, value)
        else:
            accepted += 1
        x, value, gradient = moved, moved_value, moved_gradient
    return x, accepted
