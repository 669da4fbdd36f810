"""Decisions under the commit lock: which epoch a commit may have, and whether reads still hold."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import mldb
from mldb import keys
from mldb.log import format as fmt
from mldb.log.fs.memory import MemoryFileSystem
from mldb.log.view import View
from mldb.write.rules import EpochRule, ReadCheck, ReadSet, check_epoch, version_of

EPOCHS = st.none() | st.integers(0, 6)


@given(st.lists(st.tuples(st.booleans(), EPOCHS), max_size=20))
def test_epochs_never_decrease_and_the_remedy_depends_on_who_advanced_them(
    steps: list[tuple[bool, int | None]],
) -> None:
    fs = MemoryFileSystem()
    handles = [mldb.MLDatabase.on(fs, durability="os") for _ in range(2)]
    head, highest = 0, [-1, -1]
    for number, (which, epoch) in enumerate(steps):
        db = handles[which]
        if epoch is not None and epoch < head:
            with pytest.raises(mldb.EpochOrderError) as caught:
                db.store_tensor("x", number, epoch=epoch)
            message = str(caught.value)
            assert f"epoch {epoch} is lower than the head's epoch {head}" in message
            assert (f"db.rewind({epoch})" in message) == (highest[which] >= head)
            assert "epoch=None" in message
            assert db.epoch == head
            continue
        head = head if epoch is None else epoch
        highest[which] = head
        db.store_tensor("x", number, epoch=epoch)
        assert (db.epoch, int(db["x"])) == (head, number)
    assert [handle.epoch for handle in handles] == [head, head]


@pytest.mark.parametrize("epoch", [0, 1, fmt.EPOCH_MAX, np.int64(5), np.uint8(7)])
def test_an_epoch_is_any_integer_in_range(epoch: Any) -> None:
    found = check_epoch(epoch)
    assert (found, type(found)) == (int(epoch), int)


@pytest.mark.parametrize("epoch", [True, np.bool_(True), 1.0, "1", b"1", [1], np.float32(1)])
def test_what_is_no_integer_is_no_epoch(epoch: Any) -> None:
    with pytest.raises(mldb.InvalidTypeError, match="epoch"):
        check_epoch(epoch)


@pytest.mark.parametrize("epoch", [-1, fmt.EPOCH_MAX + 1, 1 << 80])
def test_an_epoch_out_of_range_is_a_limit(epoch: int) -> None:
    with pytest.raises(mldb.LimitError, match=str(epoch)):
        check_epoch(epoch)


def view_of(db: mldb.MLDatabase) -> View:
    return db._log.head()


def test_what_was_read_holds_until_that_very_thing_changes() -> None:
    with mldb.MLDatabase.on(MemoryFileSystem()) as db:
        db["a"] = db["b"] = 1
        db.create_relationship("a", "b", "c")
        begin = view_of(db)
        key = keys.TENSORS + b"a"
        tensors, edges = keys.TENSORS, keys.RELATIONS
        assert version_of(begin, key, begin.intervals) == db.tensor("a").lsn
        assert version_of(begin, keys.TENSORS + b"absent", begin.intervals) == 0
        reads = {
            "key": ReadSet({key: version_of(begin, key, begin.intervals)}),
            "absent": ReadSet({keys.TENSORS + b"new": 0}),
            "names": ReadSet({}, {tensors}),
            "edges": ReadSet({}, {edges}),
            "nothing": ReadSet(),
        }
        assert [bool(read) for read in reads.values()] == [True, True, True, True, False]

        def conflicts() -> set[str]:
            found = set()
            for name, read in reads.items():
                try:
                    ReadCheck(begin.commit, read)(view_of(db))
                except mldb.ConflictError as error:
                    assert error.names
                    assert "Nothing was stored" in str(error)
                    found.add(name)
            return found

        assert conflicts() == set()
        db["b"] = 2  # a listing of tensors is of names alone
        assert conflicts() == set()
        db["a"] = 2
        assert conflicts() == {"key"}
        db.create_relationship("a", "b", "c", {"changed": True})  # of relationships, of all
        assert conflicts() == {"key", "edges"}
        db["new"] = 1
        assert conflicts() == {"key", "edges", "absent", "names"}
        del db["new"]
        assert conflicts() == {"key", "edges"}
        now = view_of(db)
        assert version_of(now, keys.TENSORS + b"new", now.intervals) == 0
        db.rewind(mldb.Lsn(begin.commit.lsn))
        assert conflicts() == set()
        db.rewind(mldb.Lsn(0))  # what the reader began on is no longer in the lineage
        with pytest.raises(mldb.ConflictError, match="rewound"):
            ReadCheck(begin.commit, reads["absent"])(view_of(db))
        ReadCheck(begin.commit, reads["nothing"])(view_of(db))


def test_an_epoch_rule_starts_without_a_claim() -> None:
    with mldb.MLDatabase.on(MemoryFileSystem()) as db:
        db.store_tensor("x", 1, epoch=4)
        rule = EpochRule()
        assert rule.join(view_of(db))[0] == rule.choice(None)(view_of(db))[0] == 4
        assert rule.choice(9)(view_of(db))[0] == rule.highest == 9
        with pytest.raises(mldb.EpochOrderError, match=r"db\.rewind\(3\)"):
            rule.choice(3)(view_of(db))
        with pytest.raises(mldb.EpochOrderError, match="Another process"):
            EpochRule().choice(3)(view_of(db))
