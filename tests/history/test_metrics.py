"""Curves: what db.log stored is what db.metrics has, in every kind of segment, on every lineage."""

from __future__ import annotations

import struct
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import mldb
from mldb import keys
from mldb.history.events import MetricsLogged
from mldb.history.kinds.changes import attr_draft, records_of
from mldb.history.kinds.metrics import NO_STEP, metrics_logged, read_metrics_logged, row_struct
from mldb.history.metrics import MetricColumns
from mldb.log.fs.memory import MemoryFileSystem

Point = tuple[int, int, float, int]


def points(columns: MetricColumns) -> list[Point]:
    """Step, epoch, value and commit of each point."""
    arrays = (columns.step, columns.epoch, columns.value, columns.lsn)
    return list(zip(*(array.tolist() for array in arrays), strict=True))


def open_small(fs: MemoryFileSystem, **options: Any) -> mldb.MLDatabase:
    """A store whose segments hold a few commits."""
    return mldb.MLDatabase.on(fs, **{"segment_bytes": 4_000, "durability": "os", **options})


def test_a_curve_has_every_point_with_its_step_epoch_time_and_commit() -> None:
    db = mldb.MLDatabase.on(MemoryFileSystem(), durability="os")
    before = np.datetime64(db._log.fs.time_ns(), "ns")
    first = db.log({"loss": 0.5, "lr": 1e-3}, epoch=2, step=7)
    second = db.log({"lr": 1e-4, "loss": 0.25})
    third = db.log({"loss": float("nan")}, epoch=3, step=9)
    curve = db.metrics("loss")
    assert points(curve)[:2] == [(7, 2, 0.5, first), (NO_STEP, 2, 0.25, second)]
    assert curve.step[2] == 9
    assert curve.epoch[2] == 3
    assert curve.lsn[2] == third
    assert np.isnan(curve.value[2])
    assert points(db.metrics("lr")) == [(7, 2, 1e-3, first), (NO_STEP, 2, 1e-4, second)]
    assert [len(curve), len(db.metrics("lr"))] == [3, 2]
    assert curve.time.dtype == np.dtype("M8[ns]")
    assert (curve.time > before).all()
    assert (np.diff(curve.time) > np.timedelta64(0)).all()
    assert db.metrics() == ["loss", "lr"]
    dtypes = {"step": "i8", "epoch": "i8", "value": "f8", "lsn": "i8"}
    for name, dtype in dtypes.items():
        array = getattr(curve, name)
        assert array.dtype == np.dtype(dtype)
        assert not array.flags.writeable


def test_what_was_never_logged_is_an_empty_curve_and_a_wrong_name_an_error() -> None:
    db = mldb.MLDatabase.on(MemoryFileSystem(), durability="os")
    assert db.metrics() == []
    curve = db.metrics("loss")
    assert len(curve) == 0
    assert curve.value.dtype == np.float64
    with pytest.raises(mldb.InvalidNameError, match="starts with '/'"):
        db.metrics("/loss")


def test_a_name_is_found_whole_and_in_sets_wherever_it_stands() -> None:
    """``loss`` is no part of ``train/loss`` or ``loss2``."""
    db = mldb.MLDatabase.on(MemoryFileSystem(), durability="os")
    db.log({"train/loss": 1, "loss2": 2, "a": 3})
    db.log({"loss": 4, "a": 5})
    db.log({"a": 6, "loss": 7, "zoo": 8})
    assert db.metrics("loss").value.tolist() == [4, 7]
    assert db.metrics("a").value.tolist() == [3, 5, 6]
    assert db.metrics("zoo").value.tolist() == [8]
    assert db.metrics() == ["a", "loss", "loss2", "train/loss", "zoo"]


NAMES = ("loss", "lr", "val/acc", "grad norm")
CALLS = st.lists(
    st.tuples(
        st.sampled_from(["log", "buffer", "transaction", "rewind", "tensor", "seal"]),
        st.dictionaries(
            st.sampled_from(NAMES), st.floats(allow_nan=False), min_size=1, max_size=len(NAMES)
        ),
        st.integers(0, 3),
    ),
    max_size=40,
)


@settings(max_examples=60)
@given(CALLS, st.booleans())
def test_curves_are_what_a_plain_model_says(
    calls: list[tuple[str, dict[str, float], int]], compacts: bool
) -> None:
    """Whatever was rewound, sealed or compacted, at the head and at every commit before it."""
    db = open_small(MemoryFileSystem())
    model: list[tuple[str, float, int]] = []  # name, value, step
    states: dict[int, list[tuple[str, float, int]]] = {}
    lineage: list[int] = []
    for step, (what, values, more) in enumerate(calls):
        if what == "rewind":
            if lineage:
                target = lineage[-1 - more % len(lineage)]
                db.rewind(mldb.Lsn(target))
                model = list(states[target])
        elif what == "tensor":
            db.store_tensor("x", np.zeros(100) + step)
        elif what == "seal":
            with db._log._lock.hold() as guard:  # type: ignore[union-attr]
                db._log.state.begin_writing(guard.key)
                db._log.sequencer.seal_now()
                db._log.state.end_writing()
        else:
            if what == "transaction":
                with db.transaction() as txn:
                    txn.log(values, step=step)
                    txn.log(values, step=step)
                model = model + [(name, value, step) for name, value in values.items()]
            else:
                db.log(values, step=step, buffer=what == "buffer")
                if what == "buffer":
                    db._metrics.flush()
            model = model + [(name, value, step) for name, value in values.items()]
        if db.lsn:
            lineage.append(int(db.lsn))
            states[int(db.lsn)] = model
    if compacts and lineage:
        db.compact(cold="none")
    for lsn, state in states.items():
        with db.at(mldb.Lsn(lsn)) as snapshot:
            assert snapshot.metrics() == sorted({name for name, _, _ in state})
            for name in NAMES:
                curve = snapshot.metrics(name)
                found = list(zip(curve.value.tolist(), curve.step.tolist(), strict=True))
                assert found == [(value, step) for other, value, step in state if other == name]
                assert (curve.lsn <= lsn).all()
    db.close()


def test_as_of_names_an_epoch_a_commit_a_tag_or_a_time() -> None:
    db = mldb.MLDatabase.on(MemoryFileSystem(), durability="os")
    lsns = [db.log({"loss": epoch / 2}, epoch=epoch) for epoch in range(5)]
    db.tag("best", lsns[3])
    assert db.metrics("loss", as_of=1).value.tolist() == [0.0, 0.5]
    assert db.metrics("loss", as_of=lsns[2]).value.tolist() == [0.0, 0.5, 1.0]
    assert db.metrics("loss", as_of="best").epoch.tolist() == [0, 1, 2, 3]
    assert db.metrics(as_of=mldb.Lsn(0)) == []
    assert len(db.metrics("loss", as_of=datetime.now(UTC))) == 5
    with db.at(2) as snapshot:
        db.log({"loss": 9.0, "late": 1})
        assert snapshot.metrics("loss").value.tolist() == [0.0, 0.5, 1.0]
        assert snapshot.metrics() == ["loss"]
        assert snapshot.metrics("loss", as_of=0).value.tolist() == [0.0]


def test_a_rewind_cuts_a_curve_and_the_part_left_behind_stays_readable() -> None:
    db = mldb.MLDatabase.on(MemoryFileSystem(), durability="os")
    for epoch in range(4):
        db.log({"loss": epoch}, epoch=epoch)
    abandoned = db.lsn
    db.rewind(1)
    db.log({"loss": 10.0}, epoch=2)
    assert db.metrics("loss").value.tolist() == [0, 1, 10]
    assert db.metrics("loss", as_of=abandoned).value.tolist() == [0, 1, 2, 3]
    assert db.metrics("loss", as_of=2).value.tolist() == [0, 1, 10]


def test_another_handle_and_the_next_one_read_the_same(tmp_path: Path) -> None:
    with mldb.open(tmp_path / "s", durability="os", segment_entries=100) as db:
        for step in range(350):
            db.log({"loss": step, "lr": -step}, step=step)
        with mldb.open(tmp_path / "s", mode="r") as other:
            assert other.metrics("loss").value.tolist() == list(range(350))
            with pytest.raises(mldb.ReadOnlyError):
                other.log({"loss": 1})
            with pytest.raises(mldb.ReadOnlyError):
                other.log({"loss": 1}, buffer=True)
    with mldb.open(tmp_path / "s") as db:
        assert db.metrics("lr").value.tolist() == [-step for step in range(350)]
        assert db.verify().ok


def test_a_backup_has_the_curves(tmp_path: Path) -> None:
    """What was buffered as well: the story is a backup that was half a second too early."""
    with mldb.open(tmp_path / "s") as db:
        db.log({"loss": 1})
        db.log({"loss": 2}, buffer=True)
        db.backup(tmp_path / "b")
    with mldb.open(tmp_path / "b", mode="r") as copy:
        assert copy.metrics("loss").value.tolist() == [1, 2]


def test_damaged_points_are_an_error_that_names_them() -> None:
    db = mldb.MLDatabase.on(MemoryFileSystem(), durability="os")
    key = keys.metrics_key([b"acc", b"loss"])
    db._commit(records_of([metrics_logged(key, bytes(31))]), None)
    with pytest.raises(mldb.CorruptError, match="acc, loss"):
        db.metrics("loss")
    with pytest.raises(mldb.CorruptError, match="31 bytes of points of 2 metrics"):
        list(db.events())


# --- events ---------------------------------------------------------------------------------------


def test_each_call_is_an_event_also_where_its_names_have_several_keys() -> None:
    db = mldb.MLDatabase.on(MemoryFileSystem(), durability="os")
    many = {f"layer.{number:04}/" + "x" * 200: number / 2 for number in range(20)}
    db.log(many, step=3, epoch=1)
    db.log({"loss": 1, "lr": 2}, buffer=True)
    db.log({"loss": 3}, step=4, buffer=True)
    db.log({"loss": 5, "lr": 6}, buffer=True)
    db.sync()
    found = [event for event in db.events() if isinstance(event, MetricsLogged)]
    assert [(event.values, event.step, event.epoch) for event in found] == [
        (many, 3, 1),
        ({"loss": 1.0, "lr": 2.0}, None, 1),
        ({"loss": 3.0}, 4, 1),
        ({"loss": 5.0, "lr": 6.0}, None, 1),
    ]
    assert len({event.lsn for event in found}) == 2
    assert all(event.moment.tzinfo is UTC for event in found)
    assert [event.moment for event in found] == sorted(event.moment for event in found)


def test_two_calls_of_one_nanosecond_are_two_events() -> None:
    row = row_struct(1).pack(NO_STEP, 5_000_000_000, 1.5)
    drafts = [attr_draft(keys.metrics_key([b"a"]), row + row)]
    moment = datetime(1970, 1, 1, 0, 0, 5, tzinfo=UTC)
    assert list(read_metrics_logged(drafts, None)) == [({"a": 1.5}, None, moment)] * 2


@pytest.mark.parametrize("attr", [b"", bytes(23), struct.pack("<qqd", 0, 1 << 62, 0.0) * 2 + b"x"])
def test_an_impossible_attr_is_refused(attr: bytes) -> None:
    with pytest.raises(ValueError, match="bytes of points"):
        list(read_metrics_logged([attr_draft(keys.metrics_key([b"a"]), attr)], None))
