"""What is told of the values of one tensor: norm, mean, spread, extremes, and how far it moved.

Values are looked at in blocks that fit in a cache, each block once. Sums over a block of float32
are made in float32 (NumPy adds in pairs, BLAS in lanes), those over blocks in float64: about six
digits, which a chart has no use for more of. Values that are not finite are counted and left out.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from mldb.arrays import Floats

_BLOCK: Final = 1 << 18
_EXACT_BELOW: Final = 1 << 14
"""With fewer values all is done in float64."""
_CANCELLED: Final = 1e-4
"""Below this share of the mean square a variance is too small to come out of sums of squares."""


@dataclass(frozen=True, slots=True)
class Measured:
    """One state of a tensor. Immutable.

    ``sample`` are float32 values at even distances, for histograms; ``size`` counts all values, and
    ``not_finite`` those left out of everything else. Without any value the figures are 0.
    """

    size: int
    norm: float
    mean: float
    std: float
    minimum: float
    maximum: float
    zeros: int
    not_finite: int
    sample: npt.NDArray[np.float32]


def measure(values: npt.NDArray[Any], sample_size: int) -> Measured:
    """Measure *values* of any numeric dtype and shape; a complex one by its absolute value."""
    flat = values.reshape(-1)
    sums = _Sums()
    with np.errstate(all="ignore"):
        for low in range(0, flat.size, _BLOCK):
            sums.add(_real(flat[low : low + _BLOCK], exact=flat.size < _EXACT_BELOW))
        count = flat.size - sums.not_finite
        if not count:
            return Measured(
                flat.size, 0.0, 0.0, 0.0, 0.0, 0.0, 0, sums.not_finite, np.empty(0, np.float32)
            )
        mean = sums.total / count
        variance = sums.squares / count - mean * mean
        if variance <= _CANCELLED * sums.squares / count:
            variance = _variance(flat, mean, count)
        sample = _real(flat[:: max(1, -(-flat.size // sample_size))], exact=False)
    return Measured(
        flat.size,
        math.sqrt(sums.squares),
        mean,
        math.sqrt(max(variance, 0.0)),
        sums.minimum,
        sums.maximum,
        sums.zeros,
        sums.not_finite,
        sample[np.isfinite(sample)].astype(np.float32, copy=True),
    )


def distance(before: npt.NDArray[Any], after: npt.NDArray[Any]) -> float:
    """Return the norm of the difference of two arrays of one shape; inf where it overflows."""
    one, two = before.reshape(-1), after.reshape(-1)
    squares = 0.0
    with np.errstate(all="ignore"):
        for low in range(0, one.size, _BLOCK):
            part = slice(low, low + _BLOCK)
            exact = one.size < _EXACT_BELOW
            step = _real(two[part], exact=exact) - _real(one[part], exact=exact)
            found = float(np.dot(step, step))
            if not math.isfinite(found):
                wide = step.astype(np.float64)
                wide = wide[np.isfinite(wide)]
                found = float(np.dot(wide, wide))
            squares += found
    return math.sqrt(squares)


def histogram_columns(
    samples: list[list[tuple[npt.NDArray[np.float32], float]]], bins: int
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Return the edges [bins + 1] that all columns share, and shares of values [columns, bins].

    Each column is a list of samples with the weight of one of their values. The range is that of
    all but the outermost thousandth; what lies beyond counts in the first and last bin.
    """
    every = [part for column in samples for part, _ in column if part.size]
    found = np.zeros((len(samples), bins))
    if not every:
        return np.linspace(-1, 1, bins + 1), found
    joined = np.concatenate(every)
    low, high = (float(end) for end in np.quantile(joined, (0.001, 0.999)))
    if not high > low:
        low, high = low - max(abs(low), 1.0) * 0.5, low + max(abs(low), 1.0) * 0.5
    edges = np.linspace(low, high, bins + 1)
    for number, column in enumerate(samples):
        for part, weight in column:
            place = ((part.astype(np.float64) - low) * (bins / (high - low))).astype(np.int64)
            found[number] += np.bincount(np.clip(place, 0, bins - 1), minlength=bins) * weight
    sums = found.sum(axis=1, keepdims=True)
    return edges, np.divide(found, sums, out=np.zeros_like(found), where=sums > 0)


class _Sums:
    """Running sums over blocks. One thread."""

    __slots__ = ("maximum", "minimum", "not_finite", "squares", "total", "zeros")

    def __init__(self) -> None:
        self.squares = self.total = 0.0
        self.minimum, self.maximum = math.inf, -math.inf
        self.zeros = self.not_finite = 0

    def add(self, part: Floats) -> None:
        squares = float(np.dot(part, part))
        if not math.isfinite(squares):  # a value that is not finite, or too large to be squared
            part = part.astype(np.float64)
            finite = np.isfinite(part)
            self.not_finite += part.size - int(np.count_nonzero(finite))
            part = part[finite]
            squares = float(np.dot(part, part))
            if not part.size:
                return
        self.squares += squares
        self.total += float(part.sum())
        self.minimum = min(self.minimum, float(part.min()))
        self.maximum = max(self.maximum, float(part.max()))
        self.zeros += part.size - int(np.count_nonzero(part))


def _real(part: npt.NDArray[Any], *, exact: bool) -> Floats:
    """A block as float32 or float64: the second where it is asked for, or holds more digits.

    Integers of 16 bits have squares of 32: sums of those that are near the end of their range,
    as all small negative ones turned into unsigned, lost the fifth digit in float32.
    """
    if part.dtype.kind == "c":
        part = np.abs(part)
    if part.dtype == np.float64 or exact or (part.dtype.kind in "iu" and part.itemsize > 1):
        return part.astype(np.float64, copy=False)
    return part.astype(np.float32, copy=False)


def _variance(flat: npt.NDArray[Any], mean: float, count: int) -> float:
    """The variance around a mean that is far from zero: a second look, in float64."""
    squares = 0.0
    for low in range(0, flat.size, _BLOCK):
        part = _real(flat[low : low + _BLOCK], exact=True) - mean
        part = part[np.isfinite(part)]
        squares += float(np.dot(part, part))
    return squares / count
