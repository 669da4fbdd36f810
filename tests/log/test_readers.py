"""Registrations: what the living need is written down, what the dead needed is removed."""

from __future__ import annotations

import errno
import os
import re
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mldb.errors import ReadOnlyError, StorageIOError
from mldb.log import format as fmt
from mldb.log.frame import decode_file_header
from mldb.log.fs.memory import MemoryFileSystem
from mldb.log.readers import NEEDS_NOTHING, READERS, Reader, Registration, live_readers
from tests.support.faults import FaultFileSystem
from tests.support.files import contents_of, read_file
from tests.support.logs import STORE_ID


def make() -> tuple[MemoryFileSystem, Registration]:
    fs = MemoryFileSystem()
    fs.mkdir(READERS)
    return fs, Registration(fs, STORE_ID)


def lowest(fs: MemoryFileSystem) -> int | None:
    """The lowest commit that anybody needs, None when nobody is registered."""
    return min((reader.lowest for reader in live_readers(fs)), default=None)


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 4)), max_size=20))
def test_the_lowest_commit_that_is_held_is_the_one_registered(
    steps: list[tuple[bool, int]],
) -> None:
    fs, registration = make()
    held: list[int] = []
    for takes, lsn in steps:
        if takes:
            registration.hold(lsn)
            held.append(lsn)
        elif lsn in held:
            registration.release(lsn)
            held.remove(lsn)
        if registration.name:
            assert lowest(fs) == min(held, default=NEEDS_NOTHING)
        else:
            assert (held, lowest(fs)) == ([], None)
    registration.close()
    assert fs.list(READERS) == []


def test_a_finalizer_gives_up_a_hold_without_a_lock() -> None:
    """Finalizers start anywhere, in the middle of hold() as well: they must not wait for it."""
    fs, registration = make()
    registration.hold(3)
    registration.hold(5)
    with registration._lock:
        registration.give_up(3)
    assert lowest(fs) == 3
    registration.hold(9)
    assert lowest(fs) == 5
    registration.give_up(5)
    registration.release(9)
    assert lowest(fs) == NEEDS_NOTHING
    registration.close()


def test_a_registration_is_made_when_first_needed_and_says_who_it_is() -> None:
    fs, registration = make()
    assert (fs.list(READERS), registration.name) == ([], "")
    name = registration.ensure()
    assert registration.ensure() == registration.name == name
    assert re.fullmatch("[0-9a-f]{32}", name)
    [found] = live_readers(fs)
    assert found == Reader(name, os.getpid(), os.uname().nodename, found.started_ns, NEEDS_NOTHING)
    assert 1_700_000_000_000_000_000 <= found.started_ns <= fs.time_ns()
    header = decode_file_header(read_file(fs, f"{READERS}/{name}"), name)
    assert (header.kind, header.store_id) == (fmt.FILE_READER, STORE_ID)
    assert Registration(fs, STORE_ID).ensure() != name
    registration.close()
    registration.close()
    assert name not in fs.list(READERS)


def test_the_dead_are_removed_and_the_living_stay() -> None:
    fs, dead = make()
    dead.hold(1)
    fs.kill()
    living = Registration(fs, STORE_ID)
    living.hold(7)
    assert [reader.lowest for reader in live_readers(fs)] == [7]
    assert fs.list(READERS) == [living.name]


def test_the_own_registration_is_listed_without_a_try_for_its_lock() -> None:
    fs, registration = make()
    registration.hold(3)
    fault = FaultFileSystem(fs)
    [found] = live_readers(fault, registration.name)
    assert (found.lowest, fault.calls["try_acquire"]) == (3, 0)


def test_one_that_is_being_rewritten_needs_everything() -> None:
    """Whatever a moment shows of it, nothing may be taken away that its process needs."""
    fs, registration = make()
    registration.hold(5)
    path = f"{READERS}/{registration.name}"
    data = read_file(fs, path)
    file = fs.open(path, "rw")
    for place in range(len(data)):
        file.pwritev([bytes([data[place] ^ 1])], place)
        [found] = live_readers(fs)
        assert found.lowest in (0, 5), place
        assert found.name == registration.name
        file.pwritev([data[place : place + 1]], place)
    assert lowest(fs) == 5


def test_a_registration_that_was_swept_before_it_was_locked_is_made_again() -> None:
    class Swept(MemoryFileSystem):
        """A sweeper comes between the creation of the file and its lock, for a while."""

        sweeps = 3

        def exists(self, name: str) -> bool:
            if self.sweeps and name.startswith(READERS):
                self.sweeps -= 1
                self.unlink(name)
            return super().exists(name)

    fs = Swept()
    fs.mkdir(READERS)
    registration = Registration(fs, STORE_ID)
    registration.hold(4)
    assert fs.sweeps == 0
    assert fs.list(READERS) == [registration.name]
    assert lowest(fs) == 4


def test_where_nothing_can_be_written_nothing_need_be_registered() -> None:
    """Nobody compacts in a folder that is read-only. To spill there is an error all the same."""
    fs, _ = make()
    fault = FaultFileSystem(fs)
    fault.fail("lock", code=errno.EROFS, forever=True)
    registration = Registration(fault, STORE_ID)
    registration.hold(1)
    registration.hold(1)
    registration.release(1)
    registration.release(1)
    with pytest.raises(ReadOnlyError):
        registration.ensure()
    registration.close()
    assert contents_of(fs) == {}


def test_a_lower_commit_is_not_held_when_that_cannot_be_written_down() -> None:
    fs, _ = make()
    fault = FaultFileSystem(fs)
    registration = Registration(fault, STORE_ID)
    registration.hold(5)
    fault.fail("pwritev")
    with pytest.raises(StorageIOError):
        registration.hold(3)
    assert lowest(fs) == 5
    registration.hold(3)
    assert lowest(fs) == 3
    registration.release(3)
    assert lowest(fs) == 5


def test_a_release_that_cannot_be_written_down_keeps_more_and_raises_nothing() -> None:
    fs, _ = make()
    fault = FaultFileSystem(fs)
    registration = Registration(fault, STORE_ID)
    registration.hold(5)
    registration.hold(2)
    fault.fail("pwritev", forever=True)
    registration.release(2)
    assert lowest(fs) == 2
    fault.heal()
    registration.hold(9)
    registration.release(9)
    assert lowest(fs) == 5


def test_a_full_disk_at_the_registration_keeps_everything() -> None:
    fs, _ = make()
    fault = FaultFileSystem(fs)
    fault.fail("pwritev", code=errno.ENOSPC)
    registration = Registration(fault, STORE_ID)
    registration.hold(5)
    assert lowest(fs) == 0


def test_threads_that_hold_and_release_agree_on_the_lowest() -> None:
    fs, registration = make()

    def work(first: int) -> None:
        for turn in range(100):
            registration.hold(first + turn % 3)
            registration.release(first + turn % 3)

    registration.hold(50)
    threads = [threading.Thread(target=work, args=(10 * number,)) for number in range(1, 4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert lowest(fs) == 50
    registration.release(50)
    assert lowest(fs) == NEEDS_NOTHING
