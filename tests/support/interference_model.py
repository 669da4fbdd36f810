"""What may be true after two actors worked at once: the model behind ``tests/interference``.

Actors write down what they ask for (:class:`Step`) and what they are shown (:class:`Sighting`),
with the times at which each began and ended, on a clock that only counts. :class:`Judge` reads what
is left afterwards and says what contradicts that record.

Every step writes names of its own, so that a commit on disk tells whose it is, and whether all of
it is there.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

import numpy as np

import mldb
from mldb.history.events import MetricsLogged, Rewound, TagSet, TensorPatched, TensorStored
from mldb.history.snapshot import StateSurface

Content: TypeAlias = dict[str, int]
"""A state: the number that fills each tensor."""

Mark: TypeAlias = tuple[str, str]
"""What an event of a commit is about: a tensor, a tag, or the commit that was rewound to."""

Outcome: TypeAlias = Literal["running", "stored", "refused", "unknown"]
Loss: TypeAlias = Literal["nothing", "power"]
AFTER = "after"
CURVE = "loss"
"""A metric to which every step adds that logs any."""


@dataclass(slots=True)
class Step:
    """One commit that was asked for.

    ``handle`` names what it went through; ``reads`` is what it built on, so that it must hold at
    the parent. ``durable`` is the time from which on it survives power loss; None while nobody said
    so. ``logs`` are metrics, by name, one of which no other step has; where they ``waited``, one
    commit may hold those of several steps.
    """

    who: str
    handle: str
    begun: int
    writes: Content = field(default_factory=dict)
    reads: Content = field(default_factory=dict)
    rewinds: int | None = None
    tag: str | None = None
    logs: Content = field(default_factory=dict)
    waited: bool = False
    ended: int | None = None
    lsn: int | None = None
    outcome: Outcome = "running"
    durable: int | None = None

    def __str__(self) -> str:
        """Say who asked for what, when, and what came of it."""
        what = ", ".join(" ".join(mark) for mark in sorted(self.marks()))
        durable = "" if self.durable is None else f", durable at {self.durable}"
        when = f"{self.begun}..{self.ended}"
        return f"[{self.who} {when}: {what}; {self.outcome}, LSN {self.lsn}{durable}]"

    def marks(self) -> frozenset[Mark]:
        """Return what its commit must hold, no more and no less."""
        found = {("tensor", name) for name in self.writes}
        found |= {("metric", name) for name in self.logs}
        if self.rewinds is not None:
            found.add(("rewind", str(self.rewinds)))
        if self.tag is not None:
            found.add(("tag", self.tag))
        return frozenset(found)

    def outcome_at(self, time: int) -> Outcome | None:
        """Return what its actor knew at a time; None when it had not been asked for."""
        if self.begun > time:
            return None
        return self.outcome if self.ended is not None and self.ended <= time else "running"


@dataclass(slots=True)
class Sighting:
    """What a reader was shown: the state of some commit from ``low`` to ``high``.

    ``whole`` when nothing else was there; otherwise these are some of the tensors.
    """

    who: str
    begun: int
    ended: int
    low: int
    high: int
    content: Content
    whole: bool = True

    def __str__(self) -> str:
        """Say who was shown what, and when."""
        lsns = str(self.low) if self.low == self.high else f"{self.low}..{self.high}"
        return f"[{self.who} {self.begun}..{self.ended} saw LSN {lsns}: {self.content}]"


@dataclass(frozen=True, slots=True)
class Base:
    """The store that both actors begin with: the state of each of its commits."""

    lsn: int = 0
    contents: dict[int, Content] = field(default_factory=lambda: {0: {}})


@dataclass(slots=True)
class Record:
    """What two actors asked for and were shown, and what is already known to be wrong."""

    base: Base
    now: int = 0
    steps: list[Step] = field(default_factory=list)
    sightings: list[Sighting] = field(default_factory=list)
    failed_syncs: list[tuple[int, str]] = field(default_factory=list)
    """When a sync failed, and on whose handle."""
    wrong: list[str] = field(default_factory=list)

    def tick(self) -> int:
        """Return the time and let it go on."""
        self.now += 1
        return self.now

    def promise(self, since: int) -> None:
        """Everything that was acknowledged before *since* is durable now.

        What was not durable when a sync failed is not part of it: it may be no more.
        """
        now = self.tick()
        certain = max((when for when, _ in self.failed_syncs), default=0)
        for step in self.steps:
            ended = step.ended or 0
            if step.outcome == "stored" and certain < ended < since:
                step.durable = step.durable or now

    def highest_seen(self, time: int) -> int:
        """Return the highest LSN that anybody was told until *time*."""
        told = [step.lsn or 0 for step in self.steps if step.outcome_at(time) == "stored"]
        shown = [sighting.high for sighting in self.sightings if sighting.ended <= time]
        return max([self.base.lsn, *told, *shown])

    def lost_something(self, time: int) -> bool:
        """Whether a sync failed until *time*: what was not durable then may be gone."""
        return any(when <= time for when, _ in self.failed_syncs)


def number_in(array: Any) -> int:
    """Return the number that fills an array; every element of it is compared."""
    flat = np.asarray(array).reshape(-1)
    number = int(flat[0])
    if not (flat == number).all():
        raise AssertionError(f"an array of {flat.size} elements is not filled with {number}")
    return number


def content_of(surface: StateSurface, as_of: Any = None) -> Content:
    """Read every tensor that a database or snapshot shows."""
    names = surface.names(as_of=as_of)
    return {name: number_in(surface.query_tensor(name, as_of=as_of)) for name in names}


def commits_of(db: mldb.MLDatabase, base: int) -> dict[int, frozenset[Mark]]:
    """Return what each commit behind *base* holds, by LSN, abandoned lineages included."""
    found: dict[int, set[Mark]] = {}
    for event in db.events(mldb.Lsn(base) if base else None):
        marks = found.setdefault(int(event.lsn), set())
        match event:
            case TensorStored() | TensorPatched():
                marks.add(("tensor", event.name))
            case MetricsLogged():
                marks.update(("metric", name) for name in event.values)
            case TagSet():
                marks.add(("tag", event.name))
            case Rewound():
                marks.add(("rewind", str(int(event.target))))
            case _:
                marks.add(("other", type(event).__name__))
    return {lsn: frozenset(marks) for lsn, marks in sorted(found.items()) if lsn > base}


@dataclass(slots=True)
class Judge:
    """Compares one store, as found at a time, with the record."""

    record: Record
    time: int
    loss: Loss = "nothing"
    commits: dict[int, list[Step]] = field(default_factory=dict)
    """The steps of each commit: one, or some whose metrics waited."""
    contents: dict[int, Content] = field(default_factory=dict)
    curves: dict[int, list[int]] = field(default_factory=dict)
    """The curve that every step which logs adds to, at each commit."""

    def examine(self, db: mldb.MLDatabase) -> Iterator[str]:
        """Yield what is wrong with an open store."""
        yield from self._match(commits_of(db, self.record.base.lsn))
        yield from self._promised()
        yield from self._fold()
        yield from self._read(db)
        yield from self._seen()

    def _match(self, found: dict[int, frozenset[Mark]]) -> Iterator[str]:
        by_marks = {step.marks(): step for step in self.record.steps}
        for lsn, marks in found.items():
            steps = _steps_of(marks, by_marks)
            if not steps:
                yield f"commit {lsn} holds {sorted(marks)}: no one transaction, or one twice"
                continue
            self.commits[lsn] = steps
            for step in steps:
                outcome = step.outcome_at(self.time)
                if outcome is None or outcome == "refused":
                    yield f"commit {lsn} of {step} is there though it was refused or never asked"
                if outcome == "stored" and step.lsn not in (None, lsn):
                    yield f"{step} was told another LSN than {lsn}"

    def _promised(self) -> Iterator[str]:
        """What was acknowledged is there, in the order in which it was."""
        present = {id(step): lsn for lsn, steps in self.commits.items() for step in steps}
        fragile = self.loss == "power" or self.record.lost_something(self.time)
        for step in self.record.steps:
            durable = step.durable is not None and step.durable <= self.time
            stored = step.outcome_at(self.time) == "stored"
            if (durable or (stored and not fragile)) and id(step) not in present:
                yield f"{step} was acknowledged and is gone"
        order = [step for _, steps in sorted(self.commits.items()) for step in steps]
        for place, late in enumerate(order):
            for early in order[place + 1 :]:
                if early.ended is not None and early.ended < late.begun:
                    yield f"{early} ended before {late} began and comes after it"

    def _fold(self) -> Iterator[str]:
        contents = self.contents
        contents.update(self.record.base.contents)
        content = contents[self.record.base.lsn]
        curves = self.curves = {lsn: list[int]() for lsn in contents}
        curve: list[int] = []
        for lsn, steps in self.commits.items():
            step = steps[0]
            differing = {name for name in step.reads if content.get(name) != step.reads[name]}
            if differing:
                yield f"commit {lsn} built on other values of {differing} than it read: {step}"
            if step.rewinds is not None:
                content, curve = contents[step.rewinds], curves[step.rewinds]
            logged = [step.logs[CURVE] for step in steps if CURVE in step.logs]
            curve = curves[lsn] = [*curve, *logged]
            content = contents[lsn] = {**content, **step.writes}

    def _read(self, db: mldb.MLDatabase) -> Iterator[str]:
        head = max(self.contents)
        if int(db.lsn) != head:
            yield f"the head is {int(db.lsn)} and not {head}"
            return
        if content_of(db) != self.contents[head]:
            yield f"the head holds {content_of(db)} and not {self.contents[head]}"
        for lsn in {self.record.base.lsn, *self.commits} - {0, head}:
            if (got := content_of(db, mldb.Lsn(lsn))) != self.contents[lsn]:
                yield f"commit {lsn} reads as {got} and not {self.contents[lsn]}"
        logged = any(step.logs for step in self.record.steps)
        for lsn in self.curves if logged else ():
            if lsn and (values := _curve_in(db, lsn)) != self.curves[lsn]:
                yield f"at commit {lsn} the curve is {values} and not {self.curves[lsn]}"
        steps = [step for some in self.commits.values() for step in some]
        tags = {step.tag for step in steps if step.tag is not None}
        if not tags <= set(db.tags()):
            yield f"of the tags {tags} only {db.tags()} are there"
        report = db.verify()
        if not report.ok:
            yield f"verify: {report.problems}"

    def _seen(self) -> Iterator[str]:
        """What was shown is still true, or was lost with what nobody had promised."""
        fragile = self.loss == "power" or self.record.lost_something(self.time)
        for sighting in self.record.sightings:
            if sighting.ended > self.time:
                continue
            inside = [lsn for lsn in self.contents if sighting.low <= lsn <= sighting.high]
            if not inside and not fragile:
                yield f"nothing is left of what {sighting} was shown"
            if inside and not any(_shows(sighting, self.contents[lsn]) for lsn in inside):
                yield f"{sighting} was shown what no commit of {inside} holds"


def _steps_of(marks: frozenset[Mark], by_marks: dict[frozenset[Mark], Step]) -> list[Step]:
    """Take out the step with these marks, or those that waited and have them together."""
    if marks in by_marks:
        return [by_marks.pop(marks)]
    waited = [step for own, step in by_marks.items() if step.waited and own <= marks]
    if frozenset[Mark]().union(*(step.marks() for step in waited)) != marks:
        return []
    return [by_marks.pop(step.marks()) for step in waited]


def _curve_in(db: mldb.MLDatabase, lsn: int) -> list[int]:
    """The values of the curve that all add to."""
    return [int(value) for value in db.metrics(CURVE, as_of=mldb.Lsn(lsn)).value.tolist()]


def _shows(sighting: Sighting, content: Content) -> bool:
    if sighting.whole:
        return sighting.content == content
    return all(content.get(name) == number for name, number in sighting.content.items())


def stale(record: Record) -> Iterator[str]:
    """Yield the readers that were not shown what had been acknowledged before they asked."""
    for sighting in record.sightings:
        for step in record.steps:
            if step.outcome != "stored" or step.ended is None or step.ended >= sighting.begun:
                continue
            certain = step.durable is not None or not record.failed_syncs
            if certain and (step.lsn or 0) > sighting.high:
                yield f"{sighting} was not shown {step}"


def zombies(record: Record) -> Iterator[str]:
    """Yield the commits that a handle acknowledged although a sync of its had failed before."""
    for when, handle in record.failed_syncs:
        for step in record.steps:
            if step.handle == handle and step.begun > when and step.outcome == "stored":
                yield f"{step} was acknowledged by a handle whose sync had failed at {when}"
