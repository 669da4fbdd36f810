"""Exact draws from von Mises-Fisher laws.

All functions are pure but for the state of the generator that is given. They raise
InvalidTypeError, InvalidValueError and, for a kappa above vmf.KAPPA_MAX, LimitError.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt

from mldb.arrays import Float64s
from mldb.errors import InvalidTypeError, InvalidValueError
from mldb.sphere import vmf

ROUNDS_MAX: Final = 1000
"""A round accepts more than half of what is left, so 60 rounds are out of reach already."""


def sample(mu: npt.ArrayLike, kappa: float, count: int, rng: np.random.Generator) -> Float64s:
    """Draw *count* unit vectors around mu [d], float64 [count, d]; kappa = 0 is uniform."""
    mean = vmf.real_numbers("mu", mu)
    if mean.ndim != 1:
        raise InvalidValueError(f"mu has shape {mean.shape}; give [d], or use sample_rows")
    if isinstance(count, bool) or not isinstance(count, int | np.integer):
        raise InvalidTypeError(f"count is {count!r}; give a whole number")
    if count < 0:
        raise InvalidValueError(f"count is {count}; give 0 or more")
    vmf.check_unit_rows("mu", mean)
    kappas = vmf.one_per_row("kappa", vmf.checked_kappa(kappa), count)
    return _draw(mean[None], kappas, vmf.checked_dim(len(mean)), rng)


def sample_rows(mu: npt.ArrayLike, kappa: npt.ArrayLike, rng: np.random.Generator) -> Float64s:
    """Draw one unit vector around each row of mu [N, d], float64 [N, d]; kappa [N] or one number.

    The cosine t to the mean has the density (1 - t^2)^((d-3)/2) exp(kappa t) exactly; the rest is
    uniform. Rows are drawn together: their draws depend on the whole batch.
    """
    means = vmf.real_numbers("mu", mu)
    if means.ndim != 2:
        raise InvalidValueError(f"mu has shape {means.shape}; give [N, d]")
    vmf.check_unit_rows("mu", means)
    count, dim = means.shape
    kappas = vmf.checked_kappa(kappa)
    return _draw(means, vmf.one_per_row("kappa", kappas, count), vmf.checked_dim(dim), rng)


def _draw(means: Float64s, kappas: Float64s, dim: int, rng: np.random.Generator) -> Float64s:
    """Draw a row for each kappa [N] around means [N, d], or [1, d] for all."""
    gaps = _cosine_gaps(kappas, dim, rng)
    # Around the first axis: the cosine, then a uniform direction in what is left.
    rows = rng.standard_normal((len(kappas), dim))
    rest = rows[:, 1:]
    rest *= np.sqrt(gaps * (2 - gaps) / np.einsum("ij,ij->i", rest, rest))[:, None]
    rows[:, 0] = 1 - gaps
    # A mirror takes that axis to s mu, and s turns it back. s = -sign(mu_1) keeps the two far
    # apart: between close points the normal of the mirror would be made of rounding.
    signs = np.where(means[:, :1] < 0, 1.0, -1.0)
    normals = means * signs
    normals[:, 0] -= 1.0
    normals /= np.sqrt(np.einsum("ij,ij->i", normals, normals))[:, None]
    along = np.einsum("ij,ij->i", rows, np.broadcast_to(normals, rows.shape))
    rows -= normals * (2 * along)[:, None]
    rows *= signs
    return rows


def _cosine_gaps(kappas: Float64s, dim: int, rng: np.random.Generator) -> Float64s:
    """Draw 1 - mu.x [N] by the rejection of Wood (1994).

    Everything is written in gaps to 1 (of the cosine, and of Wood's x0), which stay accurate where
    cosines round to 1.
    """
    span = dim - 1.0
    b = span / (2 * kappas + np.sqrt(4 * kappas * kappas + span * span))
    gap0 = 2 * b / (1 + b)
    peak = span * np.log(gap0 * (2 - gap0)) - kappas * gap0
    gaps = np.empty_like(b)
    left = np.arange(len(b))
    for _ in range(ROUNDS_MAX):
        if not len(left):
            return gaps
        beta = rng.beta(span / 2, span / 2, len(left))
        gap = 2 * b[left] * beta / ((1 - beta) + b[left] * beta)
        envelope = span * np.log(gap + gap0[left] * (1 - gap)) - kappas[left] * gap
        accepted = envelope - peak[left] >= -rng.standard_exponential(len(left))
        gaps[left[accepted]] = gap[accepted]
        left = left[~accepted]
    raise InvalidValueError(
        f"rng had {ROUNDS_MAX} rounds of draws refused: its numbers are not random; nothing drawn"
    )
