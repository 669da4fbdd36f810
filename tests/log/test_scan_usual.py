"""The fast reader of common batches takes exactly what the careful one takes, and says the same."""

from __future__ import annotations

from typing import Any
from unittest import mock

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mldb.errors import FormatVersionError
from mldb.log import format as fmt
from mldb.log import scan as scan_module
from mldb.log.checksum import checks_and_digest, digest128
from mldb.log.frame import TO_BE_HASHED, Draft, Record, encode_head, pack
from mldb.log.scan import Cursor
from mldb.log.scan_usual import read_usual
from tests.support.logs import (
    SEGMENT_ID,
    STORE_ID,
    Built,
    batches,
    build_segment,
    flip,
    mutated,
)
from tests.support.parts import examples

STORED = 16 | fmt.MUST_UNDERSTAND
SEED = fmt.file_seed(STORE_ID, SEGMENT_ID)


def outcome(built: Built, data: bytes, verify_after: int | None = 0) -> object:
    """All that a scan says: the batches and the cursor, or which error it raises."""
    try:
        found, cursor = built.scan(data, verify_after=verify_after)
    except FormatVersionError as error:
        return str(error)
    if not cursor.problem:
        cursor.problem_offset = 0  # says nothing then
    return [tuple(batch) for batch in found], cursor


def carefully(built: Built, data: bytes, verify_after: int | None = 0) -> object:
    """The same without the fast reader."""
    with mock.patch("mldb.log.scan_usual.read_usual", return_value=None):
        return outcome(built, data, verify_after)


def by_runs_as_carefully(built: Built, data: bytes, verify_after: int | None = 0) -> bool:
    """Whether the scan by runs finds the same commits and entries, and ends in the same way."""
    with mock.patch("mldb.log.scan_usual.read_usual", return_value=None):
        try:
            found, cursor = built.scan(data, verify_after=verify_after)
            wanted: object = [(batch.row, batch.entries) for batch in found], cursor
        except FormatVersionError as error:
            wanted, cursor = str(error), None
    try:
        got: object = built.scan_runs(data, verify_after=verify_after)
    except FormatVersionError as error:
        got = str(error)
    if isinstance(got, tuple) and not got[1].problem and cursor is not None:
        got[1].problem_offset = cursor.problem_offset  # says nothing then
    return got == wanted


def usual(*sizes: int) -> Built:
    """Batches of one tensor each."""
    content = [
        [
            Record(
                STORED,
                [Draft(b"\x01name", 0, 0, 0, size, TO_BE_HASHED if size else b"", 0, b"at", b"")],
                [bytes(range(1, size + 1))],
                size,
            )
        ]
        for size in sizes
    ]
    return build_segment(content)


@given(batches, st.data(), st.sampled_from([None, 0, 1, 3]))
@examples(150)
def test_both_say_the_same_of_batches_and_of_flipped_bits(
    content: list[list[Record]], data: st.DataObject, verify_after: int | None
) -> None:
    built = build_segment(content)
    assert outcome(built, built.data, verify_after) == carefully(built, built.data, verify_after)
    bit = data.draw(st.integers(8 * fmt.FILE_HEADER_SIZE, 8 * len(built.data) - 1))
    damaged = flip(built.data, bit)
    assert outcome(built, damaged, verify_after) == carefully(built, damaged, verify_after)
    assert by_runs_as_carefully(built, built.data, verify_after)
    assert by_runs_as_carefully(built, damaged, verify_after)


def test_both_say_the_same_of_every_flipped_bit_and_every_cut() -> None:
    built = usual(5, 0)
    for bit in range(8 * fmt.FILE_HEADER_SIZE, 8 * len(built.data)):
        damaged = flip(built.data, bit)
        assert outcome(built, damaged) == carefully(built, damaged), bit
        assert by_runs_as_carefully(built, damaged), bit
    for length in range(fmt.FILE_HEADER_SIZE, len(built.data)):
        assert outcome(built, built.data[:length]) == carefully(built, built.data[:length])
        assert by_runs_as_carefully(built, built.data[:length])


def test_common_batches_never_reach_the_careful_reader() -> None:
    built = usual(0, 1, 16, 200)
    with mock.patch.object(scan_module, "_read_batch", side_effect=AssertionError):
        found, cursor = built.scan()
    assert len(found) == 4
    assert cursor.offset == len(built.data)


def crafted(head: dict[str, Any], body: object, closing: dict[str, Any], commit: object) -> bytes:
    """A batch of one frame and its commit, of whatever is asked for, with right checksums."""
    start, length = fmt.FILE_HEADER_SIZE, head["payload"]
    payload = bytes(range(1, length + 1))
    checks, _ = checks_and_digest((payload,), head["block"])
    data = encode_head(
        head["kind"],
        head["version"],
        head["flags"],
        pack(body),
        checks,
        length,
        head["block"],
        head["align"],
        head["lsn"],
        head["last"],
        SEED,
        start,
    )
    whole = data + payload + bytes(-length % 8)
    fields = commit
    if isinstance(fields, list) and len(fields) > 5 and fields[5] == TO_BE_HASHED:
        chain = digest128(Built(b"", [], SEED).cursor().chain + data[: fmt.FRAME_HEADER_SIZE])
        fields = [*fields[:5], chain, *fields[6:]]
    return whole + encode_head(
        closing["kind"],
        closing["version"],
        closing["flags"],
        pack(fields),
        b"",
        0,
        0,
        0,
        closing["lsn"],
        closing["last"],
        SEED,
        start + len(whole),
    )


HEAD = {
    "kind": STORED,
    "version": 1,
    "flags": fmt.FLAG_KEYED,
    "payload": 5,
    "block": fmt.BLOCK_LOG2,
    "align": 6,
    "lsn": 7,
    "last": 8,
}
BODY: list[object] = [[[b"\x01k", 0, 0, 0, 5, bytes(16), 0, b"attr", b""]], None]
CLOSING = {"kind": fmt.KIND_COMMIT | fmt.MUST_UNDERSTAND, "version": 1, "flags": 0} | {
    "lsn": 8,
    "last": 8,
}
COMMIT: list[object] = [0, 0, 5, 5, 1, TO_BE_HASHED, 0, {}, bytes(16), []]
OTHER = st.sampled_from([0, 1, 2, 3, 7, 8, 9, 12, 13, 20, 30, 31])


def assert_equal(batch: bytes) -> None:
    built = Built(bytes(fmt.FILE_HEADER_SIZE) + batch, [], SEED)
    assert outcome(built, built.data) == carefully(built, built.data)
    assert by_runs_as_carefully(built, built.data)


def test_what_is_crafted_is_usual_where_nothing_is_odd() -> None:
    data = bytes(fmt.FILE_HEADER_SIZE) + crafted(HEAD, BODY, CLOSING, COMMIT)
    cursor: Cursor = Built(data, [], SEED).cursor()
    found = read_usual(memoryview(data), fmt.FILE_HEADER_SIZE, 0, cursor.chain, SEED, SEGMENT_ID, 0)
    assert found is not None
    assert found.row.lsn == 8


@given(st.data())
@examples(600)
def test_both_say_the_same_of_odd_values_with_right_checksums(data: st.DataObject) -> None:
    head, closing = dict(HEAD), dict(CLOSING)
    body: object = BODY
    commit: object = COMMIT
    where = data.draw(st.sampled_from(["head", "closing", "body", "commit", "none"]))
    if where == "head":
        name = data.draw(st.sampled_from(sorted(head)))
        head[name] = data.draw(OTHER if name != "block" else st.sampled_from([12, 20, 30]))
    elif where == "closing":
        name = data.draw(st.sampled_from(sorted(closing)))
        kinds = st.sampled_from([0x8001, 0x8002, 1, 2, 16])
        closing[name] = data.draw(kinds if name == "kind" else OTHER)
    elif where == "body":
        body = data.draw(mutated(BODY))
    elif where == "commit":
        commit = data.draw(mutated(COMMIT))
    assert_equal(crafted(head, body, closing, commit))


@pytest.mark.parametrize(
    "body",
    [
        {0: [[b"\x01k", 0, 0, 0, 5, b"", 0, b"", b""]], 1: None},
        [[[b"\x01k", 0, 0, 0, 5, b"", 0, b"", b""]]],
        [[[b"\x01k", 0, 0, 0, 5, b"", 0, b""]], None],
        [[[b"\x01k", 0, 0, 0, 5, b"", 0, b"", b"", 7]], None, 8],
        [[[b"\x01k", True, 0, 0, 5, b"", 0, b"", b""]], None],
        [[[b"\x01k", 0, 0, 1, 5, b"", 0, b"", b""]], None],
        [[], None],
    ],
)
def test_both_say_the_same_of_odd_bodies(body: object) -> None:
    assert_equal(crafted(HEAD, body, CLOSING, COMMIT))


@pytest.mark.parametrize(
    "commit",
    [
        [0, 0, 5, 5, 1, TO_BE_HASHED, 0, {}],
        [0, 0, 5, 5, 1, TO_BE_HASHED, 0, {}, b"", [], "more"],
        [8, 0, 5, 5, 1, TO_BE_HASHED, 0, {}, b"", []],
        [7, 0, 5, 5, 1, TO_BE_HASHED, 0, {}, b"", []],
        [0, True, 5, 5, 1, TO_BE_HASHED, 0, {}, b"", []],
        [0, 0, 5, 5, 2, TO_BE_HASHED, 0, {}, b"", []],
        [0, 0, 5, 5, 1, bytes(16), 0, {}, b"", []],
        [0, 0, 5, 5, 1, TO_BE_HASHED, 0, {}, b"short", []],
        dict(enumerate([0, 0, 5, 5, 1, bytes(16), 0, {}, b"", []])),
    ],
)
def test_both_say_the_same_of_odd_commits(commit: object) -> None:
    assert_equal(crafted(HEAD, BODY, CLOSING, commit))
