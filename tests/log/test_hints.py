"""Hints: believed only when everything fits, and never missed when they are gone."""

from __future__ import annotations

import errno

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mldb.log import format as fmt
from mldb.log.active import HINTS, hint_name
from mldb.log.file_header import decode_file_header
from mldb.log.fs.memory import MemoryFileSystem
from mldb.log.fs.memory_disk import Image
from mldb.log.hints import load_hint, load_hint_bytes, save_hint
from mldb.log.log import Log
from mldb.log.newest import load_newest
from mldb.log.readers import READERS, sweep_dead
from mldb.log.segment import segment_name
from tests.support.faults import FaultFileSystem
from tests.support.logs import PLAIN, content, flip, open_log, store
from tests.support.parts import examples


def hint_of(fs: MemoryFileSystem) -> str:
    """The hint of the active segment of a store."""
    return hint_name(load_newest(fs, []).active)


def folders() -> MemoryFileSystem:
    fs = MemoryFileSystem()
    for name in (HINTS, "pending", READERS):
        fs.mkdir(name)
    return fs


def read(fs: MemoryFileSystem, name: str) -> bytes:
    return fs.open(name, "r").pread(1 << 20, 0)


def replace(fs: MemoryFileSystem, name: str, data: bytes) -> None:
    fs.unlink(name)
    fs.open(name, "create").pwritev([data], 0)


# --- values ---------------------------------------------------------------------------------------


@given(PLAIN)
def test_values_come_back(value: object) -> None:
    fs = folders()
    save_hint(fs, "x", value)
    assert repr(load_hint(fs, "x")) == repr(value)
    assert fs.list("pending") == []


def test_a_later_value_replaces_the_earlier() -> None:
    fs = folders()
    for value in (1, "text", 3):
        save_hint(fs, "x", value)
        assert load_hint(fs, "x") == value


def test_every_flipped_bit_and_every_cut_is_an_absent_hint() -> None:
    fs = folders()
    save_hint(fs, "x", 65536)
    data = read(fs, "hints/x")
    for bit in range(8 * len(data)):
        replace(fs, "hints/x", flip(data, bit))
        assert load_hint(fs, "x") is None, bit
    for length in range(len(data)):
        replace(fs, "hints/x", data[:length])
        assert load_hint(fs, "x") is None


@given(st.binary(max_size=300))
def test_foreign_bytes_are_an_absent_hint(data: bytes) -> None:
    fs = folders()
    replace(fs, "hints/x", data)
    assert load_hint(fs, "x") is None


def test_a_hint_that_cannot_be_saved_is_no_error() -> None:
    for kind in ("open", "pwritev", "rename"):
        fs = FaultFileSystem(folders())
        fs.fail(kind, code=errno.ENOSPC)
        save_hint(fs, "x", 1)
        assert load_hint(fs, "x") is None
    save_hint(MemoryFileSystem(), "x", 1)  # without a folder
    assert load_hint(MemoryFileSystem(), "x") is None


def test_leftovers_of_dead_processes_are_swept() -> None:
    """Only segments were; temporary manifests and hints of killed processes stayed for ever."""
    fs = folders()
    names = ["a-1.seg", "b-1.seg", "c.hint", "d.idx", "MANIFEST-0000000009-e", "b-2.tmp"]
    for name in names:
        fs.open(f"pending/{name}", "create")
    sweep_dead(fs, "b", 0)
    assert fs.list("pending") == ["b-1.seg", "b-2.tmp"]


def test_bytes_come_back_with_their_value() -> None:
    fs = folders()
    for payload in (b"", b"x", bytes(range(256)) * 5000):
        save_hint(fs, "x", [1, "two"], payload)
        found = load_hint_bytes(fs, "x")
        assert found is not None
        assert (found[0], bytes(found[1])) == ([1, "two"], payload)
        assert load_hint_bytes(fs, "x", limit=100) is None


def test_a_value_hint_says_nothing_of_a_store() -> None:
    """It may be copied from one to another: its store id, number and id are zeros."""
    fs = folders()
    save_hint(fs, "x", 1)
    header = decode_file_header(read(fs, "hints/x"), "x")
    assert (header.kind, header.version) == (fmt.FILE_HINT, fmt.FORMAT_VERSION)
    assert (header.store_id, header.file_id, header.id) == (fmt.NO_ID, 0, fmt.NO_ID)


# --- the index of the active segment --------------------------------------------------------------


def closed() -> tuple[MemoryFileSystem, dict[bytes, bytes]]:
    """A store with a hint, and its content."""
    fs = MemoryFileSystem()
    log = open_log(fs)
    for number in range(5):
        store(log, b"\x01%d" % number, b"%d" % number * 9, number)
    expected = content(log)
    log.close()
    return fs, expected


def starts_from_hint(log: Log) -> bool:
    return log.state.active.hinted is not None


def outline(log: Log) -> object:
    """What the index says of everything that was committed."""
    view = log.head()
    versions = {key: view.versions(key) for key in view.keys(b"")}
    return view.commit, view.jumps, view.intervals, versions, list(view.commits(0, fmt.LSN_MAX))


def test_an_opening_from_the_hint_is_like_one_that_scans() -> None:
    fs, expected = closed()
    log = open_log(fs, "r")
    assert starts_from_hint(log)
    fs.unlink(hint_of(fs))
    scanned = open_log(fs, "r")
    assert not starts_from_hint(scanned)
    assert outline(log) == outline(scanned)
    assert content(log) == content(scanned) == expected
    assert (log.state.distrusted, scanned.state.distrusted) == ([], [])


def test_a_damaged_hint_costs_a_scan_and_is_reported() -> None:
    fs, expected = closed()
    data = read(fs, hint_of(fs))
    for offset in range(0, len(data), 5):
        replace(fs, hint_of(fs), flip(data, 8 * offset + offset % 8))
        log = open_log(fs, "r")
        assert not starts_from_hint(log), offset
        assert hint_of(fs) in log.state.distrusted[0]
        assert content(log) == expected, offset


def test_damage_deep_in_a_large_hint_is_found_before_it_is_used() -> None:
    """Pages were verified when first touched: reads that the log could answer failed."""
    fs = MemoryFileSystem()
    log = open_log(fs, durability="os")
    for number in range(300):
        store(log, b"\x01%d" % number, b"", number)
    expected = content(log)
    log.close()
    data = read(fs, hint_of(fs))
    assert len(data) > 2 << fmt.INDEX_BLOCK_LOG2
    for offset in range(1000, len(data), 4001):
        replace(fs, hint_of(fs), flip(data, 8 * offset))
        log = open_log(fs, "r")
        assert not starts_from_hint(log)
        assert content(log) == expected


@pytest.mark.parametrize("length", [0, 1, 127, 128, 183, 184, 1000])
def test_a_cut_hint_costs_a_scan(length: int) -> None:
    fs, expected = closed()
    replace(fs, hint_of(fs), read(fs, hint_of(fs))[:length])
    log = open_log(fs)
    assert not starts_from_hint(log)
    assert log.recovery.distrusted
    assert content(log) == expected
    log.close()
    assert starts_from_hint(open_log(fs, "r"))


def test_a_hint_older_than_the_log_is_a_start() -> None:
    fs, _ = closed()
    old = read(fs, hint_of(fs))
    log = open_log(fs)
    store(log, b"\x01new", b"new", 9)
    expected = content(log)
    log.close()
    replace(fs, hint_of(fs), old)
    log = open_log(fs, "r")
    assert starts_from_hint(log)
    assert content(log) == expected


def test_a_hint_of_a_log_that_grew_otherwise_is_distrusted() -> None:
    """The hint of a copy of the store fits the segment's number and the store, not its commits."""
    fs, _ = closed()
    twin = MemoryFileSystem(image=Image(*fs.image()))
    for target, word in ((fs, b"here"), (twin, b"else")):
        log = open_log(target)
        store(log, b"\x01new", word, 9)
        log.close()
    replace(fs, hint_of(fs), read(twin, hint_of(twin)))
    log = open_log(fs, "r")
    assert not starts_from_hint(log)
    assert "another log" in log.state.distrusted[0]
    assert content(log)[b"\x01new"] == b"here"


def test_a_hint_longer_than_the_log_is_distrusted() -> None:
    fs, _ = closed()
    name = segment_name(load_newest(fs, []).active)
    old_segment, old_manifest = read(fs, name), fs.list("")
    log = open_log(fs)
    store(log, b"\x01new", b"new", 9)
    log.close()
    replace(fs, name, old_segment)
    for name in set(fs.list("")) - set(old_manifest):
        fs.unlink(name)
    log = open_log(fs, "r")
    assert not starts_from_hint(log)
    assert "more than the log holds" in log.state.distrusted[0]
    assert b"\x01new" not in content(log)


def without_ids(log: Log) -> object:
    """The versions of all keys and the commits, without what is random in them."""
    view = log.head()
    versions = {
        key: [version._replace(segment=b"") for version in view.versions(key)]
        for key in view.keys(b"")
    }
    commits = [row._replace(id=b"") for _, row in view.commits(0, fmt.LSN_MAX)]
    times = [row._replace(time=0, clock=0) for row in commits]
    return versions, times


@given(st.lists(st.tuples(st.integers(0, 3), st.booleans()), min_size=1, max_size=12))
@examples(40)
def test_closing_and_opening_at_any_time_changes_nothing(steps: list[tuple[int, bool]]) -> None:
    """The index of a store that was closed now and then is that of one that never was."""
    fs, other = MemoryFileSystem(), MemoryFileSystem()
    log, whole = open_log(fs), open_log(other)
    for number, (key, close) in enumerate(steps):
        for target in (log, whole):
            store(target, b"\x01%d" % key, b"%d" % number, number)
        if close:
            log.close()
            log = open_log(fs)
            assert starts_from_hint(log)
    assert content(log) == content(whole)
    assert without_ids(log) == without_ids(whole)


def test_everything_derived_may_be_deleted(rng: np.random.Generator) -> None:
    """Hints, registrations and pending files, at any time, by anybody."""
    fs = MemoryFileSystem()
    log = open_log(fs, segment_bytes=2000)
    expected: dict[bytes, bytes] = {}
    for number in range(40):
        key, data = b"\x01%d" % rng.integers(10), rng.bytes(100)
        store(log, key, data, number)
        expected[key] = data
        if number % 5 == 4:
            log.close()
            for folder in ("hints", "readers", "pending", "lost+found"):
                for name in fs.list(folder):
                    fs.unlink(f"{folder}/{name}")
            log = open_log(fs, segment_bytes=2000)
            assert log.recovery.clean
            assert log.state.distrusted == []
        assert content(log) == expected
