"""Draw rows by their weights: with replacement, systematically, or the k rows of smallest rank.

=================  =========================  ==============================  ====================
design             a row may be drawn         cost                            good for
=================  =========================  ==============================  ====================
``AliasTable``     any number of times        O(1) a draw, any draw alone     streams of any length
``systematic``     once; pi = min(1, c w)     O(N) a pass                     samples of known pi
``bottom_k``       once; pi from the ranks    O(N) a pass, merged over parts  samples that stay put
                                                                              when rows are added
=================  =========================  ==============================  ====================

All are pure functions of the seed, the pass, and the rows (``mldb.noise.draws``). An estimate over
a sample divides by the probability of inclusion pi that the design gives (Horvitz and Thompson
1952).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from mldb.arrays import Float64s, Numbers
from mldb.deferred import dataclass
from mldb.errors import InvalidTypeError, InvalidValueError
from mldb.lake.order.permutation import permutation
from mldb.log import native
from mldb.noise.draws import (
    SAMPLING_STEP,
    Purpose,
    check_numbers,
    is_plain_seed,
    sampling_words,
    wide_uniforms,
)

_NEWTON_STEPS: Final = 100  # about 20 are needed where all rows but one are taken
_NEWTON_DONE: Final = 1e-12
_AT_ONCE: Final = 1 << 16  # draws of one call without the lock: a millisecond


@dataclass(frozen=True, slots=True, eq=False)
class AliasTable:
    """Draws in constant time (Walker 1977): a column, and there itself or its alias.

    ``keep`` float64 [N] is the chance of the column itself, ``alias`` [N] the other row, int32
    where rows fit in it. Immutable; any thread.
    """

    keep: Float64s
    alias: npt.NDArray[np.signedinteger]

    def __len__(self) -> int:
        """The number of rows N."""
        return len(self.keep)

    def draw(self, positions: Numbers, *, seed: int, pass_number: int) -> Numbers:
        """Return the rows, int64 [n], drawn at *positions* of a pass; each is drawn alone."""
        found = self._draw_at_once(positions, seed, pass_number)
        if found is not None:
            return found
        numbers = positions.astype(np.uint64)
        check_numbers("positions", numbers)
        raw = sampling_words(seed, pass_number, Purpose.DRAW, numbers)
        column = (wide_uniforms(raw) * len(self.keep)).astype(np.int64)
        kept = wide_uniforms(raw, 2) < self.keep[column]
        return np.where(kept, column, self.alias[column].astype(np.int64))

    def _draw_at_once(self, positions: Numbers, seed: int, pass_number: int) -> Numbers | None:
        """The same by the compiled twin; None where there is none, or the input is not plain."""
        twin = native.twin
        if twin is None or not is_plain_seed(seed, pass_number):
            return None
        out, block = np.empty(len(positions), np.int64), Purpose.DRAW | SAMPLING_STEP << 16
        for start in range(0, len(positions), _AT_ONCE):
            part, into = positions[start : start + _AT_ONCE], out[start : start + _AT_ONCE]
            if not twin.draw_rows(part, into, seed, pass_number, block, self.keep, self.alias):
                return None
        return out


def alias_table(weights: npt.ArrayLike) -> AliasTable:
    """Build the table of *weights* [N] >= 0, in array operations: 0.1 s for a million rows.

    Vose (1991) fills each light column (below the average) from the current heavy one, which may
    thereby become light itself and is then filled from the next. In that order light column i takes
    its alias where the deficits before it end among the running excesses, and heavy column j keeps
    what the deficits that reach past its running excess leave of it. Raises InvalidValueError.
    """
    scaled = _weights(weights)
    scaled = scaled * (len(scaled) / scaled.sum())
    light, heavy = np.flatnonzero(scaled < 1), np.flatnonzero(scaled >= 1)
    kind: Any = np.int32 if len(scaled) <= np.iinfo(np.int32).max else np.int64
    if not len(light) or not len(heavy):  # no heavy one: all are 1 up to rounding
        return AliasTable(everywhere(1.0, len(scaled)), everywhere(0, len(scaled), kind))
    keep, alias = np.ones(len(scaled)), np.arange(len(scaled), dtype=kind)
    deficits = np.concatenate([[0.0], np.cumsum(1 - scaled[light])])
    excesses = np.cumsum(scaled[heavy] - 1)
    giver = np.searchsorted(excesses, deficits[:-1], side="right")
    # Rounding may leave the last deficits beyond the last excess.
    alias[light] = heavy[np.minimum(giver, len(heavy) - 1)]
    keep[light] = scaled[light]
    reach = np.minimum(np.searchsorted(deficits, excesses[:-1]), len(light))
    keep[heavy[:-1]] = np.clip(1 - (deficits[reach] - excesses[:-1]), 0, 1)
    alias[heavy[:-1]] = heavy[1:]
    return AliasTable(keep, alias)


def inclusion(weights: npt.ArrayLike, count: int) -> Float64s:
    """Return pi_i = min(1, c w_i) with sum pi = *count*, float64 [N].

    Rows that c would take above 1 are certain; what they leave is spread over the others, until
    nothing is above 1. Raises InvalidValueError when fewer than *count* weights are positive.
    """
    values = _weights(weights)
    _check_positive_count(count, values)
    free = values > 0
    pi, left = np.zeros(len(values)), count
    while left:
        share = np.where(free, values * (left / values[free].sum()), 0.0)
        certain = share >= 1
        if not certain.any():
            return np.where(free, share, pi)
        pi[certain] = 1
        free &= ~certain
        left = count - int(np.count_nonzero(pi))
    return pi


def everywhere(value: float, count: int, dtype: npt.DTypeLike = np.float64) -> npt.NDArray[Any]:
    """Return an array [*count*] of one number that takes no memory for each. Read-only."""
    return np.broadcast_to(np.asarray(value, dtype), (count,))


def held_bytes(array: npt.NDArray[Any]) -> int:
    """Return the bytes behind an array: one number for one made by :func:`everywhere`."""
    return array.itemsize if array.strides == (0,) else array.nbytes


def rank_inclusion(weights: npt.ArrayLike, count: int) -> Float64s:
    """Return the pi of a bottom-k sample to expect, float64 [N]: 1 - exp(-w tau), sum *count*.

    Of a sample drawn, ``Sketch.inclusion`` has the pi given its own tau, which varies about this
    one, so these are off by a hundredth or so (Rosen 1997: order sampling, exponential ranks).
    Newton steps from tau = 0, where the sum is concave, rise to it without passing it. Raises
    InvalidValueError when fewer than *count* weights are positive.
    """
    values = _weights(weights)
    _check_positive_count(count, values)
    if count == np.count_nonzero(values):
        return (values > 0).astype(np.float64)
    values = values / values.sum()
    tau = 0.0
    for _ in range(_NEWTON_STEPS):
        pi = -np.expm1(-values * tau)
        step = (count - pi.sum()) / np.vdot(values, 1 - pi)
        tau += float(step)
        if step <= _NEWTON_DONE * tau:
            break
    return np.asarray(-np.expm1(-values * tau))


def systematic(pi: Float64s, *, seed: int, pass_number: int) -> Numbers:
    """Return the rows, int64 [m] ascending, of one systematic sample with the given *pi*.

    *pi* float64 [N] is what :func:`inclusion` returns; m is its sum. Rows of pi = 1 are in. The
    others are lined up in an order that is random in each pass, and one uniform u0 decides: a row
    is in where its stretch of their running sum of pi holds a point u0 + j, so each is in with
    probability pi_i exactly. In row order the points would follow any period of the rows: with
    classes in turn and a step of that length, all of a sample is of one class (Cochran
    1977, 8.3; the random order is that of Hartley and Rao 1962).
    """
    open_rows = np.flatnonzero((pi > 0) & (pi < 1))
    line = permutation(len(open_rows), seed=seed, pass_number=pass_number, purpose=Purpose.LINE)
    open_rows = open_rows[line.at(np.arange(len(open_rows)))]
    sums = np.cumsum(pi[open_rows])
    count = round(float(sums[-1])) if len(sums) else 0
    raw = sampling_words(seed, pass_number, Purpose.START, np.zeros(1, np.uint64))
    steps = np.arange(count)
    taken = np.searchsorted(sums, wide_uniforms(raw)[0] + steps, side="right")
    # Rounding of the sums may put two points into a row of pi near 1, or one behind the last row.
    taken = np.maximum.accumulate(taken - steps) + steps
    taken = np.minimum(taken, len(open_rows) - count + steps)
    return np.sort(np.concatenate([np.flatnonzero(pi == 1), open_rows[taken]]))


@dataclass(frozen=True, slots=True, eq=False)
class Sketch:
    """The ``count`` + 1 smallest ranks of a set of rows: a bottom-k sample that can be merged.

    ``rows`` int64, ``weights`` and ``ranks`` float64, all ascending by rank (ties: smaller row).
    """

    count: int
    rows: Numbers
    weights: Float64s
    ranks: Float64s

    @property
    def chosen(self) -> Numbers:
        """The rows of the sample, at most ``count``, by rank."""
        return self.rows[: self.count]

    def inclusion(self) -> Float64s:
        """Return the pi of each chosen row: 1 - exp(-w tau), tau the rank behind the sample.

        Given the ranks of all other rows, a row is in exactly when its own is below tau (rank
        conditioning, Cohen and Kaplan 2008). A sample of all rows has pi = 1.
        """
        if len(self.rows) <= self.count:
            return np.ones(len(self.rows))
        pi: Float64s = -np.expm1(-self.weights[: self.count] * self.ranks[self.count])
        return pi


def bottom_k(
    weights: npt.ArrayLike,
    count: int,
    *,
    ids: npt.NDArray[np.integer],
    seed: int,
    pass_number: int,
    first_row: int = 0,
) -> Sketch:
    """Return the sketch of rows first_row .. first_row + N - 1 with *weights* [N] and *ids* [N].

    Efraimidis and Spirakis (2006): rank -ln(u_i) / w_i, and the *count* smallest are the sample.
    u_i comes from the id, so a row has the same rank in whatever part or version of a lake it is
    met. Rows of weight 0 are never in; a part may have no others. Raises InvalidValueError.
    """
    values = _weights(weights, some=False)
    _check_count(count)
    numbers = np.asarray(ids).astype(np.uint64)
    if numbers.shape != values.shape:
        raise InvalidValueError(f"{len(values)} weights and ids of shape {numbers.shape}")
    check_numbers("ids", numbers)
    u = wide_uniforms(sampling_words(seed, pass_number, Purpose.RANK, numbers))
    rows = np.flatnonzero(values > 0)
    return _smallest(count, rows + first_row, values[rows], -np.log(u[rows]) / values[rows])


def merge(sketches: Sequence[Sketch]) -> Sketch:
    """Return the sketch of all rows of *sketches*, in any order; they share a count, not a row.

    Raises InvalidValueError when there is none or the counts differ.
    """
    counts = {sketch.count for sketch in sketches}
    if len(counts) != 1:
        raise InvalidValueError(f"sketches of counts {sorted(counts)} cannot be merged; give one")
    return _smallest(
        counts.pop(),
        np.concatenate([sketch.rows for sketch in sketches]),
        np.concatenate([sketch.weights for sketch in sketches]),
        np.concatenate([sketch.ranks for sketch in sketches]),
    )


def _smallest(count: int, rows: Numbers, weights: Float64s, ranks: Float64s) -> Sketch:
    kept = np.arange(len(rows))
    if len(rows) > count + 1:
        border = np.partition(ranks, count)[count]
        kept = np.flatnonzero(ranks <= border)  # more than count + 1 only on ties
    kept = kept[np.lexsort((rows[kept], ranks[kept]))][: count + 1]
    return Sketch(count, rows[kept], weights[kept], ranks[kept])


def _weights(weights: npt.ArrayLike, *, some: bool = True) -> Float64s:
    values = np.asarray(weights, np.float64)
    if values.ndim != 1:
        raise InvalidValueError(f"weights have shape {values.shape}; give one per row")
    if not (np.isfinite(values).all() and (values >= 0).all()):
        raise InvalidValueError("weights hold a value that is negative or no number")
    if some and not values.any():
        raise InvalidValueError("weights are 0 everywhere, so no row can be drawn")
    return values


def _check_positive_count(count: int, values: Float64s) -> None:
    _check_count(count)
    if count > np.count_nonzero(values):
        raise InvalidValueError(
            f"{count} rows were asked for without replacement and {np.count_nonzero(values)} have "
            "a weight above 0"
        )


def _check_count(count: object) -> None:
    if isinstance(count, bool) or not isinstance(count, int | np.integer):
        raise InvalidTypeError(f"count is a {type(count).__name__}, not an int")
    if count < 0:
        raise InvalidValueError(f"count={count} is negative")
