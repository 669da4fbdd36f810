"""Orders and draws: what the compiled twin and NumPy make of the same seeds and positions."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import mldb
from mldb.lake.order.permutation import SORTED_MAX, permutation
from mldb.lake.order.sampling import AliasTable, alias_table
from mldb.log import native

pytestmark = pytest.mark.skipif(native.twin is None, reason=f"native is {native.status}")

SIZES = st.one_of(
    st.integers(SORTED_MAX + 1, SORTED_MAX + 99),
    st.integers(SORTED_MAX + 1, 1 << 22),
    st.integers(SORTED_MAX + 1, (1 << 48) - 1),
    st.sampled_from([1 << 20, (1 << 24) - 1, (1 << 48) - 1, 999_983]),
)
SEEDS = st.integers(0, (1 << 64) - 1)
PASSES = st.integers(0, (1 << 32) - 1)
COUNTS = st.sampled_from([0, 1, 63, 64, 65, 1000, 20_000])


@given(n=SIZES, seed=SEEDS, number=PASSES, count=COUNTS, chosen=st.integers(0, 1 << 30))
def test_a_permutation_is_the_same_in_both_directions(
    n: int, seed: int, number: int, count: int, chosen: int
) -> None:
    order = permutation(n, seed=seed, pass_number=number)
    positions = np.random.default_rng(chosen).integers(0, n, count)
    positions[:2] = [0, n - 1][: len(positions)]
    there = order.at(positions)
    with native.switched_off():
        assert order.at(positions).tobytes() == there.tobytes()
        assert order.place(there).tobytes() == positions.tobytes()
    assert order.place(there).tobytes() == positions.tobytes()


@pytest.mark.parametrize("dtype", ["<i8", ">i8"])
@pytest.mark.parametrize("step", [1, 3, -1])
def test_positions_of_other_kinds_give_the_same_rows(dtype: str, step: int) -> None:
    order = permutation(50_000, seed=1, pass_number=2)
    positions = np.arange(50_000).astype(dtype)[::step]
    with native.switched_off():
        want = order.at(positions)
    assert order.at(positions).tobytes() == want.tobytes()


@given(
    rows=st.sampled_from([1, 2, 63, 1000, 70_001]),
    seed=SEEDS,
    number=PASSES,
    count=COUNTS,
    chosen=st.integers(0, 1 << 30),
    kind=st.sampled_from(["table", "wide", "uniform"]),
)
def test_draws_are_the_same(
    rows: int, seed: int, number: int, count: int, chosen: int, kind: str
) -> None:
    rng = np.random.default_rng(chosen)
    table = alias_table(np.ones(rows) if kind == "uniform" else rng.exponential(size=rows) ** 3)
    if kind == "wide":
        table = AliasTable(table.keep, table.alias.astype(np.int64))
    positions = rng.integers(0, 1 << 48, count)
    found = []
    for mode in (nullcontext, native.switched_off):
        with mode():
            found.append(table.draw(positions, seed=seed, pass_number=number))
    assert found[0].dtype == found[1].dtype
    assert found[0].tobytes() == found[1].tobytes()


@pytest.mark.parametrize(
    ("positions", "seed", "number"),
    [
        ([1 << 48], 0, 0),
        ([-1], 0, 0),
        ([0], -1, 0),
        ([0], 1 << 64, 0),
        ([0], 0, 1 << 32),
        ([0], 0, -1),
        ([0], True, 0),
        ([0], 0.5, 0),
        ([-1], -1, 0),
    ],
)
def test_what_cannot_be_drawn_is_refused_alike(positions: Any, seed: Any, number: Any) -> None:
    table = alias_table(np.arange(1.0, 50))
    said = []
    for mode in (nullcontext, native.switched_off):
        with mode(), pytest.raises(mldb.MldbError) as error:
            table.draw(np.array(positions), seed=seed, pass_number=number)
        said.append((type(error.value), str(error.value)))
    assert said[0] == said[1]


def permute(**changes: Any) -> Any:
    plain = {
        "given": np.arange(100),
        "out": np.empty(100, np.int64),
        "keys": tuple(range(8)),
        "bases": (200, 150),
        "n": 29_999,
        "forward": True,
    }
    return native.twin.permute(*(plain | changes).values())


def draw(**changes: Any) -> Any:
    plain = {
        "positions": np.arange(100),
        "out": np.empty(100, np.int64),
        "seed": 1,
        "pass_number": 2,
        "block": 3,
        "keep": np.full(10, 0.5),
        "alias": np.zeros(10, np.int32),
    }
    return native.twin.draw_rows(*(plain | changes).values())


def test_what_is_not_plain_is_given_back() -> None:
    assert permute() is True
    bad: tuple[dict[str, Any], ...] = (
        {"given": np.arange(29_900, 30_000)},
        {"given": np.arange(-1, 99)},
        {"given": np.arange(99)},
        {"given": np.arange(100, dtype=np.int32)},
        {"given": np.arange(200)[::2]},
        {"out": np.empty(100, np.float64)},
        {"out": np.broadcast_to(np.int64(1), (100,))},
        {"keys": tuple(range(7))},
        {"bases": (200,)},
        {"n": 30_001},
        {"n": 0},
    )
    for changes in bad:
        assert permute(**changes) is None, changes
    assert draw() is True
    bad = (
        {"positions": np.arange(99)},
        {"positions": np.arange(100.0)},
        {"out": bytes(800)},
        {"keep": np.full(10, 0.5, np.float32)},
        {"keep": np.broadcast_to(0.5, (10,))},
        {"keep": np.full(9, 0.5)},
        {"keep": np.empty(0), "alias": np.empty(0, np.int32)},
        {"alias": np.zeros(10, np.int16)},
        {"alias": [0] * 10},
    )
    for changes in bad:
        assert draw(**changes) is None, changes
