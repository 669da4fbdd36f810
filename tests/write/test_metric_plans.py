"""What may be logged, what it becomes, and which keys it goes to."""

from __future__ import annotations

from fractions import Fraction
from types import MappingProxyType
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import mldb
from mldb import keys
from mldb.history.kinds.metrics import NO_STEP, row_struct
from mldb.log import format as fmt
from mldb.log.fs.memory import MemoryFileSystem
from mldb.write import metric_plans
from mldb.write.metric_plans import MetricPlans, MetricRows


@pytest.fixture
def db() -> mldb.MLDatabase:
    return mldb.MLDatabase.on(MemoryFileSystem(), durability="os")


@pytest.mark.parametrize(
    "value",
    [
        *(3, -0.5, True, np.bool_(True), np.int8(-3), np.uint64(1 << 53), np.float16(0.5)),
        *(np.array(2.5), np.array(7), np.array(True), ml_dtypes.bfloat16(1.5), np.longdouble(2)),
        *(np.array(1.5, ml_dtypes.float8_e4m3fn), 1 << 60, float("inf"), -float("inf")),
    ],
)
def test_numbers_of_all_kinds_are_taken(db: mldb.MLDatabase, value: Any) -> None:
    db.log({"loss": value})
    assert db.metrics("loss").value.tolist() == [float(value)]


def test_numbers_of_torch_are_taken_from_where_they_are(db: mldb.MLDatabase) -> None:
    torch = pytest.importorskip("torch")
    parameter = torch.nn.Parameter(torch.tensor(0.25))
    half = torch.tensor(1.5, dtype=torch.bfloat16)
    db.log({"a": torch.tensor(2), "b": parameter, "c": half, "d": torch.tensor(True)})
    found = [db.metrics(name).value.tolist() for name in "abcd"]
    assert found == [[2.0], [0.25], [1.5], [1.0]]
    with pytest.raises(mldb.InvalidTypeError, match=r"'loss' is a Tensor of shape \(1,\)"):
        db.log({"loss": torch.ones(1)})
    with pytest.raises(mldb.InvalidValueError, match="'loss', a Tensor, does not tell its number"):
        db.log({"loss": torch.empty((), device="meta")})
    with pytest.raises(mldb.InvalidTypeError, match="complex"):
        db.log({"loss": torch.tensor(1j)})


@pytest.mark.parametrize(
    ("value", "error"),
    [
        *(("0.3", mldb.InvalidTypeError), (None, mldb.InvalidTypeError)),
        *(([1], mldb.InvalidTypeError), (np.ones(1), mldb.InvalidTypeError)),
        *((1j, mldb.InvalidTypeError), (np.complex64(1), mldb.InvalidTypeError)),
        *((np.array("x"), mldb.InvalidTypeError), (Fraction(1, 2), mldb.InvalidTypeError)),
        *((np.datetime64(5, "ns"), mldb.InvalidTypeError), (np.ma.masked, mldb.InvalidTypeError)),
        *(((1 << 53) + 1, mldb.InvalidValueError), (10**400, mldb.InvalidValueError)),
        (np.uint64((1 << 64) - 1), mldb.InvalidValueError),
    ],
)
@pytest.mark.parametrize("buffer", [False, True])
def test_what_is_no_number_is_refused_by_name(
    db: mldb.MLDatabase, value: Any, error: type[mldb.MldbError], buffer: bool
) -> None:
    with pytest.raises(error, match=r"train/loss.*[Nn]othing was logged"):
        db.log({"lr": 0.1, "train/loss": value}, buffer=buffer)
    assert db.metrics() == []
    assert db.lsn == 0


def test_names_steps_and_epochs_are_checked(db: mldb.MLDatabase) -> None:
    bad: Any
    error: type[mldb.MldbError]
    for bad, error in (
        (["loss"], mldb.InvalidTypeError),
        ({}, mldb.InvalidValueError),
        ({"a\nb": 1}, mldb.InvalidNameError),
        ({3: 1}, mldb.InvalidTypeError),
        ({"x" * 256: 1.0}, mldb.InvalidNameError),
    ):
        with pytest.raises(error):
            db.log(bad)
    step: Any
    for step, error in (
        (-1, mldb.LimitError),
        (1 << 63, mldb.LimitError),
        (True, mldb.InvalidTypeError),
        (1.0, mldb.InvalidTypeError),
    ):
        with pytest.raises(error, match="step"):
            db.log({"loss": 1}, step=step)
    db.log(MappingProxyType({"loss": 1}), step=np.int32(5), epoch=3)  # type: ignore[call-overload]
    for buffer in (False, True):
        with pytest.raises(mldb.EpochOrderError, match="epoch 2 is lower"):
            db.log({"loss": 1}, epoch=2, buffer=buffer)
        with pytest.raises(mldb.InvalidTypeError, match="epoch"):
            db.log({"loss": 1}, epoch="3", buffer=buffer)  # type: ignore[call-overload]
    assert db.metrics("loss").step.tolist() == [5]


# --- keys -----------------------------------------------------------------------------------------


def plans_of(db: mldb.MLDatabase) -> MetricPlans:
    return MetricPlans(db._log.head)


def test_the_order_of_names_makes_no_other_key(db: mldb.MLDatabase) -> None:
    plans = plans_of(db)
    ((key, row),) = plans.rows({"b": 2.0, "a": 1.0, "c": 3.0}, 5, 7)
    assert key == keys.METRICS + b"\0a\0b\0c"
    assert row == row_struct(3).pack(5, 7, 1.0, 2.0, 3.0)
    assert plans.rows({"c": 3.0, "a": 1.0, "b": 2.0}, 5, 7) == ((key, row),)
    assert plans.rows({"b": 2.0}, None, 7) == ((b"\x0bb", row_struct(1).pack(NO_STEP, 7, 2.0)),)
    assert keys.metrics_of(key) == ["a", "b", "c"]
    assert keys.metrics_of(b"\x0bb") == ["b"]
    assert keys.shown(key) == "a, b, c"


def test_more_names_than_a_key_holds_go_to_several(db: mldb.MLDatabase) -> None:
    values = {f"{number:03}" + "é" * 126: float(number) for number in range(40)}  # 255 bytes
    rows = plans_of(db).rows(values, None, 1)
    assert len(rows) == 14  # three fit
    assert all(len(key) <= fmt.KEY_BYTES_MAX for key, _ in rows)
    assert [name for key, _ in rows for name in keys.metrics_of(key)] == sorted(values)
    db.log(values, step=2)
    assert db.metrics() == sorted(values)
    for name, value in values.items():
        assert db.metrics(name).value.tolist() == [value]


def test_there_are_few_sets_however_many_are_logged(
    db: mldb.MLDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The story behind the bound: a name for each sample made a key for each of its sets."""
    monkeypatch.setattr(metric_plans, "SETS_MAX", 5)
    for number in range(20):
        db.log({"loss": number, f"sample/{number}": -number}, step=number)
    for number in range(20):  # in another handle, which learns what sets there are
        other = plans_of(db)
        rows = other.rows({"loss": 1.0, f"sample/{number}": 2.0}, None, 1)
        assert len(rows) == (1 if number < 5 else 2)
        assert other.sets == 5
    view = db._log.head()
    assert len(list(view.keys(keys.metric_sets_prefix()))) == db.stats()["metrics"]["sets"] == 5
    assert db.metrics("loss").value.tolist() == list(range(20))
    assert db.metrics("loss").step.tolist() == list(range(20))
    assert db.metrics("sample/3").value.tolist() == [-3]
    assert db.metrics("sample/17").value.tolist() == [-17]
    assert len(db.metrics()) == 21


def test_what_is_remembered_of_calls_is_bounded(
    db: mldb.MLDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(metric_plans, "_PLANS_MAX", 10)
    plans = plans_of(db)
    for number in range(100):
        plans.rows({f"name{number}": 1.0}, None, 1)
        assert len(plans._plans) <= 10


def test_a_key_takes_as_many_rows_as_an_attr_holds() -> None:
    rows = MetricRows()
    row = bytes(fmt.ATTR_BYTES_MAX // 2)
    assert not rows
    assert rows.add(((b"a", row), (b"b", row)))
    assert rows.add(((b"a", row),))
    assert not rows.add(((b"b", row), (b"a", row)))
    assert [(change.key, len(change.attr or b"")) for change in rows.changes()] == [
        (b"a", 2 * len(row)),
        (b"b", len(row)),
    ]
