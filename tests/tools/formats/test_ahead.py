"""A tensor read ahead is stored as it would be without, errors come in turn, and one at a time."""

from __future__ import annotations

import threading
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import mldb
from mldb.errors import CorruptError
from mldb.tools.formats import ahead
from mldb.tools.formats.ahead import tensors_ahead
from mldb.tools.formats.import_file import import_file
from mldb.tools.formats.safetensors import read_safetensors
from mldb.tools.formats.tensors import IncomingTensor

safetensors_numpy = pytest.importorskip("safetensors.numpy")

_LARGE = ahead.AHEAD_FROM // 4


def _tensor(name: str, array: np.ndarray[Any, Any], calls: list[str]) -> IncomingTensor:
    def read() -> np.ndarray[Any, Any]:
        calls.append(name)
        return array

    return IncomingTensor(name, "<f4", array.shape, array.nbytes, read)


def _state() -> dict[str, np.ndarray[Any, Any]]:
    draw = np.random.default_rng(3)
    sizes = (_LARGE, 7, _LARGE + 5, 300_000, _LARGE * 2, 20_000, 5 * _LARGE)
    state = {f"layer{at}": draw.random(size, np.float32) for at, size in enumerate(sizes)}
    return state | {"twin": state["layer2"].copy(), "again": state["layer0"].copy()}


@pytest.mark.parametrize("deduplicate", [True, False])
def test_what_is_imported_is_what_was_in_the_file(tmp_path: Path, deduplicate: bool) -> None:
    state = _state()
    safetensors_numpy.save_file(state, tmp_path / "a.safetensors")
    with mldb.open(tmp_path / "s", spill_bytes=256 << 10, deduplicate=deduplicate) as db:
        import_file(db, tmp_path / "a.safetensors", epoch=1)
        import_file(db, tmp_path / "a.safetensors", epoch=2)
        for name, array in state.items():
            for epoch in (1, 2):
                assert np.array_equal(db.query_tensor(name, as_of=epoch), array)
        assert db.verify().ok
        assert (db.stats()["deduplication"]["bytes_saved"] > 0) == deduplicate


def test_one_tensor_is_read_ahead_and_no_more(tmp_path: Path) -> None:
    calls: list[str] = []
    tensors = [(name, _tensor(name, array, calls)) for name, array in _state().items()]
    with (
        mldb.open(tmp_path / "s") as db,
        db.transaction() as txn,
        closing(tensors_ahead(txn, tensors)) as ready,
    ):
        for number, (prepared, looked) in enumerate(ready, 1):
            txn._store_prepared([tensors[number - 1][0]], prepared, looked)
            assert number <= len(calls) <= number + 1 or number == len(tensors)
    assert calls == [name for name, _ in tensors]


def test_what_is_too_large_is_read_in_its_turn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ahead, "AHEAD_MAX", ahead.AHEAD_FROM - 1)
    threads: set[int] = set()

    def read() -> np.ndarray[Any, Any]:
        threads.add(threading.get_ident())
        return np.zeros(_LARGE, np.float32)

    tensors = [(name, IncomingTensor(name, "<f4", (_LARGE,), 4 * _LARGE, read)) for name in "abc"]
    with mldb.open(tmp_path / "s") as db, db.transaction() as txn:
        assert len(list(tensors_ahead(txn, tensors))) == 3
    assert threads == {threading.get_ident()}


def test_an_error_comes_in_its_turn_and_nothing_is_stored(tmp_path: Path) -> None:
    calls: list[str] = []

    def fails() -> None:
        raise CorruptError("this one is damaged", file="it")

    state = {"a": np.ones(_LARGE, np.float32), "b": np.ones(_LARGE, np.float32)}
    tensors = [(name, _tensor(name, array, calls)) for name, array in state.items()]
    tensors.append(("c", IncomingTensor("c", "<f4", (_LARGE,), 4 * _LARGE, fails)))
    stored: list[str] = []

    def store(db: mldb.MLDatabase) -> None:
        with db.transaction() as txn, closing(tensors_ahead(txn, tensors)) as ready:
            for prepared, looked in ready:
                stored.append(tensors[len(stored)][0])
                txn._store_prepared([stored[-1]], prepared, looked)

    with mldb.open(tmp_path / "s") as db:
        with pytest.raises(CorruptError, match="this one"):
            store(db)
        assert stored == ["a", "b"]
        assert list(db) == []


def test_who_stops_early_waits_for_what_is_under_way(tmp_path: Path) -> None:
    began, goes_on, ended = threading.Event(), threading.Event(), threading.Event()

    def slow() -> np.ndarray[Any, Any]:
        began.set()
        assert goes_on.wait(60)
        ended.set()
        return np.zeros(_LARGE, np.float32)

    first = _tensor("a", np.zeros(_LARGE, np.float32), [])
    tensors = [("a", first), ("b", IncomingTensor("b", "<f4", (_LARGE,), 4 * _LARGE, slow))]
    with mldb.open(tmp_path / "s") as db, db.transaction() as txn:
        ready = tensors_ahead(txn, tensors)
        next(ready)
        assert began.wait(60)
        threading.Timer(0.05, goes_on.set).start()
        ready.close()
        assert ended.is_set()


def test_an_import_of_a_damaged_file_leaves_no_pending_file(tmp_path: Path) -> None:
    safetensors_numpy.save_file(_state(), tmp_path / "a.safetensors")
    assert read_safetensors(str(tmp_path / "a.safetensors")).tensors
    seen: list[int] = []

    def stop(done: int, total: int) -> None:
        seen.append(done)
        if len(seen) == 4:
            raise KeyboardInterrupt

    store = tmp_path / "s"
    with mldb.open(store, spill_bytes=256 << 10) as db:
        with pytest.raises(KeyboardInterrupt):
            import_file(db, tmp_path / "a.safetensors", progress=stop)
        assert list(db) == []
        assert not [path for path in (store / "pending").iterdir() if path.suffix == ".seg"]
