"""The log as a whole: making and opening a store, what it refuses, what it says of itself."""

from __future__ import annotations

import contextlib
import itertools
import os
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import mldb
from mldb.errors import ClosedError, CorruptError, FormatVersionError, LockedError, ReadOnlyError
from mldb.log import format as fmt
from mldb.log.file_header import encode_file_header
from mldb.log.frame import TO_BE_HASHED, Draft, Record
from mldb.log.fs.memory import MemoryFileSystem
from mldb.log.index.address import CommitRow
from mldb.log.lock import CommitLock
from mldb.log.log import FOLDERS
from mldb.log.manifest import manifest_name, manifest_numbers
from mldb.log.segment import segment_name
from mldb.log.verify import verify
from mldb.log.view import View
from tests.support.files import append_to, contents_of, replace_file
from tests.support.hooked import Hooked
from tests.support.logs import CLOCK, SEGMENT_ID, STORE_ID, content, open_log, store
from tests.support.segments import segment_names
from tests.support.threads import in_thread

KIND = 16 | fmt.MUST_UNDERSTAND


def record(key: bytes, data: bytes) -> Record:
    return Record(KIND, [Draft(key, 0, 0, 0, len(data), TO_BE_HASHED, 0, b"")], [data], len(data))


# --- making and opening ---------------------------------------------------------------------------


def test_a_store_is_made_in_an_empty_folder_and_found_there_again() -> None:
    fs = MemoryFileSystem()
    log = open_log(fs)
    assert set(fs.list("")) == {*FOLDERS, "LOCK", manifest_name(1)}
    [segment] = fs.list("segments")
    assert segment == f"{log.state.active.id.hex()}.seg"
    view = log.head()
    assert (view.commit.lsn, view.number, list(view.keys(b""))) == (0, 1, [])
    log.close()
    again = open_log(fs)
    assert again.store_id == log.store_id
    assert len(log.store_id) == 16
    assert open_log(MemoryFileSystem()).store_id != log.store_id


def test_two_that_make_a_store_at_once_make_one() -> None:
    fs = MemoryFileSystem()
    for folder in FOLDERS:
        fs.mkdir(folder)
    with CommitLock(fs, 1).hold(), pytest.raises(LockedError):
        in_thread(open_log, fs, lock_timeout=0.01)
    one, two = open_log(fs), open_log(fs)
    assert one.store_id == two.store_id
    store(one, b"\x01a", b"1")
    assert content(two) == {b"\x01a": b"1"}


@pytest.mark.parametrize("size", [0, 50, fmt.FILE_HEADER_SIZE])
def test_a_creation_that_did_not_finish_is_started_again(size: int) -> None:
    fs = MemoryFileSystem()
    fs.mkdir("segments")
    header = encode_file_header(
        fmt.FILE_SEGMENT, STORE_ID, CLOCK, segment_id=SEGMENT_ID, base_lsn=1, published=1
    )
    replace_file(fs, segment_name(SEGMENT_ID), header[:size])
    log = open_log(fs)
    store(log, b"\x01a", b"1")
    assert log.store_id != STORE_ID
    assert not fs.exists(segment_name(SEGMENT_ID))
    assert content(open_log(fs, "r")) == {b"\x01a": b"1"}


def test_segments_that_hold_anything_are_never_made_anew() -> None:
    fs = MemoryFileSystem()
    fs.mkdir("segments")
    header = encode_file_header(
        fmt.FILE_SEGMENT, STORE_ID, CLOCK, segment_id=SEGMENT_ID, base_lsn=1, published=1
    )
    name = segment_name(SEGMENT_ID)
    replace_file(fs, name, header + b"x")
    with pytest.raises(CorruptError, match="manifests were deleted") as info:
        open_log(fs)
    assert info.value.file == name
    assert contents_of(fs)[name] == header + b"x"


@pytest.mark.parametrize("mode", ["r", "rw"])
def test_a_folder_of_something_else_is_refused_by_name_and_not_touched(mode: str) -> None:
    fs = MemoryFileSystem()
    for name in ("data.csv", "segments.txt", "MANIFEST"):
        replace_file(fs, name, b"precious")
    before = contents_of(fs)
    with pytest.raises(FormatVersionError, match=r"'MANIFEST', 'data\.csv', 'segments\.txt'"):
        open_log(fs, "r" if mode == "r" else "rw")
    assert contents_of(fs) == before
    assert fs.list("") == sorted(before)


def test_reading_makes_no_store() -> None:
    fs = MemoryFileSystem()
    with pytest.raises(FormatVersionError, match="holds nothing"):
        open_log(fs, "r")
    assert fs.list("") == []


# --- reading --------------------------------------------------------------------------------------


def test_every_commit_comes_back_with_its_frames_in_log_order_on_every_lineage() -> None:
    fs = MemoryFileSystem()
    log = open_log(fs, segment_entries=4)
    expected: list[tuple[int, list[bytes]]] = []
    for number in range(9):
        keys = [b"\x01%d/%d" % (number, place) for place in range(number % 3)]
        parent = log.head().commit_at(expected[2][0]) if number == 6 else None

        def decide(
            view: View, number: int = number, parent: CommitRow | None = parent
        ) -> tuple[int, CommitRow]:
            return number, parent or view.commit

        row = log.commit([record(key, b"x") for key in keys], decide)
        expected.append((row.lsn, keys))
    for handle in (log, open_log(fs, "r")):
        view = handle.head()
        found = []
        for row, frames, file in handle.batches(view, 0, fmt.LSN_MAX):
            assert file in segment_names(fs)
            head = [frame.header for frame, _ in frames]
            lsns = [header.lsn for header in head]
            assert lsns == list(range(row.lsn - len(frames), row.lsn))
            assert all(header.commit_lsn == row.lsn for header in head)
            found.append((row.lsn, bodies(frames)))
        assert found == expected
        some = [batch.row.lsn for batch in handle.batches(view, expected[3][0], expected[5][0])]
        assert some == [lsn for lsn, _ in expected[3:6]]


def bodies(frames: Sequence[tuple[object, bytes]]) -> list[bytes]:
    """The key in each body of one entry; MessagePack puts it in front."""
    found = []
    for _, body in frames:
        start = body.index(b"\x01")
        found.append(body[start : start + 4])
    return found


def test_handles_see_each_other_and_a_closed_one_can_be_closed_again() -> None:
    fs = MemoryFileSystem()
    one, two, reader = open_log(fs), open_log(fs), open_log(fs, "r")
    for number in range(6):
        store((one, two)[number % 2], b"\x01%d" % number, b"x")
        assert len(content(reader)) == len(content(one)) == len(content(two)) == number + 1
    name = one.registration.ensure()
    one.close()
    one.close()
    assert name not in fs.list("readers")
    store(two, b"\x01more", b"x")
    assert len(content(reader)) == 7


def test_reading_refuses_to_write_and_says_how() -> None:
    fs = MemoryFileSystem()
    open_log(fs).close()
    before = contents_of(fs)
    reader = open_log(fs, "r")
    calls: list[Callable[[], object]] = [
        lambda: store(reader, b"\x01a", b"1"),
        lambda: reader.sequencer,
        reader.pending_segment,
        reader.sync,
    ]
    for call in calls:
        with pytest.raises(ReadOnlyError, match="mode='rw'"):
            call()
    reader.close()
    assert contents_of(fs) == before


def test_closing_while_another_process_holds_the_lock_gives_up_the_mark_and_nothing_else() -> None:
    fs = MemoryFileSystem()
    log = open_log(fs, durability="os", lock_timeout=0.01)
    store(log, b"\x01a", b"1")
    numbers = manifest_numbers(fs.list(""))
    with CommitLock(fs, 1).hold():
        in_thread(log.close)
    assert manifest_numbers(fs.list("")) == numbers
    assert content(open_log(fs)) == {b"\x01a": b"1"}


# --- figures --------------------------------------------------------------------------------------


def test_the_figures_count_what_is_there_and_what_this_handle_did() -> None:
    fs = MemoryFileSystem()
    fs.free = 12345
    log = open_log(fs, segment_entries=3, durability="os")
    assert (log.stats()["lsn"], log.stats()["versions"], log.stats()["commits"]) == (0, 0, 0)
    for number in range(8):
        last = store(log, b"\x01%d" % (number % 5), b"x" * 100, number)
    other = open_log(fs, "r")
    other.registration.hold(last)
    stats = log.stats()
    sizes = [len(contents_of(fs)[name]) for name in segment_names(fs)]
    assert stats["store_id"] == log.store_id.hex()
    assert (stats["epoch"], stats["lsn"]) == (7, last)
    assert (stats["segments"], stats["manifest"]) == (3, 3)
    assert (stats["bytes"], stats["active_bytes"]) == (sum(sizes), sizes[2])
    assert (stats["versions"], stats["active_versions"]) == (8, 2)
    assert stats["durable_lsn"] < last, "the last two were not synced"
    assert (stats["commits"], stats["readers"]) == (8, 2), "it is registered itself, as it seals"
    assert (stats["free_bytes"], stats["distrusted"]) == (12345, [])
    assert 0 < stats["mapped_bytes"] <= sum(sizes)
    assert stats["mapped_segments"] <= stats["max_mapped"]
    log.sync()
    assert log.stats()["durable_lsn"] == last
    same = ("epoch", "lsn", "segments", "bytes", "versions", "active_versions")
    seen = other.stats()
    assert {name: seen[name] for name in same} == {name: stats[name] for name in same}
    assert (seen["commits"], seen["readers"]) == (0, 2)


def test_what_was_distrusted_is_told_by_the_figures_and_by_the_recovery() -> None:
    fs = MemoryFileSystem()
    log = open_log(fs)
    store(log, b"\x01a", b"1")
    log.close()
    [hint] = fs.list("hints")
    replace_file(fs, f"hints/{hint}", b"nothing of a hint")
    append_to(fs, segment_names(fs)[0], b"torn")
    for mode in ("r", "rw"):
        log = open_log(fs, "r" if mode == "r" else "rw")
        [report] = log.stats()["distrusted"]
        assert report.startswith(f"hints/{hint}")
        assert log.recovery.distrusted == (report,)


@pytest.mark.parametrize("more", [-9, -1, 0, 1, 9])
def test_a_lock_file_of_any_length_leads_to_the_newest_manifest(
    store_path: Path, more: int
) -> None:
    """Opening trusts its length only where the manifest of that number is there and the last."""
    with mldb.open(store_path, segment_entries=2) as db:
        for epoch in range(7):
            db.store_tensor("x", np.full(3, epoch), epoch=epoch)
    newest = max(int(path.name[-10:]) for path in store_path.glob("MANIFEST-*"))
    assert (store_path / "LOCK").stat().st_size == newest
    os.truncate(store_path / "LOCK", max(newest + more, 0))
    modes: tuple[Any, ...] = ("r", "rw")
    for mode in modes:
        with mldb.open(store_path, mode=mode) as db:
            assert db.epoch == 6
            assert [int(db.query_tensor("x", as_of=epoch)[0]) for epoch in range(7)] == [*range(7)]
            assert db.verify().ok


def test_a_damaged_newest_manifest_is_stepped_over_and_reported(store_path: Path) -> None:
    with mldb.open(store_path) as db:
        db["x"] = np.arange(3)
    newest = max(store_path.glob("MANIFEST-*"))
    newest.write_bytes(newest.read_bytes()[:-1] + b"?")
    with mldb.open(store_path) as db:
        assert db["x"].tolist() == [0, 1, 2]
        assert any(newest.name in text for text in db.recovery.distrusted)


# --- closing while others are inside --------------------------------------------------------------


def test_closing_waits_for_a_commit_at_every_call_of_it() -> None:
    """The commit is stored and told, or refused as one that came later: never anything in between.

    The descriptor was closed under its hands, and its number used again by somebody else's file.
    """
    told = set()
    number = 0
    while True:
        number += 1
        fs = MemoryFileSystem()
        hooked = Hooked(fs)
        log = open_log(hooked, segment_entries=3)
        for place in range(2):
            store(log, b"\x01%d" % place, b"1")
        closer = threading.Thread(target=log.close, daemon=True)

        def close(closer: threading.Thread = closer) -> None:
            closer.start()
            closer.join(0.003)

        hooked.at(number, close)
        try:
            for place in range(4):  # one of them seals
                store(log, b"\x01new%d" % place, b"2")
            stored = 4
        except ClosedError as error:
            assert "closed" in str(error)
            stored = place
        if not hooked.happened:
            log.close()
            break
        closer.join(30)
        assert not closer.is_alive()
        told.add(stored)
        with pytest.raises(ClosedError):
            store(log, b"\x01late", b"3")
        again = open_log(fs)
        found = content(again)
        known = {b"\x010": b"1", b"\x011": b"1"}
        known |= {b"\x01new%d" % place: b"2" for place in range(stored)}
        assert found == known, (number, hooked.happened)
        assert again.recovery.dropped_bytes == 0
        assert verify(again).ok
    assert number > 40
    assert len(told) >= 4


def test_threads_inside_commits_get_a_commit_or_a_typed_error_when_the_handle_is_closed(
    store_path: Path,
) -> None:
    """Never EBADF, never half a transaction, and no byte in a file that took over the number."""
    outcomes: dict[type, int] = {}
    expected: dict[str, int] = {}
    for turn in range(25):
        db = mldb.open(store_path, durability=("os", "commit")[turn % 2], segment_entries=40)
        failures: list[BaseException] = []

        def write(who: int, db: mldb.MLDatabase = db, failures: Any = failures) -> None:
            try:
                for number in itertools.count(expected.get(f"a{who}", 0) + 1):
                    with db.transaction() as txn:
                        txn[f"a{who}"], txn[f"b{who}"] = number, np.full(2000, number)
                    expected[f"a{who}"] = number
            except BaseException as problem:  # noqa: BLE001 - looked at by the main thread
                failures.append(problem)

        threads = [threading.Thread(target=write, args=(who,), daemon=True) for who in range(3)]
        for thread in threads:
            thread.start()
        time.sleep(0.001 * (turn % 10))
        db.close()
        with contextlib.ExitStack() as stack:
            files = [stack.enter_context(tempfile.TemporaryFile()) for _ in range(40)]
            for thread in threads:
                thread.join(30)
                assert not thread.is_alive()
            sizes = [os.fstat(file.fileno()).st_size for file in files]
            assert sizes == [0] * 40, "a frame went into somebody else's file"
        for error in failures:
            outcomes[type(error)] = outcomes.get(type(error), 0) + 1
        with mldb.open(store_path, mode="r") as again:
            for who in range(3):
                number = int(again.get(f"a{who}", 0))
                assert number == expected.get(f"a{who}", 0)
                assert number == 0 or again[f"b{who}"].tolist() == [number] * 2000
    assert outcomes == {ClosedError: 75}
    with mldb.open(store_path) as db:
        assert db.recovery.clean
        assert db.verify().ok
