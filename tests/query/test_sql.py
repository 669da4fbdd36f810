"""``db.sql`` and ``db.query``: the words of the documents, moments, columns, what is refused."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import mldb
from mldb.query.fields import FIELDS_MAX


@pytest.fixture
def db(tmp_path: Path) -> Iterator[mldb.MLDatabase]:
    with mldb.open(tmp_path / "store", durability="os") as db:
        yield db


@pytest.fixture
def layers(db: mldb.MLDatabase) -> mldb.MLDatabase:
    """Two convolutions and a pooling layer between them, trained for three epochs."""
    for epoch in range(3):
        for layer in ("conv2", "conv1"):
            metadata = {"type": "weights", "layer": layer, "rate": 0.5 / (epoch + 1)}
            value = np.full((2, 3), epoch + 1.0, "f4")
            value[0, 0] = 0
            db.store_tensor(f"{layer}.weight", value, metadata, epoch=epoch)
    db.create_relationship("conv1", "pool1", "feeds_into")
    db.create_relationship("pool1", "conv2", "feeds_into")
    return db


def test_examples_of_the_documents(layers: mldb.MLDatabase) -> None:
    ask = layers.query.execute_query
    assert ask("SELECT tensors WHERE type=weights ORDER BY creation_time") == [
        "conv2.weight",
        "conv1.weight",
    ]
    assert ask("SELECT tensors WHERE type=layer ORDER BY position") == ["conv1", "pool1", "conv2"]
    found = layers.sql("SELECT name, std FROM tensors WHERE layer='conv1'")
    assert found.columns == ["name", "std"]
    ((name, std),) = found
    assert name == "conv1.weight"
    assert std == pytest.approx(float(layers["conv1.weight"].std()))


def test_as_of_in_the_text_beside_as_of_of_the_call(layers: mldb.MLDatabase) -> None:
    layers.tag("first", 0)
    text = "SELECT name, max FROM tensors {} WHERE type = 'weights' ORDER BY name"
    for words in ("AS OF EPOCH 0", "AS OF TAG 'first'", f"AS OF LSN {int(layers.at(0).lsn)}"):
        assert layers.sql(text.format(words)).fetchall()[0] == ("conv1.weight", 1.0)
    assert layers.sql(text.format(""), as_of=1).fetchall()[0] == ("conv1.weight", 2.0)
    both = layers.sql(
        "SELECT a.max - b.max FROM tensors a JOIN tensors AS OF EPOCH 0 AS b ON a.name = b.name "
        "AND a.type = 'weights'",
        as_of=1,
    )
    assert both.fetchall() == [(1.0,), (1.0,)]
    with layers.at(1) as snapshot:
        assert snapshot.sql(text.format("")).fetchall()[0] == ("conv1.weight", 2.0)
        assert snapshot.query.execute_query("SELECT versions WHERE epoch = 2") == []


def test_moments_before_and_beyond_and_unknown_ones(layers: mldb.MLDatabase) -> None:
    assert layers.query.execute_query("SELECT tensors AS OF EPOCH 99 WHERE type=layer") == [
        *("conv1", "conv2", "pool1")
    ]
    early = datetime(1999, 1, 1, tzinfo=UTC)
    assert len(layers.sql("SELECT tensors", as_of=early)) == 0
    assert len(layers.sql("SELECT tensors AS OF TIMESTAMP '1999-01-01'")) == 0
    with pytest.raises(mldb.MissingError):
        layers.sql("SELECT tensors AS OF TAG 'no such tag'")
    with pytest.raises(mldb.MissingError):
        layers.sql("SELECT tensors AS OF LSN 999999")


def test_a_pruned_commit_is_told_and_not_an_older_value(layers: mldb.MLDatabase) -> None:
    layers.retention.set(last=1)
    layers.compact()
    with pytest.raises(mldb.VersionGoneError):
        layers.sql("SELECT tensors AS OF EPOCH 0")
    with pytest.raises(mldb.VersionGoneError):
        layers.sql("SELECT tensors", as_of=0)
    assert len(layers.sql("SELECT * FROM tensors WHERE type = 'weights'")) == 2


def test_metadata_keys_that_clash_are_reached_by_another_name(db: mldb.MLDatabase) -> None:
    keys = {"Loss": 1, "loss": 2, 'a"b': 3, "": 4, "ü ß": 5, "name": 6, "mean": 7, "mldb__lsn": 8}
    db.store_tensor("x", np.zeros(2), {**keys, "metadata": 9, "metadata_name": 10, "nul\0": 11})
    found = db.sql("SELECT * FROM tensors")
    row = dict(zip(found.columns, found.fetchall()[0], strict=True))
    assert (row["Loss"], row["metadata_loss"], row['a"b'], row["metadata_"]) == (1, 2, 3, 4)
    assert (row["ü ß"], row["metadata_mean"], row["metadata_mldb__lsn"]) == (5, 7, 8)
    assert {row["metadata_name"], row["metadata_name_2"]} == {6, 10}
    assert row["name"] == "x"
    assert json.loads(row["metadata"]) == {**keys, "metadata": 9, "metadata_name": 10, "nul\0": 11}
    assert db.sql('SELECT "a""b" + metadata_loss FROM tensors').fetchall() == [(5,)]


def test_ten_thousand_keys_have_bounded_columns_and_one_of_all(db: mldb.MLDatabase) -> None:
    for part in range(10):
        own = {f"key{part}_{number}": number for number in range(1000)}
        db.store_tensor(f"t{part}", np.zeros(1), {"common": part, **own})
    found = db.sql("SELECT * FROM tensors")
    fixed = len(db.sql("SELECT * FROM checkpoints").columns)
    assert FIELDS_MAX < len(found.columns) < FIELDS_MAX + 10 * fixed
    assert db.sql("SELECT sum(common) FROM tensors").fetchall() == [(45,)]
    text = "SELECT metadata ->> '$.key9_999' FROM tensors WHERE name = 't9'"
    assert db.sql(text).fetchall() == [("999",)]


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        ([1, 2], int),
        ([1, 2.5], float),
        ([True, False], bool),
        (["a", "b"], str),
        ([1, "b"], str),
        ([[1], {"k": None}], str),
        ([datetime(2026, 1, 2, tzinfo=UTC), datetime(2026, 1, 3, tzinfo=UTC)], datetime),
        ([2**63, 1], float),
        ([b"\x01", b"\xff"], str),
    ],
)
def test_metadata_columns_have_the_type_of_their_values(
    db: mldb.MLDatabase, values: list[Any], kind: type
) -> None:
    for number, value in enumerate(values):
        db.store_tensor(f"t{number}", np.zeros(1), {"key": value})
    db.store_tensor("without", np.zeros(1))
    *rows, last = db.sql("SELECT key FROM tensors ORDER BY name").fetchall()
    assert last == (None,)
    assert [type(row[0]) for row in rows] == [kind, kind]
    if kind in (int, bool, datetime) or values == ["a", "b"]:
        assert [row[0] for row in rows] == values


def test_columns_appear_and_go_with_their_moment(db: mldb.MLDatabase) -> None:
    db.store_tensor("x", np.zeros(1), {"old": 1}, epoch=0)
    db.set_metadata("x", {"new": 2}, epoch=1)
    assert "old" not in db.sql("SELECT * FROM tensors").columns
    with pytest.raises(mldb.QueryError, match="old"):
        db.sql("SELECT old FROM tensors")
    assert db.sql("SELECT old FROM tensors AS OF EPOCH 0").fetchall() == [(1,)]
    joined = "SELECT a.new, b.old FROM tensors a JOIN tensors AS OF EPOCH 0 AS b ON a.name = b.name"
    assert db.sql(joined).fetchall() == [(2, 1)]
    assert "new" not in db.sql("SELECT * FROM tensors AS OF EPOCH 0").columns


def test_rings_of_layers_have_an_order_and_an_end(db: mldb.MLDatabase) -> None:
    for source, target in (("in", "a"), ("a", "b"), ("b", "a"), ("b", "out"), ("c", "c")):
        db.create_relationship(source, target, "feeds_into")
    db.create_relationship("in", "alone", "shares")
    rows = db.sql("SELECT name, position FROM tensors ORDER BY position").fetchall()
    places: dict[str, Any] = dict(rows)
    assert places["in"] < places["a"] < places["out"]
    assert places["alone"] is None
    assert sorted(place for place in places.values() if place is not None) == list(range(5))


def test_nan_is_not_null(db: mldb.MLDatabase) -> None:
    """DuckDB takes the NaN of a NumPy column for NULL: a diverged loss was gone from its curve."""
    db.store_tensor("x", np.zeros(1), {"loss": float("nan")})
    db.store_tensor("y", np.zeros(1), {"loss": 1.5})
    db.store_tensor("z", np.zeros(1))
    text = "SELECT name, loss IS NULL, isnan(loss) FROM tensors ORDER BY name"
    assert db.sql(text).fetchall() == [("x", False, True), ("y", False, False), ("z", True, None)]


def test_sums_of_whole_numbers_are_exact(db: mldb.MLDatabase) -> None:
    for name in "ab":
        db.store_tensor(name, np.zeros(1), {"big": 2**62 + 1})
    assert db.sql("SELECT sum(big) FROM tensors").fetchall() == [(2**63 + 2,)]


def test_splats_and_segments(db: mldb.MLDatabase) -> None:
    lake = db.lake("points", dim=4)
    mu = np.eye(4, dtype="f4")
    ids = lake.add_splats(mu, labels=[1, 2, 3, 4], epoch=3)
    lake.remove(ids[:1])
    db.lake("other", dim=4).add_splats(mu[:2], epoch=4)
    rows = db.sql("SELECT lake, id, label, epoch FROM splats ORDER BY lake, id").fetchall()
    assert rows == [
        *(("other", 0, None, 4), ("other", 1, None, 4)),
        *(("points", int(one), label, 3) for one, label in zip(ids[1:], (2, 3, 4), strict=True)),
    ]
    kappa = db.sql("SELECT kappa FROM splats WHERE lake = 'points' ORDER BY id").fetchall()
    assert [one for (one,) in kappa] == lake.get(fields=["kappa"])["kappa"].tolist()
    found = db.sql("SELECT kind, entries, commits FROM segments").fetchall()
    assert ("active", *found[-1][1:]) == found[-1]
    assert sum(row[2] for row in found) == 3


def test_execute_query_returns_names_alone(layers: mldb.MLDatabase) -> None:
    with pytest.raises(mldb.QueryError, match="execute_query"):
        layers.query.execute_query("SELECT epoch FROM versions")
    assert layers.query.execute_query("SELECT name AS n FROM tensors WHERE layer = 'conv1'") == [
        "conv1.weight"
    ]
