"""Approximate nearest rows for lakes too large to compare all pairs, with a measured recall.

faiss groups the rows in about sqrt(N) lists around k-means centres, and a query looks through the
lists nearest to it. How many is found by measuring: for a sample of rows, the share of found
neighbours that are as near as the k-th true one, doubling the lists until it is as asked. Cosines
are computed as in ``mldb.sphere.neighbours``, so that a found neighbour ranks as in an exact graph.
"""

from __future__ import annotations

from importlib import import_module
from math import isqrt
from typing import Any, Final

import numpy as np

from mldb.arrays import Float32s, Numbers
from mldb.errors import InvalidValueError, UsageError
from mldb.sphere.neighbours import Neighbours, Pairs, best_of, nearest, pair_cosines

_SAMPLE: Final = 256  # queries that recall is measured on
_FIRST_PROBES: Final = 4
_QUERIES: Final = 65_536  # at once
_ROWS_A_CENTRE: Final = 64  # k-means learns no better from more


def approximate_nearest(
    rows: Float32s, k: int, *, recall: float = 0.95, seed: int = 0
) -> tuple[Neighbours, float]:
    """Return the k nearest others of each row [N, d] of unit length, and the recall measured.

    Raises InvalidValueError for a recall outside (0, 1], UsageError when faiss is not installed.
    """
    if not 0 < recall <= 1:
        raise InvalidValueError(f"recall={recall} is not above 0 and at most 1")
    index, lists = _index(rows, seed)
    sample = np.linspace(0, len(rows) - 1, min(_SAMPLE, len(rows))).astype(np.int64)
    truth = nearest(rows[sample], rows, k, exclude=sample)
    probes, measured = _FIRST_PROBES, 0.0
    while True:
        index.nprobe = min(probes, lists)
        found = _search(index, rows, sample, k)
        measured = _share_as_near(found, truth, rows, sample)
        if measured >= recall or probes >= lists:
            break
        probes *= 2
    out = Neighbours(np.empty((len(rows), k), np.int32), np.empty((len(rows), k), np.float32))
    for start in range(0, len(rows), _QUERIES):
        numbers = np.arange(start, min(start + _QUERIES, len(rows)))
        out.rows[numbers], out.cosines[numbers] = _ranked(index, rows, numbers, k)
    return out, measured


def _index(rows: Float32s, seed: int) -> tuple[Any, int]:
    try:
        faiss: Any = import_module("faiss")
    except ImportError as error:
        raise UsageError(
            f"a graph of {len(rows)} rows is built with faiss, which is not installed. Install it "
            "with: pip install faiss-cpu; or give method='exact', which compares all pairs"
        ) from error
    lists = max(1, min(isqrt(len(rows)), len(rows) // 39))  # k-means wants 39 rows a centre
    quantizer = faiss.IndexFlatIP(rows.shape[1])
    index = faiss.IndexIVFFlat(quantizer, rows.shape[1], lists, faiss.METRIC_INNER_PRODUCT)
    index.cp.seed = seed & 0x7FFFFFFF
    index.cp.max_points_per_centroid = _ROWS_A_CENTRE
    # faiss draws its own training rows, by the seed; an index is not kept, so neither need they be.
    index.train(np.ascontiguousarray(rows))
    index.add(np.ascontiguousarray(rows))
    return index, lists


def _search(index: Any, rows: Float32s, numbers: Numbers, k: int) -> Numbers:
    """Return k found rows for each, int64 [n, k], without the row itself; -1 where too few."""
    _, found = index.search(rows[numbers], k + 1)
    own = found == numbers[:, None]
    # A row among many copies may not be found itself; the last one found then makes room.
    own[:, -1] |= ~own.any(axis=1)
    return np.asarray(found[~own].reshape(len(numbers), k))


def _share_as_near(found: Numbers, truth: Neighbours, rows: Float32s, numbers: Numbers) -> float:
    """The recall. By cosine: of many copies of a row, any is as good as those of smaller number."""
    if not found.size:
        return 1.0
    left = np.repeat(numbers, found.shape[1])
    cosines = pair_cosines(rows, left, rows, found.reshape(-1)).reshape(found.shape)
    near = (found >= 0) & (cosines >= truth.cosines[:, -1:])
    return float(near.mean())


def _ranked(index: Any, rows: Float32s, numbers: Numbers, k: int) -> Neighbours:
    found = _search(index, rows, numbers, k)
    short = np.flatnonzero((found < 0).any(axis=1))
    if len(short):  # lists of few rows: look through all of them
        found[short] = nearest(rows[numbers[short]], rows, k, exclude=numbers[short]).rows
    left, right = np.repeat(numbers, k), found.reshape(-1)
    pairs = Pairs(left, right, pair_cosines(rows, left, rows, right))
    best, shape = best_of(pairs, k), (len(numbers), k)
    return Neighbours(
        pairs.right[best].astype(np.int32).reshape(shape), pairs.cosines[best].reshape(shape)
    )
