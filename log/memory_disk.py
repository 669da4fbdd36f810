"""What a disk in memory holds, and the journal of what was done to it.

Shared by ``mldb.log.memory_fs``, which keeps it, and ``mldb.log.crash_states``, which derives from a
journal the disks that a crash could leave behind.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping
from typing import NamedTuple, TypeAlias

FOLDER = 0  # stands for "a folder" where a recorded name could also lead to a file's inode number


class Write(NamedTuple):
    """One gathered write."""

    inode: int
    offset: int
    data: bytes


class Sync(NamedTuple):
    """A completed sync of one file."""

    inode: int


class Names(NamedTuple):
    """One change of names: each path leads to an inode number, to a FOLDER, or (None) nowhere."""

    call: str
    effects: tuple[tuple[str, int | None], ...]


class SyncFolder(NamedTuple):
    """A completed sync of the names in one folder."""

    folder: str


Operation: TypeAlias = Write | Sync | Names | SyncFolder


class Image(NamedTuple):
    """A whole disk: path to inode number, folder to the names in it, inode number to content."""

    files: Mapping[str, int]
    folders: Mapping[str, frozenset[str]]
    contents: Mapping[int, bytes]


EMPTY = Image({}, {"": frozenset()}, {})


class Journal:
    """What happened to a disk since *base*. ``mark_positions[i]`` operations came before mark i."""

    __slots__ = ("base", "mark_positions", "operations")

    def __init__(self, base: Image) -> None:
        self.base = base
        self.operations: list[Operation] = []
        self.mark_positions: list[int] = []


class Crash(NamedTuple):
    """Where a crash state comes from."""

    operations: int
    marks: tuple[object, ...]
    describe: Callable[[], str]


class _Pages(bytearray):
    """The bytes of one file, with room to grow. Zero beyond the length of the file."""

    __slots__ = ("__weakref__",)


class Inode:
    """One file without its names; the file system that has it locks around every call.

    ``data`` stays the bytes it was made from, shared with other states, until the first write.
    """

    __slots__ = ("data", "length", "number", "outgrown")

    def __init__(self, number: int, data: bytes) -> None:
        self.number = number
        self.data: bytes | _Pages = data
        self.length = len(data)
        self.outgrown: list[weakref.ref[_Pages]] = []

    def read(self, count: int, offset: int) -> bytes:
        """Return up to *count* bytes from *offset*."""
        return bytes(memoryview(self.data)[offset : min(offset + count, self.length)])

    def write(self, data: bytes, offset: int) -> None:
        """Write *data* at *offset*; a gap before it reads as zeros."""
        end = offset + len(data)
        pages = self.data
        if isinstance(pages, bytes) or end > len(pages):
            pages = self._grow(max(end, self.length))
        pages[offset:end] = data
        self.length = max(self.length, end)
        # A mapping is shared: views made before the pages moved must see this write as well.
        for reference in self.outgrown:
            old = reference()
            if old is not None and offset < len(old):
                part = data[: len(old) - offset]
                old[offset : offset + len(part)] = part

    def _grow(self, length: int) -> _Pages:
        """Move to pages with room for *length* bytes and half as many again."""
        pages = _Pages(length + length // 2)
        pages[: self.length] = memoryview(self.data)[: self.length]
        if isinstance(self.data, _Pages):
            self.outgrown.append(weakref.ref(self.data))
        self.data = pages
        self.outgrown = [reference for reference in self.outgrown if reference() is not None]
        return pages

    def view(self, count: int) -> memoryview:
        """Return a read-only view of the first *count* bytes that sees every later write."""
        pages = self._grow(self.length) if isinstance(self.data, bytes) else self.data
        return memoryview(pages)[:count].toreadonly()
