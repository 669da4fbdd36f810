"""Scanning: whole batches come back, and any damage ends the scan in front of it, never later."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mldb.errors import FormatVersionError
from mldb.log import format as fmt
from mldb.log.checksum import checks_and_digest, digest128
from mldb.log.frame import TO_BE_HASHED, Draft, Record, encode_commit, encode_head, pack
from mldb.log.index.address import EMPTY_COMMIT, CommitRow
from mldb.log.scan import Batch, Cursor, refuse_unknown, scan
from tests.support.logs import (
    OLD_SEGMENT_ID,
    SEGMENT_ID,
    STORE_ID,
    Built,
    batches,
    build_segment,
    flip,
)
from tests.support.parts import examples

STORED = 16 | fmt.MUST_UNDERSTAND


def plain(found: list[Batch]) -> list[object]:
    """What a batch says, without its place in memory."""
    return [(batch.row, batch.frames, batch.entries, batch.body) for batch in found]


@given(batches)
def test_batches_come_back_as_the_writer_saw_them(content: list[list[Record]]) -> None:
    built = build_segment(content)
    found, cursor = built.scan()
    assert [batch.row for batch in found] == [written.row for written in built.written]
    assert [batch.entries for batch in found] == [written.entries for written in built.written]
    for batch, records in zip(found, content, strict=True):
        assert [frame.header.kind for frame, _ in batch.frames] == [item.kind for item in records]
        assert batch.body.frames == len(records)
    last = built.written[-1]
    assert (cursor.offset, cursor.last_lsn, cursor.chain) == (last.end, last.row.lsn, last.chain)
    assert (cursor.problem, cursor.index) == ("", None)


@given(batches, st.data())
@examples(200)
def test_a_flipped_bit_ends_the_scan_in_front_of_its_batch(
    content: list[list[Record]], data: st.DataObject
) -> None:
    built = build_segment(content)
    bit = data.draw(st.integers(8 * fmt.FILE_HEADER_SIZE, 8 * len(built.data) - 1))
    whole, _ = built.scan()
    found, cursor = built.scan(flip(built.data, bit))
    hit = next(at for at, written in enumerate(built.written) if bit // 8 < written.end)
    assert plain(found) == plain(whole[:hit])
    assert cursor.problem
    assert cursor.offset == built.written[hit].row.start <= cursor.problem_offset


@given(batches, st.data())
@examples(200)
def test_a_cut_ends_the_scan_in_front_of_its_batch(
    content: list[list[Record]], data: st.DataObject
) -> None:
    built = build_segment(content)
    length = data.draw(st.integers(fmt.FILE_HEADER_SIZE, len(built.data) - 1))
    whole, _ = built.scan()
    found, cursor = built.scan(built.data[:length])
    left = [written for written in built.written if written.end <= length]
    assert plain(found) == plain(whole[: len(left)])
    end = left[-1].end if left else fmt.FILE_HEADER_SIZE
    assert cursor.offset == end
    assert bool(cursor.problem) == (length > end)


@given(batches, st.binary(min_size=1, max_size=100))
def test_bytes_behind_the_last_batch_change_nothing(
    content: list[list[Record]], tail: bytes
) -> None:
    built = build_segment(content)
    found, cursor = built.scan(built.data + tail)
    assert plain(found) == plain(built.scan()[0])
    assert cursor.offset == len(built.data)
    assert cursor.problem


@given(batches, st.data())
def test_a_scan_goes_on_where_another_one_stopped(
    content: list[list[Record]], data: st.DataObject
) -> None:
    """A reader scans what is there, and later what came behind it, with the same cursor."""
    built = build_segment(content)
    cursor = built.cursor()
    found: list[Batch] = []
    cuts = data.draw(st.lists(st.integers(fmt.FILE_HEADER_SIZE, len(built.data)), max_size=4))
    for length in [*sorted(cuts), len(built.data)]:
        found += scan(memoryview(built.data[:length]), cursor, built.seed, built.segment)
    assert plain(found) == plain(built.scan()[0])


def small() -> Built:
    """Two batches of tensors of a few bytes."""
    tensors = [
        Record(
            STORED,
            [Draft(b"\x01" + name, 0, 0, 0, 5, TO_BE_HASHED, 0, b"attr", b"")],
            [b"12345"],
            5,
        )
        for name in (b"a", b"b", b"c")
    ]
    return build_segment([tensors[:2], tensors[2:]])


def test_every_single_bit_of_a_segment_matters() -> None:
    built = small()
    whole, _ = built.scan()
    ends = [written.end for written in built.written]
    for bit in range(8 * fmt.FILE_HEADER_SIZE, 8 * len(built.data)):
        found, cursor = built.scan(flip(built.data, bit))
        assert plain(found) == plain(whole[: sum(end <= bit // 8 for end in ends)]), bit
        assert cursor.problem, bit


def test_payloads_are_verified_only_when_asked() -> None:
    built = small()
    frame = built.scan()[0][0].frames[0][0]
    damaged = flip(built.data, 8 * frame.payload_offset)
    found, cursor = built.scan(damaged, verify_after=None)
    assert (len(found), cursor.problem) == (2, "")
    found, cursor = built.scan(damaged, verify_after=built.written[0].row.lsn)
    assert (len(found), cursor.problem) == (2, "")
    found, cursor = built.scan(damaged, verify_after=built.written[0].row.lsn - 1)
    assert (len(found), cursor.problem_offset) == (0, frame.offset)
    assert "block 0 of the payload" in cursor.problem


# --- batches that no writer makes -----------------------------------------------------------------


def spliced(*parts: bytes) -> tuple[list[Batch], Cursor]:
    """Scan a segment of these frames, which stand behind a file header."""
    built = small()
    return built.scan(built.data[: fmt.FILE_HEADER_SIZE] + b"".join(parts))


SEED = fmt.file_seed(STORE_ID, SEGMENT_ID)


def event(offset: int, lsn: int, commit_lsn: int, kind: int = STORED) -> bytes:
    """A frame without entries."""
    return encode_head(kind, 1, 0, pack(None), b"", 0, 0, 0, lsn, commit_lsn, SEED, offset)


def commit(offset: int, lsn: int, count: int, parent: int = 0) -> bytes:
    """A commit frame whose digest is wrong."""
    row = CommitRow(lsn, parent, 0, 0, 0, 0, offset, b"")
    return encode_commit(row, count, bytes(16), 0, SEED)


SIZE = len(event(128, 1, 1))


@pytest.mark.parametrize(
    ("parts", "problem"),
    [
        ([event(128, 1, 2), commit(128 + SIZE, 2, 1)], "has digest"),
        ([event(128, 1, 3), event(128 + SIZE, 3, 3)], "LSN 3 does not follow in its batch"),
        ([event(128, 1, 3), event(128 + SIZE, 2, 4)], "LSN 2 does not follow in its batch"),
        ([event(128, 0, 1)], "LSN 0 does not follow 0"),
        ([event(128, 1, 2), commit(128 + SIZE, 2, 2)], "does not close this batch"),
        ([event(128, 1, 2), commit(128 + SIZE, 2, 1, parent=2)], "does not close this batch"),
        ([event(128, 1, 1, kind=fmt.KIND_MANIFEST)], "does not belong in a segment"),
        ([event(128, 1, 1), event(128 + SIZE, 2, 1, kind=fmt.KIND_INDEX)], "inside a batch"),
    ],
)
def test_valid_frames_in_a_wrong_order_are_no_batch(parts: list[bytes], problem: str) -> None:
    found, cursor = spliced(*parts)
    assert found == []
    assert problem in cursor.problem
    assert cursor.offset == fmt.FILE_HEADER_SIZE


def test_a_batch_that_is_dropped_or_swapped_is_found() -> None:
    """Every frame is valid on its own; only the chain and the LSNs tell."""
    tensor = Record(STORED, [Draft(b"\x01a", 0, 0, 0, 0, b"", 0, b"", b"")])
    built = build_segment([[tensor], [tensor], [tensor]])
    (_, second, third) = [written.row for written in built.written]
    without = built.data[: second.start] + built.data[third.start :]
    assert len(built.scan(without)[0]) == 1
    other = build_segment([[tensor], [tensor, tensor], [tensor]])
    cursor = Cursor(second.start, built.written[0].row.lsn, other.written[1].chain)
    assert list(scan(memoryview(built.data), cursor, built.seed, SEGMENT_ID)) == []
    assert "has digest" in cursor.problem


def test_behind_known_damage_one_batch_is_believed_without_its_chain() -> None:
    built = small()
    second = built.written[1].row
    cursor = Cursor(second.start, built.written[0].row.lsn, b"")
    (batch,) = scan(memoryview(built.data), cursor, built.seed, SEGMENT_ID)
    assert batch.row == second
    assert cursor.chain == built.written[1].chain


def test_a_footer_ends_the_scan() -> None:
    built = small()
    end = len(built.data)
    checks, _ = checks_and_digest([bytes(8)], fmt.INDEX_BLOCK_LOG2)
    kind = fmt.KIND_INDEX | fmt.MUST_UNDERSTAND
    footer = encode_head(
        kind, 1, 0, pack({}), checks, 8, fmt.INDEX_BLOCK_LOG2, 6, 5, 5, built.seed, end
    )
    found, cursor = built.scan(built.data + footer + bytes(8) + b"behind it")
    assert len(found) == 2
    assert cursor.index is not None
    assert cursor.index.offset == end == cursor.offset


# --- kinds that are not known ---------------------------------------------------------------------


@given(st.integers(16, fmt.MUST_UNDERSTAND - 1), st.sets(st.integers(16, 40)), st.booleans())
def test_unknown_kinds_are_refused_only_when_they_must_be_understood(
    kind: int, known: set[int], must: bool
) -> None:
    stored = kind | fmt.MUST_UNDERSTAND if must else kind
    ((batch,), _) = build_segment([[Record(stored, [])]]).scan()
    if must and kind not in known:
        with pytest.raises(FormatVersionError, match=f"kind {kind} at offset 128"):
            refuse_unknown(batch, frozenset(known), "segments/x.seg")
    else:
        refuse_unknown(batch, frozenset(known), "segments/x.seg")


# --- files of version 1, and what a later version may add ----------------------------------------


@given(batches)
def test_a_segment_that_is_known_by_its_number_is_scanned_alike(
    content: list[list[Record]],
) -> None:
    """Only the id differs, and with it seeds, chain and what the entries name."""
    built = build_segment(content, segment=OLD_SEGMENT_ID)
    found, cursor = built.scan()
    assert [batch.entries for batch in found] == [written.entries for written in built.written]
    assert {entry.segment for batch in found for _, entry in batch.entries} <= {OLD_SEGMENT_ID}
    assert (cursor.problem, cursor.offset) == ("", len(built.data))


def test_batches_of_version_1_have_entries_without_owners_and_commits_without_ids() -> None:
    entry = [b"\x01a", 0, 0, 0, 0, b"", 0, b"attr"]
    body, fields = pack(([entry], None)), [0, 3, 4, 5, 1]
    frame = encode_head(STORED, 1, 1, body, b"", 0, 0, 0, 1, 2, SEED, 128)
    chain = digest128(small().cursor().chain + frame[: fmt.FRAME_HEADER_SIZE])
    commit_body = pack([*fields, chain, 0, {}])
    end = 128 + len(frame)
    kind = fmt.KIND_COMMIT | fmt.MUST_UNDERSTAND
    closing = encode_head(kind, 1, 0, commit_body, b"", 0, 0, 0, 2, 2, SEED, end)
    (batch,), cursor = spliced(frame, closing)
    assert cursor.problem == ""
    assert batch.row == CommitRow(2, 0, 3, 4, 5, 128, end, b"")
    ((key, found),) = batch.entries
    assert (key, found.attr, found.owner) == (b"\x01a", b"attr", b"")


def test_what_a_later_version_adds_to_a_batch_is_read_over() -> None:
    """Longer arrays, more in ``extra``, flags, encodings: the batch is there, and its entries."""
    entry = [b"\x01a", 0x82, 9, 0, 0, b"", 0, b"attr", b"\x01o", "new", {"x": 1}]
    body = pack(([entry], None, "new"))
    frame = encode_head(STORED, 1, 0xFF, body, b"", 0, 0, 0, 1, 2, SEED, 128)
    chain = digest128(small().cursor().chain + frame[: fmt.FRAME_HEADER_SIZE])
    extra = {"interrupted": True, "new": [1, 2]}
    commit_body = pack([0, 3, 4, 5, 1, chain, 0, extra, bytes(16), [1], "new"])
    end = 128 + len(frame)
    kind = fmt.KIND_COMMIT | fmt.MUST_UNDERSTAND
    closing = encode_head(kind, 1, 0xFE, commit_body, b"", 0, 0, 0, 2, 2, SEED, end)
    (batch,), cursor = spliced(frame, closing)
    assert cursor.problem == ""
    ((key, found),) = batch.entries
    assert (key, found.flags, found.encoding, found.owner) == (b"\x01a", 0x82, 9, b"\x01o")
    assert batch.body.extra == extra


def test_the_empty_commit_is_no_parent_of_itself() -> None:
    assert EMPTY_COMMIT.lsn == 0
    found, cursor = spliced(commit(128, 0, 0))
    assert (found, cursor.problem) == ([], "LSN 0 does not follow 0")
