"""A FileSystem that fails on purpose: at the n-th call of a kind, or dies after n bytes written.

It wraps any other file system and raises what the real one would. A test counts the calls of one
clean run (``calls``) and then fails each of them in turn::

    for number in itertools.count(1):
        fault = FaultFileSystem(MemoryFileSystem())
        fault.fail("sync", at=number)
        run(fault)
        if fault.calls["sync"] < number:
            break
"""

from __future__ import annotations

import errno
import os
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

from mldb.log.fs.protocol import Buffer, File, FileSystem, KernelLock, OpenMode, translate
from mldb.log.fs.relief import EXHAUSTED

Effect: TypeAlias = Literal["nothing", "half", "drop"]

# The kinds of calls that can fail, with the kernel's name for each; "any" is all of them.
CALLS = {
    "open": "open",
    "list": "listdir",
    "mkdir": "mkdir",
    "link": "link",
    "link_from": "link",
    "rename": "rename",
    "unlink": "unlink",
    "sync_dir": "fsync of the folder",
    "lock": "open",
    "identity": "stat",
    "free_bytes": "statvfs",
    "size": "lseek",
    "pread": "pread",
    "pwritev": "pwritev",
    "sync": "fdatasync",
    "map": "mmap",
    "map_private": "mmap",
    "try_acquire": "flock",
}


_TAKES_DESCRIPTOR = frozenset({"open", "list", "sync_dir", "lock", "map", "map_private"})


class SimulatedKill(BaseException):
    """The process died here. Every later call of its file system raises this as well."""


@dataclass(frozen=True, slots=True)
class _Fault:
    kind: str
    call: int  # of all calls of this kind since the start
    code: int
    forever: bool
    effect: Effect

    def hits(self, kind: str, calls: Counter[str]) -> bool:
        if self.kind not in {kind, "any"}:
            return False
        count = calls[self.kind]
        return count >= self.call if self.forever else count == self.call


class FaultFileSystem:
    """Passes every call on to *inner* unless a fault says otherwise. Thread-safe as *inner* is.

    ``calls`` counts per kind, failed ones included; ``bytes_written`` counts what reached *inner*.
    Clocks, ``exists``, ``pause``, ``start_writeback``, ``allocate``, ``release`` and ``close``
    never fail, nor do ``populate`` and ``read_ahead``, which with ``refuses_advice`` do nothing and
    say so. A call that lacks a descriptor asks ``relieve`` and is counted again when it is tried
    again.
    """

    def __init__(self, inner: FileSystem) -> None:
        self.inner = inner
        self.root = inner.root
        self.calls: Counter[str] = Counter()
        self.bytes_written = 0
        self.dead = False
        self.refuses_advice = False
        self._bytes_at_kill: int | None = None
        self._faults: list[_Fault] = []
        self._locks: list[KernelLock] = []
        self._mutex = threading.RLock()
        # By name: extents and what they held, since the last sync. Kept once "drop" was asked for.
        self._unsynced: dict[str, list[tuple[int, int, bytes]]] | None = None

    @property
    def relieve(self) -> Callable[[], bool] | None:
        """That of *inner*."""
        return self.inner.relieve

    @relieve.setter
    def relieve(self, relieve: Callable[[], bool] | None) -> None:
        self.inner.relieve = relieve

    def fail(
        self,
        kind: str,
        *,
        at: int = 1,
        code: int = errno.EIO,
        forever: bool = False,
        effect: Effect = "nothing",
    ) -> None:
        """Let the *at*-th call of *kind* from now on fail with *code*, once or for ever after.

        *kind* is a key of CALLS or "any". *effect* is what happens before the error: "nothing";
        "half" (of the bytes of a pwritev reach the file); or "drop" (a sync loses what was written
        to this name since its last sync, from now on: it reads as it did before, or as zeros).
        """
        if kind != "any" and kind not in CALLS:
            raise ValueError(f"{kind!r} is not a call that can fail; take one of {sorted(CALLS)}")
        if effect != "nothing" and kind != {"half": "pwritev", "drop": "sync"}[effect]:
            raise ValueError(f"effect {effect!r} does not fit calls of kind {kind!r}")
        if effect == "drop" and self._unsynced is None:
            self._unsynced = {}
        self._faults.append(_Fault(kind, self.calls[kind] + at, code, forever, effect))

    def kill_at_byte(self, count: int) -> None:
        """Die once *count* more bytes have been written, in the middle of that write."""
        self._bytes_at_kill = self.bytes_written + count

    def heal(self) -> None:
        """Forget every fault that has not happened yet. The dead stay dead."""
        self._faults.clear()
        self._bytes_at_kill = None

    def kill(self) -> None:
        """Die now: the locks taken through this object are free, all its calls raise."""
        with self._mutex:
            self.dead = True
            for lock in self._locks:
                lock.close()
            self._locks.clear()

    def check_alive(self) -> None:
        """Raise SimulatedKill in a dead process."""
        if self.dead:
            raise SimulatedKill(f"the process using {self.root} is dead")

    def enter(self, kind: str, name: str) -> None:
        """Count a call and raise if a fault hits it; for pwritev and sync see ``fault_of``."""
        fault = self.fault_of(kind)
        lacking = fault is not None and kind in _TAKES_DESCRIPTOR and fault.code in EXHAUSTED
        if lacking and self.relieve is not None and self.relieve():
            fault = self.fault_of(kind)
        if fault is not None:
            self.raise_fault(fault, kind, name)

    def fault_of(self, kind: str) -> _Fault | None:
        """Count a call and return the fault that hits it."""
        with self._mutex:
            self.check_alive()
            self.calls[kind] += 1
            if kind not in CALLS:
                return None
            self.calls["any"] += 1
            return next((fault for fault in self._faults if fault.hits(kind, self.calls)), None)

    def raise_fault(self, fault: _Fault, kind: str, name: str) -> None:
        """Raise what the real file system would, and where it does: inside an except clause."""
        # A sync of a folder that lacks a descriptor has not come to its fsync yet.
        early = kind == "sync_dir" and fault.code in EXHAUSTED
        try:
            raise OSError(fault.code, os.strerror(fault.code))
        except OSError as error:
            raise translate(error, "open" if early else CALLS[kind], self.root, name) from error

    def write(self, file: File, buffers: Sequence[Buffer], offset: int) -> int:
        """Write for a file, unless a fault or the death of the process cuts it."""
        with self._mutex:
            fault = self.fault_of("pwritev")
            if fault is not None and fault.effect == "half":
                data = b"".join(buffers)
                self._pass_on(file, [data[: len(data) // 2]], offset)
            if fault is not None:
                self.raise_fault(fault, "pwritev", file.name)
            if self._bytes_at_kill is not None:
                data = b"".join(buffers)
                room = self._bytes_at_kill - self.bytes_written
                if len(data) >= room:
                    self._pass_on(file, [data[:room]], offset)
                    self.kill()
                    self.check_alive()
            return self._pass_on(file, buffers, offset)

    def _pass_on(self, file: File, buffers: Sequence[Buffer], offset: int) -> int:
        if self._unsynced is not None:
            count = sum(memoryview(buffer).nbytes for buffer in buffers)
            extent = (offset, count, file.pread(count, offset))
            self._unsynced.setdefault(file.name, []).append(extent)
        written = file.pwritev(buffers, offset)
        self.bytes_written += written
        return written

    def sync(self, file: File) -> None:
        """Sync for a file, or fail and perhaps lose what was to be synced."""
        with self._mutex:
            fault = self.fault_of("sync")
            extents = (self._unsynced or {}).pop(file.name, [])
            if fault is not None:
                if fault.effect == "drop":
                    for offset, count, before in reversed(extents):
                        file.pwritev([before.ljust(count, b"\0")], offset)
                self.raise_fault(fault, "sync", file.name)
        file.sync()

    def open(self, name: str, mode: OpenMode) -> FaultFile:
        """Open a file whose calls can fail."""
        self.enter("open", name)
        return FaultFile(self, self.inner.open(name, mode))

    def exists(self, name: str) -> bool:
        """Pass on."""
        self.enter("exists", name)
        return self.inner.exists(name)

    def list(self, folder: str) -> list[str]:
        """Pass on."""
        self.enter("list", folder)
        return self.inner.list(folder)

    def mkdir(self, folder: str) -> None:
        """Pass on."""
        self.enter("mkdir", folder)
        self.inner.mkdir(folder)

    def link(self, source: str, target: str) -> bool:
        """Pass on."""
        self.enter("link", target)
        return self.inner.link(source, target)

    def link_from(self, other: FileSystem, source: str, target: str) -> bool:
        """Pass on, the inner file system of *other* if it is one of these."""
        self.enter("link_from", target)
        inner = other.inner if isinstance(other, FaultFileSystem) else other
        return self.inner.link_from(inner, source, target)

    def rename(self, source: str, target: str) -> None:
        """Pass on."""
        self.enter("rename", target)
        self.inner.rename(source, target)

    def unlink(self, name: str) -> None:
        """Pass on."""
        self.enter("unlink", name)
        self.inner.unlink(name)

    def sync_dir(self, folder: str) -> None:
        """Pass on."""
        self.enter("sync_dir", folder)
        self.inner.sync_dir(folder)

    def lock(self, name: str) -> FaultLock:
        """Return a lock that is freed when this process is killed."""
        self.enter("lock", name)
        lock = self.inner.lock(name)
        self._locks.append(lock)
        return FaultLock(self, lock, name)

    def identity(self, name: str) -> tuple[int, int] | None:
        """Pass on."""
        self.enter("identity", name)
        return self.inner.identity(name)

    def looked_at(self, name: str) -> bytes:
        return b""  # every look comes by here

    def look(self, name: str) -> tuple[int, int, int] | None:
        """Pass on; of the same kind as identity."""
        self.enter("identity", name)
        return self.inner.look(name)

    def populate(self, view: memoryview) -> bool:
        """Pass on, or refuse."""
        self.enter("populate", "")
        return not self.refuses_advice and self.inner.populate(view)

    def read_ahead(self, view: memoryview) -> bool:
        """Pass on, or refuse."""
        self.enter("read_ahead", "")
        return not self.refuses_advice and self.inner.read_ahead(view)

    def is_resident(self, view: memoryview) -> bool:
        """Pass on."""
        self.enter("is_resident", "")
        return self.inner.is_resident(view)

    def is_unwritten(self, view: memoryview) -> bool:
        """Pass on."""
        self.enter("is_unwritten", "")
        return self.inner.is_unwritten(view)

    def free_bytes(self) -> int:
        """Pass on."""
        self.enter("free_bytes", "")
        return self.inner.free_bytes()

    def time_ns(self) -> int:
        """Pass on."""
        self.enter("time_ns", "")
        return self.inner.time_ns()

    def pause(self, seconds: float) -> None:
        """Pass on."""
        self.enter("pause", "")
        self.inner.pause(seconds)


class FaultFile:
    """A file of a FaultFileSystem."""

    def __init__(self, fs: FaultFileSystem, inner: File) -> None:
        self.name = inner.name
        self._fs = fs
        self._inner = inner

    def size(self) -> int:
        """Pass on."""
        self._fs.enter("size", self.name)
        return self._inner.size()

    def pread(self, count: int, offset: int) -> bytes:
        """Pass on."""
        self._fs.enter("pread", self.name)
        return self._inner.pread(count, offset)

    def pwritev(self, buffers: Sequence[Buffer], offset: int) -> int:
        """Pass on, in part or not at all when a fault says so."""
        return self._fs.write(self._inner, buffers, offset)

    def start_writeback(self, offset: int, count: int) -> None:
        """Pass on; never fails."""
        if not self._fs.dead:
            self._inner.start_writeback(offset, count)

    def allocate(self, count: int) -> None:
        """Pass on; never fails."""
        if not self._fs.dead:
            self._inner.allocate(count)

    def sync(self) -> None:
        """Pass on."""
        self._fs.sync(self._inner)

    def map(self, count: int) -> memoryview:
        """Pass on."""
        self._fs.enter("map", self.name)
        return self._inner.map(count)

    def map_private(self, offset: int, count: int) -> memoryview:
        """Pass on."""
        self._fs.enter("map_private", self.name)
        return self._inner.map_private(offset, count)

    def close(self) -> None:
        """Pass on; never fails, also when dead, so that clean-up code of tests can run."""
        self._inner.close()


class FaultLock:
    """A lock of a FaultFileSystem; ``release`` and ``close`` never fail."""

    def __init__(self, fs: FaultFileSystem, inner: KernelLock, name: str) -> None:
        self._fs = fs
        self._inner = inner
        self._name = name

    def try_acquire(self) -> bool:
        """Pass on."""
        self._fs.enter("try_acquire", self._name)
        return self._inner.try_acquire()

    def release(self) -> None:
        """Pass on while alive."""
        if not self._fs.dead:
            self._inner.release()

    def holder(self) -> str:
        """Pass on."""
        return self._inner.holder()

    def close(self) -> None:
        """Pass on."""
        self._inner.close()
