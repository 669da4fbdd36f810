"""Tensors whose bytes the store has already: found wherever they lie, and not stored again."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.sparse
import torch
from hypothesis import given
from hypothesis import strategies as st

import mldb
from mldb.history.kinds import tensors
from mldb.log.checksum import block_check, checks_and_digest
from mldb.log.fs.memory import MemoryFileSystem
from mldb.write import duplicates, references
from mldb.write.duplicates import (
    CHECKPOINT_FROM_BYTES,
    FROM_BYTES,
    Duplicates,
    have_equal_bytes,
)
from tests.support.directories import made_at_once
from tests.support.duplicates import bytes_of, entries, found, owner_of, values, weaken_hash

Move = Callable[[mldb.MLDatabase, MemoryFileSystem], mldb.MLDatabase]
"""Returns a store in which what was stored lies somewhere else."""

SMALL_RECORD = 300
"""Bytes of a commit of one reference, its commit frame included."""


def store_in(fs: MemoryFileSystem | None = None, **options: Any) -> mldb.MLDatabase:
    chosen = {"deduplicate": 1, "durability": "os", **options}
    return mldb.MLDatabase.on(MemoryFileSystem() if fs is None else fs, **chosen)


# --- what is found --------------------------------------------------------------------------------


@pytest.mark.parametrize("compression", [None, "zstd"])
@pytest.mark.parametrize("count", [3, 500, 20_000])
def test_the_same_bytes_cost_one_small_record_under_any_name(
    count: int, compression: str | None
) -> None:
    with store_in(compression=compression) as db:
        value = values(1, count)
        first = db.store_tensor("a", value)
        before = bytes_of(db)
        db.store_tensor("a", value, {"again": True})
        db.store_tensor("b", value.view("f8").reshape(-1, 1))
        assert bytes_of(db) - before < 2 * SMALL_RECORD
        assert owner_of(db, "a") == owner_of(db, "b") == ("a", first)
        assert (found(db, "same_name"), found(db, "by_digest")) == (1, 1)
        assert found(db, "bytes_saved") == 2 * value.nbytes
        assert db["a"].tobytes() == db["b"].tobytes() == value.tobytes()
        assert (db["b"].dtype, db["b"].shape) == (np.dtype("f8"), (count, 1))
        assert db.metadata("a") == {"again": True}
        assert db.verify().ok


def test_references_name_versions_with_bytes_and_never_references() -> None:
    with store_in() as db:
        first = db.store_tensor("a", values(1))
        for number in range(4):
            db.store_tensor("a", values(1))
            db.store_tensor(f"b{number}", values(1))
            db.delete_tensor(f"b{number}")
        db.delete_tensor("a")
        db.store_tensor("c", values(1))
        every = [entry for name in ("a", "b0", "b3", "c") for entry in entries(db, name)]
        referring = [entry for entry in every if entry.encoding == 2]
        assert len(referring) == 4 + 2 + 1
        assert {entry.base for entry in referring} == {first}
        assert db["c"].tolist() == values(1).tolist()


def left_open(db: mldb.MLDatabase, fs: MemoryFileSystem) -> mldb.MLDatabase:
    return db


def scanned(db: mldb.MLDatabase, fs: MemoryFileSystem) -> mldb.MLDatabase:
    fs.kill()
    return store_in(fs)


def hinted(db: mldb.MLDatabase, fs: MemoryFileSystem) -> mldb.MLDatabase:
    db.close()
    return store_in(fs)


def sealed(db: mldb.MLDatabase, fs: MemoryFileSystem) -> mldb.MLDatabase:
    db.close()
    with store_in(fs, segment_entries=1) as other:
        for number in range(3):
            with other.transaction() as txn:  # as many as before: parts are made of equal ones
                for place in range(10):
                    txn[f"more{number}{place}"] = values(100 + 10 * number + place)
    return store_in(fs)


def in_a_part(db: mldb.MLDatabase, fs: MemoryFileSystem) -> mldb.MLDatabase:
    with made_at_once():
        db = sealed(db, fs)
        assert db.stats()["directory"]["segments"] >= 2
    return db


@pytest.mark.parametrize("where", [left_open, scanned, hinted, sealed, in_a_part])
def test_other_names_are_found_wherever_their_bytes_lie(where: Move) -> None:
    """Noted by this handle, in the memory or the hint of the active segment, sealed, in a part."""
    fs = MemoryFileSystem()
    db = store_in(fs)
    for number in range(5):
        db.store_tensor(f"old{number}", values(number))
        db.store_tensor(f"again{number}", values(number))
    db = where(db, fs)
    for number in range(5):
        db[f"new{number}"] = values(number)
        owner = owner_of(db, f"new{number}")
        assert owner is not None
        assert owner[0] == f"old{number}"
        assert db[f"new{number}"].tolist() == values(number).tolist()
    db["other"] = values(77)
    assert owner_of(db, "other") is None
    db.close()


def test_what_another_process_stored_is_found_under_its_name_and_otherwise_once_sealed() -> None:
    fs = MemoryFileSystem()
    ours, theirs = store_in(fs), store_in(fs)
    ours["first"] = values(0)
    theirs["theirs"] = values(1)
    ours["theirs"] = values(1)
    assert owner_of(ours, "theirs") == ("theirs", int(entries(ours, "theirs")[0].commit_lsn))
    theirs.close()
    ours.close()


def dense(value: Any) -> Any:
    """Any kind of tensor as an array."""
    if isinstance(value, torch.Tensor):
        return value.to_dense().numpy()
    return value.toarray() if hasattr(value, "toarray") else np.asarray(value)


@pytest.mark.parametrize(
    "value",
    [
        np.zeros((0, 3)),
        np.float32(7),
        torch.arange(900.0).reshape(30, 30),
        scipy.sparse.random_array((50, 40), density=0.3, rng=np.random.default_rng(5)).tocsr(),
        torch.eye(40).to_sparse(),
    ],
    ids=["empty", "scalar", "torch", "scipy", "sparse torch"],
)
def test_every_kind_of_tensor_comes_back_as_it_was_given(value: Any) -> None:
    with store_in() as db:
        for name in ("a", "b", "a"):
            db[name] = value
        with db.transaction() as txn:
            txn["c"], txn["d"] = value, value
            back = txn["d"]
        for got in (back, *(db[name] for name in "abcd")):
            np.testing.assert_array_equal(dense(got), dense(value))
            assert hasattr(got, "tocsr") == hasattr(value, "tocsr")
        saved = found(db, "bytes_saved")
        assert (saved > 0) == (np.prod(np.shape(value)) > 0)
        assert db.verify().ok


# --- batches --------------------------------------------------------------------------------------


@pytest.mark.parametrize("compression", [None, "zstd"])
@pytest.mark.parametrize("count", [100, 10_000, 140_000])
def test_equal_tensors_of_one_batch_share_their_bytes(count: int, compression: str | None) -> None:
    """Packed, in a frame of their own, and written ahead to a pending segment."""
    with store_in(compression=compression, spill_bytes=1_100_000) as db:
        value = values(1, count) // (1 << 40)
        with db.transaction() as txn:
            txn["first"] = value
            for number in range(6):
                txn[f"x{number}"] = value.reshape(-1, 1 + number % 2)
            txn["other"] = value + 1
            assert txn["x5"].tolist() == value.reshape(-1, 2).tolist()
        assert bytes_of(db) < 2 * value.nbytes + 10_000
        assert found(db, "in_batch") == 6
        for number in range(6):
            assert db[f"x{number}"].tolist() == value.reshape(-1, 1 + number % 2).tolist()
        assert db["other"].tolist() == (value + 1).tolist()
        assert db.verify().ok


@pytest.mark.parametrize("count", [100, 10_000, 140_000])
def test_a_shared_tensor_outlives_the_name_that_it_was_staged_under_first(count: int) -> None:
    with store_in(spill_bytes=1_100_000) as db:
        with db.transaction() as txn:
            for name in "abc":
                txn[name] = values(1, count)
            txn["a"] = values(2, count)
            txn.delete_tensor("b")
            txn["d"] = values(1, count)
            txn["b"] = values(2, count)
        assert [db[name].tolist() for name in "abcd"] == [
            values(number, count).tolist() for number in (2, 2, 1, 1)
        ]
        assert db.verify().ok


def test_a_reference_that_is_staged_may_be_overwritten_deleted_and_shared() -> None:
    with store_in() as db:
        db["old"] = values(1)
        with db.transaction() as txn:
            txn["a"] = values(1)
            txn["b"] = values(1)
            txn["c"] = values(1)
            assert sorted(txn) == ["a", "b", "c", "old"]
            txn["a"] = values(2)
            txn.delete_tensor("b")
        assert sorted(db) == ["a", "c", "old"]
        assert (owner_of(db, "a"), owner_of(db, "c")) == (None, ("old", 2))
        assert [db[name].tolist() for name in "ac"] == [values(2).tolist(), values(1).tolist()]


def test_a_value_is_fixed_at_the_call_also_where_it_is_a_reference() -> None:
    with store_in() as db:
        db["old"] = values(1)
        data = values(1)
        with db.transaction() as txn:
            txn["a"] = data
            data[:] = 0
            assert txn["a"].tolist() == values(1).tolist()
        assert db["a"].tolist() == values(1).tolist()


def test_what_would_be_spilled_is_looked_up_before_anything_is_written() -> None:
    fs = MemoryFileSystem(record=True)
    with store_in(fs, spill_bytes=100_000) as db:
        value = values(1, 40_000)
        db["old"] = value
        assert fs.journal is not None
        before = len(fs.journal.operations)
        with db.transaction() as txn:
            txn["new"] = value
            txn["newer"] = value
            assert txn["newer"].tolist() == value.tolist()
            assert len(fs.journal.operations) == before
        assert owner_of(db, "newer") == ("old", 2)
        assert db["new"].tolist() == value.tolist()


def test_a_tensor_written_piece_by_piece_refers_as_well_and_leaves_no_file() -> None:
    fs = MemoryFileSystem()
    with store_in(fs) as db:
        value = values(1, 6000).reshape(60, 100)
        db["old"] = value
        before = bytes_of(db)
        with db.create_tensor("new", value.shape, value.dtype, {"k": 1}) as writer:
            writer[:30] = value[:30]
            writer[30:] = value[30:]
        assert bytes_of(db) - before < SMALL_RECORD
        assert (owner_of(db, "new"), writer.lsn) == (("old", 2), db.lsn)
        assert db["new"].tolist() == value.tolist()
        assert db.metadata("new") == {"k": 1}
        assert fs.list("pending") == []
        with db.create_tensor("fresh", (600,), "int64") as writer:
            writer[...] = values(3, 600)
        db["like fresh"] = values(3, 600)
        assert owner_of(db, "like fresh") == ("fresh", int(writer.lsn or 0))


# --- checkpoints ----------------------------------------------------------------------------------


def two_layers() -> tuple[torch.nn.Linear, torch.nn.Linear, torch.nn.Sequential]:
    layers = torch.nn.Linear(64, 300), torch.nn.Linear(300, 64)
    return *layers, torch.nn.Sequential(*layers)


def test_frozen_layers_are_free_in_checkpoints_small_ones_too() -> None:
    with mldb.MLDatabase.on(MemoryFileSystem()) as db:
        frozen, tuned, model = two_layers()
        db.checkpoint({"model": model}, epoch=0)
        before, biases = bytes_of(db), [tuned.bias.detach().clone()]
        for epoch in range(1, 6):
            with torch.no_grad():
                tuned.bias.add_(1)
            biases.append(tuned.bias.detach().clone())
            taken = db.checkpoint({"model": model}, epoch=epoch, wait=False).result()
            assert taken.nbytes == sum(item.nbytes for item in model.state_dict().values())
        assert bytes_of(db) - before < 5 * 2000
        assert found(db, "same_name") == 15
        for epoch in range(6):
            state = db.state_dict(as_of=epoch, prefix="model/")
            assert torch.equal(state["0.weight"], frozen.weight)
            assert torch.equal(state["1.bias"], biases[epoch])
        first, _, loaded = two_layers()
        db.load({"model": loaded})
        assert torch.equal(first.weight, frozen.weight)
        handle = db.tensor("model/0.weight").torch()
        assert torch.equal(handle, frozen.weight)


def test_tied_and_equal_tensors_of_a_checkpoint_stay_what_they_are() -> None:
    with store_in() as db:
        shared = torch.arange(2000.0)
        state = {"a": shared, "tied": shared, "equal": shared.clone(), "zero": torch.zeros(2000)}
        for epoch in range(3):
            db.checkpoint(state, epoch=epoch)
        back = db.load(None)
        assert back["a"].data_ptr() == back["tied"].data_ptr() != back["equal"].data_ptr()
        assert torch.equal(back["equal"], shared)
        assert bytes_of(db) < 2 * shared.nbytes + 3 * 2500


def test_a_mapped_read_of_a_reference_maps_its_owner(store_path: Path) -> None:
    with mldb.open(store_path, map_bytes=0, deduplicate=1) as db:
        value = values(1, 50_000)
        db["a"] = value
        db["b"] = value
        one, two = db["a"], db["b"]
        assert np.shares_memory(one, two)
        assert np.shares_memory(db.tensor("b")[100:200], one)
        own = db.tensor("b").torch()
        own += 1
        assert db["b"].tolist() == value.tolist()


# --- what is not taken ----------------------------------------------------------------------------


def test_equal_digests_of_other_bytes_are_caught_by_the_comparison(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With one digest for everything, everything is stored, and reads as it was given."""
    weaken_hash(monkeypatch)
    with store_in(spill_bytes=100_000) as db:
        expected = {}
        for number, count in enumerate((50, 50, 9000, 9000, 20_000, 20_000)):
            expected[f"a{number}"] = values(number, count)
            db[f"a{number}"] = values(number, count)
            with db.transaction() as txn:
                for extra in range(2):
                    name = f"b{number}{extra}"
                    txn[name] = expected[name] = values(100 * number + extra, count)
        db.checkpoint({"x": values(7), "y": values(8)}, epoch=1)
        db["again"] = values(5, 20_000)
        assert found(db, "unequal") > 10
        assert owner_of(db, "again") is None or db["again"].tolist() == values(5, 20_000).tolist()
        for name, value in expected.items():
            assert db[name].tolist() == value.tolist(), name
        assert db["x"].tolist() == values(7).tolist()
        assert db["y"].tolist() == values(8).tolist()


@pytest.mark.parametrize("is_mapped", [True, False])
def test_what_was_written_a_moment_ago_is_found_and_fixed_at_the_call(
    store_path: Path, is_mapped: bool
) -> None:
    """In the active segment, where a mapping reaches it and where it is read piece by piece."""
    old, new, last = (values(number, 20_000) for number in range(3))
    with mldb.open(store_path, durability="os") as db:
        db["old"] = old
        if not is_mapped:
            assert db["old"].tolist() == old.tolist()  # a mapping that ends there
        db["new"] = new
        db["again"] = new
        with db.transaction() as txn:
            data = new.copy()
            txn["more"] = data
            data[:] = 0
            assert txn["more"].tolist() == new.tolist()
        changed = new.copy()
        changed[-1] += 1
        db["other"] = changed
        db["last"] = last
        for name in ("again", "more"):
            assert owner_of(db, name) == ("new", 4)
            assert db[name].tolist() == new.tolist()
        assert (owner_of(db, "other"), found(db, "by_digest")) == (None, 2)
        assert db["other"].tolist() == changed.tolist()
        assert db.verify().ok


def test_the_newest_version_is_compared_before_anything_is_hashed(
    store_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A frozen layer costs a comparison; one that changed somewhere is hashed and stored."""
    value = values(1, 20_000)
    hashed: list[int] = []

    def noted(buffers: Any, block_log2: int) -> tuple[bytes, bytes]:
        hashed.append(sum(map(len, buffers)))
        return checks_and_digest(buffers, block_log2)

    for module in (duplicates, references, tensors):
        monkeypatch.setattr(module, "checks_and_digest", noted)
    with mldb.open(store_path) as db:
        db["a"] = value
        db.checkpoint({"m": value}, epoch=1)
    with mldb.open(store_path) as db:
        hashed.clear()
        db["a"] = value
        db.checkpoint({"m": value}, epoch=2)
        with db.transaction() as txn:
            txn["a"] = value
        assert hashed == []
        assert found(db, "same_name") == found(db, "looked_up") == 3
        for place in (0, 10_000, 19_999):
            value[place] += 1
            db["a"] = value
            assert owner_of(db, "a") is None
            assert db["a"].tolist() == value.tolist()
        assert hashed == [160_000] * 3
        assert db.verify().ok


def test_a_newest_version_that_is_damaged_is_no_owner_although_it_compares_equal(
    store_path: Path,
) -> None:
    """Its checksum is what is damaged: nobody can read it, so that nothing refers to it."""
    value = values(1, 20_000)
    with mldb.open(store_path) as db:
        db["a"] = value
    [segment] = (store_path / "segments").glob("*.seg")
    data = bytearray(segment.read_bytes())
    place = data.find(block_check(value.tobytes()))
    data[place] ^= 1
    segment.write_bytes(data)
    with mldb.open(store_path) as db:
        db["a"] = value
        assert owner_of(db, "a") is None
        assert db["a"].tolist() == value.tolist()


def test_an_owner_that_is_damaged_is_no_owner(store_path: Path) -> None:
    """What it has is not readable any more, so that the bytes are stored anew."""
    value = values(1, 20_000)
    with mldb.open(store_path) as db:
        db["a"] = value
    [segment] = (store_path / "segments").glob("*.seg")
    data = bytearray(segment.read_bytes())
    data[data.find(value.tobytes()[:64]) + 70_000] ^= 1
    segment.write_bytes(data)
    with mldb.open(store_path) as db:
        db["b"] = value
        assert (owner_of(db, "b"), found(db, "unreadable")) == (None, 1)
        assert db["b"].tolist() == value.tolist()
        with pytest.raises(mldb.CorruptError):
            db["a"].tolist()


# --- the option -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("deduplicate", "least", "in_checkpoints"),
    [
        (True, FROM_BYTES // 8, CHECKPOINT_FROM_BYTES // 8),
        (False, None, None),
        (800, 100, 100),
    ],
)
def test_the_option_says_from_which_size_on_tensors_are_looked_up(
    deduplicate: bool | int, least: int | None, in_checkpoints: int | None
) -> None:
    tried = (63, 64, 99, 100, FROM_BYTES // 8 - 1, FROM_BYTES // 8)
    every = {f"{count}": values(count, count) for count in tried}
    with store_in(deduplicate=deduplicate) as db:
        for _ in range(2):
            for name, value in every.items():
                db[name] = value
        expected = [count for count in tried if least is not None and count >= least]
        assert [int(name) for name in every if owner_of(db, name)] == expected
        stats = db.stats()["deduplication"]
        assert stats["same_name"] == len(expected)
        assert stats["from_bytes"] == (None if least is None else 8 * least)
        for epoch in range(2):
            db.checkpoint(every, epoch=epoch)
        expected = [count for count in tried if in_checkpoints and count >= in_checkpoints]
        assert [int(name) for name in every if owner_of(db, name)] == expected


def test_a_wrong_option_is_refused() -> None:
    for wrong, kind in ((0, ValueError), (-1, ValueError), (1.5, TypeError), ("1", TypeError)):
        with pytest.raises(kind, match="deduplicate"):
            mldb.Options(deduplicate=wrong)  # type: ignore[arg-type]
    assert mldb.Options(deduplicate=np.int64(7)).deduplicate == 7  # type: ignore[arg-type]
    assert Duplicates(False, None, None).stats()["from_bytes"] is None  # type: ignore[arg-type]


# --- comparing ------------------------------------------------------------------------------------


@given(
    data=st.binary(max_size=64),
    repeat=st.sampled_from([1, 7, 3000]),
    cuts=st.lists(st.integers(0, 200_000), max_size=4),
    flip=st.none() | st.integers(0, 1 << 20),
)
def test_buffers_are_equal_when_their_bytes_are_however_they_are_cut(
    data: bytes, repeat: int, cuts: list[int], flip: int | None
) -> None:
    whole = data * repeat
    other = bytearray(whole)
    if flip is not None and other:
        other[flip % len(other)] ^= 1 << flip % 8
    marks = sorted({0, len(other), *(cut % (len(other) + 1) for cut in cuts)})
    parts = [memoryview(other)[low:high] for low, high in pairwise(marks)]
    assert have_equal_bytes([whole], parts or [b""]) == (whole == bytes(other))
    assert have_equal_bytes(parts, [whole, b""]) == (whole == bytes(other))
    assert not have_equal_bytes([whole, b"x"], parts)
