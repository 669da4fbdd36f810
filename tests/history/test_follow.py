"""db.follow: every commit once, in order, whatever happens to the log meanwhile; cheap, ended."""

from __future__ import annotations

import itertools
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import mldb
from mldb.history.events import Rewound, TensorStored
from tests.support.compacting import compact_all


@pytest.fixture
def db(store_path: Path) -> Iterator[mldb.MLDatabase]:
    with mldb.open(store_path, durability="os", background_compaction=False) as opened:
        yield opened


def take(stream: Iterator[mldb.Event], count: int) -> list[mldb.Event]:
    return list(itertools.islice(stream, count))


def test_it_goes_on_over_seals_compactions_and_rewinds(store_path: Path) -> None:
    """A reader of its own follows a writer that seals, compacts and rewinds in between."""
    options: dict[str, Any] = {"durability": "os", "segment_bytes": 4096}
    with (
        mldb.open(store_path, background_compaction=False, **options) as db,
        mldb.open(store_path, mode="r") as reader,
    ):
        stream = reader.follow(poll=0.001, timeout=0.2)
        expected: list[int] = []
        for epoch in range(30):
            expected.append(int(db.store_tensor("w", np.full(64, epoch), epoch=epoch)))
            if epoch % 10 == 9:
                compact_all(db)
            if epoch == 14:
                expected.append(int(db.rewind(12)))
                db.store_tensor("w", np.zeros(3), epoch=14)
                expected.append(int(db.lsn))
        told = list(stream)
    assert [int(event.lsn) for event in told] == expected
    assert [type(event) for event in told].count(Rewound) == 1


def test_retention_leaves_what_a_follower_has_not_told(store_path: Path, db: Any) -> None:
    """A commit pruned before it was told would be a hole in what the follower sees."""
    db.retention.set(last=1)
    with mldb.open(store_path, mode="r") as reader:
        stream = reader.follow(poll=0.001, timeout=0.05)
        lsns = [int(db.store_tensor("w", np.full(9, n), epoch=n // 4)) for n in range(16)]
        compact_all(db)
        assert [int(event.lsn) for event in stream] == lsns
    compact_all(db)
    with pytest.raises(mldb.VersionGoneError):
        db.at(mldb.Lsn(lsns[0]))  # nothing holds it any more


def test_a_follower_that_is_dropped_holds_nothing(db: Any) -> None:
    db.retention.set(last=1)
    stream = db.follow(poll=0.001)
    first = db.store_tensor("w", 1, epoch=1)
    assert [event.lsn for event in take(stream, 1)] == [first]
    del stream
    for epoch in range(2, 6):
        db.store_tensor("w", epoch, epoch=epoch)
    compact_all(db)
    with pytest.raises(mldb.VersionGoneError):
        db.at(first)


def test_closing_in_another_thread_ends_a_waiting_follower(db: Any) -> None:
    stream = db.follow(poll=0.005)
    found: list[mldb.Event] = []
    thread = threading.Thread(target=lambda: found.extend(stream))
    thread.start()
    db.store_tensor("w", 1)
    while not found and thread.is_alive():
        time.sleep(0.002)
    db.close()
    thread.join(20)
    assert not thread.is_alive()
    assert [type(event) for event in found] == [TensorStored]


def test_a_forked_child_is_told_what_to_do(db: Any) -> None:
    db.store_tensor("w", 1)
    stream = db.follow(-1, poll=0.001)
    child = os.fork()
    if child == 0:
        try:
            list(stream)
        except mldb.ClosedError as error:
            os._exit(7 if "forked child" in str(error) else 8)
        os._exit(9)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
    assert len(take(stream, 1)) == 1


def test_waiting_looks_once_a_poll(db: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """An idle follower sleeps: so many looks as polls, and none in between."""
    looks: list[int] = [0]
    slept: list[float] = []
    head = db._log.head

    def look() -> Any:
        looks[0] += 1
        return head()

    monkeypatch.setattr(db._log, "head", look)
    monkeypatch.setattr(time, "sleep", slept.append)
    moments = itertools.count()
    monkeypatch.setattr(time, "monotonic", lambda: next(moments) * 0.1)
    assert list(db.follow(poll=0.25, timeout=3.0)) == []
    assert looks[0] <= 4 + len(slept)
    assert max(slept) == 0.25


@pytest.mark.parametrize("options", [{"poll": -1}, {"poll": float("nan")}, {"timeout": -0.5}])
def test_impossible_seconds_are_refused_at_the_call(db: Any, options: dict[str, float]) -> None:
    with pytest.raises(mldb.InvalidValueError, match="seconds"):
        db.follow(**options)
    with pytest.raises(mldb.InvalidTypeError, match="poll is a str"):
        db.follow(poll="1")


def test_an_unknown_start_is_refused_at_the_call(db: Any) -> None:
    with pytest.raises(mldb.MissingError):
        db.follow("no such tag")
