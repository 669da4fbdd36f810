"""Real processes on one real folder: they write, read, wait, fork and die beside each other."""

from __future__ import annotations

import itertools
import multiprocessing.reduction
import os
import random
import signal
import threading
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import mldb
from mldb.history.events import TensorStored
from mldb.log.fs.posix import OsFileSystem
from mldb.log.readers import registrations
from mldb.log.recovery import Recovery
from tests.support.logs import open_log
from tests.support.processes import Child, Line

WRITERS = 3


@pytest.fixture
def store(store_path: Path) -> Path:
    """A store that exists and is empty."""
    mldb.open(store_path).close()
    return store_path


# --- several writers ------------------------------------------------------------------------------


def write_blindly(path: Path, who: int, count: int, line: Line) -> None:
    db = mldb.open(path, durability="os", segment_entries=50)
    line.say("ready")
    line.hear()
    for number in range(count):
        before, epoch = db.lsn, db.epoch + (number % 4 == 0)
        try:
            lsn = db.store_tensor(f"{who}/{number}", [who, number], epoch=epoch)
        except mldb.EpochOrderError:
            lsn = db.store_tensor(f"{who}/{number}", [who, number])
        line.say(number, before, lsn)
    db.close()


def test_commits_of_processes_that_write_at_once_are_all_there_in_one_order(store: Path) -> None:
    count = 200
    with mldb.open(store, mode="r") as watcher:
        children = [Child(partial(write_blindly, store, who, count)) for who in range(WRITERS)]
        for child in children:
            assert child.hear() == ["ready"]
        for child in children:
            child.say("go")
        stored: dict[int, str] = {}
        for who, child in enumerate(children):
            with child:
                last = 0
                for number, before, lsn in child.rest():
                    assert max(last, int(before)) < int(lsn), "a later commit has a higher LSN"
                    assert int(lsn) not in stored, "two processes were given one LSN"
                    last = int(lsn)
                    stored[last] = f"{who}/{number}"
                assert child.wait() == 0
        with mldb.open(store) as db:
            for handle in (watcher, db):
                assert sorted(handle) == sorted(
                    f"{who}/{number}" for who in range(WRITERS) for number in range(count)
                )
            events = list(db.events())
            assert [int(event.lsn) for event in events] == sorted(stored)
            epochs = [event.epoch for event in events]
            assert epochs == sorted(epochs)
            assert epochs[-1] > 1
            for commit, name in stored.items():
                assert db.tensor(name).lsn == commit
                assert "/".join(map(str, db[name])) == name
            assert db.stats()["segments"] > 3
            assert db.verify().ok


def append(ticket: int, txn: Any) -> Any:
    txn["count"] = int(txn["count"]) + 1
    txn["order"] = np.append(txn["order"], ticket)
    return txn


def increment(path: Path, who: int, threads: int, count: int, line: Line) -> None:
    db = mldb.open(path, durability="os", segment_entries=100)
    line.hear()

    def work(first: int) -> None:
        for ticket in range(first, first + count):
            line.say(ticket, db.transact(partial(append, ticket), retries=100_000).lsn)

    workers = [
        threading.Thread(target=work, args=(1000 * who + 100 * number,))
        for number in range(threads)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    db.close()


def test_a_counter_that_processes_and_threads_increment_loses_no_update(store: Path) -> None:
    """The list that grows with the counter is in the order of the LSNs: strictly serializable."""
    threads, count = 2, 60
    with mldb.open(store) as db:
        with db.transaction() as txn:
            txn["count"] = 0
            txn["order"] = np.zeros(0, dtype=np.int64)
        children = [Child(partial(increment, store, who, threads, count)) for who in range(WRITERS)]
        for child in children:
            child.say("go")
        tickets: dict[int, int] = {}
        for child in children:
            with child:
                tickets |= {int(lsn): int(ticket) for ticket, lsn in child.rest()}
                assert child.wait() == 0
        assert int(db["count"]) == WRITERS * threads * count
        assert db["order"].tolist() == [tickets[lsn] for lsn in sorted(tickets)]


# --- killed writers -------------------------------------------------------------------------------

KILLS = 40
SMALL_FILES: dict[str, Any] = {"spill_bytes": 600_000, "segment_bytes": 2 << 20}


def value(number: int, name: str) -> np.ndarray[Any, Any]:
    """What commit *number* stores: small, packed, with a payload of its own, or spilled."""
    size = (4, 4, 4, 2_000, 40_000, 4, 100_000)[number % 7]
    return np.arange(size) * (number + 1) + len(name)


def contents(db: mldb.MLDatabase, as_of: Any = None) -> dict[str, Any]:
    return {name: db.query_tensor(name, as_of=as_of).tolist() for name in db.names(as_of=as_of)}


def expected(number: int) -> dict[str, Any]:
    if number < 0:
        return {}
    return {name: value(number, name).tolist() for name in ("a", "bb", "ccc")}


def commit_for_ever(path: Path, options: dict[str, Any], first: int, line: Line) -> None:
    db = mldb.open(path, **options)
    for number in itertools.count(first):
        with db.transaction(epoch=number) as txn:
            for name in ("a", "bb", "ccc"):
                txn[name] = value(number, name)
        line.say(number, txn.lsn)


def newest(db: mldb.MLDatabase) -> int:
    """The number of the newest commit."""
    return db.epoch if len(db) else -1


@pytest.mark.slow
@pytest.mark.parametrize("durability", ["os", "commit"])
def test_what_a_killed_process_acknowledged_is_there_and_nothing_in_part(
    store: Path, seed: int, durability: str
) -> None:
    """Kills at any moment; the next writer goes on at once, an open reader sees what is there."""
    rng = random.Random(seed)
    options = {"durability": durability, **SMALL_FILES}
    reached, repairs = -1, 0
    with mldb.open(store, mode="r") as reader:
        for turn in range(KILLS):
            acknowledged: dict[int, int] = {}
            with Child(partial(commit_for_ever, store, options, reached + 1)) as child:
                for _ in range(rng.randrange(8)):
                    number, lsn = map(int, child.hear())
                    acknowledged[number] = lsn
                time.sleep(rng.random() * 0.003)
                child.kill()
                acknowledged |= {int(number): int(lsn) for number, lsn in child.rest()}
                assert child.wait() == -signal.SIGKILL
            least = max(acknowledged, default=reached)
            with mldb.open(store, **options) as db:
                found = newest(db)
                assert least <= found <= least + 1, f"turn {turn}: a commit is lost or made up"
                assert contents(db) == expected(found)
                for number, lsn in acknowledged.items():
                    assert contents(db, mldb.Lsn(lsn)) == expected(number)
                assert db.recovery.dropped_transactions <= 1
                repairs += db.recovery != Recovery()
                if turn % 8 == 7:
                    assert db.verify().problems == ()
            assert contents(reader) == expected(found)
            reached = found
    print(f"{KILLS} kills, {reached + 1} commits, {repairs} repairs")
    with mldb.open(store) as db:
        history = [version.epoch for version in db.history("a")]
        assert history == list(range(reached + 1)), "every commit once and in order"


def hold_the_lock(path: Path, line: Line) -> None:
    """Stop in the middle of a commit, with the commit lock held."""

    def never(view: object) -> Any:
        line.say("held")
        signal.pause()

    open_log(OsFileSystem(path)).commit([], never)


def test_killing_the_holder_of_the_lock_lets_the_others_go_on(store: Path, seed: int) -> None:
    rng = random.Random(seed)
    with mldb.open(store, lock_timeout=50) as db:
        for turn in range(20):
            with Child(partial(hold_the_lock, store)) as child:
                assert child.hear() == ["held"]
                waiting = threading.Thread(target=db.store_tensor, args=("a", turn))
                waiting.start()
                waiting.join(rng.random() * 0.01)
                assert waiting.is_alive(), "the lock was not held"
                child.kill()
                killed = time.monotonic()
                waiting.join(30)
                assert time.monotonic() - killed < 5
            assert int(db["a"]) == turn
        assert len(db.history("a")) == 20


def test_a_lock_that_is_held_for_too_long_names_the_process_that_holds_it(store: Path) -> None:
    with Child(partial(hold_the_lock, store)) as child, mldb.open(store, lock_timeout=0.05) as db:
        assert child.hear() == ["held"]
        with pytest.raises(mldb.LockedError, match=rf"process {child.pid} on .* 0\.05 s"):
            db["a"] = 1
        assert len(db) == 0
        child.kill()
        child.wait()
        db["a"] = 2
        assert int(db["a"]) == 2


# --- readers --------------------------------------------------------------------------------------


def answer(path: Path, line: Line) -> None:
    """Read at the head and in one old snapshot whenever asked."""
    db = mldb.open(path, mode="r")
    with db.at(None) as snapshot:
        old = snapshot["a"]
        for _ in line.rest():
            line.say(int(db["a"][0]), int(snapshot["a"][0]), int(old[0]), len(snapshot), db.lsn)


def test_a_reader_sees_the_commits_of_another_process_and_keeps_its_snapshot(store: Path) -> None:
    with mldb.open(store, segment_entries=5) as db:
        db["a"] = np.zeros(50_000)
        with Child(partial(answer, store)) as child:
            for turn in range(1, 25):
                child.say("now")
                now, kept, array, names, lsn = map(int, child.hear())
                assert (now, kept, array, names) == (turn - 1, 0, 0, 1)
                assert lsn == db.lsn
                db.store_tensor("a", np.full(50_000, turn), epoch=turn)
                db[f"b{turn}"] = turn
                if turn == 12:
                    del db["a"]
                    db["a"] = np.full(50_000, turn)


def write_and_die(path: Path, who: int, count: int, line: Line) -> None:
    db = mldb.open(path, durability="os")
    line.hear()
    for number in range(count):
        db[f"{who}/{number}"] = number
    line.say("done")
    signal.pause()


def test_following_meets_every_commit_of_other_processes_once_and_in_order(store: Path) -> None:
    count = 30
    with mldb.open(store, mode="r") as db:
        following = db.follow(timeout=30, poll=0.002)
        children = [Child(partial(write_and_die, store, who, count)) for who in range(2)]
        for child in children:
            child.say("go")
        events = list(itertools.islice(following, 2 * count))
        for child in children:
            with child:
                assert child.hear() == ["done"]
        assert list(db.follow(timeout=0.01, poll=0.002)) == []
        assert [event.lsn for event in events] == sorted({event.lsn for event in events})
        names = [event.name for event in events if isinstance(event, TensorStored)]
        assert sorted(names) == sorted(f"{who}/{n}" for who in range(2) for n in range(count))
        for who in range(2):
            own = [name for name in names if name.startswith(f"{who}/")]
            assert own == [f"{who}/{number}" for number in range(count)]


def spill_and_wait(path: Path, line: Line) -> None:
    db = mldb.open(path, spill_bytes=1000)
    with db.at(None), db.transaction() as txn:
        txn["large"] = np.zeros(20_000)
        line.say(db.lsn)
        signal.pause()


def pending(path: Path) -> list[str]:
    return sorted(os.listdir(path / "pending"))


def test_what_dead_processes_registered_is_removed_by_the_next_that_writes(store: Path) -> None:
    """A live one is left alone: what it reads stays needed, what it spilled is not swept away."""
    fs = OsFileSystem(store)
    with mldb.open(store) as db:
        db["a"] = 1
    with Child(partial(spill_and_wait, store)) as child:
        lsn = int(child.hear()[0])
        for name in ("b", "c"):
            with mldb.open(store) as db:
                db[name] = 1
            [found] = registrations(fs)
            assert (found.pid, found.host, found.lowest) == (child.pid, os.uname().nodename, lsn)
            assert [name.split("-")[0] for name in pending(store)] == [found.name]
        child.kill()
        child.wait()
    assert len(os.listdir(store / "readers")) == 1
    with mldb.open(store) as db:
        db["d"] = 1
    assert registrations(fs) == []
    assert (os.listdir(store / "readers"), pending(store)) == ([], [])
    with mldb.open(store) as db:
        assert sorted(db) == ["a", "b", "c", "d"]


# --- forks ----------------------------------------------------------------------------------------


def test_a_handle_is_refused_in_a_forked_child_which_opens_its_own(store: Path) -> None:
    with mldb.open(store) as db, db.at(None):
        db["a"] = np.arange(50_000)
        array = db["a"]
        readers = registrations(OsFileSystem(store))
        assert len(readers) == 1

        def act(line: Line) -> None:
            for use in (
                lambda: db["a"],
                lambda: db.store_tensor("b", 1),
                db.transaction,
                lambda: db.at(None),
                lambda: db.checkpoint({}, epoch=1),
                db.stats,
                db.sync,
            ):
                with pytest.raises(mldb.ClosedError) as info:
                    use()
                for part in (str(os.getppid()), str(os.getpid()), f"mldb.open({str(store)!r})"):
                    assert part in str(info.value)
            assert array.tolist() == list(range(50_000))  # a view that was taken stays valid
            db.close()
            with mldb.open(db.path) as own:
                own["from the child"] = 2
                assert own["a"].tolist() == array.tolist()
            line.say("done")

        with Child(act) as child:
            assert child.hear() == ["done"]
            assert child.wait() == 0
        assert registrations(OsFileSystem(store)) == readers
        db["b"] = int(db["from the child"])
        assert db["a"].tolist() == array.tolist()
        assert sorted(db) == ["a", "b", "from the child"]
        assert db.verify().ok


def test_a_fork_while_a_thread_commits_leaves_both_processes_able_to_write(store: Path) -> None:
    """A lock copied in its locked state into the child would be locked there for ever."""
    with mldb.open(store, durability="os", lock_timeout=20) as db:
        stop = threading.Event()

        def commit() -> None:
            for number in itertools.count():
                db["busy"] = number
                if stop.is_set():
                    return

        def act(line: Line) -> None:
            with mldb.open(store, durability="os", lock_timeout=20) as own:
                own[f"child {os.getpid()}"] = 1
            line.say(os.getpid())

        thread = threading.Thread(target=commit)
        thread.start()
        born = []
        try:
            for _ in range(10):
                with Child(act) as child:
                    born += child.hear()
                    assert child.wait() == 0
        finally:
            stop.set()
            thread.join()
        assert sorted(db) == sorted(["busy", *(f"child {pid}" for pid in born)])
        assert len(born) == 10


def test_a_handle_does_not_travel_and_the_message_says_what_does(store: Path) -> None:
    with mldb.open(store) as db:
        for thing in (db, {"db": db}, partial(print, db)):
            with pytest.raises(mldb.InvalidTypeError, match=r"send its path.*mldb\.open") as info:
                multiprocessing.reduction.ForkingPickler.dumps(thing)
            assert repr(str(store)) in str(info.value)


# --- Ctrl-C ---------------------------------------------------------------------------------------

INTERRUPTS = 150


def interrupt_commits(path: Path, durability: Any, seed: int, line: Line) -> None:
    """Commit with a timer that interrupts at any moment, and look at the outcome each time."""
    rng = random.Random(seed)

    def interrupt(signal_number: int, frame: Any) -> None:
        raise KeyboardInterrupt

    signal.signal(signal.SIGALRM, interrupt)
    db = mldb.open(path, durability=durability, lock_timeout=1, segment_entries=40)
    other = mldb.open(path, mode="r")
    usual, stored = 0.002, 0
    for number in range(INTERRUPTS):
        before, began = db.last_commit, time.monotonic()
        interrupted = False
        try:
            signal.setitimer(signal.ITIMER_REAL, 1e-6 + rng.random() * usual)
            try:
                with db.transaction(epoch=number) as txn:
                    txn["a"], txn["b"] = np.full(20, number), number
                usual = 0.9 * usual + 0.1 * (time.monotonic() - began)
            finally:
                signal.setitimer(signal.ITIMER_REAL, 0)
        except KeyboardInterrupt:
            interrupted = True
        happened = db.last_commit > before
        assert happened or interrupted
        stored = number if happened else stored
        for handle in (db, other):
            if len(handle):
                assert handle["a"].tolist() == [stored] * 20
                assert int(handle["b"]) == stored
            assert handle.lsn == db.last_commit
        line.say(int(interrupted), int(happened))
    assert db.verify().problems == ()
    db.close()


@pytest.mark.parametrize("durability", ["os", "commit"])
def test_ctrl_c_at_any_moment_leaves_a_store_whose_last_commit_tells_the_outcome(
    store: Path, seed: int, durability: str
) -> None:
    with Child(partial(interrupt_commits, store, durability, seed)) as child:
        outcomes = [(int(interrupted), int(done)) for interrupted, done in child.rest()]
        assert child.wait() == 0
    assert len(outcomes) == INTERRUPTS
    assert sum(interrupted for interrupted, _ in outcomes) > INTERRUPTS // 10
    with mldb.open(store) as db:
        assert len(db.history("a")) == sum(done for _, done in outcomes)
        assert db.verify().ok
