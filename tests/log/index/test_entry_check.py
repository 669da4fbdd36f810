"""The bounds of index entries: a check of columns finds what a check of each entry finds."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mldb.log import format as fmt
from mldb.log.index.entry_check import are_sound, is_sound

Row = tuple[Any, ...]  # key, flags, encoding, offset, length, digest, base, attr, owner
SOUND: Row = (b"\x01a", 0, 0, 3, 4, bytes(16), 0, b"attr", b"\x01owner")
PAYLOAD = 100


def expected(row: Row, payload_length: int) -> bool:
    """What FORMAT.md says of one entry, written down entry by entry."""
    key, flags, encoding, offset, length, digest, base, attr, owner = row
    for value in (key, digest, attr, owner):
        if type(value) is not bytes:
            return False
    for value in (flags, encoding, offset, length, base):
        if type(value) is not int or value < 0:
            return False
    return (
        1 <= len(key) <= fmt.KEY_BYTES_MAX
        and len(attr) <= fmt.ATTR_BYTES_MAX
        and len(owner) <= fmt.KEY_BYTES_MAX
        and len(digest) in (0, 16)
        and flags <= 255
        and encoding <= 255
        and offset + length <= payload_length
        and base <= fmt.LSN_MAX
    )


numbers = st.integers(-2, 3) | st.sampled_from([97, 100, 101, 255, 256, 2**63 - 1, 2**63])
texts = st.binary(max_size=2) | st.sampled_from(
    [bytes(16), bytes(15), bytes(fmt.KEY_BYTES_MAX), bytes(fmt.KEY_BYTES_MAX + 1)]
)
anything: st.SearchStrategy[object] = (
    numbers | texts | st.sampled_from([None, True, 0.0, "text", [], bytearray(b"a")])
)


@st.composite
def rows(draw: st.DrawFn) -> Row:
    """A sound entry with up to two fields replaced."""
    row = list(SOUND)
    for _ in range(draw(st.integers(0, 2))):
        row[draw(st.integers(0, 8))] = draw(anything)
    return tuple(row)


@given(st.lists(rows(), max_size=3), st.sampled_from([0, 7, PAYLOAD, 2**48]))
def test_a_frame_is_sound_when_each_of_its_entries_is(table: list[Row], payload: int) -> None:
    columns = tuple(zip(*table, strict=True)) if table else ((),) * 9
    assert are_sound(columns, payload) == all(expected(row, payload) for row in table)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        (0, b""),
        (0, bytes(fmt.KEY_BYTES_MAX + 1)),
        (0, "text"),
        (1, 256),
        (1, -1),
        (1, True),
        (2, 256),
        (2, -1),
        (3, -1),
        (3, PAYLOAD - 3),
        (4, -1),
        (4, PAYLOAD - 2),
        (5, bytes(15)),
        (6, -1),
        (6, fmt.LSN_MAX + 1),
        (7, bytes(fmt.ATTR_BYTES_MAX + 1)),
        (7, None),
        (8, bytes(fmt.KEY_BYTES_MAX + 1)),
        (8, "text"),
    ],
)
def test_each_bound_is_checked_in_any_entry(field: int, value: object) -> None:
    bad = (*SOUND[:field], value, *SOUND[field + 1 :])
    assert not expected(bad, PAYLOAD)
    for table in ([bad], [SOUND, bad, SOUND]):
        assert not are_sound(tuple(zip(*table, strict=True)), PAYLOAD)
    assert are_sound(tuple(zip(SOUND, SOUND, strict=True)), PAYLOAD)


@given(rows(), st.sampled_from([0, 7, PAYLOAD, 2**48]))
def test_one_entry_is_checked_by_the_same_bounds(row: Row, payload: int) -> None:
    """The writer checks the few entries of a small commit one by one; their types are known."""
    if list(map(type, row)) == list(map(type, SOUND)):
        assert is_sound(row, payload) == expected(row, payload)


def test_flags_and_encodings_of_a_newer_version_are_sound() -> None:
    for field in (1, 2):
        for value in range(256):
            row = (*SOUND[:field], value, *SOUND[field + 1 :])
            assert is_sound(row, PAYLOAD)
            assert are_sound(tuple(zip(row, SOUND, strict=True)), PAYLOAD)
