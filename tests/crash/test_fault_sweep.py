"""Every call to the disk fails once, in every way it can, in the life of a small store.

Whatever fails, the user gets an error of mldb or success, and what was acknowledged stays.
"""

from __future__ import annotations

import contextlib
import errno
import logging
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

import mldb
from mldb.log.active import Active
from mldb.log.batch import EncodedBatch, write_batch
from mldb.log.fs.memory import MemoryFileSystem
from mldb.log.fs.protocol import File
from mldb.log.index.address import CommitRow
from mldb.log.sequencer import Sequencer
from mldb.log.syncing import Syncing
from tests.support.faults import CALLS, Effect, FaultFileSystem
from tests.support.model import Content, Verbs, content_of
from tests.support.parts import one_of, some_and_many

SPILL = 66_000
SINGLE = {2, 5, 10}  # stored by itself, which takes a shorter way than a transaction
UNKNOWN = "stored is not known"  # what an error says when a failed commit may have been stored
OPTIONS: dict[str, Any] = {
    "segment_bytes": 4000,
    "spill_bytes": SPILL,
    "map_bytes": 1 << 20,
    "lock_timeout": 0.0,
}


@pytest.fixture(autouse=True)
def _quiet(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.ERROR, "mldb")


class Disk(FaultFileSystem):
    """A disk that also says what was synced, and which syncs failed."""

    def __init__(self) -> None:
        super().__init__(MemoryFileSystem())
        self.failed_syncs: list[str] = []
        """Of the handle that was opened last."""
        self.retried: list[str] = []

    @contextmanager
    def _watched(self, name: str) -> Iterator[None]:
        if name in self.failed_syncs:
            self.retried.append(name)
        try:
            yield
        except mldb.MldbError:
            self.failed_syncs.append(name)
            raise

    def sync(self, file: File) -> None:
        with self._watched(file.name):
            super().sync(file)

    def sync_dir(self, folder: str) -> None:
        with self._watched(f"folder {folder!r}"):
            super().sync_dir(folder)


@dataclass(frozen=True)
class Fault:
    """How a call fails."""

    code: int
    effect: Effect = "nothing"
    forever: bool = False

    def __str__(self) -> str:
        words = [errno.errorcode[self.code], self.effect, "forever" if self.forever else "once"]
        return " ".join(word for word in words if word != "nothing")


ONCE = Fault(errno.EIO)
FAULTS: dict[str, tuple[Fault, ...]] = dict.fromkeys(CALLS, (ONCE,))
FAULTS |= {
    "open": (ONCE, Fault(errno.EMFILE)),
    "lock": (ONCE, Fault(errno.EMFILE)),
    "try_acquire": (ONCE, Fault(errno.ENOLCK)),
    "mkdir": (ONCE, Fault(errno.ENOSPC), Fault(errno.EACCES)),
    "link": (ONCE, Fault(errno.ENOSPC)),
    "rename": (ONCE, Fault(errno.ENOSPC)),
    "pwritev": (
        ONCE,
        Fault(errno.ENOSPC, "half"),
        Fault(errno.EDQUOT, "half", forever=True),
        Fault(errno.EROFS),
    ),
    "sync": (
        ONCE,
        Fault(errno.EIO, "drop"),
        Fault(errno.ENOSPC, "drop"),
        Fault(errno.EIO, "drop", forever=True),
    ),
    "sync_dir": (ONCE, Fault(errno.EIO, forever=True)),
    "map": (ONCE, Fault(errno.ENOMEM)),
}


def transaction(number: int) -> Callable[[Verbs], None]:
    """Write under a name of its own, and over what others wrote; some are large."""
    size = {3: 5000, 6: SPILL, 8: 2500}.get(number, 40)

    def change(target: Verbs) -> None:
        if number in SINGLE:
            target.store_tensor(f"t{number}", np.full(size, number, np.uint8))
            return
        target.store_tensor(f"t{number}", np.full(size, number, np.uint8), {"n": number})
        target.store_tensor("last", np.int64(number))
        target.create_relationship("last", f"t{number}", "is")

    return change


@dataclass
class Life:
    """One run: what was acknowledged, what failed and how, and what was wrong."""

    disk: Disk
    db: mldb.MLDatabase | None = None
    acknowledged: dict[int, mldb.Lsn] = field(default_factory=dict)
    failed: dict[int, mldb.MldbError] = field(default_factory=dict)
    errors: list[mldb.MldbError] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)

    def attempt(self, what: str, call: Callable[[], object]) -> mldb.MldbError | None:
        """Call; an error that mldb documents is returned, any other is wrong."""
        try:
            call()
        except mldb.MldbError as error:
            self.errors.append(error)
            return error
        except Exception as error:  # noqa: BLE001 - none may reach a user
            self.wrong.append(f"{what}: {type(error).__name__}: {error}")
        return None

    def open(self) -> None:
        """Open; when that fails, once more, as a user would after healing the disk."""

        def call() -> None:
            self.disk.failed_syncs.clear()
            self.db = mldb.MLDatabase.on(self.disk, **OPTIONS)

        self.db = None
        if self.attempt("open", call) is not None:
            self.disk.heal()
            error = self.attempt("open again", call)
            if error is not None:
                self.wrong.append(f"a healthy disk does not open: {error}")

    def close(self) -> None:
        """Close, which may fail but not twice."""
        if self.db is not None:
            self.attempt("close", self.db.close)
            if self.attempt("close again", self.db.close) is not None:
                self.wrong.append("closing twice is not harmless")

    def reopen(self) -> None:
        """A clean close, and another handle."""
        self.close()
        self.open()

    def commit(self, number: int) -> None:
        """Run one transaction; when it failed, see what the handle is good for."""
        db = self.db
        if db is None:
            return

        def call() -> None:
            if number in SINGLE:
                data = np.full(40, number, np.uint8)
                self.acknowledged[number] = db.store_tensor(f"t{number}", data, epoch=number // 3)
            else:
                with db.transaction(number // 3) as txn:
                    transaction(number)(txn)
                assert txn.lsn is not None
                self.acknowledged[number] = txn.lsn
            if self.disk.failed_syncs:
                self.wrong.append(f"transaction {number} was acknowledged after a failed fsync")

        error = self.attempt(f"transaction {number}", call)
        if error is None:
            return
        self.failed[number] = error
        self.read(number)
        self.disk.heal()
        if isinstance(error, mldb.ClosedError) and "closed for writing" not in str(error):
            self.wrong.append(f"transaction {number}: {error}")
        if "closed for writing" in str(error):
            second = self.attempt("a write on a dead handle", lambda: db.store_tensor("no", [1]))
            if not isinstance(second, mldb.ClosedError):
                self.wrong.append(f"a handle said that it is dead and writes: {second!r}")
            self.reopen()
        else:
            self.probe(number)

    def probe(self, number: int) -> None:
        """The disk is healthy again: the handle works, or says that it is closed for writing."""
        db = self.db
        assert db is not None
        name = f"probe{number}"
        error = self.attempt("probe", lambda: db.store_tensor(name, [number]))
        if error is None:
            self.acknowledged[100 + number] = db.lsn
            if self.disk.failed_syncs:
                self.wrong.append(f"{name} was acknowledged after a failed fsync")
        elif isinstance(error, mldb.ClosedError) and "closed for writing" in str(error):
            self.reopen()
        else:
            self.wrong.append(f"the handle is neither usable nor dead: {error!r}")

    def sync(self) -> None:
        """Sync, which may kill the handle."""
        db = self.db
        if db is not None and self.attempt("sync", db.sync) is not None:
            self.disk.heal()
            if "closed for writing" in str(self.errors[-1]):
                self.reopen()
            else:
                self.probe(50 + len(self.errors))

    def read(self, number: int) -> None:
        """Read everything; what was acknowledged is there, unless the same fault hits the read."""
        db = self.db
        if db is None:  # it did not open, which is wrong already
            return
        found: list[Content] = []
        if self.attempt("read", lambda: found.append(content_of(db))) is None and found:
            lost = [k for k in self.acknowledged if k < 100 and f"t{k}" not in found[0].tensors]
            if lost:
                self.wrong.append(f"after transaction {number} failed, {lost} cannot be read")


def live(life: Life) -> None:
    """Twelve transactions: small, spilled, too large for a segment; sync, seals, close, reopen."""
    life.open()
    for number in range(3):
        life.commit(number)
    life.commit(3)
    life.sync()
    life.commit(4)
    life.reopen()
    for number in range(5, 9):
        life.commit(number)
    life.read(9)
    life.reopen()
    for number in range(9, 12):
        life.commit(number)
    life.close()


def expected(numbers: list[int]) -> Content:
    """What these transactions leave, and no other."""
    content = Content()
    for number in numbers:
        if number < 100:
            transaction(number)(content)
        else:
            content.store_tensor(f"probe{number - 100}", [number - 100])
    return content


def examine(life: Life) -> list[str]:
    """Open the store on the healthy disk and return what is wrong with it."""
    try:
        with mldb.MLDatabase.on(life.disk.inner, **OPTIONS) as db:
            return [*life.wrong, *_compare(life, db)]
    except mldb.MldbError as error:
        return [*life.wrong, f"the store is broken: {error!r}"]


def _compare(life: Life, db: mldb.MLDatabase) -> Iterator[str]:
    found = content_of(db)
    acknowledged, failed = life.acknowledged, life.failed
    names = {k: f"t{k}" if k < 100 else f"probe{k - 100}" for k in {*acknowledged, *failed}}
    present = {k for k in names if names[k] in found.tensors}
    for k, name in names.items():
        if k in acknowledged and k not in present:
            yield f"{name} was acknowledged and is gone"
        elif k in acknowledged and name not in db.names(as_of=acknowledged[k]):
            yield f"{name} is not readable as of its commit"
        elif k not in acknowledged and k in present and UNKNOWN not in str(failed[k]):
            yield f"{name} is stored although it failed: {failed[k]}"
    order = sorted(present, key=lambda k: db.history(names[k])[0].lsn)
    if found != expected(order):
        yield f"the content is not that of {order}"
    yield from map(str, db.verify().problems)


def run(kind: str, fault: Fault, at: int) -> list[str]:
    """Live with one fault, heal the disk, and return what is wrong afterwards."""
    disk = Disk()
    disk.fail(kind, at=at, code=fault.code, effect=fault.effect, forever=fault.forever)
    life = Life(disk)
    live(life)
    disk.heal()
    again = [name for name in disk.retried if not name.startswith("folder")]
    return [*examine(life), *(f"the fsync of {name} was tried again" for name in again)]


def sweep(
    kind: str, faults: tuple[Fault, ...], step: int = 1, *, words: tuple[str, ...] = ()
) -> tuple[int, list[str]]:
    """Let each *step*-th call of a kind fail in each way, and each call where there are few.

    Returns the number of runs and what was wrong. Each way begins with another call. With *words*,
    the sweep is over as soon as all of them were among what was wrong.
    """
    wrong: list[str] = []
    runs = 0
    calls = CALLS_OF_A_CLEAN_LIFE[kind]
    step = step if calls > FEW else 1
    for number, fault in enumerate(faults):
        for at in range(1 + number % step, calls + 1, step):
            runs += 1
            wrong += [f"{kind} {at}, {fault}: {item}" for item in run(kind, fault, at)]
            if words and all(any(word in item for item in wrong) for word in words):
                return runs, wrong
    return runs, wrong


def clean_calls() -> Counter[str]:
    """Count the calls of a life without faults."""
    life = Life(Disk())
    live(life)
    assert (examine(life), life.errors, len(life.acknowledged)) == ([], [], 12)
    return life.disk.calls


CALLS_OF_A_CLEAN_LIFE = clean_calls()
FEW = 12
UNUSED = {"free_bytes", "link_from", "map_private"}
"""Only statistics, backups and writable views make these calls."""


def test_the_clean_life_makes_every_call() -> None:
    assert {kind for kind in CALLS if not CALLS_OF_A_CLEAN_LIFE[kind]} == UNUSED
    total = sum(CALLS_OF_A_CLEAN_LIFE[kind] * len(faults) for kind, faults in FAULTS.items())
    print(f"{total} runs, {CALLS_OF_A_CLEAN_LIFE['any']} calls")
    assert total >= 920


@pytest.mark.slow
@some_and_many("step", 3, 1)
@pytest.mark.parametrize("kind", sorted(set(CALLS) - UNUSED))
def test_any_failing_call_is_an_error_of_mldb_or_none_and_loses_nothing(
    kind: str, step: int
) -> None:
    """After the fault the handle works, or says that it is closed for writing.

    Two things came out of this. When the manifest of a spilled commit was installed and a call
    failed that only followed it, the commit was reported as failed although it was stored. And
    after a failed fsync of a folder or of a new file the handle went on to acknowledge commits.
    """
    runs, wrong = sweep(kind, FAULTS[kind], step)
    print(f"{kind}, {one_of(step)}, each where there are few: {runs} runs")
    assert runs >= CALLS_OF_A_CLEAN_LIFE[kind] * len(FAULTS[kind]) // step
    assert not wrong, "\n".join(wrong)


# --- what the sweep would find --------------------------------------------------------------------


def test_a_retried_fsync_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    make_durable = Syncing.make_durable

    def stubborn(self: Syncing, lsn: int, active: Active) -> None:
        with contextlib.suppress(mldb.MldbError):
            active.file.sync()
        make_durable(self, lsn, active)

    monkeypatch.setattr(Syncing, "make_durable", stubborn)
    words = ("was tried again", "was acknowledged after a failed fsync")
    _, wrong = sweep("sync", (Fault(errno.EIO, "drop"),), words=words)
    for word in words:
        assert any(word in item for item in wrong)


def test_a_handle_that_forgets_its_failed_fsync_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    append = Sequencer.append

    def forgetful(self: Sequencer, *given: Any) -> tuple[CommitRow, Active]:
        self.syncing.failed = None
        return append(self, *given)

    monkeypatch.setattr(Sequencer, "append", forgetful)
    word = "a handle said that it is dead and writes"
    _, wrong = sweep("sync", (ONCE,), words=(word,))
    assert any(word in item for item in wrong)


def test_an_error_that_is_no_mldb_error_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def bare(self: FaultFileSystem, fault: object, kind: str, name: str) -> None:
        raise OSError(errno.EIO, kind)

    monkeypatch.setattr(FaultFileSystem, "raise_fault", bare)
    wrong = run("pwritev", ONCE, 9)
    assert any("OSError" in item for item in wrong)


def test_a_commit_that_was_swallowed_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """An error of the write is taken for success."""

    def deaf(file: File, batch: EncodedBatch) -> None:
        with contextlib.suppress(mldb.MldbError):
            write_batch(file, batch)

    monkeypatch.setattr("mldb.log.sequencer.write_batch", deaf)
    word = "is broken: CorruptError"
    _, wrong = sweep("pwritev", (ONCE,), words=(word,))
    assert any(word in item for item in wrong)
