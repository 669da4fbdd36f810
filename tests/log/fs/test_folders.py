"""New folders survive a power loss, and the umask decides who shares a store.

The folders above a new store were never synced, and its files were 0644 whatever the umask.
"""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

import pytest

from mldb.errors import StorageIOError
from mldb.log.fs.posix import OsFileSystem
from tests.support.processes import Child, Line


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """What is done to folders, in order, as (call, path)."""
    done: list[tuple[str, str]] = []
    mkdir, fsync = os.mkdir, os.fsync

    def record_mkdir(path: str, *args: int, **kwargs: int) -> None:
        mkdir(path, *args, **kwargs)
        done.append(("mkdir", os.path.realpath(path)))

    def record_fsync(fd: int) -> None:
        fsync(fd)
        done.append(("fsync", os.readlink(f"/proc/self/fd/{fd}")))

    monkeypatch.setattr(os, "mkdir", record_mkdir)
    monkeypatch.setattr(os, "fsync", record_fsync)
    return done


def prepare(path: Path) -> str:
    return OsFileSystem.prepare_root(str(path), create=True)


def test_each_new_folder_is_synced_into_the_one_above(
    tmp_path: Path, steps: list[tuple[str, str]]
) -> None:
    path = tmp_path / "a" / "b" / "store"
    assert prepare(path) == str(path)
    expected = [("mkdir", path.parent.parent), ("fsync", tmp_path)]
    expected += [("mkdir", path.parent), ("fsync", path.parent.parent)]
    expected += [("mkdir", path), ("fsync", path.parent)]
    assert steps == [(call, str(folder)) for call, folder in expected]


def test_an_empty_folder_may_be_new_and_one_with_a_store_is_not(
    tmp_path: Path, steps: list[tuple[str, str]]
) -> None:
    OsFileSystem.prepare_root(str(tmp_path), create=False)
    prepare(tmp_path)
    assert steps == [("fsync", str(tmp_path.parent))]
    (tmp_path / "MANIFEST-1").write_bytes(b"")
    prepare(tmp_path)
    assert len(steps) == 1, "opening a store that is there costs no sync"


def test_a_link_to_an_empty_folder_is_synced_where_the_folder_is(
    tmp_path: Path, steps: list[tuple[str, str]]
) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "store").mkdir()
    os.symlink(tmp_path / "real" / "store", tmp_path / "link")
    steps.clear()
    prepare(tmp_path / "link")
    assert steps == [("fsync", str(tmp_path / "real"))]


def test_a_folder_that_another_process_makes_at_the_same_time_is_synced_by_both(
    tmp_path: Path, steps: list[tuple[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    made = os.mkdir

    def second(path: str) -> None:
        made(path)
        raise FileExistsError(errno.EEXIST, "another process was faster")

    monkeypatch.setattr(os, "mkdir", second)
    prepare(tmp_path / "a" / "store")
    assert [folder for call, folder in steps if call == "fsync"] == [
        str(tmp_path),
        str(tmp_path / "a"),
    ]


def test_a_file_system_makes_its_own_folder_the_same_way(
    tmp_path: Path, steps: list[tuple[str, str]]
) -> None:
    OsFileSystem(tmp_path / "a" / "store").mkdir("")
    assert [call for call, _ in steps] == ["mkdir", "fsync", "mkdir", "fsync"]


def test_a_failing_sync_of_a_new_folder_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(_: int) -> None:
        raise OSError(errno.EIO, "the disk is broken")

    monkeypatch.setattr(os, "fsync", fails)
    with pytest.raises(StorageIOError, match="opening the store failed with EIO"):
        prepare(tmp_path / "store")


def test_where_a_folder_cannot_be_synced_everything_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[str] = []

    def refuses(_: int) -> None:
        raise OSError(errno.EINVAL, "no fsync for folders here")

    monkeypatch.setattr(os, "fsync", refuses)
    monkeypatch.setattr(os, "sync", lambda: synced.append("all"))
    prepare(tmp_path / "store")
    assert synced == ["all"]


@pytest.mark.parametrize(
    ("umask", "file", "folder"), [(0o002, 0o664, 0o775), (0o077, 0o600, 0o700)]
)
def test_the_umask_decides_who_may_read_and_write(
    tmp_path: Path, umask: int, file: int, folder: int
) -> None:
    path = tmp_path / "above" / "store"

    def make(_: Line) -> None:
        os.umask(umask)
        fs = OsFileSystem(prepare(path))
        fs.mkdir("segments/inner")
        fs.open("segments/1", "create")
        fs.lock("LOCK")
        fs.link("segments/1", "linked")
        other = OsFileSystem(path.parent / "made by mkdir")
        other.mkdir("")

    with Child(make) as child:
        assert child.wait() == 0

    def mode_of(name: str) -> int:
        return stat.S_IMODE(os.stat(path.parent / name).st_mode)

    files = ("store/segments/1", "store/LOCK", "store/linked")
    folders = (".", "store", "store/segments", "store/segments/inner", "made by mkdir")
    assert {mode_of(name) for name in files} == {file}
    assert {mode_of(name) for name in folders} == {folder}
