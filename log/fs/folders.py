"""The folder of a store and those above it: made so that a power loss does not undo them."""

from __future__ import annotations

import errno
import os
from typing import Final

from mldb.errors import InvalidNameError

FOLDER_FLAGS: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC

_PATH_BYTES_MAX: Final = 4000  # of the system's 4,095: files of the store have names below it
_PART_BYTES_MAX: Final = 255

# A folder that may be entered and not read, or whose file system has no fsync for folders.
_NO_FOLDER_SYNC = {
    *(errno.EACCES, errno.EPERM, errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP),
}


def make_folders(path: str) -> bool:
    """Make *path* and what is missing above it, each synced into its parent; whether any was made.

    Another process may make them at the same time; then both sync. Raises OSError.
    """
    missing: list[str] = []
    folder = path
    while not os.path.isdir(folder):
        missing.append(folder)
        parent = os.path.dirname(folder)
        if parent == folder:
            break
        folder = parent
    for folder in reversed(missing):
        try:
            os.mkdir(folder)
        except FileExistsError:
            if not os.path.isdir(folder):
                raise
        sync_folder(os.path.dirname(folder))
    return bool(missing)


def sync_folder(path: str) -> None:
    """Make the names in the folder *path* durable, by a sync of everything where it must be.

    Raises OSError.
    """
    try:
        fd = os.open(path, FOLDER_FLAGS)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)
    except OSError as error:
        if error.errno not in _NO_FOLDER_SYNC:
            raise
        os.sync()


def identity_at(path: str, *, follow: bool) -> tuple[int, int] | None:
    """Return device and inode of what stands at *path*, None when nothing does. Raises OSError."""
    try:
        found = os.stat(path, follow_symlinks=follow)
    except (FileNotFoundError, NotADirectoryError):
        return None
    return found.st_dev, found.st_ino


# --- what a path may be ---------------------------------------------------------------------------


def expanded(path: str) -> str:
    """Return *path* with its ``~`` replaced. Raises InvalidNameError when that names nobody."""
    if not path:
        raise InvalidNameError(
            "the path of a store is empty. Give the folder that it lies in, '.' for the one this "
            "program runs in. Nothing was changed."
        )
    found = os.path.expanduser(path)
    if found.startswith("~"):
        raise InvalidNameError(
            f"{path[:80]!r} begins with the home of a user who is not known here. A folder of that "
            f"name is given as './{path[:80]}', or by its absolute path. Nothing was changed."
        )
    return found


def refuse_long(path: str) -> None:
    """Raise OSError for a path that no folder can have, before the first parts of it are made."""
    size = len(os.fsencode(path))
    longest = max(len(os.fsencode(part)) for part in path.split("/"))
    if size > _PATH_BYTES_MAX or longest > _PART_BYTES_MAX:
        raise OSError(
            errno.ENAMETOOLONG,
            f"{os.strerror(errno.ENAMETOOLONG)}: {size} bytes, the longest part {longest}; a store "
            f"may have {_PATH_BYTES_MAX} and {_PART_BYTES_MAX}. Nothing was changed",
        )
