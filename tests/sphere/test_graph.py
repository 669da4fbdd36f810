"""The neighbour graph: exact, growing, approximate; bandwidths and walks on it."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.datasets import load_digits

from mldb.arrays import Float32s
from mldb.errors import InvalidTypeError, InvalidValueError, UsageError
from mldb.noise.keys import Keys
from mldb.sphere import neighbours as search
from mldb.sphere.graph import (
    Graph,
    bandwidth,
    build_graph,
    extend_graph,
    knn_kappa,
    lake_bandwidth,
    reduce_graph,
    row_bandwidths,
    walk,
)
from mldb.sphere.neighbours import nearest


def unit(rows: npt.NDArray[Any]) -> Float32s:
    scaled: Float32s = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)
    return scaled


@st.composite
def cloud(draw: st.DrawFn, least: int = 0) -> Float32s:
    """Unit rows; among few directions, so that there are copies and ties."""
    rows, dim = draw(st.integers(least, 40)), draw(st.integers(2, 6))
    rng = np.random.default_rng(draw(st.integers(0, 1000)))
    steps = draw(st.sampled_from([2, 4, 1000]))
    whole = rng.integers(-steps, steps + 1, (rows, dim)).astype(np.float64)
    whole[:, 0] += (whole == 0).all(axis=1)
    return unit(whole) if rows else np.empty((0, dim), np.float32)


def brute(rows: Float32s, k: int) -> list[list[int]]:
    """Neighbours by definition, one pair at a time."""
    exact = rows.astype(np.float64)
    found = []
    for i in range(len(rows)):
        cosines = [(-float(np.float32((exact[i] * exact[j]).sum())), j) for j in range(len(rows))]
        found.append([j for _, j in sorted(cosines) if j != i][:k])
    return found


def same(a: Graph, b: Graph) -> bool:
    return (
        a.k == b.k
        and a.neighbours.dtype == b.neighbours.dtype == np.int32
        and a.neighbours.tobytes() == b.neighbours.tobytes()
        and a.cosines.tobytes() == b.cosines.tobytes()
    )


def keys(count: int, *, seed: int = 0, pass_number: int = 0, augmentation: int = 0) -> Keys:
    return Keys(
        seed,
        pass_number,
        np.arange(count, dtype=np.uint64),
        np.full(count, augmentation, np.uint16),
    )


@pytest.fixture(scope="module")
def digits() -> Float32s:
    return unit(load_digits().data)


# --- exact ----------------------------------------------------------------------------------------


@given(cloud(), st.integers(1, 12))
def test_neighbours_are_those_of_the_definition(rows: Float32s, k: int) -> None:
    graph = build_graph(rows, k)
    assert graph.neighbours.shape == (len(rows), max(min(k, len(rows) - 1), 0))
    assert graph.neighbours.tolist() == brute(rows, k)
    pairs = np.einsum("nd,nkd->nk", rows, rows[graph.neighbours])
    np.testing.assert_allclose(graph.cosines, pairs, atol=1e-6)
    assert graph.recall == 1


@given(cloud(), st.integers(1, 12), st.data())
def test_a_graph_that_grew_is_the_graph_built_anew(
    rows: Float32s, k: int, data: st.DataObject
) -> None:
    graph = build_graph(rows[:0], k)
    steps = sorted(data.draw(st.lists(st.integers(0, len(rows)), max_size=3)))
    for stop in [*steps, len(rows)]:
        graph = extend_graph(graph, rows[:stop])
        assert same(graph, build_graph(rows[:stop], k))


@given(cloud(), st.integers(1, 12), st.data())
def test_a_graph_that_lost_rows_is_the_graph_built_anew(
    rows: Float32s, k: int, data: st.DataObject
) -> None:
    graph = build_graph(rows, k)
    kept = np.array([data.draw(st.booleans()) for _ in rows], np.bool_)
    before = graph.neighbours.tobytes(), graph.cosines.tobytes()
    assert same(reduce_graph(graph, kept, rows[kept]), build_graph(rows[kept], k))
    assert (graph.neighbours.tobytes(), graph.cosines.tobytes()) == before
    with pytest.raises(InvalidValueError, match="are kept"):
        reduce_graph(graph, np.append(kept, True), rows)


@given(st.integers(0, 10**6), st.integers(1, 6), st.integers(1, 4))
def test_many_identical_rows_have_the_neighbours_of_the_definition(
    seed: int, k: int, groups: int
) -> None:
    """Far more of them than neighbours are asked for, in several groups, among others."""
    rng = np.random.default_rng(seed)
    distinct = unit(rng.standard_normal((8, 3)))
    rows = distinct[np.r_[np.arange(8), rng.integers(0, groups, 72)]][rng.permutation(80)]
    rows = np.ascontiguousarray(rows)
    graph = build_graph(rows, k)
    assert graph.neighbours.tolist() == brute(rows, k)
    for old in (1, 40, 79):
        assert same(extend_graph(build_graph(rows[:old], k), rows), graph)
    kept = rng.random(80) < 0.7
    assert same(reduce_graph(graph, kept, rows[kept]), build_graph(rows[kept], k))
    queries = np.ascontiguousarray(np.r_[rows[:5], unit(rng.standard_normal((4, 3)))])
    alone = [nearest(queries[i : i + 1], rows, k) for i in range(len(queries))]
    found = nearest(queries, rows, k)
    assert found.rows.tolist() == [one.rows[0].tolist() for one in alone]


def test_identical_rows_are_grouped_by_their_bytes(rng: np.random.Generator) -> None:
    rows = rng.standard_normal((60, 5)).astype(np.float32)
    rows[:, 0], rows[:, -1] = 0, 1  # alike at both ends
    rows[rng.integers(0, 60, 30)] = rows[7]
    rows[50:] = rows[3]
    rows[55, 2] = np.nextafter(rows[55, 2], np.float32(9))
    want = [next(j for j in range(60) if rows[j].tobytes() == row.tobytes()) for row in rows]
    assert search.identical_groups(rows).tolist() == want
    for k in (1, 5):
        firsts = search.Firsts(rows, k).rows.tolist()
        assert firsts == [i for i in range(60) if want[:i].count(want[i]) <= k]


def test_blocks_and_growth_do_not_change_a_byte(
    digits: Float32s, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = np.concatenate([digits, digits[:100]])  # with copies
    whole = build_graph(rows, 10)
    assert same(extend_graph(build_graph(rows[:1300], 10), rows), whole)
    for block in (1, 7 * 4 * len(rows), 500 * 4 * len(rows)):
        monkeypatch.setattr(search, "BLOCK_BYTES", block)
        some = nearest(rows[:60], rows, 10, exclude=np.arange(60))
        assert some.rows.tobytes() == whole.neighbours[:60].tobytes()
        assert some.cosines.tobytes() == whole.cosines[:60].tobytes()
        assert same(extend_graph(build_graph(rows[:1890], 10), rows), whole)


def test_what_is_given_is_not_written_to(digits: Float32s) -> None:
    graph = build_graph(digits[:200], 5)
    before = graph.neighbours.tobytes(), graph.cosines.tobytes()
    extend_graph(graph, digits[:300])
    assert (graph.neighbours.tobytes(), graph.cosines.tobytes()) == before


# --- approximate ----------------------------------------------------------------------------------


def test_faiss_finds_what_was_asked_for(rng: np.random.Generator) -> None:
    pytest.importorskip("faiss")
    centres = rng.normal(size=(40, 32))
    rows = unit(centres[rng.integers(0, 40, 4000)] + 0.7 * rng.normal(size=(4000, 32)))
    exact = build_graph(rows, 10)
    graph = build_graph(rows, 10, method="faiss", recall=0.9)
    truly = (graph.neighbours[:, :, None] == exact.neighbours[:, None, :]).any(axis=1).mean()
    assert graph.recall >= 0.9
    assert truly == pytest.approx(graph.recall, abs=0.05)
    assert (graph.neighbours != np.arange(4000)[:, None]).all()
    assert (np.diff(graph.cosines, axis=1) <= 0).all()
    assert same(graph, build_graph(rows, 10, method="faiss", recall=0.9))
    everything = build_graph(rows, 10, method="faiss", recall=1.0)
    assert everything.recall == 1
    assert (everything.neighbours == exact.neighbours).mean() > 0.999


def test_faiss_of_many_copies_and_few_rows() -> None:
    pytest.importorskip("faiss")
    rows = unit(np.repeat(np.eye(3), 30, axis=0))
    graph = build_graph(rows, 5, method="faiss")
    assert graph.recall == 1
    assert (graph.cosines == 1).all()
    assert (graph.neighbours != np.arange(90)[:, None]).all()
    assert build_graph(rows[:1], 5, method="faiss").neighbours.shape == (1, 0)


def test_without_faiss_the_error_says_how_to_get_it(
    digits: Float32s, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(UsageError, match="pip install faiss-cpu"):
        build_graph(digits[:100], 5, method="faiss")
    monkeypatch.setattr("mldb.sphere.graph.EXACT_ROWS_MAX", 50)
    with pytest.raises(UsageError, match="method='exact'"):
        build_graph(digits[:100], 5)
    assert len(build_graph(digits[:100], 5, method="exact")) == 100


# --- concentrations -------------------------------------------------------------------------------


def test_bandwidth_and_knn_kappa_of_digits(digits: Float32s, rng: np.random.Generator) -> None:
    graph = build_graph(digits[rng.permutation(len(digits))[:1100]], 30)
    assert bandwidth(graph) == pytest.approx(78, rel=0.05)
    assert np.median(knn_kappa(graph, 64)) == pytest.approx(520, rel=0.05)


def test_copies_do_not_move_the_bandwidth(digits: Float32s, rng: np.random.Generator) -> None:
    """With half of the rows identical it was 1e6, the end of the search."""
    some = digits[rng.permutation(len(digits))[:600]]
    alone = bandwidth(build_graph(some, 30))
    copied = np.concatenate([some, np.repeat(some[:1], 600, axis=0)])
    graph = build_graph(copied, 30)
    assert row_bandwidths(graph.cosines)[-1] == pytest.approx(1e6)
    assert bandwidth(graph) == pytest.approx(alone, rel=0.02)
    assert lake_bandwidth(graph, copied) == bandwidth(graph)


def test_where_every_row_has_copies_the_different_ones_are_measured(
    digits: Float32s, rng: np.random.Generator
) -> None:
    some = digits[rng.permutation(len(digits))[:300]]
    copied = np.repeat(some, 40, axis=0)[rng.permutation(12_000)]
    graph = build_graph(copied, 30)
    with pytest.raises(InvalidValueError, match="12000 rows has 10 copies or more"):
        bandwidth(graph)
    assert lake_bandwidth(graph, copied) == pytest.approx(bandwidth(build_graph(some, 30)))


@pytest.mark.parametrize("count", [3, 4, 7, 19, 25])
def test_few_rows_have_a_bandwidth(count: int, rng: np.random.Generator) -> None:
    rows = unit(rng.standard_normal((count, 8)))
    found = lake_bandwidth(build_graph(rows, 30), rows)
    assert 0 < found < 1e5


@pytest.mark.parametrize("count", [1, 2])
def test_too_few_different_rows_have_none(count: int, rng: np.random.Generator) -> None:
    """Of two rows: an error about a perplexity that nobody had given."""
    rows = np.repeat(unit(rng.standard_normal((count, 8))), 20, axis=0)
    with pytest.raises(InvalidValueError, match=f"40|20 rows hold {count} different ones"):
        lake_bandwidth(build_graph(rows, 30), rows)


@given(cloud(least=8), st.floats(1.5, 6))
def test_bandwidth_gives_the_perplexity_asked_for(rows: Float32s, perplexity: float) -> None:
    cosines = build_graph(rows, 7).cosines
    for kappa, row in zip(
        row_bandwidths(cosines, perplexity=perplexity), cosines.astype(np.float64), strict=True
    ):
        powers = np.exp(kappa * (row - row.max()))
        p = powers / powers.sum()
        found = np.exp(-(p * np.log(np.maximum(p, 1e-300))).sum())
        copies = np.count_nonzero(row == row.max())
        if copies < perplexity - 0.01:
            assert found == pytest.approx(perplexity, rel=1e-6)
        elif copies > perplexity + 0.01:  # no kappa tells equal cosines apart
            assert kappa == pytest.approx(1e6)


# --- walks ----------------------------------------------------------------------------------------


def test_walks_step_to_neighbours_uniformly(digits: Float32s, seed: int) -> None:
    graph = build_graph(digits, 12)
    ends = walk(graph, np.full(20_000, 5), 1, keys(20_000, seed=seed))
    counts = np.array([np.count_nonzero(ends == row) for row in graph.neighbours[5, :10]])
    assert counts.sum() == 20_000
    assert np.abs(counts - 2000).max() < 5 * np.sqrt(2000)


def test_a_walk_is_a_function_of_its_key_alone(digits: Float32s) -> None:
    graph, start = build_graph(digits, 10), np.arange(300)
    base = walk(graph, start, 6, keys(300))
    assert np.array_equal(base, walk(graph, start, 6, keys(300)))
    some = np.array([7, 200, 31])
    one_by_one = Keys(0, 0, some.astype(np.uint64), np.zeros(3, np.uint16))
    assert walk(graph, some, 6, one_by_one).tolist() == base[some].tolist()
    for other in (keys(300, seed=1), keys(300, pass_number=1), keys(300, augmentation=1)):
        assert np.count_nonzero(base == walk(graph, start, 6, other)) < 60
    two = walk(graph, start, 2, keys(300))
    assert all(
        any(end in graph.neighbours[via] for via in graph.neighbours[row])
        for row, end in zip(start, two, strict=True)
    )


def test_walks_of_no_hops_or_on_one_row_stay() -> None:
    lonely = build_graph(unit(np.ones((1, 3))), 10)
    assert walk(lonely, np.array([0]), 5, keys(1)).tolist() == [0]
    pair = build_graph(unit(np.eye(2)), 10)
    assert walk(pair, np.array([0, 1]), 0, keys(2)).tolist() == [0, 1]
    assert walk(pair, np.array([0, 1]), 3, keys(2)).tolist() == [1, 0]


# --- refusals -------------------------------------------------------------------------------------

FEW = unit(np.eye(3))


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: build_graph(FEW, 0), InvalidValueError, "k=0"),
        (lambda: build_graph(FEW, 1.0), InvalidTypeError, "k is a float"),  # type: ignore[arg-type]
        (lambda: build_graph(FEW.astype(np.float64), 1), InvalidValueError, "float64"),
        (lambda: build_graph(FEW[0], 1), InvalidValueError, "shape"),
        (lambda: build_graph(FEW, 1, method="hnsw"), InvalidValueError, "method"),  # type: ignore[arg-type]
        (lambda: build_graph(FEW, 1, method="faiss", recall=0), InvalidValueError, "recall"),
        (lambda: nearest(FEW, FEW, 4), InvalidValueError, "4 nearest of 3"),
        (lambda: nearest(FEW, FEW[:, :2], 1), InvalidValueError, "dimensions"),
        (lambda: extend_graph(build_graph(FEW, 1), FEW[:2]), InvalidValueError, "extended to 2"),
        (lambda: knn_kappa(build_graph(FEW[:1], 1), 3), InvalidValueError, "no edges"),
        (lambda: bandwidth(build_graph(FEW, 2)), InvalidValueError, "perplexity"),
        (lambda: walk(build_graph(FEW, 1), np.arange(3), -1, keys(3)), InvalidValueError, "hops"),
        (lambda: walk(build_graph(FEW, 1), np.arange(2), 1, keys(3)), InvalidValueError, "keys"),
    ],
)
def test_what_cannot_be_is_refused(
    call: Callable[[], object], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        call()
