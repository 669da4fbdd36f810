"""Transactions and checkpoints that stream, through the database: as if they had been held."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import mldb
from mldb.log.aside import BESIDE_BYTES
from mldb.log.fs.memory import MemoryFileSystem
from tests.support.faults import FaultFileSystem

BORDER = 200_000
Bytes = NDArray[np.uint8]


def value(number: int, size: int = 90_000) -> Bytes:
    """Bytes of their own: two numbers have none in common that are compared."""
    return np.random.default_rng(number).integers(0, 256, size, dtype=np.uint8)


def on(fs: Any, **options: Any) -> mldb.MLDatabase:
    return mldb.MLDatabase.on(fs, **{"spill_bytes": BORDER, "lock_timeout": 0.05, **options})


def store_five(txn: mldb.Transaction) -> None:
    for number in range(5):
        txn[f"t{number}"] = value(number)


def segments(fs: MemoryFileSystem) -> int:
    return len(fs.list("segments"))


def check(db: mldb.MLDatabase, fs: MemoryFileSystem, expected: dict[str, Bytes]) -> None:
    """This handle and a later one have these tensors; nothing is damaged, nothing left behind."""
    assert fs.list("pending") == []
    with on(fs, mode="r") as reader:
        for each in (db, reader):
            assert sorted(each) == sorted(expected)
            for name, array in expected.items():
                np.testing.assert_array_equal(each[name], array)
        assert reader.verify().problems == ()


def test_below_the_border_a_transaction_is_appended_and_above_it_is_a_segment() -> None:
    fs = MemoryFileSystem()
    with on(fs) as db:
        before = segments(fs)
        with db.transaction() as txn:
            txn["a"], txn["b"] = value(1), value(2)
            assert fs.list("pending") == []
        assert segments(fs) == before
        with db.transaction() as txn:
            txn["c"], txn["d"], txn["e"] = value(3), value(4), value(5)
            assert len(fs.list("pending")) == 1
        assert segments(fs) == before + 1
        check(db, fs, {name: value(at) for at, name in enumerate("abcde", 1)})


def test_who_waits_for_no_disk_waits_for_none_below_a_segment() -> None:
    """A pending segment is synced when it is published."""
    fs = FaultFileSystem(MemoryFileSystem())
    with on(fs, durability="os", segment_bytes=8 * BORDER) as db:
        db["first"] = 1
        syncs = fs.calls["sync"]
        with db.transaction() as txn:
            for number in range(10):
                txn[f"t{number}"] = value(number)
        assert fs.calls["sync"] == syncs
        with db.transaction() as txn:
            for number in range(20):
                txn[f"u{number}"] = value(number + 100)
            assert len(fs.list("pending")) == 1
        assert fs.calls["sync"] > syncs


def test_what_is_streamed_is_fixed_read_back_overwritten_and_deleted() -> None:
    fs = MemoryFileSystem()
    with on(fs) as db:
        given = value(0)
        with db.transaction() as txn:
            for number in range(6):
                given[:] = value(number)
                txn.store_tensor(f"t{number}", given, {"number": number})
            given[:] = 0
            for number in range(6):
                np.testing.assert_array_equal(txn[f"t{number}"], value(number))
            txn["t1"] = value(11)
            txn["t2"] = np.arange(3, dtype=np.uint8)
            txn.delete_tensor("t3")
            txn["t4"] = value(14, 300_000)
            np.testing.assert_array_equal(txn["t1"], value(11))
            assert sorted(txn) == ["t0", "t1", "t2", "t4", "t5"]
        expected = {"t0": value(0), "t1": value(11), "t4": value(14, 300_000), "t5": value(5)}
        check(db, fs, expected | {"t2": np.arange(3, dtype=np.uint8)})
        assert db.metadata("t5") == {"number": 5}


@pytest.mark.parametrize("ends", [ValueError, KeyboardInterrupt])
def test_a_rollback_leaves_nothing_behind(ends: type[BaseException]) -> None:
    fs = MemoryFileSystem()
    with on(fs) as db:
        db["kept"] = value(0)
        before = segments(fs)
        try:
            with db.transaction() as txn:
                for number in range(5):
                    txn[f"t{number}"] = value(number)
                assert len(fs.list("pending")) == 1
                raise ends
        except ends:
            pass
        assert segments(fs) == before
        check(db, fs, {"kept": value(0)})


def test_a_full_disk_in_the_middle_rolls_back_and_the_next_one_goes_through() -> None:
    for at in range(1, 6):
        inner = MemoryFileSystem()
        fs = FaultFileSystem(inner)
        with on(fs) as db:
            db["kept"] = value(0)
            fs.fail("pwritev", at=at, code=errno.ENOSPC, effect="half")
            with pytest.raises(mldb.StorageFullError):
                db.transact(store_five)
            check(db, inner, {"kept": value(0)})
            db.transact(store_five)
            check(db, inner, {"kept": value(0)} | {f"t{n}": value(n) for n in range(5)})


def test_a_call_that_failed_may_be_made_again_in_the_same_transaction() -> None:
    inner = MemoryFileSystem()
    fs = FaultFileSystem(inner)
    with on(fs) as db:
        with db.transaction() as txn:
            for number in range(6):
                if number in (2, 4):  # the first one beyond the border, and a later one
                    fs.fail("pwritev", code=errno.ENOSPC, effect="half")
                    with pytest.raises(mldb.StorageFullError):
                        txn[f"t{number}"] = value(number)
                txn[f"t{number}"] = value(number)
        check(db, inner, {f"t{n}": value(n) for n in range(6)})


def test_what_a_failed_call_left_is_no_torn_end_of_the_log() -> None:
    """The file was longer than its commit, so that the next writer closed it as torn."""
    inner = MemoryFileSystem()
    fs = FaultFileSystem(inner)
    with on(fs) as db:
        with db.transaction() as txn:
            for number in range(4):
                txn[f"t{number}"] = value(number)
            fs.fail("pwritev", code=errno.ENOSPC, effect="half")
            with pytest.raises(mldb.StorageFullError):
                txn["t4"] = value(4, 500_000)
        before = segments(inner)
        with on(inner) as other:
            other["more"] = value(5)
            assert other.recovery.dropped_transactions == 0
        assert segments(inner) == before
        check(db, inner, {f"t{n}": value(n) for n in range(4)} | {"more": value(5)})


# --- bytes that are there already -----------------------------------------------------------------


@pytest.mark.parametrize("size", [90_000, BESIDE_BYTES])
def test_streamed_tensors_are_found_in_the_store_and_among_themselves(size: int) -> None:
    """Whether all of their checksums are made before they are written, or some meanwhile."""
    fs = MemoryFileSystem()
    with on(fs) as db:
        for number in range(3):
            db[f"old{number}"] = value(number, size)
        stored = db.stats()["bytes"]
        with db.transaction() as txn:
            for number in range(4):
                txn[f"new{number}"] = value(number + 10, size)
            for number in range(3):
                txn[f"copy{number}"] = value(number, size)
                txn[f"twin{number}"] = value(number + 10, size)
                txn[f"last{number}"] = value(number + 20, size)
            txn["old0"] = value(0, size)
        found = db.stats()["deduplication"]
        assert (found["by_digest"], found["in_batch"], found["same_name"]) == (3, 3, 1)
        assert db.stats()["bytes"] - stored < 7 * size + 50_000
        expected = {f"old{n}": value(n, size) for n in range(3)}
        expected |= {f"new{n}": value(n + 10, size) for n in range(4)}
        expected |= {f"copy{n}": value(n, size) for n in range(3)}
        expected |= {f"twin{n}": value(n + 10, size) for n in range(3)}
        expected |= {f"last{n}": value(n + 20, size) for n in range(3)}
        check(db, fs, expected)


def test_a_checkpoint_streams_what_is_new_and_refers_to_the_rest() -> None:
    fs = MemoryFileSystem()
    with on(fs) as db:
        state = {f"layer{number}": value(number) for number in range(12)}
        db.checkpoint(state, epoch=0)
        before = segments(fs)
        frozen = {name: state[name] for name in list(state)[:6]}
        db.checkpoint(state | {"layer11": value(50)}, epoch=1)
        assert segments(fs) == before  # what is new is little, whatever the state weighs
        new = frozen | {name: value(100 + at) for at, name in enumerate(list(state)[6:])}
        twins = {f"twin{number}": new["layer9"] for number in range(3)}
        db.checkpoint(new | twins, epoch=2)
        assert segments(fs) == before + 1
        check(db, fs, new | twins)
        for name, array in state.items():
            np.testing.assert_array_equal(db.query_tensor(name, as_of=0), array)


# --- others at the same time ----------------------------------------------------------------------


def test_others_commit_and_rewind_while_a_transaction_streams() -> None:
    fs = MemoryFileSystem()
    with on(fs) as db, on(fs) as other:
        first = db.store_tensor("old", value(0))
        with db.transaction() as txn:
            txn["a"], txn["b"], txn["c"] = value(1), value(2), value(3)
            other["theirs"] = value(4)
            other.rewind(first)
            other["later"] = value(5)
            txn["d"] = value(6)
        expected = {"old": value(0), "later": value(5)}
        expected |= {"a": value(1), "b": value(2), "c": value(3), "d": value(6)}
        check(other, fs, expected)
        check(db, fs, expected)


def test_a_forked_child_takes_nothing_from_a_transaction_that_streams(store_path: Path) -> None:
    with mldb.open(store_path, spill_bytes=BORDER) as db:
        with db.transaction() as txn:
            txn["a"], txn["b"], txn["c"] = value(1), value(2), value(3)
            child = os.fork()
            if not child:
                code = 1
                try:
                    txn["d"] = value(4)
                except mldb.ClosedError:
                    txn._staging.discard()  # what the end of the block does
                    code = 0
                finally:
                    os._exit(code)
            assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
            assert len(list((store_path / "pending").iterdir())) == 1
        assert sorted(db) == ["a", "b", "c"]
        assert db.verify().problems == ()
    assert list((store_path / "pending").iterdir()) == []


def test_a_handle_that_is_forgotten_in_a_transaction_leaves_nothing(store_path: Path) -> None:
    db = mldb.open(store_path, spill_bytes=BORDER)
    txn = db.transaction().__enter__()
    txn["a"], txn["b"], txn["c"] = value(1), value(2), value(3)
    assert len(list((store_path / "pending").iterdir())) == 1
    del txn
    assert list((store_path / "pending").iterdir()) == []
    db.close()
