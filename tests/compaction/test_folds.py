"""Folds: what is folded, what it costs, when it is there, and what a damaged one does."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import mldb
from mldb.compaction import compactor, folds
from mldb.compaction.gain import expected_gain
from mldb.errors import CorruptError
from mldb.history.events import TensorPatched
from mldb.log.fs.memory import MemoryFileSystem
from mldb.log.patch import Patch, encode_patch
from tests.support.compacting import compact_all, kept_of, view_of
from tests.support.patched import links, patches_of

DIM = 16
OPTIONS: dict[str, Any] = {"durability": "os"}


class Table:
    """A store with a table of which some rows change in every epoch, and what each epoch shows."""

    def __init__(self, rows: int = 400, **options: Any) -> None:
        self.fs = MemoryFileSystem()
        self.db = mldb.MLDatabase.on(self.fs, **OPTIONS, **options)
        self.value = np.zeros((rows, DIM), np.float32)
        self.shown: dict[int, Any] = {0: self.value}
        self.rng = np.random.default_rng(5)
        self.db.store_tensor("w", self.value, epoch=0)

    def steps(self, count: int, rows: int = 4, of: int = 400) -> Table:
        """Change *rows* of the first *of* rows in so many epochs."""
        for _ in range(count):
            chosen = self.rng.permutation(of)[:rows]
            values = self.rng.standard_normal((rows, DIM)).astype(np.float32)
            self.value = self.value.copy()
            self.value[chosen] = values
            self.db.update_tensor("w", chosen, values, epoch=self.db.epoch + 1)
            self.shown[self.db.epoch] = self.value
        return self

    def check(self, epochs: Any = None) -> None:
        for epoch in self.shown if epochs is None else epochs:
            assert np.array_equal(self.db.query_tensor("w", as_of=epoch), self.shown[epoch])

    @property
    def stored(self) -> int:
        """The bytes of all patches."""
        return sum(entry.length for entry in patches_of(self.db))


# --- chains ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [64, 65, 700])
def test_a_chain_is_at_most_64_long_after_a_pass_and_grows_by_what_is_said(count: int) -> None:
    table = Table().steps(count)
    before = table.stored
    assert max(links(table.db)) == count
    report = table.db.compact(cold="none")
    assert max(links(table.db)) == min(count, 64)
    assert (count > 64) <= report.recoded <= count // 48
    assert table.stored <= 2 * before
    table.check()
    assert table.db.verify().ok
    again = table.db.compact(cold="none")
    assert (again.recoded, again.bytes_read) == (0, 0)


def test_chains_that_grow_between_passes_stay_short_and_are_not_stored_ever_again() -> None:
    """A pass every few steps, as a worker in the background makes: 16 x the steps of a fold."""
    table = Table(100)
    plain = 0
    for _ in range(20):
        table.steps(40, of=100)
        plain += 40 * patches_of(table.db)[-1].length
        table.db.compact(cold="none")
        assert max(links(table.db)) <= 64
    assert table.stored <= 3 * plain
    table.check(range(0, table.db.epoch + 1, 97))
    table.check([table.db.epoch])


def test_what_a_step_changed_is_still_told_by_its_event() -> None:
    table = Table().steps(70)
    table.db.compact(cold="none")
    assert {event.rows for event in table.db.events() if isinstance(event, TensorPatched)} == {4}


def test_patches_on_a_tensor_of_another_name_are_folded_too() -> None:
    """A copy of a tensor is a reference, so that its patches build on a version of the other."""
    db = mldb.MLDatabase.on(MemoryFileSystem(), **OPTIONS)
    value = np.random.default_rng(0).standard_normal((400, 64)).astype(np.float32)
    db["first"] = value
    db["copy"] = value
    for step in range(80):
        db.update_tensor("copy", [step], np.full((1, 64), step, np.float32))
    assert patches_of(db, "copy")[0].owner
    db.compact(cold="none")
    assert max(links(db, "copy")) == 64
    assert np.array_equal(db["copy"][:80, 0], np.arange(80))
    assert np.array_equal(db["first"], value)


# --- retention ------------------------------------------------------------------------------------


def test_what_no_kept_commit_sees_goes_into_the_patch_above_it() -> None:
    """Before, a version kept every patch since the tensor was stored whole, for ever."""
    table = Table().steps(600, rows=40, of=40)
    table.db.retention.set(last=3)
    gain = expected_gain(table.db._log, table.db._event_rules(), "none")
    report = table.db.compact(cold="none")
    assert len(patches_of(table.db)) == 3
    assert links(table.db) == [0, 1, 2, 3]
    assert table.stored < 130 * (DIM * 4 + 4)
    assert report.bytes_returned == pytest.approx(gain.returned, rel=0.2)
    table.check(range(598, 601))
    assert table.db.verify().ok
    assert not table.db.compact(cold="none").bytes_read


def test_a_window_that_moves_on_leaves_no_more_than_it_holds() -> None:
    table = Table(60)
    table.db.retention.set(last=20)
    for _ in range(30):
        table.steps(10, of=60)
        table.db.compact(cold="none")
    # A pass may leave what is not worth the rewriting of a segment.
    assert len(patches_of(table.db)) <= 40
    assert table.stored <= 40 * 4 * (DIM * 4 + 32) + 60 * DIM * 4
    table.check(range(table.db.epoch - 19, table.db.epoch + 1))


def test_a_patch_that_two_lineages_build_on_stays_as_it_is() -> None:
    table = Table(20).steps(5, of=20)
    table.db.tag("left")
    left = table.value
    table.db.rewind(3)
    table.value = table.shown[3]
    table.steps(2, of=20)
    table.db.retention.set(last=1, abandoned=timedelta(0))
    compact_all(table.db)
    # 1, 2 and 3 are one, on which 4 and 5 of the one lineage build, and of the other.
    assert links(table.db) == [0, 1, 2, 2]
    assert np.array_equal(table.db.query_tensor("w", as_of="left"), left)
    table.check([5])


# --- order and readers ----------------------------------------------------------------------------


def test_after_each_step_of_a_pass_everything_that_is_kept_can_be_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The fold lies in a newer segment than what it takes in; it must be there before that goes."""
    table = Table(segment_bytes=3000).steps(200, of=40)
    table.db.retention.set(last=2, every=50)
    install = compactor.__dict__["install"]
    steps: list[int] = []

    def watched(*args: Any) -> Any:
        done = install(*args)
        steps.append(len(view_of(table.db).sealed))
        table.check([50, 100, 150, 199, 200])
        assert table.db.verify().ok
        return done

    monkeypatch.setattr(compactor, "install", watched)
    table.db.compact(cold="none")
    assert len(steps) > 1
    assert len(patches_of(table.db)) < 20


def test_a_pass_that_ends_in_between_is_finished_by_the_next(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    table = Table(segment_bytes=3000).steps(100, of=40)
    table.db.retention.set(last=2)
    install = compactor.__dict__["install"]
    steps: list[int] = []

    def ends(*args: Any) -> Any:
        if len(steps) == 2:
            raise KeyboardInterrupt
        steps.append(1)
        return install(*args)

    with monkeypatch.context() as patch:
        patch.setattr(compactor, "install", ends)
        with pytest.raises(KeyboardInterrupt):
            table.db.compact(cold="none")
    table.check([99, 100])
    assert table.db.verify().ok
    table.db.compact(cold="none")
    assert len(patches_of(table.db)) == 2
    table.check([99, 100])
    assert table.db.verify().ok


@pytest.mark.parametrize("touched", [(), ("x",)])
def test_a_snapshot_of_before_finds_what_was_folded_since(touched: tuple[str, ...]) -> None:
    """It has the segment of the patch mapped, which names a version that is nowhere any more."""
    table = Table(segment_entries=40).steps(100, of=40)
    table.db["x"] = np.zeros(9)
    with mldb.MLDatabase.on(table.fs, mode="r") as reader, reader.at() as snapshot:
        for name in touched:
            assert not snapshot[name].any()
        table.db.retention.set(last=1)
        table.db.compact(cold="none")
        assert len(patches_of(table.db)) < 5
        assert np.array_equal(snapshot["w"], table.value)
        assert np.array_equal(snapshot.tensor("w")[3:9], table.value[3:9])


# --- what goes wrong ------------------------------------------------------------------------------


def _other_values(patch: Patch) -> list[Any]:
    return encode_patch(patch._replace(values=patch.values ^ np.uint8(1)))


def _row_less(patch: Patch) -> list[Any]:
    return encode_patch(patch._replace(rows=patch.rows[1:], values=patch.values[1:]))


@pytest.mark.parametrize("made", [_other_values, _row_less])
def test_a_fold_that_sets_anything_else_is_not_installed(
    made: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = Table().steps(70)
    names = set(table.fs.list("segments"))
    with monkeypatch.context() as patch:
        patch.setattr(compactor, "encode_patch", made)
        with pytest.raises(CorruptError, match="sets other rows"):
            table.db.compact(cold="none")
    assert names <= set(table.fs.list("segments"))
    assert max(links(table.db)) == 70
    table.check()
    table.db.compact(cold="none")
    table.check()


def test_a_fold_that_builds_on_another_version_is_not_installed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    table = Table().steps(70)
    form = compactor.__dict__["StoredForm"]

    def other(encoding: int, data: bytes, base: int, owner: bytes) -> Any:
        return form(encoding, data, base + 2, owner)

    monkeypatch.setattr(compactor, "StoredForm", other)
    with pytest.raises(CorruptError, match="builds on another version"):
        table.db.compact(cold="none")
    table.check()


def test_damage_of_a_fold_is_named_and_versions_without_it_stay_readable(
    store_path: Path,
) -> None:
    values = np.full((1, 64), 7.25, np.float64)
    with mldb.open(store_path, **OPTIONS) as db:
        db["w"] = np.zeros((99, 64))
        for step in range(66):
            db.update_tensor("w", [step], values + step)
        db.compact(cold="none")
        (fold,) = (entry for entry in patches_of(db) if entry.length > 10_000)
        lsns = [version.lsn for version in db.history("w")]
        file = store_path / f"segments/{fold.segment.hex()}.seg"
    data = bytearray(file.read_bytes())
    data[fold.offset + fold.length - 9] ^= 1
    file.write_bytes(data)
    with mldb.open(store_path, mode="r") as db:
        for lsn in (fold.commit_lsn, lsns[-1]):
            with pytest.raises(CorruptError, match="'w'"):
                db.query_tensor("w", as_of=mldb.Lsn(lsn))
        assert db.query_tensor("w", as_of=lsns[64])[63, 0] == 7.25 + 63
        assert not db.verify().ok


def test_a_damaged_patch_is_not_folded_and_nothing_is_changed(store_path: Path) -> None:
    values = np.full((1, 64), 7.25, np.float64)
    with mldb.open(store_path, **OPTIONS) as db:
        db["w"] = np.zeros((99, 64))
        for step in range(70):
            db.update_tensor("w", [step], values + step)
        damaged = patches_of(db)[20]
        file = store_path / f"segments/{damaged.segment.hex()}.seg"
    data = bytearray(file.read_bytes())
    data[damaged.offset + damaged.length - 9] ^= 1
    file.write_bytes(data)
    with mldb.open(store_path, **OPTIONS) as db:
        kept = kept_of(db)
        with pytest.raises(CorruptError, match="'w'"):
            db.compact(cold="none")
        assert kept_of(db) == kept
        lsns = [version.lsn for version in db.history("w")]
        assert db.query_tensor("w", as_of=lsns[20])[19, 0] == 7.25 + 19


def test_a_whole_tensor_of_folds_takes_no_more_than_itself_each() -> None:
    """Where every row changes again and again, a fold of 64 patches is one table."""
    table = Table(20).steps(300, rows=10, of=20)
    before = table.stored
    table.db.compact(cold="none")
    most = max(entry.length for entry in patches_of(table.db))
    assert most <= 20 * (DIM * 4 + 4) + 64
    assert table.stored <= 1.1 * before
    assert folds.LINKS_MAX == 64
