"""``update_tensor`` and ``add_to_tensor``: what is read at every step, stored, and refused."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import scipy.sparse
from hypothesis import given, settings
from hypothesis import strategies as st

import mldb
from mldb.errors import (
    ConflictError,
    CorruptError,
    InvalidTypeError,
    InvalidValueError,
    TensorNotFoundError,
)
from mldb.history.events import TensorPatched
from mldb.log.fs.memory import MemoryFileSystem

torch = pytest.importorskip("torch")


@pytest.fixture
def db(store_path: Path) -> Any:
    with mldb.open(store_path, durability="os") as database:
        yield database


# --- every way of reading -------------------------------------------------------------------------


def check_reads(db: mldb.MLDatabase, name: str, want: Any, as_of: Any = None) -> None:
    """Every door gives the same bytes."""
    raw = want.tobytes()
    assert db.query_tensor(name, as_of=as_of).tobytes() == raw
    handle = db.tensor(name, as_of=as_of)
    assert (handle.shape, handle.dtype) == (want.shape, want.dtype)
    assert handle.numpy().tobytes() == raw
    assert not handle.numpy().flags.writeable
    own = handle.torch()
    assert own.numpy().tobytes() == raw
    own.zero_()
    assert handle.numpy().tobytes() == raw
    count = len(want)
    for low, high in ((0, 1), (count // 3, count // 2 + 1), (count - 1, count), (0, count)):
        assert handle[low:high].tobytes() == want[low:high].tobytes()
        assert not handle[low:high].flags.writeable
    assert handle[count // 2].tobytes() == want[count // 2].tobytes()
    assert handle[::3].tobytes() == want[::3].tobytes()


@pytest.mark.parametrize("size", [8, 4096], ids=["small", "large"])
@pytest.mark.parametrize("options", [{}, {"arrays": "private"}, {"compression": "zstd"}])
def test_every_step_stays_readable_in_every_way_and_after_reopening(
    store_path: Path, rng: np.random.Generator, size: int, options: dict[str, Any]
) -> None:
    value = rng.standard_normal((50, size)).astype(np.float32)
    value[:, : size // 2] = 0  # so that it can be compressed
    steps = []
    with mldb.open(store_path, durability="os", segment_entries=4, **options) as db:
        db.store_tensor("w", value, epoch=0)
        for epoch in range(1, 8):
            rows = rng.permutation(50)[:epoch]
            values = rng.standard_normal((epoch, size)).astype(np.float32)
            lsn = db.update_tensor("w", rows, values, epoch=epoch)
            value = value.copy()
            value[rows] = values
            steps.append((epoch, lsn, value))
            check_reads(db, "w", value)
    for mode in ("rw", "r"):
        with mldb.open(store_path, mode=mode, **options) as db:
            for epoch, lsn, want in steps:
                check_reads(db, "w", want, epoch)
                check_reads(db, "w", want, lsn)
            assert db.verify().ok


def test_an_array_that_was_handed_out_stays_as_it_was(db: Any) -> None:
    db["w"] = np.zeros((300, 1000), np.float32)
    db.update_tensor("w", 5, np.ones(1000, np.float32))
    held = db["w"], db.tensor("w")[4:7]
    db.update_tensor("w", [5, 6], np.full((2, 1000), 7, np.float32))
    assert held[0].sum() == held[1].sum() == 1000
    assert db["w"].sum() == 14000


OPERATIONS = st.lists(
    st.tuples(
        st.sampled_from(["rows", "rows", "rows", "add", "whole", "delete", "rewind", "reopen"]),
        st.lists(st.integers(0, 9), max_size=6, unique=True),
        st.integers(0, 1 << 16),
    ),
    max_size=16,
)


@settings(deadline=None)
@given(OPERATIONS, st.booleans())
def test_any_order_of_changes_reads_as_copies_would(operations: Any, together: bool) -> None:
    """The model keeps a whole array for every commit."""
    fs = MemoryFileSystem()
    options: dict[str, Any] = {"durability": "os", "segment_entries": 3}
    db = mldb.MLDatabase.on(fs, **options)
    model: dict[int, Any] = {0: None}
    lineage = [0]

    def commit(lsn: int, value: Any) -> None:
        model[int(lsn)] = value
        lineage.append(int(lsn))

    def whole(seed: int) -> Any:
        return np.random.default_rng(seed).integers(-9, 9, (10, 3)).astype(np.int32)

    commit(db.store_tensor("w", whole(0)), whole(0))
    for kind, rows, seed in operations:
        value = model[lineage[-1]]
        if kind == "reopen":
            db.close()
            db = mldb.MLDatabase.on(fs, **options)
        elif kind == "rewind":
            at = seed % len(lineage)
            rewound = db.rewind(mldb.Lsn(lineage[at]))
            del lineage[at + 1 :]
            commit(rewound, model[lineage[-1]])
        elif kind == "whole" or value is None:
            commit(db.store_tensor("w", whole(seed)), whole(seed))
        elif kind == "delete":
            commit(db.delete_tensor("w"), None)
        elif rows:
            delta = whole(seed)[: len(rows)]
            value = value.copy()
            with db.transaction() as txn:
                for _ in range(1 + together):
                    if kind == "rows":
                        txn.update_tensor("w", rows, delta)
                        value[rows] = delta
                    else:
                        full = np.zeros_like(value)
                        full[rows] = delta
                        txn.add_to_tensor("w", full, 2)
                        value += 2 * full
                    assert np.array_equal(txn["w"], value)
            if txn.lsn is not None and txn.lsn not in model:  # a sum of zeros changes nothing
                commit(txn.lsn, value)
    for lsn, want in model.items():
        snapshot = db.at(mldb.Lsn(lsn)) if lsn else None
        if snapshot is not None:
            assert ("w" in snapshot) == (want is not None)
            if want is not None:
                assert np.array_equal(snapshot["w"], want)
                assert np.array_equal(snapshot.tensor("w")[2:5], want[2:5])
    db.close()


# --- in a transaction -----------------------------------------------------------------------------


def test_rows_and_whole_tensors_of_one_transaction_follow_one_another(db: Any) -> None:
    db["w"] = np.arange(40, dtype=np.float64).reshape(10, 4)
    with db.transaction() as txn:
        txn.update_tensor("w", [1], np.zeros((1, 4)))
        txn.update_tensor("w", [2, 1], np.ones((2, 4)))
        assert txn["w"][1:3].sum() == 8
        assert "w" in txn
        assert list(txn) == ["w"]
        txn["new"] = np.zeros((3, 2))
        txn.update_tensor("new", [0], np.ones((1, 2)))
        assert txn["new"].sum() == 2
    assert db["w"][1:3].sum() == 8
    assert db["new"].sum() == 2
    with db.transaction() as txn:
        txn.update_tensor("w", [0], np.full((1, 4), 9.0))
        txn["w"] = np.zeros((2, 2))
        txn.delete_tensor("new")
        with pytest.raises(TensorNotFoundError, match="deleted in this transaction"):
            txn.update_tensor("new", [0], np.ones((1, 2)))
    assert db["w"].shape == (2, 2)
    with contextlib.suppress(RuntimeError), db.transaction() as txn:
        txn.update_tensor("w", [0], np.full((1, 2), 9.0))
        raise RuntimeError
    assert db["w"].sum() == 0


def test_values_are_fixed_at_the_call(db: Any) -> None:
    db["w"] = np.zeros((10, 4))
    values, rows = np.ones((2, 4)), np.array([3, 1])
    with db.transaction() as txn:
        txn.update_tensor("w", rows, values)
        values[:], rows[:] = 7, 0
    assert db["w"].sum(axis=1).tolist() == [0, 4, 0, 4, 0, 0, 0, 0, 0, 0]


def test_rows_that_another_commit_changed_are_a_conflict_and_a_verb_tries_again(
    store_path: Path,
) -> None:
    with mldb.open(store_path) as one, mldb.open(store_path) as two:
        one["w"] = np.zeros((4, 2))
        txn = one.transaction()
        txn.__enter__()
        txn.update_tensor("w", [0], np.ones((1, 2)))
        two.update_tensor("w", [1], np.ones((1, 2)))
        with pytest.raises(ConflictError):
            txn.__exit__(None, None, None)
        assert one["w"].sum(axis=1).tolist() == [0, 2, 0, 0]
        for _ in range(5):
            one.add_to_tensor("w", np.ones((4, 2)))
            two.add_to_tensor("w", scipy.sparse.coo_array(([1.0], ([2], [1])), (4, 2)))
        assert one["w"].sum(axis=1).tolist() == [10, 12, 15, 10]


# --- sums -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["<f4", "<f8", ">f4", "<c16", "<f2", "bfloat16"])
def test_sums_are_rounded_as_the_docstring_says(
    db: Any, rng: np.random.Generator, dtype: str
) -> None:
    kind: Any = ml_dtypes.bfloat16 if dtype == "bfloat16" else np.dtype(dtype)
    old = rng.standard_normal((20, 5)).astype(kind)
    db["w"] = old
    work = np.float32 if np.dtype(kind).itemsize < 4 else np.dtype(kind).newbyteorder("=").type
    want = old
    for number in range(3):
        delta = np.zeros((20, 5), np.float32)
        delta[number : number + 5] = rng.standard_normal((5, 5))
        db.add_to_tensor("w", delta, -0.1)
        rows = want[number : number + 5].astype(work)
        product = delta[number : number + 5].astype(work) * work(-0.1)
        want = want.copy()
        want[number : number + 5] = (rows + product).astype(kind)
    assert db["w"].tobytes() == want.tobytes()


def test_a_sparse_delta_touches_its_rows_and_adds_up_what_stands_twice(db: Any) -> None:
    db["w"] = np.zeros((100, 4), np.float32)
    places, values = ([7, 7, 90], [1, 1, 3]), np.array([1, 2, 4], np.float32)
    torch.sparse.check_sparse_tensor_invariants.enable()
    for delta in (
        scipy.sparse.coo_array((values, places), (100, 4)),
        scipy.sparse.csr_array((values, places), (100, 4)),
        torch.sparse_coo_tensor(places, [1.0, 2.0, 4.0], (100, 4)),
    ):
        db.add_to_tensor("w", delta, 2)
    torch.sparse.check_sparse_tensor_invariants.disable()
    assert (db["w"][7, 1], db["w"][90, 3]) == (18, 24)
    assert [event.rows for event in db.events() if isinstance(event, TensorPatched)] == [2, 2, 2]


def test_a_sum_over_most_rows_is_stored_whole_and_one_of_zeros_not_at_all(db: Any) -> None:
    db["w"] = np.zeros((10, 4))
    before = db.lsn
    assert db.add_to_tensor("w", np.zeros((10, 4))) == before
    db.add_to_tensor("w", np.ones((10, 4)))
    assert not any(isinstance(event, TensorPatched) for event in db.events())
    assert db["w"].sum() == 40


def test_a_torch_tensor_stays_one(db: Any) -> None:
    db["w"] = torch.zeros(10, 4, dtype=torch.bfloat16)
    db.update_tensor("w", [3], torch.ones(1, 4, dtype=torch.bfloat16))
    assert isinstance(db["w"], np.ndarray) == isinstance(db.query_tensor("w"), np.ndarray)
    db.add_to_tensor("w", torch.ones(10, 4))
    assert db.tensor("w").torch().dtype == torch.bfloat16
    assert db.tensor("w").torch().sum() == 44


def test_integers_are_exact_or_refused(db: Any) -> None:
    top = (1 << 63) - 5
    db["w"] = np.full((3, 1), top, np.int64)
    db.add_to_tensor("w", np.array([[2], [0], [0]]), 2)
    assert db["w"][0, 0] == top + 4
    for delta, scale, error in (
        (np.array([[1], [0], [0]]), 1, InvalidValueError),
        (np.array([[0.5], [0], [0]]), 1, InvalidTypeError),
        (np.array([[1], [0], [0]]), 0.5, InvalidTypeError),
    ):
        with pytest.raises(error, match="Nothing was stored"):
            db.add_to_tensor("w", delta, scale)
    assert db["w"][0, 0] == top + 4


# --- what is refused ------------------------------------------------------------------------------

ROWS = np.zeros((2, 4), np.float32)


@pytest.mark.parametrize(
    ("rows", "values", "error", "match"),
    [
        ([0, 10], ROWS, InvalidValueError, "no row 10: there are 10"),
        ([-1, 0], ROWS, InvalidValueError, "no row -1"),
        ([3, 3], ROWS, InvalidValueError, "row 3 of 'w' is given twice"),
        ([0, 1], ROWS.astype(np.float64), InvalidTypeError, "float64"),
        ([0, 1], ROWS.astype(np.int32), InvalidTypeError, "int32"),
        ([0, 1], ROWS[:, :3], InvalidValueError, r"have shape \(2, 4\), the values \(2, 3\)"),
        ([0, 1], ROWS[:1], InvalidValueError, r"the values \(1, 4\)"),
        ([0.0, 1.0], ROWS, InvalidTypeError, "float64, not a list of integers"),
        ([[0, 1]], ROWS, InvalidTypeError, "2-dimensional"),
        ([True] * 2, ROWS, InvalidTypeError, "a mask"),
        ("ab", ROWS, InvalidTypeError, "not a list of integers"),
        ([0, 1], scipy.sparse.csr_array(ROWS), InvalidTypeError, "sparse"),
        ([0, 1], "text", InvalidTypeError, "w"),
        ([0, 1], np.ma.masked_array(ROWS, ROWS == 0), InvalidTypeError, "mask"),
    ],
)
def test_rows_and_values_that_do_not_fit_are_refused_by_name(
    db: Any, rows: Any, values: Any, error: Any, match: str
) -> None:
    db["w"] = np.ones((10, 4), np.float32)
    before = db.lsn
    with pytest.raises(error, match=match):
        db.update_tensor("w", rows, values)
    assert db.lsn == before
    assert db["w"].sum() == 40


def test_tensors_without_rows_are_refused(db: Any) -> None:
    db["scalar"] = 3.0
    db["empty"] = np.zeros((0, 3))
    db["flat"] = np.zeros((3, 0))
    db["sparse"] = scipy.sparse.csr_array(np.eye(3))
    for name in ("scalar", "empty", "flat"):
        with pytest.raises(InvalidTypeError, match="has no rows to change"):
            db.update_tensor(name, [0], [0.0])
    for verb in (db.update_tensor, lambda name, _, delta: db.add_to_tensor(name, delta)):
        with pytest.raises(InvalidTypeError, match="sparse"):
            verb("sparse", [0], np.zeros((3, 3)))
    for verb in (db.update_tensor, lambda name, _, delta: db.add_to_tensor(name, delta)):
        with pytest.raises(TensorNotFoundError):
            verb("none", [0], np.zeros((3, 3)))
    db["line"] = np.zeros(3)
    with pytest.raises(InvalidValueError, match=r"has shape \(3,\), the delta \(4,\)"):
        db.add_to_tensor("line", np.zeros(4))
    with pytest.raises(InvalidTypeError, match="scale is a str"):
        db.add_to_tensor("line", np.zeros(3), "2")


def test_numbers_slices_and_single_rows_are_taken(db: Any) -> None:
    db["w"] = np.zeros((6, 2), np.float32)
    db.update_tensor("w", slice(0, 4, 2), [[1, 2], [3, 4]])
    db.update_tensor("w", 5, [5, 6])
    db.update_tensor("w", torch.tensor([1]), torch.ones(1, 2))
    db.update_tensor("w", range(3, 4), np.ones((1, 2), ">f4"))
    assert db["w"].tolist() == [[1, 2], [1, 1], [3, 4], [1, 1], [0, 0], [5, 6]]
    before = db.lsn
    assert db.update_tensor("w", [], np.zeros((0, 2), np.float32)) == before


# --- what is stored, and damage -------------------------------------------------------------------


def test_a_step_costs_its_rows_and_reads_no_others(store_path: Path) -> None:
    with mldb.open(store_path, durability="os") as db:
        db["w"] = np.zeros((2000, 256), np.float32)
        before = sum(path.stat().st_size for path in store_path.rglob("*.seg"))
        rng = np.random.default_rng(0)
        for _ in range(100):
            rows = rng.permutation(2000)[:64]
            db.update_tensor("w", rows, np.ones((64, 256), np.float32))
        size = sum(path.stat().st_size for path in store_path.rglob("*.seg"))
        assert size - before <= 1.02 * 100 * 64 * 1024
        assert db.history("w")[-1].stored_bytes < 66_000


def test_history_and_events_tell_of_patches(db: Any) -> None:
    db.store_tensor("w", np.zeros((5, 2)), {"layer": 1})
    lsn = db.update_tensor("w", [1, 4], np.ones((2, 2)))
    versions = db.history("w")
    assert [version.nbytes for version in versions] == [80, 80]
    assert versions[1].lsn == lsn
    assert versions[1].digest == ""
    (event,) = [event for event in db.events() if isinstance(event, TensorPatched)]
    assert (event.lsn, event.name, event.dtype) == (lsn, "w", "<f8")
    assert (event.shape, event.rows) == ((5, 2), 2)
    assert db.tensor("w").metadata == {"layer": 1}


def test_damage_of_a_patch_is_named_and_steps_before_it_stay_readable(store_path: Path) -> None:
    values = np.full((1, 64), 7.25, np.float64)
    with mldb.open(store_path) as db:
        db["w"] = np.zeros((9, 64))
        db.update_tensor("w", [3], values)
        lsn = db.lsn
        db.update_tensor("w", [4], values + 1)
        db.update_tensor("w", [5], values)
    (path,) = store_path.glob("segments/*.seg")
    data = bytearray(path.read_bytes())
    place = data.index((values + 1).tobytes())
    data[place] ^= 1
    path.write_bytes(data)
    with mldb.open(store_path, mode="r") as db:
        with pytest.raises(CorruptError, match="'w'"):
            db["w"]
        assert db.query_tensor("w", as_of=lsn)[3].sum() == 7.25 * 64
        assert not db.verify().ok


def test_backup_keeps_patches(store_path: Path, tmp_path: Path) -> None:
    with mldb.open(store_path) as db:
        db["w"] = np.zeros((9, 64))
        db.update_tensor("w", [3], np.ones((1, 64)))
        db.backup(tmp_path / "copy")
    with mldb.open(tmp_path / "copy", mode="r") as copy:
        assert copy["w"].sum() == 64


def test_a_checkpoint_and_a_product_read_patched_tensors(db: Any) -> None:
    model = torch.nn.Linear(8, 30)
    db.checkpoint(model, epoch=1)
    name = next(name for name in db if name.endswith("weight"))
    db.update_tensor(name, [2, 29], torch.full((2, 8), 0.5), epoch=2)
    other = torch.nn.Linear(8, 30)
    db.load(other)  # what the checkpoint stored
    assert torch.equal(other.weight, model.weight)
    want = model.weight.detach().clone()
    want[[2, 29]] = 0.5
    assert torch.equal(db.tensor(name).torch(), want)
    db.checkpoint({"patched": db.tensor(name).torch()}, epoch=3)
    assert torch.equal(db.state_dict()["patched"], want)
    db["x"] = np.eye(8, dtype=np.float32)
    assert np.array_equal(db.ops.matrix_multiply(name, "x"), want.numpy())
