"""Kernel locks: they exclude, they end with their handle or their process, and they name it."""

from __future__ import annotations

import gc
import os
import re
import signal
from pathlib import Path

import pytest

from mldb.errors import ClosedError
from mldb.log.fs.descriptor import CLOSED
from mldb.log.fs.posix import OsFileSystem
from mldb.log.fs.posix_lock import OsLock
from tests.support.processes import Child, Line


@pytest.fixture
def fs(tmp_path: Path) -> OsFileSystem:
    return OsFileSystem(tmp_path)


def is_free(fs: OsFileSystem) -> bool:
    lock = fs.lock("LOCK")
    try:
        return lock.try_acquire()
    finally:
        lock.close()


def test_handles_exclude_each_other_until_the_release_the_close_or_the_end(
    fs: OsFileSystem,
) -> None:
    lock = fs.lock("LOCK")
    assert is_free(fs)
    assert lock.try_acquire()
    assert lock.try_acquire(), "taking twice is taking"
    assert not is_free(fs)
    lock.release()
    assert is_free(fs)
    assert lock.try_acquire()
    lock.close()
    assert is_free(fs)
    dropped = fs.lock("LOCK")
    assert dropped.try_acquire()
    del dropped
    gc.collect()
    assert is_free(fs)


def test_a_lock_ends_with_its_process_whatever_that_was_doing(fs: OsFileSystem) -> None:
    def hold(line: Line) -> None:
        lock = OsFileSystem(fs.root).lock("LOCK")
        line.say(lock.try_acquire())
        signal.pause()

    with Child(hold) as child:
        assert child.hear() == ["True"]
        waiting = fs.lock("LOCK")
        assert not waiting.try_acquire()
        found = waiting.holder()
        started = r"started \d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ"
        assert re.fullmatch(rf"process {child.pid} on {os.uname().nodename}, {started}", found)
        child.kill(signal.SIGSTOP)
        assert not waiting.try_acquire(), "a process that is stopped is not dead"
        child.kill()
        child.wait()
        assert waiting.try_acquire()


def test_a_forked_child_neither_has_the_lock_nor_keeps_it(fs: OsFileSystem) -> None:
    lock = fs.lock("LOCK")
    assert lock.try_acquire()

    def look(line: Line) -> None:
        with pytest.raises(ClosedError, match="forked child"):
            lock.try_acquire()
        lock.release()
        own = OsFileSystem(fs.root)
        line.say(is_free(own))
        line.hear()
        line.say(is_free(own))

    with Child(look) as child:
        assert child.hear() == ["False"]
        lock.close()
        assert is_free(fs), "the child keeps it"
        child.say("now")
        assert child.hear() == ["True"]
        assert child.wait() == 0


def test_a_closed_lock_is_dead_and_cannot_take_what_has_its_number_now(fs: OsFileSystem) -> None:
    lock = fs.lock("LOCK")
    lock.close()
    others = [fs.lock(f"other {number}") for number in range(5)]
    with pytest.raises(ClosedError, match="LOCK was closed meanwhile"):
        lock.try_acquire()
    lock.release()
    lock.close()
    assert all(other.try_acquire() for other in others)


def test_nobody_is_named_where_nobody_is_known(fs: OsFileSystem) -> None:
    lock: OsLock = fs.lock("LOCK")
    assert lock.holder() == "an unknown process"
    lock.close()
    assert lock.holder() == "an unknown process"


def test_a_close_frees_the_lock_also_while_a_call_still_has_the_descriptor(
    fs: OsFileSystem,
) -> None:
    lock = fs.lock("LOCK")
    assert lock.try_acquire()
    inside = lock._fd
    lock.close()
    assert is_free(fs)
    assert os.fstat(inside).st_ino == os.stat(f"{fs.root}/LOCK").st_ino


def test_a_child_forked_in_the_middle_of_a_call_does_not_keep_the_lock(fs: OsFileSystem) -> None:
    """The thread that was inside does not exist in the child, but its references do."""
    lock = fs.lock("LOCK")
    assert lock.try_acquire()
    inside = [lock._fd]

    def live(line: Line) -> None:
        with pytest.raises(OSError, match="descriptor"):
            os.fstat(inside[0])
        line.say("forked")
        line.hear()

    with Child(live) as child:
        assert child.hear() == ["forked"]
        os.fstat(inside[0])
        # As when the parent dies: no explicit release, only the descriptors go.
        lock._fd = CLOSED
        inside.clear()
        assert is_free(fs)
        child.say("now")
        assert child.wait() == 0
