"""Transactions: all or nothing, read-your-writes, the conflict rule, values fixed at the call."""

from __future__ import annotations

import resource
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import mldb
from mldb.log.fs.memory import MemoryFileSystem

ROOT = Path(__file__).resolve().parents[2]
SPILL = 1 << 16


@pytest.fixture
def db(store_path: Path) -> Iterator[mldb.MLDatabase]:
    with mldb.open(store_path, durability="os", spill_bytes=SPILL) as database:
        yield database


class Failure(Exception):
    """What the body of a transaction raises here."""


def contents(db: mldb.MLDatabase, as_of: Any = None) -> dict[str, Any]:
    return {name: db.query_tensor(name, as_of=as_of).tolist() for name in db.names(as_of=as_of)}


# --- all or nothing -------------------------------------------------------------------------------


def test_everything_becomes_visible_at_once(db: mldb.MLDatabase) -> None:
    db["old"] = 0
    before = db.lsn
    with db.transaction(epoch=3) as txn:
        assert not txn.lsn
        txn.store_tensor("a", [1], {"k": 1})
        txn["b"] = [2]
        txn.create_relationship("a", "b", "feeds_into")
        txn.set_metadata("old", {"seen": True})
        del txn["old"]
        txn.store_model_layer("conv", np.ones((2, 2)), np.zeros(2))
        assert db.lsn == before
        assert "a" not in db
        assert db.relationships() == []
    assert txn.lsn == db.lsn > before
    assert db.epoch == 3
    assert list(db) == ["a", "b", "conv_biases", "conv_weights"]
    assert db.metadata("a") == {"k": 1}
    assert len(db.relationships()) == 2
    assert {db.tensor(name).lsn for name in db} == {txn.lsn}
    assert contents(db, before) == {"old": 0}


@pytest.mark.parametrize("size", [10, SPILL // 8 - 1, SPILL])
def test_an_exception_rolls_back_and_is_raised_again(db: mldb.MLDatabase, size: int) -> None:
    db.store_tensor("a", [1], {"k": 1})
    before, at = contents(db), db.lsn
    with pytest.raises(Failure, match="by hand"), db.transaction() as txn:  # noqa: PT012
        txn.store_tensor("a", np.zeros(size), {})
        txn["b"] = np.zeros(size)
        txn.create_relationship("a", "b", "c")
        raise Failure("by hand")
    assert txn.lsn is None
    assert (contents(db), db.lsn, db.metadata("a"), db.relationships()) == (
        before,
        at,
        {"k": 1},
        [],
    )
    assert list((Path(db.path) / "pending").iterdir()) == []
    with pytest.raises(KeyboardInterrupt), db.transaction() as txn:  # noqa: PT012
        txn["b"] = 1
        raise KeyboardInterrupt
    assert contents(db) == before
    assert db.verify().ok


def test_a_refused_value_rolls_the_rest_back(db: mldb.MLDatabase) -> None:
    with pytest.raises(mldb.InvalidTypeError), db.transaction() as txn:  # noqa: PT012
        txn["a"] = 1
        txn["b"] = object()
    assert len(db) == 0
    with db.transaction() as txn:
        txn["a"] = 1
        with pytest.raises(mldb.InvalidNameError):
            txn["../b"] = 2
        with pytest.raises(mldb.InvalidTypeError):
            txn.store_tensor("a", 5, {"k": object()})
    assert contents(db) == {"a": 1}  # a call that failed left no part of itself


def test_an_empty_transaction_commits_nothing(db: mldb.MLDatabase) -> None:
    db["a"] = 1
    with db.transaction() as txn:
        assert int(txn["a"]) == 1
    assert txn.lsn == db.lsn == db.history("a")[-1].lsn


def test_a_transaction_is_used_once_and_inside_its_block(db: mldb.MLDatabase) -> None:
    txn = db.transaction()
    with pytest.raises(mldb.ClosedError, match="with"):
        txn["a"] = 1
    with txn:
        txn["a"] = 1
    for use in (lambda: txn["a"], lambda: txn.store_tensor("b", 1), lambda: "a" in txn):
        with pytest.raises(mldb.ClosedError):
            use()
    with pytest.raises(mldb.ClosedError, match="once"), txn:
        pass
    assert contents(db) == {"a": 1}


# --- read your writes -----------------------------------------------------------------------------

STEPS = st.lists(
    st.tuples(st.sampled_from(("set", "del", "metadata", "pop")), st.sampled_from("abcd")),
    max_size=12,
)


@given(before=STEPS, during=STEPS, large=st.booleans(), fail=st.booleans())
def test_reads_see_the_base_and_the_own_writes(
    before: list[tuple[str, str]], during: list[tuple[str, str]], large: bool, fail: bool
) -> None:
    """The transaction answers as a dict that is changed step by step; the base stays as it is."""
    number = 0

    def play(
        target: Any, model: dict[str, tuple[int, dict[str, int]]], verb: str, name: str
    ) -> None:
        nonlocal number
        number += 1
        if verb == "set":
            size = 9000 if large and number % 2 else 1  # 9000 float64 are beyond the spill size
            target.store_tensor(name, np.full(size, number), {"n": number} if number % 3 else None)
            kept = model.get(name, (0, {}))[1]
            model[name] = (number, {"n": number} if number % 3 else kept)
        elif name not in model:
            with pytest.raises(KeyError):
                target.set_metadata(name, {"n": 0}) if verb == "metadata" else target.pop(name)
        elif verb == "metadata":
            target.set_metadata(name, {"n": number})
            model[name] = (model[name][0], {"n": number})
        elif verb == "pop":
            assert int(target.pop(name)[0]) == model.pop(name)[0]
        else:
            del target[name]
            del model[name]

    def check(target: Any, model: dict[str, tuple[int, dict[str, int]]]) -> None:
        assert list(target) == sorted(model)
        assert len(target) == len(model)
        for name, (value, metadata) in model.items():
            assert name in target
            assert set(target[name].tolist()) == {value}
            assert target.metadata(name) == metadata
            assert not target[name].flags.writeable
        for name in set("abcd") - set(model):
            assert name not in target
            assert target.get(name) is None

    base: dict[str, tuple[int, dict[str, int]]] = {}
    with mldb.MLDatabase.on(MemoryFileSystem(), durability="os", spill_bytes=SPILL) as db:
        for verb, name in before:
            play(db, base, verb, name)
        own = dict(base)
        try:
            with db.transaction() as txn:
                for verb, name in during:
                    play(txn, own, verb, name)
                    check(txn, own)
                check(db, base)
                if fail:
                    raise Failure
        except Failure:
            own = base
        check(db, own)
        assert db.verify().ok


def test_relationships_are_read_back(db: mldb.MLDatabase) -> None:
    db.create_relationship("a", "b", "k", {"n": 1})
    with db.transaction() as txn:
        assert [r.metadata for r in txn.relationships(source="a")] == [{"n": 1}]
        txn.create_relationship("a", "b", "k", {"n": 2})
        txn.create_relationship("b", "c", "k")
        assert [(r.target, r.metadata) for r in txn.relationships(kind="k")] == [
            ("b", {"n": 2}),
            ("c", {}),
        ]
        txn.delete_relationship("a", "b", "k")
        assert [r.source for r in txn.relationships()] == ["b"]
        assert [r.source for r in txn.relationships(target="b")] == []
        with pytest.raises(mldb.MissingError):
            txn.delete_relationship("a", "b", "k")
    assert [r.source for r in db.relationships()] == ["b"]


def test_deleting_and_storing_again_starts_without_metadata(db: mldb.MLDatabase) -> None:
    db.store_tensor("a", 1, {"k": 1})
    with db.transaction() as txn:
        del txn["a"]
        with pytest.raises(mldb.TensorNotFoundError, match="in this transaction"):
            txn["a"]
        txn["a"] = 2
        assert txn.metadata("a") == {}
    assert (contents(db), db.metadata("a")) == ({"a": 2}, {})
    assert {type(e).__name__ for e in db.events(txn.lsn)} == {"TensorStored", "MetadataSet"}


# --- the value is fixed at the call ---------------------------------------------------------------


@pytest.mark.parametrize("size", [4, 20_000, SPILL])
@pytest.mark.parametrize("kind", ["numpy", "torch", "strided", "sparse", "bytearray"])
def test_later_changes_of_the_array_are_not_seen(db: mldb.MLDatabase, kind: str, size: int) -> None:
    import scipy.sparse as sp
    import torch

    value: Any
    match kind:
        case "numpy":
            value = np.ones(size)
        case "torch":
            value = torch.ones(size)
        case "strided":
            value = np.ones(2 * size)[::2]
        case "sparse":
            value = sp.csr_array(np.ones((1, size)))
        case _:
            value = bytearray(b"\1" * size)
    with db.transaction() as txn:
        txn["x"] = value
        if kind == "sparse":
            value.data[:] = 7
        elif kind == "bytearray":
            value[:] = b"\7" * size
        else:
            value[:] = 7
        seen = txn["x"]
        assert seen.sum() == size
    assert db["x"].sum() == size


# --- conflicts ------------------------------------------------------------------------------------


def conflicting(db: mldb.MLDatabase, read: Any, write: Any) -> bool:
    """Whether a transaction that does *read* conflicts with a commit that does *write*."""
    before = db.lsn
    try:
        with db.transaction() as txn:
            read(txn)
            txn["mine"] = 1
            write(db)
            other = db.lsn
    except mldb.ConflictError as error:
        assert error.retryable
        assert "Nothing was stored" in str(error)
        assert db.lsn == other
        return True
    assert db.lsn > other > before
    return False


READS: dict[str, Any] = {
    "value of x": lambda txn: txn["x"],
    "x is there": lambda txn: "x" in txn,
    "y is missing": lambda txn: "y" in txn,
    "get y": lambda txn: txn.get("y"),
    "metadata of x": lambda txn: txn.metadata("x"),
    "names": list,
    "count": len,
    "relationships": lambda txn: txn.relationships(),
    "relationships of p": lambda txn: txn.relationships(source="p"),
    "set metadata of x": lambda txn: txn.set_metadata("x", {"a": 1}),
    "delete x": lambda txn: txn.delete_tensor("x"),
    "nothing": lambda txn: txn.store_tensor("x", 5),
}
WRITES: dict[str, tuple[Any, set[str]]] = {
    "store x": (
        lambda db: db.store_tensor("x", 2),
        {"value of x", "x is there", "metadata of x", "set metadata of x", "delete x"},
    ),
    "metadata of x": (lambda db: db.set_metadata("x", {"b": 2}), {"metadata of x"}),
    "delete x": (
        lambda db: db.delete_tensor("x"),
        {"value of x", "x is there", "metadata of x", "set metadata of x", "delete x"}
        | {"names", "count"},
    ),
    "store y": (
        lambda db: db.store_tensor("y", 2),
        {"y is missing", "get y", "names", "count"},
    ),
    "store other": (lambda db: db.store_tensor("other", 2), {"names", "count"}),
    "relate p": (
        lambda db: db.create_relationship("p", "q", "k", {"n": 1}),
        {"relationships", "relationships of p"},
    ),
    "relate r": (lambda db: db.create_relationship("r", "q", "k"), {"relationships"}),
    "tag": (lambda db: db.tag("t"), set()),
    "same value": (lambda db: db.store_tensor("unread", 1), {"names", "count"}),
}


@pytest.mark.parametrize("write", WRITES)
@pytest.mark.parametrize("read", READS)
def test_a_conflict_is_a_change_of_what_was_read(read: str, write: str) -> None:
    with mldb.MLDatabase.on(MemoryFileSystem(), durability="os") as db:
        db.store_tensor("x", 1, {"a": 0})
        db.create_relationship("p", "q", "k")
        change, conflicts = WRITES[write]
        assert conflicting(db, READS[read], change) == (read in conflicts)


def test_a_conflict_names_what_changed(db: mldb.MLDatabase) -> None:
    for number in range(12):
        db[f"x{number}"] = 0
    txn = db.transaction()
    txn.__enter__()
    for number in range(12):
        txn[f"x{number}"]
    txn["y"] = 1
    for number in range(12):
        db[f"x{number}"] = 1
    with pytest.raises(mldb.ConflictError, match=r"x0.*and 4 more") as caught:
        txn.__exit__(None, None, None)
    assert caught.value.names == tuple(f"x{number}" for number in range(8))


def test_a_rewound_base_conflicts_with_reads_only(db: mldb.MLDatabase) -> None:
    db.store_tensor("x", 1, epoch=1)
    db.store_tensor("x", 2, epoch=2)
    assert conflicting(db, lambda txn: txn["x"], lambda db: db.rewind(1))
    db.store_tensor("x", 3, epoch=3)
    assert conflicting(db, lambda txn: "never" in txn, lambda db: db.rewind(1))
    db.store_tensor("x", 4, epoch=4)
    assert not conflicting(db, lambda txn: txn.store_tensor("x", 9), lambda db: db.rewind(1))
    assert int(db["x"]) == 9


def test_blind_writes_of_the_same_name_never_conflict(db: mldb.MLDatabase) -> None:
    with db.transaction() as outer:
        outer["x"] = [1]
        with db.transaction() as inner:
            inner["x"] = [2]
        assert contents(db) == {"x": [2]}
        assert outer["x"].tolist() == [1]  # its own write, so nothing of the base was read
    assert contents(db) == {"x": [1]}


def test_nested_transactions_are_independent(db: mldb.MLDatabase) -> None:
    db["x"] = 0
    with pytest.raises(mldb.ConflictError), db.transaction() as outer:  # noqa: PT012
        outer["sum"] = int(outer["x"]) + 1
        with db.transaction() as inner:
            inner["x"] = int(inner["x"]) + 1
    assert contents(db) == {"x": 1}


# --- transact -------------------------------------------------------------------------------------


def test_transact_runs_again_on_conflict(db: mldb.MLDatabase) -> None:
    runs: list[int] = []
    db["x"] = 0

    def add(txn: mldb.Transaction) -> str:
        runs.append(int(txn["x"]))
        if len(runs) < 4:
            db["x"] = len(runs) * 10
        txn["x"] = int(txn["x"]) + 1
        return "done"

    assert db.transact(add) == "done"
    assert runs == [0, 10, 20, 30]
    assert int(db["x"]) == 31
    runs.clear()
    with pytest.raises(mldb.ConflictError):
        db.transact(add, retries=2)
    assert len(runs) == 3
    with pytest.raises(Failure):
        db.transact(lambda txn: (_ for _ in ()).throw(Failure()))
    db.transact(lambda txn: txn.store_tensor("y", 1), epoch=5)
    assert db.epoch == 5
    with pytest.raises(mldb.EpochOrderError):
        db.transact(lambda txn: txn.store_tensor("y", 1), epoch=4)
    for retries in (-1, 1.5, True):
        with pytest.raises((mldb.InvalidValueError, mldb.InvalidTypeError)):
            db.transact(add, retries=retries)  # type: ignore[arg-type]


def test_concurrent_increments_lose_nothing(store_path: Path) -> None:
    """Two handles with three threads each move amounts between the same two names."""
    handles = [mldb.open(store_path, durability="os") for _ in range(2)]
    handles[0].transact(lambda txn: txn.update({"a": 100, "b": 100, "count": 0}))
    failures: list[BaseException] = []

    def move(db: mldb.MLDatabase, amount: int) -> None:
        def body(txn: mldb.Transaction) -> None:
            left, right = int(txn["a"]), int(txn["b"])
            assert left + right == 200
            txn["a"], txn["b"] = left - amount, right + amount
            txn["count"] = int(txn["count"]) + 1

        try:
            for _ in range(15):
                db.transact(body, retries=1000)
        except BaseException as error:  # noqa: BLE001 - shown by the main thread
            failures.append(error)

    threads = [
        threading.Thread(target=move, args=(handles[number % 2], number - 2)) for number in range(6)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    db = handles[1]
    assert int(db["count"]) == 90
    assert int(db["a"]) + int(db["b"]) == 200
    for lsn in {version.lsn for version in db.history("a")}:
        assert int(db.query_tensor("a", as_of=lsn)) + int(db.query_tensor("b", as_of=lsn)) == 200
    for handle in handles:
        handle.close()


# --- epochs ---------------------------------------------------------------------------------------


def test_the_epoch_is_chosen_at_commit(db: mldb.MLDatabase, store_path: Path) -> None:
    db.store_tensor("x", 1, epoch=2)
    with db.transaction() as txn:
        txn["y"] = 1
        db.store_tensor("x", 2, epoch=5)
    assert (db.epoch, db.tensor("y").epoch) == (5, 5)
    with pytest.raises(mldb.EpochOrderError, match=r"db\.rewind\(4\)") as mine:
        db.store_tensor("x", 3, epoch=4)
    assert "Nothing was stored" in str(mine.value)
    with (
        mldb.open(store_path) as other,
        pytest.raises(mldb.EpochOrderError, match="epoch=None") as why,
    ):
        other.store_tensor("x", 3, epoch=4)
    assert "Another process" in str(why.value)
    with pytest.raises(mldb.EpochOrderError), db.transaction(epoch=4) as txn:
        txn["x"] = 3
    with pytest.raises(ValueError, match="lower"):
        db.checkpoint({"x": np.zeros(1)}, epoch=4)
    with pytest.raises(mldb.EpochOrderError):
        db.checkpoint({"x": np.zeros(1)}, epoch=4, wait=False)
    assert int(db["x"]) == 2
    db.rewind(4)
    assert db.epoch == 2
    db.store_tensor("x", 3, epoch=4)
    assert db.epoch == 4


# --- spilling -------------------------------------------------------------------------------------


def test_spilled_payloads_are_written_at_the_call(db: mldb.MLDatabase) -> None:
    pending = Path(db.path) / "pending"
    with db.transaction() as txn:
        txn["small"] = np.ones(4)
        assert list(pending.iterdir()) == []
        for number in range(5):
            txn[f"large{number}"] = np.full(SPILL, number, "u1")
        (file,) = pending.iterdir()
        assert file.stat().st_size >= 5 * SPILL
        txn["large1"] = np.full(SPILL + 1, 9, "u1")  # replaced
        del txn["large2"]
        txn["large3"] = np.ones(3)  # replaced by a small one
        txn.store_tensor("small", np.zeros(SPILL, "u1"), {"k": 1})  # and a small one by a large
        assert txn["large1"][5] == 9
        assert len(txn["large3"]) == 3
        assert txn.metadata("small") == {"k": 1}
    assert list(pending.iterdir()) == []
    assert list(db) == ["large0", "large1", "large3", "large4", "small"]
    assert (db["large1"].size, db["large1"][3], db["large4"][3]) == (SPILL + 1, 9, 4)
    assert db.verify().ok
    with db.transaction(epoch=1) as txn:  # the next one goes on in the published segment
        txn["after"] = 1
    with mldb.open(db.path, mode="r") as reader:
        assert contents(reader) == contents(db)
        assert {type(e).__name__ for e in reader.events()} >= {"TensorStored"}


def test_spills_of_two_transactions_do_not_meet(db: mldb.MLDatabase) -> None:
    with db.transaction() as one:
        one["a"] = np.full(SPILL, 1, "u1")
        with db.transaction() as two:
            two["b"] = np.full(SPILL, 2, "u1")
            two["c"] = 3
        one["d"] = 4
    assert [int(db[name].max()) for name in db] == [1, 2, 3, 4]


def test_a_writer_sweeps_what_the_dead_left_and_nothing_else(db: mldb.MLDatabase) -> None:
    pending = Path(db.path) / "pending"
    with db.transaction() as txn:
        txn["a"] = np.full(SPILL, 1, "u1")
        (live,) = pending.iterdir()
        dead = pending / f"{'0' * 32}-1.seg"
        dead.write_bytes(b"half")
        with mldb.open(db.path) as other:
            other["b"] = 1
        assert list(pending.iterdir()) == [live]
        dead.write_bytes(b"half")
        with mldb.open(db.path, spill_bytes=SPILL) as other, other.transaction() as spilling:
            spilling["c"] = np.full(SPILL, 3, "u1")
            assert dead not in pending.iterdir()
    assert int(db["a"][0]) == 1


_LARGER_THAN_MEMORY = """
    import resource, sys
    import numpy as np
    import mldb

    # Private writable memory is what counts: what is there now and 96 MiB more.
    now = int(open("/proc/self/statm").read().split()[5]) * resource.getpagesize()
    limit = now + (96 << 20)
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    try:
        np.ones(256 << 20, np.uint8)
    except MemoryError:
        pass
    else:
        sys.exit("the limit does not hold")
    with mldb.open(sys.argv[1], durability="os", spill_bytes=1 << 20) as db:
        with db.transaction(epoch=1) as txn:
            for number in range(16):
                txn[f"part{number}"] = np.full(32 << 20, number, np.uint8)
            assert txn["part3"][5] == 3
        del txn
        with db.create_tensor("whole", (16, 32 << 20), "u1", epoch=2) as whole:
            for number in reversed(range(16)):
                whole[number] = db[f"part{number}"]
        for number in range(16):
            part = db[f"part{number}"]
            assert part[0] == part[-1] == number
            assert int(db.tensor("whole")[number, 7]) == number
            assert db.tensor("whole")[number, 1000:2000].max() == number
        whole = db["whole"]
        assert whole.shape == (16, 32 << 20)
        assert [int(row[-1]) for row in whole] == list(range(16))
        assert db.verify().ok
    print("stored", 1 << 30)
"""


@pytest.mark.large
def test_a_transaction_and_a_tensor_larger_than_memory(store_path: Path) -> None:
    """512 MiB in one transaction and in one tensor, with 96 MiB of memory to allocate."""
    assert hasattr(resource, "RLIMIT_DATA")
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(_LARGER_THAN_MEMORY), str(store_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("stored")


# --- one thread -----------------------------------------------------------------------------------


def in_a_thread(action: Callable[[], object]) -> BaseException | None:
    raised: list[BaseException | None] = [None]

    def run() -> None:
        try:
            action()
        except BaseException as error:  # noqa: BLE001 - handed to the test
            raised[0] = error

    thread = threading.Thread(target=run, name="helper")
    thread.start()
    thread.join()
    return raised[0]


def test_a_transaction_refuses_every_other_thread(db: mldb.MLDatabase) -> None:
    """Two threads staged at once: what was read and stored then was a matter of luck."""
    db["x"] = 1
    with db.transaction() as txn:
        txn["mine"] = 1
        calls: list[Callable[[], object]] = [
            lambda: txn.store_tensor("theirs", 2),
            lambda: txn.__setitem__("theirs", 2),
            lambda: txn["x"],
            lambda: "x" in txn,
            lambda: list(txn),
            lambda: len(txn),
            lambda: txn.metadata("x"),
            lambda: txn.set_metadata("x", {}),
            lambda: txn.delete_tensor("x"),
            lambda: txn.create_relationship("a", "b", "c"),
            lambda: txn.delete_relationship("a", "b", "c"),
            txn.relationships,
            lambda: txn.store_model_layer("l", 1, 1),
        ]
        for call in calls:
            error = in_a_thread(call)
            assert isinstance(error, mldb.UsageError)
            assert "'MainThread'" in str(error)
            assert "'helper', which changed nothing" in str(error)
        txn["mine"] = txn["x"] + 1  # its own goes on
    assert sorted(db) == ["mine", "x"]
    assert int(db["mine"]) == 2


def test_a_transaction_that_ends_in_another_thread_is_rolled_back(db: mldb.MLDatabase) -> None:
    txn = db.transaction()
    with_made_elsewhere = db.transaction()
    txn.__enter__()
    txn["x"] = 1
    error = in_a_thread(lambda: txn.__exit__(None, None, None))
    assert isinstance(error, mldb.UsageError)
    assert "was ended in thread 'helper'" in str(error)
    with pytest.raises(mldb.ClosedError):
        txn["y"] = 2
    assert (list(db), txn.lsn) == ([], None)
    assert list((Path(db.path) / "pending").iterdir()) == []

    def whole() -> None:  # who enters it owns it, wherever it was made
        with with_made_elsewhere as own:
            own["z"] = 3

    assert in_a_thread(whole) is None
    assert int(db["z"]) == 3
