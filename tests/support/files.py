"""Whole files of a FileSystem: read, replaced, damaged."""

from __future__ import annotations

from mldb.log.fs.memory import MemoryFileSystem
from mldb.log.fs.protocol import FileSystem


def read_file(fs: FileSystem, name: str) -> bytes:
    """The content of a file."""
    file = fs.open(name, "r")
    try:
        return file.pread(file.size(), 0)
    finally:
        file.close()


def replace_file(fs: FileSystem, name: str, data: bytes) -> None:
    """Put another file in the place of one, which its mappings do not see; or make it."""
    fs.unlink(name)
    file = fs.open(name, "create")
    file.pwritev([data], 0)
    file.close()


def append_to(fs: FileSystem, name: str, data: bytes) -> None:
    """Write behind the end of a file, as a process does that dies before it is done."""
    file = fs.open(name, "rw")
    file.pwritev([data], file.size())
    file.close()


def contents_of(fs: MemoryFileSystem) -> dict[str, bytes]:
    """Every file with its content."""
    image = fs.image()
    return {name: image.contents[number] for name, number in image.files.items()}
