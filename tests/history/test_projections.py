"""Every projection is the fold of its events: folded here by hand, and compared at every moment.

The fold below knows nothing of indexes, segments or lineages: plain dicts, one set per commit, and
``Rewound`` takes up the dicts of its target. What it gives is what the database must answer.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from hypothesis import example, given
from hypothesis import strategies as st

import mldb
from mldb.history import events
from mldb.log.fs.memory import MemoryFileSystem
from tests.support.parts import examples


@dataclass
class State:
    """What the events so far amount to."""

    tensors: dict[str, tuple[int, str, tuple[int, ...]]] = field(default_factory=dict)
    metadata: dict[str, dict[str, Any]] = field(default_factory=dict)
    relationships: dict[tuple[str, str, str], tuple[int, dict[str, Any]]] = field(
        default_factory=dict
    )
    checkpoints: dict[str, tuple[int, int | None, dict[str, Any]]] = field(default_factory=dict)

    def apply(self, event: mldb.Event) -> None:
        match event:
            case events.TensorStored(lsn=lsn, name=name):
                self.tensors[name] = (lsn, event.dtype, event.shape)
                if event.metadata is not None:
                    self.metadata[name] = event.metadata
            case events.TensorDeleted(name=name):
                self.tensors.pop(name, None)
                self.metadata.pop(name, None)
            case events.MetadataSet(name=name):
                self.metadata[name] = event.metadata
            case events.RelationshipCreated(lsn=lsn, source=source, target=target, kind=kind):
                self.relationships[source, kind, target] = (lsn, event.metadata)
            case events.RelationshipDeleted(source=source, target=target, kind=kind):
                self.relationships.pop((source, kind, target), None)
            case events.CheckpointTaken(lsn=lsn, name=name):
                self.checkpoints[name] = (lsn, event.step, event.metrics)


@dataclass
class Fold:
    """The states at all commits, and what belongs to the store and is never rewound."""

    states: dict[int, State] = field(default_factory=lambda: {0: State()})
    parents: dict[int, int] = field(default_factory=dict)
    epochs: dict[int, int] = field(default_factory=dict)
    tags: dict[str, int] = field(default_factory=dict)
    pins: set[int] = field(default_factory=set)
    head: int = 0

    def run(self, stream: Iterable[mldb.Event]) -> None:
        for lsn, group in itertools.groupby(stream, key=lambda event: int(event.lsn)):
            batch = list(group)
            parent = self.head
            for event in batch:
                if isinstance(event, events.Rewound):
                    parent = event.target
            state = copy.deepcopy(self.states[parent])
            for event in batch:
                state.apply(event)
                self.note(event)
            self.states[lsn], self.parents[lsn] = state, parent
            self.epochs[lsn] = batch[0].epoch
            self.head = lsn

    def note(self, event: mldb.Event) -> None:
        match event:
            case events.TagSet(name=name, target=target):
                self.tags[name] = target
            case events.TagDeleted(name=name):
                self.tags.pop(name, None)
            case events.PinSet(target=target):
                self.pins.add(target)
            case events.PinCleared(target=target):
                self.pins.discard(target)

    def at_epoch(self, epoch: int) -> State:
        lsn = self.head
        while lsn and self.epochs[lsn] > epoch:
            lsn = self.parents[lsn]
        return self.states[lsn]


def answered(reader: Any) -> State:
    """What the database, or a snapshot of it, answers."""
    names = list(reader)
    handles = {name: reader.tensor(name) for name in names}
    return State(
        {name: (int(h.lsn), h.dtype.str, h.shape) for name, h in handles.items()},
        {name: found for name in names if (found := reader.metadata(name))},
        {(r.source, r.kind, r.target): (int(r.lsn), r.metadata) for r in reader.relationships()},
        {c.name: (int(c.lsn), c.step, c.metrics) for c in reader.checkpoints()},
    )


def plain(state: State) -> State:
    """Without empty metadata, which reads like none."""
    kept = {name: found for name, found in state.metadata.items() if found}
    return State(state.tensors, kept, state.relationships, state.checkpoints)


NAME = st.sampled_from("abc")
VERB = st.one_of(
    st.tuples(st.just("store"), NAME, st.integers(1, 5)),
    st.tuples(st.just("store_with"), NAME, st.integers(0, 5)),
    st.tuples(st.just("delete"), NAME, st.just(0)),
    st.tuples(st.just("describe"), NAME, st.integers(0, 5)),
    st.tuples(st.just("relate"), NAME, st.integers(0, 5)),
    st.tuples(st.just("unrelate"), NAME, st.just(0)),
)
STEP = st.one_of(
    st.tuples(st.just("batch"), st.lists(VERB, max_size=5), st.integers(0, 2)),
    st.tuples(st.just("failing batch"), st.lists(VERB, max_size=3), st.just(0)),
    st.tuples(st.just("checkpoint"), NAME, st.integers(0, 2)),
    st.tuples(st.just("tag"), NAME, st.integers(0, 9)),
    st.tuples(st.just("untag"), NAME, st.just(0)),
    st.tuples(st.just("pin"), NAME, st.integers(0, 9)),
    st.tuples(st.just("rewind epoch"), NAME, st.integers(-1, 9)),
    st.tuples(st.just("rewind lsn"), NAME, st.integers(0, 99)),
)


def change(target: Any, verb: str, name: str, number: int) -> None:
    """One verb on the database or on a transaction; what is missing is left alone."""
    try:
        match verb:
            case "store":
                target.store_tensor(name, np.zeros(number, "f4"))
            case "store_with":
                target.store_tensor(name, [number], {"n": number} if number else {})
            case "delete":
                target.delete_tensor(name)
            case "describe":
                target.set_metadata(name, {"d": number} if number else {})
            case "relate":
                target.create_relationship(name, "b", "kind", {"n": number})
            case "unrelate":
                target.delete_relationship(name, "b", "kind")
    except KeyError:
        return


class Stop(Exception):
    """Ends a batch that is not to be stored."""


def perform(db: mldb.MLDatabase, verb: str, what: Any, number: int) -> None:
    lsns = [event.lsn for event in db.events()]
    match verb:
        case "batch":
            with db.transaction(epoch=db.epoch + number) as txn:
                for step in what:
                    change(txn, *step)
        case "failing batch":
            try:
                with db.transaction() as txn:
                    for step in what:
                        change(txn, *step)
                    raise Stop
            except Stop:
                pass
        case "checkpoint":
            state = {"a": np.zeros(number + 1), "deep": {"b": np.ones(2)}}
            step = number or None
            db.checkpoint(
                state, epoch=db.epoch + number, name=what, step=step, metrics={"n": number}
            )
        case "tag" if lsns:
            db.tag(what, lsns[number % len(lsns)])
        case "untag" if what in db.tags():
            db.untag(what)
        case "pin" if lsns:
            point = lsns[number % len(lsns)]
            db.unpin(point) if point in db.pins() else db.pin(point)
        case "rewind epoch":
            db.rewind(number)
        case "rewind lsn" if lsns:
            db.rewind(lsns[number % len(lsns)])


REPLACED: list[tuple[str, Any, int]] = [
    ("batch", [("store_with", "a", 1)], 0),
    ("batch", [("delete", "a", 0), ("store", "a", 1)], 0),
]


@given(steps=st.lists(STEP, max_size=14))
@example(steps=REPLACED)  # the metadata ended, and for a while no event said so
@examples(60)
def test_what_the_database_answers_is_the_fold_of_its_events(
    steps: list[tuple[str, Any, int]],
) -> None:
    fs = MemoryFileSystem()
    with mldb.MLDatabase.on(fs, durability="os", segment_entries=6) as db:
        for step in steps:
            perform(db, *step)
    with mldb.MLDatabase.on(fs, mode="r") as db:
        fold = Fold()
        fold.run(db.events())
        assert fold.head == db.lsn
        assert answered(db) == plain(fold.states[fold.head])
        assert db.tags() == fold.tags
        assert db.pins() == sorted(fold.pins)
        for lsn, state in fold.states.items():
            with db.at(lsn=lsn) as snapshot:
                assert answered(snapshot) == plain(state), lsn
        for epoch in range(-1, max(fold.epochs.values(), default=0) + 2):
            with db.at(epoch=epoch) as snapshot:
                assert answered(snapshot) == plain(fold.at_epoch(epoch)), epoch


@given(steps=st.lists(STEP, min_size=1, max_size=10), cut=st.integers(0, 20))
@examples(30)
def test_a_fold_goes_on_where_it_stopped(steps: list[tuple[str, Any, int]], cut: int) -> None:
    """The state of a fold and its LSN are all that is needed to take up the events again."""
    with mldb.MLDatabase.on(MemoryFileSystem(), durability="os") as db:
        for step in steps:
            perform(db, *step)
        whole = Fold()
        whole.run(db.events())
        lsns = [0, *whole.parents]
        stop = lsns[cut % len(lsns)]
        part = Fold()
        part.run(db.events(None, mldb.Lsn(stop)))
        assert part.head == stop
        part.run(event for event in db.events(mldb.Lsn(stop)) if event.lsn > stop)
        assert part == whole
