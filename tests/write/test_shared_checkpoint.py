"""Checkpoints written side by side: one commit, whole or absent, whatever their size."""

from __future__ import annotations

import gc
import os
from functools import partial
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import pytest

import mldb
from mldb.errors import ClosedError, EpochOrderError, InvalidValueError, StorageIOError
from mldb.state.skeleton import DICT, TENSOR
from mldb.write.shared_checkpoint import SharedCheckpoint, SharedFile
from tests.support.processes import Child, Line

_SMALL, _LARGE = 1 << 12, 3 << 20  # values: the second is above the spill_bytes used here
_SPILL = 1 << 20


def skeleton(*names: str) -> bytes:
    node: list[Any] = [DICT]
    for name in names:
        node += [name, [TENSOR, name]]
    return bytes(msgpack.packb([1, node, {}, []]))


def parts_of(array: np.ndarray[Any, Any], count: int) -> list[tuple[int, memoryview]]:
    step = -(-array.nbytes // count)
    data = array.data.cast("B")
    return [(at, data[at : at + step]) for at in range(0, len(data), step)]


@pytest.mark.parametrize("values", [_SMALL, _LARGE])
def test_processes_write_it_and_one_commits(
    store_path: Path, rng: np.random.Generator, values: int
) -> None:
    wide = rng.standard_normal(values, dtype=np.float32)
    own = rng.standard_normal(7)
    with mldb.open(store_path, spill_bytes=_SPILL) as db:
        db["before"] = np.arange(3)
        with db.shared_checkpoint(epoch=3, step=9, name="c", metrics={"loss": 0.5}) as shared:
            at = shared.reserve("wide", wide.shape, "float32")
            own_at = shared.reserve("own", own.shape, np.float64)
            shared.reserve("empty", (0, 4), "bfloat16")
            shared.reserve("zeros", (2,), "int16")

            def write(part: tuple[int, memoryview], line: Line) -> None:
                with SharedFile(str(store_path), shared.file) as target:
                    target.write(at + part[0], [part[1]])
                line.say("done")

            for part in parts_of(wide, 3):
                with Child(partial(write, part)) as child:
                    assert child.hear() == ["done"]
            with SharedFile(str(store_path), shared.file) as file:
                data = own.data.cast("B")
                shared.note_hashed("own", *file.fill(own_at, [data], len(data)))
            assert set(db) == {"before"}
            taken = shared.commit(skeleton("wide", "own", "empty"), {"more": np.arange(4)})
        assert taken.name == "c"
        assert (taken.step, taken.epoch, taken.metrics) == (9, 3, {"loss": 0.5})
        assert taken.tensors == 5
    with mldb.open(store_path, mode="r") as db:
        assert db.recovery.clean
        assert db.verify().ok
        assert np.array_equal(db["wide"], wide)
        assert np.array_equal(db["own"], own)
        assert db["empty"].shape == (0, 4)
        assert db["zeros"].tolist() == [0, 0]
        assert db["more"].tolist() == [0, 1, 2, 3]
        assert list(db.load(None)) == ["wide", "own", "empty"]
        histories = [db.history(name) for name in ("wide", "own")]
        assert [[each.lsn for each in found] for found in histories] == [[taken.lsn]] * 2
    segments = os.listdir(store_path / "segments")
    assert len(segments) == (1 if values == _SMALL else 2)
    assert os.listdir(store_path / "pending") == []


def test_what_is_dropped_leaves_nothing(store_path: Path) -> None:
    with mldb.open(store_path) as db:
        shared = db.shared_checkpoint(epoch=1)
        at = shared.reserve("a", (4,), "uint8")
        file = SharedFile(str(store_path), shared.file)
        shared.discard()
        shared.discard()
        file.write(at, [b"abcd"])  # a rank that is late writes to a file without a name
        file.close()
        with pytest.raises(StorageIOError):
            SharedFile(str(store_path), shared.file)
        with pytest.raises(ClosedError, match="make a new one"):
            shared.commit(skeleton())
        forgotten = db.shared_checkpoint()
        forgotten.reserve("a", (4,), "uint8")
        del forgotten
        gc.collect()
        assert os.listdir(store_path / "pending") == []
        assert list(db) == []


def test_a_dead_coordinator_leaves_what_the_next_writer_sweeps(store_path: Path) -> None:
    mldb.open(store_path).close()

    def die(line: Line) -> None:
        db = mldb.open(store_path)
        shared = db.shared_checkpoint(epoch=1)
        shared.reserve("a", (4,), "uint8")
        line.say("there")
        line.hear()

    with Child(die) as child:
        assert child.hear() == ["there"]
        assert len(os.listdir(store_path / "pending")) == 1
    with mldb.open(store_path) as db:
        with db.shared_checkpoint(epoch=1) as shared:
            assert os.listdir(store_path / "pending") == [shared.file.rpartition("/")[2]]
        assert db.checkpoints() == []


def test_what_cannot_be_right_is_refused(store_path: Path) -> None:
    with mldb.open(store_path) as db:
        db.store_tensor("a", [1.0], epoch=5)
        with pytest.raises(EpochOrderError):
            db.shared_checkpoint(epoch=4)
        with db.shared_checkpoint() as shared:
            shared.reserve("a", (4,), "uint8")
            with pytest.raises(InvalidValueError, match="already"):
                shared.reserve("a", (4,), "uint8")
            with pytest.raises(InvalidValueError, match="no hashes"):
                shared.note_hashed("a", b"", bytes(16))
        later: SharedCheckpoint = db.shared_checkpoint(epoch=5)
        db.store_tensor("a", [1.0], epoch=6)
        with pytest.raises(EpochOrderError):
            later.commit(skeleton())
        assert os.listdir(store_path / "pending") == []
        of_the_head = db.shared_checkpoint().commit(skeleton())
        assert (of_the_head.epoch, of_the_head.name) == (6, "epoch-6")
        assert db.shared_checkpoint().commit(skeleton()).name == "epoch-6~2"


def test_space_is_asked_for_where_it_becomes_a_segment(store_path: Path) -> None:
    with mldb.open(store_path, spill_bytes=_SPILL) as db:
        for values, has_space in ((_SMALL, False), (_LARGE, True)):
            with db.shared_checkpoint(epoch=1) as shared:
                at = shared.reserve("wide", (values,), "float32")
                shared.allocate()
                status = (store_path / shared.file).stat()
                assert status.st_size < at
                assert status.st_blocks * 512 < at or has_space
        with pytest.raises(ClosedError):
            shared.allocate()
