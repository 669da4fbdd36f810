"""The short way to commit one small tensor: it writes the same bytes as the usual way."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import mldb
from mldb.log.fs.memory import MemoryFileSystem
from mldb.log.segment import segment_name
from mldb.log.single import BYTES_MAX, SingleLane

SHAPES = st.sampled_from([(1,), (3, 5), (1024,), (7, 9, 11), (20_000,), (), (0, 4)])
DTYPES = st.sampled_from(["<f4", ">f8", "u1", "<c8", "?", "<i2"])
STORES = st.lists(
    st.tuples(st.sampled_from(["a", "b", "layer.0/weight"]), SHAPES, DTYPES, st.booleans()),
    min_size=1,
    max_size=12,
)


def segment_bytes(fs: MemoryFileSystem, number: int = 1) -> bytes:
    file = fs.open(segment_name(number), "r")
    return file.pread(file.size(), 0)


def write(
    history: list[tuple[str, Any, bool]], *, short: bool
) -> tuple[MemoryFileSystem, list[int]]:
    fs = MemoryFileSystem()
    db = mldb.MLDatabase.on(fs, durability="os")
    if not short:
        db._single = None
    lsns: list[int] = []
    epoch = 0
    for name, value, advance in history:
        epoch += advance
        lsns.append(db.store_tensor(name, value, epoch=epoch if advance else None))
    return fs, lsns


@given(STORES, st.integers(0, 2**32 - 1))
def test_both_ways_write_the_same_bytes(
    stores: list[tuple[str, tuple[int, ...], str, bool]], seed: int
) -> None:
    rng = np.random.default_rng(seed)
    history = [
        (name, rng.integers(0, 2, shape).astype(dtype), advance)
        for name, shape, dtype, advance in stores
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("os.urandom", lambda count: bytes(range(count)))  # one store id for both
        short, lsns = write(history, short=True)
        usual, others = write(history, short=False)
    assert lsns == others
    assert segment_bytes(short) == segment_bytes(usual)


def counted(monkeypatch: pytest.MonkeyPatch) -> list[int | None]:
    """What the short way returned, call by call."""
    results: list[int | None] = []
    real = SingleLane.commit

    def commit(self: SingleLane, *args: Any) -> int | None:
        results.append(real(self, *args))
        return results[-1]

    monkeypatch.setattr(SingleLane, "commit", commit)
    return results


def test_it_is_taken_for_small_dense_tensors_and_reads_back(
    monkeypatch: pytest.MonkeyPatch, rng: np.random.Generator
) -> None:
    results = counted(monkeypatch)
    fs = MemoryFileSystem()
    values = {f"t{size}": rng.random(size) for size in (1, 100, 8000, BYTES_MAX // 8)}
    with mldb.MLDatabase.on(fs) as db:
        lsns = {name: db.store_tensor(name, value) for name, value in values.items()}
    assert results == list(lsns.values())
    with mldb.MLDatabase.on(fs) as db:
        assert db.verify().ok
        for name, value in values.items():
            np.testing.assert_array_equal(db[name], value)
            assert db.history(name)[0].lsn == lsns[name]


@pytest.mark.parametrize(
    "value", [np.zeros((0, 3)), np.zeros(BYTES_MAX + 1, "u1"), "sparse"], ids=str
)
def test_it_leaves_empty_large_and_sparse_tensors_to_the_usual_way(
    monkeypatch: pytest.MonkeyPatch, value: Any
) -> None:
    if isinstance(value, str):
        sparse = pytest.importorskip("scipy.sparse")
        value = sparse.csr_array(np.eye(4))
    results = counted(monkeypatch)
    db = mldb.MLDatabase.on(MemoryFileSystem())
    lsn = db.store_tensor("x", value)
    assert set(results) <= {None}
    assert db.history("x")[-1].lsn == lsn


def test_a_full_segment_is_sealed_by_the_usual_way(monkeypatch: pytest.MonkeyPatch) -> None:
    results = counted(monkeypatch)
    fs = MemoryFileSystem()
    with mldb.MLDatabase.on(fs, segment_entries=5) as db:
        for number in range(12):
            db.store_tensor("x", np.full(4, number), epoch=number)
        assert results.count(None) == 2
        assert db.stats()["segments"] == 3
        assert [int(db.query_tensor("x", as_of=number)[0]) for number in range(12)] == list(
            range(12)
        )
    with mldb.MLDatabase.on(fs, segment_bytes=2000) as db:
        db.store_tensor("y", np.zeros(200))
        db.store_tensor("y", np.ones(200))
        assert db.verify().ok


def test_it_catches_up_with_another_handle_first(monkeypatch: pytest.MonkeyPatch) -> None:
    results = counted(monkeypatch)
    fs = MemoryFileSystem()
    one, other = mldb.MLDatabase.on(fs), mldb.MLDatabase.on(fs)
    first = one.store_tensor("x", np.ones(3), epoch=4)
    second = other.store_tensor("x", np.zeros(3))
    assert results == [first, None]
    assert second > first
    assert other.epoch == 4
    assert [version.lsn for version in one.history("x")] == [first, second]


def test_after_a_rewind_it_goes_on_from_the_new_head(monkeypatch: pytest.MonkeyPatch) -> None:
    results = counted(monkeypatch)
    db = mldb.MLDatabase.on(MemoryFileSystem())
    for epoch in range(3):
        db.store_tensor("x", np.full(2, epoch), epoch=epoch)
    db.rewind(0)
    db.store_tensor("x", np.full(2, 9), epoch=1)
    assert None not in results
    assert [int(db.query_tensor("x", as_of=epoch)[0]) for epoch in (0, 1, 2)] == [0, 9, 9]


def test_a_lower_epoch_stores_nothing_and_the_handle_goes_on() -> None:
    db = mldb.MLDatabase.on(MemoryFileSystem())
    db.store_tensor("x", np.ones(2), epoch=5)
    with pytest.raises(mldb.EpochOrderError, match="rewind"):
        db.store_tensor("x", np.zeros(2), epoch=4)
    assert db["x"][0] == 1
    assert db.store_tensor("x", np.zeros(2)) == db.lsn


def test_the_array_may_change_after_the_call() -> None:
    db = mldb.MLDatabase.on(MemoryFileSystem())
    value = np.ones(100)
    db.store_tensor("x", value)
    value[:] = 0
    assert db["x"].sum() == 100
