"""Patches under compaction: what a kept version builds on stays, whatever else goes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import mldb
from mldb.compaction import folds
from mldb.errors import VersionGoneError
from mldb.log.fs.memory import MemoryFileSystem
from tests.support.patched import links

STEPS = st.lists(
    st.tuples(
        st.sampled_from(
            [*["rows"] * 5, "whole", "epoch", "tag", "untag", "hold", "rewind", "compact"]
        ),
        st.integers(0, 1 << 16),
    ),
    max_size=24,
)
SHAPE = (40, 300)
LINKS = 3
SMALL_SEGMENTS = {"segment_bytes": 9000}
"""Two or three patches each; a pass installs several."""


def whole(seed: int) -> Any:
    return np.random.default_rng(seed).integers(0, 5, SHAPE).astype(np.float32)


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Chains of three, so that few steps are folded; and what goes by that is always worth it."""
    monkeypatch.setattr(folds, "LINKS_MAX", LINKS)
    monkeypatch.setattr(folds, "_LINKS_LEAST", 2)
    monkeypatch.setattr(folds, "_CARRY", 2)


class Run:
    """A store and a model of it: a whole array for every commit. A second handle reads."""

    def __init__(self, last: int | None, options: dict[str, Any]) -> None:
        self.fs = MemoryFileSystem()
        self.last = last
        self.db = mldb.MLDatabase.on(self.fs, durability="os", **options)
        self.value, self.model = whole(0), dict[int, Any]()
        self.add(self.db.store_tensor("w", self.value, epoch=0), self.value)
        self.reader = mldb.MLDatabase.on(self.fs, mode="r")
        self.held: list[tuple[mldb.Snapshot, Any]] = []

    def add(self, lsn: int, value: Any) -> None:
        self.model[int(lsn)] = self.value = value

    def do(self, kind: str, seed: int) -> None:
        db, value = self.db, self.value
        if kind == "rows":
            rows = np.random.default_rng(seed).permutation(40)[: 1 + seed % 4]
            changed = value.copy()
            changed[rows] = whole(seed)[: len(rows)]
            self.add(db.update_tensor("w", rows, changed[rows], epoch=db.epoch + seed % 2), changed)
        elif kind == "whole":
            self.add(db.store_tensor("w", whole(seed)), whole(seed))
        elif kind == "epoch":
            self.add(db.store_tensor("w", value + 1, epoch=db.epoch + 1), value + 1)
        elif kind == "tag":
            db.tag(f"t{seed}", mldb.Lsn(self.readable()[seed % 2 - 1]))
            self.add(db.lsn, value)
        elif kind == "untag":
            for name in list(db.tags())[:1]:
                db.untag(name)
                self.add(db.lsn, value)
        elif kind == "hold":
            handle = self.reader if seed % 2 else db
            lsn = int(handle.lsn)
            self.held.append((handle.at(mldb.Lsn(lsn)), self.model[lsn]))
        elif kind == "rewind":
            lsns = self.readable()
            lsn = lsns[seed % len(lsns)]
            self.add(db.rewind(mldb.Lsn(lsn)), self.model[lsn])
        else:
            self.compact("all" if seed % 2 else "none")
        assert np.array_equal(self.db["w"], self.value)

    def compact(self, cold: Any) -> None:
        """A pass; chains are bounded then, and another one finds nothing to do."""
        if self.last is not None:
            self.db.retention.set(last=self.last)
            self.add(self.db.lsn, self.value)
        self.db.compact(cold=cold)
        assert max(links(self.db), default=0) <= LINKS
        assert not self.db.compact(cold=cold).recoded

    def readable(self) -> list[int]:
        """The commits that are kept; each reads as it was written, in parts too."""
        found = []
        for lsn, want in self.model.items():
            try:
                snapshot = self.db.at(mldb.Lsn(lsn))
            except VersionGoneError:
                continue
            found.append(lsn)
            with snapshot:
                check(snapshot, want)
        return found


def check(snapshot: mldb.Snapshot, want: Any) -> None:
    assert np.array_equal(snapshot["w"], want)
    assert np.array_equal(snapshot.tensor("w")[7:20], want[7:20])


@pytest.mark.usefixtures("short")
@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    STEPS, st.none() | st.integers(1, 3), st.sampled_from([{"segment_entries": 4}, SMALL_SEGMENTS])
)
def test_any_order_of_patches_and_passes_reads_as_copies_would(
    steps: list[tuple[str, int]], last: int | None, options: dict[str, Any]
) -> None:
    """What retention drops is named as gone; snapshots of before read what they read."""
    run = Run(last, options)
    for kind, seed in [*steps, ("compact", 0)]:
        run.do(kind, seed)
    for snapshot, want in run.held:
        with snapshot:
            check(snapshot, want)
    readable = run.readable()
    assert last is not None or len(readable) == len(run.model)
    run.reader.close()
    run.db.close()
    run.db = mldb.MLDatabase.on(run.fs)
    assert run.readable() == readable
    assert run.db.verify().ok
    run.db.close()


@pytest.mark.parametrize("cold", ["all", "none"])
def test_a_patch_is_not_decoded_to_be_compressed_and_its_base_may_be(
    store_path: Path, cold: Any
) -> None:
    with mldb.open(store_path, durability="os") as db:
        db["w"] = np.zeros((4000, 64), np.float32)
        for step in range(50):
            db.update_tensor("w", [step, step + 100], np.full((2, 64), step, np.float32))
        before = {version.lsn: version.stored_bytes for version in db.history("w")}
        want = np.array(db["w"])
        db.compact(cold=cold)
        after = {version.lsn: version.stored_bytes for version in db.history("w")}
        first = min(before)
        assert {lsn: size for lsn, size in after.items() if lsn != first} == {
            lsn: size for lsn, size in before.items() if lsn != first
        }
        assert (after[first] < before[first]) == (cold == "all")
        assert np.array_equal(db["w"], want)
