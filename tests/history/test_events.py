"""Events: what was done is told, in order, with where and when; and followed as it happens."""

from __future__ import annotations

import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import mldb
from mldb.history import events
from mldb.log.fs.memory import MemoryFileSystem

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def db(store_path: Path) -> Iterator[mldb.MLDatabase]:
    with mldb.open(store_path, durability="os") as database:
        yield database


def told(db: mldb.MLDatabase, *span: Any) -> list[tuple[str, Any]]:
    """Kind and name (or what stands for it) of each event."""
    found: list[tuple[str, Any]] = []
    for event in db.events(*span):
        what = getattr(event, "name", None) or getattr(event, "target", None)
        found.append((type(event).__name__, what))
    return found


def test_every_verb_tells_its_event(db: mldb.MLDatabase) -> None:
    lsn = db.store_tensor("x", np.zeros((2, 3), "f4"), {"k": 1}, epoch=2)
    db.set_metadata("x", {"k": 2})
    db.create_relationship("x", "y", "feeds_into", {"n": 1})
    db.delete_relationship("x", "y", "feeds_into")
    db.checkpoint({"w": np.zeros(3)}, epoch=3, step=7, name="best", metrics={"loss": 0.5})
    db.tag("t", lsn)
    db.untag("t")
    db.pin(lsn)
    db.unpin(lsn)
    db.delete_tensor("x")
    db.rewind(lsn)
    found = list(db.events())
    assert [type(event) for event in found] == [
        *(events.TensorStored, events.MetadataSet),
        *(events.RelationshipCreated, events.RelationshipDeleted),
        *(events.TensorStored, events.CheckpointTaken),
        *(events.TagSet, events.TagDeleted, events.PinSet, events.PinCleared),
        *(events.TensorDeleted, events.Rewound),
    ]
    assert found[0] == events.TensorStored(
        lsn, 2, db.at(lsn).time, "x", "<f4", (2, 3), 24, {"k": 1}
    )
    assert found[1:4] == [
        events.MetadataSet(*head(found[1]), "x", {"k": 2}),
        events.RelationshipCreated(*head(found[2]), "x", "y", "feeds_into", {"n": 1}),
        events.RelationshipDeleted(*head(found[3]), "x", "y", "feeds_into"),
    ]
    assert found[4] == events.TensorStored(*head(found[4]), "w", "<f8", (3,), 24, None)
    assert found[5] == events.CheckpointTaken(*head(found[4]), "best", 7, {"loss": 0.5})
    assert found[6:] == [
        events.TagSet(*head(found[6]), "t", lsn),
        events.TagDeleted(*head(found[7]), "t"),
        events.PinSet(*head(found[8]), lsn),
        events.PinCleared(*head(found[9]), lsn),
        events.TensorDeleted(*head(found[10]), "x"),
        events.Rewound(*head(found[11]), lsn),
    ]
    assert [event.epoch for event in found] == [2, 2, 2, 2, 3, 3, 3, 3, 3, 3, 3, 2]
    assert all(isinstance(event.lsn, mldb.Lsn) for event in found)
    assert all(event.time.tzinfo is UTC for event in found)
    lsns = [event.lsn for event in found]
    assert lsns == sorted(lsns)
    assert len(set(lsns)) == 11  # the checkpoint and its tensor are one commit
    for event in found:
        with db.at(event.lsn) as snapshot:
            assert (snapshot.epoch, snapshot.time) == (event.epoch, event.time)


def head(event: mldb.Event) -> tuple[mldb.Lsn, int, datetime]:
    return event.lsn, event.epoch, event.time


def test_a_batch_tells_the_last_write_of_each_name(db: mldb.MLDatabase) -> None:
    db["gone"] = 1
    with db.transaction(epoch=1) as txn:
        for number in range(3):
            txn["x"] = number
        txn.store_tensor("y", [1], {"k": 1})
        del txn["gone"]
        txn["brief"] = 1
        del txn["brief"]
    assert sorted(told(db, txn.lsn)) == [
        *(("MetadataSet", "y"), ("TensorDeleted", "brief"), ("TensorDeleted", "gone")),
        *(("TensorStored", "x"), ("TensorStored", "y")),
    ]
    assert {event.lsn for event in db.events(txn.lsn)} == {txn.lsn}


def test_the_range_is_closed_and_fixed_at_the_call(db: mldb.MLDatabase) -> None:
    lsns = [db.store_tensor(f"x{n}", n, epoch=n) for n in range(6)]
    db.tag("t", lsns[4])
    names = [f"x{n}" for n in range(6)]

    def named(*span: Any) -> list[str]:
        return [event.name for event in db.events(*span) if isinstance(event, events.TensorStored)]

    assert named() == names
    assert named(2, 4) == names[2:5]
    assert named(lsns[1], "t") == names[1:5]
    assert named(None, 0) == names[:1]
    assert named(None, -1) == []
    assert named(-1, 1) == names[:2]
    assert named(4, 2) == []
    late = db.events()
    db["late"] = 1
    assert "late" not in [getattr(event, "name", "") for event in late]
    db.rewind(1)
    assert named() == [*names, "late"]  # every lineage, in log order


def test_events_read_the_same_from_sealed_segments(store_path: Path) -> None:
    with mldb.open(store_path, durability="os", segment_entries=3) as db:
        for number in range(10):
            db.store_tensor(f"x{number % 4}", number, {"n": number}, epoch=number)
            if number == 5:
                db.rewind(3)
        before = list(db.events())
        assert db.stats()["segments"] > 3
    with mldb.open(store_path, mode="r") as db:
        assert list(db.events()) == before


@given(nanoseconds=st.integers(0, 4_000_000_000_000_000_000))
def test_commit_times_are_cut_to_microseconds(nanoseconds: int) -> None:
    fs = MemoryFileSystem()
    with mldb.MLDatabase.on(fs, durability="os") as db:
        fs.clock_ns, fs.tick_ns = nanoseconds, 0
        db["x"] = 1
        (event,) = db.events()
        delta = event.time - datetime(1970, 1, 1, tzinfo=UTC)
        micros = (delta.days * 86400 + delta.seconds) * 1_000_000 + delta.microseconds
        assert micros == nanoseconds // 1000
        assert event.time == db.history("x")[0].time == db.tensor("x").time == db.at().time
        assert int(db.query_tensor("x", as_of=event.time)) == 1  # what was told finds it again


# --- following ------------------------------------------------------------------------------------


def test_follow_yields_what_comes_after_its_start(db: mldb.MLDatabase) -> None:
    lsns = [db.store_tensor("x", n, epoch=n) for n in range(4)]
    later = db.follow(timeout=0.01, poll=0.001)
    since = db.follow(lsns[1], timeout=0.01, poll=0.001)
    everything = db.follow(-1, timeout=0.01, poll=0.001)
    db.store_tensor("y", 1)
    assert [(e.lsn, type(e).__name__) for e in later] == [(db.lsn, "TensorStored")]
    assert [e.lsn for e in since] == [*lsns[2:], db.lsn]
    assert [e.lsn for e in everything] == [*lsns, db.lsn]


def test_follow_wakes_for_another_thread_and_ends_with_the_store(db: mldb.MLDatabase) -> None:
    seen: list[str] = []

    stream = db.follow(poll=0.001)

    def watch() -> None:
        seen.extend(getattr(event, "name", "") for event in stream)

    started = db.follow(timeout=0.0, poll=0.001)
    thread = threading.Thread(target=watch)
    thread.start()
    for number in range(20):
        db[f"x{number}"] = number
    deadline = time.monotonic() + 5
    while len(seen) < 20 and time.monotonic() < deadline:
        time.sleep(0.001)
    db.close()
    thread.join(5)
    assert not thread.is_alive()
    assert seen == [f"x{number}" for number in range(20)]
    assert list(started) == []  # closed before it was asked: there is nothing to tell
    with pytest.raises(mldb.ClosedError):
        db.follow()


def test_readers_that_look_at_the_head_meanwhile_double_no_commit(db: mldb.MLDatabase) -> None:
    """A reader that finds the file longer than it knows leaves the commit to who writes it."""
    done = threading.Event()

    def look() -> None:
        while not done.is_set():
            assert len(db.history("x0")) <= 1

    threads = [threading.Thread(target=look) for _ in range(2)]
    for thread in threads:
        thread.start()
    for number in range(300):
        db[f"x{number}"] = number
    done.set()
    for thread in threads:
        thread.join()
    assert told(db) == [("TensorStored", f"x{number}") for number in range(300)]
    assert all(len(db.history(f"x{number}")) == 1 for number in range(300))


_FOLLOWER = """
    import sys
    import mldb

    db = mldb.open(sys.argv[1], mode="r")
    print("ready", flush=True)
    for event in db.follow(-1, poll=0.001, timeout=20):
        if event.name == "end":
            break
        print(event.name, event.epoch, int(db.query_tensor(event.name, as_of=event.lsn)[0]))
"""


def test_a_reading_process_follows_a_writing_one(store_path: Path) -> None:
    with mldb.open(store_path, segment_bytes=20_000) as db:
        follower = subprocess.Popen(
            [sys.executable, "-W", "error", "-c", textwrap.dedent(_FOLLOWER), str(store_path)],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert follower.stdout is not None
        assert follower.stdout.readline() == "ready\n"
        for epoch in range(60):
            db.store_tensor(f"x{epoch % 7}", np.full(200, epoch), epoch=epoch)
            if epoch % 20 == 19:
                with db.transaction() as txn:
                    txn["spilled"] = np.full(50_000, epoch)
        assert db.stats()["segments"] > 3
        db["end"] = 0
        out, err = follower.communicate(timeout=30)
    assert err == ""
    expected = []
    for epoch in range(60):
        expected.append(f"x{epoch % 7} {epoch} {epoch}")
        if epoch % 20 == 19:
            expected.append(f"spilled {epoch} {epoch}")
    assert out.splitlines() == expected
