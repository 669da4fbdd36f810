"""A file that comes to exist whole, or not at all."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
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
        f"{path!r} exists and was left as it is. Name another file, or replace it with --force."
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
