"""One disk in memory and several doors to it: every call through a door is a place to come in."""

from __future__ import annotations

import errno
import os
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from threading import get_ident
from typing import Any

import mldb
from mldb.log.fs.crash_states import crash_states
from mldb.log.fs.memory import MemoryFileSystem
from mldb.log.fs.memory_disk import EMPTY, Image, Journal, Sync, Write
from mldb.log.fs.protocol import Buffer, File, OpenMode, translate
from tests.support.faults import FaultFile, FaultFileSystem, FaultLock
from tests.support.interference_model import Base, Record
from tests.support.interference_operations import Rules
from tests.support.interference_turns import pause_of_thread


class Door(FaultFileSystem):
    """What one process sees of a disk. ``hook`` is called at each place of the thread it is for."""

    def __init__(self, label: str, world: World) -> None:
        super().__init__(world.disk)
        self.label = label
        self.world = world
        self.hook: Callable[[str], None] | None = None
        self.thread = 0
        self.places = 0

    def visit(self, kind: str, name: str) -> None:
        """Come to a place where something else may happen."""
        if self.hook is not None and get_ident() == self.thread:
            self.places += 1
            self.hook(f"{kind} {name}")

    def enter(self, kind: str, name: str) -> None:
        self.visit(kind, name)
        super().enter(kind, name)

    def write(self, file: File, buffers: Sequence[Buffer], offset: int) -> int:
        self.visit("pwritev", file.name)
        written = super().write(file, buffers, offset)
        self.visit("after pwritev", file.name)
        return written

    def open(self, name: str, mode: OpenMode) -> DoorFile:
        self.enter("open", name)
        file = DoorFile(self, self.inner.open(name, mode))
        self.world.opened(file)
        return file

    def lock(self, name: str) -> DoorLock:
        lock = super().lock(name)
        return DoorLock(self, lock, name)

    def link(self, source: str, target: str) -> bool:
        done = super().link(source, target)
        self.visit("after link", target)
        return done

    def sync_dir(self, folder: str) -> None:
        try:
            super().sync_dir(folder)
        except mldb.MldbError:
            self.world.record.failed_syncs.append((self.world.record.tick(), self.label))
            raise
        self.visit("after sync_dir", folder)

    def pause(self, seconds: float) -> None:
        """Wait for a lock that another process has."""
        if not pause_of_thread():
            time.sleep(seconds)


class DoorFile(FaultFile):
    """A file of a Door. ``broken``: the next sync reports what another one's failed with."""

    def __init__(self, door: Door, inner: Any) -> None:
        super().__init__(door, inner)
        self.door = door
        self.inode: int = inner._inode.number
        self.broken = False

    def sync(self) -> None:
        door = self.door
        door.visit("sync", self.name)
        try:
            if self.broken:
                self.broken = False
                error = OSError(errno.EIO, os.strerror(errno.EIO))
                raise translate(error, "fdatasync", door.root, self.name) from error
            super().sync()
        except mldb.MldbError:
            door.world.sync_failed(self)
            raise
        door.visit("after sync", self.name)

    def close(self) -> None:
        self.door.visit("close", self.name)
        super().close()


class DoorLock(FaultLock):
    """A lock of a Door."""

    def __init__(self, door: Door, inner: Any, name: str) -> None:
        super().__init__(door, inner, name)
        self.door = door

    def try_acquire(self) -> bool:
        done = super().try_acquire()
        self.door.visit("after try_acquire", self._name)
        return done

    def release(self) -> None:
        self.door.visit("release", self._name)
        super().release()


@dataclass(slots=True)
class World:
    """A disk, who is on it, and what they asked for. ``loses``: a failed sync drops the pages."""

    base: Base
    image: Image
    loses: bool = False
    disk: MemoryFileSystem = field(init=False)
    record: Record = field(init=False)
    rules: Rules = field(default_factory=Rules)
    lost: set[int] = field(default_factory=set)
    """Which recorded writes never reach the disk."""
    files: list[weakref.ref[DoorFile]] = field(default_factory=list)
    failed: set[int] = field(default_factory=set)
    """The files of which a sync failed."""

    def __post_init__(self) -> None:
        self.disk = MemoryFileSystem(record=True, image=self.image)
        self.disk.clock_ns += 3_600_000_000_000
        self.record = Record(self.base)

    @property
    def journal(self) -> Journal:
        """What happened to the disk."""
        assert self.disk.journal is not None
        return self.disk.journal

    def opened(self, file: DoorFile) -> None:
        """Remember an open file; one of a file whose sync failed hears of that, too."""
        if self.loses:
            self.files.append(weakref.ref(file))
            file.broken = file.inode in self.failed

    def sync_failed(self, file: DoorFile) -> None:
        """Note a failed sync; every descriptor of the file hears of it once, as on Linux."""
        self.record.failed_syncs.append((self.record.tick(), file.door.label))
        if not self.loses:
            return
        self.failed.add(file.inode)
        operations = self.journal.operations
        for place in range(len(operations) - 1, -1, -1):
            match operations[place]:
                case Sync(inode) if inode == file.inode:
                    break
                case Write(inode) if inode == file.inode:
                    self.lost.add(place)
        for reference in self.files:
            other = reference()
            if other is not None and other is not file and other.inode == file.inode:
                other.broken = True

    def crashed(self, point: int, seed: int, limit: int) -> Iterator[MemoryFileSystem]:
        """Yield disks that a power loss after *point* operations could leave."""
        kept = [
            operation
            for place, operation in enumerate(self.journal.operations[:point])
            if place not in self.lost
        ]
        shadow = MemoryFileSystem(record=True, image=EMPTY)
        shadow.journal = Journal(self.journal.base)
        shadow.journal.operations = kept
        shadow.clock_ns = self.disk.clock_ns
        yield from crash_states(shadow, at=len(kept), seed=seed, limit=limit)
