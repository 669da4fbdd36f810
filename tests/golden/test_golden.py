"""A store that format 1 wrote stays readable for ever, can be continued, and is still written so.

Run as a script, this file writes ``tests/golden/format-1`` anew. Only a new format may change it,
and then it gets a folder of its own beside the old one::

    python -m tests.golden.test_golden
"""

from __future__ import annotations

import itertools
import os
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any, Literal
from unittest.mock import patch

import ml_dtypes
import numpy as np
import pytest
import scipy.sparse as sp

import mldb
from mldb.log import format as fmt
from mldb.log.fs.posix import OsFileSystem
from mldb.log.manifest import decode_manifest

GOLDEN = Path(__file__).resolve().parent / "format-1"
WRITER = b"mldb 0.1.0"
START = 1_700_000_000_000_000_000
SECOND = 1_000_000_000
OPTIONS: dict[str, Any] = {"segment_bytes": 12_000, "spill_bytes": 65_600}
ZSTD_SEGMENT = "segments/0000000005.seg"

# --- what was stored ------------------------------------------------------------------------------

ZONE = timezone(timedelta(hours=5, minutes=30))
PLAIN_METADATA = {
    "type": "weights",
    "position": 3,
    "scale": 0.5,
    "frozen": False,
    "note": None,
    "blob": b"\x00\xff",
    "axes": ["in", "out"],
    "nested": {"a": [1, {"b": "ü"}]},
    "made": datetime(2024, 2, 29, 12, 30, 15, 250_000, tzinfo=ZONE),
}
SINGLE = np.arange(3000, dtype="<f4").reshape(30, 100) / 4
LARGE = (np.arange(2000, dtype="<i8") * 7919) % 1009
SPILLED = np.arange(16_400, dtype="<u4")
SMOOTH = np.repeat(np.arange(40, dtype="<f4"), 500)
PACKED: dict[str, Any] = {
    "packed/big": np.array([[1, -2, 3], [300, -400, 32767]], dtype=">i2"),
    "packed/bf16": np.array([1.5, -2.0, float("inf"), 3.140625], dtype=ml_dtypes.bfloat16),
    "packed/fp8": np.array([0.5, 448.0, -1.0], dtype=ml_dtypes.float8_e4m3fn),
    "packed/bool": np.array([True, False, True]),
    "packed/complex": np.array([1 + 2j, -0.5j], dtype="<c16"),
    "packed/scalar": np.array(42, dtype="<u2"),
    "packed/empty": np.zeros((0, 7), dtype="<f8"),
    "packed/text": np.array(["abc", "ü"], dtype="<U3"),
    "packed/time": np.array(["2024-02-29T00:00"], dtype="<M8[s]"),
    "packed/nan": np.array([0x7FC00001, 0xFF800000], dtype="<u4").view("<f4"),
}
SPARSE = sp.csr_array(np.array([[0, 1.5, 0], [0, 0, -2.0], [4.0, 0, 0]]))
STATE = {
    "model": {
        "w": np.array([[1.0, 2.0], [3.0, 4.0]], dtype="<f4"),
        "b": np.array([0.5], dtype="<f8"),
    },
    "step": 1234,
    "big": 1 << 80,
    "rate": 0.001,
    "names": ["a", ("b", 2), None],
    "flags": {1: True, (2, "x"): b"raw"},
}


def write_history(folder: str) -> None:
    """Everything that a store of format 1 may hold, over seven segments."""
    with mldb.open(folder, **OPTIONS) as db:
        db.store_tensor("single", SINGLE[:10], PLAIN_METADATA, epoch=0)
        with db.transaction(epoch=1) as txn:
            for name, array in PACKED.items():
                txn.store_tensor(name, array, {"type": "packed", "name": name})
            txn.store_tensor("sparse", SPARSE)
        db.store_model_layer("layer1", np.eye(3, dtype="<f4"), np.zeros(3, dtype="<f4"), epoch=1)
        db.create_relationship("layer1", "layer2", "feeds", {"weight": 2})
        db.create_relationship("a name", "no tensor", "mentions")
        db.tag("early")
        db.pin(1)
        db.store_tensor("single", SINGLE, epoch=2)  # segment 1 is full
        db.set_metadata("single", {"type": "weights", "position": 4})
        db.delete_tensor("packed/bool", epoch=3)
        db.delete_relationship("a name", "no tensor", "mentions")
        db.checkpoint(STATE, epoch=3, step=30, metrics={"loss": 0.25})
        db.store_tensor("large", LARGE, epoch=4)  # needs a segment of its own
    with mldb.open(folder, compression="zstd", **OPTIONS) as db:
        db.store_tensor("smooth", SMOOTH, epoch=5)
        db.tag("late")
        db.tag("moved", 3)
        db.tag("moved", 4)
        db.tag("gone")
        db.untag("gone")
        db.pin(3)
        db.unpin(3)
    with mldb.open(folder, **OPTIONS) as db:
        db.rewind(2)
        db.store_tensor("single", SINGLE + 1, epoch=2)
        db.store_tensor("after/rewind", np.array([7, 8, 9], dtype="<i4"), epoch=3)
        with db.transaction(epoch=4) as txn:  # spilled to a pending segment
            txn.store_tensor("spilled", SPILLED)
            txn.store_tensor("beside", np.array([1.0]))
    tear(folder)
    with mldb.open(folder, **OPTIONS) as db:
        db.store_tensor("after/tear", np.array([-1], dtype="|i1"), epoch=5)


def tear(folder: str) -> None:
    """Leave half a record behind the last commit, as a process does that is killed in a write."""
    last = max(Path(folder, "segments").glob("*.seg"))
    with last.open("ab") as file:
        file.write(fmt.FRAME_MAGIC + b"torn" * 10)


@contextmanager
def fixed() -> Iterator[None]:
    """Clock, random ids and name of the writer as they were when the golden store was written."""
    ticks = itertools.count(START, SECOND)
    ids = itertools.count(1)

    def random_bytes(count: int) -> bytes:
        return next(ids).to_bytes(count, "big")

    with (
        patch.object(OsFileSystem, "time_ns", lambda fs: next(ticks)),
        patch.object(os, "urandom", random_bytes),
        patch.object(fmt, "WRITER", WRITER),
    ):
        yield


def write_golden(target: Path) -> None:
    """Write the store and keep what a copy keeps: neither locks nor empty folders."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch, "store")
        with fixed():
            write_history(str(folder))
        for path in sorted(folder.rglob("*")):
            if (
                path.is_file()
                and path.stat().st_size
                and path.name not in ("LOCK", "GATE", "border")
            ):
                copy = target / path.relative_to(folder)
                copy.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, copy)


# --- what must come back --------------------------------------------------------------------------

LSNS = {
    "early": 13,
    "pinned": 15,
    "checkpoint": 28,
    "large": 30,
    "smooth": 32,
    "spilled": 55,
    "end": 1048633,
}
EVENTS = {
    "TensorStored": 24,
    "MetadataSet": 13,
    "TagSet": 5,
    "RelationshipCreated": 3,
    "PinSet": 2,
    "TensorDeleted": 1,
    "RelationshipDeleted": 1,
    "CheckpointTaken": 1,
    "TagDeleted": 1,
    "PinCleared": 1,
    "Rewound": 1,
}


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A copy of the golden store that a test may change."""
    return shutil.copytree(GOLDEN, tmp_path / "golden")


def same(found: Any, expected: Any) -> None:
    """Bytes, dtype and shape of two arrays, or of the parts of sparse ones."""
    if sp.issparse(expected):
        assert type(found) is type(expected)
        for part in ("data", "indices", "indptr"):
            same(getattr(found, part), getattr(expected, part))
        return
    assert (found.dtype, found.shape) == (expected.dtype, expected.shape)
    assert found.tobytes() == expected.tobytes()


def check_head(db: mldb.MLDatabase) -> None:
    """The state at the head: epoch 2 of the first lineage, and what came after the rewind."""
    expected = {
        "single": SINGLE + 1,
        "after/rewind": np.array([7, 8, 9], dtype="<i4"),
        "after/tear": np.array([-1], dtype="|i1"),
        "spilled": SPILLED,
        "beside": np.array([1.0]),
        "layer1_weights": np.eye(3, dtype="<f4"),
        "layer1_biases": np.zeros(3, dtype="<f4"),
        "sparse": SPARSE,
        **PACKED,
    }
    assert set(db) == set(expected)
    for name, array in expected.items():
        same(db[name], array)
    assert (db.epoch, db.lsn, len(db)) == (5, LSNS["end"], len(expected))
    assert db.metadata("single") == {"type": "weights", "position": 4}
    assert db.metadata("layer1_biases") == {"type": "biases", "layer": "layer1", "position": 0}
    assert db.checkpoints() == []


def check_past(db: mldb.MLDatabase) -> None:
    """Every epoch of the lineage, and commits that the rewind left behind."""
    same(db.query_tensor("single", as_of=0), SINGLE[:10])
    assert db.metadata("single", as_of=0) == PLAIN_METADATA
    made = db.metadata("single", as_of=0)["made"]
    assert made.utcoffset() == timedelta(hours=5, minutes=30)
    same(db.query_tensor("single", as_of=1), SINGLE[:10])
    assert "spilled" not in db.at(3)
    same(db.query_tensor("spilled", as_of=4), SPILLED)
    abandoned = mldb.Lsn(LSNS["checkpoint"])
    assert "packed/bool" not in db.at(abandoned)
    same(db.query_tensor("large", as_of=mldb.Lsn(LSNS["large"])), LARGE)
    same(db.query_tensor("smooth", as_of=mldb.Lsn(LSNS["smooth"])), SMOOTH)
    same(db.query_tensor("single", as_of="late"), SINGLE)
    assert [version.epoch for version in db.history("single")] == [0, 2, 2]
    assert len(db.history("single", as_of="late")) == 2


def check_checkpoint(db: mldb.MLDatabase) -> None:
    at = mldb.Lsn(LSNS["checkpoint"])
    (checkpoint,) = db.checkpoints(as_of=at)
    assert (checkpoint.name, checkpoint.epoch, checkpoint.step) == ("epoch-3-step-30", 3, 30)
    assert (checkpoint.metrics, checkpoint.tensors, checkpoint.nbytes) == ({"loss": 0.25}, 2, 24)
    state = db.load(None, as_of=at)
    for name in ("w", "b"):
        same(state["model"].pop(name), STATE["model"][name])  # type: ignore[index]
    assert state == {**STATE, "model": {}}
    same(db.query_tensor("model/w", as_of=at), STATE["model"]["w"])  # type: ignore[index]


def check_graph(db: mldb.MLDatabase) -> None:
    assert db.tags() == {"early": LSNS["early"], "late": LSNS["smooth"], "moved": LSNS["large"]}
    assert db.pins() == [LSNS["pinned"]]
    edges = [(edge.source, edge.target, edge.kind, edge.metadata) for edge in db.relationships()]
    assert edges == [
        ("a name", "no tensor", "mentions", {}),
        ("layer1", "layer2", "feeds", {"weight": 2}),
        ("layer1_weights", "layer1_biases", "layer_params", {}),
    ]
    late = db.relationships(as_of="late")
    assert [edge.kind for edge in late] == ["feeds", "layer_params"]
    assert db.relationships(target="layer2")[0].source == "layer1"


def check_events(db: mldb.MLDatabase) -> None:
    found = list(db.events())
    assert Counter(type(event).__name__ for event in found) == EVENTS
    assert [event.lsn for event in found] == sorted(event.lsn for event in found)
    assert found[0].time == datetime.fromtimestamp(START // SECOND, UTC) + timedelta(seconds=2)


@pytest.mark.parametrize("mode", ["r", "rw"])
def test_everything_comes_back(copy: Path, mode: Literal["r", "rw"]) -> None:
    with mldb.open(copy, mode=mode) as db:
        assert db.recovery.clean
        assert db.recovery.distrusted == ()
        check_head(db)
        check_past(db)
        check_checkpoint(db)
        check_graph(db)
        check_events(db)
        assert db.verify().ok


def test_reading_changes_nothing(copy: Path) -> None:
    before = contents(copy)
    with mldb.open(copy, mode="r") as db:
        check_head(db)
    assert contents(copy) == before


@pytest.mark.parametrize("mode", ["r", "rw"])
def test_hints_are_not_needed(copy: Path, mode: Literal["r", "rw"]) -> None:
    shutil.rmtree(copy / "hints")
    shutil.rmtree(copy / "lost+found")
    with mldb.open(copy, mode=mode) as db:
        assert db.recovery.clean
        check_head(db)
        check_past(db)
        check_graph(db)


def test_the_store_can_be_continued(copy: Path, rng: np.random.Generator) -> None:
    added = {f"new/{number}": rng.standard_normal((20, 30)) for number in range(8)}
    with mldb.open(copy, **OPTIONS) as db:
        last = db.lsn
        for epoch, (name, array) in enumerate(added.items(), 6):
            assert db.store_tensor(name, array, {"type": "new"}, epoch=epoch) > last
        db.rewind("late")
        db.checkpoint(STATE, epoch=9)
    with mldb.open(copy, mode="r") as db:
        same(db["smooth"], SMOOTH)
        same(db["large"], LARGE)
        assert db.epoch == 9
        assert [item.name for item in db.checkpoints()] == ["epoch-3-step-30", "epoch-9"]
        check_past_of_both(db)
        assert db.verify().ok
    with mldb.open(copy) as db:
        db.rewind(mldb.Lsn(last))
        db.store_tensor("end", np.zeros(1), epoch=5)
        assert {*db} >= {"spilled", "single", "end"}
        assert not any(name.startswith("new/") for name in db)


def check_past_of_both(db: mldb.MLDatabase) -> None:
    same(db.query_tensor("spilled", as_of=mldb.Lsn(LSNS["spilled"])), SPILLED)
    same(db.query_tensor("single", as_of=0), SINGLE[:10])


def test_a_backup_of_it_is_the_same(copy: Path, tmp_path: Path) -> None:
    with mldb.open(copy, mode="r") as db:
        db.backup(tmp_path / "backup")
    with mldb.open(tmp_path / "backup") as db:
        check_head(db)
        check_past(db)
        check_graph(db)
        assert db.verify().ok


# --- what is written today ------------------------------------------------------------------------


def contents(folder: Path) -> dict[str, bytes]:
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def test_the_same_history_is_written_in_the_same_bytes(tmp_path: Path) -> None:
    """Except what zstd made, whose versions differ, and what says how long that is.

    A writer may choose otherwise within the format, packing say. Then this comparison ends with the
    version that did; the golden store stays as it is.
    """
    write_golden(tmp_path / "now")
    golden, now = contents(GOLDEN), contents(tmp_path / "now")
    assert now.keys() == golden.keys()
    differ = {name for name in golden if golden[name] != now[name]}
    manifests = {name for name in golden if name.startswith("MANIFEST")}
    assert differ <= {ZSTD_SEGMENT, *manifests}
    for name in manifests:
        old, new = (decode_manifest(files[name], name) for files in (golden, now))
        assert [info.number for info in old.segments] == [info.number for info in new.segments]
        zstd = int(Path(ZSTD_SEGMENT).stem)
        for one, other in zip(old.segments, new.segments, strict=True):
            assert one == other or one.number == zstd


def test_the_golden_store_holds_what_it_is_meant_to() -> None:
    """Sealed segments with a footer, a side index, an active segment with a hint, a torn tail."""
    files = contents(GOLDEN)
    manifest = decode_manifest(files[max(name for name in files if "MANIFEST" in name)], "newest")
    side = [info for info in manifest.segments if info.index_file]
    assert len(side) == 1
    assert side[0].index_file in files
    assert len(manifest.segments) - len(side) >= 3
    assert manifest.active not in {info.number for info in manifest.segments}
    assert f"hints/{manifest.active:010d}.idx" in files
    assert any(name.startswith("lost+found/") for name in files)
    assert manifest.jumps
    assert sum(map(len, files.values())) < 200 << 10
    assert all(data[: len(fmt.FILE_MAGIC)] == fmt.FILE_MAGIC for data in files.values())


if __name__ == "__main__":
    shutil.rmtree(GOLDEN, ignore_errors=True)
    write_golden(GOLDEN)
    sys.stdout.write(f"{GOLDEN}: {sum(map(len, contents(GOLDEN).values()))} bytes\n")
