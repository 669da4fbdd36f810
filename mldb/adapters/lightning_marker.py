"""Marker files: what lies where Lightning expects a checkpoint, and names the commit that has it.

Lightning finds checkpoints by paths: it lists folders for ``last``, asks whether a file is there,
links one path to another. So a small text file stands at each path. It names a commit of the store
and has no path in it, so whoever puts one there can make a store be read, and nothing else.
"""

from __future__ import annotations

import json
import os
import posixpath
import uuid
from datetime import datetime
from typing import Any, Final, NamedTuple

from mldb.errors import (
    FormatVersionError,
    InvalidNameError,
    InvalidTypeError,
    MissingError,
    StorageIOError,
)
from mldb.history.checkpoints import Checkpoint
from mldb.log.checksum import digest128
from mldb.log.fs.posix import OsFileSystem
from mldb.names import MAX_NAME_BYTES, check_name, escape_key

SUFFIX: Final = ".ckpt"
KEPT_BY: Final = "lightning/"
"""In front of the name of a checkpoint: the tag that keeps it."""

MARKER_BYTES_MAX: Final = 4096
_KIND: Final = "a Lightning checkpoint, in a store beside it"
_VERSION: Final = 1
_LSN_MAX: Final = (1 << 63) - 1
_NAME_MAX: Final = MAX_NAME_BYTES - len(KEPT_BY)


class Marker(NamedTuple):
    """What a marker file says: the name, commit, epoch and time of one checkpoint."""

    name: str
    lsn: int
    epoch: int
    time: str

    @classmethod
    def of(cls, checkpoint: Checkpoint) -> Marker:
        """The marker of a stored checkpoint."""
        time = checkpoint.time.isoformat()
        return cls(checkpoint.name, int(checkpoint.lsn), checkpoint.epoch, time)

    def fits(self, checkpoint: Checkpoint) -> bool:
        """Whether it is the marker of *checkpoint*; another store has none with the same time."""
        return self == Marker.of(checkpoint)


def local_path(path: str | os.PathLike[str]) -> str:
    """Return the absolute path of a checkpoint. Raises InvalidTypeError, InvalidNameError."""
    try:
        text = os.fspath(path)
    except TypeError as error:
        raise InvalidTypeError(f"{path!r:.200} is no path of a checkpoint: {error}") from None
    if not isinstance(text, str):
        raise InvalidTypeError(f"{path!r:.200} is a bytes path; give a str or Path")
    text = text.removeprefix("file://")
    if "://" in text:
        raise InvalidNameError(
            f"{text[:200]!r} is no path of this machine. A store lies on a disk: give "
            "ModelCheckpoint a local dirpath. Nothing was stored."
        )
    if not text or "\0" in text:
        raise InvalidNameError(f"{text[:200]!r} is no path of a checkpoint")
    return posixpath.abspath(text)


def checkpoint_name(path: str, root: str) -> str:
    """Return the name in the store of the checkpoint at *path*: its way from *root*, no suffix.

    Outside of *root* it is the whole path. Both are absolute. Two paths have two names.
    """
    inside = root.rstrip("/") + "/"
    way = path.removeprefix(inside) if path.startswith(inside) else path.removeprefix("/")
    name = "/".join(escape_key(part) for part in way.removesuffix(SUFFIX).split("/"))
    size = len(name.encode())
    if size > _NAME_MAX:
        digest = digest128(name.encode()).hex()
        name = f"{digest}/{escape_key(posixpath.basename(path).removesuffix(SUFFIX))[-80:]}"
    check_name(name)
    return name


def write_marker(path: str, marker: Marker) -> None:
    """Put a marker at *path*, in one durable step; what was there is replaced.

    Raises StorageFullError, StorageIOError, ReadOnlyError.
    """
    text = json.dumps({"mldb": _KIND, "version": _VERSION, **marker._asdict()}, indent=1) + "\n"
    folder, name = posixpath.split(path)
    files = OsFileSystem(OsFileSystem.prepare_root(folder, create=True))
    passing = f".{uuid.uuid4().hex}.mldb"
    file = files.open(passing, "create")
    try:
        try:
            file.pwritev([text.encode()], 0)
            file.sync()
        finally:
            file.close()
        files.rename(passing, name)
    except BaseException:
        files.unlink(passing)
        raise
    files.sync_dir("")


def read_marker(path: str) -> Marker:
    """Return the marker at *path*, through links that were put there.

    Raises MissingError where nothing is, FormatVersionError for what is no marker or a newer one.
    A file of ``torch.save`` is none: it is a pickle, and nothing of it is read.
    """
    folder, name = posixpath.split(posixpath.realpath(path))
    files = OsFileSystem(folder)
    if not files.exists(name):
        raise MissingError(f"there is no checkpoint at {path}")
    try:
        file = files.open(name, "r")
    except StorageIOError as error:
        raise FormatVersionError(f"{path} is no checkpoint of mldb: {error}") from error
    try:
        data = file.pread(MARKER_BYTES_MAX + 1, 0)
    finally:
        file.close()
    return _parsed(path, data)


def remove_marker(path: str) -> bool:
    """Remove the marker or link at *path*; whether a marker was there itself.

    Raises FormatVersionError for what is no marker; then nothing was removed.
    """
    folder, name = posixpath.split(path)
    files = OsFileSystem(folder)
    if files.look(name) is None:
        return False
    is_link = posixpath.islink(path)
    if not is_link:
        read_marker(path)
    files.unlink(name)
    files.sync_dir("")
    return not is_link


def _parsed(path: str, data: bytes) -> Marker:
    if len(data) > MARKER_BYTES_MAX:
        raise _no_marker(path, f"more than {MARKER_BYTES_MAX} bytes")
    try:
        fields = json.loads(data)
    except (ValueError, RecursionError):
        raise _no_marker(path, "no JSON") from None
    if not isinstance(fields, dict) or fields.get("mldb") != _KIND:
        raise _no_marker(path, "it does not say so")
    number = fields.get("version")
    if type(number) is int and number > _VERSION:
        raise FormatVersionError(
            f"{path} is a marker of version {number}; this mldb reads up to {_VERSION}. Use a newer"
            " mldb, or load the checkpoint from its store by name"
        )
    if number != _VERSION:
        raise _no_marker(path, f"version {number!r:.40}")
    return _checked(path, fields)


def _checked(path: str, fields: dict[str, Any]) -> Marker:
    name, lsn, epoch, time = (fields.get(field) for field in Marker._fields)
    try:
        check_name(name)  # type: ignore[arg-type]
        datetime.fromisoformat(time)  # type: ignore[arg-type]
    except (ValueError, TypeError):
        raise _no_marker(path, "its name or time is none") from None
    for number, least in ((lsn, 1), (epoch, 0)):
        if type(number) is not int or not least <= number <= _LSN_MAX:
            raise _no_marker(path, f"it has the number {number!r:.40}")
    return Marker(name, lsn, epoch, time)  # type: ignore[arg-type]


def _no_marker(path: str, why: str) -> FormatVersionError:
    return FormatVersionError(
        f"{path} is no checkpoint of mldb ({why}). If torch.save wrote it, it is a pickle, which "
        "mldb does not read: load it without this CheckpointIO, or bring it in with "
        "mldb.import_file. Nothing was changed."
    )
