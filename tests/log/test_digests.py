"""Finding versions by digest: tables, notes and parts against all there is."""

from __future__ import annotations

from collections import defaultdict

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mldb.log import digests as module
from mldb.log.checksum import digest128
from mldb.log.digests import EACH_MAX, Digests, DigestTable
from mldb.log.fs.memory import MemoryFileSystem
from mldb.log.index.mapped import MappedIndex
from mldb.log.log import Log
from tests.support.directories import made_at_once
from tests.support.logs import open_log, store
from tests.support.segments import replace_segments

VALUES = [b"value %d" % number * 30 for number in range(6)]
KEYS = [b"\x01%d" % number for number in range(4)]
STEPS = st.lists(st.tuples(st.sampled_from(KEYS), st.sampled_from(VALUES)), max_size=24)


def fill(fs: MemoryFileSystem, steps: list[tuple[bytes, bytes]], entries: int) -> None:
    log = open_log(fs, segment_entries=entries)
    for key, data in steps:
        store(log, key, data)
    log.close()


def told(digests: Digests, log: Log, data: bytes) -> set[tuple[bytes, int]]:
    found = digests.find(log.head(), digest128(data))
    return {(key, entry.commit_lsn) for key, entry in found if entry.digest == digest128(data)}


@given(steps=STEPS, entries=st.sampled_from([1, 3, 1 << 16]), parts=st.booleans())
def test_a_digest_leads_to_a_version_that_has_it_and_to_no_other(
    steps: list[tuple[bytes, bytes]], entries: int, parts: bool
) -> None:
    fs = MemoryFileSystem()
    if parts:
        with made_at_once():
            fill(fs, steps, entries)
    else:
        fill(fs, steps, entries)
    log = open_log(fs, "r")
    every = defaultdict(set)
    for key in KEYS:
        for entry in log.head().versions(key):
            every[entry.digest].add((key, entry.commit_lsn))
    digests = Digests()
    for data in VALUES:
        found, true = told(digests, log, data), every[digest128(data)]
        assert found <= true
        assert bool(found) == bool(true)
    log.close()


def test_what_was_noted_is_found_before_it_is_sealed_and_few_are_kept(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "NOTED_MAX", 8)
    log, digests = open_log(MemoryFileSystem()), Digests()
    assert told(digests, log, VALUES[0]) == set()
    lsns = []
    for number in range(20):
        data = b"%d" % number * 40
        lsns.append(store(log, KEYS[0], data))
        digests.note({digest128(data): KEYS[0]}, lsns[-1])
        assert told(digests, log, data) == {(KEYS[0], lsns[-1])}
        assert len(digests._noted) <= 8
    assert told(digests, log, b"19" * 40) == {(KEYS[0], lsns[19])}
    assert told(digests, log, b"0" * 40) == set()
    log.close()


def test_a_value_stored_a_hundred_times_is_named_a_few_times() -> None:
    fs = MemoryFileSystem()
    fill(fs, [(KEYS[number % 4], VALUES[0]) for number in range(100)], 200)
    fill(fs, [(KEYS[3], VALUES[1])], 1)
    for parts in (False, True):
        if parts:
            with made_at_once():
                fill(fs, [(KEYS[3], VALUES[number]) for number in range(2, 6)], 1)
        log = open_log(fs, "r")
        assert 0 < len(list(Digests().find(log.head(), digest128(VALUES[0])))) <= 2 * EACH_MAX
        log.close()


def test_few_segments_without_a_part_are_asked_and_no_table_outlives_its_use(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "TABLES_MAX", 3)
    fs = MemoryFileSystem()
    values = [b"%d" % number * 40 for number in range(12)]
    fill(fs, [(KEYS[0], data) for data in values], 1)
    log, other, digests = open_log(fs, "r"), open_log(fs, "r"), Digests()
    assert [bool(told(digests, log, data)) for data in values] == [False] * 8 + [True] * 4
    for count in (8, 2, 1, 1, 1, 1):
        replace_segments(other, count)
        sealed = len(log.head().sealed)
        if sealed <= 3:
            assert all(told(digests, log, data) for data in values)
        else:
            assert told(digests, log, values[11])
        assert len(digests._tables) <= 2 * 3 + 1
    log.close()


def test_a_view_whose_segments_were_replaced_misses_them_and_fails_nowhere() -> None:
    fs = MemoryFileSystem()
    fill(fs, [(KEYS[0], VALUES[number]) for number in range(6)], 1)
    log, digests = open_log(fs, "r"), Digests()
    view = log.head()
    for part in view.sealed:
        part.release()
    replace_segments(open_log(fs, "r"), 5)
    assert list(digests.find(view, digest128(VALUES[0]))) == []
    assert told(digests, log, VALUES[0])
    log.close()


def test_a_table_holds_no_versions_without_bytes() -> None:
    fs = MemoryFileSystem()
    fill(fs, [(KEYS[0], b""), (KEYS[1], VALUES[0]), (KEYS[2], b""), (KEYS[3], VALUES[1])], 2)
    log = open_log(fs, "r")
    index = log.head().sealed[0].index
    assert isinstance(index, MappedIndex)
    table = DigestTable(index)
    assert [key for key, _ in table.find(index, digest128(VALUES[0]))] == [KEYS[1]]
    assert list(table.find(index, digest128(b""))) == []
    log.close()
