"""What a checkpoint is called, and what it leaves behind or clears away at the head."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import mldb
from mldb.history.events import TensorDeleted
from mldb.log.fs.memory import MemoryFileSystem
from mldb.state import planning


@pytest.fixture
def db() -> Iterator[mldb.MLDatabase]:
    with mldb.MLDatabase.on(MemoryFileSystem(), durability="os") as database:
        yield database


def names(db: Any) -> list[str]:
    return [point.name for point in db.checkpoints()]


def beside(
    db: mldb.MLDatabase, monkeypatch: pytest.MonkeyPatch, act: Callable[[], object], times: int = 1
) -> list[int]:
    """Let *act* run between the plan of the next checkpoint and its commit, some times."""
    commit, calls = db._commit, []

    def late(*args: Any, **options: Any) -> Any:
        calls.append(1)
        if len(calls) <= times:
            monkeypatch.setattr(db, "_commit", commit)
            act()
            monkeypatch.setattr(db, "_commit", late)
        return commit(*args, **options)

    monkeypatch.setattr(db, "_commit", late)
    return calls


# --- names ----------------------------------------------------------------------------------------


def test_two_checkpoints_of_an_epoch_without_a_step_get_two_names(db: mldb.MLDatabase) -> None:
    """The second took the name of the first, which was in no list any more."""
    taken = [db.checkpoint({"w": np.full(2, number)}, epoch=3) for number in range(3)]
    taken.append(db.checkpoint({"w": np.full(2, 3)}, epoch=3, step=7))
    taken.append(db.checkpoint({"w": np.full(2, 4)}, epoch=3, step=7))
    expected = ["epoch-3", "epoch-3~2", "epoch-3~3", "epoch-3-step-7", "epoch-3-step-7~2"]
    assert [point.name for point in taken] == names(db) == expected
    for number, name in enumerate(expected):
        assert db.load(None, as_of=name)["w"].tolist() == [number, number]
    assert db.load(None, as_of=3)["w"].tolist() == [4, 4]
    db.checkpoint({"w": np.zeros(1)}, epoch=3, name="best")
    db.checkpoint({"w": np.ones(1)}, epoch=3, name="best")  # said so: the newest has the name
    assert names(db) == [*expected, "best"]
    assert db.load(None, as_of="best")["w"].tolist() == [1]


def test_a_name_that_was_given_is_not_taken_over(db: mldb.MLDatabase) -> None:
    """In older stores a name may hide an earlier checkpoint; the next is kept apart as well."""
    for number in (1, 2):
        db.checkpoint({"w": np.full(1, number)}, epoch=1, name="epoch-1")
    assert db.checkpoint({"w": np.full(1, 3)}, epoch=1).name == "epoch-1~2"
    assert names(db) == ["epoch-1", "epoch-1~2"]
    assert [int(db.load(None, as_of=name)["w"][0]) for name in names(db)] == [2, 3]
    db.checkpoint({"w": np.full(1, 4)}, epoch=1, name="epoch-1~3", wait=False)
    assert db.checkpoint({"w": np.full(1, 5)}, epoch=1, wait=False).name == "epoch-1~4"


def test_names_of_checkpoints_on_their_way_are_known_at_the_call(db: mldb.MLDatabase) -> None:
    pending = [db.checkpoint({"w": np.ones(9)}, epoch=1, wait=False) for _ in range(5)]
    assert [item.name for item in pending] == ["epoch-1", *(f"epoch-1~{n}" for n in range(2, 6))]
    assert [item.result(30).name for item in pending] == names(db)
    assert db.checkpoint({"w": np.ones(9)}, epoch=1).name == "epoch-1~6"


def test_a_rewind_gives_the_names_behind_it_free(db: mldb.MLDatabase) -> None:
    db.checkpoint({"w": np.zeros(1)}, epoch=1)
    lost = db.checkpoint({"w": np.ones(1)}, epoch=2)
    db.rewind(1)
    assert db.checkpoint({"w": np.full(1, 5)}, epoch=2).name == "epoch-2"
    assert names(db) == ["epoch-1", "epoch-2"]
    assert db.load(None, as_of="epoch-2")["w"].tolist() == [5]
    assert db.load(None, as_of=lost.lsn)["w"].tolist() == [1]


@pytest.mark.parametrize("wait", [True, False])
def test_a_name_that_another_process_took_just_now_is_not_taken_twice(
    store_path: Path, monkeypatch: pytest.MonkeyPatch, wait: bool
) -> None:
    with mldb.open(store_path) as db, mldb.open(store_path) as other:
        calls = beside(db, monkeypatch, lambda: other.checkpoint({"v": np.ones(1)}, epoch=1), 2)
        mine: Any = db.checkpoint({"w": np.ones(1)}, epoch=1, wait=wait)  # type: ignore[call-overload]
        point = mine if wait else mine.result(30)
        assert len(calls) == 3
        assert (point.name, mine.name) == ("epoch-1~3", "epoch-1~3")
        assert names(db) == ["epoch-1", "epoch-1~2", "epoch-1~3"]
        assert db.load(None, as_of="epoch-1~3")["w"].tolist() == [1]


def test_who_is_always_too_late_is_told(
    db: mldb.MLDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(planning, "_PLANS_MAX", 3)
    calls = beside(db, monkeypatch, lambda: db.checkpoint({}, epoch=1), 99)
    with pytest.raises(mldb.ConflictError, match=r"'epoch-1' was being stored.*Nothing was stored"):
        db.checkpoint({"w": np.ones(1)}, epoch=1)
    assert len(calls) == 3
    assert len(names(db)) == 3
    assert "w" not in db


def test_threads_that_checkpoint_at_once_share_no_name(db: mldb.MLDatabase) -> None:
    taken: list[str] = []

    def work() -> None:
        taken.extend(db.checkpoint({"w": np.ones(1)}, epoch=1).name for _ in range(10))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    expected = {"epoch-1", *(f"epoch-1~{number}" for number in range(2, 41))}
    assert set(taken) == set(names(db)) == expected
    assert len(taken) == 40


@given(st.sets(st.integers(1, 40)), st.integers(0, 300))
def test_a_free_name_is_free_and_the_next_when_there_is_no_gap(
    given_to: set[int], row: int
) -> None:
    class Fake:
        """A view in which these numbers of a name are taken."""

        intervals = ()
        looked = 0

        def newest(self, key: bytes, intervals: Any) -> object:
            self.looked += 1
            number = int((key.decode().partition("~")[2]) or 1)
            return 1 if number in given_to or number <= row else None

    view = Fake()
    name = planning.free_name(view, "e")  # type: ignore[arg-type]
    number = int(name.partition("~")[2] or 1)
    assert number > row
    assert number not in given_to
    assert view.looked <= 20
    if not given_to:
        assert number == row + 1


# --- what is left behind --------------------------------------------------------------------------


def checkpoint_of(db: mldb.MLDatabase, *parts: str, epoch: int = 1, **options: Any) -> Any:
    state = {part: {"w": np.full(2, epoch), "b": np.full(1, epoch)} for part in parts}
    return db.checkpoint(state, epoch=epoch, **options)


def test_what_a_checkpoint_no_longer_has_reads_at_the_head_until_one_prunes(
    db: mldb.MLDatabase,
) -> None:
    db["data/kept"] = [1, 2]
    checkpoint_of(db, "model", "ema", epoch=1)
    db.set_metadata("ema/w", {"unit": "m"})
    checkpoint_of(db, "model", epoch=2)
    assert db["ema/w"].tolist() == [1, 1]  # the rule: it stays as it was stored
    assert set(db.load(None)) == {"model"}
    checkpoint_of(db, "model", epoch=3, prune=True)
    assert sorted(db) == ["data/kept", "model/b", "model/w"]
    assert db["data/kept"].tolist() == [1, 2]
    assert db.query_tensor("ema/w", as_of=2).tolist() == [1, 1]
    assert db.load(None, as_of=1)["ema"]["b"].tolist() == [1]
    assert db.metadata("ema/w", as_of=2) == {"unit": "m"}
    assert [c.epoch for c in db.checkpoints()] == [1, 2, 3]
    checkpoint_of(db, "model", "ema", epoch=4, prune=True)
    assert db.metadata("ema/w") == {}
    assert len(db) == 5


def test_pruning_is_one_commit_with_the_checkpoint(db: mldb.MLDatabase) -> None:
    before = checkpoint_of(db, "a", "b").lsn
    point = checkpoint_of(db, "a", prune=True)
    gone = [event.name for event in db.events(before) if isinstance(event, TensorDeleted)]
    assert sorted(gone) == ["b/b", "b/w"]
    assert [row.lsn for _, row in db._log.head().commits(before + 1, db.lsn)] == [point.lsn]
    with db.at(lsn=point.lsn) as snapshot:
        assert sorted(snapshot) == ["a/b", "a/w"]


def test_what_somebody_stored_by_hand_is_not_pruned(db: mldb.MLDatabase) -> None:
    checkpoint_of(db, "model", "ema")
    db["ema/w"] = [7, 7, 7]  # the newest of this name is no checkpoint's
    db["model/notes"] = [1]
    db.checkpoint({"w": np.zeros(1)}, epoch=1, prune=True)
    assert sorted(db) == ["ema/w", "model/notes", "w"]


def test_pruning_looks_at_every_checkpoint_of_the_lineage(db: mldb.MLDatabase) -> None:
    """Also at those whose name was given to a newer one."""
    for part in ("a", "b", "c"):
        checkpoint_of(db, part, name="best")
    checkpoint_of(db, "d", name="other", prune=True)
    assert sorted(db) == ["d/b", "d/w"]
    checkpoint_of(db, "e", prune=True)
    assert sorted(db) == ["e/b", "e/w"]


def test_aliases_of_tied_tensors_are_kept(db: mldb.MLDatabase) -> None:
    shared = np.ones(3)
    db.checkpoint({"a": shared, "b": [shared]}, epoch=1)
    db.checkpoint({"a": shared, "b": [shared]}, epoch=1, prune=True)
    assert sorted(db) == ["a", "b/0"]


def test_a_rewind_before_the_pruning_brings_back_what_was_pruned(db: mldb.MLDatabase) -> None:
    checkpoint_of(db, "model", "ema", epoch=1)
    pruned = checkpoint_of(db, "model", epoch=2, prune=True)
    db.rewind(1)
    assert db["ema/w"].tolist() == [1, 1]
    checkpoint_of(db, "model", epoch=2)
    assert "ema/w" in db
    with db.at(lsn=pruned.lsn) as snapshot:
        assert "ema/w" not in snapshot
    db.rewind(pruned.lsn)
    # Stored by a checkpoint that this lineage does not have: none of its business.
    assert sorted(db) == ["model/b", "model/w"]


def test_what_came_while_it_was_being_stored_is_pruned_too(
    store_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two at once: the later of two commits decides, by what it finds under the lock."""
    with mldb.open(store_path) as db, mldb.open(store_path) as other:
        checkpoint_of(db, "old", name="0")
        calls = beside(
            db, monkeypatch, lambda: checkpoint_of(other, "theirs", name="1", prune=True)
        )
        checkpoint_of(db, "mine", name="2", prune=True)
        assert sorted(db) == sorted(other) == ["mine/b", "mine/w"]
        assert len(calls) == 2
        monkeypatch.undo()
        calls = beside(db, monkeypatch, lambda: other.store_tensor("beside", [1]))
        checkpoint_of(db, "mine", name="3", prune=True)
        assert sorted(db) == ["beside", "mine/b", "mine/w"]
        assert len(calls) == 1  # the head moved, and the plan still held


@pytest.mark.parametrize("options", [{}, {"segment_bytes": 1 << 20}, {"compression": "zstd"}])
def test_states_larger_than_a_segment_are_pruned_and_named(
    store_path: Path, options: dict[str, Any]
) -> None:
    """Their tensors lie in a segment of their own before the rest is decided."""
    with mldb.open(store_path, **options) as db:
        large = np.arange(300_000)
        blob = {"blob": bytes(2 << 20), "w": large}
        for _ in range(2):
            db.checkpoint({"a": large, "b": [large + 1]}, epoch=1)
        db.checkpoint(blob, epoch=1, prune=True, wait=False).result(30)
    with mldb.open(store_path) as db:
        assert sorted(db) == ["w"]
        assert names(db) == ["epoch-1", "epoch-1~2", "epoch-1~3"]
        assert db.load(None)["blob"] == blob["blob"]
        assert db.load(None, as_of="epoch-1~2")["b"][0].tolist() == (large + 1).tolist()
        assert db.verify().ok


def test_a_checkpoint_on_a_signal_prunes(store_path: Path) -> None:
    with mldb.open(store_path) as db:
        checkpoint_of(db, "model", "ema")

        def save() -> None:
            checkpoint_of(db, "model", prune=True, name="saved")

        with db.save_on_signal(signal.SIGUSR1, save, then="continue"):
            signal.raise_signal(signal.SIGUSR1)
            db.safe_point()
        assert sorted(db) == ["model/b", "model/w"]


def test_prune_is_a_bool(db: mldb.MLDatabase) -> None:
    for wrong in ("ema/", 1, None):
        with pytest.raises(mldb.InvalidTypeError, match="prune is a"):
            checkpoint_of(db, "a", prune=wrong)
    assert len(db) == 0
