"""The writer: what a commit costs and promises, when a segment is full, and how an fsync fails."""

from __future__ import annotations

import errno
import threading
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mldb.errors import ClosedError, LimitError, MldbError, StorageFullError, StorageIOError
from mldb.log import format as fmt
from mldb.log.frame import TO_BE_HASHED, Draft, Record
from mldb.log.fs.crash_states import crash_states
from mldb.log.fs.memory import MemoryFileSystem
from mldb.log.fs.memory_disk import Sync
from mldb.log.log import Log
from mldb.log.manifest import manifest_numbers
from mldb.log.verify import verify
from mldb.log.view import View
from tests.support.faults import FaultFileSystem
from tests.support.files import contents_of, read_file, replace_file
from tests.support.logs import content, flip, open_log, store
from tests.support.parts import examples
from tests.support.segments import segment_ids, segment_names

KIND = 16 | fmt.MUST_UNDERSTAND


def record(*keys: bytes, size: int = 10) -> Record:
    """One record that stores *size* bytes under each key."""
    drafts = [Draft(key, 0, 0, 0, size, TO_BE_HASHED, 0, b"") for key in keys]
    return Record(KIND, drafts, [bytes(size)], size)


def on_head(view: View) -> tuple[int, Any]:
    return view.commit.epoch, view.commit


# --- when a segment is full -----------------------------------------------------------------------


@examples(50)
@given(
    st.lists(st.tuples(st.integers(0, 5), st.integers(0, 3000)), max_size=12),
    st.integers(1, 4000),
    st.integers(1, 8),
)
def test_a_segment_is_sealed_in_front_of_what_no_longer_fits(
    batches: list[tuple[int, int]], most_bytes: int, most_entries: int
) -> None:
    """No segment has more than it may, but one that holds a single batch; nor one too little."""
    log = open_log(
        MemoryFileSystem(),
        durability="os",
        segment_bytes=most_bytes,
        segment_entries=most_entries,
    )
    for number, (keys, size) in enumerate(batches):
        names = [b"\x01%d/%d" % (number, key) for key in range(keys)]
        log.commit([record(*names, size=size)], on_head)
    view = log.head()
    ids = segment_ids(log.fs)
    assert set(ids) == set(view.segments)
    held: list[list[tuple[int, int]]] = [[] for _ in ids]
    commits = [(ids.index(where), row) for where, row in view.commits(0, fmt.LSN_MAX)]
    assert len(commits) == len(batches)
    assert [number for number, _ in commits] == sorted(number for number, _ in commits)
    for (number, _), batch in zip(commits, batches, strict=True):
        held[number].append(batch)
    for number, own in enumerate(held):
        payload = sum(size for _, size in own)
        entries = sum(keys for keys, _ in own)
        assert len(own) <= 1 or (payload <= most_bytes and entries <= most_entries)
        if number < len(held) - 1:
            keys, size = held[number + 1][0]
            end = (
                max(row.end for where, row in commits if where == number) + 2 * fmt.FILE_HEADER_SIZE
            )
            assert end + size > most_bytes or entries + keys > most_entries, "sealed too early"
    assert verify(log).ok


def test_a_batch_larger_than_a_segment_gets_one_of_its_own() -> None:
    log = open_log(MemoryFileSystem(), segment_bytes=1000, segment_entries=3)
    store(log, b"\x01a", b"1")
    log.commit([record(*(b"\x01%d" % key for key in range(9)), size=50_000)], on_head)
    store(log, b"\x01b", b"2")
    assert [where for where, _ in log.head().commits(0, fmt.LSN_MAX)] == segment_ids(log.fs)
    assert len(segment_ids(log.fs)) == 3
    assert len(content(log)) == 11


# --- what a commit costs --------------------------------------------------------------------------


def test_a_commit_is_one_write_and_one_sync_and_without_durability_no_sync() -> None:
    """One write more claims it, behind its sync; it is not synced, and no file is made."""
    for durability, syncs in (("commit", 1), ("os", 0)):
        fault = FaultFileSystem(MemoryFileSystem())
        log = open_log(fault, durability=durability)
        store(log, b"\x01a", b"1")
        fault.calls.clear()
        store(log, b"\x01b", b"2")
        assert (fault.calls["pwritev"], fault.calls["sync"]) == (1 + syncs, syncs)
        looks = {"size", "identity", "look", "try_acquire", "time_ns", "any"}
        assert set(fault.calls) <= {"pwritev", "sync", *looks}
        fault.calls.clear()
        log.sync()
        log.sync()
        assert fault.calls["sync"] == 1 - syncs, "what is durable is not synced again"
        assert log.sequencer.syncing.durable_lsn == log.head().commit.lsn


class SlowSync(MemoryFileSystem):
    """Syncs take a while, and are counted."""

    syncs = 0

    def open(self, name: str, mode: Any) -> Any:
        """Open a file whose sync is slow."""
        file = super().open(name, mode)
        if not name.startswith("segments/") or mode == "create":
            return file
        outer = self

        class Slow:
            def __getattr__(self, attribute: str) -> Any:
                return getattr(file, attribute)

            def sync(self) -> None:
                outer.syncs += 1
                time.sleep(0.05)
                file.sync()

        return Slow()


def test_threads_that_commit_at_once_share_a_sync() -> None:
    fs = SlowSync()
    log = open_log(fs)
    fs.syncs = 0
    threads = [
        threading.Thread(target=store, args=(log, b"\x01%d" % number, b"x")) for number in range(12)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(content(log)) == 12
    assert 1 <= fs.syncs < 10


# --- what a commit that is given up leaves --------------------------------------------------------


class Refused(Exception):
    """What a decision raises here."""


def test_a_decision_that_raises_stores_nothing() -> None:
    fs = MemoryFileSystem()
    log = open_log(fs)
    store(log, b"\x01a", b"1")
    before = contents_of(fs)

    def refuse(view: View) -> Any:
        assert view.commit == log.head().commit
        raise Refused

    for _ in range(3):
        with pytest.raises(Refused):
            log.commit([record(b"\x01b")], refuse)
    assert contents_of(fs) == before
    assert log.stats()["commits"] == 1
    store(log, b"\x01b", b"2")
    assert content(log) == {b"\x01a": b"1", b"\x01b": b"2"}


def test_the_decision_sees_what_other_handles_committed() -> None:
    fs = MemoryFileSystem()
    one, two = open_log(fs), open_log(fs)
    for number in range(6):
        lsn = store(one, b"\x01a", b"%d" % number, epoch=number)
        seen: list[View] = []

        def look(view: View, seen: list[View] = seen) -> tuple[int, Any]:
            seen.append(view)
            return on_head(view)

        two.commit([], look)
        assert [view.commit.lsn for view in seen] == [lsn]
    assert one.head().commit.epoch == 5


def test_too_many_records_are_refused_before_anything_is_written() -> None:
    fs = MemoryFileSystem()
    log = open_log(fs)
    store(log, b"\x01a", b"1")
    before = contents_of(fs)
    count = fmt.FRAMES_MAX + 1
    with pytest.raises(LimitError, match=f"{count} records exceeds the limit of {count - 1}"):
        log.commit([Record(KIND, [])] * count, on_head)
    assert contents_of(fs) == before
    store(log, b"\x01b", b"2")


@pytest.mark.parametrize("effect", ["nothing", "half"])
@pytest.mark.parametrize("size", [10, 5 << 20])
def test_a_write_that_fails_is_rolled_back_and_the_next_one_works(effect: Any, size: int) -> None:
    """Half a batch stays in the file. It is a torn tail for whoever writes next."""
    fs = MemoryFileSystem()
    fault = FaultFileSystem(fs)
    log = open_log(fault, durability="os")
    store(log, b"\x01a", b"1")
    fault.fail("pwritev", code=errno.ENOSPC, effect=effect)
    with pytest.raises(StorageFullError, match="rolled back"):
        store(log, b"\x01b", b"2" * size)
    other = open_log(fs, "r")
    assert content(log) == content(other) == {b"\x01a": b"1"}
    store(log, b"\x01c", b"3")
    assert content(log) == content(other) == {b"\x01a": b"1", b"\x01c": b"3"}
    assert log.recovery.clean == (effect == "nothing")
    log.close()
    again = open_log(fs)
    assert content(again) == {b"\x01a": b"1", b"\x01c": b"3"}
    assert again.recovery.dropped_bytes == 0


# --- a failed fsync -------------------------------------------------------------------------------


def failed(effect: Any = "nothing") -> tuple[MemoryFileSystem, FaultFileSystem, Log]:
    """A store with a durable and a later commit, whose next sync fails."""
    fs = MemoryFileSystem()
    fault = FaultFileSystem(fs)
    log = open_log(fault, durability="os")
    store(log, b"\x01durable", b"1", epoch=1)
    log.sync()
    store(log, b"\x01later", b"2", epoch=2)
    fault.fail("sync", effect=effect)
    return fs, fault, log


def test_a_failed_fsync_is_never_retried_and_closes_the_handle_for_writing() -> None:
    fs, fault, log = failed()
    known = log.sequencer.syncing.durable_lsn
    with pytest.raises(StorageIOError, match=f"behind commit {known},.*closed for writing") as info:
        log.sync()
    assert info.value.errno == errno.EIO
    # Making the next segment and its manifest durable is another file's business.
    synced = fault.calls["sync"]
    for _ in range(2):
        with pytest.raises(ClosedError, match="closed for writing since an fsync failed"):
            store(log, b"\x01more", b"3")
    assert fault.calls["sync"] == synced
    assert content(log) == {b"\x01durable": b"1"}
    log.close()
    assert fault.calls["sync"] == synced, "nor does closing try again"
    assert content(open_log(fs)) == {b"\x01durable": b"1"}


@pytest.mark.parametrize("effect", ["nothing", "drop"])
def test_every_process_gives_the_segment_up_at_the_same_commit(effect: Any) -> None:
    """Whatever the kernel kept of the pages: memory may still show what the disk never got."""
    fs, _, log = failed(effect)
    reader, writer = open_log(fs, "r"), open_log(fs)
    lost, ceiling = log.head().commit.lsn, log.state.manifest.lsn_ceiling
    with pytest.raises(StorageIOError):
        log.sync()
    assert content(reader) == content(writer) == content(log) == {b"\x01durable": b"1"}
    assert store(writer, b"\x01new", b"3", epoch=1) > ceiling > lost
    expected = {b"\x01durable": b"1", b"\x01new": b"3"}
    assert content(reader) == content(log) == expected
    writer.close()
    again = open_log(fs)
    assert content(again) == expected
    assert verify(again).ok


def test_a_commit_whose_fsync_fails_says_so_to_every_thread_that_waits() -> None:
    fs = MemoryFileSystem()
    fault = FaultFileSystem(fs)
    log = open_log(fault)
    store(log, b"\x01durable", b"1")
    fault.fail("sync", forever=True)
    errors: list[MldbError] = []

    def work(number: int) -> None:
        try:
            store(log, b"\x01%d" % number, b"2")
        except MldbError as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(errors) == 5
    assert {type(error) for error in errors} <= {StorageIOError, ClosedError}
    fault.heal()
    fs.kill()
    assert set(content(open_log(fs))) >= {b"\x01durable"}


def test_a_full_disk_at_an_fsync_is_as_final_as_any_other_failure() -> None:
    fs, fault, log = failed()
    fault.heal()
    fault.fail("sync", code=errno.ENOSPC)
    with pytest.raises(StorageIOError, match="later commits are not stored"):
        log.sync()
    with pytest.raises(ClosedError):
        store(log, b"\x01more", b"3")
    assert content(open_log(fs)) == {b"\x01durable": b"1"}


# --- closing --------------------------------------------------------------------------------------


def test_a_clean_close_records_a_mark_so_that_the_next_opening_scans_nothing() -> None:
    fs = MemoryFileSystem()
    log = open_log(fs, durability="os")
    for number in range(5):
        last = store(log, b"\x01%d" % number, b"x")
    assert log.sequencer.syncing.durable_lsn < last
    log.close()
    again = open_log(fs, "r")
    mark = again.state.manifest.mark
    assert (mark.lsn, mark.offset) == (last, again.state.active.cursor.offset)
    assert again.state.active.memory.entry_count() == 0
    assert again.state.active.cursor.durable == last
    assert len(content(again)) == 5


def test_closing_without_a_commit_changes_no_file() -> None:
    fs = MemoryFileSystem()
    log = open_log(fs)
    store(log, b"\x01a", b"1")
    log.close()
    before = contents_of(fs)
    for _ in range(2):
        open_log(fs).close()
    assert contents_of(fs) == before


def test_a_sync_covers_commits_of_other_handles_too() -> None:
    fs = MemoryFileSystem(record=True)
    one, two = open_log(fs, durability="os"), open_log(fs, durability="os")
    lsn = store(one, b"\x01a", b"1")
    assert fs.journal is not None
    done = len(fs.journal.operations)
    two.sync()
    assert two.sequencer.syncing.durable_lsn == lsn
    [name] = segment_names(fs)
    assert Sync(fs.image().files[name]) in fs.journal.operations[done:]


# --- LSNs that somebody may have seen -------------------------------------------------------------


def lsns_of(log: Log) -> list[int]:
    return [row.lsn for _, row in log.head().commits(0, fmt.LSN_MAX)]


def test_after_a_clean_close_lsns_go_on_right_behind_the_last() -> None:
    """Of a store that nobody killed they are dense, however often it is opened."""
    fs = MemoryFileSystem()
    given = []
    for number in range(6):
        log = open_log(fs, durability=("os", "commit")[number % 2], segment_entries=2)
        given += [store(log, b"\x01%d" % turn, b"x", number) for turn in range(3)]
        log.close()
        assert log.state.manifest.lsn_ceiling == given[-1] + 1
    assert given == [2 * number for number in range(1, 19)]
    assert lsns_of(open_log(fs, "r")) == given


def test_without_a_clean_close_the_first_commit_starts_at_the_ceiling() -> None:
    """Whatever was given out below it and lost is never given again. Only the first one jumps."""
    fs = MemoryFileSystem()
    last = 0
    for number in range(4):
        log = open_log(fs, durability="os")
        ceiling = log.state.manifest.lsn_ceiling
        first = store(log, b"\x01a", b"%d" % number, number)
        assert first == (2 if number == 0 else ceiling + 1)
        assert first > last
        assert store(log, b"\x01b", b"x", number) == first + 2
        last = first + 2
        assert last < log.state.manifest.lsn_ceiling
        fs.kill()
    assert last < 5 * fmt.LSN_CEILING_STEP


def test_a_live_handle_beside_a_dead_one_goes_on_where_it_was() -> None:
    """Its own session has begun: what the other one could give out is above the floor it set."""
    fs = MemoryFileSystem()
    dying = FaultFileSystem(fs)
    one, two = open_log(fs, durability="os"), open_log(dying, durability="os")
    given = [store(one, b"\x01a", b"1"), store(two, b"\x01b", b"2"), store(one, b"\x01c", b"3")]
    dying.kill()
    given.append(store(one, b"\x01d", b"4"))
    assert given == sorted(set(given))
    assert given[-1] - given[1] == 4


def test_no_lsn_reaches_the_ceiling_before_a_synced_manifest_raised_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(fmt, "LSN_CEILING_STEP", 7)
    fs = MemoryFileSystem(record=True)
    log = open_log(fs, durability="os")
    for number in range(40):
        keys = [b"\x01%d" % place for place in range(number % 5)]
        last = log.commit([record(key) for key in keys], on_head).lsn
        assert last < log.state.manifest.lsn_ceiling
        image = fs.image()
        assert fs.journal is not None
        files = {image.files[name]: name for name in image.files if name.startswith("MANIFEST")}
        synced = {item.inode for item in fs.journal.operations if isinstance(item, Sync)}
        assert files.keys() <= synced
    assert log.state.manifest.number > 10
    assert len(lsns_of(log)) == 40


@pytest.mark.parametrize("model", ["posix", "ordered", "process"])
def test_an_lsn_that_a_reader_was_given_is_never_given_again(model: Any, seed: int) -> None:
    """Power fails at any place, at the border of a batch too: nothing torn tells of what was lost.

    And again after the first repair. The next LSN once counted from the last commit that was left.
    """
    first = MemoryFileSystem(record=True)
    checked = lost = 0
    stores = [first]
    for generation in range(2):
        crashed: list[MemoryFileSystem] = []
        for fs in stores:
            write_and_read(fs)
            states = crash_states(fs, model=model, seed=seed, limit=300, record=True)
            for place, state in enumerate(states):
                given = {mark for mark in state.marks if isinstance(mark, int)}
                known = max(given, default=0)
                if not manifest_numbers(state.list("")):
                    continue
                if place % 40 == 7 and generation == 0:
                    again = MemoryFileSystem(record=True, image=state.image())
                    for lsn in sorted(given):
                        again.mark(lsn)
                    crashed.append(again)
                log = open_log(state, durability="os")
                left = log.head().commit.lsn
                lost += left < known
                assert store(log, b"\x01new", b"new", 9) - 1 > known, state.description
                checked += 1
        stores = crashed
        assert crashed or generation
    assert checked > 100
    assert lost > 10 or model == "process"


def write_and_read(fs: MemoryFileSystem) -> None:
    """Commit a few times; a reader is told each LSN, before anything is synced."""
    log, reader = open_log(fs, durability="os", segment_entries=3), None
    for number in range(5):
        store(log, b"\x01%d" % number, b"x" * 700, 9)
        reader = reader or open_log(fs, "r")
        fs.mark(reader.head().commit.lsn)


def test_a_torn_tail_whose_frames_carry_higher_lsns_is_jumped_over() -> None:
    """Intact frames behind the damage: somebody may have been given what they carry."""
    fs = MemoryFileSystem()
    log = open_log(fs, durability="os")
    store(log, b"\x01a", b"1")
    size = log.state.active.cursor.offset
    for number in range(50):
        last = store(log, b"\x01%d" % number, b"2")
    fs.kill()
    [name] = segment_names(fs)
    data = read_file(fs, name)
    for cut, flipped in ((len(data) - 1, size + 60), (len(data), size), (len(data), size + 200)):
        torn = MemoryFileSystem(image=fs.image())
        replace_file(torn, name, flip(data, 8 * flipped)[:cut])
        again = open_log(torn, durability="os")
        assert again.recovery.dropped_transactions > 40
        assert store(again, b"\x01new", b"3") - 1 > last
