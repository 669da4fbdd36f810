"""The writing verbs: what each changes, and how often ``transact`` tries."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import mldb
from mldb.log.fs.memory import MemoryFileSystem


@pytest.fixture
def db() -> mldb.MLDatabase:
    return mldb.MLDatabase.on(MemoryFileSystem(), durability="os")


@given(
    st.lists(
        st.tuples(
            st.sampled_from("abc"),
            st.sampled_from(["store", "item", "delete", "metadata", "layer"]),
            st.none() | st.dictionaries(st.sampled_from("kl"), st.integers(0, 9), max_size=2),
        ),
        max_size=15,
    )
)
def test_each_verb_is_one_commit_that_changes_what_it_names(
    steps: list[tuple[str, str, dict[str, int] | None]],
) -> None:
    db = mldb.MLDatabase.on(MemoryFileSystem(), durability="os")
    model: dict[str, tuple[int, dict[str, Any]]] = {}
    positions: dict[str, int] = {}
    for number, (name, verb, metadata) in enumerate(steps):
        before = len({event.lsn for event in db.events()})
        refused = False
        if verb == "store":
            db.store_tensor(name, number, metadata)
            kept = model.get(name, (0, {}))[1]
            model[name] = number, kept if metadata is None else dict(metadata)
        elif verb == "item":
            db[name] = number
            model[name] = number, model.get(name, (0, {}))[1]
        elif verb == "layer":
            db.store_model_layer(name, number, -number)
            position = positions.setdefault(name, len(positions))
            common = {"layer": name, "position": position}
            model[f"{name}_weights"] = number, {"type": "weights", **common}
            model[f"{name}_biases"] = -number, {"type": "biases", **common}
        else:
            refused = name not in model
            call = db.delete_tensor if verb == "delete" else lambda x: db.set_metadata(x, {"n": 1})
            if refused:
                with pytest.raises(mldb.TensorNotFoundError):
                    call(name)
            else:
                call(name)
                if verb == "delete":
                    del model[name]
                else:
                    model[name] = model[name][0], {"n": 1}
        assert {name: (int(db[name]), db.metadata(name)) for name in db} == model
        for absent in {*"abc"} - model.keys():
            assert db.get(absent) is None
        assert len({event.lsn for event in db.events()}) == before + (not refused)


@pytest.mark.parametrize("retries", [0, 1, 3])
@pytest.mark.parametrize("conflicts", [0, 1, 2, 4])
def test_transact_tries_once_more_than_its_retries(
    db: mldb.MLDatabase, retries: int, conflicts: int
) -> None:
    db["x"] = 0
    calls = 0

    def add(txn: mldb.Transaction) -> str:
        nonlocal calls
        calls += 1
        value = int(txn["x"])
        if calls <= conflicts:
            db["x"] = value + 100
        txn["x"] = value + 1
        return f"call {calls}"

    if conflicts > retries:
        with pytest.raises(mldb.ConflictError) as caught:
            db.transact(add, retries=retries)
        assert caught.value.names == ("x",)
        assert (calls, int(db["x"])) == (retries + 1, 100 * (retries + 1))
    else:
        assert db.transact(add, retries=retries) == f"call {conflicts + 1}"
        assert (calls, int(db["x"])) == (conflicts + 1, 100 * conflicts + 1)


def test_transact_does_not_try_again_after_another_error(db: mldb.MLDatabase) -> None:
    calls = []

    def fail(txn: mldb.Transaction) -> None:
        calls.append(txn)
        txn["x"] = 1
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        db.transact(fail)
    assert (len(calls), list(db)) == (1, [])


@pytest.mark.parametrize("retries, kind", [(-1, ValueError), (1.5, TypeError), (True, TypeError)])
def test_a_number_of_retries_that_is_none_is_refused_before_the_first_try(
    db: mldb.MLDatabase, retries: Any, kind: type[Exception]
) -> None:
    calls: list[object] = []
    with pytest.raises(kind, match="retries"):
        db.transact(calls.append, retries=retries)
    assert calls == []


def test_transact_labels_its_commit(db: mldb.MLDatabase) -> None:
    db.transact(lambda txn: txn.store_tensor("x", 1), epoch=5)
    assert (db.epoch, db.tensor("x").epoch) == (5, 5)
    with pytest.raises(mldb.EpochOrderError):
        db.transact(lambda txn: txn.store_tensor("x", 2), epoch=4)
    assert int(db["x"]) == 1


def test_a_stored_value_does_not_follow_its_array(db: mldb.MLDatabase) -> None:
    for size in (10, 100_000):
        array = np.zeros(size)
        db["x"] = array
        array[:] = 1
        assert not db["x"].any()
