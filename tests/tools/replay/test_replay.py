"""mldb.replay without a filter: what every commit shows, wherever it is cut, resumed, refused."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import mldb
from mldb.log import format as fmt
from mldb.log.rebuild import StoreBuilder
from mldb.tensors.scope import stored_bytes
from tests.support.compacting import commits_of, compact_all, kept_of, shown_at
from tests.support.recorded import all_shown, compact_with_retention, record_run

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture
def source(tmp_path: Path, rng: np.random.Generator) -> Path:
    record_run(tmp_path / "source", rng)
    return tmp_path / "source"


def files_of(path: Path) -> dict[str, bytes]:
    """The files that hold the store: not the registration of who reads it."""
    return {
        str(item.relative_to(path)): item.read_bytes()
        for item in sorted(path.rglob("*"))
        if item.is_file() and item.parent.name not in ("readers", "pending")
    }


def test_every_commit_shows_what_it_showed(source: Path, tmp_path: Path) -> None:
    before = files_of(source)
    report = mldb.replay(source, tmp_path / "new", verify=True)
    assert report.verified is not None
    assert report.verified.differences == ()
    assert report.verified.commits == report.commits > 60
    assert report.verified.versions > 60
    assert files_of(source) == before
    assert all_shown(tmp_path / "new") == all_shown(source)
    with mldb.open(tmp_path / "new") as db, mldb.open(source, mode="r") as old:
        assert db.verify().ok
        assert report.until == old.lsn
        assert report.lsn(old.lsn) == old.lsn
        assert db.stats()["store_id"] != old.stats()["store_id"]
        assert db.store_tensor("more", 1) > old.lsn  # the log goes on


@pytest.mark.parametrize("compacted", [False, True])
def test_it_may_end_at_any_commit(source: Path, tmp_path: Path, compacted: bool) -> None:
    if compacted:
        compact_with_retention(source)
    shown = all_shown(source)
    lsns = list(shown["commits"])
    for number, lsn in enumerate(lsns[:: max(len(lsns) // 9, 1)]):
        new = tmp_path / f"new{number}"
        report = mldb.replay(source, new, until=mldb.Lsn(lsn), verify=True)
        assert report.verified is not None
        assert report.verified.differences == ()
        found = all_shown(new)
        assert found["commits"] == {at: shown["commits"][at] for at in lsns if at <= lsn}
        assert found["events"] == [event for event in shown["events"] if event.lsn <= lsn]
        with mldb.open(new) as db:
            assert db.verify().ok
            assert db.lsn == lsn == report.until


def test_until_takes_what_as_of_takes(source: Path, tmp_path: Path) -> None:
    moments: dict[str, Any] = {"epoch": 4, "tag": "moved", "check": "c1"}
    with mldb.open(source, mode="r") as db:
        wanted = {name: int(db.at(as_of).lsn) for name, as_of in moments.items()}
        time = db.at(4).time
    for name, as_of in moments.items():
        assert mldb.replay(source, tmp_path / name, until=as_of).until == wanted[name]
    assert mldb.replay(source, tmp_path / "time", until=time).until <= wanted["epoch"]
    with pytest.raises(mldb.MissingError):
        mldb.replay(source, tmp_path / "none", until="no such name")
    with pytest.raises(mldb.MissingError, match="no commit at 0"):
        mldb.replay(source, tmp_path / "early", until=0)


def test_what_retention_pruned_stays_pruned(source: Path, tmp_path: Path) -> None:
    compact_with_retention(source)
    with mldb.open(source, mode="r") as db:
        kept, every = kept_of(db), [row.lsn for row in commits_of(db)]
    assert 3 < len(kept) < len(every)
    mldb.replay(source, tmp_path / "new", verify=True)
    with mldb.open(tmp_path / "new") as db:
        assert kept_of(db) == kept
        assert [row.lsn for row in commits_of(db)] == every
        gone = next(lsn for lsn in every if lsn not in kept)
        with pytest.raises(mldb.VersionGoneError):
            db.at(mldb.Lsn(gone))
        with pytest.raises(mldb.VersionGoneError):
            mldb.replay(source, tmp_path / "more", until=mldb.Lsn(gone))


def test_sources_of_format_1_and_copies_go_over(tmp_path: Path) -> None:
    for name in ("format-1", "format-2", "format-2-backup"):
        old = tmp_path / name
        shutil.copytree(ROOT / "tests/golden" / name, old)
        report = mldb.replay(old, tmp_path / f"{name}-new", verify=True)
        assert report.verified is not None
        assert report.verified.differences == ()
        assert stored_in(tmp_path / f"{name}-new") == stored_in(old)


def stored_in(path: Path) -> dict[int, Any]:
    """Attr and bytes of every tensor of every commit: sparse ones have no array to compare."""
    found: dict[int, Any] = {}
    with mldb.open(path, mode="r") as db:
        for lsn in kept_of(db):
            scope = db._scope(mldb.Lsn(lsn))
            entries = {name: scope.tensor_entry(name) for name in scope.names()}
            found[lsn] = {
                name: (
                    entry.attr,
                    bytes(stored_bytes(scope, entry, name)),
                    scope.metadata(name).keys(),
                )
                for name, entry in entries.items()
            }
    return found


def test_an_empty_store_becomes_an_empty_store(tmp_path: Path) -> None:
    mldb.open(tmp_path / "source").close()
    report = mldb.replay(tmp_path / "source", tmp_path / "new", verify=True)
    assert (report.commits, report.until) == (0, 0)
    with mldb.open(tmp_path / "new") as db:
        assert len(db) == 0
        assert db.lsn == 0
        db["x"] = 1


def test_damage_of_the_source_is_no_part_of_the_target(source: Path, tmp_path: Path) -> None:
    with mldb.open(source, mode="r") as db:
        name = db._log.head().sealed[1].segment.name
    data = bytearray((source / name).read_bytes())
    data[len(data) // 3] ^= 4
    (source / name).write_bytes(bytes(data))
    with pytest.raises(mldb.CorruptError) as found:
        mldb.replay(source, tmp_path / "new")
    assert found.value.file == name
    assert "repair" in str(found.value)


# --- a target that is not finished ----------------------------------------------------------------


class Killed(BaseException):
    """What a test raises where a process would be killed."""


def kill_after(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    """Let replay end behind its segment number *count*."""
    done = [0]
    carry = StoreBuilder._finish

    def finish(self: Any, *args: Any) -> None:
        carry(self, *args)
        done[0] += 1
        if done[0] == count:
            raise Killed

    monkeypatch.setattr(StoreBuilder, "_finish", finish)


@pytest.mark.parametrize("count", [1, 2, 4])
@pytest.mark.parametrize("compacts", [False, True])
def test_a_killed_replay_goes_on(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, count: int, compacts: bool
) -> None:
    """Also where the source was compacted in between, so that its segments are other ones."""
    new = tmp_path / "new"
    with monkeypatch.context() as patch:
        kill_after(patch, count)
        with pytest.raises(Killed):
            mldb.replay(source, new)
    for mode in ("r", "rw"):
        with pytest.raises(mldb.FormatVersionError, match="not finished"):
            mldb.open(new, mode=mode)
    with pytest.raises(mldb.InvalidValueError, match="other arguments"):
        mldb.replay(source, new, names="encoder")
    shown = all_shown(source)
    if compacts:
        with mldb.open(source, durability="os", background_compaction=False) as db:
            compact_all(db)
    with mldb.open(source, durability="os", background_compaction=False) as db:
        db["later"] = 1  # is not part of what was begun
    report = mldb.replay(source, new, verify=True)
    assert report.resumed
    assert report.verified is not None
    assert report.verified.ok
    found = all_shown(new)
    assert found["commits"] == shown["commits"]
    assert found["events"] == shown["events"]
    assert not [name for name in os.listdir(new) if name.startswith("REPLAY")]


def test_one_killed_behind_its_manifest_is_finished(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mldb.tools.replay.unfinished import UnfinishedStore

    def die(self: UnfinishedStore) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(UnfinishedStore, "finished", die)
        with pytest.raises(Killed):
            mldb.replay(source, tmp_path / "new")
    with mldb.open(tmp_path / "new", mode="r") as db:
        assert db.verify().ok
    assert mldb.replay(source, tmp_path / "new", verify=True).verified.ok  # type: ignore[union-attr]
    assert all_shown(tmp_path / "new") == all_shown(source)
    with pytest.raises(mldb.InvalidValueError, match="not empty"):
        mldb.replay(source, tmp_path / "new")


def test_two_do_not_write_to_one_target(source: Path, tmp_path: Path) -> None:
    def other(done: int, total: int) -> None:
        with pytest.raises(mldb.LockedError, match="another process writes"):
            mldb.replay(source, tmp_path / "new")
        raise Killed

    with pytest.raises(Killed):
        mldb.replay(source, tmp_path / "new", progress=other)
    assert mldb.replay(source, tmp_path / "new").resumed


def test_a_target_that_cannot_be_is_refused(source: Path, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "notes.txt").write_text("mine")
    (tmp_path / "link").symlink_to(source)
    for target in (source, source / "inside", tmp_path / "link", tmp_path / "other"):
        with pytest.raises(mldb.InvalidValueError, match=r"empty|nothing was changed"):
            mldb.replay(source, target)
    assert os.listdir(tmp_path / "other") == ["notes.txt"]
    with pytest.raises(mldb.MldbError):
        mldb.replay(tmp_path / "nothing", tmp_path / "new")


def test_commits_and_compaction_meanwhile_change_nothing(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown = all_shown(source)
    told: list[int] = []

    def meanwhile(done: int, total: int) -> None:
        if len(told) in (0, 2):
            with mldb.open(source, durability="os", background_compaction=False) as db:
                db.retention.set(last=1)
                db.store_tensor("later", len(told), epoch=20 + len(told))
                compact_all(db)
        told.append(done)

    report = mldb.replay(source, tmp_path / "new", progress=meanwhile)
    found = all_shown(tmp_path / "new")
    assert report.until == max(shown["commits"])
    assert found["commits"] == shown["commits"]
    assert found["events"] == shown["events"]


def test_the_comparison_finds_what_differs(source: Path, tmp_path: Path) -> None:
    """A proof that cannot fail proves nothing: a commit more, another value, another parent."""
    from mldb.tools.replay.comparing import compare_stores
    from mldb.tools.replay.source import store_folder

    new = tmp_path / "new"
    until = mldb.replay(source, new).until
    with mldb.open(new, durability="os", background_compaction=False) as db:
        db["more"] = 1
    found = compare_stores(store_folder(source), store_folder(new), until)
    assert [text for text in found.differences if "is not in the source" in text]
    changed = tmp_path / "changed"
    mldb.replay(source, changed, transform=lambda n, a, m: (n, a + 1 if n == "decoder.w" else a, m))
    found = compare_stores(store_folder(source), store_folder(changed), until)
    assert len(found.differences) >= 8
    assert all("'decoder.w'" in text for text in found.differences)
    assert until < fmt.LSN_MAX


def test_views_agree_with_a_snapshot_of_each_commit(source: Path, tmp_path: Path) -> None:
    mldb.replay(source, tmp_path / "new")
    with mldb.open(source, mode="r") as one, mldb.open(tmp_path / "new", mode="r") as two:
        for epoch in range(10):
            assert one.at(epoch).lsn == two.at(epoch).lsn
            if epoch:
                assert shown_at(one, one.at(epoch).lsn) == shown_at(two, two.at(epoch).lsn)
