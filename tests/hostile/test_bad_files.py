"""Damaged, foreign, newer and missing files of a store, seen from above: what opens, what reads.

The counterpart of hostile/test_bad_input.py for files. Bytes inside of one file are the matter of
hostile/test_log.py, log/test_scan.py and log/test_frame.py.
"""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import mldb
from mldb.log import format as fmt
from tests.support.seen import contents, listing, segments_of


def sealed_store(path: Path) -> None:
    """Tensors t0 to t5, each in a segment of its own."""
    with mldb.open(path, segment_bytes=3000) as db:
        for epoch in range(6):
            db.store_tensor(f"t{epoch}", np.full(2000, epoch, "u1"), epoch=epoch)


def segment(path: Path, number: int) -> Path:
    """The file of the *number*-th segment, from 1, also when it was moved away."""
    return segments_of(path)[number - 1]


def cut(path: Path) -> None:
    file = segment(path, 2)
    os.truncate(file, file.stat().st_size - 100)


def empty(path: Path) -> None:
    segment(path, 2).write_bytes(b"")


def missing(path: Path) -> None:
    segment(path, 2).unlink()


def swapped(path: Path) -> None:
    one, other = segment(path, 2), segment(path, 3)
    one.rename(path / "aside")
    other.rename(one)
    (path / "aside").rename(other)


def from_another_store(path: Path) -> None:
    other = path.parent / "other"
    sealed_store(other)
    shutil.copy(segment(other, 2), segment(path, 2))


@pytest.mark.parametrize(
    "damage, words",
    [
        (cut, r"segment \w{32} is \d+ bytes long, expected at least \d+.*stay readable.*backup"),
        (empty, r"segment \w{32} is 0 bytes long, expected at least \d+.*stay readable.*backup"),
        (missing, r"segment \w{32} is missing.*stays readable.*backup"),
        (
            swapped,
            r"this is segment (\w{32}) of store (\w{32}), expected segment (?!\1)\w{32} of "
            r"store \2",
        ),
        (
            from_another_store,
            r"this is segment (\w{32}) of store (\w{32}), expected segment "
            r"(?!\1)\w{32} of store (?!\2)\w{32}",
        ),
    ],
)
def test_a_segment_that_is_not_the_one_expected_is_named(
    store_path: Path, damage: Callable[[Path], None], words: str
) -> None:
    sealed_store(store_path)
    damage(store_path)
    hurt = {2, 3} if damage is swapped else {2}
    before = listing(store_path)
    with mldb.open(store_path, mode="r") as db:
        for number in range(max(hurt), 6):
            assert int(db[f"t{number}"][7]) == number  # newer segments answer as before
        with pytest.raises(mldb.CorruptError, match=words) as caught:
            db["t1"]
        names = {f"segments/{segment(store_path, number).name}" for number in hurt}
        assert caught.value.file in names
        assert not db.verify().ok
        assert {problem.file for problem in db.verify().problems} >= names
    assert listing(store_path) == before


def test_a_torn_tail_is_reported_once_and_costs_nothing(
    store_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with mldb.open(store_path) as db:
        db.store_tensor("kept", np.arange(6), {"k": 1}, epoch=3)
        before = contents(db)
    active = segment(store_path, 1)
    with active.open("ab") as file:
        file.write(b"\x5a" * 333)
    torn = listing(store_path)
    with caplog.at_level(logging.WARNING, "mldb"), mldb.open(store_path) as again:
        assert contents(again) == before
        report = again.recovery
        assert not report.clean
        assert (report.dropped_bytes, report.file) == (333, f"segments/{active.name}")
        assert report.saved_as == ""
        assert caplog.records == []
        assert listing(store_path) == torn  # opening repairs nothing
        again["later"] = 1
        report = again.recovery
        assert (report.dropped_bytes, report.file) == (333, f"segments/{active.name}")
        assert (store_path / report.saved_as).read_bytes().endswith(b"\x5a" * 333)
        (record,) = caplog.records
        assert record.levelno == logging.WARNING
        for words in ("333 bytes", "never acknowledged", report.saved_as, active.name):
            assert words in record.getMessage()
        again["last"] = 2
        assert again.recovery == report
        assert len(caplog.records) == 1
    caplog.clear()
    with mldb.open(store_path) as third:
        assert third.recovery.clean
        assert int(third["later"]) == 1
        assert third.verify().ok
    assert caplog.records == []


def test_a_store_of_a_newer_format_is_refused_by_its_version(
    store_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    newer = fmt.FORMAT_VERSION + 1
    with monkeypatch.context() as patch:
        patch.setattr(fmt, "FORMAT_VERSION", newer)
        with mldb.open(store_path) as db:
            db["x"] = 1
    before = listing(store_path)
    modes: tuple[Any, ...] = ("r", "rw")
    for mode in modes:
        with pytest.raises(mldb.FormatVersionError) as caught:
            mldb.open(store_path, mode=mode)
        message = str(caught.value)
        assert f"has format version {newer}; this mldb reads up to {newer - 1}" in message
        assert "MANIFEST-" in message
        assert "Nothing was changed; use a newer mldb" in message
    assert listing(store_path) == before


DISPOSABLE = ("LOCK", "GATE", "hints", "readers", "pending", "lost+found")


@pytest.mark.parametrize("names", [*((name,) for name in DISPOSABLE), DISPOSABLE], ids=str)
@pytest.mark.parametrize("mode", ["r", "rw"])
def test_what_is_derived_may_be_deleted_while_the_store_is_closed(
    store_path: Path, names: tuple[str, ...], mode: Any
) -> None:
    sealed_store(store_path)
    with mldb.open(store_path) as db:
        db.store_model_layer("fc1", np.ones((3, 2)), np.zeros(3))
        db.tag("good", as_of=3)
        before = contents(db)
        with db.at() as snapshot:  # makes a file in readers/
            snapshot["t1"]
    for name in names:
        path = store_path / name
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)  # the gate is made when writers meet
    with mldb.open(store_path, mode=mode) as db:
        assert contents(db) == before
        assert db.verify().ok
        assert db.recovery.clean or db.recovery.distrusted
        assert db.recovery.dropped_bytes == 0
    with mldb.open(store_path) as db:
        with db.transaction() as txn:
            txn["t0"] = txn["t1"]
        assert db["t0"].tolist() == before["tensors"]["t1"][0]


def test_bytes_behind_the_footer_of_a_segment_are_not_read(store_path: Path) -> None:
    sealed_store(store_path)
    with segment(store_path, 2).open("ab") as file:
        file.write(b"appended by something else")
    with mldb.open(store_path) as db:
        assert [int(db[f"t{number}"][7]) for number in range(6)] == list(range(6))
        db["later"] = 1
    with mldb.open(store_path, mode="r") as again:
        assert [int(again[f"t{number}"][7]) for number in range(6)] == list(range(6))
