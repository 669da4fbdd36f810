"""The neighbour graph of a lake: exact and growing, or approximate and large; walks on it.

Neighbours are by cosine of unit rows, a row is not its own, ties go to the smaller row number.
Adding rows to an exact graph gives byte for byte what building it anew would
(``mldb.sphere.neighbours``).
"""

from __future__ import annotations

from math import isqrt
from typing import Final, Literal

import numpy as np
import numpy.typing as npt

from mldb.arrays import Bools, Float32s, Float64s, Numbers
from mldb.deferred import dataclass
from mldb.errors import InvalidValueError, LimitError
from mldb.integers import integer
from mldb.noise.draws import SAMPLING_STEP, Purpose
from mldb.noise.keys import Keys, check_keys
from mldb.noise.philox import words
from mldb.sphere import vmf
from mldb.sphere.approximate import approximate_nearest
from mldb.sphere.neighbours import (
    LEFT_OUT,
    Firsts,
    Neighbours,
    Pairs,
    best_of,
    blocks,
    check_row_matrix,
    exact_pairs,
    identical_groups,
    nearest,
    top,
)

GraphMethod = Literal["auto", "exact", "faiss"]

EXACT_ROWS_MAX: Final = 100_000
"""Up to here "auto" compares all pairs: 2 N^2 d operations."""

GRAPH_ROWS_MAX: Final = 1 << 31
WALK_NEIGHBOURS: Final = 10
BANDWIDTH_NEIGHBOURS: Final = 30
"""What the perplexity is taken over, and so how many neighbours the graph of a lake has."""
HOPS_MAX: Final = 1024
PERPLEXITY: Final = 10.0
_HALVINGS: Final = 50
_LOST_MAX: Final = 4  # times the root of N: so many lists of an approximate graph are made anew
_MANY: Final = 4
_TIE: Final = np.float32(1e-4)
_BANDWIDTH_MAX: Final = 1e6
_REACHED: Final = 0.99
_BANDWIDTH_ROWS: Final = 1 << 12
_LEAST_PERPLEXITY: Final = 1.01


@dataclass(frozen=True, slots=True, eq=False)
class Graph:
    """The k nearest rows of each of N rows, nearest first. Immutable; any thread.

    ``neighbours`` int32 and ``cosines`` float32 are [N, min(k, N - 1)]. ``recall`` is the share of
    true neighbours found: 1 when all pairs were compared, else measured on a sample of rows.
    """

    k: int
    neighbours: npt.NDArray[np.int32]
    cosines: npt.NDArray[np.float32]
    recall: float = 1.0

    def __len__(self) -> int:
        """The number of rows N."""
        return len(self.neighbours)


def build_graph(
    rows: Float32s, k: int, *, method: GraphMethod = "auto", recall: float = 0.95, seed: int = 0
) -> Graph:
    """Return the graph of unit *rows*, float32 [N, d].

    *method* "exact" compares all pairs; "faiss" looks for at least *recall* of the neighbours, by
    an index seeded with *seed*; "auto" goes over to it above EXACT_ROWS_MAX. Raises
    InvalidValueError, LimitError, and UsageError where faiss is needed and not installed.
    """
    check_row_matrix("rows", rows)
    k = _check_k(k, len(rows))
    if method not in ("auto", "exact", "faiss"):
        raise InvalidValueError(f"method={method!r} is not one of 'auto', 'exact', 'faiss'")
    width = max(min(k, len(rows) - 1), 0)
    if width and (method == "faiss" or (method == "auto" and len(rows) > EXACT_ROWS_MAX)):
        found, measured = approximate_nearest(rows, width, recall=recall, seed=seed)
        return Graph(k, found.rows, found.cosines, measured)
    found = nearest(rows, rows, width, exclude=np.arange(len(rows)))
    return Graph(k, found.rows, found.cosines)


def extend_graph(graph: Graph, rows: Float32s) -> Graph:
    """Return the graph of *rows* [N, d], the first of which are those of *graph*, unchanged.

    New rows are compared with all, and enter the lists of old rows that they are nearer to. For an
    exact graph the result is that of :func:`build_graph`; else its recall stays about what it was.
    Raises InvalidValueError when there are fewer rows than before.
    """
    check_row_matrix("rows", rows)
    old, width = graph.neighbours.shape
    if len(rows) < old:
        raise InvalidValueError(f"a graph of {old} rows cannot be extended to {len(rows)}")
    if width < graph.k:  # so few rows that lists grow longer
        return build_graph(rows, graph.k, method="exact")
    if not width or len(rows) == old:
        return Graph(graph.k, *_grown(graph, len(rows)), graph.recall)
    _check_k(graph.k, len(rows))
    out = Neighbours(*_grown(graph, len(rows)))
    arrivals: list[Pairs] = []
    firsts = Firsts(rows, width)
    for part in blocks(len(rows) - old, len(rows)):
        new = np.arange(part.start, part.stop) + old
        products = rows[new] @ rows.T
        products[np.arange(len(new)), new] = LEFT_OUT
        arrivals.append(_arrivals(products[:, :old], graph.cosines[:, -1], new, rows, firsts))
        out.rows[new], out.cosines[new] = top(products, rows[new], rows, width, firsts)
    _take_in(out, arrivals)
    return Graph(graph.k, out.rows, out.cosines, graph.recall)


def reduce_graph(graph: Graph, kept: Bools, rows: Float32s) -> Graph:
    """Return the graph of *rows* [N, d]: those of *graph* where *kept* is set, in their order.

    The lists that lost a row are made anew. For an exact graph the result is that of
    :func:`build_graph`; else its recall stays about what it was. Raises InvalidValueError when the
    numbers of rows do not fit.
    """
    check_row_matrix("rows", rows)
    if kept.shape != (len(graph),) or int(kept.sum()) != len(rows):
        raise InvalidValueError(
            f"{int(kept.sum())} rows of a graph of {len(graph)} are kept, and {len(rows)} given"
        )
    if len(rows) == len(graph):
        return graph
    width = graph.neighbours.shape[1]
    if len(rows) <= width:  # so few rows that lists grow shorter
        return build_graph(rows, graph.k, method="exact")
    neighbours, cosines = graph.neighbours[kept], graph.cosines[kept]
    lost = np.flatnonzero(~kept[neighbours].all(axis=1))
    if len(rows) > EXACT_ROWS_MAX and len(lost) > _LOST_MAX * isqrt(len(rows)):
        return build_graph(rows, graph.k)
    neighbours = (np.cumsum(kept) - 1).astype(np.int32)[neighbours]
    neighbours[lost], cosines[lost] = nearest(rows[lost], rows, width, exclude=lost)
    return Graph(graph.k, neighbours, cosines, graph.recall)


def knn_kappa(graph: Graph, dim: int, *, k: int = WALK_NEIGHBOURS) -> Float64s:
    """Return the kappa at which a draw lies as far from each row as its k nearest, float64 [N].

    High where rows are duplicated. A_d^-1 of the mean cosine; *dim* is d. Raises InvalidValueError
    for a graph without edges.
    """
    _check_edges(graph)
    return vmf.concentration(graph.cosines[:, :k].mean(axis=1, dtype=np.float64), dim)


def bandwidth(
    graph: Graph, *, neighbours: int = BANDWIDTH_NEIGHBOURS, perplexity: float = PERPLEXITY
) -> float:
    """Return the kappa of the lake's energy landscape: the median of :func:`row_bandwidths`.

    A row with so many copies that no kappa tells them apart says nothing about distances and is
    left out. The graph needs at least *neighbours* neighbours a row (30, unless the lake is
    smaller). Raises InvalidValueError when no row is left; see :func:`lake_bandwidth`.
    """
    found = _median_bandwidth(graph.cosines[:, :neighbours], perplexity)
    if found is None:
        raise InvalidValueError(
            f"each of {len(graph)} rows has {perplexity:g} copies or more among its neighbours, so "
            "none has a bandwidth; remove copies"
        )
    return found


def lake_bandwidth(graph: Graph, rows: Float32s) -> float:
    """Return the bandwidth of *rows* [N, d], whose graph is *graph*, N >= 3.

    The perplexity is 10, in a lake of fewer than 20 rows half of the neighbours. Where every row
    has too many copies it is the bandwidth of the different rows among them, by at most 4,096.
    Raises InvalidValueError for fewer than three different rows.
    """
    found = _median_bandwidth(graph.cosines, _perplexity_of(graph.cosines.shape[1]))
    return _distinct_bandwidth(rows) if found is None else found


def _distinct_bandwidth(rows: Float32s) -> float:
    different = np.unique(identical_groups(rows))
    width = min(BANDWIDTH_NEIGHBOURS, len(different) - 1)
    if width >= 2:
        some = np.arange(0, len(different), -(-len(different) // _BANDWIDTH_ROWS))
        base = rows[different]
        near = nearest(base[some], base, width, exclude=some)
        found = _median_bandwidth(near.cosines, _perplexity_of(width))
        if found is not None:
            return found
    raise InvalidValueError(
        f"{len(rows)} rows hold {len(different)} different ones, too few or too near to each other "
        "for a bandwidth: chains need three that float32 tells apart"
    )


def _perplexity_of(width: int) -> float:
    return min(PERPLEXITY, max(_LEAST_PERPLEXITY, width / 2))


def _median_bandwidth(cosines: npt.NDArray[np.float32], perplexity: float) -> float | None:
    """The median over rows that reach the perplexity; None where none does."""
    found = row_bandwidths(cosines, perplexity=perplexity)
    reached = found[found < _REACHED * _BANDWIDTH_MAX]
    return float(np.median(reached)) if len(reached) else None


def row_bandwidths(cosines: npt.NDArray[np.float32], *, perplexity: float = PERPLEXITY) -> Float64s:
    """Return the kappa of each row at which softmax(kappa cosines) has *perplexity*, float64 [N].

    *cosines* [N, n] are to the n nearest rows (van der Maaten and Hinton 2008). The perplexity
    falls from n as kappa grows; 50 halvings of (0, 1e6) find where. A row of n equal cosines never
    gets there and has the largest kappa. Raises InvalidValueError unless 1 < perplexity < n.
    """
    if not 1 < perplexity < cosines.shape[1]:
        raise InvalidValueError(
            f"perplexity={perplexity} of {cosines.shape[1]} neighbours; it lies between 1 and them"
        )
    gaps = cosines.astype(np.float64) - cosines.max(axis=1, keepdims=True)
    low: Float64s = np.zeros(len(cosines))
    high: Float64s = np.full(len(cosines), _BANDWIDTH_MAX)
    for _ in range(_HALVINGS):
        kappa = (low + high) / 2
        exponents = kappa[:, None] * gaps
        powers = np.exp(exponents)
        total = powers.sum(axis=1)
        entropy = np.log(total) - (powers * exponents).sum(axis=1) / total
        flat = entropy > np.log(perplexity)
        low, high = np.where(flat, kappa, low), np.where(flat, high, kappa)
    return (low + high) / 2


def walk(
    graph: Graph, start: Numbers, hops: int, keys: Keys, *, k: int = WALK_NEIGHBOURS
) -> Numbers:
    """Return where walks of *hops* uniform steps from rows *start* [B] end, int64 [B].

    A step goes to one of the k nearest of the row. What walk i does is a function of the seed, the
    pass, row and augmentation number i of *keys* alone. Raises InvalidTypeError, InvalidValueError.
    """
    check_keys(keys)
    hops = _check_hops(hops)
    if len(start) != len(keys):
        raise InvalidValueError(f"{len(start)} walks and keys for {len(keys)}")
    width = min(k, graph.neighbours.shape[1])
    here = np.asarray(start, np.int64)
    if not width or not hops:
        return here.copy()
    raw = words(keys, SAMPLING_STEP, -(-hops // 4), first=Purpose.WALK).reshape(len(keys), -1)
    choices = raw.astype(np.uint64) * np.uint64(width) >> np.uint64(32)
    for hop in range(hops):
        here = graph.neighbours[here, choices[:, hop].astype(np.int64)].astype(np.int64)
    return here


def _grown(graph: Graph, rows: int) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.float32]]:
    """Return copies of the lists with room for *rows* rows."""
    old, width = graph.neighbours.shape
    neighbours, cosines = np.empty((rows, width), np.int32), np.empty((rows, width), np.float32)
    neighbours[:old], cosines[:old] = graph.neighbours, graph.cosines
    return neighbours, cosines


def _arrivals(
    products: Float32s,
    border: npt.NDArray[np.float32],
    new: Numbers,
    rows: Float32s,
    firsts: Firsts,
) -> Pairs:
    """The pairs (old row, new neighbour) that may enter the lists of old rows.

    A new row that follows k + 1 identical ones enters none: where there are many pairs, those are
    looked at that can.
    """
    old = products.shape[1]
    if np.count_nonzero(products >= border - _TIE) > _MANY * len(new) * firsts.k:
        able = np.flatnonzero(np.isin(new, firsts.rows))
        new, products = new[able], products[able]
    found = exact_pairs(products, border[None, :], rows[new], rows[:old])
    return Pairs(found.right, new[found.left], found.cosines)


def _take_in(lists: Neighbours, arrivals: list[Pairs]) -> None:
    """Put the pairs (old row, new neighbour) of *arrivals* into the lists that they belong in."""
    pairs = Pairs(*(np.concatenate(column) for column in zip(*arrivals, strict=True)))
    changed, width = np.unique(pairs.left), lists.rows.shape[1]
    all_pairs = Pairs(
        np.concatenate([pairs.left, np.repeat(changed, width)]),
        np.concatenate([pairs.right, lists.rows[changed].reshape(-1)]),
        np.concatenate([pairs.cosines, lists.cosines[changed].reshape(-1)]),
    )
    best = best_of(all_pairs, width)
    lists.rows[changed] = all_pairs.right[best].reshape(-1, width)
    lists.cosines[changed] = all_pairs.cosines[best].reshape(-1, width)


def _check_k(k: object, rows: int) -> int:
    count = integer("k", k)
    if count < 1:
        raise InvalidValueError(f"k={k} neighbours; ask for at least one")
    if rows >= GRAPH_ROWS_MAX:
        raise LimitError(f"{rows} rows; a graph numbers them in 31 bits")
    return count


def _check_hops(hops: object) -> int:
    count = integer("hops", hops)
    if not 0 <= count <= HOPS_MAX:
        raise InvalidValueError(f"hops={hops} is not between 0 and {HOPS_MAX}")
    return count


def _check_edges(graph: Graph) -> None:
    if not graph.neighbours.shape[1]:
        raise InvalidValueError(f"a graph of {len(graph)} rows has no edges; add rows")
