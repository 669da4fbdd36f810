"""What a pass would give back, found by a plan and a trial, against what passes give back."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import mldb
from mldb.compaction.gain import Gain, expected_gain
from tests.support.background import QUIET, fill

EPOCHS = 10


def test_enough_is_both_the_bytes_and_the_share() -> None:
    assert Gain(1000, 300).is_worth(300, 0.3)
    assert not Gain(1000, 299).is_worth(0, 0.3)
    assert not Gain(1000, 900).is_worth(901, 0.3)
    assert not Gain(1000, 0).is_worth(0, 0.0)
    assert not Gain(0, 0).is_worth(0, 0.0)


def test_what_retention_lets_go_is_known_before(store_path: Path) -> None:
    with mldb.open(store_path, **QUIET) as db:
        fill(db)
        gain = expected_gain(db._log, db._event_rules(), "none")
        report = db.compact(cold="none")
        assert gain.returned == pytest.approx(report.bytes_returned, rel=0.1)
        assert gain.size == pytest.approx(report.bytes_before, rel=0.05)
        assert expected_gain(db._log, db._event_rules(), "none").returned == 0


def test_what_encoding_saves_is_found_by_a_trial(
    store_path: Path, rng: np.random.Generator
) -> None:
    with mldb.open(store_path, **QUIET) as db:
        value = rng.standard_normal(50_000).astype(np.float32)
        for epoch in range(EPOCHS):
            db.store_tensor("slow", value, epoch=epoch)
            db.store_tensor("noise", rng.bytes(200_000), epoch=epoch)
            value = value * np.float32(1 + 1e-6)
        steps: list[int] = []
        gain = expected_gain(db._log, db._event_rules(), "all", lambda: steps.append(1))
        assert steps
        report = db.compact(cold="all")
        assert report.recoded > 0
        assert gain.returned == pytest.approx(report.bytes_returned, rel=0.35)


def test_nothing_is_expected_of_a_store_that_has_nothing(store_path: Path) -> None:
    with mldb.open(store_path, **QUIET) as db:
        assert expected_gain(db._log, db._event_rules(), "all").returned == 0
        fill(db, keep=None)
        assert expected_gain(db._log, db._event_rules(), "none").returned == 0
        assert not expected_gain(db._log, db._event_rules(), 10**18).is_worth(0, 0.0)
