"""Hints saved while commits go on: the same answers at any time, and little to scan afterwards."""

from __future__ import annotations

import errno
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any, cast

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mldb.errors import MldbError, StorageFullError, StorageIOError
from mldb.log import format as fmt
from mldb.log import saving
from mldb.log.active import HINTS, hint_name
from mldb.log.frame import TO_BE_HASHED, Draft, Record
from mldb.log.fs.memory import MemoryFileSystem
from mldb.log.fs.memory_disk import MemoryFile
from mldb.log.index import footer, merge
from mldb.log.index.memory import MemoryIndex
from mldb.log.index.steps import Steps
from mldb.log.log import Log
from mldb.log.newest import load_newest
from mldb.log.sequencer import Sequencer
from tests.support.faults import CALLS, FaultFileSystem, SimulatedKill
from tests.support.hints import hints_every
from tests.support.logs import content, flip, open_log, read, store
from tests.support.parts import examples


def outline(log: Log) -> object:
    """What the index says of everything that was committed."""
    view = log.head()
    versions = {key: list(view.versions(key)) for key in view.keys(b"")}
    return view.commit, view.intervals, versions, list(view.commits(0, fmt.LSN_MAX))


def scanned(fs: MemoryFileSystem) -> Log:
    """A reader that starts from no hint."""
    names = {name: fs.open(f"{HINTS}/{name}", "r").pread(1 << 22, 0) for name in fs.list(HINTS)}
    for name in names:
        fs.unlink(f"{HINTS}/{name}")
    log = open_log(fs, "r")
    for name, data in names.items():
        fs.open(f"{HINTS}/{name}", "create").pwritev([data], 0)
    return log


def hint_of(fs: MemoryFileSystem) -> str:
    return hint_name(load_newest(fs, []).active)


def saved_lsn(fs: MemoryFileSystem) -> int:
    """The last commit of the hint that an opening starts from; 0 when there is none."""
    index = open_log(fs, "r").state.active.hinted
    return 0 if index is None else index.last_lsn


def put(log: Log, number: int, count: int = 1) -> int:
    """Commit *count* versions; some keys come again."""
    drafts = [
        Draft(
            b"\x01%d" % ((number * 7 + at) % 50), 0, 0, at, 1, bytes(16), 0, b"at%d" % (number % 3)
        )
        for at in range(count)
    ]
    record = Record(16 | fmt.MUST_UNDERSTAND, drafts, [bytes(count)], count)
    return log.commit([record], lambda view: (number, view.commit)).lsn


@pytest.mark.parametrize("durability", ["commit", "os"])
def test_every_commit_finds_the_answers_of_a_scan(durability: str) -> None:
    fs = MemoryFileSystem()
    log = open_log(fs, durability=durability)
    newest = 0
    with hints_every(8, steps=3):
        for number in range(120):
            put(log, number, 1 + number % 3)
            reader, plain = open_log(fs, "r"), scanned(fs)
            assert outline(log) == outline(reader) == outline(plain)
            assert reader.state.distrusted == []
            hinted = reader.state.active.hinted
            assert hinted is None or hinted.last_lsn >= newest
            newest = 0 if hinted is None else hinted.last_lsn
    saver = log.sequencer.saver
    assert (saver.saved > 5, saver.failed) == (True, 0)
    assert fs.list("pending") == [] or saver.saving is not None
    log.close()
    assert fs.list("pending") == []


@pytest.mark.parametrize("durability", ["commit", "os"])
def test_what_is_to_be_synced_is_sent_to_the_disk_before(
    durability: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The sync of a hint took a tenth of the time of puts that wait for no disk."""
    fs = MemoryFileSystem()
    log = open_log(fs, durability=durability)
    acts: list[tuple[str, int]] = []

    def note(self: MemoryFile, offset: int, count: int) -> None:
        assert (offset, self) == (0, log.state.active.file)
        acts.append(("sent", count))

    sync = MemoryFile.sync

    def note_sync(self: MemoryFile) -> None:
        acts.append(("synced", 0))
        sync(self)

    monkeypatch.setattr(MemoryFile, "start_writeback", note)
    monkeypatch.setattr(MemoryFile, "sync", note_sync)
    with hints_every(8, steps=1):
        for number in range(8):
            put(log, number)
        end = log.state.active.cursor.offset
        acts.clear()
        while not log.sequencer.saver.saved:
            put(log, 9)
    log.close()
    found = [act for act in acts if act[0] == "sent"]
    if durability == "commit":
        assert not found
    else:
        assert acts[:2] == [("sent", end), ("synced", 0)]
        assert len(found) == 1


@given(
    st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=1, max_size=40),
    st.integers(1, 9),
    st.integers(1, 60),
    st.integers(5, 40),
)
@examples(60)
def test_seals_closes_and_openings_at_any_time_change_nothing(
    acts: list[tuple[int, int]], every: int, steps: int, entries: int
) -> None:
    fs, other = MemoryFileSystem(), MemoryFileSystem()
    options: dict[str, Any] = {"segment_entries": entries, "durability": "os"}
    log, whole = open_log(fs, **options), open_log(other, **options)
    for number, (act, key) in enumerate(acts):
        with hints_every(every, steps=steps):
            store(log, b"\x01%d" % key, b"%d" % number, number)
            if act == 0:
                log.close()
                log = open_log(fs, **options)
            elif act == 1:
                fs.kill()
                log = open_log(fs, **options)
        store(whole, b"\x01%d" % key, b"%d" % number, number)
        assert log.state.distrusted == []
    assert content(log) == content(whole)
    assert content(open_log(fs, "r")) == content(whole)
    keys = list(whole.head().keys(b""))
    assert list(log.head().keys(b"")) == keys
    for name in keys:
        found, expected = log.head().versions(name), whole.head().versions(name)
        assert [read(log, log.head(), name, entry) for entry in found] == [
            read(whole, whole.head(), name, entry) for entry in expected
        ]


def test_views_that_are_kept_lose_nothing() -> None:
    log = open_log(MemoryFileSystem(), durability="os")
    kept = []
    with hints_every(4):
        for number in range(60):
            put(log, number)
            view = log.head()
            kept.append(
                (view, view.commit.lsn, {key: view.versions(key) for key in view.keys(b"")})
            )
    assert log.sequencer.saver.saved > 10
    for view, lsn, versions in kept:
        assert view.commit.lsn == lsn
        for key, expected in versions.items():
            assert view.versions(key) == expected
        assert [row.lsn for _, row in view.commits(1, fmt.LSN_MAX)][-1] == lsn


def test_an_opening_scans_few_commits_after_a_kill() -> None:
    fs = MemoryFileSystem()
    with hints_every(64, steps=2):
        log = open_log(fs, durability="os")
        for number in range(1000):
            put(log, number)
        fs.kill()
        reader = open_log(fs, "r")
    hinted = reader.state.active.hinted
    assert hinted is not None
    assert reader.state.active.memory.commit_count() <= 2 * 64
    assert hinted.commit_count() + reader.state.active.memory.commit_count() == 1000


def test_little_is_kept_in_memory() -> None:
    with hints_every(64, steps=2):
        log = open_log(MemoryFileSystem(), durability="os")
        for number in range(1000):
            put(log, number)
            active = log.state.active
            parts = [part for part in active.parts() if isinstance(part, MemoryIndex)]
            assert sum(part.entry_count() for part in parts) <= 3 * 64
            assert len(active.parts()) <= 3


# --- work -----------------------------------------------------------------------------------------


def test_a_seal_builds_few_rows_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """It was all of them: half a second under the commit lock."""
    built: list[int] = []
    collect = footer._collected

    def counting(*arguments: Any) -> Any:
        entries, commits = collect(*arguments)
        built.append(sum(map(len, entries.values())))
        return entries, commits

    monkeypatch.setattr(footer, "_collected", counting)
    with hints_every(128, steps=10):
        log = open_log(MemoryFileSystem(), durability="os", segment_entries=1500)
        for number in range(1600):
            put(log, number)
    assert len(log.head().sealed) == 1
    assert built
    assert max(built) <= 128 // 8 + 1, built


def test_a_commit_does_a_bounded_number_of_steps() -> None:
    fs = MemoryFileSystem()
    log = open_log(fs, durability="os")
    done: list[int] = []
    steps = 0
    advance = saving.HintSaver.advance

    def counted(self: saving.HintSaver, versions: int) -> None:
        nonlocal steps
        current = self.saving
        if current is not None and not hasattr(current.steps, "counted"):
            current.steps = cast(Any, _Counted(current.steps))
        before = steps
        advance(self, versions)
        done.append(steps - before)

    class _Counted:
        counted = True

        def __init__(self, inner: Any) -> None:
            self.inner = inner

        def __next__(self) -> None:
            nonlocal steps
            steps += 1
            next(self.inner)

        def close(self) -> None:
            self.inner.close()

    with hints_every(256, steps=1):
        saving.HintSaver.advance = counted  # type: ignore[method-assign]
        try:
            for number in range(2000):
                put(log, number)
        finally:
            saving.HintSaver.advance = advance  # type: ignore[method-assign]
    assert log.sequencer.saver.saved >= 6
    assert max(done) == 1
    assert steps <= 80 * (log.sequencer.saver.saved + 1)


def test_a_clean_close_with_a_hint_that_will_do_writes_none() -> None:
    fs = MemoryFileSystem()
    log = open_log(fs, durability="os")
    for number in range(400):
        put(log, number)
    log.close()
    for versions, count, same in (
        (2000, 1, True),
        (2000, 40, True),
        (2000, 20, False),
        (1 << 13, 1, False),
    ):
        before = fs.identity(hint_of(fs))
        with hints_every(versions):
            log = open_log(fs, durability="os")
            assert log.recovery.clean
            for number in range(count):
                put(log, number)
            log.close()
        assert (fs.identity(hint_of(fs)) == before) == same, (versions, count)
        assert outline(open_log(fs, "r")) == outline(scanned(fs))


# --- what goes wrong ------------------------------------------------------------------------------


def commit_many(log: Log, count: int, first: int = 0) -> list[int]:
    """Commit and return the LSNs of those that were stored."""
    return [put(log, number) for number in range(first, first + count)]


@pytest.mark.parametrize("kind", ["open", "rename", "map"])
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO, errno.EMFILE])
@pytest.mark.parametrize("at", [1, 2, 3])
def test_a_hint_that_cannot_be_saved_is_no_error(kind: str, code: int, at: int) -> None:
    inner = MemoryFileSystem()
    fs = FaultFileSystem(inner)
    log = open_log(fs, durability="os")
    with hints_every(8):
        lsns = commit_many(log, 1)
        fs.fail(kind, at=at, code=code)
        lsns += commit_many(log, 100, 1)
    saver = log.sequencer.saver
    assert saver.failed == 1
    assert saver.saved >= 5
    assert [row.lsn for _, row in log.head().commits(lsns[0], fmt.LSN_MAX)] == lsns
    assert outline(log) == outline(scanned(inner)) == outline(open_log(inner, "r"))
    assert inner.list("pending") == []


def test_on_a_full_disk_parts_are_kept_and_saved_later() -> None:
    inner = MemoryFileSystem()
    fs = FaultFileSystem(inner)
    log = open_log(fs, durability="os")
    with hints_every(8):
        put(log, 0)
        fs.fail("rename", code=errno.ENOSPC, forever=True)
        commit_many(log, 60)
        assert log.sequencer.saver.failed >= 5
        assert len(log.state.active.frozen) >= 5
        expected = outline(log)
        assert expected == outline(scanned(inner))
        fs.heal()
        commit_many(log, 20, 60)
    assert log.sequencer.saver.saved >= 1
    assert len(log.state.active.frozen) <= 1
    assert outline(log) == outline(scanned(inner)) == outline(open_log(inner, "r"))


def test_a_sync_that_fails_is_told_and_final() -> None:
    """With durability="os" the hint is what syncs: the commit that did so is not stored."""
    inner = MemoryFileSystem()
    fs = FaultFileSystem(inner)
    log = open_log(fs, durability="os")
    stored = 3
    with hints_every(8):
        commit_many(log, stored)
        log.sync()
        fs.fail("sync", effect="drop")

        def go_on() -> None:
            nonlocal stored
            for number in range(3, 30):
                put(log, number)
                stored += 1

        with pytest.raises(StorageIOError, match="closed for writing"):
            go_on()
    assert stored < 30
    rows = [row for _, row in log.head().commits(1, fmt.LSN_MAX)]
    assert len(rows) == 3
    assert outline(log) == outline(open_log(inner, "r"))
    with pytest.raises(MldbError):
        put(log, 99)


def test_it_stops_at_any_call() -> None:
    """Killed at any call of the file system: the next opening finds what a scan finds."""
    calls = _total_calls(lambda log: commit_many(log, 40))
    assert calls > 100
    for at in range(1, calls + 1, 3):
        inner = MemoryFileSystem()
        fs = _Killing(inner)
        log = open_log(fs, durability="os")
        fs.kill_at = sum(fs.calls[kind] for kind in CALLS) + at
        stored = 0
        with hints_every(8, steps=9):
            try:
                for number in range(40):
                    put(log, number)
                    stored += 1
            except SimulatedKill:
                pass
        with suppress(SimulatedKill):  # a half written file; a process that is dead closes none
            log.sequencer.saver.close()
        inner.kill()
        found, plain = open_log(inner, "r"), scanned(inner)
        assert outline(found) == outline(plain)
        assert found.state.distrusted == []
        count = len(list(found.head().commits(1, fmt.LSN_MAX)))
        assert stored <= count <= stored + 1
        again = open_log(inner)
        put(again, 99)
        again.close()
        assert outline(open_log(inner, "r")) == outline(scanned(inner))


class _Killing(FaultFileSystem):
    """Dies at the n-th call of any kind."""

    kill_at = 1 << 60

    def fault_of(self, kind: str) -> Any:
        found = super().fault_of(kind)
        if sum(self.calls[name] for name in CALLS) >= self.kill_at and not self.dead:
            self.kill()
            self.check_alive()
        return found


def _total_calls(run: Callable[[Log], object]) -> int:
    fs = FaultFileSystem(MemoryFileSystem())
    log = open_log(fs, durability="os")
    before = sum(fs.calls[kind] for kind in CALLS)
    with hints_every(8, steps=9):
        run(log)
    return sum(fs.calls[kind] for kind in CALLS) - before


@pytest.mark.parametrize("what", ["deleted", "damaged", "cut", "older", "foreign"])
def test_hints_may_be_anything_at_any_time(what: str, rng: np.random.Generator) -> None:
    fs, twin = MemoryFileSystem(), MemoryFileSystem()
    log, other = open_log(fs, durability="os"), open_log(twin, durability="os")
    older = b""
    with hints_every(8, steps=5):
        for number in range(100):
            put(log, number)
            put(other, number)
            if number % 7 or not fs.exists(hint_of(fs)) or not twin.exists(hint_of(twin)):
                continue
            data = fs.open(hint_of(fs), "r").pread(1 << 20, 0)
            changed = {
                "deleted": b"",
                "damaged": flip(data, int(rng.integers(8 * len(data)))),
                "cut": data[: int(rng.integers(len(data)))],
                "older": older or data,
                "foreign": twin.open(hint_of(twin), "r").pread(1 << 20, 0),
            }[what]
            older = older or data
            fs.unlink(hint_of(fs))
            if what != "deleted":
                fs.open(hint_of(fs), "create").pwritev([changed], 0)
            assert outline(open_log(fs, "r")) == outline(scanned(fs)) == outline(log)
            if number % 3 == 0:
                fs.kill()
                log = open_log(fs, durability="os")
    log.close()
    assert outline(open_log(fs, "r")) == outline(scanned(fs))


# --- several at once ------------------------------------------------------------------------------


def test_another_thread_commits_while_one_saves() -> None:
    fs = MemoryFileSystem()
    log = open_log(fs, durability="os")
    errors: list[BaseException] = []
    lsns: list[int] = []

    def work(first: int) -> None:
        try:
            lsns.extend(put(log, first + number) for number in range(150))
        except BaseException as error:  # noqa: BLE001 - told to the test
            errors.append(error)

    with hints_every(16, steps=2):
        threads = [threading.Thread(target=work, args=(first,)) for first in (0, 1000, 2000)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert errors == []
    assert [row.lsn for _, row in log.head().commits(1, fmt.LSN_MAX)] == sorted(lsns)
    assert log.sequencer.saver.saved >= 1
    assert outline(log) == outline(scanned(fs)) == outline(open_log(fs, "r"))


def test_a_commit_inside_a_step_is_stored_and_saves_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As a signal handler makes it."""
    fs = MemoryFileSystem()
    log = open_log(fs, durability="os")
    inner: list[int] = []
    steps = merge.merge_steps

    def interrupted(*arguments: Any) -> Steps:
        inner.append(put(log, 7))
        return (yield from steps(*arguments))

    monkeypatch.setattr(footer, "merge_steps", interrupted)
    with hints_every(8):
        outer = commit_many(log, 60)
    assert len(inner) > 3
    rows = [row.lsn for _, row in log.head().commits(1, fmt.LSN_MAX)]
    assert rows == sorted([*outer, *inner])
    assert outline(log) == outline(scanned(fs)) == outline(open_log(fs, "r"))


def test_ctrl_c_in_a_step_leaves_no_trace(monkeypatch: pytest.MonkeyPatch) -> None:
    fs = MemoryFileSystem()
    log = open_log(fs, durability="os")
    advance = saving.HintSaver.advance
    seen = 0

    def interrupted(self: saving.HintSaver, versions: int) -> None:
        nonlocal seen
        seen += 1
        if seen % 5 == 0 and self.saving is not None:
            self.saving.steps = _raising(self.saving.steps)
        advance(self, versions)

    monkeypatch.setattr(saving.HintSaver, "advance", interrupted)
    with hints_every(8, steps=4):
        for number in range(100):
            try:
                put(log, number)
            except KeyboardInterrupt:
                continue
    monkeypatch.undo()
    assert fs.list("pending") == []
    assert len(list(log.head().commits(1, fmt.LSN_MAX))) == 100
    assert outline(log) == outline(scanned(fs)) == outline(open_log(fs, "r"))


def _raising(steps: Iterator[None]) -> Any:
    next(steps, None)
    try:
        yield
        raise KeyboardInterrupt
    finally:
        steps.close()  # type: ignore[attr-defined]


def test_a_seal_overtakes_a_hint() -> None:
    fs = MemoryFileSystem()
    log = open_log(fs, durability="os")
    with hints_every(8, steps=1):
        commit_many(log, 12)
        assert log.sequencer.saver.saving is not None
        old = hint_of(fs)
        _seal(log.sequencer)
        commit_many(log, 30, 12)
    assert not fs.exists(old)
    log.close()
    assert [f"{HINTS}/{name}" for name in fs.list(HINTS)] == [hint_of(fs)]
    assert fs.list("pending") == []


def _seal(sequencer: Sequencer) -> None:
    with sequencer.lock.hold() as guard:
        sequencer.state.begin_writing(guard.key)
        try:
            sequencer.catch_up()
            sequencer.seal()
        finally:
            sequencer.state.end_writing()


def test_two_handles_save_in_turn() -> None:
    fs = MemoryFileSystem()
    one, two = open_log(fs, durability="os"), open_log(fs, durability="os")
    with hints_every(8, steps=3):
        for number in range(120):
            put(one if number // 3 % 2 else two, number)
            assert outline(open_log(fs, "r")) == outline(scanned(fs))
    assert one.sequencer.saver.saved >= 2
    assert two.sequencer.saver.saved >= 2
    assert outline(one) == outline(two)
    one.close()
    two.close()
    assert outline(open_log(fs, "r")) == outline(scanned(fs))


def test_a_full_disk_may_be_told_by_the_commit_itself() -> None:
    """Whatever call fails, and however often: what commits returned is there."""
    for kind in ("pwritev", "sync", "open", "rename", "link", "size"):
        for at in range(1, 60, 4):
            inner = MemoryFileSystem()
            fs = FaultFileSystem(inner)
            log = open_log(fs, durability="commit")
            fs.fail(kind, at=at, code=errno.ENOSPC)
            stored = []
            with hints_every(8):
                for number in range(40):
                    try:
                        stored.append(put(log, number))
                    except (StorageFullError, StorageIOError, MldbError):
                        continue
            found = [row.lsn for _, row in open_log(inner, "r").head().commits(1, fmt.LSN_MAX)]
            assert set(stored) <= set(found), (kind, at)
            assert outline(open_log(inner, "r")) == outline(scanned(inner)), (kind, at)


def test_tensors_keep_their_bytes() -> None:
    fs = MemoryFileSystem()
    log = open_log(fs, durability="os")
    expected: dict[bytes, bytes] = {}
    with hints_every(8):
        for number in range(90):
            key = b"\x01%d" % (number % 11)
            expected[key] = b"%d" % number * 9
            drafts = [Draft(key, 0, 0, 0, len(expected[key]), TO_BE_HASHED, 0, b"attr")]
            record = Record(16 | fmt.MUST_UNDERSTAND, drafts, [expected[key]], len(expected[key]))
            log.commit([record], lambda view: (0, view.commit))
            assert content(log) == expected
    assert content(open_log(fs, "r")) == expected
