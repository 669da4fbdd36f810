"""What avalanches of a sandpile say: is it critical, and how far do they reach?

A critical pile has sizes P(s) ~ s^-tau exp(-s/s_c), tau = 3/2 in mean field and s_c ~ p^-2. No
figure says so alone. The exponent is the likeliest one on [x_min, x_max], x_max = 0.3/p^2, where
x_min makes the distance of Kolmogorov and Smirnov least (Clauset, Shalizi, Newman 2009); without
x_max the cut-off would bias it. The cut-off s_c comes from a fit with both, and its gain in
log-likelihood per avalanche over a plain exponential tells a power law from none. mean k p is 1 on
any graph where p is the only loss.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import numpy as np

from mldb.arrays import Float64s, Numbers
from mldb.deferred import dataclass

FIT_LEAST: Final = 100
"""Avalanches of a toppling or more that a fit takes at least."""

_REACH: Final = 0.3  # of 1/p^2: up to here a power law is not yet cut off
_FIRST_SIZES: Final = 60  # candidates of x_min
_TAUS: Final = (0.05, 6.0)
_EXACT_SIZES: Final = 4096  # of a sum over sizes; beyond, blocks that grow
_BLOCK_GROWTH: Final = 1.002
_GOLDEN: Final = (5**0.5 - 1) / 2
_HALVINGS: Final = 40


@dataclass(frozen=True, slots=True)
class AvalancheStats:
    """The avalanches of a run, one a grain that was put on the pile.

    count:     how many, those without a toppling included.
    mean:      topplings of one, and ``largest``.
    mean_kp:   mean times k p: 1 for a conservative pile in its stationary state.
    tau:       the exponent, from ``x_min`` on, and ``ks``, its distance from the data.
    cutoff:    s_c of the fit s^-t exp(-s/s_c).
    llr:       its log-likelihood less that of an exponential, in nats per avalanche.

    The last five are None with fewer than 100 avalanches of a toppling or more.
    """

    count: int
    mean: float
    largest: int
    mean_kp: float
    tau: float | None = None
    x_min: int | None = None
    ks: float | None = None
    cutoff: float | None = None
    llr: float | None = None


def size_counts(sizes: Numbers) -> tuple[int, ...]:
    """Return how many of these *sizes* are 0, 1, 2 to 3, 4 to 7, and so on by powers of two."""
    _, power = np.frexp(sizes.astype(np.float64))
    return tuple(np.bincount(power).tolist()) if len(sizes) else ()


def avalanche_stats(sizes: Numbers, *, k: int, p: float) -> AvalancheStats:
    """Return the statistics of avalanches of these *sizes*, int64 [n], in topplings."""
    mean = float(np.mean(sizes)) if len(sizes) else 0.0
    largest = int(sizes.max()) if len(sizes) else 0
    some = sizes[sizes > 0]
    head = (len(sizes), mean, largest, mean * k * p)
    if len(some) < FIT_LEAST:
        return AvalancheStats(*head)
    reach = largest if p <= 0 else max(min(int(_REACH / p**2), largest), 2)
    tau, x_min, ks = truncated_exponent(some, reach)
    return AvalancheStats(*head, tau, x_min, ks, *cutoff_fit(some)[1:])


def truncated_exponent(sizes: Numbers, reach: int) -> tuple[float, int, float]:
    """Return the likeliest tau of sizes from x_min to *reach*, x_min, and the KS distance."""
    inside = np.sort(sizes[sizes <= reach])
    values, counts = np.unique(inside, return_counts=True)
    firsts = [int(v) for v in values[:_FIRST_SIZES] if counts[values >= v].sum() >= FIT_LEAST]
    best = (float("nan"), 0, np.inf)
    for first in firsts or [int(values[0])]:
        tau, ks = _fit_from(values, counts, first, reach)
        if ks < best[2]:
            best = (tau, first, ks)
    return best[0], best[1], float(best[2])


def _fit_from(values: Numbers, counts: Numbers, first: int, reach: int) -> tuple[float, float]:
    some = values >= first
    values, counts = values[some], counts[some]
    total = int(counts.sum())
    mean_log = float(counts @ np.log(values)) / total
    support = np.arange(first, reach + 1)
    logs = np.log(support)

    def loss(tau: float) -> float:
        return tau * mean_log + float(np.log(np.exp(-tau * logs).sum()))

    tau = _least(loss, *_TAUS)
    weights = np.exp(-tau * logs)
    model = np.cumsum(weights) / weights.sum()
    data = np.cumsum(counts) / total
    at = values - first
    # Between two sizes that occur the data stay and the model grows: both ends are looked at.
    above = np.abs(model[at] - data).max()
    below = np.abs(model[at] - weights[at] / weights.sum() - (data - counts / total)).max()
    return tau, float(max(above, below))


def cutoff_fit(sizes: Numbers) -> tuple[float, float, float]:
    """Return tau, s_c and the gain in nats per avalanche over an exponential of sizes from 1."""
    mean, mean_log = float(sizes.mean()), float(np.log(sizes).mean())
    largest = float(sizes.max())

    def loss(tau: float, scale: float) -> float:
        support, width = _support(40 * scale)
        parts = np.exp(-tau * np.log(support) - support / scale)
        return tau * mean_log + mean / scale + float(np.log(parts @ width))

    def best_tau(scale: float) -> float:
        return _least(lambda tau: loss(tau, scale), -1.0, 4.0, 24)

    low, high = float(np.log(0.3)), float(np.log(20 * largest + 20))
    scale = float(np.exp(_least(lambda x: loss(best_tau(np.exp(x)), np.exp(x)), low, high, 28)))
    tau = best_tau(scale)
    # The exponential on 1, 2, … is geometric; its likeliest parameter is 1/mean.
    share = 1 / mean
    plain = -np.log(share) - (mean - 1) * np.log1p(-share) if share < 1 else 0.0
    return tau, scale, float(plain) - loss(tau, scale)


def _support(upto: float) -> tuple[Float64s, Float64s]:
    """Sizes to sum over and how many each stands for: all small ones, then the middle of blocks."""
    exact = np.arange(1, _EXACT_SIZES + 1, dtype=np.float64)
    if upto <= _EXACT_SIZES:
        return exact, np.ones(len(exact))
    blocks = int(np.log(upto / _EXACT_SIZES) / np.log(_BLOCK_GROWTH)) + 2
    edges = np.unique(np.round(_EXACT_SIZES * _BLOCK_GROWTH ** np.arange(blocks)))
    middle, width = (edges[:-1] + 1 + edges[1:]) / 2, np.diff(edges)
    return np.concatenate([exact, middle]), np.concatenate([np.ones(len(exact)), width])


def _least(
    loss: Callable[[float], float], low: float, high: float, steps: int = _HALVINGS
) -> float:
    """Where a function of one dip is least: the golden section."""
    one, two = high - _GOLDEN * (high - low), low + _GOLDEN * (high - low)
    at_one, at_two = loss(one), loss(two)
    for _ in range(steps):
        if at_one <= at_two:
            high, two, at_two = two, one, at_one
            one = high - _GOLDEN * (high - low)
            at_one = loss(one)
        else:
            low, one, at_one = one, two, at_two
            two = low + _GOLDEN * (high - low)
            at_two = loss(two)
    return (low + high) / 2
