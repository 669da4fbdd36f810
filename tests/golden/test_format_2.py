"""A store of version 2 stays readable for ever, and is still written in the same bytes."""

from __future__ import annotations

import os
import shutil
from collections import Counter
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch

import mldb
from mldb.log import format as fmt
from mldb.log.file_header import decode_file_header
from mldb.log.fs.posix import OsFileSystem
from mldb.log.manifest import Manifest, load_manifest
from mldb.log.newest import load_newest
from tests.golden import second
from tests.golden.second import (
    FLAT_ROWS,
    LARGE,
    METADATA,
    OPTIONS,
    SECOND,
    SINGLE,
    SMOOTH,
    SPHERE_ROWS,
    SPILLED,
    START,
    of_every_dtype,
    of_every_layout,
    state_of_numpy,
    state_of_torch,
    tear,
    write_golden,
)
from tests.golden.stores import BACKUP, FORMAT_2, contents, same
from tests.support.seen import segments_of

Mode = Literal["r", "rw"]
MODES: tuple[Mode, ...] = ("r", "rw")
JUMP = 1 << 24
LSNS = {
    "early": 16,
    "pinned": 18,
    "numpy": 31,
    "first rows": 37,
    "lakes": 45,
    "torch": 48,
    "late": 52,
    "second pin": 70,
    "after": 72,
    "backup": JUMP + 70,
    "end": JUMP + 75,
}
EVENTS = {
    "TensorStored": 106,
    "MetadataSet": 87,
    "TagSet": 6,
    "RelationshipCreated": 3,
    "PinSet": 3,
    "SplatsAdded": 3,
    "CheckpointTaken": 2,
    "LakeCreated": 2,
    "TensorDeleted": 1,
    "RelationshipDeleted": 1,
    "SplatsDeleted": 1,
    "TagDeleted": 1,
    "PinCleared": 1,
    "Rewound": 1,
}

pytestmark = pytest.mark.filterwarnings("ignore:.*(ComplexHalf|Sparse CSR).*:UserWarning")


@pytest.fixture(params=[FORMAT_2, BACKUP], ids=["store", "backup"])
def copy(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A copy of a golden store that a test may change."""
    source: Path = request.param
    return shutil.copytree(source, tmp_path / source.name)


def is_backup(path: Path) -> bool:
    return path.name == BACKUP.name


def newest(folder: Path) -> Manifest:
    return load_newest(OsFileSystem(folder), [])


# --- what must come back --------------------------------------------------------------------------


def check_head(db: mldb.MLDatabase, backup: bool) -> None:
    """The state at the head: epoch 2 of the first lineage, and what came after the rewind."""
    expected: dict[str, Any] = {
        **of_every_dtype(),
        **of_every_layout(),
        "single": SINGLE + 1,
        "layer1_weights": np.eye(3, dtype="<f4"),
        "layer1_biases": np.zeros(3, dtype="<f4"),
        "after/rewind": np.array([7, 8, 9], dtype="<i4"),
        "after/tear": np.array([-1], dtype="|i1"),
    }
    if not backup:
        expected |= {"spilled": SPILLED, "beside": np.array([1.0]), "last": np.array([2.0])}
    assert set(db) == set(expected)
    for name, value in expected.items():
        strided = isinstance(value, torch.Tensor) and value.layout is torch.strided
        same(db.tensor(name).torch() if strided else db[name], value)
    end = (5, LSNS["backup"]) if backup else (6, LSNS["end"])
    assert (db.epoch, db.lsn, len(db)) == (*end, len(expected))
    assert db.metadata("single") == {"type": "weights", "position": 4}
    assert db.metadata("torch/coo") == {"type": "packed"}
    assert db.metadata("layer1_biases") == {"type": "biases", "layer": "layer1", "position": 0}
    assert db.checkpoints() == []
    assert db.lakes() == []


def check_past(db: mldb.MLDatabase) -> None:
    """Every epoch of the lineage, and commits that the rewind left behind."""
    check_late(db)
    same(db.query_tensor("dtype/|b1", as_of=2), of_every_dtype()["dtype/|b1"])
    assert "after/rewind" not in db.at(2)
    assert [version.epoch for version in db.history("single")] == [0, 2, 2]
    (when,) = [event.time for event in db.events() if event.lsn == LSNS["pinned"]]
    assert db.at(when).lsn == LSNS["pinned"]
    assert db.at(when - timedelta(microseconds=1)).lsn == LSNS["early"]


def check_late(db: mldb.MLDatabase) -> None:
    """What was stored before the rewind, by tag and by epoch."""
    same(db.query_tensor("single", as_of=0), SINGLE[:10])
    assert db.metadata("single", as_of=0) == METADATA
    made = db.metadata("single", as_of=0)["made"]
    assert made.utcoffset() == timedelta(hours=5, minutes=30)
    late = db.at("late")
    assert "dtype/|b1" not in late
    same(late["single"], SINGLE)
    same(late["large"], LARGE)
    same(late["smooth"], SMOOTH)
    same(late["from a handler"], np.array([15], "<i2"))
    assert len(db.history("single", as_of="late")) == 2


def check_states(db: mldb.MLDatabase) -> None:
    """Two checkpoints, every node of their trees, and memory that tensors share."""
    plain, of_torch = db.checkpoints(as_of="late")
    assert (plain.name, plain.epoch, plain.step) == ("epoch-3-step-30", 3, 30)
    assert plain.lsn == LSNS["numpy"]
    assert (plain.metrics, plain.tensors, plain.nbytes) == ({"loss": 0.25}, 4, 56)
    assert (of_torch.name, of_torch.step, of_torch.lsn) == ("torch", None, LSNS["torch"])
    identical(db.load(None, as_of=mldb.Lsn(LSNS["numpy"])), state_of_numpy())
    found, expected = db.load(None, as_of=mldb.Lsn(LSNS["torch"])), state_of_torch()
    identical(found, expected)
    first, turned, every = found["views"]
    every[1] = 99  # the second element of base[::2] is the first of base[2:8]
    assert (float(first[0]), float(turned[2, 0])) == (99, 99)


def identical(found: Any, expected: Any) -> None:
    """Compare two trees: the same types all the way down, and the same bits at the leaves."""
    assert type(found) is type(expected)
    if isinstance(expected, dict):
        assert list(found) == list(expected)
        for key in expected:
            identical(found[key], expected[key])
    elif isinstance(expected, list | tuple):
        for one, other in zip(found, expected, strict=True):
            identical(one, other)
    elif hasattr(expected, "dtype") and not isinstance(expected, np.generic):
        same(found, expected)
    else:
        assert found == expected


def check_lakes(db: mldb.MLDatabase) -> None:
    """Rows with their ids, labels, masses and further columns; one was removed and came back."""
    assert db.lakes(as_of="late") == ["flat", "sphere"]
    lake = db.lake("sphere").at("late")
    fields = ("id", "mu", "norm", "kappa", "alpha", "label")
    rows = lake.get(fields=fields)
    assert (lake.dim, lake.geometry) == (4, "sphere")
    assert rows["id"].tolist() == [0, 2, 1, 77]
    assert rows["norm"].tolist() == [5, 1, 1, 13]
    assert rows["kappa"][:2].tolist() == [2, 16]
    assert rows["alpha"].tolist() == [1, 4, 1, 1]
    assert rows["label"].tolist() == [-1, -1, 5, -1]
    units = SPHERE_ROWS[[0, 2, 3, 4]] / np.array([[5], [1], [1], [13]], "<f4")
    np.testing.assert_allclose(rows["mu"], units, rtol=1e-6)
    flat = db.lake("flat").at("late")
    same(flat.get(fields=("mu",))["mu"], FLAT_ROWS)
    assert flat.get(fields=("label",))["label"].tolist() == [1, 2, 3]
    before = db.lake("sphere").at(mldb.Lsn(LSNS["first rows"])).get(fields=("id",))
    assert before["id"].tolist() == [0, 1, 2]


def check_graph(db: mldb.MLDatabase) -> None:
    """Tags, pins and relationships; those that were set after the rewind count as the others."""
    tags = {"early": LSNS["early"], "late": LSNS["late"], "moved": LSNS["lakes"]}
    assert db.tags() == {**tags, "after": LSNS["after"]}
    assert db.pins() == [LSNS["pinned"], LSNS["second pin"]]
    edges = [(edge.source, edge.target, edge.kind, edge.metadata) for edge in db.relationships()]
    assert edges == [
        ("a name", "no tensor", "mentions", {}),
        ("layer1", "layer2", "feeds", {"weight": 2}),
        ("layer1_weights", "layer1_biases", "layer_params", {}),
    ]
    late = db.relationships(as_of="late")
    assert [edge.kind for edge in late] == ["feeds", "layer_params"]


def check_events(db: mldb.MLDatabase, backup: bool) -> None:
    """Every event in order, with the time of its commit."""
    found = list(db.events())
    expected = EVENTS | ({"TensorStored": EVENTS["TensorStored"] - 3} if backup else {})
    assert Counter(type(event).__name__ for event in found) == expected
    assert [event.lsn for event in found] == sorted(event.lsn for event in found)
    assert found[0].time == datetime.fromtimestamp(START // SECOND, UTC) + timedelta(seconds=2)


def check_all(db: mldb.MLDatabase, backup: bool) -> None:
    check_head(db, backup)
    check_past(db)
    check_states(db)
    check_lakes(db)
    check_graph(db)
    check_events(db, backup)
    assert db.verify().ok


# --- reading --------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
def test_everything_comes_back_and_nothing_changes(copy: Path, mode: Mode) -> None:
    before = contents(copy)
    for _ in range(2):
        with mldb.open(copy, mode=mode) as db:
            assert db.recovery.clean
            assert db.recovery.distrusted == ()
            check_all(db, is_backup(copy))
        assert contents(copy) == before


@pytest.mark.parametrize("mode", MODES)
def test_derived_files_are_not_needed(copy: Path, mode: Mode) -> None:
    shutil.rmtree(copy / "hints", ignore_errors=True)
    shutil.rmtree(copy / "lost+found", ignore_errors=True)
    with mldb.open(copy, mode=mode) as db:
        assert db.recovery.clean
        check_all(db, is_backup(copy))


def test_the_manifest_before_the_newest_leads_to_the_same(copy: Path) -> None:
    """That of the clean close lost: a scan finds what it would have said."""
    if is_backup(copy):
        pytest.skip("a backup has one manifest")
    (copy / f"MANIFEST-{newest(copy).number:010d}").unlink()
    for mode in MODES:
        with mldb.open(copy, mode=mode) as db:
            check_all(db, False)


# --- going on -------------------------------------------------------------------------------------


def test_the_store_can_be_continued(copy: Path, rng: np.random.Generator) -> None:
    added = {f"new/{number}": rng.standard_normal((20, 30)) for number in range(8)}
    with mldb.open(copy, **OPTIONS) as db:
        last = db.lsn
        assert db.store_tensor("first", 1) == last + 2  # it was closed cleanly: no gap
        for epoch, (name, array) in enumerate(added.items(), 7):
            assert db.store_tensor(name, array, {"type": "new"}, epoch=epoch) > last
        db.rewind("late")
        db.checkpoint(state_of_numpy(), epoch=9)
        db.lake("flat").add_splats(FLAT_ROWS[:1])
    with mldb.open(copy, mode="r") as db:
        same(db["smooth"], SMOOTH)
        same(db["large"], LARGE)
        assert [item.name for item in db.checkpoints()] == ["epoch-3-step-30", "torch", "epoch-9"]
        assert len(db.lake("flat")) == 4
        check_late(db)
        check_lakes(db)
        assert db.verify().ok
    with mldb.open(copy) as db:
        db.rewind(mldb.Lsn(last))
        check_past(db)
        check_states(db)
        assert not any(name.startswith("new/") for name in db)


def test_a_torn_tail_is_repaired_by_the_first_commit(copy: Path) -> None:
    tear(str(copy))
    before = contents(copy)
    for mode in MODES:
        with mldb.open(copy, mode=mode) as db:
            check_all(db, is_backup(copy))
        assert contents(copy) == before
    with mldb.open(copy) as db:
        assert (db.recovery.clean, db.recovery.dropped_bytes) == (False, 44)
        assert db.store_tensor("more", 1) > LSNS["end" if not is_backup(copy) else "backup"]
        assert (copy / db.recovery.saved_as).read_bytes().endswith(b"torn" * 10)
    with mldb.open(copy, mode="r") as db:
        assert db.recovery.clean
        check_past(db)
        check_states(db)
        assert db.verify().ok


def test_a_backup_of_either_is_the_same(copy: Path, tmp_path: Path) -> None:
    """A backup of a backup names both stores that its segments came from."""
    with mldb.open(copy, mode="r") as db:
        db.backup(tmp_path / "again")
    for mode in MODES:
        with mldb.open(tmp_path / "again", mode=mode) as db:
            check_all(db, is_backup(copy))
    origins = newest(tmp_path / "again").origins
    assert origins[1:] == newest(copy).origins
    assert {info.origin for info in newest(tmp_path / "again").segments} <= {*origins[1:]}


# --- what is written today ------------------------------------------------------------------------


def test_the_same_history_is_written_in_the_same_bytes(tmp_path: Path) -> None:
    """Except what zstd made, whose versions differ, and what says how long that is.

    A writer may choose otherwise within the format, packing say. Then this comparison ends with the
    version that did; the golden store stays as it is.
    """
    write_golden(tmp_path / "store", tmp_path / "backup")
    for golden, made in ((FORMAT_2, tmp_path / "store"), (BACKUP, tmp_path / "backup")):
        old, new = contents(golden), contents(made)
        assert new.keys() == old.keys()
        differ = {name for name in old if old[name] != new[name]}
        manifests = {name for name in old if name.startswith("MANIFEST")}
        assert differ <= {*manifests, zstd_segment(golden)}
        for name in manifests & differ:
            number = int(name.removeprefix("MANIFEST-"))
            one, other = (load_manifest(OsFileSystem(path), number) for path in (golden, made))
            assert [info.id for info in one.segments] == [info.id for info in other.segments]
            assert zstd_segment(golden) in differ


def zstd_segment(folder: Path) -> str:
    """The file that holds the compressed tensor."""
    with mldb.open(folder, mode="r") as db:
        at = db.tensor("smooth", as_of="late").lsn
    (info,) = [info for info in newest(folder).segments if info.first_lsn <= at <= info.last_lsn]
    return f"segments/{info.id.hex()}.seg"


def test_the_golden_stores_hold_what_they_are_meant_to() -> None:
    """Footers, a side index, a hint, a torn tail, manifests with a base, a clean gap of LSNs."""
    files, copied = contents(FORMAT_2), contents(BACKUP)
    manifest = newest(FORMAT_2)
    side = [info for info in manifest.segments if info.index_file]
    assert [info.index_file in files for info in side] == [True]
    assert len(manifest.segments) - len(side) >= 6
    assert f"hints/{manifest.active.hex()}.idx" in files
    assert any(name.startswith("lost+found/") for name in files)
    assert manifest.jumps
    with_base = [
        number
        for number in map(int, (name[9:] for name in files if name.startswith("MANIFEST")))
        if (found := load_manifest(OsFileSystem(FORMAT_2), number)).base is not None
        and found.base.number != number
    ]
    assert len(with_base) == 2
    assert all(decode_file_header(data[:128], "").version == 2 for data in files.values())
    backup = newest(BACKUP)
    assert (backup.number, backup.origins[1:]) == (1, manifest.origins)
    assert {info.id for info in backup.segments} <= {
        *(info.id for info in manifest.segments),
        *(bytes.fromhex(name[9:41]) for name in copied if name.endswith(".seg")),
    }
    sizes = sum(map(len, files.values())), sum(map(len, copied.values()))
    assert sum(sizes) < 300 << 10
    last = segments_of(FORMAT_2)[-1].name
    assert f"segments/{last}" in files


def test_a_commit_that_a_signal_handler_forced_says_so() -> None:
    with mldb.open(FORMAT_2, mode="r") as db:
        at = db.tensor("from a handler", as_of="late").lsn
    found = [
        name
        for name, data in contents(FORMAT_2).items()
        if b"\xabinterrupted\xc3" in data and name.endswith(".seg")
    ]
    (info,) = [info for info in newest(FORMAT_2).segments if info.first_lsn <= at <= info.last_lsn]
    assert found == [f"segments/{info.id.hex()}.seg"]


def test_writing_it_leaves_no_trace(tmp_path: Path) -> None:
    """The ids and the clock that it needs are those of the system again."""
    with second.fixed():
        fixed_bytes = os.urandom(16)
    with second.fixed():
        assert os.urandom(16) == fixed_bytes
    assert os.urandom(16) != os.urandom(16)
    with mldb.open(tmp_path / "one") as one, mldb.open(tmp_path / "two") as two:
        one["a"] = two["a"] = 1
        ids = {db._log.head().commit.id for db in (one, two)}
    assert len(ids) == 2
    assert fmt.WRITER == second.WRITER
