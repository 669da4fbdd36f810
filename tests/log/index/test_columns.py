"""The mapped index answers what the index in memory answers, and reads verified bytes only."""

from __future__ import annotations

import tracemalloc
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import msgpack
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mldb.errors import CorruptError
from mldb.log import format as fmt
from mldb.log import native
from mldb.log.checksum import check64
from mldb.log.index import mapped as mapped_module
from mldb.log.index.address import CommitRow, Entry
from mldb.log.index.column_reader import ColumnReader, iterate_heap
from mldb.log.index.columns import (
    COLUMN_TYPES,
    META_PREFIX,
    OPTIONAL_COLUMNS,
    IndexImage,
    MetadataOf,
    build_index,
)
from mldb.log.index.lineage import spelled
from mldb.log.index.mapped import MappedIndex
from mldb.log.index.memory import CommitField
from tests.support.logs import KEYS, SEGMENT_ID, History, flat, histories, reader_of
from tests.support.parts import examples


def mapped(history: History, metadata_of: MetadataOf | None = None) -> MappedIndex:
    entries, rows = history.memory().dump()
    return MappedIndex(reader_of(build_index(entries, rows, metadata_of)), SEGMENT_ID)


ROW = CommitRow(1, 0, 0, 0, 0, 128, 256, b"")


def keys_of(history: History) -> set[bytes]:
    return {key for entries in history.entries for key, _ in entries}


@given(histories())
@examples(200)
def test_newest_and_versions_as_in_memory(history: History) -> None:
    memory, index = history.memory(), mapped(history)
    index.check()
    for key in keys_of(history) | {b"\x01never", b""}:
        assert list(index.versions(key)) == list(memory.versions(key))
        for intervals in history.heads():
            assert index.newest(key, intervals) == memory.newest(key, intervals)


@given(histories(), st.binary(max_size=2) | KEYS)
def test_keys_as_in_memory(history: History, prefix: bytes) -> None:
    assert list(mapped(history).keys(prefix)) == list(history.memory().keys(prefix))


@given(histories(), st.integers(0, 30), st.integers(0, 30))
def test_commits_as_in_memory(history: History, low: int, high: int) -> None:
    memory, index = history.memory(), mapped(history)
    assert list(index.commits(low, high)) == list(memory.commits(low, high))
    assert [index.commit_at(lsn) for lsn in range(31)] == [
        memory.commit_at(lsn) for lsn in range(31)
    ]
    assert (index.first_lsn, index.last_lsn) == (memory.first_lsn, memory.last_lsn)
    assert index.entry_count() == memory.entry_count()


@given(histories(), st.integers(-1, 20), st.sampled_from(["epoch", "time"]))
def test_last_commit_as_in_memory(history: History, limit: int, field: CommitField) -> None:
    memory, index = history.memory(), mapped(history)
    for intervals in history.heads():
        for low, high in spelled(intervals):
            expected = memory.last_commit(low, high, field, limit)
            assert index.last_commit(low, high, field, limit) == expected


@given(histories())
def test_dump_gives_everything_back(history: History) -> None:
    assert mapped(history).dump() == history.memory().dump()


@given(histories())
def test_the_image_is_aligned_and_complete(history: History) -> None:
    entries, rows = history.memory().dump()
    image = build_index(entries, rows)
    owners = any(entry.owner for versions in entries.values() for entry in versions)
    optional = OPTIONAL_COLUMNS.keys() if owners else {"commit_id"}
    assert image.directory.keys() == COLUMN_TYPES.keys() | optional
    types = COLUMN_TYPES | OPTIONAL_COLUMNS
    end = 0
    for name, place in image.directory.items():
        start, count, code = place
        assert isinstance(start, int)
        assert isinstance(count, int)
        assert start % (1 << fmt.PAYLOAD_ALIGN_LOG2) == 0
        assert end <= start
        assert np.dtype(str(code)) == np.dtype(types[name])
        end = start + count * np.dtype(str(code)).itemsize
    assert end == image.length
    assert flat(image).nbytes == image.length


@given(histories())
def test_nothing_is_read_that_was_not_touched(history: History) -> None:
    """Bytes that no touch announced are replaced; the answers must not change."""
    entries, rows = history.memory().dump()
    image = build_index(entries, rows)
    clean = flat(image)
    scratch = bytearray(b"\xa5" * len(clean))

    def reveal(low: int, high: int) -> None:
        scratch[low:high] = clean[low:high]

    index = MappedIndex(ColumnReader(memoryview(scratch), image.directory, "x", reveal), SEGMENT_ID)
    assert index.dump() == history.memory().dump()
    for key in keys_of(history):
        assert list(index.versions(key)) == list(history.memory().versions(key))


# --- many rows ------------------------------------------------------------------------------------


def many(count: int) -> tuple[dict[bytes, list[Entry]], list[CommitRow]]:
    """So many keys that their columns span several pages."""
    rows = [
        CommitRow(lsn, lsn - 1, lsn // 3, lsn * 10, lsn, lsn * 100, lsn * 100 + 50, b"")
        for lsn in range(1, count)
    ]
    entries = {
        b"\x01name%06d" % row.lsn: [
            Entry(
                row.lsn, SEGMENT_ID, row.start, row.start, 4, b"at", 0, 0, 0, bytes(15) + b"1", b""
            )
        ]
        for row in rows
    }
    return entries, rows


def test_searches_touch_few_pages(rng: np.random.Generator) -> None:
    entries, rows = many(20_000)
    touched: list[tuple[int, int]] = []
    index = MappedIndex(reader_of(build_index(entries, rows), touched), SEGMENT_ID)
    for lsn in rng.integers(1, 20_000, 50).tolist():
        touched.clear()
        key = b"\x01name%06d" % lsn
        assert index.newest(key, ((1, 30_000),)) == entries[key][0]
        assert (
            index.last_commit(1, 30_000, "epoch", lsn // 3)
            == rows[min(lsn // 3 * 3 + 2, 19_999) - 1]
        )
        page = 1 << fmt.INDEX_BLOCK_LOG2
        pages = {
            number for low, high in touched for number in range(low // page, (high - 1) // page + 1)
        }
        assert len(pages) < 40, len(pages)
    assert list(index.keys(b"\x01name0199")) == sorted(
        key for key in entries if key.startswith(b"\x01name0199")
    )


def test_keys_with_equal_hashes_are_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    entries, rows = many(300)
    for module in ("columns", "mapped"):
        monkeypatch.setattr(f"mldb.log.index.{module}.check64", lambda key: len(key) % 2)
    with native.switched_off():  # it hashes by itself
        image = build_index(entries, rows)
    index = MappedIndex(reader_of(image), SEGMENT_ID)
    index.check()
    for key, versions in entries.items():
        assert list(index.versions(key)) == versions
    assert index.newest(b"\x01name999999", ((1, 300),)) is None


def test_caches_are_bounded_and_emptied(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mldb.log.index.mapped._KEY_CACHE_MAX", 7)
    entries, rows = many(200)
    index = MappedIndex(reader_of(build_index(entries, rows)), SEGMENT_ID)
    for _ in range(2):
        for key, versions in entries.items():
            assert index.newest(key, ((1, 200),)) == versions[0]
            assert len(index._cache) <= 7
            assert len(index._entries) <= 7 + mapped_module._BLOCK_ROWS


def test_rounds_over_more_than_is_kept_find_some_of_it_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Of a checkpoint of one tensor more than there was room for, each was searched for again."""
    monkeypatch.setattr("mldb.log.index.mapped._KEY_CACHE_MAX", 100)
    entries, rows = many(130)
    index = MappedIndex(reader_of(build_index(entries, rows)), SEGMENT_ID)
    searched: list[bytes] = []
    find = index._find

    def note(_: MappedIndex, key: bytes) -> object:
        searched.append(key)
        return find(key)

    monkeypatch.setattr(MappedIndex, "_find", note)
    for _ in range(10):
        for key, versions in entries.items():
            assert index.newest(key, ((1, 130),)) == versions[0]
    assert len(searched) < 0.75 * 10 * len(entries)


def test_what_is_kept_of_an_index_is_a_share_of_it() -> None:
    """Of a segment that is read in any order no more stays in memory than 64 bytes a version."""
    count = 30_000
    entries, rows = many(count)
    image = build_index(entries, rows)
    reader = ColumnReader(flat(image), image.directory, "x", lambda low, high: None)
    index = MappedIndex(reader, SEGMENT_ID)
    keys = list(entries)
    tracemalloc.start()
    try:
        most = 0
        for at, key in enumerate(keys):
            assert index.newest(bytes(key), ((1, count),)) is not None
            if at % 500 == 0:
                most = max(most, tracemalloc.get_traced_memory()[0])
    finally:
        tracemalloc.stop()
    assert most <= 64 * count


def test_an_entry_without_a_digest_has_none_after_sealing() -> None:
    """It came back as 16 zero bytes, so sealing a segment changed what its index said."""
    entry = Entry(1, SEGMENT_ID, 128, 256, 0, b"", 1, 0, 0, b"", b"")
    index = MappedIndex(reader_of(build_index({b"\x01a": [entry]}, [ROW])), SEGMENT_ID)
    assert index.newest(b"\x01a", ((1, 1),)) == entry


# --- metadata -------------------------------------------------------------------------------------

Fields = Mapping[str, object]


def metadata_of(key: bytes, attr: bytes) -> Fields | None:
    """As the database does it: the attrs of one key space are maps."""
    if key[:1] != b"\x02":
        return None
    found: Fields = msgpack.unpackb(attr)
    return found


def described(items: Sequence[Fields]) -> tuple[IndexImage, list[bytes]]:
    """An index of one key for each of these metadata, and their attrs by number."""
    attrs = [msgpack.packb(dict(item)) for item in items]
    entries = {
        b"\x02%05d" % at: [Entry(1, SEGMENT_ID, 128, 256, 0, attr, 0, 0, 0, b"", b"")]
        for at, attr in enumerate(attrs)
    }
    image = build_index(entries, [ROW], metadata_of)
    return image, list(dict.fromkeys(attrs))


def metadata_columns(image: IndexImage) -> set[str]:
    """The names of its columns of metadata."""
    return image.directory.keys() - COLUMN_TYPES.keys() - OPTIONAL_COLUMNS.keys()


def column(image: IndexImage, field: str) -> list[object]:
    """A metadata column, decoded; None where the field is absent."""
    reader = reader_of(image)
    codes = reader.span(f"{META_PREFIX}{field}:code", 0, reader.count(f"{META_PREFIX}{field}:code"))
    name = f"{META_PREFIX}{field}:values"
    unpacker = msgpack.Unpacker(timestamp=3)
    unpacker.feed(reader.span(name, 0, reader.count(name)).tobytes())
    values = [None, *unpacker]
    return [values[code] for code in codes.tolist()]


VALUES = st.integers(-5, 5) | st.text(max_size=3) | st.booleans() | st.floats(allow_nan=False)
METADATA = st.lists(
    st.dictionaries(st.sampled_from(["a", "b", "type", "x:code"]), VALUES), max_size=8
)


@given(METADATA)
def test_metadata_columns_say_what_the_attrs_say(items: list[dict[str, object]]) -> None:
    image, attrs = described(items)
    fields = {field for item in items for field in item}
    names = {f"{META_PREFIX}{field}:{part}" for field in fields for part in ("code", "values")}
    assert metadata_columns(image) == names
    for field in fields:
        expected = [msgpack.unpackb(attr).get(field) for attr in attrs]
        found = column(image, field)
        assert list(map(msgpack.packb, found)) == list(map(msgpack.packb, expected))


def test_times_keep_their_moment() -> None:
    moment = datetime(2024, 5, 6, 7, 8, 9, 123456, tzinfo=UTC)
    entry = Entry(1, SEGMENT_ID, 128, 256, 0, b"attr", 0, 0, 0, b"", b"")
    image = build_index({b"\x02a": [entry]}, [ROW], lambda key, attr: {"at": moment})
    assert column(image, "at") == [moment]


def test_fields_of_their_own_in_every_attr_do_not_cost_the_square() -> None:
    """Run names as field names: 4000 fields over 4000 attrs took 16 million codes at a seal."""
    items = [{f"run-{number}": number, "type": "weights"} for number in range(4000)]
    tracemalloc.start()
    image, _ = described(items)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    fields = {name.split(":")[1] for name in metadata_columns(image)}
    assert len(fields) == fmt.META_COLUMNS_MAX
    assert "type" in fields
    assert set(column(image, "type")) == {"weights"}
    assert peak < 32 << 20, peak


def test_long_field_names_have_no_column() -> None:
    """The names stand in the body, whose length is limited."""
    image, _ = described([{"a" * fmt.KEY_BYTES_MAX: 1, "b" * (fmt.KEY_BYTES_MAX + 1): 2}])
    fields = {name.split(":")[1][0] for name in metadata_columns(image)}
    assert fields == {"a"}


def test_an_attr_that_another_key_space_has_too_keeps_its_metadata() -> None:
    """The attr of a relationship may be the same bytes as the metadata of a tensor."""
    attr = msgpack.packb({"a": 1})
    entry = Entry(1, SEGMENT_ID, 128, 256, 0, attr, 0, 0, 0, b"", b"")
    image = build_index({b"\x01a": [entry], b"\x02a": [entry]}, [ROW], metadata_of)
    assert column(image, "a") == [1]


# --- the reader by itself -------------------------------------------------------------------------


@given(st.lists(st.binary(max_size=5), max_size=600), st.integers(0, 600))
@examples(30)
def test_heaps_give_their_items_back(items: list[bytes], start: int) -> None:
    entries = {
        b"\x01%04d" % at + item: [Entry(1, SEGMENT_ID, 0, 0, 0, item, 0, 0, 0, b"", b"")]
        for at, item in enumerate(items)
    }
    reader = reader_of(build_index(entries, [ROW]))
    assert list(iterate_heap(reader, "key", start)) == sorted(entries)[start:]
    attrs = list(dict.fromkeys(items))
    assert [reader.heap("attr", number) for number in range(len(attrs))] == attrs


@given(st.lists(st.integers(0, 9)), st.integers(-1, 10), st.integers(0, 20), st.integers(0, 20))
def test_search_right_is_bisect_right(values: list[int], value: int, low: int, high: int) -> None:
    values = sorted(values)
    low, high = sorted((min(low, len(values)), min(high, len(values))))
    rows = [CommitRow(at + 1, at, item, 0, 0, 0, 0, b"") for at, item in enumerate(values)]
    reader = reader_of(build_index({}, rows))
    expected = low + sum(item <= value for item in values[low:high])
    assert reader.search_right("commit_epoch", value, low, high) == expected


def test_rows_out_of_range_are_corrupt() -> None:
    entries, rows = many(5)
    reader = reader_of(build_index(entries, rows))
    for low, high in ((-1, 1), (0, 5), (3, 2)):
        with pytest.raises(CorruptError, match=f"rows {low}..{high} of 4"):
            reader.span("commit_lsn", low, high)


def test_hashes_are_those_of_the_format() -> None:
    entries, rows = many(50)
    reader = reader_of(build_index(entries, rows))
    hashes = reader.span("hash", 0, 49).tolist()
    assert hashes == sorted(map(check64, entries))


# --- columns of other versions --------------------------------------------------------------------


def read_with(image: IndexImage, directory: Mapping[Any, object]) -> MappedIndex:
    """The index of these bytes with another directory."""
    return MappedIndex(
        ColumnReader(flat(image), directory, "x", lambda low, high: None), SEGMENT_ID
    )


@given(histories())
def test_an_index_of_version_1_has_neither_commit_ids_nor_owners(history: History) -> None:
    entries, rows = history.memory().dump()
    image = build_index(entries, rows)
    kept = {name: place for name, place in image.directory.items() if name in COLUMN_TYPES}
    index = read_with(image, kept)
    index.check()
    found, commits = index.dump()
    assert commits == [row._replace(id=b"") for row in rows]
    assert found == {
        key: [entry._replace(owner=b"") for entry in versions] for key, versions in entries.items()
    }


@given(histories(), st.sampled_from([[0, 1, "<f8"], [0, 1, "no type"], [-1], "text", None, 7]))
def test_columns_that_are_not_known_are_read_over(history: History, place: object) -> None:
    """Whatever they say: a newer mldb wrote them, and this one can do without."""
    entries, rows = history.memory().dump()
    image = build_index(entries, rows)
    names = ["row_shape", "row_colour", "meta:step:histogram", b"bytes", 7]
    directory: dict[Any, object] = {**image.directory, **dict.fromkeys(names, place)}
    assert read_with(image, directory).dump() == (entries, rows)


@given(histories())
def test_what_follows_in_the_place_of_a_column_is_read_over(history: History) -> None:
    entries, rows = history.memory().dump()
    image = build_index(entries, rows)
    longer = {name: [*place, "more", 1] for name, place in image.directory.items()}
    assert read_with(image, longer).dump() == (entries, rows)


@pytest.mark.parametrize("name", [*COLUMN_TYPES])
def test_a_known_column_must_be_there_and_be_possible(name: str) -> None:
    entries, rows = many(5)
    image = build_index(entries, rows)
    start, count, code = image.directory[name]
    short = {key: place for key, place in image.directory.items() if key != name}
    with pytest.raises(CorruptError, match=f"lacks the columns .'{name}'"):
        read_with(image, short)
    for place in (
        [start, count, "<f4"],
        [-8, count, code],
        [start, -1, code],
        [image.length, 1, code],
        [start, 2**60, code],
        [start, True, code],
        [start, count],
        None,
    ):
        changed = {**image.directory, name: place}
        with pytest.raises(CorruptError, match=f"'{name}' has an impossible place"):
            read_with(image, changed)


def test_optional_columns_are_bounded_like_the_others() -> None:
    entries, rows = many(5)
    image = build_index(entries, rows)
    for name in OPTIONAL_COLUMNS:
        for place in ([0, 2**60, OPTIONAL_COLUMNS[name]], [0, 1, "<f8"], "text"):
            with pytest.raises(CorruptError, match=f"'{name}' has an impossible place"):
                read_with(image, {**image.directory, name: place})


def test_a_key_that_claims_more_rows_than_there_are_is_damage() -> None:
    """Four billion of them, of which nothing was read at first: the list of their numbers was."""
    entries, rows = many(5)
    image = build_index(entries, rows)
    payload = bytearray(flat(image))
    start, count, _ = image.directory["key_row"]
    assert isinstance(start, int)
    assert isinstance(count, int)
    payload[start + 4 * (count - 1) : start + 4 * count] = b"\xff" * 4
    reader = ColumnReader(memoryview(payload), image.directory, "x", lambda low, high: None)
    index = MappedIndex(reader, SEGMENT_ID)
    last = max(entries)
    for question in (index.versions, lambda key: index.newest(key, ((1, 9),))):
        with pytest.raises(CorruptError, match="rows"):
            question(last)
