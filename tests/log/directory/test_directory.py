"""The directory changes how much is touched, and no answer: whatever becomes of its files."""

from __future__ import annotations

import errno
import random
import threading
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import mldb
from mldb.log.active import HINTS
from mldb.log.directory import directory as directory_module
from mldb.log.directory.catalog import CATALOG, load_catalog
from mldb.log.directory.maker import MAKER_LOCK, Maker
from mldb.log.directory.part import Part
from mldb.log.directory.units import Units
from mldb.log.fs.memory import MemoryFileSystem
from mldb.log.fs.memory_disk import Image
from mldb.log.fs.process import CURRENT, Process
from mldb.log.fs.protocol import FileSystem
from mldb.log.log import Log
from mldb.log.view import View
from tests.support.faults import FaultFileSystem
from tests.support.logs import open_log, store
from tests.support.parts import examples

NAMES = [b"\x01a", b"\x01b", b"\x01bc", b"\x02a"]
FANOUT = 2


@pytest.fixture(autouse=True)
def by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    """No maker starts by itself."""
    monkeypatch.setattr(directory_module, "DUE", 1 << 30)


def maker_of(log: Log) -> Maker:
    maker = log._maker
    assert maker is not None
    return maker


def settle(log: Log) -> None:
    """Let a maker end that a loss has woken: none other makes parts meanwhile."""
    thread = maker_of(log)._running.get(0)
    if thread is not None:
        thread.join()


def grow(log: Log, count: int, seed: int = 0) -> None:
    """Store *count* versions, some after a rewind, in segments of one or two."""
    rng = random.Random(seed)
    for _ in range(count):
        key = rng.choice(NAMES)
        if rng.random() < 0.15:
            rewind(log, rng)
        store(log, key, rng.randbytes(3), epoch=log.head().commit.epoch)


def rewind(log: Log, rng: random.Random) -> None:
    """Go on from an older commit."""

    def decide(view: View) -> tuple[int, Any]:
        rows = [row for _, row in view.commits(1, view.commit.lsn)]
        row = rng.choice(rows) if rows else view.commit
        return row.epoch, row

    log.commit([], decide)


def naive(view: View) -> View:
    """The same view without a directory."""
    return view._replace(units=Units(view.sealed, list))


def surface(view: View) -> list[object]:
    """Everything that can be asked of a view."""
    heads = [view.jumps.intervals_at(row.lsn) for _, row in view.commits(1, view.commit.lsn)]
    found: list[object] = [list(view.commits(0, 1 << 40))]
    for prefix in (b"", b"\x01", b"\x01b", b"\x03"):
        found.append(list(view.keys(prefix)))
        found.append(list(view.live(prefix, view.intervals)))
    for key in [*NAMES, b"\x01never"]:
        found.append(view.versions(key))
        found += [view.newest(key, head) for head in [(), *heads]]
    found += [view.commit_at(lsn) for lsn in range(view.commit.lsn + 2)]
    found += [view.last_commit(head, "epoch", limit) for head in heads for limit in (-1, 0, 1)]
    return found


def check(log: Log) -> None:
    view = log.head()
    assert surface(view) == surface(naive(view))


def parts_of(log: Log) -> list[Part]:
    return [unit for unit in log.head().units.newest_first if isinstance(unit, Part)]


@cache
def made_image() -> Image:
    """The disk of :func:`made_store`."""
    return new_store().image()


def made_store() -> MemoryFileSystem:
    """A store with a directory, closed: always the same one."""
    return MemoryFileSystem(image=made_image())


def new_store(count: int = 24) -> MemoryFileSystem:
    """Another store like it."""
    fs = MemoryFileSystem()
    log = open_log(fs, segment_entries=1)
    grow(log, count)
    assert maker_of(log).make(FANOUT) > 0
    log.close()
    return fs


# --- the same answers -----------------------------------------------------------------------------


@given(st.integers(0, 2**32), st.lists(st.sampled_from(["grow", "make", "reopen"]), max_size=8))
@examples(40)
def test_every_answer_is_that_of_the_segments(seed: int, steps: list[str]) -> None:
    fs = MemoryFileSystem()
    log = open_log(fs, segment_entries=1)
    for number, step in enumerate(["grow", "make", *steps, "make"]):
        before = log.head()
        if step == "grow":
            grow(log, 5, seed + number)
        elif step == "make":
            maker_of(log).make(FANOUT)
        else:
            log.close()
            log = open_log(fs, segment_entries=1)
        check(log)
        assert surface(before) == surface(naive(before))  # who has an older view sees no more
    assert parts_of(log)
    reader = open_log(fs, "r")
    check(reader)
    assert len(parts_of(reader)) == len(parts_of(log))
    assert not reader.state.directory.stats(reader.head().units)["distrusted"]


def test_a_lookup_touches_few_parts_in_a_store_of_many_segments() -> None:
    fs = MemoryFileSystem()
    log = open_log(fs, segment_entries=1)
    store(log, b"\x01first", b"1")
    touched: list[int] = []
    for count in (30, 300):
        while len(log.head().sealed) < count:
            store(log, b"\x01x", b"2")
        maker_of(log).make()
        units = log.head().units
        before = units.touched
        assert log.head().newest(b"\x01first", log.head().intervals) is not None
        touched.append(units.touched - before)
    assert touched[1] <= touched[0] + 3 < 20


def test_one_handle_makes_it_and_another_finds_it() -> None:
    fs = MemoryFileSystem()
    writer = open_log(fs, segment_entries=1)
    grow(writer, 20)
    reader = open_log(fs, "r")
    assert not parts_of(reader)
    maker_of(writer).make(FANOUT)
    grow(writer, 2)  # the next manifest lets it look again
    assert parts_of(reader)
    check(reader)


def test_who_has_a_part_that_another_merged_away_goes_on_with_the_larger_one(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """It was told as damage, and its segments were asked one by one until the next seal."""
    fs = MemoryFileSystem()
    writer = open_log(fs, segment_entries=1)
    grow(writer, 8)
    maker_of(writer).make(FANOUT)
    grow(writer, 8, seed=1)
    reader = open_log(fs, "r")
    old = {part.info.id for part in parts_of(reader)}  # found, and not mapped yet
    assert maker_of(writer).make(FANOUT) > 0
    assert not old & {info.id for info in load_catalog(fs)}
    check(reader)
    assert {part.info.id for part in parts_of(reader)} == {i.id for i in load_catalog(fs)}
    check(reader)
    assert not caplog.records
    assert not reader.stats()["directory"]["distrusted"]


# --- files that are lost, damaged, stale or foreign -----------------------------------------------


def hint_files(fs: FileSystem) -> list[str]:
    return [f"{HINTS}/{name}" for name in fs.list(HINTS) if name.startswith("directory")]


def overwrite(fs: FileSystem, name: str, offset: int, data: bytes) -> None:
    file = fs.open(name, "rw")
    file.pwritev([data], offset)
    file.close()


@given(st.data())
@examples(60)
def test_damage_anywhere_changes_no_answer(data: st.DataObject) -> None:
    fs = made_store()
    name = data.draw(st.sampled_from([n for n in hint_files(fs) if not n.endswith(".lock")]))
    file = fs.open(name, "r")
    size = file.size()
    at = data.draw(st.integers(0, size - 1))
    byte = file.pread(1, at)[0] ^ (1 << data.draw(st.integers(0, 7)))
    file.close()
    overwrite(fs, name, at, bytes([byte]))
    log = open_log(fs, segment_entries=1)
    check(log)
    grow(log, 3)
    settle(log)
    maker_of(log).make(FANOUT)  # what is no good is made anew
    check(log)
    again = open_log(fs, "r")
    check(again)
    assert not again.state.directory.stats(again.head().units)["distrusted"]


@pytest.mark.parametrize("when", ["before", "after"])
def test_deleted_parts_change_no_answer(when: str) -> None:
    """Deleted before they are opened, or while a handle has them mapped."""
    fs = made_store()
    log = open_log(fs, segment_entries=1)
    if when == "after":
        check(log)
    for name in hint_files(fs):
        fs.unlink(name)
    check(log)
    grow(log, 9, seed=1)
    maker_of(log).make(FANOUT)
    check(log)
    assert parts_of(log)


def test_a_part_that_is_no_good_is_counted_told_and_made_anew(
    caplog: pytest.LogCaptureFixture,
) -> None:
    fs = made_store()
    part = load_catalog(fs)[0]
    overwrite(fs, part.name, 200, b"\xff" * 64)
    log = open_log(fs, segment_entries=1)
    wanted: list[int] = []
    log.state.directory.on_need = lambda: wanted.append(1)
    check(log)
    assert log.stats()["directory"]["distrusted"] == 1
    assert wanted
    assert "nothing is lost" in caplog.text
    assert maker_of(log).make(FANOUT) > 0
    assert part.id not in {info.id for info in load_catalog(fs)}
    check(log)


def test_the_directory_of_another_store_or_of_an_older_manifest_is_not_believed() -> None:
    fs, other = made_store(), new_store(31)
    for name in other.list(HINTS):
        if name.startswith("directory"):
            file = other.open(f"{HINTS}/{name}", "r")
            data = file.pread(file.size(), 0)
            file.close()
            if fs.exists(f"{HINTS}/{name}"):
                fs.unlink(f"{HINTS}/{name}")
            made = fs.open(f"{HINTS}/{name}", "create")
            made.pwritev([data], 0)
            made.close()
    log = open_log(fs, segment_entries=1)
    assert not parts_of(log)
    check(log)


@pytest.mark.parametrize(
    "value", [None, 7, [], [2, []], [1, None], [1, [[b"x"]]], [1, [[bytes(16), -1, 1, 1, b""]]]]
)
def test_a_catalog_of_anything_is_none(value: object) -> None:
    from mldb.log.hints import save_hint

    fs = made_store()
    save_hint(fs, CATALOG, value)
    assert load_catalog(fs) == []
    check(open_log(fs, segment_entries=1))


# --- makers that fail, stop, or meet --------------------------------------------------------------


def store_with_more() -> tuple[FaultFileSystem, Log]:
    """A store with a directory over its first segments, and others that wait for one."""
    fs = FaultFileSystem(MemoryFileSystem())
    log = open_log(fs, segment_entries=1)
    grow(log, 6)
    assert maker_of(log).make(FANOUT)
    grow(log, 9, seed=1)
    return fs, log


@pytest.mark.parametrize(
    "codes",
    [
        (errno.EIO, errno.ENOSPC),
        pytest.param((errno.EIO,), marks=pytest.mark.large),
        pytest.param((errno.ENOSPC,), marks=pytest.mark.large),
    ],
    ids=["in turn", "EIO", "ENOSPC"],
)
def test_a_maker_stopped_by_an_error_at_any_call_changes_no_answer(codes: Sequence[int]) -> None:
    fs, log = store_with_more()
    before = fs.calls["any"]
    maker_of(log).make(FANOUT)
    calls = fs.calls["any"] - before
    assert calls > 10
    failed = 0
    for at in range(1, calls + 1):
        fs, log = store_with_more()
        fs.fail("any", at=at, code=codes[at % len(codes)])
        maker_of(log).make(FANOUT)
        failed += log.state.directory.failed
        fs.heal()
        check(log)
        maker_of(log).make(FANOUT)
        assert parts_of(log)
        check(log)
        check(open_log(fs, "r"))
    assert failed > calls // 3  # a hint that is not there, or a file that stays, is no failure


def test_a_maker_that_is_told_to_stop_stops_at_its_next_step(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fs = MemoryFileSystem()
    log = open_log(fs, segment_entries=1)
    grow(log, 14)
    maker = maker_of(log)
    monkeypatch.setattr(maker, "_stopped", True)
    assert maker.make(FANOUT) == 0
    assert not load_catalog(fs)
    check(log)


def test_there_is_one_maker_at_a_time() -> None:
    fs = MemoryFileSystem()
    log = open_log(fs, segment_entries=1)
    grow(log, 14)
    lock = fs.lock(MAKER_LOCK)
    assert lock.try_acquire()
    assert maker_of(log).make(FANOUT) == 0
    lock.release()
    assert maker_of(log).make(FANOUT) > 0


def test_a_forked_child_makes_nothing() -> None:
    log = open_log(MemoryFileSystem(), segment_entries=1)
    mine = CURRENT[0]
    try:
        CURRENT[0] = Process()
        maker_of(log).wake()
        assert not maker_of(log)._running
    finally:
        CURRENT[0] = mine


def waited(done: Callable[[], bool]) -> bool:
    for _ in range(2000):
        if done():
            return True
        threading.Event().wait(0.005)
    return False


def test_threads_read_and_write_while_parts_are_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(directory_module, "DUE", 3)
    with mldb.open(tmp_path / "s", durability="os", segment_entries=2) as db:
        wrong: list[object] = []
        done = threading.Event()

        def read() -> None:
            while not done.wait(0.001):  # a loop without a rest would starve the writer
                value = db.get("w")
                history = [version.epoch for version in db.history("w")]
                if history != sorted(history) or (value is not None and not history):
                    wrong.append(history)

        threads = [threading.Thread(target=read) for _ in range(2)]
        for thread in threads:
            thread.start()
        for epoch in range(40):
            db.store_tensor("w", np.full(3, epoch), epoch=epoch)
        done.set()
        for thread in threads:
            thread.join()
        assert not wrong
        assert [int(db.query_tensor("w", as_of=epoch)[0]) for epoch in range(40)] == list(range(40))
        assert waited(lambda: db.stats()["directory"]["parts"] > 0)
    assert not [thread for thread in threading.enumerate() if thread.name == "mldb-directory"]
    with mldb.open(tmp_path / "s", mode="r") as db:
        assert [version.epoch for version in db.history("w")] == list(range(40))
        assert db.stats()["directory"]["parts"] > 0
        assert not db.stats()["directory"]["distrusted"]
