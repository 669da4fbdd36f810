"""Merged columns answer as the index of everything does."""

from __future__ import annotations

from itertools import pairwise
from typing import Any
from unittest import mock

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mldb.errors import CorruptError
from mldb.log.checksum import check64
from mldb.log.directory import key_records
from mldb.log.directory.merge import MergeInput, merge_indexes
from mldb.log.index.column_reader import ColumnReader
from mldb.log.index.columns import ROW_COLUMNS, IndexImage, build_index, pack_heap
from mldb.log.index.mapped import MappedIndex
from mldb.log.index.memory import MemoryIndex
from mldb.log.index.merge_parts import Columns, items_of
from tests.support.logs import History, flat, histories, reader_of
from tests.support.parts import examples


def segment_id(number: int) -> bytes:
    """The id of the segment of this number."""
    return bytes([number]) * 16


def split(history: History, cuts: list[int]) -> list[History]:
    """The history cut into segments, whose entries know where they lie."""
    borders = [0, *sorted(min(cut, len(history.rows)) for cut in cuts), len(history.rows)]
    parts: list[History] = []
    for number, (low, high) in enumerate(pairwise(borders)):
        entries = [
            [(key, entry._replace(segment=segment_id(number))) for key, entry in found]
            for found in history.entries[low:high]
        ]
        parts.append(History(history.rows[low:high], entries, []))
    return parts


def image_of_segment(part: History) -> IndexImage:
    """The footer of one segment."""
    entries, rows = part.memory().dump()
    return build_index(entries, rows)


def columns_of(reader: ColumnReader) -> Columns:
    """Its columns, found to fit together."""
    return MappedIndex(reader).columns()


def inputs(parts: list[History]) -> list[MergeInput]:
    """The footers of segments."""
    readers = [reader_of(image_of_segment(part)) for part in parts]
    return [MergeInput(columns_of(reader), number) for number, reader in enumerate(readers)]


def whole(parts: list[History]) -> MemoryIndex:
    """The index of all segments."""
    index = MemoryIndex()
    for part in parts:
        for row, entries in zip(part.rows, part.entries, strict=True):
            index.add(row, entries)
    return index


CUTS = st.lists(st.integers(0, 8), max_size=4)


@given(histories(), CUTS)
@examples(200)
def test_a_merged_index_answers_as_the_index_of_everything(
    history: History, cuts: list[int]
) -> None:
    parts = split(history, cuts)
    expected = whole(parts)
    image = merge_indexes(inputs(parts))
    index = MappedIndex(reader_of(image), *(segment_id(number) for number in range(len(parts))))
    index.check()
    assert index.entry_count() == expected.entry_count()
    assert list(index.keys(b"")) == list(expected.keys(b""))
    for key in [*expected.keys(b""), b"never"]:
        assert list(index.versions(key)) == list(expected.versions(key))
        for intervals in history.heads():
            assert index.newest(key, intervals) == expected.newest(key, intervals)
    assert list(index.commits(0, 100)) == list(expected.commits(0, 100))
    placed = [(segment_id(n), row) for n, part in enumerate(parts) for row in part.rows]
    assert list(index.placed(0, 100)) == placed
    assert index.dump() == expected.dump()


@given(histories(), CUTS, st.integers(0, 4))
def test_it_does_not_matter_in_which_order_runs_are_merged(
    history: History, cuts: list[int], first: int
) -> None:
    parts = split(history, cuts)
    sources = inputs(parts)
    at = min(first, len(parts) - 1)
    early = merge_indexes(inputs(parts[at:]))
    late = merge_indexes([*sources[:at], MergeInput(columns_of(reader_of(early)), at)])
    once = merge_indexes(sources)
    assert late.directory == once.directory
    assert flat(late) == flat(once)


@given(histories(), CUTS)
def test_a_digest_leads_to_every_version_that_has_it(history: History, cuts: list[int]) -> None:
    parts = split(history, cuts)
    image = merge_indexes(inputs(parts))
    index = MappedIndex(reader_of(image), *map(segment_id, range(len(parts))))
    expected: dict[bytes, list[tuple[bytes, int]]] = {}
    for part in parts:
        for entries in part.entries:
            for key, entry in entries:
                if entry.digest.strip(b"\0"):
                    expected.setdefault(entry.digest, []).append((key, entry.commit_lsn))
    for digest in [*expected, b"\x07" * 16]:
        found = sorted((key, entry.commit_lsn) for key, entry in index.with_digest(digest))
        assert found == sorted(expected.get(digest, []))


# --- byte for byte --------------------------------------------------------------------------------


def naive(sources: list[MergeInput]) -> dict[str, np.ndarray[Any, Any]]:
    """The columns by sets, lists and stable sorts, a value at a time."""
    keys = sorted({key for own, _ in sources for key in keys_of(own)})
    rows: list[tuple[int, int, int]] = []  # key, source, row
    hashes: dict[int, int] = {}
    for source, (own, _) in enumerate(sources):
        numbers = [keys.index(key) for key in keys_of(own)]
        spans = pairwise(own["key_row"].tolist())
        for number, (low, high) in zip(numbers, spans, strict=True):
            rows += [(number, source, row) for row in range(low, high)]
        for value, key in zip(own["hash"].tolist(), own["hash_key"].tolist(), strict=True):
            hashes[numbers[key]] = value
    rows.sort()
    offset, heap = pack_heap(keys)
    by_hash = sorted(range(len(keys)), key=lambda key: (hashes[key], key))
    found = {"key_offset": offset, "key_heap": heap}
    found["key_row"] = np.array(
        [sum(key < number for key, _, _ in rows) for number in range(len(keys) + 1)], "<u4"
    )
    found["hash"] = np.array([hashes[key] for key in by_hash], "<u8")
    found["hash_key"] = np.array(by_hash, "<u4")
    for name, code in ROW_COLUMNS.items():
        if name != "row_attr":
            values = [sources[source].columns[name][row] for _, source, row in rows]
            found[name] = np.array(values, code)
    halves = [int.from_bytes(bytes(value)[:8], "little") for value in found["row_digest"]]
    with_one = [n for n, value in enumerate(found["row_digest"]) if any(bytes(value))]
    with_one.sort(key=lambda row: (halves[row], row))
    found["digest"] = np.array([halves[row] for row in with_one], "<u8")
    found["digest_row"] = np.array(with_one, "<u4")
    return found


def keys_of(own: Columns) -> list[bytes]:
    """The keys of a source."""
    return items_of(own["key_offset"], own["key_heap"].tobytes())


@given(histories(), CUTS, st.sampled_from([1, 2, 1 << 64]), st.booleans())
@examples(150)
def test_columns_are_byte_for_byte_what_a_naive_merge_makes(
    history: History, cuts: list[int], hashes: int, by_numpy: bool
) -> None:
    """Also where many keys have the same hash: they stand by their numbers then."""
    sources: list[MergeInput] = []
    for own, first in inputs(split(history, cuts)):
        values = np.array([check64(key) % hashes for key in keys_of(own)], "<u8")
        order = np.argsort(values, kind="stable")
        hashed = {"hash": values[order], "hash_key": order.astype("<u4")}
        sources.append(MergeInput({**own, **hashed}, first))
    with mock.patch.object(key_records, "_FEW", 0 if by_numpy else 1 << 30):
        columns = MappedIndex(reader_of(merge_indexes(sources))).columns()
    for name, expected in naive(sources).items():
        assert columns[name].dtype == expected.dtype, name
        assert columns[name].tobytes() == expected.tobytes(), name


def reader_with(image: IndexImage, **places: list[object]) -> ColumnReader:
    """A reader of the same bytes by another directory."""
    changed = IndexImage({**image.directory, **places}, image.payload, image.length)
    return reader_of(changed)


@given(histories().filter(lambda history: any(history.entries)), st.data())
def test_sources_that_contradict_themselves_are_refused(
    history: History, data: st.DataObject
) -> None:
    image = image_of_segment(history)
    name = data.draw(st.sampled_from(["key_row", "row_attr", "hash_key", "row_commit"]))
    start, count, code = image.directory[name]
    assert isinstance(count, int)
    with pytest.raises(CorruptError):
        merge_indexes(
            [MergeInput(columns_of(reader_with(image, **{name: [start, count - 1, code]})), 0)]
        )


def test_making_can_be_given_up_between_any_two_steps() -> None:
    class Enough(Exception):
        pass

    empty = [MergeInput(columns_of(reader_of(build_index({}, []))), 0)]
    steps = 0

    def count() -> None:
        nonlocal steps
        steps += 1

    merge_indexes(empty, count)
    assert steps > 5
    for limit in range(steps):
        left = limit

        def pause() -> None:
            nonlocal left
            if not left:
                raise Enough
            left -= 1

        with pytest.raises(Enough):
            merge_indexes(empty, pause)
