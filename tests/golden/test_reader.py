"""A reader written from the page alone reads the golden stores, and agrees with mldb about them."""

from __future__ import annotations

import ast
import shutil
import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import pytest
import torch
from xxhash import xxh3_64_intdigest as hash64

import mldb
from mldb.history.events import MetricsLogged
from mldb.tensors.codec import prepare
from tests.golden import reader
from tests.golden.reader import (
    METADATA,
    PINS,
    RELATIONS,
    TAGS,
    TENSORS,
    DamagedError,
    Entry,
    Segment,
    Store,
    decoded_bytes,
    descriptor,
    splat_rows,
    unpack,
)
from tests.golden.stores import BACKUP, FORMAT_1, FORMAT_2, METRICS

STORES = {"version 1": FORMAT_1, "version 2": FORMAT_2, "backup": BACKUP, "metrics": METRICS}
METRICS_POINTS = 158

pytestmark = pytest.mark.filterwarnings("ignore:.*(ComplexHalf|Sparse CSR).*:UserWarning")


@pytest.fixture(params=[*STORES.values()], ids=[*STORES])
def folder(request: pytest.FixtureRequest) -> Path:
    path: Path = request.param
    return path


@pytest.fixture
def store(folder: Path) -> Store:
    return Store(folder)


@pytest.fixture
def db(folder: Path, tmp_path: Path) -> mldb.MLDatabase:
    return mldb.open(shutil.copytree(folder, tmp_path / "copy"), mode="r")


def test_the_reader_knows_nothing_of_mldb() -> None:
    tree = ast.parse(Path(reader.__file__).read_text())
    imported = {
        name.split(".")[0]
        for node in ast.walk(tree)
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in ([node.module or ""] if isinstance(node, ast.ImportFrom) else [])
        + ([alias.name for alias in node.names] if isinstance(node, ast.Import) else [])
    }
    others = {"numpy", "msgpack", "xxhash", "compression", "backports"}
    assert imported - sys.stdlib_module_names == others - sys.stdlib_module_names


# --- what both find -------------------------------------------------------------------------------


def test_every_commit_has_its_epoch_its_parent_and_its_place(
    store: Store, db: mldb.MLDatabase
) -> None:
    assert store.head == db.lsn
    view = db._log.head()
    for lsn, commit in store.commits.items():
        row = view.commit_at(lsn)
        assert row is not None
        found = (row.parent, row.epoch, row.time, row.clock, row.start, row.end, row.id)
        places = (commit.start, commit.end, commit.id)
        assert found == (commit.parent, commit.epoch, commit.time, commit.clock, *places)
        assert db.at(mldb.Lsn(lsn)).epoch == commit.epoch
    assert [row.lsn for _, row in view.commits(0, store.head)] == [*store.commits]


def test_every_commit_sees_the_same_names_with_the_same_metadata(
    store: Store, db: mldb.MLDatabase
) -> None:
    for lsn in store.commits:
        at = mldb.Lsn(lsn)
        names = [key.decode() for key in sorted(store.state(lsn, TENSORS))]
        assert db.names(as_of=at) == names
        metadata = {
            key.decode(): unpack(entry.attr) for key, entry in store.state(lsn, METADATA).items()
        }
        assert {name: db.metadata(name, as_of=at) for name in names} == {
            name: metadata.get(name, {}) for name in names
        }


def test_every_version_of_every_tensor_has_the_same_bytes(
    store: Store, db: mldb.MLDatabase
) -> None:
    count = 0
    for lsn in store.commits:
        for key, entry in store.state(lsn, TENSORS).items():
            if entry.commit_lsn == lsn:
                check_tensor(db, key.decode(), lsn, entry)
                count += 1
    assert count == {FORMAT_1: 24, FORMAT_2: 106, BACKUP: 103, METRICS: 3}[store.folder]


def check_tensor(db: mldb.MLDatabase, name: str, lsn: int, entry: Entry) -> None:
    at = mldb.Lsn(lsn)
    handle = db.tensor(name, as_of=at)
    data, what = decoded_bytes(entry), descriptor(entry.attr)
    assert (handle.shape, str(handle.dtype)) == (what.shape, dtype_text(what.dtype))
    if not what.layout:
        array = db.query_tensor(name, as_of=at)
        assert array.tobytes() == data
        assert array.shape == what.shape
        if what.framework == "torch":
            assert tuple(handle.torch().shape) == what.shape
        return
    value = db.query_tensor(name, as_of=at)
    parts = prepare(value)
    assert b"".join(bytes(part) for part in parts.buffers) == data
    assert [
        (part.name, part.dtype, part.shape, part.offset) for part in parts.descriptor.components
    ] == what.components
    assert isinstance(value, torch.Tensor) == (what.framework == "torch")
    for part_name, code, shape, offset in what.components:
        size = int(np.prod(shape)) * np.dtype(code).itemsize
        assert offset % 64 == 0
        assert offset + size <= len(data), part_name


def dtype_text(code: str) -> str:
    """What a handle shows of a dtype."""
    try:
        return str(np.dtype(code))
    except TypeError:
        import ml_dtypes

        own = {"float4_e2m1fn_x2": "uint8"}.get(code, code)
        return str(np.dtype(getattr(ml_dtypes, own, own)))


def test_every_commit_has_the_same_tags_pins_and_relations(
    store: Store, db: mldb.MLDatabase
) -> None:
    head = store.head
    tags = {
        key.decode(): unpack(entry.attr)[0]
        for key, entry in store.state(head, TAGS, of_the_store=True).items()
    }
    assert db.tags() == tags
    pins = store.state(head, PINS, of_the_store=True)
    assert db.pins() == sorted(int.from_bytes(key, "big") for key in pins)
    for lsn in store.commits:
        edges = [
            (*(part.decode() for part in key.split(b"\0")), unpack(entry.attr or b"\x80"))
            for key, entry in store.state(lsn, RELATIONS).items()
        ]
        found = db.relationships(as_of=mldb.Lsn(lsn))
        assert [(e.source, e.kind, e.target, e.metadata) for e in found] == sorted(
            edges, key=lambda edge: edge[:3]
        )


def test_lakes_have_the_same_rows(store: Store, db: mldb.MLDatabase) -> None:
    if store.folder in (FORMAT_1, METRICS):
        pytest.skip("it has no lakes")
    late = db.at("late").lsn
    lakes = store.state(int(late), reader.LAKES)
    assert [name.decode() for name in sorted(lakes)] == db.lakes(as_of="late")
    for name, entry in lakes.items():
        version, own, dim, geometry, _ = unpack(entry.attr)
        lake = db.lake(name.decode()).at("late")
        assert (version, len(own), dim, geometry) == (1, 16, lake.dim, lake.geometry)
        rows = splat_rows(store, int(late), name)
        fields = tuple(rows)
        assert {"id", "label", "mu", "norm", "kappa", "alpha", "min_cos"} <= {*fields}
        found = lake.get(fields=fields)
        for field in fields:
            np.testing.assert_array_equal(found[field], rows[field].astype(found[field].dtype))
    for number, lsn in enumerate(store.commits):
        if b"sphere" in store.state(lsn, reader.LAKES) and number % 3 == 0:
            rows = splat_rows(store, lsn, b"sphere") if sees_rows(store, lsn) else {}
            ids = db.lake("sphere").at(mldb.Lsn(lsn)).ids()
            assert ids.tolist() == rows.get("id", np.empty(0)).tolist()


def test_merges_are_read_by_the_page_alone(tmp_path: Path) -> None:
    """Additions, merges of both kinds and undone ones of a new store: the rows of every commit."""
    rng = np.random.default_rng(3)
    with mldb.open(tmp_path / "store") as db:
        lake = db.lake("merged", dim=6)
        reports = []
        for turn in range(4):
            mu = rng.standard_normal((5, 6))[rng.integers(0, 5, 20)]
            lake.add_splats(mu + 0.01 * rng.standard_normal(mu.shape), labels=np.arange(20) % 2)
            method: Any = "sandpile" if turn == 2 else "sweep"
            reports.append(lake.consolidate(method=method))
            lake.remove(lake.ids()[:1])
        lake.undo(reports[-1])
        assert all(report.merged for report in reports)
    store = Store(tmp_path / "store")
    with mldb.open(tmp_path / "store", mode="r") as db:
        seen = 0
        for lsn in store.commits:
            if any(key.startswith(b"merged\0") for key in store.state(lsn, reader.SPLATS)):
                rows = splat_rows(store, lsn, b"merged")
                found = db.lake("merged").at(mldb.Lsn(lsn)).get(fields=tuple(rows))
                for field in rows:
                    assert found[field].tobytes() == rows[field].tobytes()
                seen += 1
        assert seen == 13


def sees_rows(store: Store, lsn: int) -> bool:
    return any(key.startswith(b"sphere\0") for key in store.state(lsn, reader.SPLATS))


def test_every_commit_sees_the_same_curves(store: Store, db: mldb.MLDatabase) -> None:
    """Names, and of each point its commit, epoch, step, time and value, to the last bit."""
    points = 0
    for lsn in store.commits:
        found = reader.curves(store, lsn)
        with db.at(mldb.Lsn(lsn)) as snapshot:
            assert snapshot.metrics() == sorted(found)
            for name, expected in found.items():
                curve = snapshot.metrics(name)
                columns = [curve.lsn, curve.epoch, curve.step, curve.time, curve.value]
                want = np.array(expected, object).T.tolist()
                types = ("<i8", "<i8", "<i8", "<i8", "<f8")
                for have, one, dtype in zip(columns, want, types, strict=True):
                    assert have.view(dtype).tobytes() == np.array(one, dtype).tobytes()
        points = max(points, sum(map(len, found.values())))
    assert points == (METRICS_POINTS if store.folder == METRICS else 0)


def test_every_call_that_logged_is_an_event(store: Store, db: mldb.MLDatabase) -> None:
    expected = [
        (commit.lsn, None if step < 0 else step, time // 1000, repr(values))
        for commit in store.commits.values()
        for step, time, values in reader.calls(commit)
    ]
    found = [
        (event.lsn, event.step, round(event.moment.timestamp() * 1e6), repr(event.values))
        for event in db.events()
        if isinstance(event, MetricsLogged)
    ]
    assert found == expected


def test_the_skeleton_of_a_checkpoint_names_tensors_of_its_commit(store: Store) -> None:
    count = 0
    for lsn, commit in store.commits.items():
        for entry in commit.entries:
            if entry.key[:1] != b"\x05" or entry.key == b"\x05" or entry.flags & 1:
                continue
            version, root, further, storages = msgpack.unpackb(
                decoded_bytes(entry), strict_map_key=False
            )
            assert version == 1
            names = {*tensors_in(root), *further, *further.values()}
            names |= {view[0] for _, views in storages for view in views}
            known = {key.decode() for key in store.state(lsn, TENSORS)}
            assert names
            assert names <= known
            count += 1
    assert count == {FORMAT_1: 1, METRICS: 0}.get(store.folder, 2)


def tensors_in(node: Any) -> list[str]:
    """The names in a tree of nodes."""
    if not isinstance(node, list):
        return []
    if node[0] == 1:
        return [node[1]]
    return [name for part in node[1:] for name in tensors_in(part)]


# --- indexes --------------------------------------------------------------------------------------


def test_every_index_says_what_a_scan_finds(store: Store) -> None:
    """Keys, rows, hashes, attrs, commits and metadata columns of footers, side indexes, hints."""
    indexed = [segment for segment in store.segments if segment.index is not None]
    assert len(indexed) >= len(store.manifest.segments)
    for segment in indexed:
        check_index(segment)


def check_index(segment: Segment) -> None:
    columns = segment.index
    assert columns is not None
    entries = sorted(
        (entry for commit in segment.commits for entry in commit.entries),
        key=lambda entry: (entry.key, entry.commit_lsn),
    )
    keys = heap(columns, "key")
    assert keys == sorted({entry.key for entry in entries})
    bounds = columns["key_row"].tolist()
    rows = [key for number, key in enumerate(keys) for _ in range(*bounds[number : number + 2])]
    assert rows == [entry.key for entry in entries]
    attrs = heap(columns, "attr")
    assert len({*attrs}) == len(attrs)
    for row, entry in enumerate(entries):
        frame = entry.frame
        digest = columns["row_digest"][row].tobytes()
        assert [int(columns[f"row_{name}"][row]) for name in ("commit", "frame", "offset")] == [
            entry.commit_lsn,
            frame.offset,
            frame.payload_offset + entry.offset,
        ]
        assert [int(columns[f"row_{name}"][row]) for name in ("length", "base", "flags")] == [
            entry.length,
            entry.base,
            entry.flags,
        ]
        assert int(columns["row_encoding"][row]) == entry.encoding
        assert digest == (entry.digest or bytes(16))
        assert attrs[int(columns["row_attr"][row])] == entry.attr
    hashes = {hash64(key): number for number, key in enumerate(keys)}
    assert columns["hash"].tolist() == sorted(hashes)
    assert [hashes[value] for value in columns["hash"].tolist()] == columns["hash_key"].tolist()
    for name in ("lsn", "parent", "epoch", "time", "clock", "start", "end"):
        found = columns[f"commit_{name}"].tolist()
        assert found == [getattr(commit, name) for commit in segment.commits]
    if "commit_id" in columns:
        ids = [value.tobytes() for value in columns["commit_id"]]
        assert ids == [commit.id or bytes(16) for commit in segment.commits]
    check_metadata(columns, entries, attrs)


def heap(columns: dict[str, np.ndarray[Any, Any]], name: str) -> list[bytes]:
    data, places = columns[f"{name}_heap"].tobytes(), columns[f"{name}_offset"].tolist()
    return [data[low:high] for low, high in pairwise(places)]


def check_metadata(
    columns: dict[str, np.ndarray[Any, Any]], entries: list[Entry], attrs: list[bytes]
) -> None:
    fields = {name.split(":")[1] for name in columns if name.startswith("meta:")}
    own = {e.attr: unpack(e.attr) for e in entries if e.key[:1] == METADATA and e.attr}
    assert fields == {name for said in own.values() for name in said}
    for name in fields:
        raw = msgpack.Unpacker(strict_map_key=False, timestamp=3)
        raw.feed(columns[f"meta:{name}:values"].tobytes())
        values = [*raw]
        for number, code in enumerate(columns[f"meta:{name}:code"].tolist()):
            said = own.get(attrs[number], {})
            assert (name in said) == bool(code)
            if code:
                assert values[code - 1] == said[name]


# --- damage ---------------------------------------------------------------------------------------


def damaged_places(path: Path) -> list[int]:
    """Some offsets of a file: all of the first kilobyte, then fewer."""
    size = path.stat().st_size
    return [*range(min(size, 700)), *range(700, size, 997)]


@pytest.mark.parametrize("choose", ["segment", "manifest"])
def test_it_finds_damage_anywhere(folder: Path, tmp_path: Path, choose: str) -> None:
    """So that its agreement says something: every byte that it skips would be one not compared."""
    copy = shutil.copytree(folder, tmp_path / "damaged")
    if choose == "segment":
        target = min((copy / "segments").glob("*.seg"), key=lambda path: path.stat().st_size)
    else:
        target = max(copy.glob("MANIFEST-*"))
    intact = target.read_bytes()
    read: Callable[[], object] = (
        (lambda: Store(copy)) if choose == "segment" else (lambda: reader.newest_manifest(copy))
    )
    for place in damaged_places(target):
        changed = bytearray(intact)
        changed[place] ^= 0x10
        target.write_bytes(changed)
        with pytest.raises(DamagedError):
            read()
    target.write_bytes(intact)
    read()
