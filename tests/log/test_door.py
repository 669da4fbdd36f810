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
