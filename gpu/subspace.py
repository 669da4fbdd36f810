"""Langevin chains with fixed neighbours, run in the span of the neighbours.

The forces at x are combinations of x and the K neighbours. So a chain depends on the full space
through its coordinates c in the span of (x0, mu_1 .. mu_K) and the length r of the rest, whose
direction is uniform by symmetry and may be drawn once, at the end. The law is that of the direct
form (ULA) exactly; the numbers are others. Three parts:

1. Gram matrix G = V V' of V = (x0, mu_1 .. mu_K), Cholesky G = L L'. Q = L^-1 V is an orthonormal
   basis of the span: row j of L holds the coordinates of row j of V, and mu_j.x = L_j.c.
2. Per step, with xi standard normals for the coordinates, eta for the direction of the rest and q a
   chi-square number for all others (degrees of freedom: d - rank - 1)::

       g = -sum_j pull_j L_j;  p = c.xi + r eta;  s = sqrt(2 eps T)
       v = -eps (g - c (c.g)) + s (xi - c p);     w = eps r (c.g) + s (eta - r p)
       a = sqrt(|v|^2 + w^2 + s^2 q);             k = sin(a) / a
       c' = cos(a) c + k v;                       r' = sqrt((cos(a) r + k w)^2 + k^2 s^2 q)

   and both are divided by sqrt(|c'|^2 + r'^2).
3. One normal n of the full space, t = V n, y = L^-1 t: the rest is n - Q' y, of squared length
   |n|^2 - |y|^2, so x = V' L'^-1 (c - h y) + h n with h = r / sqrt(|n|^2 - |y|^2).

A neighbour within ``PIVOT_MIN`` (squared distance) of the span of those before it, a duplicate or
x0 itself, adds no basis vector: its pivot counts as zero, its coordinate stays zero, and its degree
of freedom goes to the rest. So no quotient is taken of rounding errors.

Noise: step s of the chain is step ``s | 0x8000`` of the counter. Components 0 .. K of its normals
are xi, component K + 1 is eta. The chi-square number is 2 gamma(dof / 2) by Marsaglia and Tsang
2000 ("A simple method for generating gamma variables"), exact: try t takes block ``0xFFF0 + t``,
the first normal of it as their x and the uniform of word 2 as their U. Per try 95 % (shape 1) to
99.97 % (shape 311) succeed; after eight, fewer than one draw in 10^10, the last candidate is taken.
The final normal n is that of the step after the last one.
"""

from __future__ import annotations

from math import sqrt
from typing import Any, Final, Protocol

import numpy as np

from mldb.gpu.device import Dynamics
from mldb.gpu.dynamics import AnyArray, dot, mixture_forces, sine_quotient, unit_length
from mldb.noise.philox import GAMMA_TRIES, SUBSPACE_STEP

PIVOT_MIN: Final = 1e-5
"""Squared distance from the span of the others below which a row of V counts as in the span."""


class SubspaceDraws(Protocol):
    """Where the noise of a batch of B rows comes from."""

    def normals(self, step: int, dim: int) -> AnyArray:
        """Return the standard normals [B, dim] of a step."""

    def trial(self, step: int, number: int) -> tuple[AnyArray, AnyArray]:
        """Return a normal [B] and a uniform [B] for try ``number`` of the gamma draw of a step."""


def cholesky(gram: AnyArray, *, xp: Any = np) -> tuple[AnyArray, AnyArray]:
    """Return L [B, m, m] and 1 / its diagonal [B, m]; zeros where a pivot is below PIVOT_MIN."""
    rest = gram + 0
    factor, inverse = xp.zeros_like(gram), xp.zeros_like(gram[:, 0])
    for j in range(gram.shape[1]):
        pivot = rest[:, j, j]
        floor = xp.full_like(pivot, PIVOT_MIN)
        scale = xp.where(pivot > floor, 1 / xp.sqrt(xp.maximum(pivot, floor)), floor * 0)
        column = rest[:, j:, j] * scale[:, None]
        factor[:, j:, j] = column
        inverse[:, j] = scale
        rest[:, j:, j:] -= column[:, :, None] * column[:, None, :]
    return factor, inverse


def invert(factor: AnyArray, inverse: AnyArray, *, xp: Any = np) -> AnyArray:
    """Return L^-1 [B, m, m], with zero rows where the pivot was zero: Q = L^-1 V."""
    result = xp.zeros_like(factor)
    for j in range(factor.shape[1]):
        if j:
            before = xp.matmul(factor[:, j : j + 1, :j], result[:, :j, :j])[:, 0]
            result[:, j, :j] = -inverse[:, j, None] * before
        result[:, j, j] = inverse[:, j]
    return result


def chi_square(freedom: AnyArray, draws: SubspaceDraws, step: int, *, xp: Any = np) -> AnyArray:
    """Return chi-square numbers [B] of ``freedom`` [B] >= 2 degrees each, exactly distributed."""
    d = freedom / 2 - 1 / 3
    c = 1 / xp.sqrt(9 * d)
    result, done = xp.zeros_like(d), d < 0
    for number in range(GAMMA_TRIES):
        normal, uniform = draws.trial(step, number)
        base = 1 + c * normal
        cube = xp.where(base > 0, base * base * base, xp.full_like(base, 1e-30))
        inside = xp.log(uniform) < normal * normal / 2 + d * (1 - cube + xp.log(cube))
        result = xp.where(done, result, 2 * d * cube)
        done = done | (inside & (base > 0))
        if bool(done.all()):
            break
    return result


def run_subspace(
    x: AnyArray,
    mu: AnyArray,
    kappa: AnyArray,
    log_weight: AnyArray,
    draws: SubspaceDraws,
    dynamics: Dynamics,
    *,
    xp: Any = np,
) -> AnyArray:
    """Return where the chains [B, d] end after ``dynamics.steps`` steps of ULA.

    x [B, d] unit rows, mu [B, K, d], kappa and log_weight [B, K]; d >= K + 4.
    """
    vectors = xp.concatenate([x[:, None, :], mu], 1)
    factor, inverse = cholesky(xp.matmul(vectors, xp.swapaxes(vectors, 1, 2)), xp=xp)
    held = (inverse > 0) * xp.ones_like(inverse)
    freedom = x.shape[1] - 1 - held.sum(1)
    c = factor[:, 0] + 0
    r = c[:, :1] * 0
    for step in range(dynamics.steps):
        number = step | SUBSPACE_STEP
        normals = draws.normals(number, c.shape[1] + 1)
        rest = chi_square(freedom, draws, number, xp=xp)[:, None]
        c, r = _step(c, r, factor, kappa, log_weight, (normals, held, rest), dynamics, xp)
    n = draws.normals(dynamics.steps | SUBSPACE_STEP, x.shape[1])
    return _lift(c, r, vectors, n, invert(factor, inverse, xp=xp), xp)


def _step(
    c: AnyArray,
    r: AnyArray,
    factor: AnyArray,
    kappa: AnyArray,
    log_weight: AnyArray,
    noise: tuple[AnyArray, AnyArray, AnyArray],
    dynamics: Dynamics,
    xp: Any,
) -> tuple[AnyArray, AnyArray]:
    """One step of part 2; ``noise`` is (normals [B, m + 1], coordinates that exist, chi-square)."""
    normals, held, rest = noise
    eps = dynamics.step_size
    spread = sqrt(2 * eps * dynamics.temperature)
    neighbours = factor[:, 1:]
    cosines = xp.matmul(neighbours, c[:, :, None])[:, :, 0]
    _, pull = mixture_forces(cosines, kappa, log_weight, xp=xp)
    g = -xp.matmul(pull[:, None, :], neighbours)[:, 0]
    xi, eta = normals[:, :-1] * held, normals[:, -1:]
    slope, p = dot(c, g), dot(c, xi) + r * eta
    v = spread * (xi - c * p) - eps * (g - c * slope)
    w = spread * (eta - r * p) + eps * r * slope
    off = spread * spread * rest
    size = xp.sqrt(dot(v, v) + w * w + off)
    cosine, quotient = xp.cos(size), sine_quotient(size, xp=xp)
    c = cosine * c + quotient * v
    along = cosine * r + quotient * w
    r = xp.sqrt(along * along + quotient * quotient * off)
    length = xp.sqrt(dot(c, c) + r * r)
    return c / length, r / length


def _lift(
    c: AnyArray, r: AnyArray, vectors: AnyArray, n: AnyArray, inverse: AnyArray, xp: Any
) -> AnyArray:
    """Part 3: from coordinates to rows of the full space."""
    y = xp.matmul(inverse, xp.matmul(vectors, n[:, :, None]))[:, :, 0]
    h = r / xp.sqrt(dot(n, n) - dot(y, y))
    weights = xp.matmul((c - h * y)[:, None, :], inverse)
    return unit_length(xp.matmul(weights, vectors)[:, 0] + h * n, xp=xp)
