"""Crashes of whole stores: run a workload on a recorded disk, then open every disk it could leave.

A :class:`Recorder` runs transactions on a store and on the model, and marks in the recording what
was promised when; :func:`given_lsns` says which LSNs a reader may have been given by then, which
are never given again. :func:`violation_of` opens one crashed disk and says which promise is broken.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import accumulate
from typing import Any, Literal, TypeAlias, get_args

import numpy as np

import mldb
from mldb.log.checksum import digest128
from mldb.log.fs.crash_disks import Outcome, ProcessDisk
from mldb.log.fs.crash_states import Model as Persistence
from mldb.log.fs.crash_states import crash_states
from mldb.log.fs.memory import MemoryFileSystem
from mldb.log.fs.memory_disk import Image, Names, Write
from tests.support.model import Change, Content, Model, content_of, differences

PERSISTENCE: tuple[Persistence, ...] = get_args(Persistence)
AFTER = "after the crash"
Kind: TypeAlias = Literal["begun", "told", "durable"]
Seen: TypeAlias = tuple[bytes, int, int, int]
"""A disk, which commits may be the last on it, and the highest LSN that a reader was given."""


@dataclass(frozen=True, slots=True)
class Promise:
    """A mark in the recording: from here on something holds for the commits up to ``index``.

    "begun": no later one can exist; "told": they survive a killed process; "durable": power loss.
    """

    kind: Kind
    index: int


@dataclass
class Recorder:
    """One store on a recorded disk and its model, changed together.

    ``acknowledges`` is what a commit that returned promises; it follows from the durability.
    """

    options: dict[str, Any] = field(default_factory=dict)
    fs: MemoryFileSystem = field(default_factory=lambda: MemoryFileSystem(record=True))
    model: Model = field(default_factory=Model)
    acknowledges: Kind | None = None
    db: mldb.MLDatabase = field(init=False)
    created: int = field(init=False)
    """How many operations on the disk made the store."""
    heads: dict[bytes, int] = field(default_factory=dict)
    """Of disks that were looked at: what a reader of each is given, see :func:`given_lsns`."""

    def __post_init__(self) -> None:
        """Create the store."""
        if self.acknowledges is None:
            told = self.options.get("durability") == "os"
            self.acknowledges = "told" if told else "durable"
        self.db = self.open()
        self.created = self.operations()

    def operations(self) -> int:
        """Return the number of operations on the disk so far."""
        assert self.fs.journal is not None
        return len(self.fs.journal.operations)

    @cached_property
    def given(self) -> list[int]:
        """What :func:`given_lsns` says, once the recording is over."""
        return given_lsns(self.fs, self.heads)

    waiting: list[tuple[dict[str, float], int]] = field(default_factory=list)
    """What was logged with ``buffer=True`` and is not stored yet."""

    def open(self) -> mldb.MLDatabase:
        """Open the store once more."""
        return mldb.MLDatabase.on(self.fs, **self.options)

    def close(self) -> None:
        """Close it, which makes everything durable."""
        self.db.close()
        self._promise("durable")

    def reopen(self, *, kill: bool = False) -> None:
        """Close and open again, or kill the process and open again."""
        if kill:
            self.fs.kill()
            self.waiting.clear()
        else:
            self.close()
        self.db = self.open()

    def sync(self) -> None:
        """Make everything so far durable."""
        content = self._begin(0)
        self.db.sync()
        self._flushed(content, int(self.db.lsn) + 1)
        self._promise("durable")

    def _begin(self, commits: int = 1) -> Content:
        """Say how many commits are coming: one more where points wait. Return what is in front."""
        content = self.model.head.content.draft()
        for values, step in self.waiting:
            content.log(values, step)
        self._promise("begun", commits + bool(self.waiting))
        return content

    def _flushed(self, content: Content, before: int) -> None:
        """Add the one commit of what waited, which lies in front of commit *before*."""
        if self.waiting:
            rows = self.db._log.head().commits(self.model.head.lsn + 1, before - 1)
            (lsn,) = [row.lsn for _, row in rows]
            self.model.add(lsn, None, content)
            self.waiting.clear()

    def log(self, values: dict[str, float], step: int, *, buffer: bool = False) -> None:
        """Log metrics, at once or with the next commit; nobody else stores them meanwhile."""
        if buffer:
            assert self.db.log(values, step=step, buffer=True) is None
            self.waiting.append((values, step))
            return
        content = self._begin()
        lsn = self.db.log(values, step=step)
        self._flushed(content, int(lsn))
        content = content.draft()
        content.log(values, step)
        self.model.add(lsn, None, content)
        self._promise(self.acknowledges)

    def _promise(self, kind: Kind | None, ahead: int = 0) -> None:
        assert kind is not None
        self.fs.mark(Promise(kind, len(self.model.commits) - 1 + ahead))

    def commit(self, change: Change, epoch: int | None = None) -> None:
        """Run a change in one transaction."""
        before = self._begin()
        content = before.draft()
        change(content)
        with self.db.transaction(epoch) as txn:
            change(txn)
        assert txn.lsn is not None
        self._flushed(before, int(txn.lsn))
        self.model.add(txn.lsn, epoch, content)
        self._promise(self.acknowledges)

    def put(self, name: str, data: Any) -> None:
        """Store one tensor by itself, which takes a shorter way than a transaction."""
        content = self.model.head.content.draft()
        content.store_tensor(name, data)
        self._promise("begun", 1)
        self.model.add(self.db.store_tensor(name, data), None, content)
        self._promise(self.acknowledges)

    def rewind(self, index: int) -> None:
        """Go back to the state at a commit of the model."""
        target = self.model.commits[index]
        before = self._begin()
        lsn = self.db.rewind(mldb.Lsn(target.lsn))
        self._flushed(before, int(lsn))
        self.model.add(lsn, target.epoch, target.content.draft(), index)
        self._promise(self.acknowledges)

    def tag(self, name: str, index: int) -> None:
        """Name a commit of the model."""
        lsn = self.model.commits[index].lsn
        self._promise("begun", 1)
        self.db.tag(name, mldb.Lsn(lsn))
        self.model.mark(self.db.lsn).tags[name] = lsn
        self._promise(self.acknowledges)

    def retain(self, **rules: Any) -> None:
        """Set a retention, which drops nothing by itself."""
        self._promise("begun", 1)
        self.db.retention.set(**rules)
        self.model.mark(self.db.lsn)
        self._promise(self.acknowledges)

    def pin(self, index: int) -> None:
        """Pin a commit of the model."""
        lsn = self.model.commits[index].lsn
        self._promise("begun", 1)
        self.db.pin(mldb.Lsn(lsn))
        marked = self.model.mark(self.db.lsn)
        marked.pins |= {lsn}
        self._promise(self.acknowledges)


def given_lsns(fs: MemoryFileSystem, known: dict[bytes, int]) -> list[int]:
    """By the number of operations done: the highest LSN that a reader may have been given by then.

    Readers see a commit as soon as it is written, long before it is durable. So each disk that the
    recording went through is looked at as it was, and *known* says so of alike ones from then on.
    """
    journal = fs.journal
    assert journal is not None
    disk = ProcessDisk(journal.base)
    heads = [_head_of(disk, known)]
    for operation in journal.operations:
        disk.apply(operation)
        shows = isinstance(operation, Write | Names)
        heads.append(_head_of(disk, known) if shows else heads[-1])
    return list(accumulate(heads, max))


def _head_of(disk: ProcessDisk, known: dict[bytes, int]) -> int:
    """The LSN that a reader is given who looks now; 0 when there is nothing to be opened."""
    (choice,) = disk.choices()
    outcome = choice()
    key = outcome.digest()
    if key not in known:
        known[key] = _read_head(outcome)
    return known[key]


def _read_head(outcome: Outcome) -> int:
    contents = {number: data for number, (data, _) in outcome.contents.items()}
    image = Image(outcome.tree.files, outcome.tree.folders, contents)
    try:
        with mldb.MLDatabase.on(MemoryFileSystem(image=image), mode="r") as reader:
            return int(reader.lsn)
    except mldb.MldbError:
        return 0


def disk_digest(fs: MemoryFileSystem) -> bytes:
    """Tell one disk from another: all names and all content, and nothing else."""
    image = fs.image()
    files = sorted(image.files.items())
    names = "\0".join([*(name for name, _ in files), "", *sorted(image.folders)]).encode()
    return digest128(names + b"".join(digest128(image.contents[inode]) for _, inode in files))


def bounds(marks: Sequence[object], persistence: Persistence) -> tuple[int, int]:
    """Return the lowest and the highest commit that may be the last one after these marks."""
    kept = {"told", "durable"} if persistence == "process" else {"durable"}
    promises = [mark for mark in marks if isinstance(mark, Promise)]
    return (
        max((promise.index for promise in promises if promise.kind in kept), default=0),
        max((promise.index for promise in promises if promise.kind == "begun"), default=0),
    )


def _last_commit(db: mldb.MLDatabase, model: Model, low: int, high: int) -> tuple[int, list[str]]:
    """Find out which commits a crashed disk kept, and compare all of them."""
    index = model.index_of(int(db.lsn))
    if index is None or not low <= index <= high:
        expected = [commit.lsn for commit in model.commits[low : high + 1]]
        return 0, [f"the head is commit {int(db.lsn)}, expected one of {expected}"]
    found = differences(db, model, index)
    found += [str(problem) for problem in db.verify().problems]
    return index, found


def violation_of(
    state: MemoryFileSystem, model: Model, low: int, high: int, given: int, options: dict[str, Any]
) -> str:
    """Open a crashed disk and return what is wrong with it, "" when nothing is.

    Exactly the commits up to one between *low* and *high* must be there, every byte of the store
    must verify, another commit must work, and it must be there when the disk is opened again:
    after a clean close or, every other time, after a kill. Its LSN was given to nobody before:
    *given* is the highest that was.
    """
    try:
        return "; ".join(_check(state, model, low, high, given, options))
    except Exception as error:  # noqa: BLE001 - whatever it is, opening must not raise it
        return f"{type(error).__name__}: {error}"


def _check(
    state: MemoryFileSystem, model: Model, low: int, high: int, given: int, options: dict[str, Any]
) -> Iterator[str]:
    db = mldb.MLDatabase.on(state, **options)
    index, found = _last_commit(db, model, low, high)
    yield from found
    if found:
        return
    content = model.commits[index].content.draft()
    before = db.lsn
    lsn = add_one(db, content)
    if lsn <= before:
        yield f"commit {lsn} came after commit {before}"
    if lsn <= given:
        yield f"LSN {lsn} may be given again, a reader was given {given} before the crash"
    killed = state.operations_done % 2
    if killed:
        state.kill()
    else:
        db.close()
    with mldb.MLDatabase.on(state, **options) as again:
        # A hint that the crash left damaged is written anew by a clean close, and not before.
        if again.recovery.file or not (killed or again.recovery.clean):
            yield f"the second opening repaired something too: {again.recovery}"
        if again.lsn != lsn or content_of(again) != content:
            yield f"the commit after the crash is gone: {again.lsn} is not {lsn}"


def add_one(db: mldb.MLDatabase, content: Content) -> mldb.Lsn:
    """Commit one more tensor."""
    data = np.arange(5, dtype=np.int16)
    content.store_tensor(AFTER, data)
    return db.store_tensor(AFTER, data)


def violation_in(
    run: Recorder,
    persistence: Persistence,
    *,
    seed: int,
    limit: int,
    sector: int = 512,
    since: int = 0,
    seen: set[Seen] | None = None,
) -> str:
    """Check the crash states of a recording; return the first violation, "" when there is none.

    *since* is the first crash point. What is in *seen* was checked before, under another model.
    """
    for state in crash_states(
        run.fs,
        at=range(since, run.operations() + 1),
        model=persistence,
        seed=seed,
        limit=limit,
        sector=sector,
    ):
        low, high = bounds(state.marks, persistence)
        given = run.given[state.operations_done]
        if seen is not None:
            key = (disk_digest(state), low, high, given)
            if key in seen:
                continue
            seen.add(key)
        wrong = violation_of(state, run.model, low, high, given, run.options)
        if wrong:
            return f"{persistence}, {state.description}: {wrong}"
    return ""
