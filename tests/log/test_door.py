"""The one door to stored bytes: also of a version whose file was replaced since it was found."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import mldb
from mldb.errors import CorruptError, VersionGoneError
from mldb.log import format as fmt
from mldb.log.chain import Stored
from mldb.log.checksum import digest128
from mldb.log.door import Door
from mldb.log.frame import Draft, Record
from mldb.log.fs.memory import MemoryFileSystem
from mldb.log.fs.posix import OsFileSystem
from mldb.log.fs.protocol import Buffer
from mldb.log.index.address import EMPTY_COMMIT, CommitRow, Entry
from mldb.log.log import Log
from mldb.log.segment import SegmentGoneError
from mldb.log.verify import verify
from mldb.log.view import View
from tests.support.logs import content, door, open_log, read, store
from tests.support.segments import replace_segments, segment_names

KEYS = [b"\x01%d" % number for number in range(4)]


def value(number: int) -> bytes:
    return b"value %d " % number * (20 + number)


def go_back(row: CommitRow, view: View) -> tuple[int, CommitRow]:
    return row.epoch, row


def history() -> MemoryFileSystem:
    """Twenty commits in many segments, with a rewind and a deletion."""
    fs = MemoryFileSystem()
    log = open_log(fs, segment_entries=3)
    for number in range(20):
        store(log, KEYS[number % 4], value(number), number)
        if number == 11:
            row = log.head().commit_at(12)
            assert row is not None
            log.commit([], partial(go_back, row))
    log.close()
    return fs


def answers(log: Log, view: View) -> dict[str, Any]:
    """All that a view says, but for where it says that bytes lie."""

    def known(entry: Entry | None) -> Any:
        return entry and (entry.commit_lsn, entry.attr, entry.flags, entry.digest, entry.length)

    rows = [row for _, row in view.commits(0, fmt.LSN_MAX)]
    heads = [EMPTY_COMMIT, *rows]
    lineages = [view.jumps.intervals_at(row.lsn) for row in heads]
    return {
        "commits": [row[:5] for row in rows],
        "ids": [row.id for row in rows],
        "some": [row.lsn for _, row in view.commits(rows[2].lsn, rows[9].lsn)],
        "at": [view.commit_at(row.lsn)[:5] for row in rows],  # type: ignore[index]
        "never": [view.commit_at(lsn) for lsn in (0, 1, rows[-1].lsn + 1)],
        "keys": [list(view.keys(prefix)) for prefix in (b"", b"\x01", b"\x011", b"\x02")],
        "live": [
            [(key, known(entry)) for key, entry in view.live(b"\x01", inside)]
            for inside in lineages
        ],
        "newest": [[known(view.newest(key, inside)) for key in KEYS] for inside in lineages],
        "versions": [[known(entry) for entry in view.versions(key)] for key in KEYS],
        "last": [
            (row := view.last_commit(inside, field, limit)) and row.lsn
            for inside in lineages
            for field in ("epoch", "time")
            for limit in (3, 12, rows[5].time, rows[-1].time)
        ],
        "bytes": [read(log, view, key, entry) for key in KEYS for entry in view.versions(key)],
        "batches": [
            (batch.row.lsn, [(frame.header.kind, frame.header.lsn) for frame, _ in batch.frames])
            for batch in log.batches(view, 0, fmt.LSN_MAX)
        ],
    }


def release_all(view: View) -> None:
    for part in view.sealed:
        part.release()


# --- views of files that are no more --------------------------------------------------------------


@pytest.mark.parametrize("touched", ["nothing", "everything", "everything, then unmapped"])
@pytest.mark.parametrize("counts", [(1,), (4,), (2, 2), (3, 1, 2)])
def test_a_view_goes_on_answering_when_its_segments_are_replaced(
    counts: tuple[int, ...], touched: str
) -> None:
    """Once or several times, whatever was mapped: the same answers and bytes as without it."""
    fs = history()
    untouched = open_log(MemoryFileSystem(image=fs.image()), "r")
    expected = answers(untouched, untouched.head())
    log, other = open_log(fs, "r"), open_log(fs, "r")
    view = log.head()
    if touched != "nothing":
        assert answers(log, view) == expected
    for count in counts:
        replace_segments(other, count)
    if touched.endswith("unmapped"):
        release_all(view)
    assert answers(log, view) == expected
    assert answers(log, log.head()) == expected
    assert log.head() is not view
    assert verify(log).ok
    fresh = open_log(fs)
    assert answers(fresh, fresh.head()) == expected
    store(fresh, KEYS[0], b"new", 30)
    assert answers(log, view) == expected


def touched(log: Log, view: View, key: bytes, at: Entry) -> bytes:
    door(log).touch_rows(view, key, at, 0, 8, np.arange(3), "name")
    return b"verified"


WAYS: dict[str, Callable[[Log, View, bytes, Entry], Buffer]] = {
    "version": lambda log, view, key, at: door(log).version(view, key, at, at.length, "name"),
    "part": lambda log, view, key, at: door(log).part(view, key, at, 99, 3, at.length - 1, "name"),
    "unverified": lambda log, view, key, at: door(log).unverified(view, key, at, 3, 50, "name"),
    "private": lambda log, view, key, at: door(log).private(view, key, at, at.length, "name"),
    "touch_rows": touched,
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("files", ["memory", "os"])
def test_every_way_of_reading_finds_a_version_where_it_lies_now(
    way: str, files: str, tmp_path: Path
) -> None:
    act = WAYS[way]
    fs = MemoryFileSystem() if files == "memory" else OsFileSystem(tmp_path)
    writer = open_log(fs, segment_entries=3)
    for number in range(12):
        store(writer, KEYS[number % 4], value(number), number)
    known, log = open_log(fs, "r"), open_log(fs, "r")
    view = log.head()
    places = [(key, entry) for key in KEYS for entry in view.versions(key)]
    expected = [bytes(act(known, known.head(), key, entry)) for key, entry in places]
    release_all(view)
    replace_segments(writer, 2)
    assert [bytes(act(log, view, key, entry)) for key, entry in places] == expected


class Busy(MemoryFileSystem):
    """Something happens right before the n-th call that opens a file."""

    left = 0
    act: Callable[[], object] = staticmethod(lambda: None)

    def open(self, name: str, mode: Any) -> Any:
        """Open, perhaps after that."""
        self.left -= 1
        if self.left == 0:
            self.act()
        return super().open(name, mode)


def replace_two(log: Log, acted: list[bytes]) -> None:
    acted.append(replace_segments(log, 2))


def test_a_read_of_the_head_starts_again_where_a_file_goes_under_its_hands() -> None:
    """The replacement comes before every single opening of a file, also of the next one."""
    image = history().image()
    expected = content(open_log(MemoryFileSystem(image=image), "r"))
    number = 0
    while True:
        number += 1
        fs = Busy(image=image)
        log, other = open_log(fs, "r"), open_log(fs, "r")
        acted: list[bytes] = []
        fs.act = partial(replace_two, other, acted)
        fs.left = number
        assert content(log) == expected, number
        rows = [batch.row.lsn for batch in log.batches(log.head(), 0, fmt.LSN_MAX)]
        assert len(rows) == 21
        if not acted:
            break
    assert number > 5


def test_what_was_pruned_is_named_and_never_an_older_version() -> None:
    fs = MemoryFileSystem()
    log = open_log(fs, segment_entries=4)
    lsns = [store(log, KEYS[0], value(number), number) for number in range(4)]
    store(log, KEYS[1], b"other", 4)
    seal = [store(log, KEYS[1], value(number), 9) for number in range(4)]
    view = log.head()
    kept = ((lsns[0], lsns[0]), (lsns[3], seal[-1]))
    gone = view.version_at(KEYS[0], lsns[2])
    left = view.version_at(KEYS[0], lsns[3])
    assert gone is not None
    assert left is not None
    other = open_log(fs, "r")
    release_all(view)
    replace_segments(other, 1, lambda key, lsn: lsn not in lsns[1:3], kept)
    with pytest.raises(VersionGoneError, match=rf"'w'.*commit {lsns[2]}.*pin the commit"):
        door(log).version(view, KEYS[0], gone, gone.length, "w")
    assert read(log, view, KEYS[0], left) == value(3)
    assert [entry.commit_lsn for entry in view.versions(KEYS[0])] == [lsns[0], lsns[3]]
    assert view.version_at(KEYS[0], lsns[2]) is None
    # As of a commit that is gone nothing can be said; as of one that was kept, everything.
    for lsn in lsns[1:3]:
        with pytest.raises(VersionGoneError, match=f"commit {lsn} was pruned"):
            view.newest(KEYS[0], ((0, lsn),))
    for lsn in (lsns[0], lsns[3]):
        found = view.newest(KEYS[0], ((0, lsn),))
        assert found is not None
        assert found.commit_lsn == lsn


def test_a_file_that_is_lost_is_damage_and_no_pruning() -> None:
    """The manifest still names it."""
    fs = history()
    log = open_log(fs, "r")
    view = log.head()
    first, second, *_ = segment_names(fs)
    places = {
        log.state.parts.segments[entry.segment].name: (key, entry)
        for key in KEYS
        for entry in view.versions(key)
    }
    release_all(view)
    fs.unlink(first)
    for _ in range(2):
        with pytest.raises(SegmentGoneError, match=r"is missing.*backup") as info:
            read(log, view, *places[first])
        assert isinstance(info.value, CorruptError)
        assert info.value.file == first
        with pytest.raises(SegmentGoneError):
            view.versions(KEYS[0])
        with pytest.raises(SegmentGoneError):
            list(log.batches(view, 0, fmt.LSN_MAX))
    assert read(log, view, *places[second])


# --- what was handed out --------------------------------------------------------------------------


def removed_and_mapped(path: Path) -> list[str]:
    """Files of a store that are mapped here and have no name any more."""
    with open("/proc/self/maps", encoding="utf-8") as maps:
        lines = [line.split(maxsplit=5)[5] for line in maps if str(path) in line]
    return [line for line in lines if line.strip().endswith("(deleted)")]


def filled(path: Path) -> list[mldb.Lsn]:
    with mldb.open(path, segment_entries=6, durability="os") as db:
        lsns = []
        for epoch in range(12):
            lsns.append(db.store_tensor("w", np.arange(5000) + epoch, {"e": epoch}, epoch=epoch))
            db.store_tensor(f"x{epoch}", np.arange(50) * epoch, epoch=epoch)
        return lsns


def test_snapshots_handles_and_iterators_read_on_in_what_replaced_their_files(
    store_path: Path,
) -> None:
    lsns = filled(store_path)
    with mldb.open(store_path, map_bytes=0) as db:
        snapshot, handle = db.at(5), db.tensor("w", as_of=7)
        cold, events = db.at(3), db.events()
        assert snapshot["w"][0] == 5
        array = snapshot["w"]
        replace_segments(open_log(OsFileSystem(store_path), "r"), 2)
        for _ in range(2):
            assert [snapshot[f"x{epoch}"][1] for epoch in range(6)] == list(range(6))
            assert [version.lsn for version in snapshot.history("w")] == lsns[:6]
            assert snapshot.metadata("w") == {"e": 5}
            assert sorted(cold) == ["w", "x0", "x1", "x2", "x3"]
            assert cold["w"].tolist() == list(range(3, 5003))
            assert handle.numpy()[0] == handle[0] == 7
            assert (cold["w"][1], snapshot["w"][1], db["w"][1]) == (4, 6, 12)
            assert db.query_tensor("w", as_of=lsns[2])[0] == 2
            assert array.tolist() == list(range(5, 5005))
            replace_segments(open_log(OsFileSystem(store_path), "r"), 2)
        assert [event.lsn for event in events if hasattr(event, "name")][::2] == lsns
        assert db.verify().ok
        snapshot.close()
        cold.close()


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="needs /proc/self/maps")
def test_adopting_a_manifest_unmaps_what_it_no_longer_names_but_for_arrays_that_live(
    store_path: Path,
) -> None:
    """The disk gets the space back once the last array goes, not when the handle is closed."""
    filled(store_path)
    with mldb.open(store_path, map_bytes=0) as db:
        arrays = [db.query_tensor("w", as_of=epoch) for epoch in range(12)]
        assert db.stats()["mapped_segments"] > 3
        replace_segments(open_log(OsFileSystem(store_path), "r"), 2)
        assert db["x11"][1] == 11
        held = removed_and_mapped(store_path)
        assert 0 < len(held) <= 12
        assert [int(array[0]) for array in arrays] == list(range(12))
        del arrays
        assert removed_and_mapped(store_path) == []
        assert int(db.query_tensor("w", as_of=2)[0]) == 2


def test_a_decoded_version_is_cached_by_where_it_lies_and_found_again_elsewhere(
    store_path: Path,
) -> None:
    with mldb.open(store_path, segment_entries=4, compression="zstd", durability="os") as db:
        for epoch in range(8):
            db.store_tensor("w", np.full(20_000, epoch), epoch=epoch)
    with mldb.open(store_path) as db, db.at(2) as snapshot, db.at(1) as cold:
        assert int(snapshot["w"][7]) == 2
        replace_segments(open_log(OsFileSystem(store_path), "r"), 1)
        assert int(db["w"][7]) == 7
        assert (int(snapshot["w"][7]), int(cold["w"][7])) == (2, 1)
        assert cold["w"].tolist() == [1] * 20_000


# --- versions that have their bytes from others ---------------------------------------------------


def refer(
    log: Log, key: bytes, owner: bytes, base: int, data: bytes, encoding: int = 2, own: bytes = b""
) -> int:
    """Commit a version of *key* that names one of *owner*; return the LSN."""
    draft = Draft(key, 0, encoding, 0, len(own), digest128(data), base, b"attr", owner)
    record = Record(16 | fmt.MUST_UNDERSTAND, [draft], [own] if own else [], len(own))
    return log.commit([record], lambda view: (0, view.commit)).lsn


def added(
    chain: list[Stored], size: int, key: str, base: memoryview | None = None, start: int = 0
) -> memoryview:
    """A delta for tests: the stored byte is added to every byte of the base."""
    assert base is not None
    assert {item.encoding for item in chain} == {fmt.ENCODING_DELTA}
    total = sum(item.data[0] for item in chain)
    return memoryview(bytes((byte + total) & 255 for byte in base))


class _Kept:
    def __init__(self) -> None:
        self.kept: dict[object, memoryview] = {}

    def get(self, key: object, nbytes: int, decode: Callable[[], memoryview]) -> memoryview:
        return self.kept.setdefault(key, decode()) if key not in self.kept else self.kept[key]

    def find(self, key: object) -> tuple[memoryview] | None:
        return (self.kept[key],) if key in self.kept else None

    def keeps(self, nbytes: int) -> bool:
        return True


def deltas(log: Log) -> Door:
    return Door(log.head, "first", added, _Kept(), str.encode)


@pytest.mark.parametrize("sealed", [False, True])
def test_a_reference_is_read_in_every_way_as_its_owner_wherever_that_lies_by_now(
    sealed: bool,
) -> None:
    fs, data = MemoryFileSystem(), bytes(range(256)) * 8
    log = open_log(fs, segment_entries=1 if sealed else 1 << 16)
    base = store(log, KEYS[0], data)
    at = refer(log, KEYS[1], KEYS[0], base, data)
    store(log, KEYS[0], b"newer")
    store(log, KEYS[2], b"last")
    view = log.head()
    for _ in range(2):
        entry = view.newest(KEYS[1], view.intervals)
        assert entry is not None
        assert (entry.commit_lsn, entry.length) == (at, 0)
        reading, size = door(log), len(data)
        args = view, KEYS[1], entry
        assert reading.version(*args, size, "x") == data
        assert reading.part(*args, size, 7, 300, "x") == data[7:300]
        own = reading.private(*args, size, "x", low=3)
        assert bytes(own) == data[3:]
        own[0] = 0
        assert bytes(reading.private(*args, size, "x")) == data
        key, held = reading.holder(*args, "x")
        assert (key, held.commit_lsn, held.encoding) == (KEYS[0], base, 0)
        assert reading.is_raw(held)
        if sealed:
            replace_segments(log, 2)
    log.close()


@pytest.mark.parametrize(
    ("make", "what"),
    [
        (lambda log, data: refer(log, KEYS[1], KEYS[0], 999, data), "is not there"),
        (lambda log, data: refer(log, KEYS[1], KEYS[3], 2, data), "is not there"),
        (lambda log, data: refer(log, KEYS[1], KEYS[0], 2, b"other"), "has other bytes"),
        (lambda log, data: refer(log, KEYS[1], b"", 4, data), "has no bytes of its own"),
    ],
    ids=["no commit", "no key", "digest", "itself"],
)
def test_a_reference_to_what_is_none_is_damage_and_no_other_value(make: Any, what: str) -> None:
    log, data = open_log(MemoryFileSystem()), b"bytes" * 100
    assert store(log, KEYS[0], data) == 2
    make(log, data)
    view = log.head()
    entry = view.newest(KEYS[1], view.intervals)
    assert entry is not None
    reading = door(log)
    for read_it in (
        lambda: reading.version(view, KEYS[1], entry, len(data), "x"),
        lambda: reading.part(view, KEYS[1], entry, len(data), 0, 1, "x"),
        lambda: reading.private(view, KEYS[1], entry, len(data), "x"),
        lambda: reading.holder(view, KEYS[1], entry, "x"),
    ):
        with pytest.raises(CorruptError, match=what):
            read_it()
    assert read(log, view, KEYS[0], view.newest(KEYS[0], view.intervals) or entry) == data
    log.close()


def test_deltas_build_on_one_another_across_names_and_segments() -> None:
    log = open_log(MemoryFileSystem(), segment_entries=1)
    data, lsns = bytes(100), []
    lsns.append(store(log, KEYS[0], data))
    for number in range(1, 5):
        owner = KEYS[0] if number == 2 else b""
        key = KEYS[0] if number == 1 else KEYS[1]
        lsns.append(refer(log, key, owner, lsns[-1], bytes([number]) * 100, 3, b"\x01"))
    lsns.append(refer(log, KEYS[2], KEYS[1], lsns[-1], bytes([4]) * 100))
    view = log.head()
    for key, lsn, value in ((KEYS[0], lsns[1], 1), (KEYS[1], lsns[4], 4), (KEYS[2], lsns[5], 4)):
        entry = view.version_at(key, lsn)
        assert entry is not None
        assert deltas(log).version(view, key, entry, 100, "x") == bytes([value]) * 100
        assert deltas(log).part(view, key, entry, 100, 5, 9, "x") == bytes([value]) * 4
        assert bytes(deltas(log).private(view, key, entry, 100, "x")) == bytes([value]) * 100
    log.close()


@pytest.mark.parametrize("damage", ["circle", "length"])
def test_deltas_in_a_circle_or_on_other_lengths_are_damage(damage: str) -> None:
    log = open_log(MemoryFileSystem())
    assert store(log, KEYS[0], bytes(99)) == 2
    base = (KEYS[2], 6) if damage == "circle" else (KEYS[0], 2)
    assert refer(log, KEYS[1], base[0], base[1], bytes(100), 3, b"\x01") == 4
    assert refer(log, KEYS[2], KEYS[1], 4, bytes(100), 3, b"\x01") == 6
    view = log.head()
    entry = view.newest(KEYS[1], view.intervals)
    assert entry is not None
    with pytest.raises(CorruptError, match="on itself" if damage == "circle" else "99 bytes"):
        deltas(log).version(view, KEYS[1], entry, 100, "x")
    log.close()


class _Bounded(_Kept):
    """Keeps what is small; tells what was asked for."""

    def keeps(self, nbytes: int) -> bool:
        return nbytes <= 1 << 20

    def get(self, key: object, nbytes: int, decode: Callable[[], memoryview]) -> memoryview:
        return super().get(key, nbytes, decode) if self.keeps(nbytes) else decode()


@pytest.mark.parametrize("cache", [_Kept, _Bounded])
def test_a_part_of_a_delta_costs_the_pieces_that_it_is_in(cache: type[_Kept]) -> None:
    """Small parts are decoded by themselves and kept; large ones with the rest, if that is kept."""
    size, spans = 5 << 20, []

    def decode(
        chain: list[Stored], size: int, key: str, base: memoryview | None = None, start: int = 0
    ) -> memoryview:
        assert base is not None
        spans.append((start, start + len(base)))
        return added(chain, size, key, base, start)

    log = open_log(MemoryFileSystem())
    data = bytes(range(256)) * (size >> 8)
    lsn = store(log, KEYS[0], data)
    for _ in range(3):
        lsn = refer(log, KEYS[0], b"", lsn, b"", 3, b"\x01")
    view = log.head()
    entry = view.newest(KEYS[0], view.intervals)
    assert entry is not None
    reading = Door(log.head, "first", decode, cache(), str.encode)

    def part(low: int, high: int) -> list[tuple[int, int]]:
        spans.clear()
        expected = bytes((low + place + 3) & 255 for place in range(high - low))
        assert reading.part(view, KEYS[0], entry, size, low, high, "x") == expected
        return spans

    mega = 1 << 20
    assert part(mega + 5, mega + 9) == [(mega, 2 * mega)]
    assert part(mega + 9, mega + 20) == []
    assert part(2 * mega - 1, 2 * mega + 1) == [(2 * mega, 3 * mega)]
    assert part(mega, mega) == []
    assert part(size - 2, size) == [(4 * mega, size)]
    large = part(mega - 1, 3 * mega + 1)
    assert large == ([(0, size)] if cache is _Kept else [(0, 4 * mega)])
    assert part(7, 9) == ([] if cache is _Kept else [(0, mega)])
    log.close()
