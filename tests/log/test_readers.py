"""Registrations: what the living need is written down, what the dead needed is removed."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import threading
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mldb.errors import ReadOnlyError, StorageIOError
from mldb.log import format as fmt
from mldb.log.file_header import decode_file_header, encode_file_header
from mldb.log.frame import pack
from mldb.log.fs.memory import MemoryFileSystem
from mldb.log.lone import PENDING, encode_lone
from mldb.log.pending import PendingSegment
from mldb.log.readers import (
    NEEDS_NOTHING,
    READERS,
    Reader,
    Registration,
    highest_claim,
    registrations,
    sweep_dead,
)
from tests.support.faults import FaultFileSystem
from tests.support.files import contents_of, read_file, replace_file
from tests.support.logs import STORE_ID


def make() -> tuple[MemoryFileSystem, Registration]:
    fs = MemoryFileSystem()
    for folder in (READERS, PENDING):
        fs.mkdir(folder)
    return fs, Registration(fs, STORE_ID)


def lowest(fs: MemoryFileSystem) -> int | None:
    """The lowest commit that anybody needs, None when nobody is registered."""
    return min((reader.lowest for reader in registrations(fs)), default=None)


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
    registration.close(0)
    assert fs.list(READERS) == fs.list(PENDING) == []


def test_a_finalizer_gives_up_a_hold_without_waiting() -> None:
    """Finalizers start anywhere, in the middle of hold() as well: they must not wait for it.

    Where another thread has the file, what was given up is written by the next call.
    """
    fs, registration = make()
    registration.hold(3)
    registration.hold(5)
    with registration._lock.hold():
        thread = threading.Thread(target=registration.give_up, args=(3,))
        thread.start()
        thread.join(30)
        assert not thread.is_alive()
        registration.give_up(5)  # inside this thread's own call
    assert lowest(fs) == 3
    registration.hold(9)
    assert lowest(fs) == 9
    registration.release(9)
    registration.hold(7)
    registration.give_up(7)
    assert lowest(fs) == NEEDS_NOTHING
    registration.close(0)


def test_a_registration_is_made_when_first_needed_and_says_who_it_is() -> None:
    fs, registration = make()
    assert (fs.list(READERS), registration.name) == ([], "")
    name = registration.ensure()
    assert registration.ensure() == registration.name == name
    assert re.fullmatch("[0-9a-f]{32}", name)
    [found] = registrations(fs)
    started = found.started_ns
    host = os.uname().nodename
    assert found == Reader(name, os.getpid(), host, started, NEEDS_NOTHING, 0)
    assert 1_700_000_000_000_000_000 <= found.started_ns <= fs.time_ns()
    header = decode_file_header(read_file(fs, f"{READERS}/{name}"), name)
    assert (header.kind, header.store_id) == (fmt.FILE_READER, STORE_ID)
    assert Registration(fs, STORE_ID).ensure() != name
    registration.close(0)
    registration.close(0)
    assert name not in fs.list(READERS)


def test_a_registration_has_its_name_only_once_it_is_whole_and_locked() -> None:
    """Whoever finds one without a lock takes its process for dead and may remove it."""

    class Watched(MemoryFileSystem):
        seen = 0

        def link(self, source: str, target: str) -> bool:
            done = super().link(source, target)
            other = self.lock(target)
            assert not other.try_acquire()
            [found] = registrations(self)
            assert (found.is_damaged, found.lowest) == (False, 4)
            self.seen += 1
            return done

    fs = Watched()
    for folder in (READERS, PENDING):
        fs.mkdir(folder)
    registration = Registration(fs, STORE_ID)
    registration.hold(4)
    assert fs.seen == 1
    assert fs.list(PENDING) == []


def test_the_dead_are_swept_and_the_living_stay() -> None:
    fs, dead = make()
    dead.hold(1)
    fs.kill()
    living, own = Registration(fs, STORE_ID), Registration(fs, STORE_ID)
    living.hold(7)
    own.hold(8)
    sweep_dead(fs, own.name, fmt.LSN_MAX)
    assert sorted(reader.lowest for reader in registrations(fs)) == [7, 8]
    assert sorted(fs.list(READERS)) == sorted([living.name, own.name])


def test_the_own_registration_is_kept_without_a_try_for_its_lock() -> None:
    fs, registration = make()
    registration.hold(3)
    fault = FaultFileSystem(fs)
    sweep_dead(fault, registration.name, fmt.LSN_MAX)
    assert (lowest(fs), fault.calls["try_acquire"]) == (3, 0)


# --- claims ---------------------------------------------------------------------------------------


def test_what_was_called_durable_is_claimed_and_never_taken_back() -> None:
    fs, registration = make()
    assert highest_claim(fs) == 0
    for lsn, highest in ((5, 5), (3, 5), (9, 9), (9, 9)):
        registration.acknowledge(lsn)
        assert highest_claim(fs) == registration.acknowledged == highest
    registration.hold(2)
    registration.release(2)
    other = Registration(fs, STORE_ID)
    other.acknowledge(7)
    assert highest_claim(fs) == 9
    assert sorted(reader.acknowledged for reader in registrations(fs)) == [7, 9]


def test_the_claim_of_a_dead_process_counts_and_stays_until_the_log_says_it_itself() -> None:
    fs, dead = make()
    dead.acknowledge(6)
    fs.kill()
    own = Registration(fs, STORE_ID)
    own.ensure()
    for durable in (0, 5):
        sweep_dead(fs, own.name, durable)
        assert highest_claim(fs) == 6
    sweep_dead(fs, own.name, 6)
    assert highest_claim(fs) == 0
    assert fs.list(READERS) == [own.name]


@pytest.mark.parametrize("durable", [4, 5, 6])
def test_closing_leaves_a_claim_that_the_log_does_not_make_itself(durable: int) -> None:
    """As that of a dead process: its lock is free, so that it goes with the next sweep that may."""
    fs, registration = make()
    registration.acknowledge(5)
    name = registration.name
    registration.close(durable)
    assert fs.list(READERS) == ([] if durable >= 5 else [name])
    assert highest_claim(fs) == (0 if durable >= 5 else 5)
    sweep_dead(fs, "own", 5)
    assert fs.list(READERS) == []


def test_a_claim_that_cannot_be_written_down_is_an_error_until_it_is() -> None:
    """Otherwise a commit would be called durable that another process may still drop."""
    fs, _ = make()
    fault = FaultFileSystem(fs)
    registration = Registration(fault, STORE_ID)
    registration.acknowledge(3)
    fault.fail("pwritev", forever=True)
    for _ in range(2):
        with pytest.raises(StorageIOError):
            registration.acknowledge(5)
        assert highest_claim(fs) == 3
    fault.heal()
    registration.acknowledge(5)
    assert highest_claim(fs) == 5


def test_one_that_is_being_rewritten_is_looked_at_again_for_its_claim() -> None:
    """Two writes of a living process: the pause between the looks is when the second one comes."""

    class Rewritten(MemoryFileSystem):
        pauses = 0
        data = b""
        name = ""

        def pause(self, seconds: float) -> None:
            self.pauses += 1
            assert seconds < 0.1
            if self.pauses == 2:
                self.open(self.name, "rw").pwritev([self.data], 0)

    fs = Rewritten()
    for folder in (READERS, PENDING):
        fs.mkdir(folder)
    registration = Registration(fs, STORE_ID)
    registration.acknowledge(8)
    fs.name = f"{READERS}/{registration.name}"
    fs.data = read_file(fs, fs.name)
    fs.open(fs.name, "rw").pwritev([bytes(60)], 130)
    assert (highest_claim(fs), fs.pauses) == (8, 2)
    fs.open(fs.name, "rw").pwritev([bytes(60)], 130)
    assert highest_claim(fs) == fmt.LSN_MAX, "it may have claimed anything"
    fs.kill()
    assert highest_claim(fs) == 0, "nobody was told by a process that died in the middle of it"


def test_a_registration_of_version_1_claims_nothing_of_its_own() -> None:
    """It had four elements."""
    fs, registration = make()
    registration.hold(5)
    path = f"{READERS}/{registration.name}"
    header = encode_file_header(fmt.FILE_READER, STORE_ID, 1)
    body = pack((os.getpid(), "host", 1, 5))
    replace_file(
        fs, path, b"".join(encode_lone(header, fmt.KIND_READER | fmt.MUST_UNDERSTAND, body))
    )
    [found] = registrations(fs)
    assert (found.lowest, found.acknowledged, found.is_damaged) == (5, 0, False)


# --- sweepers -------------------------------------------------------------------------------------


class Busy(MemoryFileSystem):
    """Somebody else does something at the n-th call that lists, locks, opens or removes."""

    def __init__(self) -> None:
        super().__init__()
        self.left = -1
        self.act: Callable[[], None] = lambda: None
        for folder in (READERS, PENDING):
            self.mkdir(folder)

    def _turn(self) -> None:
        self.left -= 1
        if self.left == 0:
            self.act()

    def list(self, folder: str) -> list[str]:
        found = super().list(folder)
        self._turn()
        return found

    def lock(self, name: str) -> Any:
        self._turn()
        return super().lock(name)

    def open(self, name: str, mode: Any) -> Any:
        self._turn()
        return super().open(name, mode)

    def unlink(self, name: str) -> None:
        self._turn()
        super().unlink(name)


def test_a_sweeper_never_removes_what_a_process_made_that_came_meanwhile() -> None:
    """Its registration was listed before it was there, and what it spilled after that."""
    done = False
    number = 0
    while not done:
        number += 1
        fs = Busy()
        dead = Registration(fs, STORE_ID)
        dead.hold(1)
        fs.kill()
        newcomer = Registration(fs, STORE_ID)
        spilled: list[PendingSegment] = []

        def come(
            fs: Busy = fs, newcomer: Registration = newcomer, to: list[PendingSegment] = spilled
        ) -> None:
            newcomer.hold(5)
            to.append(PendingSegment(fs, newcomer.name))

        fs.act, fs.left = come, number
        sweep_dead(fs, "own", fmt.LSN_MAX)
        done = not spilled
        if spilled:
            assert fs.list(READERS) == [newcomer.name], number
            assert fs.exists(spilled[0].name), number
    assert number > 4


def test_two_sweepers_at_once_never_remove_a_live_registration() -> None:
    """One has the list, the other sweeps, and somebody registers in between: at every call."""
    number = 0
    while True:
        number += 1
        fs = Busy()
        for lsn in (1, 2):
            dead = Registration(fs, STORE_ID)
            dead.hold(lsn)
        fs.kill()
        living, late = Registration(fs, STORE_ID), Registration(fs, STORE_ID)
        living.hold(3)
        acted: list[int] = []

        def sweep_too(fs: Busy = fs, late: Registration = late, acted: list[int] = acted) -> None:
            acted.append(1)
            sweep_dead(fs, "other", fmt.LSN_MAX)
            late.hold(4)
            sweep_dead(fs, "third", fmt.LSN_MAX)

        fs.act, fs.left = sweep_too, number
        with contextlib.suppress(StorageIOError):  # the other one removed it first
            sweep_dead(fs, "own", fmt.LSN_MAX)
        names = {living.name, late.name} - {""}
        assert set(fs.list(READERS)) >= names, number
        for name in names:
            lock = fs.lock(f"{READERS}/{name}")
            assert not lock.try_acquire(), "a registration that its process holds no more"
        if not acted:
            break
    assert number > 8


# --- what may go wrong ----------------------------------------------------------------------------


def test_one_that_is_being_rewritten_needs_everything() -> None:
    """Whatever a moment shows of it, nothing may be taken away that its process needs."""
    fs, registration = make()
    registration.hold(5)
    path = f"{READERS}/{registration.name}"
    data = read_file(fs, path)
    file = fs.open(path, "rw")
    for place in range(len(data)):
        file.pwritev([bytes([data[place] ^ 1])], place)
        [found] = registrations(fs)
        assert found.lowest in (0, 5), place
        assert found.name == registration.name
        file.pwritev([data[place : place + 1]], place)
    assert lowest(fs) == 5


def test_a_registration_that_was_swept_before_it_had_its_name_is_made_again() -> None:
    class Swept(MemoryFileSystem):
        """A sweeper comes before the file has its name, for a while."""

        sweeps = 3

        def link(self, source: str, target: str) -> bool:
            if self.sweeps and target.startswith(READERS):
                self.sweeps -= 1
                sweep_dead(self, "own", 0)
            return super().link(source, target)

    fs = Swept()
    for folder in (READERS, PENDING):
        fs.mkdir(folder)
    registration = Registration(fs, STORE_ID)
    registration.hold(4)
    assert fs.sweeps == 0
    assert fs.list(READERS) == [registration.name]
    assert fs.list(PENDING) == []
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
    registration.close(0)
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


@pytest.mark.parametrize("kind", ["lock", "open", "pwritev", "link"])
def test_a_full_disk_at_the_registration_refuses_no_read_and_is_made_good(kind: str) -> None:
    """Reading goes on; nothing half made stays; the next call that can writes what is needed."""
    fs, _ = make()
    fault = FaultFileSystem(fs)
    fault.fail(kind, code=errno.ENOSPC)
    registration = Registration(fault, STORE_ID)
    registration.hold(5)
    assert fs.list(READERS) == fs.list(PENDING) == []
    registration.hold(9)
    assert lowest(fs) == 5
    registration.release(5)
    assert lowest(fs) == 9


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
