"""Two operations at once, enumerated: at each call of the first, the second runs until it is done.

A :class:`Schedule` says all there is to say about a run, and repeats it: which operation leads, at
which of its calls the other comes in (as another process, another thread, a handler on the same
thread, or a forked child), and what goes wrong meanwhile. The second has its turn until it is done
or waits for a lock; then the first goes on. What both asked for and were told is judged by
``tests.support.interference_model``.
"""

from __future__ import annotations

import errno
import gc
import itertools
import os
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cache
from threading import get_ident
from typing import Any, Final, Literal, TypeAlias

import numpy as np

import mldb
from mldb.log.checksum import digest128
from mldb.log.fs.memory import MemoryFileSystem
from mldb.log.fs.memory_disk import EMPTY, Image
from tests.support.interference_disk import Door, World
from tests.support.interference_model import (
    AFTER,
    Base,
    Content,
    Judge,
    Loss,
    Record,
    content_of,
    stale,
    zombies,
)
from tests.support.interference_operations import OPERATIONS, Actor, Operation
from tests.support.interference_turns import Duet, Tracer, repeat

SHOWN: Final = 4
"""Failures printed in full."""

Relation: TypeAlias = Literal["thread", "process", "handler", "fork"]
Trouble: TypeAlias = tuple[str, int]
"""What goes wrong, and at the how manieth call of its kind."""

CALM: Final[Trouble] = ("", 0)

_approved: set[bytes] = set()
"""Disks, together with what was asked for and told, that were judged and found right."""


def forget() -> None:
    """Judge every disk anew."""
    _approved.clear()


# --- stores to begin with -------------------------------------------------------------------------

BASES: Final = ("clean", "killed", "torn")


@cache
def base_of(kind: str) -> tuple[Base, Image]:
    """Return a store of three commits in two segments: closed, killed, or killed while writing.

    One that is "patched" was killed, and has a tensor of which two commits changed rows.
    """
    if kind == "nothing":
        return Base(), EMPTY
    repeat(f"base {kind}")
    fs = MemoryFileSystem()
    db = mldb.MLDatabase.on(fs, segment_entries=7)
    contents: dict[int, Content] = {0: {}}
    for number in range(3):
        with db.transaction(number) as txn:
            txn["shared"] = [number]
            txn["counter"] = [10 + number]
            txn[f"old{number}"] = [number]
            if kind == "patched" and number:
                txn.update_tensor("rows", [0, 1], np.full((2, 3), number))
            elif kind == "patched":
                txn["rows"] = np.zeros((2, 3), np.int64)
        contents[int(db.lsn)] = content_of(db)
    base = Base(int(db.lsn), contents)
    if kind == "clean":
        db.close()
    before = fs.image()
    if kind == "torn":
        db["torn"] = [1]
        after = fs.image()
        grown = {
            node: data[:-30] if len(data) > len(before.contents.get(node, b"")) else data
            for node, data in after.contents.items()
        }
        before = after._replace(contents=grown)
    return base, before


# --- schedules ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Schedule:
    """One run: at place *at* of the operation *first* comes the operation *second*.

    With *stop*, the second goes only as far as that place of its own; its rest comes last.
    """

    relation: Relation
    first: str
    second: str
    at: int
    trouble: Trouble = CALM
    base: str = "clean"
    stop: int = 0


@dataclass(slots=True)
class Played:
    """How a run went. ``met``: the place was there; ``hit``: what was to go wrong did."""

    wrong: list[str]
    met: bool
    hit: bool
    blind: int
    place: str
    crashes: int = 0
    stopped: bool = False


OPTIONS: Final[dict[str, Any]] = {"map_bytes": 256, "lock_timeout": 20.0, "spill_bytes": 66_000}


class Stage:
    """Two actors on a world, ready for one schedule."""

    def __init__(self, schedule: Schedule, seed: int) -> None:
        self.schedule = schedule
        base, image = base_of(schedule.base)
        repeat(f"run {seed}")
        trouble, _ = schedule.trouble
        self.world = World(base, image, loses=trouble.endswith("lost"))
        self.record = self.world.record
        self.duet = Duet()
        self.place = ""
        self.stopped = False
        self.moments: list[tuple[str, int, int]] = []
        """Where power may be lost: in words, by operations on the disk, by the record's clock."""
        rules = self.world.rules
        rules.impatient = trouble == "impatient"
        rules.full = trouble.endswith("full")
        rules.failing = "sync" in trouble
        first = OPERATIONS[schedule.first]
        second = OPERATIONS.get(schedule.second, Operation(Actor.open))
        options = dict(OPTIONS)
        if schedule.relation == "fork":
            # A look for duplicates maps what is read later, and leaves fewer places for a fork.
            options["deduplicate"] = False
        if rules.impatient:
            options["lock_timeout"] = 0.0
        shared = schedule.relation != "process"
        mine = {**options, **first.options, **(second.options if shared else {})}
        self.a = self._actor("a", mine)
        if shared:
            self.b = Actor("b", self.a.fs, self.record, rules, mine, "a", self.a.db)
            self.b.handler = schedule.relation == "handler"
        else:
            self.b = self._actor("b", {**options, **second.options})
        for actor, operation in ((self.a, first), (self.b, second)):
            if operation.before is not None:
                operation.before(actor)

    def _actor(self, who: str, options: dict[str, Any]) -> Actor:
        door = Door(who, self.world)
        actor = Actor(who, door, self.record, self.world.rules, options, who)
        if self.schedule.base != "nothing":
            actor.open()
        return actor

    @property
    def door(self) -> Door:
        """The leader's door."""
        assert isinstance(self.a.fs, Door)
        return self.a.fs

    def arm(self) -> Callable[[], bool]:
        """Let what goes wrong go wrong from now on; return what tells whether it did."""
        trouble, number = self.schedule.trouble
        if trouble in {"", "impatient"}:
            return bool
        who, kind, *_ = trouble.split()
        door = self.a.fs if who == "a" else self.b.fs
        assert isinstance(door, Door)
        if kind == "full":
            kind = "pwritev"
            door.fail(kind, at=number, code=errno.ENOSPC, effect="half")
        else:
            door.fail(kind, at=number)
        target = door.calls[kind] + number
        return lambda: door.calls[kind] >= target

    def interfere(self) -> None:
        """The guest's turn."""
        self.share_end()
        self.duet.invite(self._guest)
        self.note("behind the guest")

    def _guest(self) -> None:
        door = self.b.fs
        if self.schedule.stop and isinstance(door, Door):
            door.hook, door.thread = self._stop, get_ident()
        self.b.run(self.schedule.second)

    def _stop(self, place: str) -> None:
        door = self.b.fs
        if isinstance(door, Door) and door.places == self.schedule.stop:
            self.stopped = True
            self.place += f", stopped at {place}"
            self.duet.pause()

    def note(self, where: str) -> None:
        """Remember a moment at which power may be lost."""
        self.moments.append((where, len(self.world.journal.operations), self.record.tick()))

    def handle(self, place: str) -> None:
        """The guest's turn, as a handler on the leader's thread."""
        self.place = place
        self.share_end()
        self.duet.met = True
        self.b.run(self.schedule.second)
        self.note("behind the handler")

    def share_end(self) -> None:
        """Threads of one handle know that it is being closed."""
        if self.b.handle == self.a.handle and "close" in (
            self.schedule.first,
            self.schedule.second,
        ):
            self.a.closing = self.b.closing = True

    def visit(self, place: str) -> None:
        """Called at each place of the leader."""
        if self.door.places == self.schedule.at:
            self.place = place
            self.interfere()


def play(schedule: Schedule, *, seed: int = 0, crashes: int = 0) -> Played:
    """Run one schedule and judge it; *crashes* disks of a power loss after the guest as well."""
    stage = Stage(schedule, seed)
    door, duet = stage.door, stage.duet
    happened = stage.arm()
    if schedule.relation == "handler":
        tracer = Tracer(schedule.at, stage.handle)
        duet.lead(lambda: tracer.run(lambda: stage.a.run(schedule.first)))
    else:
        door.hook, door.thread = stage.visit, get_ident()
        duet.lead(lambda: stage.a.run(schedule.first))
    door.hook = None
    stage.note("at the end")
    wrong, hit = stage.record.wrong, happened()
    for each in (stage.a.fs, stage.b.fs):
        assert isinstance(each, Door)
        each.heal()
    if duet.hung:
        wrong.append(f"hung: {duet.hung}")
    elif duet.met:
        wrong += verdict(stage, seed, crashes)
    lost = crashes if duet.met else 0
    return Played(wrong, duet.met, hit, duet.blind, stage.place, lost, stage.stopped)


def play_fork(schedule: Schedule, *, seed: int = 0) -> Played:
    """Fork at a place of the leader: the child leaves every block, and the parent goes on.

    The leader holds a snapshot, a transaction with a tensor written ahead, and a tensor writer. The
    child leaves them as ``schedule.second`` says: "raise" or "return".
    """
    stage = Stage(schedule, seed)
    belongings = Belongings(stage.a)
    parent, told = os.getpid(), b""
    met = False

    def visit(place: str) -> None:
        nonlocal told, met
        if stage.door.places != schedule.at:
            return
        stage.place, met = place, True
        here, there = os.pipe()
        belongings.done = len(stage.world.journal.operations)
        child = os.fork()
        if not child:
            os.close(here)
            belongings.inherited = there
            stage.a.closing = True
            raise InChild
        os.close(there)
        with os.fdopen(here, "rb") as pipe:
            told = pipe.read()
        os.waitpid(child, 0)

    stage.door.hook, stage.door.thread = visit, get_ident()
    try:
        stage.a.run(schedule.first)
    finally:
        if os.getpid() != parent:
            belongings.leave(stage, raising=schedule.second == "raise")
    stage.door.hook = None
    stage.share_end()
    wrong = stage.record.wrong
    if met:
        wrong += [] if told == b"nothing" else [f"the child: {told.decode() or 'died'}"]
        belongings.close()
        wrong += verdict(stage, seed, 0)
    return Played(wrong, met, False, 0, stage.place)


class InChild(BaseException):
    """Ends what a forked child was in the middle of."""


class Belongings:
    """What the parent of a fork has open, and how its child gets rid of it."""

    def __init__(self, actor: Actor) -> None:
        self.inherited = -1
        """Where the child tells what it did."""
        self.done = 0
        """How much had happened to the disk before the fork."""
        db = self.db = actor.open_db
        self.snapshot = db.at()
        self.forgotten = db.at()
        self.large = db.transaction()
        self.large.__enter__()["never"] = np.zeros(70_000 // 8)
        self.writer = db.create_tensor("never", (4,), "int64")
        self.writer.__enter__()[0:2] = [1, 2]

    def close(self) -> None:
        """Give all of it up, in the parent."""
        for step in self._exits((Stop, Stop(), None)):
            with suppress(Stop, mldb.ClosedError):
                step()

    def _exits(self, why: Any) -> list[Callable[[], object]]:
        return [
            lambda: self.writer.__exit__(*why),
            lambda: self.large.__exit__(*why),
            self.snapshot.close,
        ]

    def leave(self, stage: Stage, *, raising: bool) -> None:
        """Leave every block as the child, tell what that changed, and end the process."""
        code = 1
        try:
            report = self._leave(stage, (InChild, InChild(), None) if raising else (None,) * 3)
            os.write(self.inherited, (report or "nothing").encode())
            code = 0
        finally:
            os._exit(code)

    def _leave(self, stage: Stage, why: Any) -> str:
        wrong = list(stage.record.wrong)
        steps: list[Callable[[], object]] = [
            *self._exits(why),
            lambda: self.db.store_tensor("x", 1),
            lambda: self.db.__exit__(*why),
            self.db.close,
        ]
        for step in steps:
            try:
                step()
            except (mldb.ClosedError, InChild):
                continue
            except BaseException as error:  # noqa: BLE001 - told to the parent
                wrong.append(f"{type(error).__name__}: {error}")
        del self.snapshot, self.forgotten, self.large, self.writer, self.db
        gc.collect()
        changes = stage.world.journal.operations[self.done :]
        wrong += [f"did {operation!r:.120}" for operation in changes]
        return "; ".join(wrong)


class Stop(Exception):
    """Ends a block of the parent without storing anything."""


def verdict(stage: Stage, seed: int, crashes: int) -> Iterator[str]:
    """Yield what is wrong after a run."""
    record, world = stage.record, stage.world
    schedule = stage.schedule
    if schedule.relation in {"thread", "handler"} or schedule.at % 3 == 1:
        _look_again(stage)
    if schedule.at % 5:
        world.disk.kill()
    else:
        for actor in (stage.a, stage.b):
            actor.closing = True
            if actor.db is not None:
                actor.run("close")
    yield from stale(record)
    yield from zombies(record)
    yield from left_over(world.disk, record, record.now, "nothing", "at the end")
    if crashes:
        # Right behind the guest in every second schedule, at the end in the others.
        where, point, time = stage.moments[(schedule.at + schedule.stop) % len(stage.moments)]
        for disk in world.crashed(point, seed, crashes):
            what = f"power lost {where}, {disk.description:.200}"
            yield from left_over(disk, record, time, "power", what)


def _look_again(stage: Stage) -> None:
    """Both handles still show what there is, unless they were closed."""
    for actor in {id(actor.db): actor for actor in (stage.a, stage.b)}.values():
        if actor.db is not None and not actor.closing:
            actor.run("snapshot")
            actor.run("history")


def left_over(
    disk: MemoryFileSystem, record: Record, time: int, loss: Loss, where: str
) -> Iterator[str]:
    """Open what is left, judge it, go on with it, and open it once more.

    Many schedules end alike: the same bytes on disk after the same story. They are judged once.
    """
    story = record.steps, record.sightings, record.failed_syncs, time, loss
    key = _fingerprint(disk) + repr(story).encode()
    if key in _approved:
        return
    wrong = list(_judged(disk, record, time, loss, zlib.crc32(key)))
    if not wrong:
        _approved.add(key)
    yield from (f"{where}: {item}" for item in wrong)


def _fingerprint(disk: MemoryFileSystem) -> bytes:
    """Tell one disk from another; a pending file may have any name."""
    image = disk.image()
    files = sorted(
        ("pending" if name.startswith("pending/") else name, digest128(image.contents[inode]))
        for name, inode in image.files.items()
    )
    return repr(files).encode()


def _judged(
    disk: MemoryFileSystem, record: Record, time: int, loss: Loss, lot: int
) -> Iterator[str]:
    """Yield what is wrong. *lot* decides what is also done with it, as it costs more than judging.

    Whether an LSN is given again is always tried when one was seen that is not there.
    """
    try:
        db = mldb.MLDatabase.on(disk, **OPTIONS)
        judge = Judge(record, time, loss)
        found = list(judge.examine(db))
        yield from found
        highest = record.highest_seen(time)
        if found or (int(db.lsn) >= highest and lot % 3):
            return
        lsn = int(db.store_tensor(AFTER, [1]))
        if lsn <= highest:
            yield f"LSN {lsn} is given although {highest} was seen"
        content = {**judge.contents[max(judge.contents)], AFTER: 1}
        if lot % 2:
            disk.kill()
        else:
            db.close()
        with mldb.MLDatabase.on(disk, **OPTIONS) as again:
            if int(again.lsn) != lsn or content_of(again) != content:
                yield f"a later commit {lsn} is gone; the head is {again.lsn}"
            if lot % 5 == 0 and not (report := again.verify()).ok:
                yield f"verify after another commit: {report.problems}"
    except Exception as error:  # noqa: BLE001 - whatever it is, what is left must open
        yield f"{type(error).__name__}: {error}"


@dataclass(slots=True)
class Tally:
    """What a number of schedules came to."""

    runs: int = 0
    crashes: int = 0
    blind: int = 0
    wrong: list[str] = field(default_factory=list)

    def take(self, schedule: Schedule, played: Played) -> None:
        """Count one run."""
        self.runs += 1
        self.crashes += played.crashes
        self.blind += played.blind
        if played.wrong:
            wrong = "\n    ".join(played.wrong)
            self.wrong.append(f"{schedule} ({played.place}):\n    {wrong}")

    def report(self, what: str, seed: int, least: Mapping[str, int], step: int = 1) -> None:
        """Print the counts, and fail when anything was wrong or too little was played."""
        part = f"one place of {step}" if step > 1 else "every place"
        print(f"{what}, {part}: {self.runs} schedules, {self.crashes} power losses, seed {seed}")
        shown = "\n".join(self.wrong[:SHOWN])
        assert not self.wrong, f"{len(self.wrong)} of {self.runs} schedules went wrong:\n{shown}"
        assert not self.blind, f"{self.blind} threads waited where nobody could see it"
        assert self.runs >= least[what], f"{what}: only {self.runs} schedules were played"


def sweep(
    tally: Tally,
    schedule: Schedule,
    *,
    seed: int = 0,
    step: int = 1,
    crashes: int = 0,
    stop: int = 0,
    word: str | None = None,
) -> None:
    """Play a schedule at every *step*-th place, with what goes wrong at each call of its kind.

    With *stop*, the guest is stopped at every *stop*-th place of its own. With *word*, the sweep
    is over as soon as something with this word went wrong.
    """
    trouble, numbered = schedule.trouble
    for number in itertools.count(1) if numbered else (0,):
        hit = False
        for place in itertools.count(1 + seed % step, step):
            schedule = replace(schedule, at=place, trouble=(trouble, number))
            for until in itertools.count(1 + (seed + place) % stop, stop) if stop else (0,):
                schedule = replace(schedule, stop=until)
                played = _play(schedule, seed, crashes)
                hit = hit or played.hit
                if not played.met or (numbered and not played.hit):
                    break
                tally.take(schedule, played)
                if word is not None and any(word in wrong for wrong in played.wrong):
                    return
                if not played.stopped:
                    break
            if not played.met or (numbered and not hit):
                break
        if not hit:
            break


def _play(schedule: Schedule, seed: int, crashes: int) -> Played:
    if schedule.relation == "fork":
        return play_fork(schedule, seed=seed)
    return play(schedule, seed=seed, crashes=crashes)
