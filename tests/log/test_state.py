"""Following the files: every handle sees each commit once, whoever made it and however it came."""

from __future__ import annotations

import errno
import threading
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mldb.errors import FormatVersionError, StorageIOError
from mldb.log import format as fmt
from mldb.log.frame import TO_BE_HASHED, Draft, Record
from mldb.log.fs.memory import MemoryFileSystem
from mldb.log.fs.protocol import File
from mldb.log.log import Log
from mldb.log.newest import load_newest
from mldb.log.segment import segment_name
from mldb.log.verify import verify
from mldb.options import Options
from tests.support.faults import FaultFileSystem
from tests.support.files import append_to, read_file, replace_file
from tests.support.logs import content, flip, open_log, read, store
from tests.support.parts import examples
from tests.support.segments import segment_names

TAIL = fmt.FRAME_MAGIC + b"half a batch"
ACTS = ("store", "store", "look", "look", "spill", "reopen", "tear", "close")


def spill(log: Log, key: bytes, data: bytes) -> None:
    pending = log.pending_segment()
    drafts = [Draft(key, 0, 0, 0, len(data), TO_BE_HASHED, 0, b"")]
    pending.add([Record(16 | fmt.MUST_UNDERSTAND, drafts, [data], len(data))])
    log.commit([], lambda view: (view.commit.epoch, view.commit), pending)


@examples(80)
@given(
    st.lists(st.tuples(st.sampled_from(ACTS), st.integers(0, 2)), max_size=25), st.integers(1, 5)
)
def test_handles_that_take_turns_all_see_the_same(
    moves: list[tuple[str, int]], entries: int
) -> None:
    """Three that write and one that only reads, over seals, spills, torn tails and closes."""
    fs = MemoryFileSystem()
    options: dict[str, Any] = {"durability": "os", "segment_entries": entries}
    writers = [open_log(fs, **options) for _ in range(3)]
    reader = open_log(fs, "r")
    known: dict[bytes, bytes] = {}
    for number, (act, who) in enumerate(moves):
        log = writers[who]
        key, data = b"\x01%d" % (number % 4), b"%d" % number
        if act == "store":
            store(log, key, data, log.head().commit.epoch)
            known[key] = data
        elif act == "spill":
            spill(log, key, data)
            known[key] = data
        elif act == "tear":
            log.head()
            append_to(fs, segment_name(log.state.active.id), TAIL)
        elif act == "look":
            assert content(log) == content(reader) == known
        else:
            if act == "close":
                log.close()
            writers[who] = open_log(fs, **options)
    for log in [*writers, reader]:
        assert content(log) == known
        assert verify(log).ok
    lsns = {tuple(row.lsn for _, row in log.head().commits(0, 2**62)) for log in writers}
    assert len(lsns) == 1


def test_a_look_that_finds_nothing_new_costs_two_questions_and_gives_the_same_view() -> None:
    fault = FaultFileSystem(MemoryFileSystem())
    log = open_log(fault)
    store(log, b"\x01a", b"1")
    view = log.head()
    fault.calls.clear()
    assert log.head() is view
    assert dict(fault.calls) == {"size": 2, "any": 2}


class Watched:
    """A file that lets another thread look after every write, before the writer goes on."""

    def __init__(self, file: File, look: Callable[[], object]) -> None:
        self._file = file
        self._look = look

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def pwritev(self, buffers: Any, offset: int) -> int:
        """Write, and let the other look."""
        written = self._file.pwritev(buffers, offset)
        thread = threading.Thread(target=self._look)
        thread.start()
        thread.join(30)
        assert not thread.is_alive(), "a reader waits for the writer"
        return written


def test_while_this_process_writes_the_growing_file_is_not_scanned() -> None:
    """Between the write and its publication the batch would be taken in twice."""
    log = open_log(MemoryFileSystem())
    first = store(log, b"\x01a", b"1")
    seen: list[int] = []
    watched = Watched(log.state.active.file, lambda: seen.append(log.head().commit.lsn))
    log.state.active.file = watched
    second = store(log, b"\x01b", b"2")
    third = store(log, b"\x01b", b"3")
    assert seen == [first, second]
    assert [row.lsn for _, row in log.head().commits(0, fmt.LSN_MAX)] == [first, second, third]
    assert [entry.commit_lsn for entry in log.head().versions(b"\x01b")] == [second, third]
    assert verify(log).ok


def test_an_event_that_must_be_understood_is_refused_every_time() -> None:
    """It was skipped from the second look on, as if it had been taken in."""
    fs = MemoryFileSystem()
    newer = Log(fs, Options(), known=frozenset({16, 99}))
    store(newer, b"\x01a", b"1")
    older = open_log(fs, "r")
    assert content(older) == {b"\x01a": b"1"}
    newer.commit([Record(99 | fmt.MUST_UNDERSTAND, [])], lambda view: (0, view.commit))
    store(newer, b"\x01b", b"2")
    for _ in range(3):
        with pytest.raises(FormatVersionError, match="kind 99"):
            older.head()
    for mode in ("r", "rw"):
        with pytest.raises(FormatVersionError, match="kind 99"):
            open_log(fs, mode)
    assert content(newer) == {b"\x01a": b"1", b"\x01b": b"2"}


def test_an_event_that_need_not_be_understood_is_skipped_and_kept() -> None:
    fs = MemoryFileSystem()
    newer = Log(fs, Options(), known=frozenset({16, 99}))
    newer.commit([Record(99, [], [b"data"], 4)], lambda view: (0, view.commit))
    store(newer, b"\x01b", b"2")
    newer.close()
    older = open_log(fs)
    store(older, b"\x01c", b"3")
    assert content(older) == {b"\x01b": b"2", b"\x01c": b"3"}
    frames = [
        frame.header.kind & ~fmt.MUST_UNDERSTAND
        for batch in older.batches(older.head(), 0, fmt.LSN_MAX)
        for frame, _ in batch.frames
    ]
    assert frames == [99, 16, 16]


def test_payloads_behind_the_last_mark_are_verified_at_opening_and_not_while_following() -> None:
    """Power loss may keep a commit and lose its payload; a writer beside us does not."""
    fs = MemoryFileSystem()
    log = open_log(fs, durability="os")
    store(log, b"\x01a", b"first" * 50)
    reader = open_log(fs, "r")
    store(log, b"\x01b", b"second" * 50)
    [name] = segment_names(fs)
    data = read_file(fs, name)
    place = data.index(b"second")
    fs.open(name, "rw").pwritev([b"S"], place)
    assert reader.head().commit == log.head().commit
    fs.kill()
    replace_file(fs, name, flip(data, 8 * place))
    again = open_log(fs)
    assert content(again) == {b"\x01a": b"first" * 50}
    assert again.recovery.dropped_transactions == 1


def test_views_and_bytes_stay_valid_after_the_close() -> None:
    fs = MemoryFileSystem()
    log = open_log(fs, segment_entries=1)
    for number in range(3):
        store(log, b"\x01%d" % number, b"%d" % number)
    view, known = log.head(), content(log)
    log.close()
    found = {key: read(log, view, key, entry) for key, entry in view.live(b"", view.intervals)}
    assert found == known


def test_manifests_that_come_and_go_while_one_looks_are_looked_for_again() -> None:
    """Between the listing and the reading a writer may have replaced them all."""
    fs = MemoryFileSystem()
    log = open_log(fs, segment_entries=1)
    for number in range(4):
        store(log, b"\x01%d" % number, b"x")
    distrusted: list[str] = []
    assert load_newest(fs, distrusted, [1, 2]).number == log.head().number
    assert distrusted == []


def test_an_error_in_the_middle_of_taking_in_commits_is_made_good_by_the_next_look() -> None:
    fs = MemoryFileSystem()
    open_log(fs).close()
    for number in range(1, 30):
        fault = FaultFileSystem(fs)
        reader = open_log(fault, "r")
        writer = open_log(fs, segment_entries=2, durability="os")
        for step in range(3):
            store(writer, b"\x01%d" % step, b"%d" % (number + step))
        fault.fail("any", at=number)
        try:
            reader.head()
        except StorageIOError as error:
            assert error.errno == errno.EIO
        fault.heal()
        assert content(reader) == content(writer)
        assert reader.head().commit == writer.head().commit
        assert reader.head().jumps == ()
        writer.close()
