"""The gate: a worker is slowed down, paused and ended by others, who pay nothing for it."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

import pytest

import mldb
from mldb.compaction.gate import Gate, StandingWish, WorkerStopped, wishes
from mldb.log.fs.posix import OsFileSystem
from tests.support.processes import Child, Line


@pytest.fixture
def fs(store_path: Path) -> OsFileSystem:
    """The folder of a store."""
    mldb.open(store_path).close()
    return OsFileSystem(store_path)


def gate_of(fs: OsFileSystem, rate: int = 0) -> Gate:
    return Gate(fs, rate, lambda: False, lambda is_paused: None)


def wish_files(fs: OsFileSystem) -> list[str]:
    return [name for name in fs.list("hints") if name.startswith("worker-")]


def test_a_wish_stands_until_it_is_withdrawn(fs: OsFileSystem) -> None:
    assert wishes(fs) == set()
    one, two = StandingWish(fs, "pause"), StandingWish(fs, "pause")
    stop = StandingWish(fs, "stop")
    assert wishes(fs) == {"pause", "stop"}
    one.withdraw()
    stop.withdraw()
    assert wishes(fs) == {"pause"}
    two.withdraw()
    two.withdraw()
    assert wishes(fs) == set()
    assert not wish_files(fs)


def test_what_a_dead_process_wished_is_over(fs: OsFileSystem, store_path: Path) -> None:
    def act(line: Line) -> None:
        wish = StandingWish(OsFileSystem(store_path), "pause")
        line.say("wished")
        line.hear()
        del wish

    with Child(act) as child:
        assert child.hear() == ["wished"]
        assert wishes(fs) == {"pause"}
        child.kill()
        child.wait()
        assert len(wish_files(fs)) == 1
        assert wishes(fs) == set()
        assert not wish_files(fs)


def test_a_wish_is_kept_while_others_look_at_it_all_the_time(fs: OsFileSystem) -> None:
    """Who looks takes the lock for a moment; who wishes then must not believe it has it."""
    over = threading.Event()

    def look() -> None:
        while not over.is_set():
            wishes(fs)

    thread = threading.Thread(target=look)
    thread.start()
    try:
        for _ in range(200):
            wish = StandingWish(fs, "pause")
            assert wishes(fs) == {"pause"}
            wish.withdraw()
    finally:
        over.set()
        thread.join()


def test_it_writes_no_faster_than_the_rate(fs: OsFileSystem) -> None:
    gate = gate_of(fs, 1_000_000)
    began = time.monotonic()
    for _ in range(5):
        gate(100_000)
    assert 0.4 < time.monotonic() - began < 5
    began = time.monotonic()
    free = gate_of(fs)
    for _ in range(1000):
        free(1 << 30)
    assert time.monotonic() - began < 5


def test_a_pause_is_told_and_ends_when_nobody_wishes_it(fs: OsFileSystem) -> None:
    told: list[bool] = []
    wish = StandingWish(fs, "pause")
    timer = threading.Timer(0.3, wish.withdraw)
    timer.start()
    gate = Gate(fs, 0, lambda: False, told.append)
    began = time.monotonic()
    gate(1)
    assert time.monotonic() - began >= 0.25
    assert told == [True, False]
    timer.join()


@pytest.mark.parametrize("how", ["stop", "alone", "wish", "while paused", "while slow"])
def test_it_ends_the_worker(fs: OsFileSystem, how: str) -> None:
    lonely = how == "alone"
    gate = Gate(fs, 1000 if how == "while slow" else 0, lambda: lonely, lambda is_paused: None)
    held = []
    if how == "stop":
        gate.stop()
    elif how == "wish":
        held.append(StandingWish(fs, "stop"))
    elif how.startswith("while"):
        held += [StandingWish(fs, "pause")] if how == "while paused" else []
        threading.Timer(0.2, gate.stop).start()
    began = time.monotonic()
    with pytest.raises(WorkerStopped):
        gate(1_000_000)
    assert time.monotonic() - began < 5
    for wish in held:
        wish.withdraw()


def test_looking_is_rare(fs: OsFileSystem, monkeypatch: pytest.MonkeyPatch) -> None:
    looks: list[int] = []
    listed = OsFileSystem.list

    def counted(self: OsFileSystem, folder: str) -> list[str]:
        looks.append(1)
        return listed(self, folder)

    monkeypatch.setattr(OsFileSystem, "list", counted)
    gate = gate_of(fs)
    began = time.monotonic()
    for _ in range(2000):
        gate(1)
    assert len(looks) <= 2 + (time.monotonic() - began) / 0.1


def test_a_folder_without_hints_has_no_wishes(tmp_path: Path) -> None:
    os.mkdir(tmp_path / "empty")
    assert wishes(OsFileSystem(tmp_path / "empty")) == set()
