"""The doctor finds what was done to a store, says how bad it is, and touches nothing."""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Callable, Iterator
from datetime import timedelta
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

import mldb
from mldb.compaction.status import WORKER_LOCK, WorkerStatus
from mldb.errors import MldbError
from mldb.log import native
from mldb.log.active import hint_name
from mldb.log.fs.posix import OsFileSystem
from mldb.log.manifest import Manifest
from mldb.log.newest import load_newest
from mldb.tools.doctor.examine import Examination, examine
from mldb.tools.doctor.findings import Finding
from mldb.tools.doctor.locks import see_lock


@pytest.fixture
def path(tmp_path: Path) -> str:
    """A run of some sealed segments."""
    path = tmp_path / "run"
    with mldb.open(path, durability="os", segment_bytes=1 << 20, background_compaction=False) as db:
        for epoch in range(1, 13):
            db.store_tensor("w", np.full(40_000, epoch, np.float64), epoch=epoch)
    return str(path)


def _texts(found: Examination, subject: str, level: str) -> list[str]:
    return [item.text for item in found.findings if (item.subject, item.level) == (subject, level)]


def _segments(path: str) -> list[Path]:
    fs = OsFileSystem(path)
    manifest = load_newest(fs, [])
    return [Path(path, "segments", f"{info.id.hex()}.seg") for info in manifest.segments]


def _everything(path: str) -> dict[str, tuple[int, int, int]]:
    return {
        str(item): (item.stat().st_size, item.stat().st_mtime_ns, item.stat().st_ino)
        for item in [Path(path), *Path(path).rglob("*")]
    }


def test_a_store_that_is_well_has_no_problem_and_is_not_touched(path: str) -> None:
    before = _everything(path)
    found = examine(path)
    assert _everything(path) == before
    assert not found.has_problem
    assert {item.level for item in found.findings} == {"ok"}
    assert found.folder.files["segments"] == 1 + len(_segments(path))
    assert (found.returnable, found.processes) == (0, ())
    assert len(found.folder.manifests) >= 2


def test_what_runs_is_told_and_a_module_that_was_refused_is_a_note(
    path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert _texts(examine(path), "native", "ok") == [native.status]
    with native.switched_off():
        assert _texts(examine(path), "native", "ok") == ["off: switched off"]
    made = ModuleType("made")
    vars(made).update(VERSION="0.0.9", INTERFACE=native.INTERFACE)
    with pytest.warns(native.NativeWarning):
        twin, status = native.load({}, importer=lambda: made)
    monkeypatch.setattr(native, "twin", twin)
    monkeypatch.setattr(native, "status", status)
    assert "0.0.9" in _texts(examine(path), "native", "note")[0]
    assert not examine(path).has_problem


def test_locks_are_looked_at_and_named_by_who_holds_them(path: str) -> None:
    fs = OsFileSystem(path)
    for name in ("LOCK", "GATE", WORKER_LOCK):
        lock = fs.lock(name)
        assert lock.try_acquire()
        (text,) = _texts(examine(path), "locks", "note")
        assert text.startswith(name)
        assert f"process {os.getpid()}" in text
        assert see_lock(path, name).state != "free"
        lock.close()
        assert see_lock(path, name).state == "free"
    assert not examine(path).has_problem


def test_a_look_at_a_lock_takes_it_from_nobody_and_makes_no_file(path: str) -> None:
    assert see_lock(path, "readers/none").state == "absent"
    assert not Path(path, "readers/none").exists()
    os.symlink("/etc/passwd", os.path.join(path, "readers", "link"))
    assert see_lock(path, "readers/link").state == "unknown"
    lock = OsFileSystem(path).lock("LOCK")
    assert see_lock(path, "LOCK").state == "free"
    assert lock.try_acquire()
    lock.close()


def test_a_process_that_needs_old_commits_is_named_with_what_it_keeps(path: str) -> None:
    with mldb.open(path, durability="os", background_compaction=False) as db:
        db.retention.set(last=2, abandoned=timedelta(0))
        snapshot = db.at(3)
        found = examine(path)
        (process,) = [item for item in found.processes if item.lowest is not None]
        assert (process.pid, process.lowest) == (os.getpid(), snapshot.lsn)
        assert process.is_alive
        assert process.is_here
        assert any(f"process {os.getpid()}" in text for text in _texts(found, "processes", "note"))
        (keeper,) = [item for item in found.keepers if item.kind == "process"]
        assert keeper.bytes == pytest.approx(8 * 320_000, rel=0.05)
        snapshot.close()
        found = examine(path)
        assert [item for item in found.keepers if item.kind == "process"] == []
        assert found.returnable is not None
        assert found.returnable > 0
        assert any("would come back" in text for text in _texts(found, "retention", "note"))


def test_a_dead_registration_is_named_and_keeps_nothing(path: str) -> None:
    readers = Path(path, "readers")
    with mldb.open(path) as db, db.at(2):
        (own,) = readers.iterdir()
        shutil.copy(own, readers / ("d" * 32))
        found = examine(path)
    (text,) = [text for text in _texts(found, "processes", "note") if "dead" in text]
    assert f"{os.getpid()} on {os.uname().nodename}" in text
    assert [item.is_alive for item in found.processes] == [True, False]
    assert (readers / ("d" * 32)).exists()


def test_a_living_registration_that_cannot_be_read_is_a_problem(path: str) -> None:
    Path(path, "readers", "e" * 32).write_bytes(b"what is this")
    assert not examine(path).has_problem  # a dead one keeps nothing
    lock = OsFileSystem(path).lock("readers/" + "e" * 32)
    assert lock.try_acquire()
    found = examine(path)
    lock.close()
    assert found.has_problem
    assert "needing every commit" in _texts(found, "processes", "problem")[0]


def test_what_the_worker_said_last_is_told(path: str) -> None:
    fs = OsFileSystem(path)
    WorkerStatus(7, 1, state="failed", error="the disk is on fire").save(fs)
    assert "the disk is on fire" in _texts(examine(path), "worker", "problem")[0]
    WorkerStatus(7, 1, state="working").save(fs)
    assert "process 7 ended in the middle" in _texts(examine(path), "worker", "note")[0]
    lock = fs.lock(WORKER_LOCK)
    assert lock.try_acquire()
    assert "process 7 is working" in _texts(examine(path), "worker", "ok")[0]
    lock.close()
    WorkerStatus(7, 1, state="ended", returned=9).save(fs)
    assert "gave back 9 bytes" in _texts(examine(path), "worker", "ok")[0]


def test_what_recovery_left_and_what_waits_for_it(path: str) -> None:
    fs = OsFileSystem(path)
    active = Path(path, "segments", f"{load_newest(fs, []).active.hex()}.seg")
    whole = active.read_bytes()
    active.write_bytes(whole + b"half a commit")
    Path(path, "lost+found", "segment-1").write_bytes(b"12345")
    Path(path, "pending", "f" * 32).write_bytes(b"123")
    found = examine(path)
    assert not found.has_problem
    assert "13 bytes behind the last commit" in _texts(found, "recovery", "note")[0]
    assert "1 files, 5 bytes" in _texts(found, "lost+found", "note")[0]
    assert "1 files, 3 bytes" in _texts(found, "pending", "note")[0]


def test_a_segment_that_is_lost_is_a_problem_and_the_rest_is_told(path: str) -> None:
    _segments(path)[0].unlink()
    found = examine(path)
    assert found.has_problem
    assert "missing or cut off: segments/" in _texts(found, "segments", "problem")[0]
    assert _texts(found, "locks", "ok")


def test_a_segment_whose_index_is_damaged_is_a_problem(path: str) -> None:
    segment = _segments(path)[1]
    data = bytearray(segment.read_bytes())
    index = load_newest(OsFileSystem(path), []).segments[1].index_offset
    data[index + 10 : index + 40] = bytes(30)
    segment.write_bytes(data)
    found = examine(path)
    assert "without an index that can be read" in _texts(found, "segments", "problem")[0]


def test_segments_that_nobody_names_are_orphans(path: str) -> None:
    segments = _segments(path)
    shutil.copy(segments[0], Path(path, "segments", "0" * 32 + ".seg"))
    Path(path, "segments", "1" * 32 + ".seg").write_bytes(b"x" * 1000)
    (text,) = _texts(examine(path), "orphans", "note")
    assert text.startswith("2 segment files")
    assert "1 of them with a damaged header" in text


def test_a_store_that_does_not_open_is_looked_at_all_the_same(path: str) -> None:
    for manifest in Path(path).glob("MANIFEST-*"):
        manifest.unlink()
    found = examine(path)
    assert found.has_problem
    assert "cannot be read as it is" in _texts(found, "store", "problem")[0]
    assert "no store, or they were deleted" in _texts(found, "manifests", "problem")[0]
    assert found.folder.files["segments"] > 2
    assert (found.keepers, found.returnable, found.stats) == ((), None, {})


def test_a_damaged_manifest_is_a_problem(path: str) -> None:
    newest = max(Path(path).glob("MANIFEST-*"))
    data = bytearray(newest.read_bytes())
    data[-5] ^= 255
    newest.write_bytes(data)
    found = examine(path)
    assert newest.name in _texts(found, "manifests", "problem")[0]


def test_a_manifest_that_was_announced_and_did_not_come(path: str) -> None:
    lock = Path(path, "LOCK")
    size = lock.stat().st_size
    lock.write_bytes(bytes(size + 1))
    assert "announced and did not come" in _texts(examine(path), "manifests", "note")[0]
    lock.write_bytes(bytes(size + 2))
    assert "was announced" in _texts(examine(path), "manifests", "problem")[0]


def test_a_hint_that_is_not_believed_is_told(path: str) -> None:
    active = load_newest(OsFileSystem(path), []).active
    Path(path, hint_name(active)).write_bytes(b"no hint")
    found = examine(path)
    assert not found.has_problem
    assert hint_name(active) in _texts(found, "hints", "note")[0]


@pytest.mark.parametrize(("free", "level"), [(0, "problem"), (1 << 20, "note"), (1 << 40, "ok")])
def test_a_full_disk_is_a_problem(
    path: str, free: int, level: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(OsFileSystem, "free_bytes", lambda _: free)
    assert f"{free:,} bytes are free" in _texts(examine(path), "disk", level)[0]


def test_a_file_system_of_another_machine_is_told(
    path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mldb.tools.doctor.folder.filesystem_kind", lambda _: "nfs4")
    monkeypatch.setattr("mldb.tools.doctor.folder.is_local", lambda _: False)
    assert "nfs4" in _texts(examine(path), "disk", "note")[0]


def test_a_retention_that_cannot_be_met_is_a_problem(path: str) -> None:
    with mldb.open(path, background_compaction=False) as db:
        db.retention.set(max_bytes=1000)
    assert "cannot be met" in _texts(examine(path), "retention", "problem")[0]


def test_a_store_that_others_write_to_and_compact_has_no_problem(path: str) -> None:
    """Segments and manifests come and go between two looks."""
    over = threading.Event()

    def work() -> None:
        options: dict[str, Any] = {"durability": "os", "background_compaction": False}
        with mldb.open(path, segment_bytes=1 << 20, **options) as db:
            db.retention.set(last=3, abandoned=timedelta(0))
            while not over.is_set():
                for _ in range(5):
                    db.store_tensor(
                        "w", np.random.default_rng(0).random(40_000), epoch=db.epoch + 1
                    )
                db.compact()

    worker = threading.Thread(target=work)
    worker.start()
    try:
        for _ in range(15):
            found = examine(path)
            assert [item for item in found.findings if item.level == "problem"] == []
    finally:
        over.set()
        worker.join()


def test_a_segment_that_goes_between_two_looks_is_no_problem(
    path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The manifest was read, then a compaction replaced what it names."""
    module = import_module("mldb.tools.doctor.examine")
    real = module.segment_findings
    looks: list[list[Finding]] = []

    def late(fs: OsFileSystem, manifest: Manifest) -> list[Finding]:
        if not looks:
            with mldb.open(path, background_compaction=False) as db:
                db.retention.set(last=1, abandoned=timedelta(0))
                db.compact()
        looks.append(list(real(fs, manifest)))
        return looks[-1]

    monkeypatch.setattr(module, "segment_findings", late)
    found = examine(path)
    assert "problem" in [item.level for item in looks[0]]
    assert len(looks) == 2
    assert not found.has_problem


Break = Callable[[Path], None]


def _breaks() -> Iterator[tuple[str, Break]]:
    def swap(path: Path) -> None:
        for item in (path / "segments").iterdir():
            item.write_bytes(b"")

    def folder(path: Path) -> None:
        shutil.rmtree(path / "segments")
        (path / "segments").write_bytes(b"a file")

    def link(path: Path) -> None:
        shutil.rmtree(path / "hints")
        os.symlink("/etc", path / "hints")

    yield "empty segments", swap
    yield "a file instead of a folder", folder
    yield "a link instead of a folder", link
    yield "no lock file", lambda path: (path / "LOCK").unlink()


@pytest.mark.parametrize(("what", "broken"), list(_breaks()))
def test_whatever_was_done_it_is_told_or_refused_by_a_typed_error(
    path: str, what: str, broken: Any
) -> None:
    broken(Path(path))
    try:
        found = examine(path)
    except MldbError:
        return
    assert {item.level for item in found.findings} != {"ok"}, what
