"""What is called durable is: whoever shares a sync that fails, and whoever's sync it was."""

from __future__ import annotations

import contextlib
import threading
import time
from typing import Any

import pytest

from mldb.errors import ClosedError, LockedError, MldbError, StorageIOError
from mldb.log import format as fmt
from mldb.log.fs.memory import MemoryFileSystem
from mldb.log.fs.protocol import File
from mldb.log.log import Log
from mldb.log.readers import READERS, registrations
from mldb.log.syncing import Syncing
from mldb.log.verify import verify
from tests.support.faults import FaultFileSystem
from tests.support.hooked import Hooked
from tests.support.logs import content, open_log, read, store
from tests.support.threads import PATIENCE_SECONDS

DURABLE = b"\x01durable"


def log_on(fs: Any, durability: Any = "commit", lock_timeout: float = 0.0) -> Log:
    return open_log(fs, durability=durability, lock_timeout=lock_timeout)


class Held(FaultFileSystem):
    """The next sync waits until it is let go, while ``armed``."""

    def __init__(self, inner: MemoryFileSystem) -> None:
        super().__init__(inner)
        self.armed = False
        self.entered, self.go = threading.Event(), threading.Event()

    def sync(self, file: File) -> None:
        """Wait, then sync or fail."""
        if self.armed and file.name.startswith("segments/"):
            self.armed = False
            self.entered.set()
            assert self.go.wait(PATIENCE_SECONDS)
        super().sync(file)


# --- threads that share a sync --------------------------------------------------------------------


@pytest.mark.parametrize("effect", ["nothing", "drop"])
@pytest.mark.parametrize("count", [1, 4])
def test_who_waits_for_a_sync_that_fails_is_never_told_that_its_commit_is_stored(
    effect: Any, count: int
) -> None:
    """The threads behind it were told so: they synced the next segment, which has none of it."""
    fs = MemoryFileSystem()
    fault = Held(fs)
    log = log_on(fault, lock_timeout=30)
    store(log, DURABLE, b"1")
    known = log.head().commit.lsn
    told: list[int] = []
    errors: list[MldbError] = []

    def work(number: int) -> None:
        try:
            told.append(store(log, b"\x01%d" % number, b"2"))
        except MldbError as error:
            errors.append(error)

    fault.armed = True
    fault.fail("sync", effect=effect)
    threads = [threading.Thread(target=work, args=(0,), daemon=True)]
    threads[0].start()
    assert fault.entered.wait(PATIENCE_SECONDS)
    for number in range(1, count + 1):
        threads.append(threading.Thread(target=work, args=(number,), daemon=True))
        threads[-1].start()
    deadline = time.monotonic() + PATIENCE_SECONDS
    while log.state.view.commit.lsn < known + 2 * (count + 1):
        assert time.monotonic() < deadline, "not all of them have written"
        time.sleep(0.001)
    fault.go.set()
    for thread in threads:
        thread.join(PATIENCE_SECONDS)
        assert not thread.is_alive()
    assert told == []
    assert len(errors) == count + 1
    assert all(type(error) is StorageIOError and not error.retryable for error in errors)
    assert sum("closed behind" in str(error) for error in errors) == 1, "one tried"
    with pytest.raises(ClosedError, match="since an fsync failed"):
        store(log, b"\x01more", b"3")
    for other in (log, open_log(fs, "r"), open_log(fs)):
        assert content(other) == {DURABLE: b"1"}
    assert verify(open_log(fs, "r")).ok


def test_threads_that_share_a_sync_that_works_are_told_by_one() -> None:
    fs = MemoryFileSystem()
    fault = Held(fs)
    log = log_on(fault, lock_timeout=30)
    store(log, DURABLE, b"1")
    known = log.head().commit.lsn
    told: list[int] = []
    fault.calls.clear()
    fault.armed = True
    threads = [
        threading.Thread(
            target=lambda number=number: told.append(store(log, b"\x01%d" % number, b"2")),
            daemon=True,
        )
        for number in range(6)
    ]
    threads[0].start()
    assert fault.entered.wait(PATIENCE_SECONDS)
    for thread in threads[1:]:
        thread.start()
    deadline = time.monotonic() + PATIENCE_SECONDS
    while log.state.view.commit.lsn < known + 12:
        assert time.monotonic() < deadline
        time.sleep(0.001)
    assert told == [], "told before the sync was over"
    fault.go.set()
    for thread in threads:
        thread.join(PATIENCE_SECONDS)
    assert sorted(told) == [known + 2 * number for number in range(1, 7)]
    assert fault.calls["sync"] == 2, "one that was under way, one for all who came meanwhile"


# --- a failure that cannot be cleaned up ----------------------------------------------------------


@pytest.mark.parametrize("durability", ["commit", "os"])
def test_a_failed_sync_is_not_forgotten_when_the_commit_lock_is_not_to_be_had(
    durability: Any,
) -> None:
    """It was: a LockedError said that nothing was stored, and the next sync acknowledged all."""
    fs = MemoryFileSystem()
    fault = FaultFileSystem(fs)
    log = log_on(fault, "os")
    store(log, DURABLE, b"1")
    log.sync()
    lsn = store(log, b"\x01later", b"2")
    other = fs.lock("LOCK")
    assert other.try_acquire()
    fault.fail("sync")
    with pytest.raises(StorageIOError, match=rf"commit {lsn} is stored is not known") as info:
        log.sync()
    assert not isinstance(info.value, LockedError)
    assert not info.value.retryable
    synced = fault.calls["sync"]
    other.close()
    for _ in range(2):
        with pytest.raises(ClosedError):
            store(log, b"\x01more", b"3")
        with pytest.raises(StorageIOError, match="not known"):
            log.sync()
    log.close()
    assert fault.calls["sync"] == synced, "fsync is never tried again"
    assert max(reader.acknowledged for reader in registrations(fs)) < lsn
    again = log_on(fs, durability)
    store(again, b"\x01more", b"4")
    assert content(again).items() >= {DURABLE: b"1", b"\x01more": b"4"}.items()
    assert verify(again).ok


class Worsening(FaultFileSystem):
    """Once a sync failed, the n-th call behind it fails as well, and all that follow."""

    behind = 0

    def raise_fault(self, fault: Any, kind: str, name: str) -> None:
        """Raise, after getting worse."""
        if kind == "sync" and self.behind:
            self.fail("any", at=self.behind, forever=True)
            self.behind = 0
        super().raise_fault(fault, kind, name)


def test_a_failure_while_a_failure_is_cleaned_up_is_told_and_leaves_the_store_whole() -> None:
    told = []
    for number in range(1, 200):
        fs = MemoryFileSystem()
        fault = Worsening(fs)
        log = log_on(fault, "os")
        store(log, DURABLE, b"1")
        log.sync()
        store(log, b"\x01later", b"2")
        fault.behind = number
        fault.fail("sync")
        with pytest.raises(StorageIOError, match="closed for writing") as info:
            log.sync()
        told.append("later commits are not stored" in str(info.value))
        assert told[-1] or "not known" in str(info.value)
        fault.heal()
        with pytest.raises(ClosedError):
            store(log, b"\x01more", b"3")
        fs.kill()
        again = open_log(fs)
        assert content(again).items() >= {DURABLE: b"1"}.items()
        assert again.recovery.dropped_bytes == 0
        store(again, b"\x01more", b"4")
        assert verify(again).ok
        if told[-1]:
            assert content(again) == {DURABLE: b"1", b"\x01more": b"4"}
            break
    assert len(told) > 20


# --- between processes ----------------------------------------------------------------------------


@pytest.mark.parametrize("inside", ["the one that commits", "the one that fails"])
@pytest.mark.parametrize("effect", ["nothing", "drop"])
def test_what_one_process_acknowledged_is_kept_by_the_other_whose_sync_fails(
    inside: str, effect: Any
) -> None:
    """A's sync fails at every call of B's commit, and B commits at every call of A's clean-up.

    A closed the segment behind its own mark and dropped what B had acknowledged in it; B, whose
    sync came right behind, acknowledged by syncing the next file.
    """
    outcomes = set()
    number = 0
    while True:
        number += 1
        fs = MemoryFileSystem()
        a_fs, b_fs = Hooked(fs), Hooked(fs)
        a, b = log_on(a_fs, "os"), log_on(b_fs)
        store(b, DURABLE, b"1")
        store(a, b"\x01a", b"2")
        told: list[int] = []
        failures: list[MldbError] = []
        a_fs.fail("sync", effect=effect)

        def fail(a: Log = a, failures: list[MldbError] = failures) -> None:
            try:
                a.sync()
            except MldbError as problem:
                failures.append(problem)

        def commit(b: Log = b, told: list[int] = told) -> None:
            with contextlib.suppress(LockedError, StorageIOError):
                told.append(store(b, b"\x01b", b"3"))

        if inside == "the one that commits":
            b_fs.at(number, fail)
            commit()
            happened = b_fs.happened
        else:
            a_fs.at(number, commit)
            fail()
            happened = a_fs.happened
        if not happened:
            break
        assert [type(error) for error in failures] == [StorageIOError], number
        expected = {DURABLE: b"1"} | ({b"\x01b": b"3"} if told else {})
        for log in (b, open_log(fs, "r")):
            assert content(log).items() >= expected.items(), (number, happened)
        with pytest.raises(ClosedError):
            store(a, b"\x01more", b"4")
        outcomes.add((bool(told), b"\x01b" in content(b)))
        fs.kill()
        again = open_log(fs)
        assert content(again).items() >= expected.items(), (number, happened)
        store(again, b"\x01more", b"4")
        assert verify(again).ok
    assert number > 12
    assert (True, True) in outcomes
    assert (True, False) not in outcomes
    assert len(outcomes) > 1, "the order never mattered"


@pytest.mark.parametrize("order", ["claimed first", "closed first"])
def test_between_its_sync_and_its_word_a_process_looks_whether_the_segment_was_closed(
    order: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Either the claim is read by who closes, or the closing is seen by who is about to claim."""
    fs = MemoryFileSystem()
    a_fs = FaultFileSystem(fs)
    a, b = log_on(a_fs, "os"), log_on(fs)
    store(b, DURABLE, b"1")
    store(a, b"\x01a", b"2")
    a_fs.fail("sync")
    acknowledge = b.registration.acknowledge

    def in_between(lsn: int) -> None:
        if order == "claimed first":
            acknowledge(lsn)
        with pytest.raises(StorageIOError, match="closed behind commit"):
            a.sync()
        if order == "closed first":
            acknowledge(lsn)

    monkeypatch.setattr(b.registration, "acknowledge", in_between)
    if order == "claimed first":
        lsn = store(b, b"\x01b", b"3")
        assert content(b) == {DURABLE: b"1", b"\x01a": b"2", b"\x01b": b"3"}
        assert b.head().commit.lsn == lsn
    else:
        with pytest.raises(
            StorageIOError, match=r"is not stored: another process .*store it again"
        ):
            store(b, b"\x01b", b"3")
        assert content(b) == {DURABLE: b"1"}
    monkeypatch.undo()
    known = content(b)
    store(b, b"\x01again", b"4")
    fs.kill()
    again = open_log(fs)
    assert content(again) == known | {b"\x01again": b"4"}
    assert verify(again).ok


def test_a_claim_that_cannot_be_written_down_is_no_acknowledgement() -> None:
    """The commit may be there; but nobody else would know that somebody was told."""
    fs = MemoryFileSystem()
    fault = FaultFileSystem(fs)
    log = log_on(fault)
    store(log, DURABLE, b"1")
    fault.fail("pwritev", at=2)  # the first one is the batch
    with pytest.raises(StorageIOError, match=r"written and synced.*not known.*last_commit"):
        store(log, b"\x01a", b"2")
    lsn = store(log, b"\x01b", b"3")
    assert [reader.acknowledged for reader in registrations(fs)] == [lsn]
    assert content(open_log(fs, "r")) == {DURABLE: b"1", b"\x01a": b"2", b"\x01b": b"3"}


# --- claims of the dead ---------------------------------------------------------------------------


def test_what_a_dead_process_acknowledged_is_kept_by_who_closes_the_segment() -> None:
    """It claimed in its registration, not in a later commit: the log does not say it."""
    fs = MemoryFileSystem()
    dying, a_fs = FaultFileSystem(fs), FaultFileSystem(fs)
    b, a = log_on(dying), log_on(a_fs, "os")
    store(a, b"\x01a", b"1")
    claimed = store(b, DURABLE, b"2")
    dying.kill()
    lost = store(a, b"\x01lost", b"3")
    a_fs.fail("sync", effect="nothing")
    with pytest.raises(StorageIOError, match=f"behind commit {claimed},"):
        a.sync()
    assert content(a) == {b"\x01a": b"1", DURABLE: b"2"}
    again = open_log(fs)
    assert content(again) == {b"\x01a": b"1", DURABLE: b"2"}
    assert store(again, b"\x01new", b"4") > lost


def test_the_registration_of_the_dead_goes_only_once_the_log_says_what_it_claims() -> None:
    fs = MemoryFileSystem()
    dying = FaultFileSystem(fs)
    b = log_on(dying)
    claimed = store(b, DURABLE, b"1")
    name = b.registration.name
    dying.kill()
    log = log_on(fs, "os")
    log.pending_segment().discard()  # sweeps first
    assert log.sequencer.syncing.logged < claimed
    assert name in fs.list(READERS)
    other = log_on(fs, "os")
    store(other, b"\x01a", b"2")
    other.close()  # its mark says so, and it sweeps
    assert name not in fs.list(READERS)
    assert log_on(fs).sequencer.syncing.logged > claimed


def test_a_clean_close_takes_its_claim_along_and_a_failed_one_leaves_it() -> None:
    fs = MemoryFileSystem()
    fault = FaultFileSystem(fs)
    log = log_on(fault)
    store(log, DURABLE, b"1")
    log.close()
    assert fs.list(READERS) == []
    log = log_on(fault)
    lsn = store(log, b"\x01a", b"2")
    fault.fail("link")  # the manifest with the mark
    with pytest.raises(StorageIOError):
        log.close()
    [left] = registrations(fs)
    assert left.acknowledged == lsn
    assert fs.lock(f"{READERS}/{left.name}").try_acquire(), "as that of a dead process"


# --- what is known --------------------------------------------------------------------------------


def test_what_is_durable_already_is_not_synced_again() -> None:
    fs = MemoryFileSystem()
    fault = FaultFileSystem(fs)
    log, other = log_on(fault), log_on(fs)
    store(log, DURABLE, b"1")
    lsn = store(other, b"\x01other", b"2")
    fault.calls.clear()
    log.sync()
    assert fault.calls["sync"] == 1, "the other's commit may be synced by nobody else that we know"
    assert log.sequencer.syncing.durable_lsn == lsn
    for _ in range(3):
        log.sync()
    assert fault.calls["sync"] == 1
    other.close()
    reader_fs = FaultFileSystem(fs)
    again = log_on(reader_fs)
    reader_fs.calls.clear()
    again.sync()
    assert reader_fs.calls["sync"] == 0, "the mark says so"


def test_a_manifest_whose_writer_died_before_its_name_was_durable_is_synced_first() -> None:
    """A commit in a segment that nothing names durably would be lost with it."""
    fs = MemoryFileSystem()
    log, other_fs = log_on(fs), FaultFileSystem(fs)
    store(log, DURABLE, b"1")
    other = log_on(other_fs)
    other_fs.calls.clear()
    other.sync()
    assert other_fs.calls["sync_dir"] == 1
    other.sync()
    assert other_fs.calls["sync_dir"] == 1


def test_an_interrupt_that_hides_a_failed_sync_counts_as_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The kernel tells of it once: Ctrl-C while it is handled must not lose it."""
    fs = MemoryFileSystem()
    fault = FaultFileSystem(fs)
    log = log_on(fault)
    store(log, DURABLE, b"1")
    fault.fail("sync")

    def interrupted(self: Syncing, error: MldbError) -> bool:
        monkeypatch.undo()
        raise KeyboardInterrupt

    monkeypatch.setattr(Syncing, "note", interrupted)
    with pytest.raises(KeyboardInterrupt):
        store(log, b"\x01a", b"2")
    with pytest.raises(MldbError):
        log.sync()
    with pytest.raises(ClosedError, match="fsync failed"):
        store(log, b"\x01b", b"3")
    assert log.head().commit.lsn < fmt.LSN_MAX
    assert content(open_log(fs)).items() >= {DURABLE: b"1"}.items()


def test_what_a_failed_sync_dropped_stays_readable_to_who_was_reading_it() -> None:
    """A view shares its segments with later ones, and the cut one took the place of the whole one.

    A snapshot of commits that were never durable, or a reader in the middle of the cut, was told
    that the file is damaged.
    """
    fs = MemoryFileSystem()
    fault = FaultFileSystem(fs)
    log = open_log(fault, durability="os")
    store(log, b"\x01a", b"1")
    log.sync()
    store(log, b"\x01a", b"2")
    before = log.head()
    fault.fail("sync")
    with pytest.raises(StorageIOError, match="later commits are not stored"):
        log.sync()
    assert content(log)[b"\x01a"] == b"1"
    entry = before.newest(b"\x01a", before.intervals)
    assert entry is not None
    assert read(log, before, b"\x01a", entry) == b"2"
