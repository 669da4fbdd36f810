"""Failures of the machine: a full or failing disk, limits, interrupts; what is stored stays.

The counterpart of hostile/test_bad_input.py. Every failure ends in a typed error that says what
happened, where, what is safe and what to do next; the handle goes on or says clearly that it does
not.
"""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import mldb
from mldb import keys
from mldb.history.kinds import TENSOR_STORED
from mldb.log import format as fmt
from mldb.log.frame import TO_BE_HASHED, Draft, Record
from mldb.log.fs.memory import MemoryFileSystem
from mldb.tensors import encoding
from mldb.tensors.codec import Descriptor, pack_descriptor
from tests.support.faults import FaultFileSystem
from tests.support.files import append_to, read_file
from tests.support.seen import contents
from tests.support.segments import segment_names

Database = mldb.MLDatabase
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def fs() -> FaultFileSystem:
    return FaultFileSystem(MemoryFileSystem())


@pytest.fixture
def db(fs: FaultFileSystem) -> Iterator[Database]:
    database = Database.on(fs, map_bytes=0)
    database.store_tensor("kept", np.arange(5000), {"k": 1}, epoch=3)
    yield database
    fs.heal()
    database.close()


def run(script: str, *arguments: object, **environment: str) -> str:
    """Run a script in a process of its own and return what it printed."""
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script), *map(str, arguments)],
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


# --- a full disk ----------------------------------------------------------------------------------


@pytest.mark.parametrize("durability", ["commit", "os"])
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
@pytest.mark.parametrize("effect", ["nothing", "half"])
def test_on_a_full_disk_reads_work_and_writes_resume_with_the_space(
    fs: FaultFileSystem, code: int, effect: Any, durability: Any
) -> None:
    """Reading in a transaction or snapshot, and closing, raised StorageFullError as well."""
    db = Database.on(fs, durability=durability, map_bytes=0, spill_bytes=1000)
    db.store_tensor("kept", np.arange(50), {"k": 1}, epoch=3)
    before = contents(db)
    fs.fail("pwritev", code=code, forever=True, effect=effect)

    def read_and_write() -> None:
        with db.transaction() as txn:
            txn["sum"] = txn["kept"].sum()

    def spill() -> None:
        with db.transaction() as txn:
            txn["large"] = np.zeros(1000)

    writes: list[Callable[[], object]] = [
        lambda: db.store_tensor("x", np.zeros(1000)),
        read_and_write,
        spill,
        lambda: db.checkpoint({"a": np.zeros(10)}, epoch=4),
        lambda: db.checkpoint({"a": np.zeros(10)}, epoch=4, wait=False).result(),
        lambda: db.create_relationship("a", "b", "c"),
        lambda: db.tag("t"),
    ]
    for write in writes:
        with pytest.raises(mldb.StorageFullError) as caught:
            write()
        assert caught.value.errno == code
        for words in (errno.errorcode[code], "rolled back", "readable", "Free space"):
            assert words in str(caught.value)
        assert isinstance(caught.value.__cause__, OSError)
        assert contents(db) == before
        with db.transaction() as txn:
            assert txn["kept"].sum() == 1225
        with db.at(3) as snapshot, db.at(0) as empty:
            assert snapshot["kept"][7] == 7
            assert list(empty) == []
    with Database.on(fs, mode="r") as reader:
        assert contents(reader) == before
        assert reader.verify().ok
    with Database.on(fs) as other:  # a torn tail waits for the first commit
        assert contents(other) == before
    fs.heal()
    read_and_write()
    spill()
    assert int(db["sum"]) == 1225
    after = contents(db)
    fs.fail("pwritev", code=code, forever=True, effect=effect)
    db.close()
    fs.heal()
    with Database.on(fs) as again:
        assert contents(again) == after
        assert again.verify().ok


def test_a_torn_store_on_a_full_disk_is_open_for_reading_and_repaired_with_the_space(
    fs: FaultFileSystem,
) -> None:
    """It was not opened with mode="rw" at all, since there was no room to save the torn tail."""
    db = Database.on(fs)
    db.store_tensor("kept", np.arange(50), {"k": 1}, epoch=3)
    before, last = contents(db), db.lsn
    fs.inner.kill()  # type: ignore[attr-defined]
    (active,) = segment_names(fs)
    append_to(fs, active, b"\x5a" * 333)
    torn = read_file(fs, active)
    for code in (errno.ENOSPC, errno.EDQUOT):
        fs.fail("pwritev", code=code, forever=True)
        db = Database.on(fs)
        assert contents(db) == before
        with db.at(3) as snapshot:
            assert snapshot["kept"][7] == 7
        found = db.recovery
        assert (found.clean, found.file, found.saved_as) == (False, active, "")
        assert (found.dropped_bytes, found.dropped_transactions) == (333, 1)
        for _ in range(3):
            with pytest.raises(mldb.StorageFullError, match=r"rolled back.*Free space"):
                db["later"] = 1
            assert contents(db) == before
            assert db.recovery == found
        assert db.verify().ok
        db.close()
        assert read_file(fs, active) == torn
        assert fs.list("lost+found") == []
        fs.heal()
    with Database.on(fs) as db:
        assert db.recovery == found
        tries = 0
        while True:  # each write of the repair fails in turn, and the same handle goes on
            tries += 1
            fs.fail("pwritev", at=tries, code=errno.ENOSPC)
            try:
                db["later"] = 0
            except mldb.StorageFullError:
                assert contents(db) == before
            except mldb.StorageIOError as error:  # the last is the claim that it is durable
                assert "stored is not known" in str(error)
                break
        fs.heal()
        assert tries > 4
        assert db.store_tensor("later", 1) > last
        (saved,) = fs.list("lost+found")
        assert db.recovery.saved_as == f"lost+found/{saved}"
        assert read_file(fs, db.recovery.saved_as).endswith(b"\x5a" * 333)
        assert read_file(fs, active) == torn
        db["last"] = 2
    with Database.on(fs) as db:
        assert db.recovery.clean
        assert db["kept"].tolist() == list(range(50))
        assert (int(db["later"]), int(db["last"])) == (1, 2)
        assert db.verify().ok


_FILE_LIMIT = """
    import resource, sys
    import numpy as np
    import mldb
    db = mldb.open(sys.argv[1], segment_bytes=1 << 30)
    db["kept"] = np.arange(1000)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, resource.RLIM_INFINITY))
    stored = 0
    try:
        for stored in range(100):
            db[f"x{stored}"] = np.full(20_000, stored, "u1")
        raise SystemExit("the limit does not hold")
    except mldb.StorageFullError as error:
        assert "EFBIG" in str(error) and "rolled back" in str(error), error
    def check(db):
        assert len(db) == stored + 1
        assert all(int(db[f"x{n}"][19_999]) == n for n in range(stored))
        assert db["kept"].tolist() == list(range(1000))
        assert db.verify().ok
    check(db)
    with mldb.open(sys.argv[1], mode="r") as reader:
        check(reader)
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    db[f"x{stored}"] = np.full(20_000, stored, "u1")
    stored += 1
    check(db)
    db.close()
    with mldb.open(sys.argv[1]) as again:
        check(again)
    print("stored", stored)
"""


def test_a_real_limit_of_file_size_is_a_full_disk(store_path: Path) -> None:
    assert run(_FILE_LIMIT, store_path).startswith("stored")


# --- a failing disk -------------------------------------------------------------------------------


@pytest.mark.parametrize("call, name", [("pwritev", "pwritev"), ("sync", "fdatasync")])
def test_a_failed_write_names_call_file_and_outcome(
    fs: FaultFileSystem, db: Database, call: str, name: str
) -> None:
    before = contents(db)
    fs.fail(call, code=errno.EIO)
    with pytest.raises(mldb.StorageIOError) as caught:
        db["x"] = 1
    message = str(caught.value)
    active = segment_names(fs)[0]
    assert f"{name} failed with EIO on memory/{active}" in message
    assert caught.value.errno == errno.EIO
    assert contents(db) == before
    if call == "sync":
        assert "closed behind commit 2, the last one known to be durable" in message
        assert "later commits are not stored" in message
        assert "reopen the store" in message
        writes: list[Callable[[], object]] = [
            lambda: db.store_tensor("x", 1),
            lambda: db.transact(lambda txn: txn.store_tensor("x", 1)),
            lambda: db.tag("t"),
        ]
        for write in writes:
            with pytest.raises(mldb.ClosedError, match=r"an fsync failed.*EIO.*reopen the store"):
                write()
        assert contents(db) == before
    else:
        db["x"] = 1
    with Database.on(fs) as again:
        again["y"] = 2
        assert contents(again)["tensors"]["kept"] == before["tensors"]["kept"]


@pytest.mark.parametrize(
    "call, code, words",
    [
        ("map", errno.ENOMEM, "mmap failed with ENOMEM on memory/segments/"),
        ("map", errno.EIO, "mmap failed with EIO on memory/segments/"),
        ("open", errno.EMFILE, r"too many open files.*Nothing is lost.*max_mapped.*ulimit -n"),
        ("open", errno.EACCES, "open failed with EACCES on memory/"),
        ("pread", errno.EIO, "pread failed with EIO on memory/"),
    ],
)
def test_a_read_that_fails_says_where_and_succeeds_later(
    fs: FaultFileSystem, db: Database, call: str, code: int, words: str
) -> None:
    before = contents(db)
    fs.fail(call, code=code, forever=True)
    with pytest.raises(mldb.StorageIOError, match=words) as caught:
        Database.on(fs, mode="r", map_bytes=0)["kept"]
    assert caught.value.errno == code
    assert contents(db) == before  # what is open already needs none of these calls
    fs.heal()
    with Database.on(fs, mode="r") as reader:
        assert contents(reader) == before


def test_a_read_only_file_system_says_how_to_open(fs: FaultFileSystem, db: Database) -> None:
    before = contents(db)
    db.close()
    for kind in ("pwritev", "mkdir", "lock", "link", "rename", "unlink"):
        fs.fail(kind, code=errno.EROFS, forever=True)
    with pytest.raises(mldb.ReadOnlyError, match=r"EROFS on memory.*read-only.*mode='r'"):
        Database.on(fs)["x"] = 1  # at the latest here
    calls = dict(fs.calls)
    with Database.on(fs, mode="r") as reader, reader.at(3) as snapshot:
        assert contents(reader) == before
        assert snapshot["kept"][3] == 3
        with reader.at(0) as empty:
            assert list(empty) == []
    for kind in ("pwritev", "mkdir", "link", "rename", "unlink", "sync", "sync_dir"):
        assert fs.calls[kind] == calls.get(kind, 0), f"{kind} was called"


_HOLDER = """
    import fcntl, sys
    file = open(sys.argv[1] + "/LOCK", "r+")
    fcntl.flock(file, fcntl.LOCK_EX)
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_held_lock_names_its_holder_and_the_time_waited(store_path: Path) -> None:
    with mldb.open(store_path, lock_timeout=0.1) as db:
        db["x"] = 1
        command = [sys.executable, "-c", textwrap.dedent(_HOLDER), str(store_path)]
        pipe = subprocess.PIPE
        with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) as holder:
            assert holder.stdout is not None
            assert holder.stdout.readline() == "held\n"
            writes: list[Callable[[], object]] = [
                lambda: db.store_tensor("x", 2),
                lambda: db.tag("t"),
            ]
            for write in writes:
                with pytest.raises(mldb.LockedError) as caught:
                    write()
                message = str(caught.value)
                for words in (os.uname().nodename, "started", "0.1 s", "Nothing was stored"):
                    assert words in message
                if sys.platform == "linux":
                    assert f"process {holder.pid} " in message
                assert isinstance(caught.value, mldb.RetryableError)
            assert int(db["x"]) == 1  # readers wait for nobody
            holder.kill()
        db["x"] = 3  # the lock died with its holder
        assert int(db["x"]) == 3


# --- interrupts, forks and memory -----------------------------------------------------------------


class InterruptedFileSystem(FaultFileSystem):
    """The user presses Ctrl-C during a call instead of the disk failing."""

    def raise_fault(self, fault: Any, kind: str, name: str) -> None:
        raise KeyboardInterrupt


@pytest.mark.parametrize("kind", ["pwritev", "sync", "size"])
def test_an_interrupted_commit_is_whole_or_absent_and_last_commit_tells(kind: str) -> None:
    outcomes = set()
    for number in range(1, 8):
        inner = MemoryFileSystem()
        fs = InterruptedFileSystem(inner)
        db = Database.on(fs)
        db["a"] = db["b"] = 0
        before = db.last_commit
        fs.fail(kind, at=number)
        interrupted = False
        try:
            with db.transaction() as txn:
                txn["a"] = txn["a"] + 1
                txn["b"] = txn["b"] + 1
        except KeyboardInterrupt:
            interrupted = True
        fs.heal()
        stored = db.last_commit != before
        outcomes.add((interrupted, stored))
        assert interrupted or stored
        assert int(db["a"]) == int(db["b"]) == stored
        db["after"] = 1
        with Database.on(inner, mode="r") as reader:
            assert int(reader["a"]) == int(reader["b"]) == stored
            assert int(reader["after"]) == 1
            assert reader.verify().ok
        db.close()
        if not interrupted:
            break
    assert any(interrupted for interrupted, _ in outcomes)


_FORK = """
    import os, sys
    import numpy as np
    import mldb
    db = mldb.open(sys.argv[1])
    db["x"] = np.arange(5)
    snapshot, handle, array = db.at(), db.tensor("x"), db["x"]
    child = os.fork()
    if child == 0:
        status = 0
        for call in (lambda: db["x"], lambda: db.store_tensor("x", 1), db.transaction, db.verify,
                     lambda: snapshot["x"], db.sync, lambda: list(db), lambda: db.at(0)):
            try:
                call()
                status = 1
            except mldb.ClosedError as error:
                for words in (f"opened in process {os.getppid()}", f"child {os.getpid()}",
                              "mldb.open(", "in the child"):
                    status = status or 2 * (words not in str(error))
        status = status or 3 * (array.tolist() != [0, 1, 2, 3, 4])
        db.close()
        with mldb.open(sys.argv[1]) as own:
            own["child"] = 1
        os._exit(status)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0, status
    db["parent"] = 1
    assert sorted(db) == ["child", "parent", "x"]
    db.close()
    with mldb.open(sys.argv[1]) as again:
        assert again.recovery.clean and again.verify().ok
    print("both")
"""


def test_a_forked_child_is_told_to_open_the_store_itself(store_path: Path) -> None:
    assert run(_FORK, store_path, PYTHONWARNINGS="ignore") == "both\n"


def test_a_memory_error_while_decoding_leaves_the_handle_usable(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with Database.on(MemoryFileSystem(), compression="zstd") as db:
        db["x"], db["y"] = np.zeros(10_000), np.ones(10_000)
        before = db.stats()["cache"]["used_bytes"]

        def no_memory(*_: object) -> memoryview:
            raise MemoryError

        with monkeypatch.context() as patch:
            patch.setattr(db._source.door._deltas, "_decode", no_memory)
            calls: list[Callable[[], object]] = [
                lambda: db["x"],
                db.tensor("x").numpy,
                lambda: db.at()["x"],
            ]
            for call in calls:
                with pytest.raises(MemoryError):
                    call()
        assert db.stats()["cache"]["used_bytes"] == before
        np.testing.assert_array_equal(db["x"], np.zeros(10_000))
        db["z"] = db["x"] + db["y"]
        assert db.verify().ok


_NO_MEMORY = """
    import resource, sys
    import numpy as np
    import mldb
    with mldb.open(sys.argv[1], compression="zstd", durability="os", cache_bytes=1 << 20) as db:
        db["large"] = np.zeros(256 << 20, "u1")
        db["small"] = np.zeros(5000, "u1")
        used = int(next(l for l in open("/proc/self/status") if l.startswith("VmData")).split()[1])
        limit = (used << 10) + (64 << 20)
        resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
        for attempt in range(3):
            try:
                db["large"]
                raise SystemExit("the limit does not hold")
            except MemoryError:
                pass
            assert not db["small"].any()
            db["attempt"] = attempt
        resource.setrlimit(resource.RLIMIT_DATA, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    print("usable")
"""


@pytest.mark.skipif(sys.platform != "linux", reason="RLIMIT_DATA covers mmap on Linux only")
def test_a_tensor_too_large_to_decode_is_a_memory_error_and_no_more(store_path: Path) -> None:
    script = _NO_MEMORY.replace("(limit, limit)", "(limit, resource.RLIM_INFINITY)")
    assert run(script, store_path) == "usable\n"


# --- bombs ----------------------------------------------------------------------------------------


def plant(db: Database, descriptor: bytes, payload: bytes, code: int) -> None:
    """Store a tensor whose descriptor says what it likes."""
    length = len(payload)
    draft = Draft(keys.TENSORS + b"bomb", 0, code, 0, length, TO_BE_HASHED, 0, descriptor)
    record = Record(TENSOR_STORED, [draft], (payload,), length)
    db._log.commit([record], lambda view: (view.commit.epoch, view.commit))


HUGE = 1 << 40
ZEROS = encoding.encode_bytes([bytes(64 << 20)], 4)
assert ZEROS is not None

RAW, ZSTD = fmt.ENCODING_RAW, encoding.ENCODING_ZSTD


def dense(*shape: int) -> bytes:
    return pack_descriptor(Descriptor("<f4", shape))


# Descriptor, payload, encoding, and the size that a reader may have to allocate.
BOMBS: dict[str, tuple[bytes, bytes, int, int]] = {
    "raw shape of a tebibyte": (dense(HUGE // 4), bytes(100), RAW, 0),
    "raw shape shorter than the bytes": (dense(3), bytes(100), RAW, 0),
    "64 MiB behind a small shape": (dense(16), ZEROS, ZSTD, 0),
    "cut frame": (dense(16 << 20), ZEROS[: len(ZEROS) // 2], ZSTD, 64 << 20),
    "no encoded byte": (dense(25), b"\x04", ZSTD, 0),
    "overflowing shape": (b"\x92\xa3<f4\x92\xcf" + b"\x7f" * 8 + b"\x04", bytes(4), RAW, 0),
    "no descriptor": (b"\xc1", bytes(4), RAW, 0),
}


@pytest.mark.parametrize("bomb", BOMBS.values(), ids=BOMBS.keys())
def test_a_stored_bomb_is_corrupt_within_bounded_memory(
    bomb: tuple[bytes, bytes, int, int],
) -> None:
    descriptor, payload, code, declared = bomb
    with Database.on(MemoryFileSystem()) as db:
        db["kept"] = np.arange(5)
        plant(db, descriptor, payload, code)
        calls: list[Callable[[], object]] = [
            lambda: db["bomb"],
            lambda: db.tensor("bomb").numpy(),
            lambda: db.tensor("bomb").torch(),
        ]
        for call in calls:
            assert peak_of(call) < 3 * declared + (2 << 20)
        np.testing.assert_array_equal(db["kept"], np.arange(5))
        db["after"] = 1
        assert sorted(db) == ["after", "bomb", "kept"]


def test_what_only_a_newer_mldb_reads_is_refused_by_name_and_the_rest_stays_readable() -> None:
    newer = b"\x93\x03\xa3<f4\x91\x19"
    with Database.on(MemoryFileSystem()) as db:
        first = db.store_tensor("bomb", np.arange(5))
        for descriptor, code in ((dense(25), 77), (newer, RAW)):
            plant(db, descriptor, bytes(100), code)
            for call in (lambda: db["bomb"], lambda: db.tensor("bomb").numpy()):
                assert peak_of(call, mldb.FormatVersionError) < 2 << 20
            np.testing.assert_array_equal(db.query_tensor("bomb", as_of=first), np.arange(5))
            assert list(db) == ["bomb"]
        assert db.tensor("bomb", as_of=first).shape == (5,)


def test_no_slice_is_read_by_a_descriptor_that_contradicts_the_stored_bytes() -> None:
    with Database.on(MemoryFileSystem(), map_bytes=0) as db:
        for shape in (HUGE // 4, 3):
            plant(db, dense(shape), bytes(100), RAW)
            for key in (slice(10**9, 10**9 + 5), slice(20, 30), slice(0, 2), -1, slice(None)):
                assert peak_of(lambda key=key: db.tensor("bomb")[key]) < 2 << 20  # type: ignore[misc]


def peak_of(call: Callable[[], object], error: type[Exception] = mldb.CorruptError) -> int:
    """Memory at the peak of a call that must end in *error*."""
    import tracemalloc

    tracemalloc.start()
    try:
        with pytest.raises(error):
            call()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
