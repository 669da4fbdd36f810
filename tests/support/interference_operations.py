"""The operations that meet in ``tests/interference``: each asks, and writes down what it was told.

An :class:`Actor` has a handle on the store (its own, or one that it shares with another thread) and
a share of the names. :data:`OPERATIONS` says what it can do.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, ClassVar
from unittest.mock import patch

import numpy as np

import mldb
from mldb.compaction import folds
from mldb.log.fs.memory import MemoryFileSystem
from mldb.log.fs.protocol import FileSystem
from tests.support.compacting import compact_all
from tests.support.interference_model import (
    CURVE,
    Outcome,
    Record,
    Sighting,
    Step,
    content_of,
    number_in,
)

LARGE = 100
"""Elements of a tensor that does not fit a small segment, so that it gets one of its own."""

UNKNOWN = "stored is not known"
"""What an error says when a failed commit may have been stored."""


@dataclass(slots=True)
class Rules:
    """Which errors this run may show beside those of its own operations."""

    impatient: bool = False
    """lock_timeout is 0."""
    full: bool = False
    """A disk is full now and then."""
    failing: bool = False
    """A sync fails."""


def outcome_of(error: BaseException) -> Outcome:
    """Return what an error of a commit says about it."""
    if isinstance(error, mldb.StorageIOError) and "othing was stored" not in str(error):
        return "unknown"
    return "refused" if isinstance(error, mldb.MldbError) else "unknown"


@dataclass(slots=True)
class Actor:
    """One of the two. ``handler``: it runs inside a call of the other, on the same thread."""

    who: str
    fs: FileSystem
    record: Record
    rules: Rules
    options: dict[str, Any]
    handle: str = ""
    db: mldb.MLDatabase | None = None
    handler: bool = False
    closing: bool = False
    """Somebody has begun to close the handle."""
    extras: list[Any] = field(default_factory=list)
    """What it still holds: snapshots, transactions, writers that nobody closed."""

    @property
    def open_db(self) -> mldb.MLDatabase:
        """The handle."""
        assert self.db is not None
        return self.db

    def open(self) -> None:
        """Open a handle of its own."""
        self.db = mldb.MLDatabase.on(self.fs, **self.options)

    def run(self, name: str) -> None:
        """Do one operation; an error that it may not end with is wrong."""
        try:
            OPERATIONS[name].act(self)
        except mldb.MldbError as error:
            if not self.may_raise(error):
                self.record.wrong.append(f"{self.who}, {name}: {type(error).__name__}: {error}")
        except Exception as error:  # noqa: BLE001 - none may reach a user
            self.record.wrong.append(f"{self.who}, {name}: {type(error).__name__}: {error}")

    def may_raise(self, error: mldb.MldbError) -> bool:
        """Whether the documents allow this error here."""
        rules = self.rules
        failed = any(handle == self.handle for _, handle in self.record.failed_syncs)
        match error:
            case mldb.ReentryError():
                return self.handler
            case mldb.LockedError():
                return rules.impatient
            case mldb.ConflictError():
                return True
            case mldb.ClosedError():
                return self.closing or failed
            case mldb.StorageFullError():
                return rules.full
            case mldb.StorageIOError():
                unclaimed = rules.full and UNKNOWN in str(error)
                return unclaimed or (rules.failing and bool(self.record.failed_syncs))
        return False

    @contextmanager
    def step(self, **what: Any) -> Iterator[Step]:
        """Write down a commit that the block asks for; the block sets its LSN."""
        record = self.record
        step = Step(self.who, self.handle, record.tick(), **what)
        record.steps.append(step)
        try:
            yield step
        except BaseException as error:
            step.outcome = outcome_of(error)
            step.ended = record.tick()
            raise
        step.outcome = "stored"
        step.ended = record.tick()
        if self.open_db.options.durability == "commit":
            step.durable = step.ended

    def name(self) -> tuple[str, int]:
        """Return a name that no other step uses, and a number for it."""
        count = len(self.record.steps)
        return f"{self.who}{count}", 1000 + count

    def put(self, *, size: int = 1) -> None:
        """Store one tensor under a name of its own."""
        name, number = self.name()
        with self.step(writes={name: number}) as step:
            step.lsn = int(self.open_db.store_tensor(name, np.full(size, number)))

    def see(self, surface: Any = None) -> None:
        """Read everything at one commit."""
        db = self.open_db
        begun = self.record.tick()
        with db.at() if surface is None else surface as snapshot:
            content, lsn = content_of(snapshot), int(snapshot.lsn)
        self.saw(begun, lsn, lsn, content)

    def saw(self, begun: int, low: int, high: int, content: dict[str, int], **more: Any) -> None:
        """Write down what was shown."""
        end = self.record.tick()
        self.record.sightings.append(Sighting(self.who, begun, end, low, high, content, **more))


def read(actor: Actor) -> None:
    """Read a tensor at the head, between two looks at the head."""
    db, begun = actor.open_db, actor.record.tick()
    low = int(db.lsn)
    number = number_in(db["shared"])
    high = int(db.lsn)
    actor.saw(begun, min(low, high), max(low, high), {"shared": number}, whole=False)


def head(actor: Actor) -> None:
    """Ask for the LSN of the head."""
    begun = actor.record.tick()
    lsn = int(actor.open_db.lsn)
    actor.saw(begun, lsn, lsn, {}, whole=False)


def history(actor: Actor) -> None:
    """List the versions of every tensor: each is there once."""
    db = actor.open_db
    for name in db.names():
        lsns = [int(version.lsn) for version in db.history(name)]
        if lsns != sorted(set(lsns)):
            actor.record.wrong.append(f"{actor.who}: the versions of {name!r} are {lsns}")


def as_of(actor: Actor) -> None:
    """Read an epoch that is over."""
    number = number_in(actor.open_db.query_tensor("shared", as_of=0))
    if number:
        actor.record.wrong.append(f"{actor.who}: as of epoch 0 shared is {number}")


def listing(actor: Actor) -> None:
    """List the names."""
    db, begun = actor.open_db, actor.record.tick()
    low = int(db.lsn)
    names = list(db)
    high = int(db.lsn)
    if missing := {"shared", "counter"} - set(names):
        actor.record.wrong.append(f"{actor.who}: the listing {names} lacks {missing}")
    actor.saw(begun, min(low, high), max(low, high), {}, whole=False)


def commit(actor: Actor) -> None:
    """Store one tensor."""
    actor.put()


def two(actor: Actor) -> None:
    """Store one tensor, then another."""
    actor.put()
    actor.put()


def transaction(actor: Actor) -> None:
    """Count one further, and store two tensors, all or nothing."""
    name, number = actor.name()
    with actor.step(writes={name: number, f"{name}x": number}) as step:
        with actor.open_db.transaction() as txn:
            count = number_in(txn["counter"])
            step.reads = {"counter": count}
            step.writes["counter"] = count + 1
            for written, value in step.writes.items():
                txn[written] = np.full(1, value)
        assert txn.lsn is not None
        step.lsn = int(txn.lsn)


def blind(actor: Actor) -> None:
    """Store three tensors without reading any: this never conflicts."""
    name, number = actor.name()
    writes = {name: number, f"{name}x": number, "shared": number}
    with actor.step(writes=writes) as step:
        try:
            with actor.open_db.transaction() as txn:
                for written, value in writes.items():
                    txn[written] = np.full(1, value)
        except mldb.ConflictError as error:
            actor.record.wrong.append(f"{actor.who}: blind writes met {error}")
            raise
        assert txn.lsn is not None
        step.lsn = int(txn.lsn)


def sync(actor: Actor) -> None:
    """Store a tensor without waiting for the disk, then make everything durable."""
    actor.put()
    since = actor.record.tick()
    actor.open_db.sync()
    actor.record.promise(since)


def spill(actor: Actor) -> None:
    """A transaction too large for a segment, written ahead into one of its own."""
    name, number = actor.name()
    writes = {name: number, f"{name}x": number}
    with actor.step(writes=writes) as step:
        with actor.open_db.transaction() as txn:
            txn[name] = np.full(LARGE, number)
            txn[f"{name}x"] = np.full(1, number)
        assert txn.lsn is not None
        step.lsn = int(txn.lsn)


def create(actor: Actor) -> None:
    """Write a tensor piece by piece."""
    name, number = actor.name()
    with actor.step(writes={name: number}) as step:
        with actor.open_db.create_tensor(name, (6,), "int64") as writer:
            writer[0:3] = np.full(3, number)
            writer[3:6] = np.full(3, number)
        assert writer.lsn is not None
        step.lsn = int(writer.lsn)


def rewind(actor: Actor) -> None:
    """Go back to a commit of the base, each actor to another one."""
    places = sorted(actor.record.base.contents)
    target = places[1 if actor.who == "a" else 2]
    with actor.step(rewinds=target) as step:
        step.lsn = int(actor.open_db.rewind(mldb.Lsn(target)))


def tag(actor: Actor) -> None:
    """Name a commit of the base."""
    name, _ = actor.name()
    target = max(actor.record.base.contents)
    with actor.step(tag=name) as step:
        actor.open_db.tag(name, mldb.Lsn(target))
        step.lsn = None


def snapshot(actor: Actor) -> None:
    """Open a snapshot, read all of it, close it."""
    actor.see()


def leave_open(actor: Actor) -> None:
    """Open a snapshot, and leave it to the garbage collection."""
    db, begun = actor.open_db, actor.record.tick()
    opened = db.at()
    actor.saw(begun, int(opened.lsn), int(opened.lsn), content_of(opened))


def close(actor: Actor) -> None:
    """Close the handle, which makes everything durable unless the lock is not to be had."""
    actor.closing = True
    since = actor.record.tick()
    actor.open_db.close()
    if not actor.rules.impatient and not actor.record.failed_syncs and not actor.rules.full:
        actor.record.promise(since)


def reopen(actor: Actor) -> None:
    """Open another handle, read everything, close it."""
    with mldb.MLDatabase.on(actor.fs, **actor.options) as db:
        begun = actor.record.tick()
        with db.at() as opened:
            content, lsn = content_of(opened), int(opened.lsn)
        actor.saw(begun, lsn, lsn, content)


def found(actor: Actor) -> None:
    """Open a store that need not exist yet, and store something."""
    actor.open()
    actor.put()
    actor.see()


def backup(actor: Actor) -> None:
    """Copy the store, and open the copy."""
    begun = actor.record.tick()
    copy = f"copy-{actor.who}"
    Copies.made.pop(copy, None)  # of a backup that failed, in an earlier schedule
    actor.open_db.backup(copy)
    with mldb.MLDatabase.on(Copies.made.pop(copy)) as db:
        actor.saw(begun, int(db.lsn), int(db.lsn), content_of(db))
        report = db.verify()
    if not report.ok:
        actor.record.wrong.append(f"{actor.who}: a backup has {report.problems}")


def verify(actor: Actor) -> None:
    """Read every byte."""
    report = actor.open_db.verify()
    if not report.ok:
        actor.record.wrong.append(f"{actor.who}: verify found {report.problems}")


def patches(actor: Actor) -> None:
    """Change all rows of a tensor that others may change at the same time."""
    name, number = actor.name()
    with actor.step(writes={"rows": number, name: number}) as step:
        with actor.open_db.transaction() as txn:
            txn.update_tensor("rows", [0, 1], np.full((2, 3), number))
            txn[name] = [number]
        assert txn.lsn is not None
        step.lsn = int(txn.lsn)


def compact(actor: Actor) -> None:
    """Rewrite all segments into one, patches folded; another compaction may be at it."""
    try:
        with patch.object(folds, "LINKS_MAX", 1):
            compact_all(actor.open_db)
    except mldb.LockedError as error:
        if "is compacting" not in str(error):
            raise


def log(actor: Actor) -> None:
    """Log metrics, which is one commit."""
    name, number = actor.name()
    with actor.step(logs={CURVE: number, name: number}) as step:
        step.lsn = int(actor.open_db.log(step.logs))


def buffered(actor: Actor) -> None:
    """Log metrics that wait, then store a tensor, in front of which they are stored.

    They are acknowledged when none waits any more: what goes wrong with them is told later.
    """
    name, number = actor.name()
    record, db = actor.record, actor.open_db
    logs = {CURVE: number, name: number}
    step = Step(actor.who, actor.handle, record.tick(), logs=logs, waited=True, outcome="unknown")
    record.steps.append(step)
    db.log(logs, buffer=True)
    actor.put()
    if not db.stats()["metrics"]["waiting"]:
        step.outcome, step.ended = "stored", record.tick()
        step.durable = step.ended if db.options.durability == "commit" else None


class Copies:
    """Stands for OsFileSystem in ``MLDatabase.backup``: copies are made in memory."""

    made: ClassVar[dict[str, MemoryFileSystem]] = {}

    def __new__(cls, root: str) -> Any:
        """Make the folder of a copy."""
        return cls.made.setdefault(root, MemoryFileSystem())

    @staticmethod
    def prepare_root(path: str, *, create: bool) -> str:
        """Any path will do."""
        return path


@dataclass(frozen=True, slots=True)
class Operation:
    """What is done, with which options of the handle, and what is done before, alone."""

    act: Callable[[Actor], None]
    options: dict[str, Any] = field(default_factory=dict)
    before: Callable[[Actor], None] | None = None
    changes: bool = True


SMALL = {"segment_bytes": 600}
UNSYNCED = {"durability": "os"}
OPERATIONS: dict[str, Operation] = {
    "head": Operation(head, changes=False),
    "read": Operation(read, changes=False),
    "as of": Operation(as_of, changes=False),
    "listing": Operation(listing, changes=False),
    "snapshot": Operation(snapshot, changes=False),
    "leave open": Operation(leave_open, changes=False),
    "verify": Operation(verify, changes=False),
    "backup": Operation(backup, changes=False),
    "reopen": Operation(reopen, changes=False),
    "found": Operation(found),
    "history": Operation(history, changes=False),
    "commit": Operation(commit),
    "blind": Operation(blind),
    "patches": Operation(patches),
    "transaction": Operation(transaction, before=commit),
    "sync": Operation(sync, UNSYNCED),
    "seal": Operation(two, SMALL),
    "spill": Operation(spill, SMALL),
    "create": Operation(create),
    "rewind": Operation(rewind, before=commit),
    "tag": Operation(tag),
    "close": Operation(close, before=commit),
    "log": Operation(log),
    "buffered": Operation(buffered),
    "compact": Operation(compact, before=commit),
}
