"""Index frames: what is decoded from one is what the index in memory said."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from mldb.log import format as fmt
from mldb.log.active import Active, chain_start
from mldb.log.file_header import encode_file_header
from mldb.log.fs.memory import MemoryFileSystem
from mldb.log.fs.protocol import Buffer
from mldb.log.index.address import EMPTY_COMMIT
from mldb.log.index.footer import describe, index_frame
from mldb.log.index.opened import open_index
from mldb.log.scan import Cursor
from mldb.log.segment import Segment, segment_name
from tests.support.files import replace_file
from tests.support.logs import CLOCK, SEGMENT_ID, STORE_ID, History, histories
from tests.support.parts import examples

NAME = segment_name(SEGMENT_ID)
HEADER = encode_file_header(
    fmt.FILE_SEGMENT, STORE_ID, CLOCK, segment_id=SEGMENT_ID, base_lsn=1, published=1
)


def active_of(history: History) -> Active:
    """An active segment that holds this history."""
    fs = MemoryFileSystem()
    fs.mkdir("segments")
    replace_file(fs, NAME, HEADER)
    end = history.rows[-1].end + 200 if history.rows else fmt.FILE_HEADER_SIZE
    last = history.rows[-1].lsn if history.rows else 0
    cursor = Cursor(end, last, chain_start(STORE_ID, SEGMENT_ID))
    count = sum(map(len, history.entries))
    return Active(
        Segment(fs, SEGMENT_ID, STORE_ID, end),
        fs.open(NAME, "rw"),
        cursor,
        history.memory(),
        None,
        list(history.jumps),
        end,
        count,
    )


def written(buffers: list[Buffer], offset: int) -> Segment:
    """The frame in a file, at *offset*."""
    fs = MemoryFileSystem()
    fs.mkdir("segments")
    data = HEADER.ljust(offset, b"\0") + b"".join(buffers)
    assert len(data) % fmt.FRAME_ALIGN == 0
    replace_file(fs, NAME, data)
    return Segment(fs, SEGMENT_ID, STORE_ID, len(data))


@examples(100)
@given(histories(), st.integers(16, 40).map(lambda number: 8 * number), st.data())
def test_an_index_says_what_memory_said_up_to_its_last_commit(
    history: History, offset: int, data: st.DataObject
) -> None:
    active = active_of(history)
    last = data.draw(st.sampled_from([0, *(row.lsn for row in history.rows)]))
    durable = data.draw(st.integers(0, last))
    segment = written(index_frame(active, last, durable, offset, None), offset)
    index, fields = open_index(segment, offset, "first")
    index.check()
    kept = [row for row in history.rows if row.lsn <= last]
    assert list(index.commits(0, fmt.LSN_MAX)) == kept
    assert index.last_lsn == last
    expected: dict[bytes, list[object]] = {}
    for row, entries in zip(history.rows, history.entries, strict=True):
        for key, entry in entries if row.lsn <= last else ():
            expected.setdefault(key, []).append(entry)
    found = {key: list(index.versions(key)) for key in index.keys(b"")}
    assert found == expected
    assert list(found) == sorted(found)
    assert fields["lsn"] == last
    assert (fields["durable"], fields["end"]) == (durable, active.cursor.offset)
    assert fields["chain"] == active.cursor.chain
    assert [tuple(jump) for jump in fields["jumps"]] == [j for j in history.jumps if j[0] <= last]


@given(histories())
def test_a_description_names_the_first_and_the_last_commit(history: History) -> None:
    active = active_of(history)
    info = describe(active, active.cursor.last_lsn, 1000, "segments/0000000001.idx", 128)
    assert (info.id, info.kind, info.origin) == (SEGMENT_ID, fmt.FILE_SEGMENT, STORE_ID)
    assert (info.length, info.index_file) == (1000, "segments/0000000001.idx")
    assert (info.index_offset, info.chain) == (128, active.cursor.chain)
    rows = history.rows
    ends = (rows[0], rows[-1]) if rows else (EMPTY_COMMIT, EMPTY_COMMIT)
    assert (info.first_lsn, info.last_lsn) == (ends[0].lsn, ends[1].lsn)
    assert (info.first_epoch, info.last_epoch) == (ends[0].epoch, ends[1].epoch)


@given(histories())
def test_a_segment_that_has_grown_meanwhile_is_described_up_to_the_commit_asked_for(
    history: History,
) -> None:
    """A backup takes one moment while others commit; it ended at the first commit instead."""
    active, rows = active_of(history), history.rows
    for count, row in enumerate(rows, 1):
        info = describe(active, row.lsn, 1000, "", 128)
        assert (info.first_lsn, info.last_lsn) == (rows[0].lsn, row.lsn)
        assert (info.first_epoch, info.last_epoch) == (rows[0].epoch, rows[count - 1].epoch)


@given(histories(), st.integers(0, 8))
def test_what_a_hint_covers_and_what_came_after_it_are_one_index(
    history: History, cut: int
) -> None:
    """A segment that was closed and opened again has two parts; its footer has both."""
    rows, entries = history.rows, history.entries
    whole = index_frame(active_of(history), active_of(history).cursor.last_lsn, 0, 128, None)
    before = History(rows[:cut], entries[:cut], history.jumps)
    hint = written(index_frame(active_of(before), last_of(before), 0, 128, None), 128)
    active = active_of(history)
    active.memory = History(rows[cut:], entries[cut:], []).memory()
    active.hinted, _ = open_index(hint, 128, "first")
    assert b"".join(index_frame(active, last_of(history), 0, 128, None)) == b"".join(whole)
    assert describe(active, last_of(history), 1, "", 2) == describe(
        active_of(history), last_of(history), 1, "", 2
    )


def last_of(history: History) -> int:
    return history.rows[-1].lsn if history.rows else 0
