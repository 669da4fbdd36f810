"""The law of a merge, by moments, and the certificate of how far its members lie from its mean.

The first moment of a splat is S = alpha A_d(kappa) mu. A merged splat has the mass and the first
moment of its sources: alpha = sum alpha_i, mu = S/|S|, kappa = A_d^-1(|S|/alpha). That is the von
Mises-Fisher law nearest to the mixture of the sources (least Kullback-Leibler divergence), and it
depends on the set of sources alone, in whatever order they were merged.

The certificate is an angle: rad = max over sources of (their own rad + their angle to mu). By the
triangle inequality on the sphere every member lies within it, and no member has to be read again.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import numpy as np

from mldb.arrays import Float32s, Float64s, Floats, Numbers
from mldb.compaction.soc.rows import SplatRows
from mldb.errors import InvalidValueError
from mldb.sphere import vmf

CANCELLED: Final = 1e-9
"""Of the moments of the sources: where less is left of their sum they have no mean direction."""
MEAN_COS_LIMITS: Final = (1e-6, 1 - 1e-12)
_CHUNK_BYTES: Final = 32 << 20  # of float64 rows at once


class MergedLaw(NamedTuple):
    """One splat in float64: unit mu [d], kappa, and mass."""

    mu: Float64s
    kappa: float
    alpha: float


class MergedGroups(NamedTuple):
    """Many merges: the splats made, the furthest source of each, and its heaviest one.

    ``cosines`` float64 [G] are the least of each mu with its sources; ``heaviest`` int64 [G] are
    row numbers, of equal masses the first. ``moved`` float64 [G] is the mass that a merge can have
    laid elsewhere, sum alpha_i min(1, sqrt(KL / 2)): it bounds the total variation, times mass,
    from the laws of the sources to that of their splat.
    """

    splats: SplatRows
    cosines: Float64s
    heaviest: Numbers
    moved: Float64s


def merge_laws(mu: Floats, kappa: Floats, alpha: Floats) -> MergedLaw:
    """Return the merge of n splats: directions *mu* [n, d], *kappa* [n], *alpha* [n].

    Raises InvalidValueError where their moments cancel: opposite splats have no mean direction.
    """
    weights = np.asarray(alpha, np.float64) * vmf.mean_cosine(kappa, mu.shape[1])
    total = weights @ _unit(mu)
    length = float(np.sqrt(total @ total))
    if length <= CANCELLED * float(weights.sum()):
        raise InvalidValueError(
            "these splats cancel: they point in opposite directions and have no mean direction. "
            "Nothing was merged; leave one of them out."
        )
    mass = float(np.sum(alpha, dtype=np.float64))
    kept = vmf.concentration(min(length / mass, 1.0), mu.shape[1], clamp=MEAN_COS_LIMITS)
    return MergedLaw(total / length, float(kept), mass)


def moment_lengths(rows: SplatRows) -> Float64s:
    """Return |S| = alpha A_d(kappa) of every splat, float64 [N]."""
    return rows.alpha * vmf.mean_cosine(rows.kappa, rows.mu.shape[1])


def radii(min_cos: Float64s) -> Float64s:
    """Return the angles of certificates that are cosines; 0 for 1."""
    return np.arccos(np.clip(min_cos, -1.0, 1.0))


def certified(angles: Float64s) -> Float32s:
    """Return cosines as they are stored, float32, rounded so that none says more than its angle."""
    cosines = np.cos(np.minimum(angles, np.pi))
    stored = cosines.astype(np.float32)
    below = np.nextafter(stored, np.float32(-2))
    return np.where(stored > cosines, below, stored).astype(np.float32)


def row_angles(left: Floats, right: Floats) -> Float64s:
    """Return the angle between rows left[i] and right[i], exact also where it is small.

    Rows need not be of length 1: half the angle has the tangent |l - r| / |l + r| of unit rows.
    """
    left, right = _unit(left), _unit(right)
    return 2 * np.arctan2(_lengths(left - right), _lengths(left + right))


def merge_groups(rows: SplatRows, sources: Numbers, starts: Numbers) -> MergedGroups:
    """Merge rows ``sources[starts[g] : starts[g + 1]]`` for every g; *starts* is int64 [G + 1].

    The mean is rounded to float32 first, as it is stored, and the certificate is that of the
    rounded mean. norm is the mean of the sources' by mass. No group is empty, and the moments of
    none cancel.
    """
    groups = len(starts) - 1
    mu = np.empty((groups, rows.mu.shape[1]), np.float32)
    length, furthest, widest = np.empty(groups), np.empty(groups), np.empty(groups)
    to_mean = np.empty(len(sources))  # the angle of every source
    weights, rad = moment_lengths(rows), radii(rows.min_cos)
    for part in _chunks(starts, rows.mu.shape[1]):
        low, high = starts[part.start], starts[part.stop]
        at = sources[low:high]
        offsets = starts[part.start : part.stop] - low
        wide = _unit(rows.mu[at])  # float32 rows are off length 1, which would count as spread
        total = np.add.reduceat(wide * weights[at, None], offsets, axis=0)
        length[part] = _lengths(total)
        mu[part] = total / length[part, None]
        which = np.repeat(np.arange(len(offsets)), np.diff(starts[part.start : part.stop + 1]))
        angles = row_angles(wide, mu[part].astype(np.float64)[which])
        to_mean[low:high] = angles
        furthest[part] = np.maximum.reduceat(angles, offsets)
        widest[part] = np.maximum.reduceat(rad[at] + angles, offsets)
    alpha = np.add.reduceat(rows.alpha[sources], starts[:-1]) if groups else np.empty(0)
    norm = np.add.reduceat((rows.norm * rows.alpha)[sources], starts[:-1]) if groups else alpha
    kept = np.minimum(length / alpha, 1.0)
    heaviest = _heaviest(rows.alpha, sources, starts)
    splats = SplatRows(
        mu,
        norm / alpha,
        vmf.concentration(kept, mu.shape[1], clamp=MEAN_COS_LIMITS),
        alpha,
        certified(widest).astype(np.float64),
        rows.labels[heaviest],
        rows.ids[heaviest],
    )
    made_kappa = np.repeat(splats.kappa, np.diff(starts))
    spread = vmf.divergence(rows.kappa[sources], made_kappa, to_mean, mu.shape[1])
    moved = rows.alpha[sources] * np.minimum(np.sqrt(spread / 2), 1.0)  # Pinsker
    moved = np.add.reduceat(moved, starts[:-1]) if groups else moved
    return MergedGroups(splats, np.cos(furthest), heaviest, moved)


def _heaviest(alpha: Float64s, sources: Numbers, starts: Numbers) -> Numbers:
    group = np.repeat(np.arange(len(starts) - 1), np.diff(starts))
    order = np.lexsort((sources, -alpha[sources], group))
    return np.asarray(sources[order][starts[:-1]])


def _chunks(starts: Numbers, dim: int) -> list[slice]:
    """Cut the groups into runs whose rows fit the memory; one large group is a run of its own."""
    most = max(_CHUNK_BYTES // (8 * dim), 1)
    parts: list[slice] = []
    low = 0
    while low < len(starts) - 1:
        high = int(np.searchsorted(starts, starts[low] + most, "right")) - 1
        high = min(max(high, low + 1), len(starts) - 1)
        parts.append(slice(low, high))
        low = high
    return parts


def _lengths(rows: Floats) -> Float64s:
    lengths: Float64s = np.sqrt(np.einsum("...i,...i->...", rows, rows, dtype=np.float64))
    return lengths


def _unit(rows: Floats) -> Float64s:
    wide = np.asarray(rows, np.float64)
    unit: Float64s = wide / _lengths(wide)[..., None]
    return unit
