"""Merged indexes are byte for byte those that are built of everything."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgpack
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mldb.errors import CorruptError
from mldb.log import format as fmt
from mldb.log import native
from mldb.log.index import merge as merge_module
from mldb.log.index.address import CommitRow, Entry
from mldb.log.index.column_reader import ColumnReader
from mldb.log.index.columns import IndexImage, MetadataOf, build_columns, image_of
from mldb.log.index.mapped import MappedIndex
from mldb.log.index.merge import UnmergeableError, merge_columns, merge_steps
from mldb.log.index.merge_parts import check_columns
from mldb.log.index.steps import Column, finish
from tests.support.logs import SEGMENT_ID, History, histories
from tests.support.parts import examples

Entries = Mapping[bytes, Sequence[Entry]]

KEY = st.sampled_from(
    [b"\x01a", b"\x01ab", b"\x02a", b"\x02ab", b"\x02b", b"\x03\x00", b"\x03\xff"]
)
FIELDS = st.dictionaries(
    st.sampled_from(["a", "b", "c:code", "d" * (fmt.KEY_BYTES_MAX + 1)]),
    st.integers(-2, 2) | st.text(max_size=2),
    max_size=3,
)
OWNER = st.sampled_from([b"", b"", b"\x01own", b"\x02er"])


@st.composite
def versions(draw: st.DrawFn) -> list[dict[bytes, Entry]]:
    """The versions that each of some commits stored."""
    commits: list[dict[bytes, Entry]] = []
    for lsn in range(1, draw(st.integers(0, 12)) + 1):
        stored: dict[bytes, Entry] = {}
        for key in draw(st.sets(KEY | st.binary(min_size=1, max_size=3), max_size=4)):
            attr = msgpack.packb(draw(FIELDS))
            digest = draw(st.sampled_from([b"", b"d" * 16, b"e" * 16]))
            stored[key] = Entry(
                lsn, SEGMENT_ID, 128 + lsn, 200, lsn, attr, lsn & 1, 0, lsn, digest, draw(OWNER)
            )
        commits.append(stored)
    return commits


def metadata_of(key: bytes, attr: bytes) -> dict[str, object] | None:
    """Only keys of one space have metadata."""
    if key[:1] != b"\x02":
        return None
    found: dict[str, object] = msgpack.unpackb(attr)
    return found


def of_commits(
    commits: Sequence[Mapping[bytes, Entry]], first: int
) -> tuple[dict[bytes, list[Entry]], list[CommitRow]]:
    """The entries by key and the rows of these commits; LSNs go on from *first*."""
    entries: dict[bytes, list[Entry]] = {}
    for stored in commits:
        for key, entry in stored.items():
            entries.setdefault(key, []).append(entry)
    rows = [
        CommitRow(lsn, lsn - 1, lsn, lsn, -lsn, 10 * lsn, 10 * lsn + 5, bytes([lsn]) * 16)
        for lsn in range(first, first + len(commits))
    ]
    return entries, rows


def columns_of(
    commits: Sequence[Mapping[bytes, Entry]], first: int, of: MetadataOf | None = metadata_of
) -> dict[str, Column]:
    return build_columns(*of_commits(commits, first), of)


def flat(image: IndexImage) -> bytes:
    return b"".join(map(bytes, image.payload))


def assert_same(found: dict[str, Column], expected: dict[str, Column]) -> None:
    one, other = image_of(found), image_of(expected)
    assert list(one.directory.items()) == list(other.directory.items())
    for name, column in expected.items():
        assert found[name].tobytes() == column.tobytes(), name
    assert flat(one) == flat(other)


@given(versions(), st.integers(0, 12), st.integers(0, 12), st.sampled_from([0, 2, 1 << 40]))
@examples(300)
def test_a_merge_is_what_is_built_of_everything(
    commits: list[dict[bytes, Entry]], one: int, other: int, all_at_once: int
) -> None:
    low, high = sorted((min(one, len(commits)), min(other, len(commits))))
    parts = [
        columns_of(commits[:low], 1),
        columns_of(commits[low:high], low + 1),
        columns_of(commits[high:], high + 1),
    ]
    whole = columns_of(commits, 1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(merge_module, "_ALL", all_at_once)
        assert_same(merge_columns(merge_columns(parts[0], parts[1]), parts[2]), whole)
        assert_same(merge_columns(parts[0], merge_columns(parts[1], parts[2])), whole)


@given(versions(), st.integers(0, 12))
def test_what_only_follows_need_not_be_joined(commits: list[dict[bytes, Entry]], cut: int) -> None:
    """A seal merges under the commit lock: columns of commits go to the file as two pieces."""
    cut = min(cut, len(commits))
    tails: dict[str, Column] = {}
    pieces = columns_of(commits[:cut], 1), columns_of(commits[cut:], cut + 1)
    merged = finish(merge_steps(*pieces, tails))
    assert tails.keys() == {name for name in merged if name.startswith("commit_")}
    found, expected = image_of(merged, tails), image_of(columns_of(commits, 1))
    assert list(found.directory.items()) == list(expected.directory.items())
    assert flat(found) == flat(expected)
    assert found.length == expected.length


@given(versions(), st.integers(1, 5))
def test_versions_may_come_key_by_key(commits: list[dict[bytes, Entry]], at_once: int) -> None:
    """The pieces of one commit's range, ascending by key, are merged as later commits are."""
    entries, rows = of_commits(commits, 1)
    flat_rows = [(key, entry) for key in sorted(entries) for entry in entries[key]]
    merged = build_columns({}, rows, metadata_of)
    for low in range(0, len(flat_rows), at_once):
        piece: dict[bytes, list[Entry]] = {}
        for key, entry in flat_rows[low : low + at_once]:
            piece.setdefault(key, []).append(entry)
        merged = merge_columns(merged, build_columns(piece, [], metadata_of))
    assert_same(merged, build_columns(entries, rows, metadata_of))


@given(histories(), st.integers(0, 12))
def test_histories_are_merged_as_they_are_built(history: History, cut: int) -> None:
    older = History(history.rows[:cut], history.entries[:cut], []).memory().dump()
    newer = History(history.rows[cut:], history.entries[cut:], []).memory().dump()
    merged = merge_columns(build_columns(*older), build_columns(*newer))
    assert_same(merged, build_columns(*history.memory().dump()))


def test_equal_hashes_stand_in_the_order_of_their_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mldb.log.index.columns.check64", len)
    commits = [
        {key: Entry(1, SEGMENT_ID, 0, 0, 0, b"\x80", 0, 0, 0, b"", b"")}
        for key in (b"\x01c", b"\x01ddd", b"\x01a", b"\x01eee", b"\x01b", b"\x01a", b"\x01f")
    ]
    with native.switched_off():  # it hashes by itself
        for cut in range(len(commits) + 1):
            merged = merge_columns(columns_of(commits[:cut], 1), columns_of(commits[cut:], cut + 1))
            assert_same(merged, columns_of(commits, 1))


def many(count: int, step: int, first: int) -> dict[str, Column]:
    """An index of many keys of one version each."""
    entries = {
        b"\x01%07d" % (at * step): [Entry(first, SEGMENT_ID, 0, at, 4, b"\x80", 0, 0, 0, b"", b"")]
        for at in range(count)
    }
    return build_columns(entries, [CommitRow(first, 0, 0, 0, 0, 0, 0, b"i" * 16)])


@pytest.mark.parametrize("all_at_once", [0, 1 << 40])
@pytest.mark.parametrize(("count", "step"), [(1, 1), (63, 2), (64, 3), (65, 1), (1000, 7)])
def test_keys_are_found_in_blocks_and_among_all(
    count: int, step: int, all_at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(merge_module, "_ALL", all_at_once)
    with native.switched_off():
        merged = merge_columns(many(count, 2, 1), many(500, step, 2))
    assert_same(merge_columns(many(count, 2, 1), many(500, step, 2)), merged)
    keys = {b"\x01%07d" % (at * 2) for at in range(count)}
    keys |= {b"\x01%07d" % (at * step) for at in range(500)}
    image = image_of(merged)
    reader = ColumnReader(memoryview(flat(image)), image.directory, "x", lambda low, high: None)
    index = MappedIndex(reader, SEGMENT_ID)
    index.check()
    assert list(index.keys(b"")) == sorted(keys)
    assert index.entry_count() == count + 500


def test_steps_are_small() -> None:
    """A merge comes in steps: those of few new rows into many do not grow with the new ones."""
    steps = merge_steps(many(20_000, 2, 1), many(100, 3, 2))
    assert sum(1 for _ in steps) > 15


# --- metadata -------------------------------------------------------------------------------------


def fields_of(*fields: Mapping[str, object]) -> dict[str, Column]:
    commits = [
        {b"\x02k%d" % at: Entry(1, SEGMENT_ID, 0, 0, 0, msgpack.packb(item), 0, 0, 0, b"", b"")}
        for at, item in enumerate(fields)
    ]
    return columns_of(commits, 1)


def test_of_too_many_fields_the_most_frequent_stay() -> None:
    common = {f"f{number:03}": number for number in range(40)}
    rare = {f"r{number:03}": number for number in range(40)}
    older, newer = fields_of(common, {**common, "x": 1}), fields_of({"y": 1}, rare)
    merged = merge_columns(older, newer)
    fields = {name.split(":")[1] for name in merged if name.startswith("meta:")}
    assert len(fields) == fmt.META_COLUMNS_MAX
    assert fields >= common.keys()


def test_columns_that_may_lack_fields_are_not_merged() -> None:
    full = fields_of({f"f{number:03}": number for number in range(fmt.META_COLUMNS_MAX)})
    for older, newer in ((full, fields_of()), (fields_of(), full)):
        with pytest.raises(UnmergeableError):
            merge_columns(older, newer)


# --- what contradicts itself ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("key_row", lambda column: column[::-1].copy()),
        ("key_row", lambda column: column + 1),
        ("key_offset", lambda column: column * 2),
        ("attr_offset", lambda column: column[:-1]),
        ("row_attr", lambda column: column + 99),
        ("hash_key", lambda column: column + 99),
        ("row_flags", lambda column: column[1:]),
        ("commit_end", lambda column: column[1:]),
        ("commit_id", lambda column: column[1:]),
        ("meta:a:code", lambda column: column + 99),
        ("meta:a:code", lambda column: column[1:]),
        ("meta:a:values", lambda column: column[:0]),
        ("meta:a:values", lambda column: np.full(3, 0xC1, "u1")),
    ],
)
def test_contradictions_are_damage(name: str, change: object) -> None:
    older = fields_of({"a": 1}, {"a": 2}, {"a": 1, "b": 3})
    assert callable(change)
    older[name] = change(older[name])
    with pytest.raises(CorruptError):
        _checked_merge(older, fields_of({"a": 7}))


def _checked_merge(older: dict[str, Column], newer: dict[str, Column]) -> None:
    check_columns(older)
    merge_columns(older, newer)


def test_inputs_are_left_alone() -> None:
    older, newer = fields_of({"a": 1}, {"b": 2}), fields_of({"b": 1}, {"a": 2})
    before = {name: column.tobytes() for name, column in (older | newer).items()}
    finish(merge_steps(older, newer))
    merge_module.merge_columns(older, older | newer)
    assert {name: column.tobytes() for name, column in (older | newer).items()} == before
