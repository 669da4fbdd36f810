"""The commit lock: one at a time, nobody starves, and a wait that is too long names who is in."""

from __future__ import annotations

import errno
import itertools
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from mldb.errors import ClosedError, LockedError, ReentryError, StorageIOError
from mldb.log import lock as lock_module
from mldb.log import ownership
from mldb.log.fs.memory import MemoryFileSystem
from mldb.log.fs.posix import OsFileSystem
from mldb.log.fs.protocol import FileSystem, KernelLock
from mldb.log.lock import GATE, LOCK, CommitLock
from mldb.log.ownership import Guard, Waiter
from tests.support.faults import FaultFileSystem
from tests.support.threads import in_thread


@pytest.fixture(params=["memory", "os"])
def fs(request: pytest.FixtureRequest, tmp_path: object) -> FileSystem:
    return MemoryFileSystem() if request.param == "memory" else OsFileSystem(str(tmp_path))


def free(fs: FileSystem) -> bool:
    """Whether a newcomer gets both locks at once."""
    taken = []
    for name in (GATE, LOCK):
        lock = fs.lock(name)
        taken.append(lock.try_acquire())
        lock.close()
    return all(taken)


def test_one_at_a_time_over_threads_and_handles(fs: FileSystem) -> None:
    """Threads share a lock as those of one process do; each lock is one process."""
    locks = [CommitLock(fs, 30) for _ in range(3)]
    inside: list[int] = []
    total = 0

    def work(lock: CommitLock, who: int) -> None:
        nonlocal total
        for _ in range(60):
            with lock.hold():
                inside.append(who)
                seen = total
                time.sleep(0)
                assert inside == [who]
                total = seen + 1
                inside.pop()

    threads = [
        threading.Thread(target=work, args=(lock, 10 * number + turn))
        for number, lock in enumerate(locks)
        for turn in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert total == 60 * len(threads)
    for lock in locks:
        lock.close()
    assert free(fs)


def test_a_wait_that_is_too_long_names_the_holder_and_the_time(fs: FileSystem) -> None:
    holder, waiter = CommitLock(fs, 1), CommitLock(fs, 0.02)

    def wait() -> float:
        began = time.monotonic()
        with pytest.raises(LockedError) as info, waiter.hold():
            pytest.fail("two are in")
        waited = time.monotonic() - began
        told.append(str(info.value))
        return waited

    told: list[str] = []
    with holder.hold():
        assert in_thread(wait) >= 0.02
        for part in (f"process {os.getpid()}", fs.root, "0.02 s", "Nothing was stored"):
            assert part in told[0]
    with waiter.hold():
        assert not free(fs)
    assert free(fs), "the wait in vain left something locked"


def test_a_thread_that_waits_for_another_of_its_process_is_told_so(fs: FileSystem) -> None:
    lock = CommitLock(fs, 0.02)
    errors: list[str] = []

    def wait() -> None:
        with pytest.raises(LockedError) as info, lock.hold():
            pytest.fail("two are in")
        errors.append(str(info.value))

    with lock.hold():
        thread = threading.Thread(target=wait)
        thread.start()
        thread.join()
    assert "another thread of this process" in errors[0]
    with lock.hold():
        pass
    assert free(fs)


def test_an_error_inside_frees_the_lock(fs: FileSystem) -> None:
    lock = CommitLock(fs, 1)
    for error in (ValueError, KeyboardInterrupt):
        with pytest.raises(error), lock.hold():
            raise error
        assert free(fs)


# --- fairness -------------------------------------------------------------------------------------


def test_every_few_commits_a_writer_passes_the_gate(fs: FileSystem) -> None:
    """Who stands in the gate therefore waits for a handful of commits, however fast they come."""
    lock, waiting = CommitLock(fs, 0.01), fs.lock(GATE)
    assert waiting.try_acquire()
    turns = 0
    while turns < 100:
        try:
            with lock.hold():
                turns += 1
        except LockedError:
            break
    assert turns < 10
    waiting.release()
    with lock.hold():
        pass
    assert free(fs)


def test_a_loop_of_commits_starves_nobody(fs: FileSystem) -> None:
    greedy, polite = CommitLock(fs, 30), CommitLock(fs, 30)
    stop = threading.Event()
    turns = 0

    def hurry() -> None:
        nonlocal turns
        while not stop.is_set():
            with greedy.hold():
                turns += 1

    thread = threading.Thread(target=hurry)
    thread.start()
    try:
        for _ in range(30):
            with polite.hold():
                pass
            # Long enough for some more turns of the other.
            time.sleep(0.0005)
    finally:
        stop.set()
        thread.join()
    assert turns > 30, "nobody was in a hurry"


# --- what goes wrong ------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["lock", "try_acquire"])
@pytest.mark.parametrize("contended", [False, True])
def test_a_call_that_fails_leaves_nothing_locked(kind: str, contended: bool) -> None:
    inner = MemoryFileSystem()
    for number in range(1, 5):
        fault = FaultFileSystem(inner)
        lock, other = CommitLock(fault, 0.01), CommitLock(inner, 1)
        fault.fail(kind, at=number, code=errno.EIO)

        def wait(lock: CommitLock = lock) -> None:
            with pytest.raises((StorageIOError, LockedError)), lock.hold():
                pytest.fail("two are in")

        if contended:
            with other.hold():
                in_thread(wait)
        else:
            for _ in range(10):
                try:
                    with lock.hold():
                        assert not free(inner)
                except StorageIOError:
                    break
            else:
                assert kind == "lock", "the fault did not happen"
        fault.heal()
        assert free(inner)
        with lock.hold():
            pass
        with other.hold():
            pass


class Interrupting(MemoryFileSystem):
    """Ctrl-C comes right behind the call that takes a lock, once."""

    armed = False

    def lock(self, name: str) -> InterruptingLock:  # type: ignore[override]
        """Return a lock that raises when it was taken."""
        return InterruptingLock(self, super().lock(name))


class InterruptingLock:
    """Passes on, and raises KeyboardInterrupt behind a call that took the lock."""

    def __init__(self, fs: Interrupting, inner: KernelLock) -> None:
        self._fs = fs
        self._inner = inner
        self.release, self.holder, self.close = inner.release, inner.holder, inner.close

    def try_acquire(self) -> bool:
        """Take the lock, and raise if that is armed."""
        taken = self._inner.try_acquire()
        if taken and self._fs.armed:
            self._fs.armed = False
            raise KeyboardInterrupt
        return taken


def test_ctrl_c_behind_the_call_that_took_the_lock_gives_it_back() -> None:
    """The process kept the kernel's lock until its next commit; all others waited for it."""
    fs = Interrupting()
    lock = CommitLock(fs, 1)
    for turns in range(10):  # some of them at the gate
        fs.armed = True
        with pytest.raises(KeyboardInterrupt), lock.hold():
            pytest.fail("not interrupted")
        assert free(fs)
        for _ in range(turns):
            with lock.hold():
                pass


def test_the_lock_file_is_made_where_a_copy_lost_it(fs: FileSystem) -> None:
    lock = CommitLock(fs, 1)
    assert not fs.exists(LOCK)
    lock.make_file()
    assert fs.exists(LOCK)
    assert free(fs)
    with lock.hold():
        lock_again = fs.lock(LOCK)
        assert not lock_again.try_acquire()
        lock_again.close()


def test_closing_waits_for_the_commit_in_progress(fs: FileSystem) -> None:
    lock = CommitLock(fs, 1)
    thread = threading.Thread(target=lock.close)
    with lock.hold():
        thread.start()
        thread.join(0.02)
        assert thread.is_alive()
        assert not free(fs)
    thread.join()
    lock.close()
    assert free(fs)


# --- the time that a commit may wait --------------------------------------------------------------


class Later(MemoryFileSystem):
    """A file system whose pauses, and waits of threads, let a clock of its own go on."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.events: list[tuple[float, Callable[[], object]]] = []

    def monotonic(self) -> float:
        """The time."""
        return self.now

    def pause(self, seconds: float) -> None:
        """Let time go by, and happen what happens meanwhile."""
        assert seconds > 0
        self.now += seconds
        for item in [item for item in self.events if item[0] <= self.now]:
            self.events.remove(item)
            item[1]()


TIMEOUT = 10.0
BEGAN = 1000.0
FOR_EVER = 1e6
HELD = (0.0, 0.3 * TIMEOUT, 0.6 * TIMEOUT, 0.9 * TIMEOUT, FOR_EVER)


@pytest.mark.parametrize("turn", [1, 8])
def test_thread_gate_and_commit_lock_share_one_time(
    monkeypatch: pytest.MonkeyPatch, turn: int
) -> None:
    """Each is held for a while of its own; what they take in all is bounded, not what each takes.

    With a limit of 1 s a commit once waited 2.8 s. *turn* 8 passes the gate in any case.
    """
    waited = []
    for thread, gate, commit in itertools.product(HELD, repeat=3):
        fs = Later()
        lock = CommitLock(fs, TIMEOUT)
        for _ in range(turn - 1):
            lock.hold().free()
        clock = SimpleNamespace(monotonic=fs.monotonic)
        held: Guard = in_thread(lock.hold_in_process) if thread else lock.hold_in_process()
        others = [fs.lock(GATE), fs.lock(LOCK)]
        for other in others:
            assert other.try_acquire()
        releases = (held.free, others[0].release, others[1].release)
        for when, release in zip((thread, gate, commit), releases, strict=True):
            fs.events.append((when + BEGAN if when else 0, release))
        fs.pause(1e-9)  # those that are held for no time
        fs.now = BEGAN

        def wait(waiter: Waiter, seconds: float, fs: Later = fs) -> None:
            fs.pause(min(seconds, 0.05))

        with monkeypatch.context() as patch:
            patch.setattr(lock_module, "time", clock)
            patch.setattr(ownership, "time", clock)
            patch.setattr(Waiter, "wait", wait)
            passes_by = turn != 8 and commit <= thread  # the lock is free: no need for the gate
            longest = thread if passes_by else max(thread, gate, commit)
            try:
                lock.hold().free()
            except LockedError as error:
                assert f"{TIMEOUT} s" in str(error)
                assert longest == FOR_EVER, (thread, gate, commit)
            else:
                assert longest < TIMEOUT, (thread, gate, commit)
        took = fs.now - BEGAN
        least, most = min(longest, TIMEOUT), 1.2 * min(longest, TIMEOUT)
        assert least - 1e-6 <= took <= most + 1e-6, (thread, gate, commit, took)
        waited.append(took)
    assert len(waited) == 125
    assert max(waited) >= TIMEOUT


def test_a_commit_that_waits_for_a_thread_and_then_for_a_process_waits_as_long_as_it_may(
    tmp_path: Path,
) -> None:
    """In real time; the quickest of three, as the machine may be busy."""
    limit, quickest = 0.5, 99.0
    fs = OsFileSystem(str(tmp_path))
    for _ in range(3):
        lock = CommitLock(fs, limit)
        lock.hold().free()
        held: Guard = in_thread(lock.hold_in_process)
        others = [fs.lock(GATE), fs.lock(LOCK)]
        for other in others:
            assert other.try_acquire()
        timers = [
            threading.Timer(0.3 * limit, held.free),
            threading.Timer(0.6 * limit, others[0].release),
        ]
        began = time.monotonic()
        for timer in timers:
            timer.start()
        with pytest.raises(LockedError):
            lock.hold()
        took = time.monotonic() - began
        assert took >= limit
        quickest = min(quickest, took)
        for timer in timers:
            timer.join()
        for other in others:
            other.close()
        lock.close()
    assert quickest <= 1.2 * limit


# --- inside and behind ----------------------------------------------------------------------------


def test_a_commit_inside_a_commit_is_refused_at_once_and_leaves_the_outer_one_alone(
    fs: FileSystem,
) -> None:
    """A handler that stores once let the lock go inside the outer commit."""
    lock = CommitLock(fs, 30)
    for take in (lock.hold, lock.hold_in_process):
        with lock.hold() as guard:
            began = time.monotonic()
            for _ in range(9):
                with pytest.raises(ReentryError, match="save_on_signal"):
                    take()
            assert time.monotonic() - began < 5
            assert lock.holder is guard.key
            assert not free(fs)
    assert free(fs)


def test_holding_it_in_the_process_keeps_threads_out_and_lets_processes_in(fs: FileSystem) -> None:
    lock, other = CommitLock(fs, 0.02), CommitLock(fs, 1)
    with lock.hold_in_process():
        assert free(fs)
        with pytest.raises(LockedError, match="another thread of this process"):
            in_thread(lock.hold)
        with other.hold():
            pass
    with lock.hold():
        pass
    assert free(fs)


def test_behind_the_close_nobody_gets_in(fs: FileSystem) -> None:
    lock = CommitLock(fs, 1)
    with lock.hold():
        pass
    lock.close()
    for _ in range(9):
        with pytest.raises(ClosedError, match="was closed"):
            lock.hold()
    assert free(fs)
    lock.close()
    with CommitLock(fs, 1).hold():
        pass
