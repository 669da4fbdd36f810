"""Sweeps over a real disk, of what the compiled module does: batches, reads of the past, rows.

A disk in memory is Python all through, and what lies in it is mapped otherwise than a file. Faults,
Ctrl-C and handlers come here as they do in ``test_fault_sweep``, ``test_interrupts`` and the tests
of interference; a usual run takes some of the places, a large one many more.
"""

from __future__ import annotations

import itertools
import logging
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import mldb
from mldb.log import native
from mldb.log.fs.memory import MemoryFileSystem
from mldb.log.fs.posix import OsFileSystem
from mldb.log.fs.protocol import FileSystem
from tests.crash import test_fault_sweep as faults
from tests.crash.test_interrupts import check_handle, run
from tests.support.faults import FaultFileSystem
from tests.support.interference_turns import Tracer
from tests.support.model import Verbs, value_of
from tests.support.parts import one_of, some_and_many

pytestmark = [
    pytest.mark.skipif(native.twin is None, reason=f"native is {native.status}"),
    pytest.mark.slow,
]

MANY = 40
"""Tensors of a batch: more than the encoder of few takes."""
EPOCHS = 4
OPTIONS: dict[str, Any] = {"lock_timeout": 0.05, "map_bytes": 4096, "segment_entries": 100}
IDS = np.random.default_rng(3).permutation(300)


@pytest.fixture(autouse=True)
def _quiet(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL, "mldb")


@pytest.fixture
def disks(tmp_path: Path) -> Iterator[OsFileSystem]:
    """Empty folders, as many as are asked for."""
    return (_disk(tmp_path / str(number)) for number in itertools.count())


def _disk(folder: Path) -> OsFileSystem:
    return OsFileSystem(OsFileSystem.prepare_root(str(folder), create=True))


def value(number: int, epoch: int) -> np.ndarray[Any, Any]:
    """What a tensor holds at an epoch: 4 KiB, so that some lie in one block of an index."""
    return np.full(1024, number * 10 + epoch, np.float32)


def batch(target: Verbs, epoch: int) -> None:
    """Many small tensors."""
    for number in range(MANY):
        target.store_tensor(f"n{number}", value(number, epoch), {"epoch": epoch})


def fill(fs: FileSystem) -> mldb.MLDatabase:
    """A store of batches in sealed segments and in the active one, with a lake."""
    db = mldb.MLDatabase.on(fs, durability="os", **OPTIONS)
    for epoch in range(1, EPOCHS + 1):
        with db.transaction(epoch=epoch) as txn:
            batch(txn, epoch)
    rows = np.random.default_rng(1).standard_normal((300, 8), np.float32)
    db.lake("l", dim=8).add_splats(rows, epoch=EPOCHS)
    return db


def read_all(db: mldb.MLDatabase) -> dict[Any, Any]:
    """Some tensors at every epoch, and the rows of the lake in another order."""
    found: dict[Any, Any] = {
        (number, epoch): value_of(db.query_tensor(f"n{number}", as_of=epoch))
        for epoch in range(1, EPOCHS + 1)
        for number in range(0, MANY, 7)
    }
    return found | {"rows": value_of(db.lake("l").get(IDS)["mu"])}


def expected() -> dict[Any, Any]:
    """What all of that is."""
    db = fill(MemoryFileSystem())
    found = read_all(db)
    db.close()
    return found


# --- something fails ------------------------------------------------------------------------------


def wider(number: int) -> Callable[[Verbs], None]:
    """The transactions of the sweep of faults, with a batch in each."""
    narrow = NARROW(number)

    def change(target: Verbs) -> None:
        narrow(target)
        if number not in faults.SINGLE:
            for place in range(8):
                target.store_tensor(f"batch/{place}", np.full(60 + place, number, np.int32))

    return change


NARROW = faults.transaction


@some_and_many("step", 83, 11)
def test_a_failing_call_is_an_error_of_mldb_and_loses_nothing(
    step: int, seed: int, disks: Iterator[OsFileSystem], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(faults, "transaction", wider)
    monkeypatch.setattr(faults, "MemoryFileSystem", lambda: next(disks))
    calls = faults.clean_calls()
    runs, wrong = 0, list[str]()
    places = [
        (kind, fault, at)
        for kind in sorted(set(faults.FAULTS) - faults.UNUSED)
        for fault in faults.FAULTS[kind]
        for at in range(1, calls[kind] + 1)
    ]
    for kind, fault, at in places[seed % step :: step]:
        runs += 1
        wrong += [f"{kind} {at}, {fault}: {item}" for item in faults.run(kind, fault, at)]
    print(f"{one_of(step)} of {len(places)}: {runs} runs")
    assert runs > 10
    assert not wrong, "\n".join(wrong)


@some_and_many("step", 5, 1)
def test_a_read_that_fails_is_whole_once_the_disk_is_well(
    step: int, seed: int, disks: Iterator[OsFileSystem]
) -> None:
    """Whatever was half verified, half decoded or half mapped is not taken for whole."""
    root = next(disks)
    fill(root).close()
    clean = FaultFileSystem(root)
    right = expected()
    with mldb.MLDatabase.on(clean, mode="r", **OPTIONS) as db:
        assert read_all(db) == right
    failed = 0
    for at in range(1 + seed % step, clean.calls["any"] + 1, step):
        fs = FaultFileSystem(root)
        fs.fail("any", at=at)
        try:
            db = mldb.MLDatabase.on(fs, mode="r", **OPTIONS)
        except mldb.MldbError:
            failed += 1
            continue
        with db:
            try:
                assert read_all(db) == right
            except mldb.MldbError:
                failed += 1
            fs.heal()
            assert read_all(db) == right, f"call {at}"
            assert db.verify().ok
    print(f"{one_of(step)} of {clean.calls['any']} calls, {failed} were told")
    assert failed > 2


# --- Ctrl-C ---------------------------------------------------------------------------------------


@some_and_many("stride", 47, 5)
def test_an_interrupted_batch_is_there_as_a_whole_or_not_at_all(
    stride: int, seed: int, disks: Iterator[OsFileSystem]
) -> None:
    def store(db: mldb.MLDatabase) -> None:
        with db.transaction(epoch=5) as txn:
            batch(txn, 5)

    outcomes = Counter[bool]()
    new = {f"n{number}": value(number, 5).tolist() for number in range(MANY)}
    number = 1 + seed % stride
    while True:
        fs = next(disks)
        db = mldb.MLDatabase.on(fs, durability="os", lock_timeout=0.05)
        db["a"] = [1]
        before = db.last_commit
        interrupt = run(store, db, number)
        stored = db.last_commit > before
        try:
            check_handle(db, fs, {"a": [1], **new} if stored else {"a": [1]})
        except Exception as error:
            raise AssertionError(f"interrupted at {interrupt.place or 'no place'}") from error
        if not interrupt.place:
            assert stored
            break
        outcomes[stored] += 1
        number += stride
    print(f"{one_of(stride)} of {number} places: {outcomes[True]} stored, {outcomes[False]} not")
    assert outcomes[False] > 5


@some_and_many("stride", 67, 7)
def test_an_interrupted_read_is_whole_when_it_is_asked_again(
    stride: int, seed: int, disks: Iterator[OsFileSystem]
) -> None:
    fs = next(disks)
    fill(fs).close()
    right = expected()
    number = 1 + seed % stride
    while True:
        db = mldb.MLDatabase.on(fs, mode="r", **OPTIONS)
        interrupt = run(read_all, db, number)
        assert read_all(db) == right, interrupt.place
        db.close()
        if not interrupt.place:
            break
        number += stride
    print(f"{one_of(stride)} of {number} places")
    assert number > 500, "hardly anything was interrupted"


# --- a handler on the same thread -----------------------------------------------------------------


@some_and_many("stride", 2503, 251)
@pytest.mark.parametrize("what", ["batch", "reads"])
def test_a_handler_in_the_middle_reads_and_stores(
    what: str, stride: int, seed: int, disks: Iterator[OsFileSystem]
) -> None:
    """It reads what is there, and stores or is refused; the call goes on as if nothing had been."""
    right = expected()
    did = Counter[str]()
    fs = next(disks)
    fill(fs).close()
    for number in itertools.count(1 + seed % stride, stride):
        db = mldb.MLDatabase.on(fs, durability="os", **OPTIONS)
        epoch = db.epoch
        met: list[str] = []

        def handle(place: str, db: mldb.MLDatabase = db, met: list[str] = met) -> None:
            assert value_of(db.query_tensor("n7", as_of=2)) == right[7, 2], place
            assert value_of(db.lake("l").get(IDS)["mu"]) == right["rows"], place
            try:
                db.store_tensor("handled", [len(place)])
                met.append("stored")
            except mldb.MldbError as error:
                met.append(type(error).__name__)

        def store(db: mldb.MLDatabase = db, epoch: int = epoch) -> None:
            with db.transaction(epoch=epoch + 1) as txn:
                batch(txn, epoch + 1)

        def read(db: mldb.MLDatabase = db) -> None:
            assert read_all(db) == right

        tracer = Tracer(number, handle)
        tracer.run(store if what == "batch" else read)
        did.update(met)
        if what == "batch":
            assert all(
                np.array_equal(db[f"n{place}"], value(place, epoch + 1)) for place in range(MANY)
            )
        assert read_all(db) == right
        assert ("handled" in db) == bool(did["stored"])
        db.close()
        if not met:
            break
    print(f"{one_of(stride)} of {number} byte codes: {dict(did)}")
    assert did["stored"] > 2
    with mldb.MLDatabase.on(fs) as db:
        assert db.verify().ok
