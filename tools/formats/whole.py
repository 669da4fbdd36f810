"""A file or a folder that comes to exist whole, or not at all."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import IO, Final

from mldb.errors import InvalidValueError, MldbError, StorageFullError, StorageIOError

_FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


@contextmanager
def whole_file(path: str, *, replace: bool) -> Iterator[IO[bytes]]:
    """Yield a file to write; it gets its name when the block ends, synced, and none on an error.

    It is written beside, under a name that begins with a dot. Where the name is taken: with
    *replace* the file there goes in one step, without it InvalidValueError is raised, before and
    after the block. Raises StorageFullError, StorageIOError.
    """
    folder, base = os.path.split(os.path.abspath(path))
    if not base or os.path.isdir(path):
        raise InvalidValueError(f"{path!r} is a folder; name a file in it. Nothing was written.")
    if not replace and os.path.lexists(path):
        raise _taken(path)
    beside = os.path.join(folder, f".{base[:100]}.{os.urandom(8).hex()}.part")
    try:
        with open(beside, "xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        _name(beside, os.path.join(folder, base), path, replace=replace)
        _sync_folder(folder)
    except MldbError:
        raise
    except OSError as error:
        raise _failed(error, path) from error
    finally:
        with suppress(OSError):
            os.unlink(beside)


def _name(beside: str, target: str, path: str, *, replace: bool) -> None:
    if replace:
        os.replace(beside, target)
        return
    try:
        os.link(beside, target)
    except FileExistsError:
        raise _taken(path) from None
    except OSError:  # no hard links here; then two who write the same name at once are not told
        if os.path.lexists(target):
            raise _taken(path) from None
        os.rename(beside, target)


def _sync_folder(folder: str) -> None:
    fd = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _taken(path: str) -> InvalidValueError:
    return InvalidValueError(
        f"{path!r} exists and was left as it is. Name another, or replace it: replace=True, "
        "--force."
    )


def _failed(error: OSError, path: str) -> MldbError:
    if error.errno in _FULL:
        return StorageFullError(
            f"the disk or quota is full: {path} was not written, and nothing of it is left. Free "
            "space, or name a file on another disk.",
            errno=error.errno,
        )
    return StorageIOError(
        f"{path} was not written, and nothing of it is left: {error}", errno=error.errno
    )


@contextmanager
def whole_folder(path: str, *, replace: bool, ours: Callable[[str], bool]) -> Iterator[str]:
    """Yield a new folder to write files in; it gets its name when the block ends, all synced.

    An empty folder may be there already. With *replace* one is moved aside and removed after, if
    *ours* says so of every name in it: another file in it is never lost. Raises InvalidValueError,
    StorageFullError, StorageIOError; then no file of it is left.
    """
    target = os.path.abspath(path)
    parent, base = os.path.split(target)
    _refuse_folder(path, replace=replace, ours=ours)
    beside = os.path.join(parent, f".{base[:100]}.{os.urandom(8).hex()}.part")
    aside = beside + ".old"
    try:
        os.makedirs(parent, exist_ok=True)
        os.mkdir(beside)
        yield beside
        for name in os.listdir(beside):
            _sync_file(os.path.join(beside, name))
        _sync_folder(beside)
        _refuse_folder(path, replace=replace, ours=ours)
        if os.path.isdir(target) and os.listdir(target):
            os.rename(target, aside)
        os.rename(beside, target)
        _sync_folder(parent)
    except MldbError:
        raise
    except OSError as error:
        raise _failed(error, path) from error
    finally:
        with suppress(OSError):
            if os.path.isdir(aside) and not os.path.lexists(target):
                os.rename(aside, target)  # whatever came between the two names
        for folder in (beside, aside):
            shutil.rmtree(folder, ignore_errors=True)


def _refuse_folder(path: str, *, replace: bool, ours: Callable[[str], bool]) -> None:
    if not os.path.lexists(path):
        return
    if not os.path.isdir(path) or os.path.islink(path):
        raise InvalidValueError(
            f"{path!r} is no folder, and shards need one. Name another; nothing was written."
        )
    names = sorted(os.listdir(path))
    if names and not replace:
        raise _taken(path)
    foreign = [name for name in names if not ours(name)]
    if foreign:
        raise InvalidValueError(
            f"{path!r} holds {foreign[0]!r:.100} as well, which would be lost; it was left as it "
            "is. Name another folder, and copy the files you want."
        )


def _sync_file(path: str) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
