"""The nearest rows are those of the definition, whatever products in float32 are off by."""

from __future__ import annotations

from typing import Any
from unittest import mock

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mldb.arrays import Float32s
from mldb.sphere import neighbours as search
from mldb.sphere.neighbours import Firsts, nearest


def unit(rows: Any) -> Float32s:
    scaled: Float32s = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)
    return scaled


def by_definition(queries: Float32s, base: Float32s, k: int = 1) -> list[list[int]]:
    """All pairs in float64, rounded once; ties go to the smaller number."""
    exact = queries[:, None, :].astype(np.float64) * base[None].astype(np.float64)
    cosines = exact.sum(axis=2).astype(np.float32)
    return [np.argsort(-row, kind="stable")[:k].tolist() for row in cosines]


def found(queries: Float32s, base: Float32s, **options: Any) -> list[list[int]]:
    return nearest(queries, base, 1, **options).rows.tolist()  # type: ignore[no-any-return]


@given(
    st.integers(1, 90),
    st.integers(1, 70),
    st.sampled_from([1, 2, 3, 17, 64]),
    st.sampled_from([1, 2, 1000]),
    st.sampled_from([1 << 18, 1 << 9, 1]),
    st.integers(0, 10**6),
)
def test_the_nearest_row_is_that_of_the_definition(
    rows: int, queries: int, dim: int, steps: int, terms: int, seed: int
) -> None:
    """One row and many, copies and ties, rows of the lake themselves and others.

    Products are made in stacks with a rest, in one stack, and at once.
    """
    rng = np.random.default_rng(seed)
    whole = rng.integers(-steps, steps + 1, (rows, dim)).astype(np.float64)
    whole[:, 0] += (whole == 0).all(axis=1)
    base = unit(whole)
    base = np.ascontiguousarray(base[rng.integers(0, rows, rows)])  # some more than once
    others = unit(rng.standard_normal((queries, dim)))
    own = rng.random(queries) < 0.5
    others[own] = base[rng.integers(0, rows, int(own.sum()))]
    with mock.patch.object(search, "_ONE_THREAD_TERMS", terms):
        assert found(others, base) == by_definition(others, base)
        some = nearest(others[:1], base, 1)
    cosine = (others[0].astype(np.float64) * base[some.rows[0, 0]]).sum()
    assert some.cosines[0, 0] == np.float32(cosine)


@pytest.mark.parametrize(("queries", "k"), [(20, 1), (70, 1), (20, 3)])
def test_errors_of_products_within_their_bound_change_nothing(
    monkeypatch: pytest.MonkeyPatch, rng: np.random.Generator, queries: int, k: int
) -> None:
    """The candidates were once those within an error that grows with the root of d.

    That is what rounding adds up to where it is like noise; a sum may drift further, up to d u.
    """
    dim = 900
    centre = rng.standard_normal(dim)
    base = unit(centre + 0.003 * rng.standard_normal((400, dim)))
    others = unit(centre + 0.003 * rng.standard_normal((queries, dim)))
    bound = np.float32(0.999 * dim * 2.0**-24)

    def drifting(products: Float32s) -> Float32s:
        """What ranks first comes out too small, all else too large."""
        leaders = np.argsort(-products, axis=1)[:, :k]
        products += bound
        rows = np.arange(len(products))[:, None]
        products[rows, leaders] -= 2 * bound
        return products

    plain_multiply, plain_products = search._multiply, search._products

    def multiply(base: Float32s, queries: Float32s, out: Float32s) -> None:
        plain_multiply(base, queries, out)
        out[:] = drifting(np.ascontiguousarray(out.T)).T

    monkeypatch.setattr(search, "_multiply", multiply)
    monkeypatch.setattr(search, "_products", lambda q, b: drifting(plain_products(q, b)))
    assert nearest(others, base, k).rows.tolist() == by_definition(others, base, k)


def test_identical_rows_are_looked_for_once_where_that_is_kept(
    monkeypatch: pytest.MonkeyPatch, rng: np.random.Generator
) -> None:
    base = unit(rng.standard_normal((300, 5)))
    base[rng.permutation(300)[:200]] = base[7]
    others = np.ascontiguousarray(base[[7, 7, 3]])
    wanted, looked, kept = by_definition(others, base), [], {}
    plain = search.identical_groups

    def noted(rows: Float32s) -> Any:
        looked.append(len(rows))
        return plain(rows)

    def keep(make: Any) -> Any:
        if "rows" not in kept:
            kept["rows"] = make()
        return kept["rows"]

    monkeypatch.setattr(search, "identical_groups", noted)
    for _ in range(3):
        assert found(others, base, firsts=Firsts(base, 1, keep)) == wanted
    assert looked == [300]
    assert found(others, base) == wanted
    assert looked == [300, 300]
