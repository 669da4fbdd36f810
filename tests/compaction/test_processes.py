"""Readers in other processes, with old snapshots and views, while a compactor loops and prunes."""

from __future__ import annotations

import select
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import mldb
from tests.support.compacting import compact_all, kept_of
from tests.support.patched import links
from tests.support.processes import Child, Line

OPTIONS: dict[str, Any] = {"segment_bytes": 60_000, "map_bytes": 256, "durability": "os"}


def value(epoch: int, name: int) -> np.ndarray[Any, Any]:
    return np.arange(300, dtype=np.int32) * (epoch + 1) + name


ROWS = 20


def patched(epoch: int) -> np.ndarray[Any, Any]:
    """A table of which one row after another is set to the number of the epoch, from 2 on."""
    rows = np.arange(ROWS)
    newest = epoch - (epoch - rows) % ROWS
    return np.repeat(np.where(newest > 1, newest, 0).astype(np.int32)[:, None], 300, axis=1)


def write(path: Path, line: Line) -> None:
    """Commit an epoch after another, and go back now and then."""
    with mldb.open(path, **OPTIONS) as db:
        epoch = db.epoch
        while not line_closed(line):
            epoch += 1
            with db.transaction(epoch) as txn:
                for name in range(3):
                    txn.store_tensor(f"t{name}", value(epoch, name), {"epoch": epoch})
                txn.update_tensor("rows", epoch % ROWS, np.full(300, epoch, np.int32))
            if epoch % 17 == 0:
                db.tag("latest", epoch)
    line.say("epochs", epoch)


def line_closed(line: Line) -> bool:
    """Whether the test said that it is enough."""
    return bool(select.select([line._reading], [], [], 0)[0])


def read(path: Path, seed: int, line: Line) -> None:
    """Hold snapshots, views and heads of all ages, and compare each with what was stored."""
    rng = np.random.default_rng(seed)
    held: list[tuple[mldb.Snapshot, int]] = []
    views: list[tuple[np.ndarray[Any, Any], int, int]] = []
    reads = gone = 0
    with mldb.open(path, mode="r", map_bytes=256) as db:
        while not line_closed(line):
            head = db.epoch
            epoch = int(rng.integers(max(head - 30, 1), head + 1))
            try:
                snapshot = db.at(epoch)
                held.append((snapshot, snapshot.epoch))
            except mldb.VersionGoneError:
                gone += 1
            for snapshot, at in held:
                name = int(rng.integers(3))
                array = snapshot[f"t{name}"]
                assert np.array_equal(array, value(at, name)), (at, name)
                assert snapshot.metadata(f"t{name}") == {"epoch": at}
                assert np.array_equal(snapshot["rows"], patched(at)), at
                part = snapshot.tensor("rows")[3:6]
                assert np.array_equal(part, patched(at)[3:6]), at
                views.append((array, at, name))
                reads += 1
            if len(held) > 6:
                held.pop(int(rng.integers(len(held))))[0].close()
            for array, at, name in views[-40:]:
                assert np.array_equal(array, value(at, name)), (at, name)
            del views[:-60]
            found = db["t1"]
            assert np.array_equal(found, value(int(found[1] - found[0]) - 1, 1))
            time.sleep(0.001)
    line.say("reads", reads, "gone", gone)


@pytest.mark.slow
@pytest.mark.parametrize(
    "seconds", [4.0, pytest.param(45.0, marks=pytest.mark.large)], ids=["short", "long"]
)
def test_readers_keep_what_they_hold_while_a_compactor_loops_and_prunes(
    store_path: Path, seconds: float, seed: int
) -> None:
    with mldb.open(store_path, **OPTIONS) as db:
        with db.transaction(1) as txn:
            for name in range(3):
                txn.store_tensor(f"t{name}", value(1, name), {"epoch": 1})
            txn["rows"] = patched(1)
        db.retention.set(last=4, every=50)
        with (
            Child(partial(write, store_path)) as writer,
            Child(partial(read, store_path, seed)) as first,
            Child(partial(read, store_path, seed + 1)) as second,
        ):
            begun, passes, dropped = time.monotonic(), 0, 0
            while time.monotonic() - begun < seconds:
                report = compact_all(db) if passes % 3 == 0 else db.compact(cold="none")
                passes += 1
                dropped += report.versions_dropped
                time.sleep(0.02)
            for child in (writer, first, second):
                child.say("enough")
            told = [child.hear() for child in (writer, first, second)]
            assert [child.wait() for child in (writer, first, second)] == [0, 0, 0]
        print(f"{passes} passes, {dropped} versions dropped, {told}")
        assert passes > 3
        assert dropped > 100
        assert all(int(words[1]) > 100 for words in told[1:])
        assert db.verify().ok
        db.compact(cold="none")
        assert db.verify().ok
        newest = range(db.epoch - 3, db.epoch + 1)
        for epoch in newest:
            assert np.array_equal(db.query_tensor("t2", as_of=epoch), value(epoch, 2))
            assert np.array_equal(db.query_tensor("rows", as_of=epoch), patched(epoch))
        assert max(links(db, "rows")) <= 64
        kept = kept_of(db)
    with mldb.open(store_path, mode="r") as again:
        assert kept_of(again) == kept
        assert again.verify().ok
