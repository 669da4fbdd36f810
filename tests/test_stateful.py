"""A store does what a dict of versions with a lineage does, whatever is done in whatever order.

One machine drives two handles on one disk, as two processes would be, against the model in
``tests.support.model``. MLDB_STATEFUL_EXAMPLES asks for more runs than the usual ones.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

import mldb
from mldb.log.fs.memory import MemoryFileSystem
from tests.support.model import Commit, Content, Model, Verbs, content_of, differences, value_of
from tests.support.parts import count_of

EXAMPLES = int(os.environ.get("MLDB_STATEFUL_EXAMPLES", str(count_of(150))))
MORE_EXAMPLES = 450
STEPS = 35

NAMES = ("a", "b/c.weight", "d", "é", "Z" * 40)
TAGS = ("best", "last")
SPILL = 66_000
DTYPES = ("<f4", ">f8", "<i2", "?", "<c8", "u1", ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn)
SHAPES = ((), (0, 3), (1,), (2, 5), (3, 1, 4), (600,))


@st.composite
def arrays(draw: st.DrawFn) -> np.ndarray[Any, Any]:
    """A small tensor of any type; seldom one that is not packed, or one that is spilled."""
    dtype = np.dtype(draw(st.sampled_from(DTYPES)))
    shape: tuple[int, ...] = draw(st.sampled_from(SHAPES))
    size = draw(st.integers(0, 19))
    if size < 2:
        shape = ((65_600 if size else SPILL + 64) // dtype.itemsize,)
    count = int(np.prod(shape)) * dtype.itemsize
    data = np.random.default_rng(draw(st.integers(0, 99))).integers(0, 256, count, np.uint8)
    if dtype == np.bool_:
        data &= 1
    array: np.ndarray[Any, Any] = data.view(dtype).reshape(shape)
    return array


names = st.sampled_from(NAMES)
tags = st.sampled_from(TAGS)
places = st.integers(0, 999)  # which commit: modulo their number
epoch_steps = st.sampled_from([None, None, None, 0, 1, 3, -1])
metadata = st.dictionaries(
    st.sampled_from(["type", "n", "ü"]), st.integers(-5, 5) | st.text(max_size=3), max_size=2
)
maybe_metadata = st.none() | st.none() | metadata
relations = st.tuples(names, names, st.sampled_from(["feeds", "next"]))
operations = st.one_of(
    st.tuples(st.just("store"), names, arrays(), maybe_metadata),
    st.tuples(st.just("store"), names, arrays(), maybe_metadata),
    st.tuples(st.just("delete"), names),
    st.tuples(st.just("metadata"), names, metadata),
    st.tuples(st.just("relate"), relations, metadata),
    st.tuples(st.just("unrelate"), relations),
)


class Rollback(Exception):
    """Raised in the body of a transaction."""


def possible(content: Content, operation: tuple[Any, ...]) -> bool:
    """Whether an operation finds what it needs."""
    match operation:
        case ("delete" | "metadata", name, *_):
            return name in content.tensors
        case ("unrelate", (source, target, kind)):
            return (source, kind, target) in content.relations
        case _:
            return True


def perform(target: Verbs, operation: tuple[Any, ...]) -> None:
    """Do an operation to the model or to a transaction."""
    match operation:
        case "store", name, data, found:
            target.store_tensor(name, data, found)
        case "delete", name:
            target.delete_tensor(name)
        case "metadata", name, found:
            target.set_metadata(name, found)
        case "relate", (source, end, kind), found:
            target.create_relationship(source, end, kind, found)
        case "unrelate", (source, end, kind):
            target.delete_relationship(source, end, kind)


class Store(RuleBasedStateMachine):
    """Rules take a handle by number; the second is closed at times."""

    def __init__(self) -> None:
        super().__init__()
        self.fs = MemoryFileSystem()
        self.model = Model()
        self.options: dict[str, Any] = {}
        self.handles: list[mldb.MLDatabase | None] = [None, None]

    @initialize(
        segment_bytes=st.sampled_from([3000, 30_000, 1 << 28]),
        segment_entries=st.sampled_from([9, 1 << 16]),
        durability=st.sampled_from(["commit", "os"]),
        compression=st.sampled_from([None, None, "zstd"]),
        deduplicate=st.sampled_from([False, 1, 400]),
        verify=st.sampled_from(["first", "always"]),
        map_bytes=st.sampled_from([0, 500, 1 << 40]),
    )
    def create(self, **options: Any) -> None:
        self.options = {"spill_bytes": SPILL, "lock_timeout": 0.0, **options}
        self.handles[0] = self.new_handle()

    def new_handle(self) -> mldb.MLDatabase:
        return mldb.MLDatabase.on(self.fs, **self.options)

    def open_handles(self) -> Iterator[mldb.MLDatabase]:
        return (handle for handle in self.handles if handle is not None)

    def db(self, second: bool) -> mldb.MLDatabase:
        handle = self.handles[second] or self.handles[0]
        assert handle is not None
        return handle

    def commit(self, place: int) -> tuple[int, Commit]:
        index = place % len(self.model.commits)
        return index, self.model.commits[index]

    # --- handles ----------------------------------------------------------------------------------

    @rule(second=st.booleans())
    def open_again(self, second: bool) -> None:
        handle = self.handles[second]
        if handle is not None:
            handle.close()
            with pytest.raises(mldb.ClosedError):
                handle.store_tensor("a", [1])
        self.handles[second] = self.new_handle()

    @rule()
    def close_second(self) -> None:
        handle, self.handles[1] = self.handles[1], None
        if handle is not None:
            handle.close()

    @rule()
    def kill_all(self) -> None:
        """All processes die; what was acknowledged is there without any of them closing."""
        self.fs.kill()
        self.handles = [self.new_handle(), None]
        assert self.db(False).recovery.clean

    @rule(second=st.booleans())
    def sync(self, second: bool) -> None:
        self.db(second).sync()

    @rule(second=st.booleans(), name=names)
    def someone_holds_the_lock(self, second: bool, name: str) -> None:
        db = self.db(second)
        lock = self.fs.lock("LOCK")
        assert lock.try_acquire()
        with pytest.raises(mldb.LockedError) as info:
            db.store_tensor(name, [1])
        assert info.value.retryable
        assert db.names() == sorted(self.model.head.content.tensors)
        lock.close()

    @rule()
    def read_only(self) -> None:
        with mldb.MLDatabase.on(self.fs, mode="r") as reader:
            assert content_of(reader) == self.model.head.content
            with pytest.raises(mldb.ReadOnlyError):
                reader.store_tensor("a", [1])

    # --- writing ----------------------------------------------------------------------------------

    def label(self, step: int | None) -> int | None:
        return None if step is None else self.model.head.epoch + step

    def is_refused(self, epoch: int | None) -> bool:
        return epoch is not None and epoch < self.model.head.epoch

    @rule(second=st.booleans(), name=names, data=arrays(), found=maybe_metadata, step=epoch_steps)
    def store(
        self,
        second: bool,
        name: str,
        data: np.ndarray[Any, Any],
        found: dict[str, Any] | None,
        step: int | None,
    ) -> None:
        db, epoch = self.db(second), self.label(step)
        if self.is_refused(epoch):
            error = mldb.LimitError if epoch is not None and epoch < 0 else mldb.EpochOrderError
            with pytest.raises(error):
                db.store_tensor(name, data, found, epoch=epoch)
            return
        content = self.model.head.content.draft()
        content.store_tensor(name, data, found)
        given = data.copy()
        lsn = db.store_tensor(name, given, found, epoch=epoch)
        given.fill(0)  # nobody sees this
        self.model.add(lsn, epoch, content)

    @rule(second=st.booleans(), name=names)
    def delete(self, second: bool, name: str) -> None:
        db = self.db(second)
        if name not in self.model.head.content.tensors:
            with pytest.raises(mldb.TensorNotFoundError):
                db.delete_tensor(name)
            return
        content = self.model.head.content.draft()
        content.delete_tensor(name)
        self.model.add(db.delete_tensor(name), None, content)

    @rule(
        second=st.booleans(),
        moves=st.lists(operations, min_size=1, max_size=6),
        step=epoch_steps,
        fails=st.integers(0, 4).map(lambda number: number == 0),
    )
    def transact(
        self, second: bool, moves: list[tuple[Any, ...]], step: int | None, fails: bool
    ) -> None:
        """Several writes; each is seen inside at once, and by nobody else before the end."""
        db, epoch = self.db(second), self.label(step)
        content = self.model.head.content.draft()
        refused = self.is_refused(epoch) and (epoch or 0) >= 0
        if epoch is not None and epoch < 0:
            return
        outcome = Rollback if fails else mldb.EpochOrderError if refused else None
        txn = db.transaction(epoch)
        written = False
        try:
            with txn:
                for move in moves:
                    if not possible(content, move):
                        with pytest.raises(mldb.MissingError):
                            perform(txn, move)
                        continue
                    perform(content, move)
                    perform(txn, move)
                    written = True
                    self.check_inside(txn, content, move)
                    assert db.names() == sorted(self.model.head.content.tensors)
                if fails:
                    raise Rollback
        except (Rollback, mldb.EpochOrderError) as error:
            assert type(error) is outcome
            assert txn.lsn is None
            return
        if not written:
            assert txn.lsn == self.model.head.lsn
            return
        assert outcome is None
        assert txn.lsn is not None
        self.model.add(txn.lsn, epoch, content)

    def check_inside(self, txn: mldb.Transaction, content: Content, move: tuple[Any, ...]) -> None:
        assert list(txn) == sorted(content.tensors, key=str.encode)
        found = {
            (item.source, item.kind, item.target): item.metadata for item in txn.relationships()
        }
        assert found == content.relations
        name = move[1]
        if isinstance(name, str) and name in content.tensors:
            assert value_of(txn[name]) == content.tensors[name]
            assert txn.metadata(name) == content.metadata.get(name, {})
        elif isinstance(name, str):
            with pytest.raises(mldb.TensorNotFoundError):
                txn.query_tensor(name)

    @precondition(lambda self: self.handles[1] is not None)
    @rule(second=st.booleans(), read=names, other=names, mine=names)
    def race(self, second: bool, read: str, other: str, mine: str) -> None:
        """A commit in between conflicts exactly when it changed what was read."""
        first, rival = self.db(second), self.db(not second)
        between = self.model.head.content.draft()
        between.store_tensor(other, np.int8(1))
        txn = first.transaction()
        conflict = None
        try:
            with txn:
                assert (read in txn) == (read in self.model.head.content.tensors)
                txn.store_tensor(mine, np.int8(2))
                self.model.add(rival.store_tensor(other, np.int8(1)), None, between)
        except mldb.ConflictError as error:
            conflict = error
        if other == read:
            assert conflict is not None
            assert conflict.names == (read,)
            return
        assert conflict is None
        content = between.draft()
        content.store_tensor(mine, np.int8(2))
        assert txn.lsn is not None
        self.model.add(txn.lsn, None, content)

    # --- moving through time ----------------------------------------------------------------------

    @rule(second=st.booleans(), tag=tags, place=places)
    def set_tag(self, second: bool, tag: str, place: int) -> None:
        db, (index, commit) = self.db(second), self.commit(place)
        if not index:
            with pytest.raises(mldb.MissingError):
                db.tag(tag, mldb.Lsn(0))
            return
        assert db.tag(tag, mldb.Lsn(commit.lsn)) == commit.lsn
        self.model.mark(db.lsn).tags[tag] = commit.lsn

    @rule(second=st.booleans(), tag=tags)
    def remove_tag(self, second: bool, tag: str) -> None:
        db = self.db(second)
        if tag not in self.model.head.tags:
            with pytest.raises(mldb.MissingError):
                db.untag(tag)
            return
        db.untag(tag)
        del self.model.mark(db.lsn).tags[tag]

    @rule(second=st.booleans(), place=places)
    def change_pin(self, second: bool, place: int) -> None:
        db, (index, commit) = self.db(second), self.commit(place)
        if not index:
            return
        pinned = self.model.head.pins
        (db.unpin if commit.lsn in pinned else db.pin)(mldb.Lsn(commit.lsn))
        self.model.mark(db.lsn).pins = pinned ^ {commit.lsn}

    def point(self, place: int, kind: str) -> tuple[Any, int]:
        """Return an as_of of this kind and the index of the commit that it means."""
        index, commit = self.commit(place)
        if kind == "epoch":
            epoch = commit.epoch + place % 3 - 1
            return epoch, self.model.commits.index(self.model.at_epoch(epoch))
        if kind == "tag" and self.model.head.tags:
            tag = sorted(self.model.head.tags)[place % len(self.model.head.tags)]
            return tag, self.model.index_of(self.model.head.tags[tag]) or 0
        if kind == "lsn":
            return mldb.Lsn(commit.lsn), index
        return None, len(self.model.commits) - 1

    points = st.sampled_from(["epoch", "tag", "lsn", "head"])

    @rule(second=st.booleans(), place=places, kind=points)
    def rewind(self, second: bool, place: int, kind: str) -> None:
        as_of, index = self.point(place, kind)
        lsn = self.db(second).rewind(as_of)
        target = self.model.commits[index]
        self.model.add(lsn, target.epoch, target.content.draft(), index)

    # --- reading ----------------------------------------------------------------------------------

    @rule(second=st.booleans(), place=places, kind=points)
    def look(self, second: bool, place: int, kind: str) -> None:
        as_of, index = self.point(place, kind)
        commit = self.model.commits[index]
        with self.db(second).at(as_of) as snapshot:
            assert (int(snapshot.lsn), snapshot.epoch) == (commit.lsn, commit.epoch)
            assert content_of(snapshot) == commit.content
            assert list(snapshot) == sorted(commit.content.tensors, key=str.encode)
            assert len(snapshot) == len(commit.content.tensors)
            for name in NAMES:
                assert (name in snapshot) == (name in commit.content.tensors)
                versions = [(int(item.lsn), item.epoch) for item in snapshot.history(name)]
                assert versions == [item[:2] for item in self.model.history(name, index)]

    @rule(second=st.booleans(), name=names, place=places)
    def look_at_a_version(self, second: bool, name: str, place: int) -> None:
        """Every version of the history is read by its commit and by its time."""
        db = self.db(second)
        versions, expected = db.history(name), self.model.history(name)
        assert len(versions) == len(expected)
        if not versions:
            return
        version, (lsn, _, value) = versions[place % len(versions)], expected[place % len(versions)]
        assert value_of(db.query_tensor(name, as_of=mldb.Lsn(lsn))) == value
        assert (version.shape, version.nbytes) == (value[1], len(value[2]))
        index = self.model.index_of(lsn)
        assert index is not None
        assert content_of(db, version.time) == self.model.commits[index].content

    @rule(second=st.booleans(), place=places)
    def look_for_what_never_was(self, second: bool, place: int) -> None:
        db = self.db(second)
        lsn = self.model.head.lsn + 1 + place
        for as_of in (mldb.Lsn(lsn), "no such tag"):
            with pytest.raises(mldb.MissingError):
                db.names(as_of=as_of)

    @rule(second=st.booleans())
    def compare_everything(self, second: bool) -> None:
        db = self.db(second)
        assert not differences(db, self.model, len(self.model.commits) - 1)
        assert db.verify().ok

    @invariant()
    def every_handle_is_at_the_head(self) -> None:
        head = self.model.head
        for db in self.open_handles():
            assert (int(db.lsn), db.epoch) == (head.lsn, head.epoch)
            assert db.names() == sorted(head.content.tensors, key=str.encode)

    def teardown(self) -> None:
        """Whatever happened, the next process finds all of it."""
        for db in self.open_handles():
            db.close()
        if self.options:
            with self.new_handle() as db:
                assert not differences(db, self.model, len(self.model.commits) - 1)
                assert db.verify().ok


@pytest.fixture(autouse=True)
def _quiet(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.ERROR, "mldb")


class StoreMoreOften(Store):
    """The same with more examples."""


TestStore = pytest.mark.slow(Store.TestCase)
TestStore.settings = settings(max_examples=EXAMPLES, stateful_step_count=STEPS)
TestStoreMoreOften = pytest.mark.large(StoreMoreOften.TestCase)
TestStoreMoreOften.settings = settings(max_examples=MORE_EXAMPLES, stateful_step_count=STEPS)


@pytest.mark.parametrize("ends", ["overwritten", "spilled again", "deleted", "one of two"])
@pytest.mark.parametrize("length", range(1, 70, 3))
def test_a_spilled_tensor_may_be_replaced_in_its_transaction(ends: str, length: int) -> None:
    """Its bytes are in the pending segment by then, in a frame that still listed the name.

    The frame lost its entry and with it some bytes in front of the payload, so that for names of
    some lengths the payload was not where the frame said. The commit was acknowledged, and the
    whole transaction could not be read.
    """
    name = "n" * length
    fs = MemoryFileSystem()
    content = Content()
    large = np.full(SPILL, 1, np.uint8)
    with mldb.MLDatabase.on(fs, spill_bytes=SPILL) as db:
        with db.transaction() as txn:
            for target in (content, txn):
                target.store_tensor("before", large + np.uint8(1))
                target.store_tensor(name, large, {"n": 1})
                target.store_tensor("after", large + np.uint8(2))
                if ends == "overwritten":
                    target.store_tensor(name, np.int8(3))
                elif ends == "spilled again":
                    target.store_tensor(name, large + np.uint8(3))
                elif ends == "deleted":
                    target.delete_tensor(name)
                else:
                    target.delete_tensor("before")
        assert content_of(db) == content
    with mldb.MLDatabase.on(fs) as db:
        assert content_of(db) == content
        assert db.verify().ok
        assert fs.list("pending") == []
