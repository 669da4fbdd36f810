"""In which order a pass visits the rows: pure functions of seed, pass and the number of rows.

=============  ===========================================  ====================================
order          a pass is                                    for
=============  ===========================================  ====================================
``Sequential`` 0 .. n-1                                     reading once
``Shuffled``   a full permutation                           data that fits the page cache
``Windowed``   strata (runs of rows) permuted, then the     larger data: a window of strata is
               rows of each window of strata                read once, in long runs
``Drawn``      as many draws with replacement as asked for  importance sampling, endless streams
``Chosen``     a sample without replacement, shuffled       importance sampling, each row once
=============  ===========================================  ====================================

An order is asked for positions, in any selection, and computes no others. So the state of a pass is
one number: how far it has come. Strata are runs of row numbers, never blocks or segments of the
log: compaction must not change an order.
"""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache
from typing import Any, Final, Literal, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from mldb.arrays import Float64s, Numbers
from mldb.deferred import dataclass
from mldb.errors import InvalidTypeError, InvalidValueError, LimitError
from mldb.lake.order.permutation import WINDOW_BITS, WINDOWS_MAX, Permutation, permutation
from mldb.lake.order.sampling import (
    AliasTable,
    alias_table,
    bottom_k,
    held_bytes,
    inclusion,
    systematic,
)
from mldb.lake.order.weights import Chances, Importance, ratios
from mldb.noise.draws import Purpose, check_seed
from mldb.noise.keys import ROW_ID_BITS

PlainOrder = Literal["sequential", "permutation", "windowed"]

STRATUM_ROWS: Final = 1024
WINDOW_STRATA: Final = 256  # 262,144 rows: 640 MiB of 640 float32


class Picked(NamedTuple):
    """Row numbers int64 [n], and their weights float64 [n] where the order has any."""

    rows: Numbers
    weights: Float64s | None = None


class PassOrder(Protocol):
    """The order of one pass. Immutable; any thread."""

    @property
    def length(self) -> int:
        """How many positions the pass has."""

    def at(self, positions: Numbers) -> Picked:
        """Return what stands at *positions* (int64 [n], below ``length``, in any order)."""


@dataclass(frozen=True, slots=True)
class Sequential:
    """Rows 0 .. length-1."""

    length: int

    def at(self, positions: Numbers) -> Picked:
        """Return the positions themselves."""
        return Picked(positions)


@dataclass(frozen=True, slots=True)
class Shuffled:
    """A permutation of all rows."""

    length: int
    seed: int
    pass_number: int

    def at(self, positions: Numbers) -> Picked:
        """Return the rows at *positions*, O(1) each."""
        order = permutation(self.length, seed=self.seed, pass_number=self.pass_number)
        return Picked(order.at(positions))


@dataclass(frozen=True, slots=True)
class Windowed:
    """Strata in random order, and the rows of every ``window_strata`` of them in random order.

    Stratum s is the rows s * stratum_rows onwards; the last one may be short.
    """

    length: int
    seed: int
    pass_number: int
    stratum_rows: int = STRATUM_ROWS
    window_strata: int = WINDOW_STRATA

    @property
    def windows(self) -> int:
        """How many windows the pass has."""
        return -(-self._strata // self.window_strata)

    def strata(self, window: int) -> Numbers:
        """Return the strata that a window reads, int64 [<= window_strata]; for reading ahead."""
        start = window * self.window_strata
        places = np.arange(start, min(start + self.window_strata, self._strata))
        short_window, short_slot = self._short
        if window == short_window:  # the short one goes last, so that a slot has a fixed length
            places[[short_slot, -1]] = places[[-1, short_slot]]
        return _order_of_strata(self._strata, self.seed, self.pass_number).at(places)

    def at(self, positions: Numbers) -> Picked:
        """Return the rows at *positions*: O(1) each, and a small cost for each window touched."""
        size = self.window_strata * self.stratum_rows
        # Behind the window of the short stratum everything stands `missing` places earlier.
        full = positions + self._missing * (positions >= self._stop(self._short[0]))
        window, place = np.divmod(full, size)
        rows = np.empty(len(positions), np.int64)
        for number in np.unique(window).tolist():
            here = np.flatnonzero(window == number)
            rows[here] = self._in_window(number, place[here])
        return Picked(rows)

    def _in_window(self, window: int, places: Numbers) -> Numbers:
        start = window * self.window_strata * self.stratum_rows
        start -= self._missing * (window > self._short[0])
        inner = permutation(
            self._stop(window) - start,
            seed=self.seed,
            pass_number=self.pass_number,
            purpose=Purpose.WINDOW,
            window=window,
        )
        slot, offset = np.divmod(inner.at(places), self.stratum_rows)
        return self.strata(window)[slot] * self.stratum_rows + offset

    def _stop(self, window: int) -> int:
        """The position behind a window."""
        strata = min((window + 1) * self.window_strata, self._strata)
        return strata * self.stratum_rows - self._missing * (window >= self._short[0])

    @property
    def _strata(self) -> int:
        return -(-self.length // self.stratum_rows)

    @property
    def _missing(self) -> int:
        """How many rows the last stratum is short of."""
        return self._strata * self.stratum_rows - self.length

    @property
    def _short(self) -> tuple[int, int]:
        """The window and the slot in which the last stratum stands, where it is a short one."""
        if not self._missing:
            return -1, 0
        place = _place_of_last(self._strata, self.seed, self.pass_number)
        return divmod(place, self.window_strata)


def _order_of_strata(strata: int, seed: int, pass_number: int) -> Permutation:
    return permutation(strata, seed=seed, pass_number=pass_number, purpose=Purpose.STRATA)


@lru_cache(maxsize=32)
def _place_of_last(strata: int, seed: int, pass_number: int) -> int:
    last = np.array([strata - 1])
    return int(_order_of_strata(strata, seed, pass_number).place(last)[0])


@dataclass(frozen=True, slots=True, eq=False)
class Drawn:
    """``length`` draws with replacement; ``row_weights`` float64 [N] belong to rows."""

    length: int
    seed: int
    pass_number: int
    table: AliasTable
    row_weights: Float64s

    def at(self, positions: Numbers) -> Picked:
        """Return the draws at *positions*, O(1) each."""
        rows = self.table.draw(positions, seed=self.seed, pass_number=self.pass_number)
        return Picked(rows, self.row_weights[rows])


@dataclass(frozen=True, slots=True, eq=False)
class Chosen:
    """A sample ``rows`` without replacement in random order, with the weight of each, float64."""

    seed: int
    pass_number: int
    rows: Numbers
    weights: Float64s

    @property
    def length(self) -> int:
        """How many rows were chosen."""
        return len(self.rows)

    def at(self, positions: Numbers) -> Picked:
        """Return the rows at *positions* of the shuffled sample, O(1) each."""
        order = permutation(
            len(self.rows),
            seed=self.seed,
            pass_number=self.pass_number,
            purpose=Purpose.CHOSEN,
        )
        places = order.at(positions)
        return Picked(self.rows[places], self.weights[places])


def occurrences_at(order: PassOrder, positions: Numbers) -> Numbers | None:
    """Return what tells the draws at *positions* of a pass from others of the same row, int64 [n].

    With replacement it is the position: unique in the pass, and known without the draws before it,
    which a count of them would not be. None where the order holds no row twice.
    """
    return positions if isinstance(order, Drawn) else None


def plain_order(
    kind: PlainOrder,
    rows: int,
    *,
    seed: int = 0,
    pass_number: int = 0,
    stratum_rows: int = STRATUM_ROWS,
    window_strata: int = WINDOW_STRATA,
) -> PassOrder:
    """Return the order of one pass over *rows* rows without weights.

    Raises InvalidTypeError, InvalidValueError, LimitError.
    """
    check_seed(seed, pass_number)
    _check_rows(rows)
    if kind == "sequential":
        return Sequential(rows)
    if kind == "permutation":
        return Shuffled(rows, seed, pass_number)
    if kind != "windowed":
        raise InvalidValueError(
            f"kind={kind!r} is not one of 'sequential', 'permutation', 'windowed'"
        )
    for name, value in (("stratum_rows", stratum_rows), ("window_strata", window_strata)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise InvalidValueError(f"{name}={value!r} is not a number of at least 1")
    order = Windowed(rows, seed, pass_number, stratum_rows, window_strata)
    if order.windows > WINDOWS_MAX or stratum_rows * window_strata >> ROW_ID_BITS - WINDOW_BITS:
        raise LimitError(
            f"{order.windows} windows of {window_strata} strata of {stratum_rows} rows are beyond "
            f"2^{ROW_ID_BITS - WINDOW_BITS} windows or rows; choose other sizes"
        )
    return order


@dataclass(frozen=True, slots=True, eq=False)
class Sampler:
    """Rows with chances, prepared once for the passes of a loader: :func:`prepare_sampler`.

    ``ids`` [N] name rows in the draws of bottom-k, which keeps what it was given; others have none.
    Immutable; any thread.
    """

    importance: Importance
    chances: Chances
    ids: npt.NDArray[np.integer] | None
    table: AliasTable | None

    @property
    def nbytes(self) -> int:
        """Bytes of its arrays, without the ids: those of the lake, which all samplers share."""
        known: list[Any] = [self.chances.p, self.chances.weights, self.chances.target]
        if self.table is not None:
            known += [self.table.keep, self.table.alias]
        return sum(held_bytes(array) for array in known if array is not None)

    def order(self, *, seed: int, pass_number: int, length: int | None = None) -> PassOrder:
        """Return one pass of *length* rows; None is as many as there are, with replacement.

        Without replacement a length must be given; the mean of weight times value over the pass is
        unbiased for the target, as it is over draws. "systematic" and "bottom_k" cost O(N) here.
        Raises InvalidTypeError, InvalidValueError.
        """
        check_seed(seed, pass_number)
        rows = len(self.chances)
        if self.table is not None:
            count = rows if length is None else length
            _check_rows(count)
            return Drawn(count, seed, pass_number, self.table, self.chances.weights)
        if length is None:
            raise InvalidValueError("a sample without replacement needs a length; give one")
        if self.importance.replacement == "systematic":
            pi = inclusion(self.chances.p, length)
            chosen = systematic(pi, seed=seed, pass_number=pass_number)
            pi = pi[chosen]
        else:
            assert self.ids is not None
            sketch = bottom_k(
                self.chances.p, length, ids=self.ids, seed=seed, pass_number=pass_number
            )
            chosen, pi = sketch.chosen, sketch.inclusion()
        target = self.chances.target
        wanted = None if target is None else target[chosen]
        weights = ratios(wanted, pi / max(len(chosen), 1), self.importance.anneal)
        return Chosen(seed, pass_number, chosen, weights)


def prepare_sampler(
    importance: Importance, chances: Chances, *, ids: npt.NDArray[np.integer] | None = None
) -> Sampler:
    """Return the sampler of rows with *chances*; *ids* [N] default to the row numbers.

    With replacement it builds the alias table: 0.1 s for a million rows.
    """
    names = None if ids is None else np.asarray(ids)
    if names is not None and names.shape != (len(chances),):
        raise InvalidValueError(f"ids have shape {names.shape} for {len(chances)} rows")
    if importance.replacement == "with":
        # q went into the weights, and the chances into the table: a large one is not kept twice.
        lean = replace(chances, target=None)
        return Sampler(importance, lean, None, alias_table(chances.p))
    if importance.replacement == "systematic":
        return Sampler(importance, chances, None, None)
    names = np.arange(len(chances)) if names is None else names
    return Sampler(importance, chances, names, None)


def _check_rows(rows: object) -> None:
    if isinstance(rows, bool) or not isinstance(rows, int):
        raise InvalidTypeError(f"the number of rows is a {type(rows).__name__}, not an int")
    if not 0 <= rows < 1 << ROW_ID_BITS:
        raise LimitError(f"{rows} rows do not fit in the {ROW_ID_BITS} bits of a row number")
