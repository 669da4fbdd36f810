"""References meet everything else: another process or thread at every place of the write."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

import mldb
from mldb.log.fs.memory import MemoryFileSystem
from tests.support import interference
from tests.support.duplicates import owner_of
from tests.support.interference import Relation, Schedule, Tally, sweep
from tests.support.interference_cases import Part, parts
from tests.support.interference_operations import OPERATIONS, SMALL, Actor, Operation

LEAST = {
    ("process", "some"): 30,
    ("process", "many"): 80,
    ("process", "every"): 150,
    ("thread", "some"): 40,
    ("thread", "many"): 110,
    ("thread", "every"): 150,
}
RIVALS = ("refer", "rewind", "seal", "spill", "refer and seal")
LOOKS = {"deduplicate": 1}


def known(actor: Actor) -> int:
    """A number that fills a tensor of the base, so that its bytes are in the store."""
    return sorted(actor.record.base.contents.items())[1][1]["shared"]


def refer(actor: Actor) -> None:
    """Store a tensor whose bytes another version has."""
    name, _ = actor.name()
    with actor.step(writes={name: known(actor)}) as step:
        step.lsn = int(actor.open_db.store_tensor(name, np.array([known(actor)])))


def refer_in_a_batch(actor: Actor) -> None:
    """The same in a transaction, beside what is new, twice."""
    name, number = actor.name()
    writes = {name: known(actor), f"{name}x": number, f"{name}y": number, f"{name}z": known(actor)}
    with actor.step(writes=writes) as step:
        with actor.open_db.transaction() as txn:
            for written, value in writes.items():
                txn[written] = np.array([value])
        assert txn.lsn is not None
        step.lsn = int(txn.lsn)


@pytest.fixture(autouse=True)
def _operations(monkeypatch: pytest.MonkeyPatch) -> None:
    """Everybody looks for duplicates here; judgements of other tests say nothing about it."""
    for name, operation in OPERATIONS.items():
        options = {**LOOKS, **operation.options}
        monkeypatch.setitem(OPERATIONS, name, replace(operation, options=options))
    monkeypatch.setitem(OPERATIONS, "refer", Operation(refer, LOOKS))
    monkeypatch.setitem(OPERATIONS, "refer in a batch", Operation(refer_in_a_batch, LOOKS))
    monkeypatch.setitem(OPERATIONS, "refer and seal", Operation(refer, {**LOOKS, **SMALL}))
    interference.forget()


def test_what_is_referred_to_is_in_the_store() -> None:
    base, image = interference.base_of("clean")
    number = sorted(base.contents.items())[1][1]["shared"]
    with mldb.MLDatabase.on(MemoryFileSystem(image=image), **LOOKS) as db:
        db["x"] = np.array([number])
        assert owner_of(db, "x") is not None


def swept(relation: Relation, first: str, seed: int, step: int, least: int) -> None:
    tally = Tally()
    for number, second in enumerate(RIVALS):
        base = interference.BASES[number % 3]
        schedule = Schedule(relation, first, second, 0, base=base)
        sweep(tally, schedule, seed=seed + number, step=step, crashes=1)
    what = f"{relation}, {first}"
    tally.report(what, seed, {what: least}, step)


@pytest.mark.parametrize("first", ["refer", "refer in a batch"])
@pytest.mark.parametrize("relation", ["process", "thread"])
@parts(7, 3)
def test_a_reference_finds_its_bytes_whatever_comes_in_between(
    relation: Relation, first: str, part: Part, seed: int
) -> None:
    swept(relation, first, seed, part.step, LEAST[relation, part.name])


@pytest.mark.large
@pytest.mark.parametrize("first", ["refer", "refer in a batch"])
def test_a_reference_finds_its_bytes_whatever_a_handler_does(first: str, seed: int) -> None:
    swept("handler", first, seed, 61, 150)  # it may come at every bytecode
