"""The failing file system itself: each fault happens at the call and in the way that was asked."""

from __future__ import annotations

import errno
import itertools
from collections.abc import Callable
from pathlib import Path

import pytest

from mldb.errors import StorageError, StorageFullError, StorageIOError
from mldb.log.fs.memory import MemoryFileSystem
from mldb.log.fs.posix import OsFileSystem
from mldb.log.fs.protocol import FileSystem
from tests.support.faults import CALLS, FaultFileSystem, SimulatedKill


@pytest.fixture(params=["memory", "os"])
def inner(request: pytest.FixtureRequest, tmp_path: Path) -> FileSystem:
    return MemoryFileSystem() if request.param == "memory" else OsFileSystem(tmp_path)


def everything(fs: FaultFileSystem, done: list[str]) -> None:
    """Make every call of the protocol twice; *done* gets the kind of each that came back."""
    for turn in ("1", "2"):
        fs.mkdir("f")
        done.append("mkdir")
        file = fs.open(f"f/{turn}", "create")
        done.append("open")
        file.pwritev([b"0123", b"4567"], 0)
        done.append("pwritev")
        file.sync()
        done.append("sync")
        file.pread(2, 0)
        done.append("pread")
        file.size()
        done.append("size")
        file.map(2)
        done.append("map")
        file.map_private(2, 2)
        done.append("map_private")
        file.close()
        fs.link(f"f/{turn}", f"f/link-{turn}")
        done.append("link")
        fs.link_from(fs, f"f/{turn}", f"f/from-{turn}")
        done.append("link_from")
        fs.rename(f"f/{turn}", f"f/renamed-{turn}")
        done.append("rename")
        fs.sync_dir("f")
        done.append("sync_dir")
        fs.list("f")
        done.append("list")
        lock = fs.lock("LOCK")
        done.append("lock")
        lock.try_acquire()
        done.append("try_acquire")
        lock.close()
        fs.identity("f")
        done.append("identity")
        fs.free_bytes()
        done.append("free_bytes")
        fs.unlink("never there")
        done.append("unlink")
        assert fs.exists("f")
        assert fs.time_ns() > 0


def test_a_clean_run_counts_every_kind() -> None:
    fs = FaultFileSystem(MemoryFileSystem())
    done: list[str] = []
    everything(fs, done)
    assert set(done) == set(CALLS)
    assert {kind: fs.calls[kind] for kind in CALLS} == dict.fromkeys(CALLS, 2)
    assert (fs.calls["any"], len(done), fs.calls["exists"]) == (len(done), 2 * len(CALLS), 2)
    assert fs.bytes_written == 16


@pytest.mark.parametrize("make", [MemoryFileSystem, OsFileSystem])
def test_any_call_can_be_the_one_that_fails(
    make: Callable[..., FileSystem], tmp_path: Path
) -> None:
    for number in itertools.count(1):
        path = tmp_path / str(number)
        path.mkdir()
        inner = make(path) if make is OsFileSystem else make()
        fs = FaultFileSystem(inner)
        fs.fail("any", at=number)
        done: list[str] = []
        if number > 2 * len(CALLS):
            everything(fs, done)
            break
        with pytest.raises(StorageIOError, match="failed with EIO on") as info:
            everything(fs, done)
        assert (info.value.errno, len(done), fs.calls["any"]) == (errno.EIO, number - 1, number)
        assert isinstance(info.value.__cause__, OSError)


@pytest.mark.parametrize("kind", sorted(CALLS))
def test_a_kind_fails_once_or_for_ever(kind: str) -> None:
    for forever in (False, True):
        fs = FaultFileSystem(MemoryFileSystem())
        fs.fail(kind, at=2, code=errno.ENOSPC, forever=forever)
        done: list[str] = []
        with pytest.raises(StorageFullError, match=f"^{CALLS[kind]} failed with ENOSPC"):
            everything(fs, done)
        assert done.count(kind) == 1
        if forever:
            with pytest.raises(StorageFullError):
                fs.enter(kind, "name")
            fs.heal()
        fs.enter(kind, "name")


def test_numbers_count_from_now() -> None:
    fs = FaultFileSystem(MemoryFileSystem())
    fs.mkdir("a")
    fs.mkdir("b")
    fs.fail("mkdir", at=2)
    fs.mkdir("c")
    with pytest.raises(StorageIOError):
        fs.mkdir("d")
    fs.mkdir("e")
    assert fs.list("") == ["a", "b", "c", "e"]


def test_calls_that_cannot_fail_do_not() -> None:
    fs = FaultFileSystem(MemoryFileSystem())
    file = fs.open("a", "create")
    lock = fs.lock("LOCK")
    assert lock.try_acquire()
    fs.fail("any", forever=True)
    with pytest.raises(StorageIOError):
        fs.list("")
    assert fs.exists("a")
    assert fs.time_ns() > 0
    file.start_writeback(0, 1)
    file.close()
    lock.release()
    lock.close()


def test_an_error_before_the_call_changes_nothing() -> None:
    fs = FaultFileSystem(MemoryFileSystem())
    file = fs.open("a", "create")
    file.pwritev([b"old"], 0)
    calls: dict[str, Callable[[], object]] = {
        "pwritev": lambda: file.pwritev([b"new"], 0),
        "link": lambda: fs.link("a", "b"),
        "rename": lambda: fs.rename("a", "b"),
        "unlink": lambda: fs.unlink("a"),
        "mkdir": lambda: fs.mkdir("b"),
        "open": lambda: fs.open("b", "create"),
        "lock": lambda: fs.lock("b"),
    }
    for kind, call in calls.items():
        fs.fail(kind)
        with pytest.raises(StorageError):
            call()
        assert fs.inner.list("") == ["a"]
        assert file.pread(9, 0) == b"old"


def test_half_a_write_and_then_a_full_disk(inner: FileSystem) -> None:
    fs = FaultFileSystem(inner)
    file = fs.open("a", "create")
    file.pwritev([b"head"], 0)
    fs.fail("pwritev", code=errno.ENOSPC, effect="half")
    with pytest.raises(StorageFullError):
        file.pwritev([b"012", b"345", b"678"], 4)
    assert file.pread(99, 0) == b"head0123"
    assert fs.bytes_written == 8
    assert file.pwritev([b"again"], 4) == 5
    assert file.pread(99, 0) == b"headagain"


def test_a_failed_sync_may_keep_or_drop(inner: FileSystem) -> None:
    fs = FaultFileSystem(inner)
    fs.fail("sync", at=3, effect="drop")
    file = fs.open("a", "create")
    file.pwritev([b"synced"], 0)
    file.sync()
    file.pwritev([b"SY", b"NC"], 0)
    other = fs.open("b", "create")
    other.pwritev([b"of another file"], 0)
    other.sync()
    file.pwritev([b"!!"], 3)
    file.pwritev([b"tail"], 6)
    with pytest.raises(StorageIOError, match="fdatasync failed with EIO"):
        file.sync()
    # The length stays, as POSIX allows, and the content is what it was.
    assert file.pread(99, 0) == b"synced" + bytes(4)
    assert other.pread(99, 0) == b"of another file"
    file.pwritev([b"kept"], 6)
    fs.fail("sync")
    with pytest.raises(StorageIOError):
        file.sync()
    assert file.pread(99, 0) == b"syncedkept"
    file.sync()


@pytest.mark.parametrize("count", range(13))
def test_a_kill_cuts_at_the_byte(count: int) -> None:
    inner = MemoryFileSystem()
    fs = FaultFileSystem(inner)
    fs.open("0", "create").pwritev([b"before"], 0)
    fs.kill_at_byte(count)

    def write_for_ever() -> None:
        for turn in itertools.count(1):
            fs.open(str(turn), "create").pwritev([b"ab", b"cd"], 0)

    with pytest.raises(SimulatedKill):
        write_for_ever()
    written = [inner.open(name, "r").pread(9, 0) for name in inner.list("")[1:]]
    assert b"".join(written) == (b"abcd" * 4)[:count]
    assert fs.bytes_written == 6 + count


def test_the_dead_do_nothing_and_hold_nothing(inner: FileSystem) -> None:
    fs = FaultFileSystem(inner)
    file = fs.open("a", "create")
    lock, other = fs.lock("LOCK"), inner.lock("LOCK")
    assert lock.try_acquire()
    assert not other.try_acquire()
    fs.kill()
    calls: list[Callable[[], object]] = [
        lambda: file.pwritev([b"x"], 0),
        file.sync,
        lambda: fs.unlink("a"),
        lambda: fs.exists("a"),
        fs.time_ns,
        lock.try_acquire,
    ]
    for call in calls:
        with pytest.raises(SimulatedKill):
            call()
    # Clean-up on the way out neither raises nor takes anything from the living.
    assert other.try_acquire()
    lock.release()
    lock.close()
    file.start_writeback(0, 1)
    file.close()
    assert not inner.lock("LOCK").try_acquire()
    other.close()
    assert inner.open("a", "r").size() == 0


@pytest.mark.parametrize("kind", ["open", "list", "sync_dir", "lock", "map", "map_private"])
def test_a_call_that_lacks_a_descriptor_is_tried_again_after_relief(kind: str) -> None:
    for code in (errno.EMFILE, errno.ENFILE, errno.ENOMEM):
        for helped in (True, False):
            fs = FaultFileSystem(MemoryFileSystem())
            asked: list[bool] = []

            def relieve(helped: bool = helped, asked: list[bool] = asked) -> bool:
                asked.append(helped)
                return helped

            fs.relieve = relieve
            fs.fail(kind, code=code)
            done: list[str] = []
            if helped:
                everything(fs, done)
                assert fs.calls[kind] == 3
            else:
                with pytest.raises(StorageIOError) as info:
                    everything(fs, done)
                assert (info.value.errno, info.value.failed_sync) == (code, False)
            assert asked == [helped]


def test_relief_that_did_not_help_is_not_asked_for_twice() -> None:
    fs = FaultFileSystem(MemoryFileSystem())
    asked: list[int] = []

    def relieve() -> bool:
        asked.append(1)
        return True

    fs.relieve = relieve
    fs.fail("list", code=errno.EMFILE, forever=True)
    with pytest.raises(StorageIOError):
        fs.list("")
    fs.fail("pwritev", code=errno.ENOMEM)
    with pytest.raises(StorageIOError):
        fs.open("a", "create").pwritev([b"x"], 0)
    assert asked == [1]


def test_a_kill_is_no_exception_that_code_may_swallow() -> None:
    assert not issubclass(SimulatedKill, Exception)


def test_faults_that_make_no_sense_are_refused() -> None:
    fs = FaultFileSystem(MemoryFileSystem())
    with pytest.raises(ValueError, match="not a call that can fail"):
        fs.fail("exists")
    for kind, effect in (("sync", "half"), ("pwritev", "drop"), ("any", "half")):
        with pytest.raises(ValueError, match="does not fit"):
            fs.fail(kind, effect=effect)  # type: ignore[arg-type]
