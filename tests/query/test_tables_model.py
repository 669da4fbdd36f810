"""Every table against what the Python API says, on random stores at random moments."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import mldb
from mldb.history.as_of import AsOf

NAMES = ("conv1.weight", "conv1.bias", "a b/ü", "head.weight", "x")
ENDS = ("conv1", "pool1", "conv2", "x", "head.weight")
SHAPES = ((), (3,), (0, 2), (2, 3), (4, 1, 2))
DTYPES = ("f4", "f8", "i4", "bool", ">f4", "c8")


@pytest.fixture(params=range(6))
def grown(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[mldb.MLDatabase]:
    """A store that random verbs made, with segments sealed at random places."""
    rng = np.random.default_rng(request.param)
    options: dict[str, Any] = {"durability": "os", "background_compaction": False}
    with mldb.open(tmp_path / "store", segment_entries=40, **options) as db:
        for _ in range(int(rng.integers(40, 90))):
            act(db, rng)
            if rng.random() < 0.15:
                look_at(db, rng)  # what is known is appended to, not made anew
        yield db


def act(db: mldb.MLDatabase, rng: np.random.Generator) -> None:
    """One random verb."""
    name, other = (str(rng.choice(NAMES)) for _ in range(2))
    source, target = (str(rng.choice(ENDS)) for _ in range(2))
    epoch = db.epoch + int(rng.integers(0, 2))
    match int(rng.integers(0, 14)):
        case 0 | 1 | 2 | 3:
            db.store_tensor(name, array(rng), metadata(rng), epoch=epoch)
        case 4:
            with db.transaction(epoch=epoch) as txn:
                txn.store_tensor(name, array(rng))
                txn.store_tensor(other, array(rng), metadata(rng))
        case 5 if name in db:
            db.delete_tensor(name)
        case 6 if name in db:
            db.set_metadata(name, metadata(rng) or {})
        case 7 | 8:
            kind = str(rng.choice(["feeds_into", "shares"]))
            db.create_relationship(source, target, kind, metadata(rng) or {})
        case 9:
            for found in db.relationships()[:1]:
                db.delete_relationship(found.source, found.target, found.kind)
        case 10 if rng.random() < 0.4:
            with suppress(mldb.VersionGoneError):
                back = max(db.epoch - int(rng.integers(0, 3)), 0)
                db.rewind(back if rng.random() < 0.5 else None)
        case 10:
            db.checkpoint({"w": array(rng)}, epoch=epoch, metrics={"loss": float(rng.random())})
        case 11 if rng.random() < 0.3:
            db.compact()
        case 12:
            step = int(rng.integers(0, 9)) if rng.random() < 0.7 else None
            db.log({"loss": float(rng.random()), "lr": float("nan")}, epoch=epoch, step=step)
        case 13 if rng.random() < 0.2:
            db.retention.set(last=int(rng.integers(1, 4)))
            db.compact()
        case _:
            pass


def array(rng: np.random.Generator) -> np.ndarray[Any, Any]:
    """A small tensor."""
    shape = SHAPES[rng.integers(len(SHAPES))]
    values = rng.integers(-2, 3, shape).astype(DTYPES[rng.integers(len(DTYPES))])
    return np.array(values)


def metadata(rng: np.random.Generator) -> dict[str, Any] | None:
    """Metadata of some kinds of values."""
    if rng.random() < 0.3:
        return None
    return {
        "type": str(rng.choice(["weights", "biases"])),
        "rate": rng.choice([1, 2.5]).item(),
        "Name": "clash",
        "tags": ["a", {"b": None}],
        **({"frozen": bool(rng.random() < 0.5)} if rng.random() < 0.5 else {}),
    }


def moments(db: mldb.MLDatabase, rng: np.random.Generator) -> list[AsOf]:
    """The head, some epochs, commits of all lineages, and a time."""
    rows = list(db.events())
    found: list[AsOf] = [None, -1, db.epoch, int(rng.integers(0, db.epoch + 2))]
    found += [row.lsn for row in rng.permutation(np.array(rows, object))[:4]]
    found += [row.time for row in rows[len(rows) // 2 :][:1]]
    return found


def test_every_table_is_what_the_api_says(grown: mldb.MLDatabase) -> None:
    rng = np.random.default_rng(5)
    for as_of in moments(grown, rng):
        check(grown, as_of)


def look_at(db: mldb.MLDatabase, rng: np.random.Generator) -> None:
    as_of = moments(db, rng)[int(rng.integers(0, 5))] if db.lsn else None
    check(db, as_of)


def check(db: mldb.MLDatabase, as_of: AsOf) -> None:
    """Compare all tables at one moment."""
    try:
        snapshot = db.at(as_of)
    except mldb.VersionGoneError:
        with pytest.raises(mldb.VersionGoneError):
            db.sql("SELECT tensors", as_of=as_of)
        return
    with snapshot:
        assert tensors(db, as_of) == tensors_of(snapshot), as_of
        assert versions(db, as_of) == versions_of(snapshot), as_of
        assert relationships(db, as_of) == relationships_of(snapshot), as_of
        assert checkpoints(db, as_of) == checkpoints_of(snapshot), as_of
        assert metrics(db, as_of) == metrics_of(snapshot), as_of
        assert events(db, as_of) == events_of(db, int(snapshot.lsn)), as_of
        assert snapshot.sql("SELECT count(*) FROM tensors").fetchall() == [
            (len(tensors_of(snapshot)),)
        ]


# --- what SQL says, and what the API says ---------------------------------------------------------


def tensors(db: mldb.MLDatabase, as_of: AsOf) -> list[Any]:
    found = db.sql(
        "SELECT name, type, position, lsn, epoch, time, dtype, shape, ndim, size, nbytes, layout, "
        "versions, creation_time, metadata, mean, min, max FROM tensors ORDER BY name",
        as_of=as_of,
    )
    return [
        (*row[:14], None if row[14] is None else json.loads(row[14]), *row[15:]) for row in found
    ]


def tensors_of(snapshot: mldb.Snapshot) -> list[Any]:
    rows: list[Any] = []
    for name in snapshot:
        handle, versions = snapshot.tensor(name), snapshot.history(name)
        fields = handle.metadata
        head = (name, fields.get("type"), None, int(handle.lsn), handle.epoch, handle.time)
        dtype = str(handle.dtype) if handle.dtype.byteorder == ">" else handle.dtype.name
        shape = (dtype, list(handle.shape), len(handle.shape), int(np.prod(handle.shape)))
        life = (handle.nbytes, "dense", len(versions), created(snapshot, name))
        values = numbers(handle.numpy())
        rows.append((*head, *shape, *life, fields or None, *values))
    known = {row[0] for row in rows}
    edges = snapshot.relationships()
    ends = sorted({end for edge in edges for end in (edge.source, edge.target)} - known)
    rows += [(end, "layer", position(snapshot, end), *[None] * 15) for end in ends]
    return sorted(rows, key=lambda row: row[0])


def created(snapshot: mldb.Snapshot, name: str) -> Any:
    """The time of the first version behind the last deletion that the lineage leads through."""
    ended = snapshot.sql(
        "SELECT coalesce(max(lsn), 0) FROM versions WHERE is_deleted AND name = '" + name + "'"
    ).fetchall()[0][0]
    return next(one.time for one in snapshot.history(name) if one.lsn > ended)


def position(snapshot: mldb.Snapshot, end: str) -> int | None:
    """What the table says, where its order is one: checked against every edge."""
    places: dict[str, Any] = dict(
        snapshot.sql("SELECT name, position FROM tensors WHERE type = 'layer'").fetchall()
    )
    edges = [
        (edge.source, edge.target)
        for edge in snapshot.relationships(kind="feeds_into")
        if edge.source != edge.target
    ]
    if not has_ring(edges):
        for source, target in edges:
            if source in places and target in places:
                assert places[source] < places[target]
    numbered = sorted(place for place in places.values() if place is not None)
    assert numbered == list(range(len(numbered)))
    named = {
        name
        for edge in snapshot.relationships(kind="feeds_into")
        for name in (edge.source, edge.target)
    }
    assert (places[end] is None) == (end not in named)
    found: int | None = places[end]
    return found


def has_ring(edges: list[tuple[str, str]]) -> bool:
    left = set(edges)
    while True:
        targets = {target for _, target in left}
        rest = {edge for edge in left if edge[0] in targets}
        if rest == left:
            return bool(left)
        left = rest


def numbers(values: np.ndarray[Any, Any]) -> tuple[float | None, ...]:
    if not values.size:
        return (None, None, None)
    plain = np.abs(values) if values.dtype.kind == "c" else values.astype(float)
    return float(plain.astype(float).mean()), float(plain.min()), float(plain.max())


def versions(db: mldb.MLDatabase, as_of: AsOf) -> list[Any]:
    found = db.sql(
        "SELECT name, lsn, epoch, time, dtype, shape, nbytes, stored_bytes FROM versions "
        "WHERE NOT is_deleted ORDER BY name, lsn",
        as_of=as_of,
    )
    return found.fetchall()


def versions_of(snapshot: mldb.Snapshot) -> list[Any]:
    found = []
    for name in sorted({*NAMES, "w", *snapshot}):
        for one in snapshot.history(name):
            dtype = one.dtype if one.dtype.startswith(">") else np.dtype(one.dtype).name
            head = (name, int(one.lsn), one.epoch, one.time, dtype)
            found.append((*head, list(one.shape), one.nbytes, one.stored_bytes))
    return found


def relationships(db: mldb.MLDatabase, as_of: AsOf) -> list[Any]:
    found = db.sql(
        "SELECT source, kind, target, lsn, metadata FROM relationships "
        "ORDER BY source, kind, target",
        as_of=as_of,
    )
    return [(*row[:4], {} if row[4] is None else json.loads(row[4])) for row in found]


def relationships_of(snapshot: mldb.Snapshot) -> list[Any]:
    return [
        (one.source, one.kind, one.target, int(one.lsn), one.metadata)
        for one in snapshot.relationships()
    ]


def checkpoints(db: mldb.MLDatabase, as_of: AsOf) -> list[Any]:
    columns = "name, epoch, step, lsn, time, tensors, nbytes, interrupted, metrics"
    found = db.sql(f"SELECT {columns} FROM checkpoints ORDER BY lsn", as_of=as_of)
    return [(*row[:8], json.loads(row[8])) for row in found]


def checkpoints_of(snapshot: mldb.Snapshot) -> list[Any]:
    return [
        (
            *(one.name, one.epoch, one.step, int(one.lsn), one.time, one.tensors, one.nbytes),
            *(one.interrupted, one.metrics),
        )
        for one in snapshot.checkpoints()
    ]


def metrics(db: mldb.MLDatabase, as_of: AsOf) -> list[Any]:
    columns = "name, value::VARCHAR, step, epoch, time, lsn"
    return db.sql(f"SELECT {columns} FROM metrics ORDER BY name", as_of=as_of).fetchall()


def metrics_of(snapshot: mldb.Snapshot) -> list[Any]:
    found = []
    for name in sorted(snapshot.metrics()):
        curve = snapshot.metrics(name)
        for row in range(len(curve)):
            step = int(curve.step[row])
            time = curve.time[row].astype("M8[us]").item().replace(tzinfo=UTC)
            point = (str(curve.value[row]), None if step < 0 else step, int(curve.epoch[row]))
            found.append((name, *point, time, int(curve.lsn[row])))
    return found


def events(db: mldb.MLDatabase, as_of: AsOf) -> list[Any]:
    return db.sql("SELECT lsn, epoch, time, event FROM events", as_of=as_of).fetchall()


def events_of(db: mldb.MLDatabase, high: int) -> list[Any]:
    return [
        (int(one.lsn), one.epoch, one.time, type(one).__name__)
        for one in db.events()
        if one.lsn <= high
    ]
