"""The sequencer and the maker of the directory are made when first needed, and one of each."""

from __future__ import annotations

import gc
import threading
import weakref

import pytest

from mldb.errors import ClosedError, ReadOnlyError
from mldb.log import on_demand
from mldb.log.fs.memory import MemoryFileSystem
from mldb.log.log import Log
from mldb.log.sequencer import Sequencer
from tests.support.logs import content, open_log, store


def made(log: Log) -> tuple[int, int]:
    """How many sequencers and makers a log has."""
    return len(log._sequencers), len(log._makers)


def test_who_only_reads_makes_neither() -> None:
    fs = MemoryFileSystem()
    store(open_log(fs), b"\x01a", b"1")
    log = open_log(fs)
    assert content(log) == {b"\x01a": b"1"}
    log.stats()
    assert log.recovery.clean
    assert made(log) == (0, 0)
    store(log, b"\x01b", b"2")
    assert made(log) == (1, 0)
    log.tidy_directory()
    assert made(log) == (1, 1)
    reader = open_log(fs, mode="r")
    with pytest.raises(ReadOnlyError):
        reader.sequencer  # noqa: B018 - it raises
    reader.tidy_directory()
    assert made(reader) == (0, 0)


def test_threads_that_write_first_at_once_share_one_sequencer() -> None:
    for _ in range(20):
        log = open_log(MemoryFileSystem())
        start, found = threading.Barrier(4), list[Sequencer]()

        def write(log: Log, start: threading.Barrier, found: list[Sequencer], key: bytes) -> None:
            start.wait()
            found.append(log.sequencer)
            store(log, key, b"1")

        keys = [b"\x01%d" % number for number in range(4)]
        threads = [threading.Thread(target=write, args=(log, start, found, key)) for key in keys]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert set(map(id, found)) == {id(log.sequencer)}
        assert content(log) == dict.fromkeys(keys, b"1")
        assert log.sequencer.commits == 4


def test_a_closed_log_takes_no_first_commit(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither one that comes later, nor one whose sequencer was made while the log was closed."""
    fs = MemoryFileSystem()
    log = open_log(fs)
    log.close()
    with pytest.raises(ClosedError):
        store(log, b"\x01a", b"1")
    log = open_log(fs)
    real = on_demand.make_sequencer

    def closing(*parts: object, **options: bool) -> Sequencer:
        log.close()
        return real(*parts, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(on_demand, "make_sequencer", closing)
    with pytest.raises(ClosedError):
        store(log, b"\x01a", b"1")
    assert content(open_log(fs)) == {}


def test_a_closed_log_wakes_no_maker() -> None:
    log = open_log(MemoryFileSystem())
    log.close()
    log.state.directory.on_need()
    maker = log._maker
    assert maker is not None
    assert maker._stopped
    assert not maker._running


def test_an_unwritten_log_restores_a_lost_hint_at_its_close() -> None:
    fs = MemoryFileSystem()
    log = open_log(fs)
    store(log, b"\x01a", b"1")
    log.close()
    [hint] = [name for name in fs.list("hints") if name.endswith(".idx")]
    log = open_log(fs)
    log.close()
    assert made(log) == (0, 0)
    fs.unlink(f"hints/{hint}")
    open_log(fs).close()
    assert hint in fs.list("hints")


def test_neither_keeps_the_log_alive() -> None:
    log = open_log(MemoryFileSystem())
    store(log, b"\x01a", b"1")
    log.tidy_directory()
    gc.collect()
    gc.disable()
    try:
        state, this = weakref.ref(log.state), weakref.ref(log)
        on_need = log.state.directory.on_need
        del log
        assert this() is None
        assert state() is None
        on_need()  # of a log that is gone
    finally:
        gc.enable()
