"""Exact nearest rows by cosine, in blocks of bounded memory, the same whatever the blocks.

A matrix product in float32 finds candidates, but its last bits depend on the shape of the block,
and with them which of two near rows comes first. So the cosine of each candidate is computed again,
in float64 in an order fixed by the rows alone, and rounded to float32. That cosine ranks them; ties
go to the smaller row number. A query has one answer, alone or in any batch.

No row of the answer is missed. Whatever the order of its sums, a float32 product of d terms is off
by at most g = d u / (1 - d u) times |x| |y|, u = 2^-24 (Higham 2002, section 3.1), and the cosine
that ranks by at most u. The k rows of largest product reach the k-th largest, the border: so their
cosines reach border - g - u, those of the answer no less, and their products border - 2 (g + u).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from mldb.arrays import Bools, Float32s, Numbers
from mldb.errors import InvalidValueError

BLOCK_BYTES: Final = 32 << 20  # of the float32 products; their copies take twice as much again
_PAIRS: Final = 2048  # candidates computed again at once
_FEW: Final = 64  # queries whose products are made the other way
_LANES: Final = 16  # rows whose products are compared at once: short inner loops are slow
_ROUNDING: Final = 2.0**-24
_ONE_THREAD_TERMS: Final = 1 << 18  # of a product; from there on OpenBLAS wakes its threads
_ONE_THREAD_SUM: Final = 1 << 28  # of such products: five milliseconds; more is worth the threads
_STACKED_ROWS: Final = 8  # of such a product; with fewer the queries are packed too often
_MANY: Final = 4  # times k: so many candidates of a query are rows that are alike
LEFT_OUT: Final = -2.0  # below every cosine


class Neighbours(NamedTuple):
    """For each of Q queries, nearest first: rows int32 [Q, k] and their cosines float32 [Q, k]."""

    rows: npt.NDArray[np.int32]
    cosines: npt.NDArray[np.float32]


class Pairs(NamedTuple):
    """Pairs of rows by number, int64 [n], and their cosines float32 [n]."""

    left: Numbers
    right: Numbers
    cosines: npt.NDArray[np.float32]


def nearest(
    queries: Float32s,
    base: Float32s,
    k: int,
    *,
    exclude: Numbers | None = None,
    firsts: Firsts | None = None,
) -> Neighbours:
    """Return the k rows of *base* [N, d] nearest to each of *queries* [Q, d], both of unit length.

    *exclude* [Q] names one row for each query that is not to be found. *firsts* of *base* and k may
    be given where they are kept. Raises InvalidValueError when there are fewer than k others, and
    for shapes that do not fit.
    """
    check_row_matrix("queries", queries)
    check_row_matrix("base", base)
    others = len(base) - (exclude is not None)
    if queries.shape[1] != base.shape[1] or not 0 <= k <= max(others, 0):
        raise InvalidValueError(
            f"{k} nearest of {others} rows of {base.shape[1]} dimensions were asked for, for "
            f"queries of {queries.shape[1]}"
        )
    rows = np.empty((len(queries), k), np.int32)
    cosines = np.empty((len(queries), k), np.float32)
    if k:
        firsts = Firsts(base, k) if firsts is None else firsts
        for part in blocks(len(queries), len(base)):
            if k == 1 and exclude is None and part.stop - part.start <= _FEW:
                rows[part], cosines[part] = _nearest_row(queries[part], base, firsts)
                continue
            products = _products(queries[part], base)
            if exclude is not None:
                products[np.arange(len(products)), exclude[part]] = LEFT_OUT
            rows[part], cosines[part] = top(products, queries[part], base, k, firsts)
    return Neighbours(rows, cosines)


def _products(queries: Float32s, base: Float32s) -> Float32s:
    """Return queries @ base.T. A few queries are faster the other way: the rows are not packed."""
    if len(queries) > _FEW:
        return queries @ base.T
    return np.ascontiguousarray((base @ queries.T).T)


def _nearest_row(queries: Float32s, base: Float32s, firsts: Firsts) -> Neighbours:
    """Return the nearest row of each of a few queries.

    Their products are looked at as they come, [N, Q], several rows at once: all that is not the
    product itself costs a tenth of it.
    """
    count, few = len(base), len(queries)
    products = np.empty((-(-count // _LANES) * _LANES, few), np.float32)
    products[count:] = LEFT_OUT
    _multiply(base, queries, products[:count])
    lanes = products.reshape(-1, _LANES * few)
    border = lanes.max(axis=0).reshape(_LANES, few).max(axis=0)
    near = (lanes >= np.tile(border - _margin(base.shape[1]), _LANES)).reshape(-1, few)
    numbers: Numbers | None = None
    if np.count_nonzero(near) > _MANY * few:
        numbers = firsts.rows
        near = near[numbers]
    row, query = np.divmod(np.flatnonzero(near), few)
    row = row if numbers is None else numbers[row]
    return _ranked(query, row, queries, base, 1)


def _multiply(base: Float32s, queries: Float32s, out: Float32s) -> None:
    """Write base @ queries.T to *out* [N, Q]; what takes a few milliseconds on this thread alone.

    BLAS shares a product among its threads and waits for the last of them. Where another program
    has one of the cores, that is two or three slices of the scheduler; so such a product is made as
    a stack of ones too small to be shared.
    """
    count, dim = base.shape
    few = len(queries)
    stacked = min(_ONE_THREAD_TERMS // max(few * dim, 1), count)
    if stacked < _STACKED_ROWS or count * few * dim > _ONE_THREAD_SUM:
        np.matmul(base, queries.T, out=out)
        return
    columns = np.ascontiguousarray(queries.T)
    whole = count - count % stacked
    stack = base[:whole].reshape(-1, stacked, dim)
    np.matmul(stack, columns, out=out[:whole].reshape(-1, stacked, few))
    np.matmul(base[whole:], columns, out=out[whole:])


class Firsts:
    """Which rows can be among the k nearest of any query, however many identical rows there are.

    Of identical rows those of the smallest numbers come first, and one of them may be the query's
    own: so the first k + 1 of each group. Found when first asked for. One thread.
    """

    def __init__(
        self,
        rows: Float32s,
        k: int,
        kept: Callable[[Callable[[], Numbers]], Numbers] | None = None,
    ) -> None:
        """*kept* returns what its argument does, or did for the same rows and k before."""
        self._rows = rows
        self._kept = kept
        self.k = k

    @cached_property
    def rows(self) -> Numbers:
        """Their numbers, ascending."""
        return self._find() if self._kept is None else self._kept(self._find)

    def _find(self) -> Numbers:
        group = identical_groups(self._rows)
        order = np.argsort(group, kind="stable")
        starts = np.flatnonzero(np.diff(group[order], prepend=-1))
        lengths = np.diff(starts, append=len(order))
        place = np.arange(len(order)) - np.repeat(starts, lengths)
        return np.sort(order[place <= self.k])


def identical_groups(rows: Float32s) -> Numbers:
    """Return the number of the first row that has the same bytes, for each row, int64 [N].

    Rows of one hash are compared, so only the time depends on it: O(N d), for what may be equal.
    """
    found = np.arange(len(rows))
    if not rows.shape[1]:
        return np.zeros_like(found)
    words = np.ascontiguousarray(rows).view(np.uint32)
    # Few rows share their two ends unless they are alike: the rest is not looked at.
    ends = words[:, 0].astype(np.uint64) << np.uint64(32) | words[:, -1]
    _, place, counts = np.unique(ends, return_inverse=True, return_counts=True)
    alike = np.flatnonzero(counts[place] > 1)
    hashes = np.empty(len(alike), np.uint64)
    odd = np.arange(words.shape[1], dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    odd = (odd ^ odd >> np.uint64(31)) | np.uint64(1)
    for start in range(0, len(alike), _PAIRS):
        part = slice(start, start + _PAIRS)
        hashes[part] = (words[alike[part]] * odd).sum(axis=1)  # modulo 2^64
    order = np.argsort(hashes, kind="stable")
    starts = np.flatnonzero(np.r_[True, np.diff(hashes[order]) != 0]) if len(order) else order
    lengths = np.diff(starts, append=len(order))
    first = np.repeat(alike[order[starts]], lengths)
    members = alike[order]
    for start in range(0, len(members), _PAIRS):
        part = slice(start, start + _PAIRS)
        same = (words[members[part]] == words[first[part]]).all(axis=1)
        found[members[part][same]] = first[part][same]
    return found


def top(
    products: Float32s, queries: Float32s, base: Float32s, k: int, firsts: Firsts | None = None
) -> Neighbours:
    """Return the k nearest of *base* [N, d] by *products* [Q, N], queries @ base.T.

    *firsts* of *base* keep the cost from growing with the square of the number of identical rows.
    """
    border = _border(products, k)
    wanted = (border - _margin(base.shape[1]))[:, None]
    near = products >= wanted
    numbers: Numbers | None = None
    if firsts is not None and np.count_nonzero(near) > _MANY * k * len(queries):
        numbers = firsts.rows
        near = near[:, numbers]
    left, right = _places(near)
    if numbers is not None:
        right = numbers[right]
    return _ranked(left, right, queries, base, k)


def _ranked(left: Numbers, right: Numbers, queries: Float32s, base: Float32s, k: int) -> Neighbours:
    """Return the k best of the pairs (query, row), of which every query has as many."""
    pairs = Pairs(left, right, pair_cosines(queries, left, base, right))
    best = best_of(pairs, k)
    shape = len(queries), k
    return Neighbours(
        pairs.right[best].astype(np.int32).reshape(shape), pairs.cosines[best].reshape(shape)
    )


def _border(products: Float32s, k: int) -> npt.NDArray[np.float32]:
    """The k-th largest product of each query."""
    if k == 1:
        return np.asarray(products.max(axis=1))
    return np.asarray(np.partition(products, products.shape[1] - k, axis=1)[:, -k])


def exact_pairs(products: Float32s, border: Float32s, queries: Float32s, base: Float32s) -> Pairs:
    """Return the pairs (query, row of *base*) whose cosine may reach *border* [Q], or [Q, N]."""
    wanted = border - _margin(base.shape[1])
    left, right = _places(products >= (wanted[:, None] if wanted.ndim == 1 else wanted))
    return Pairs(left, right, pair_cosines(queries, left, base, right))


def pair_cosines(
    left: Float32s, i: Numbers, right: Float32s, j: Numbers
) -> npt.NDArray[np.float32]:
    """Return the cosine of left[i] and right[j] for each pair, float32 [n]: by rows alone."""
    out = np.empty(len(i), np.float32)
    for start in range(0, len(i), _PAIRS):
        part = slice(start, start + _PAIRS)
        # Sums along contiguous rows are made row by row, in one order.
        out[part] = (left[i[part]].astype(np.float64) * right[j[part]]).sum(axis=1)
    return out


def best_of(pairs: Pairs, k: int) -> Numbers:
    """Return which pairs are the k best of each left row, int64 [rows * k], by left row.

    Every left row has at least k pairs. The larger cosine is better; of equal ones, the smaller
    right row.
    """
    order = np.lexsort((pairs.right, -pairs.cosines, pairs.left))
    starts = np.flatnonzero(np.diff(pairs.left[order], prepend=-1))
    best: Numbers = order[(starts[:, None] + np.arange(k)).reshape(-1)]
    return best


def blocks(queries: int, rows: int) -> list[slice]:
    """Cut *queries* into slices whose products with *rows* rows keep within BLOCK_BYTES."""
    size = max(1, BLOCK_BYTES // (4 * max(rows, 1)))
    return [slice(start, min(start + size, queries)) for start in range(0, queries, size)]


def check_row_matrix(name: str, rows: Float32s) -> None:
    """Refuse what is no float32 matrix. Unit length is the caller's promise, not checked here."""
    if rows.ndim != 2 or rows.dtype != np.float32:
        raise InvalidValueError(
            f"{name} is {rows.dtype} of shape {rows.shape}; give float32 rows [n, d]"
        )


def _places(mask: Bools) -> tuple[Numbers, Numbers]:
    """Where *mask* [Q, N] is set. ``np.nonzero`` of two dimensions takes twenty times as long."""
    query, row = np.divmod(np.flatnonzero(mask), max(mask.shape[1], 1))
    return query, row


def _margin(dim: int) -> np.float32:
    """How far below the border the product of a row may lie that ranks among the k nearest.

    2 (g + u) of the module's docstring, and u for the border less it. A hundredth more covers the
    norms of rows, which are 1 but for their own rounding, and cosines computed in float64.
    """
    g = dim * _ROUNDING / (1 - dim * _ROUNDING)
    return np.float32(1.01 * (2 * g + 3 * _ROUNDING))
