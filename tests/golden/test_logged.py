"""A store of metrics of version 2 stays readable for ever, and is written in the same bytes."""

from __future__ import annotations

import math
import shutil
from collections import Counter
from pathlib import Path
from typing import Literal

import numpy as np
import pytest

import mldb
from mldb import keys
from mldb.history.events import MetricsLogged
from tests.golden.logged import MANY, ODD, write_golden
from tests.golden.second import SECOND, START
from tests.golden.stores import METRICS, contents

EVENTS = {"MetricsLogged": 89, "TensorStored": 3, "TagSet": 1, "Rewound": 1}
LSNS = {"best": 17, "left": 21, "rewound": 23, "end": 31}


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A copy that a test may change."""
    return shutil.copytree(METRICS, tmp_path / "copy")


def curve(db: mldb.MLDatabase, name: str, as_of: str | mldb.Lsn | None = None) -> list[object]:
    found = db.metrics(name, as_of=as_of)
    columns = (found.step, found.epoch, found.value)
    return list(zip(*(column.tolist() for column in columns), strict=True))


FIRST = [(-1, 0, 2.5), (1, 1, 2.25), (2, 1, 2.0)]
WAITED = [(step, 2, 2 - step / 32) for step in range(40)]
AFTER = [(step, 3 + step // 10, value) for step in range(20) for value in (step, step / 2)]


def check_all(db: mldb.MLDatabase) -> None:
    """Curves at the head, before the rewind, and of what it left behind; every call."""
    late = [(step, 3 + step // 10, -step) for step in range(20)]
    assert (db.lsn, db.epoch, db.tags()) == (LSNS["end"], 4, {"best": LSNS["best"]})
    assert db.metrics() == sorted(["after", "loss", "lr", "val/acc", *MANY, *ODD])
    assert curve(db, "loss") == [*FIRST, *WAITED, (3, 2, 0.125), *late]
    assert curve(db, "after") == AFTER
    assert curve(db, "lr")[:3] == [(1, 1, 0.001), (2, 1, 0.002), (0, 2, 1e-4)]
    best = [*FIRST, *WAITED, (40, 3, 0.5), (41, 3, 0.25)]
    assert curve(db, "loss", "best") == best
    assert curve(db, "loss", mldb.Lsn(LSNS["left"])) == [*best, (-1, 4, 9.0)]
    assert curve(db, "ratio", "best") == [(41, 3, 8.0)]
    assert curve(db, "ratio") == []
    assert len(db.metrics("after", as_of=mldb.Lsn(LSNS["rewound"]))) == 0
    for name, value in MANY.items():
        assert curve(db, name) == [((1 << 63) - 1, 1, value)]
    for name, value in ODD.items():
        found = db.metrics(name)
        assert (found.step.tolist(), found.epoch.tolist()) == ([-1], [2])
        assert found.value.tobytes() == np.array(value, "<f8").tobytes()
    events = list(db.events())
    assert Counter(type(event).__name__ for event in events) == EVENTS
    logged = [event for event in events if isinstance(event, MetricsLogged)]
    assert [len(event.values) for event in logged[:5]] == [1, 2, 3, len(MANY), len(ODD)]
    assert all(event.moment <= event.time for event in logged)
    assert math.isclose(logged[0].moment.timestamp(), (START + SECOND) / SECOND, abs_tol=3)
    assert db.verify().ok


@pytest.mark.parametrize("mode", ["r", "rw"])
def test_every_point_comes_back_and_nothing_changes(copy: Path, mode: Literal["r", "rw"]) -> None:
    before = contents(copy)
    with mldb.open(copy, mode=mode) as db:
        check_all(db)
    assert contents(copy) == before


def test_it_goes_on_and_its_backup_is_the_same(copy: Path, tmp_path: Path) -> None:
    with mldb.open(copy) as db:
        db.backup(tmp_path / "backup")
        db.compact()
        check_all(db)
        db.log({"loss": 1.5}, step=20)
        db.log({"loss": 1.25, "lr": 0.5}, step=21, buffer=True)
        assert curve(db, "loss")[-2:] == [(20, 4, 1.5), (21, 4, 1.25)]
        db.rewind(mldb.Lsn(LSNS["end"]))
        assert curve(db, "loss")[-1] == (19, 4, -19)
    with mldb.open(tmp_path / "backup", mode="r") as db:
        check_all(db)


def test_the_same_history_is_written_in_the_same_bytes(tmp_path: Path) -> None:
    """A writer may choose otherwise within the format; then this ends with the version that did."""
    write_golden(tmp_path / "store")
    assert contents(tmp_path / "store") == contents(METRICS)


def test_the_golden_store_holds_what_it_is_meant_to() -> None:
    """Sealed segments and an active one; one call over several keys, one key of several names."""
    assert sum(name.endswith(".seg") for name in contents(METRICS)) >= 4
    assert sum(map(len, contents(METRICS).values())) < 64 << 10
    with mldb.open(METRICS, mode="r") as db:
        view = db._log.head()
        found = [*view.keys(keys.METRICS)]
        (commit,) = {event.lsn for event in db.events() if getattr(event, "values", None) == MANY}
        here = [key for key in found if commit in {e.commit_lsn for e in view.versions(key)}]
    sets = [b"\x0bloss", b"\x0b\0loss\0lr", b"\x0b\0loss\0lr\0val/acc"]
    assert {*sets} <= {*found}
    assert len(here) >= 2
