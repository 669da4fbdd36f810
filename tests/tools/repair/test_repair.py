"""mldb.repair: whatever the damage, no wrong byte, nothing whole lost, nothing lost unsaid."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import mldb
from mldb import keys
from tests.support.recorded import compact_with_retention, record_run
from tests.tools.repair.damaged import Damaging, Written, content_of

SEEDS = range(40)
_TOLD_WITH_ANOTHER = (keys.REVERSE, keys.LATEST_CHECKPOINT)
_LAKES = (keys.LAKES, keys.SPLATS)


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Any]]:
    """A store as recorded, and the same one compacted, each with its content."""
    root = tmp_path_factory.mktemp("recorded")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "urandom", np.random.default_rng(6).bytes)
        return {name: _record(root / name) for name in ("plain", "compacted")}


def _record(path: Path) -> tuple[Path, dict[int, Written]]:
    record_run(path, np.random.default_rng(5), epochs=5, segment_bytes=40_000)
    if path.name == "compacted":
        compact_with_retention(path, every=2)
        with mldb.open(path, durability="os", background_compaction=False) as db:
            db.store_tensor("later", np.arange(3000), epoch=9)
            db["later"] = np.arange(2)
    return path, content_of(path)


@pytest.fixture(autouse=True)
def _seeded_ids(monkeypatch: pytest.MonkeyPatch) -> None:
    """Segments have names that are drawn: damage is only the same again where these are."""
    monkeypatch.setattr(os, "urandom", np.random.default_rng(7).bytes)


def files_of(path: Path) -> dict[str, bytes]:
    return {str(f.relative_to(path)): f.read_bytes() for f in path.rglob("*") if f.is_file()}


def lake_of(key: bytes) -> bytes:
    return key[1:-9] if key[:1] == keys.SPLATS else key[1:]


def whole_commits(before: dict[int, Written], damage: Damaging) -> set[tuple[bytes, int]]:
    """The versions that no damage touches: their commit, and all they have their bytes from."""
    hurt = {lsn for lsn, written in before.items() if damage.is_hurt(written)}
    ended: set[bytes] = set()
    whole: set[tuple[bytes, int]] = set()
    for lsn, written in before.items():
        for key in written.versions:
            if key[:1] in _LAKES and lsn in hurt:
                ended.add(lake_of(key))
        if lsn in hurt:
            continue
        for _ in range(2):  # what refers within its commit may stand before its owner
            for key, stored in written.versions.items():
                lost_lake = key[:1] in _LAKES and lake_of(key) in ended
                if (stored.base is None or stored.base in whole) and not lost_lake:
                    whole.add((key, lsn))
    return whole


def is_said(report: Any, key: bytes, lsn: int) -> bool:
    """Whether a report says that this version is lost."""
    name = str(keys.pinned_by(key)) if key[:1] == keys.PINS else keys.shown(key)
    for lost in report.lost:
        if lost.what in ("unknown", "commit"):
            last = lost.last_lsn or lost.lsn
            if lost.lsn is None or lost.lsn <= lsn <= last:
                return True
        elif lost.lsn == lsn and lost.name == name:
            return True
    return False


def check(before: dict[int, Written], damage: Damaging, new: Path, report: Any) -> None:
    """Hold a repair to what it promises."""
    after = content_of(new)
    whole = whole_commits(before, damage)
    for lsn, written in after.items():
        assert written.row == before[lsn].row, f"commit {lsn} is another one"
        for key, stored in written.versions.items():
            old = before[lsn].versions.get(key)
            if stored.is_stone:
                assert old is None or old.is_stone or (key, lsn) not in whole
                continue
            assert old is not None, f"{key!r} at {lsn} was never there"
            assert (stored.attr, stored.data) == (old.attr, old.data), f"wrong bytes: {key!r}"
    for lsn, written in before.items():
        if not damage.is_hurt(written):
            assert lsn in after, f"commit {lsn} was whole and is lost"
        for key, stored in written.versions.items():
            kept = after[lsn].versions.get(key) if lsn in after else None
            is_there = kept is not None and kept.is_stone == stored.is_stone
            if (key, lsn) in whole:
                assert is_there, f"{keys.shown(key)} at {lsn} was whole and is lost"
            hidden = key == keys.LATEST_CHECKPOINT or key[:1] in _TOLD_WITH_ANOTHER
            # Without its manifest nobody can know of a segment that is gone from the end.
            is_behind = "manifest" in "".join(damage.done) and lsn > max(after, default=0)
            if not is_there and not stored.is_stone and not hidden:
                told = is_said(report, key, lsn) or is_behind
                assert told, (keys.shown(key), key[0], lsn, damage.done)


@pytest.mark.parametrize("kind", ["plain", "compacted"])
@pytest.mark.parametrize("number", SEEDS)
def test_whatever_the_damage(
    recorded: dict[str, tuple[Path, Any]], tmp_path: Path, kind: str, number: int
) -> None:
    source, before = recorded[kind]
    path, rng = tmp_path / "damaged", np.random.default_rng(number)
    shutil.copytree(source, path)
    damage = Damaging(path, rng)
    for _ in range(int(rng.integers(1, 5))):
        damage.one()
    content = files_of(path)
    try:
        report = mldb.repair(path, tmp_path / "new")
    except mldb.CorruptError as error:
        assert "nothing to salvage" in str(error)
        assert all(damage.is_hurt(written) for written in before.values()), damage.done
        return
    assert files_of(path) == content, "the damaged folder was changed"
    with mldb.open(tmp_path / "new", mode="r") as db:
        found = db.verify()
        assert found.ok, found.problems
        for _ in db.events():
            pass
    check(before, damage, tmp_path / "new", report)
    if report.ok:
        assert set(content_of(tmp_path / "new")) == set(before), (damage.done, report)


@pytest.mark.parametrize("gone", ["first", "middle", "last"])
def test_commits_that_nothing_names_any_more_are_said_to_be_lost(tmp_path: Path, gone: str) -> None:
    """Nothing is left of a commit, and what would name it as its parent is damaged as well."""
    path = tmp_path / "store"
    with mldb.open(path, segment_bytes=40_000, background_compaction=False) as db:
        lsns = [int(db.store_tensor(name, np.arange(9))) for name in ("a", "b", "c", "d")]
        lsns.append(int(db.store_tensor("big", np.arange(20_000))))  # a segment of its own
        lsns.append(int(db.store_tensor("later", np.arange(9))))
    before = content_of(path)
    number = {"first": 0, "middle": 2, "last": 3}[gone]
    lost, behind = before[lsns[number]], before[lsns[number + 1]]
    assert (lost.file == behind.file) == (gone != "last")
    damage = Damaging(path, np.random.default_rng(1))
    low, high = lost.spans[0][0], lost.spans[-1][1]
    damage._change(lost.file, path / lost.file, low, bytes(high - low))
    low, high = behind.spans[-1]
    damage._change(behind.file, path / behind.file, low, bytes(high - low))
    for file in {lost.file, behind.file}:  # indexes would name them
        data = (path / file).read_bytes()
        last = max(written.spans[-1][1] for written in before.values() if written.file == file)
        damage._change(file, path / file, last, bytes(len(data) - last))
    report = mldb.repair(path, tmp_path / "new")
    check(before, damage, tmp_path / "new", report)
    said = [lsn for lsn in lsns if is_said(report, b"\x01x", lsn)]
    assert said == lsns[number : number + 2]
