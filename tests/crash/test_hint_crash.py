"""Crashes while the active index is saved: a hint hides nothing that a power loss took.

The workloads of the crash tests, with hints every few versions; and with the step left out that
makes it so.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from typing import Any, Literal

import pytest

from mldb.log.fs.memory import MemoryFileSystem
from mldb.log.saving import HintSaver
from tests.crash.test_crash import CASES, SHARES, least_of, small
from tests.support.crashes import PERSISTENCE, Recorder, Seen, violation_in
from tests.support.hints import hints_every
from tests.support.parts import one_of

Durability = Literal["commit", "os"]

LEAST = 100


pytestmark = pytest.mark.usefixtures("repeatable")


@pytest.fixture(autouse=True)
def _hints() -> Iterator[None]:
    with hints_every(6, steps=60):
        yield


def recorded(durability: Durability) -> Recorder:
    """Commits of a few versions each, of which every second saves a hint."""
    run = Recorder({"durability": durability, "map_bytes": 256}, MemoryFileSystem(record=True))
    for number in range(9):
        run.commit(small(number), epoch=number)
        if number == 5:
            run.sync()
    return run


@SHARES
@pytest.mark.slow
@pytest.mark.parametrize("durability", ["commit", "os"])
@pytest.mark.parametrize("name", ["hints", "seals", "rewinds", "reopenings", "two handles"])
def test_every_crash_leaves_a_prefix_with_all_that_was_promised(
    name: str, durability: Durability, share: int, seed: int
) -> None:
    run = recorded(durability) if name == "hints" else CASES[name].run(durability)
    saved = run.db._log.sequencer.saver.saved
    assert saved >= 2 or name != "hints"
    seen: set[Seen] = set()
    limit = 90 // share
    for persistence in PERSISTENCE:
        wrong = violation_in(run, persistence, seed=seed, limit=limit, since=run.created, seen=seen)
        assert not wrong, wrong
    distinct = len({digest for digest, *_ in seen})
    print(f"{name}, {durability}, {one_of(share)}: {distinct} disks, {len(seen)} checks")
    assert distinct >= least_of(LEAST, share)


@pytest.mark.slow
def test_a_hint_of_what_is_not_durable_is_found(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Power fails: the last commit frame and the hint are there, what lies before them is not."""

    def nothing(self: HintSaver, *arguments: Any) -> Generator[None, None, None]:
        yield from ()

    monkeypatch.setattr(HintSaver, "_make_durable", nothing)
    run = recorded("os")
    assert any(
        violation_in(run, persistence, seed=seed, limit=600, since=run.created)
        for persistence in PERSISTENCE
        if persistence != "process"
    )
