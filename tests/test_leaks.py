"""Stores that are closed, or just forgotten, leave nothing behind: no descriptor, no object.

A ring of references would keep the mapped segments, each with a descriptor, until the next full
collection. In a training process that may take minutes; a run of the whole test suite had more than
a thousand descriptors open.
"""

from __future__ import annotations

import gc
import os
import threading
import weakref
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import mldb

pytestmark = pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="needs /proc/self/fd")


@pytest.fixture(autouse=True)
def no_collector() -> Iterator[None]:
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def use(db: mldb.MLDatabase, epoch: int) -> None:
    for number in range(5):
        db.store_tensor(f"x{number}", np.full(30_000, epoch), epoch=epoch)
    with db.transaction() as txn:
        txn.store_tensor("y", txn["x1"])
    assert db.checkpoint({"w": np.ones(10)}, epoch=epoch, wait=False).result(30).epoch == epoch
    with db.at(epoch) as snapshot:
        assert snapshot["x1"][0] == epoch
    assert db["x2"][7] == epoch


def test_closed_stores_keep_no_descriptor_and_no_thread(store_path: Path) -> None:
    counts = []
    for epoch in range(8):
        with mldb.open(store_path, segment_entries=4) as db:
            use(db, epoch)
        counts.append((descriptors(), threading.active_count()))
    assert counts[-1] == counts[1], counts


def test_a_forgotten_store_goes_at_once(store_path: Path) -> None:
    counts = []
    for epoch in range(4):
        db = mldb.open(store_path, segment_entries=4)
        for number in range(5):
            db.store_tensor(f"x{number}", np.full(30_000, epoch), epoch=epoch)
        assert db["x2"][7] == epoch
        gone = weakref.ref(db)
        del db
        assert gone() is None
        counts.append(descriptors())
    assert counts[-1] == counts[1], counts


def test_an_array_outlives_its_store_and_then_frees_the_mapping(store_path: Path) -> None:
    before = descriptors()
    with mldb.open(store_path, map_bytes=0) as db:
        db["x"] = np.arange(100_000)
        array = db["x"]
    del db
    assert array.sum() == sum(range(100_000))
    assert descriptors() == before + 1
    del array
    assert descriptors() == before
