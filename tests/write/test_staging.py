"""Staged writes: the last one per key, packed if small, of their own if large, spilled beyond."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import mldb
from mldb import keys
from mldb.history import kinds
from mldb.history.kinds.changes import KeyChange
from mldb.history.kinds.tensors import metadata_set, tensor_deleted
from mldb.log import format as fmt
from mldb.log.frame import Record
from mldb.log.fs.memory import MemoryFileSystem
from mldb.log.pending import PendingSegment
from mldb.tensors.codec import pack_metadata, prepare, unpack_descriptor, view_numpy
from mldb.write.packs import PACK_BELOW, PACK_BYTES
from mldb.write.staging import Staging

SPILL = 1 << 20


def new_staging(
    *, fix: bool = True, spill_bytes: int = SPILL, compression: str | None = None
) -> tuple[Staging, MemoryFileSystem]:
    fs = MemoryFileSystem()
    fs.mkdir("pending")
    staging = Staging(
        lambda: PendingSegment(fs, "owner"), spill_bytes, fix=fix, compression=compression
    )
    return staging, fs


def put(staging: Staging, name: bytes, value: Any, *aliases: bytes) -> None:
    staging.put_tensor(name, prepare(value), aliases)


def back(staging: Staging, key: bytes) -> Any:
    """What a transaction reads back: an array, None for a deletion, "absent" when not staged."""
    staged = staging.read(key)
    if staged is None:
        return "absent"
    if staged.deleted:
        return None
    if key[:1] != keys.TENSORS:
        return staged.attr
    return view_numpy(unpack_descriptor(staged.attr), staging.staged_bytes(staged)).tolist()


def written(record: Record, number: int) -> bytes:
    """The bytes that draft *number* of a record refers to."""
    draft = record.named_drafts()[number]
    return b"".join(record.payload)[draft.offset : draft.offset + draft.length]


# --- against a dict -------------------------------------------------------------------------------

SIZES = st.sampled_from([0, 1, 100, PACK_BELOW // 8 - 1, PACK_BELOW // 8, SPILL // 8])
STEPS = st.lists(
    st.tuples(
        st.sampled_from(("put", "put", "alias", "end", "metadata")), st.sampled_from(b"abcd"), SIZES
    ),
    max_size=10,
)


@given(steps=STEPS, compression=st.sampled_from([None, "zstd"]))
def test_the_last_write_of_each_key_counts(
    steps: list[tuple[str, int, int]], compression: str | None
) -> None:
    staging, _ = new_staging(compression=compression)
    model: dict[bytes, Any] = {}
    for number, (verb, letter, size) in enumerate(steps):
        name = bytes([letter])
        value = np.full(size, number)
        for stored in {"put": (name,), "alias": (name, name + b"'")}.get(verb, ()):
            if model.get(keys.TENSORS + stored, "absent") is None:
                # Stored again after its deletion: a new tensor, which has no metadata yet.
                model[keys.METADATA + stored] = pack_metadata({})
        match verb:
            case "put":
                put(staging, name, value)
                model[keys.TENSORS + name] = value.tolist()
            case "alias":
                put(staging, name, value, name + b"'")
                model[keys.TENSORS + name] = model[keys.TENSORS + name + b"'"] = value.tolist()
            case "end":
                staging.change(tensor_deleted(name)[0])
                model[keys.TENSORS + name] = None
            case "metadata":
                staging.change(metadata_set(name, b"%d" % number))
                model[keys.METADATA + name] = b"%d" % number
        for key, expected in model.items():
            if key[:1] == keys.TENSORS or verb == "metadata":
                assert back(staging, key) == expected
        for prefix in (keys.TENSORS, keys.TENSORS + b"a"):
            assert dict(staging.keys(prefix)) == {
                key: value is not None for key, value in model.items() if key.startswith(prefix)
            }
        assert staging
    records = [
        *staging.records(),
        *[p.record for p in (staging.pending.placed if staging.pending else [])],
    ]
    drafts = [draft for record in records for draft in record.named_drafts()]
    tensors = [draft.key for draft in drafts if draft.key[:1] == keys.TENSORS]
    assert sorted(tensors) == sorted(key for key in model if key[:1] == keys.TENSORS)
    assert len(drafts) == len({draft.key for draft in drafts})  # a key stands in a batch once
    staging.discard()


# --- packing --------------------------------------------------------------------------------------


def test_hundreds_of_small_tensors_share_a_few_payloads(rng: np.random.Generator) -> None:
    staging, _ = new_staging()
    values = {b"t%d" % n: rng.random(int(rng.integers(1, 200))) for n in range(1000)}
    for name, value in values.items():
        put(staging, name, value)
    records = staging.records()
    total = sum(value.nbytes for value in values.values())
    assert len(records) <= total // (PACK_BYTES - PACK_BELOW) + 1
    for record in records:
        assert record.kind == kinds.TENSOR_STORED
        assert record.payload_length <= PACK_BYTES
        for number, draft in enumerate(record.named_drafts()):
            assert draft.offset % 64 == 0
            assert written(record, number) == values[draft.key[1:]].tobytes()
    assert sum(len(record.drafts) for record in records) == 1000
    assert sum(record.payload_length for record in records) <= total + 64 * 1000
    assert staging.pending is None


def test_a_tensor_is_packed_below_the_border_and_alone_from_it_on() -> None:
    staging, _ = new_staging()
    for name, size in ((b"a", PACK_BELOW - 1), (b"b", PACK_BELOW), (b"c", PACK_BELOW - 1)):
        put(staging, name, bytes(size))
    shapes = [[draft.key[1:] for draft in record.named_drafts()] for record in staging.records()]
    assert sorted(shapes) == [[b"a", b"c"], [b"b"]]


@pytest.mark.parametrize("size", [3, PACK_BELOW, SPILL])
def test_aliases_share_their_bytes(size: int) -> None:
    staging, _ = new_staging()
    put(staging, b"a", np.ones(size, "u1"), b"b", b"c")
    put(staging, b"b", np.zeros(size, "u1"))  # one of them goes its own way
    assert back(staging, keys.TENSORS + b"a") == back(staging, keys.TENSORS + b"c") == [1] * size
    assert back(staging, keys.TENSORS + b"b") == [0] * size
    records = staging.records()
    if size == SPILL:
        assert staging.pending is not None
        records = [placed.record for placed in staging.pending.placed]
    places = {
        draft.key[1:]: (id(record), draft.offset, draft.length)
        for record in records
        for draft in record.named_drafts()
    }
    assert places[b"a"] == places[b"c"] != places[b"b"]


# --- fixed values and spilling --------------------------------------------------------------------


@pytest.mark.parametrize("size", [10, PACK_BELOW, SPILL])
def test_fixed_values_do_not_follow_the_array(size: int) -> None:
    staging, _ = new_staging(fix=True)
    value = np.ones(size, "u1")
    put(staging, b"x", value)
    value[:] = 2
    assert back(staging, keys.TENSORS + b"x") == [1] * size


def test_without_fixing_large_values_are_not_copied() -> None:
    staging, _ = new_staging(fix=False)
    value = np.ones(PACK_BELOW, "u1")
    put(staging, b"x", value)
    (record,) = staging.records()
    assert np.shares_memory(np.frombuffer(record.payload[0], "u1"), value)


def test_spilled_bytes_are_in_the_pending_file_at_once() -> None:
    staging, fs = new_staging()
    put(staging, b"small", bytes(5))
    assert fs.list("pending") == []
    for name in (b"x", b"y"):
        put(staging, name, np.frombuffer(name * SPILL, "u1"))
    (file,) = fs.list("pending")
    assert staging.pending is not None
    for placed, letter in zip(staging.pending.placed, b"xy", strict=True):
        assert placed.record.payload == ()
        assert set(staging.pending.file.pread(SPILL, placed.payload)) == {letter}
    assert fs.open(f"pending/{file}", "r").size() >= 2 * SPILL
    assert len(staging.records()) == 1  # only what is not in the file yet
    staging.discard()
    staging.discard()
    assert fs.list("pending") == []


# --- changes without a payload --------------------------------------------------------------------


def test_changes_are_grouped_by_event_and_kept_within_the_limits() -> None:
    staging, _ = new_staging()
    large = pack_metadata({"text": "x" * 500_000})
    for number in range(20):
        staging.change(metadata_set(b"m%d" % number, large))
        staging.change(tensor_deleted(b"t%d" % number)[0])
    records = staging.records()
    assert {record.kind for record in records} == {kinds.METADATA_SET, kinds.TENSOR_DELETED}
    assert len(records) > 2
    for record in records:
        assert sum(len(draft.attr) for draft in record.named_drafts()) < fmt.BODY_BYTES_MAX // 8
        ended = record.kind == kinds.TENSOR_DELETED
        assert all((draft.flags == fmt.ENTRY_TOMBSTONE) == ended for draft in record.named_drafts())
    assert sum(len(record.drafts) for record in records) == 40


def test_more_entries_than_a_frame_holds_are_split() -> None:
    staging, _ = new_staging()
    for number in range(fmt.ENTRIES_MAX + 5):
        staging.change(KeyChange(kinds.TENSOR_DELETED, b"%d" % number, None))
    assert [len(record.drafts) for record in staging.records()] == [fmt.ENTRIES_MAX, 5]


def test_storing_behind_a_deletion_says_that_the_metadata_ended() -> None:
    staging, _ = new_staging()
    staging.change(*tensor_deleted(b"x"))
    put(staging, b"x", [1])
    assert back(staging, keys.METADATA + b"x") == pack_metadata({})
    assert [record.kind for record in staging.records()] == [
        kinds.TENSOR_STORED,
        kinds.METADATA_SET,
    ]


# --- through the database -------------------------------------------------------------------------


@pytest.fixture
def db() -> Iterator[mldb.MLDatabase]:
    with mldb.MLDatabase.on(MemoryFileSystem(), durability="os") as database:
        yield database


def test_a_batch_of_many_small_tensors_reads_back(
    db: mldb.MLDatabase, rng: np.random.Generator
) -> None:
    values = {f"layer{n // 7}/part{n % 7}": rng.random((n % 5, 3)) for n in range(2000)}
    with db.transaction() as txn:
        for name, value in values.items():
            txn.store_tensor(name, value, {"n": value.shape[0]})
    assert len(db) == 2000
    for name, value in values.items():
        np.testing.assert_array_equal(db[name], value)
        assert db.metadata(name) == {"n": value.shape[0]}
    stats = db.stats()
    assert stats["versions"] == 4000
    overhead = stats["bytes"] - sum(value.nbytes for value in values.values())
    assert overhead / 2000 < 300
    assert db.verify().ok
