"""Columns made and merged by the compiled twin: as Python has them, and None for anything odd."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mldb.log import native
from mldb.log.checksum import check64
from mldb.log.index.address import Entry
from mldb.log.index.columns import ROW_COLUMNS, build_columns, pack_heap
from mldb.log.index.merge import merge_columns
from mldb.log.index.merge_parts import let_in_items
from mldb.log.index.steps import Column
from tests.log.index.test_merge import metadata_of, versions

twin = native.twin
pytestmark = pytest.mark.skipif(twin is None, reason="no compiled twin")

KEYS = st.lists(st.binary(max_size=4), unique=True, max_size=40).map(sorted)


def assert_equal(some: dict[str, Column], others: dict[str, Column]) -> None:
    """Both have the same columns, in the same order, of the same bytes."""
    assert list(some) == list(others)
    for name, column in some.items():
        assert column.dtype == others[name].dtype, name
        assert column.tobytes() == others[name].tobytes(), name


@given(versions(), versions())
def test_indexes_are_built_and_merged_alike(
    first: list[dict[bytes, Entry]], second: list[dict[bytes, Entry]]
) -> None:
    def made() -> tuple[dict[str, Column], ...]:
        both = []
        for commits, later in ((first, 0), (second, len(first))):
            entries: dict[bytes, list[Entry]] = {}
            for stored in commits:
                for key, entry in stored.items():
                    moved = entry._replace(commit_lsn=entry.commit_lsn + later)
                    entries.setdefault(key, []).append(moved)
            both.append(build_columns(entries, (), metadata_of))
        return *both, merge_columns(*both)

    with native.switched_off():
        pure = made()
    for some, others in zip(made(), pure, strict=True):
        assert_equal(some, others)


@given(KEYS, KEYS)
def test_items_are_found_where_bisect_finds_them(known: list[bytes], wanted: list[bytes]) -> None:
    places, fresh = np.empty(len(wanted), "<i8"), np.empty(len(wanted), "?")
    assert twin.find_items(*pack_heap(known), *pack_heap(wanted), places, fresh) is True
    assert places.tolist() == [bisect_left(known, item) for item in wanted]
    assert fresh.tolist() == [item not in known for item in wanted]


@given(KEYS, KEYS, st.data())
def test_items_are_let_in_alike(
    older: list[bytes], newer: list[bytes], data: st.DataObject
) -> None:
    which = np.array([at for at in range(len(newer)) if data.draw(st.booleans())], dtype="<i8")
    before = np.sort(np.array([data.draw(st.integers(0, len(older))) for _ in which], dtype="<i8"))
    given_ = before, pack_heap(older), pack_heap(newer), which
    ours = let_in_items(*given_)
    with native.switched_off():
        pure = let_in_items(*given_)
    assert [part.tobytes() for part in ours] == [part.tobytes() for part in pure]
    assert [part.dtype for part in ours] == [part.dtype for part in pure]


def test_heap_of_keys_and_their_checksums() -> None:
    keys = [b"", b"a", b"bc" * 300]
    offsets, heap, hashes = np.empty(4, "<u8"), np.empty(601, "u1"), np.empty(3, "<u8")
    assert twin.items_to_heap(keys, offsets, heap, hashes) is True
    assert offsets.tolist() == [0, 0, 1, 601]
    assert heap.tobytes() == b"".join(keys)
    assert hashes.tolist() == [check64(key) for key in keys]
    odd: list[Any]
    for odd in ([b"", b"a", "bc"], [b"", b"", b""], [b"", b"a", b"bc" * 301], [b""]):
        assert twin.items_to_heap(odd, offsets, heap, hashes) is None
    assert twin.items_to_heap(keys, offsets[:-1], heap, hashes) is None
    frozen = np.frombuffer(bytes(24), "<u8")
    assert twin.items_to_heap(keys, offsets, heap, frozen) is None


ENTRY = Entry(7, b"s" * 16, 64, 128, 10, b"attr", 0, 0, 0, b"d" * 16, b"")


def filled(rows: list[Any], ids: dict[bytes, int], **sizes: int) -> Any:
    """One call with columns for these rows."""
    made = {name: np.empty(len(rows), kind) for name, kind in ROW_COLUMNS.items()}
    for name, size in sizes.items():
        made[name] = np.empty(size, ROW_COLUMNS[name])
    *numbers, flags, encoding, attr, digest = made.values()
    done = twin.rows_to_columns(rows, ids, tuple(numbers), attr, flags, encoding, digest)
    return made if done else done


def test_rows_become_columns() -> None:
    ids = {b"known": 0}
    last = ENTRY._replace(digest=b"", base=2**64 - 1)
    made = filled([ENTRY, last], ids)
    assert made["row_base"].tolist() == [0, 2**64 - 1]
    assert made["row_digest"].tobytes() == b"d" * 16 + bytes(16)
    assert made["row_attr"].tolist() == [1, 1]
    assert ids == {b"known": 0, b"attr": 1}


@pytest.mark.parametrize(
    "odd",
    [
        ENTRY[:-1],
        ENTRY._replace(owner=b"\x01x"),
        ENTRY._replace(flags=256),
        ENTRY._replace(frame=-1),
        ENTRY._replace(length=2**64),
        ENTRY._replace(digest=b"short"),
        ENTRY._replace(encoding=True),
        ENTRY._replace(attr=bytearray(b"no bytes")),  # type: ignore[arg-type]
        list(ENTRY),
    ],
)
def test_odd_rows_are_left_to_python(odd: Any) -> None:
    ids = {b"known": 0}
    new = ENTRY._replace(attr=b"new")
    assert filled([new, odd], ids) is None
    assert ids == {b"known": 0}


def test_columns_that_do_not_fit_are_refused() -> None:
    for name in ROW_COLUMNS:
        assert filled([ENTRY, ENTRY], {}, **{name: 3}) is None


Heap = tuple[Column, Column]


def heap_of(bounds: Sequence[int], size: int) -> Heap:
    """A heap whose bounds may lie anywhere."""
    return np.array(bounds, "<u8"), np.zeros(size, "u1")


@pytest.mark.parametrize(
    "odd",
    [
        heap_of([0, 2, 1, 3], 3),
        heap_of([0, 4], 3),
        heap_of([1, 3], 3),
        heap_of([0, 2**64 - 1, 3], 3),
        heap_of([], 0),
        (np.zeros(2, "<i8"), np.zeros(0, "u1")),
        (np.zeros(2, "<u4"), np.zeros(0, "u1")),
        (np.zeros((2, 2), "<u8"), np.zeros(0, "u1")),
    ],
)
def test_heaps_that_contradict_themselves_are_left_to_python(odd: Heap) -> None:
    plain = pack_heap([b"a", b"b"])
    for some, others in ((odd, plain), (plain, odd)):
        count = max(len(others[0]) - 1, 0)
        places, fresh = np.empty(count, "<i8"), np.empty(count, "?")
        assert twin.find_items(*some, *others, places, fresh) is None
        one = np.zeros(1, "<i8")
        made = np.empty(len(some[0]) + 1, "<u8"), np.empty(len(some[1]) + 1, "u1")
        assert twin.merge_items(*some, *others, one, one, *made) is None


def test_places_out_of_order_are_left_to_python() -> None:
    older, newer = pack_heap([b"a", b"c"]), pack_heap([b"b", b"d"])
    made = np.empty(5, "<u8"), np.empty(4, "u1")
    for before, which in (([2, 1], [0, 1]), ([0, 3], [0, 1]), ([-1, 0], [0, 1]), ([0, 1], [0, 2])):
        numbers = np.array(before, "<i8"), np.array(which, "<i8")
        assert twin.merge_items(*older, *newer, *numbers, *made) is None
    right = np.array([1, 2], "<i8"), np.array([0, 1], "<i8")
    assert twin.merge_items(*older, *newer, *right, *made) is True
    assert made[1].tobytes() == b"abcd"
    assert twin.merge_items(*older, *newer, *right, made[0], np.empty(5, "u1")) is None
    assert twin.merge_items(*older, *newer, *right, made[0], np.empty(3, "u1")) is None
