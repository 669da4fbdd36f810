"""The exception tree, grouped by what a caller can do about the failure.

::

    MldbError
    ├── StorageError                 the machine or the disk
    │   ├── CorruptError             stored bytes are damaged; .file .offset .key
    │   ├── StorageFullError         no space; nothing was stored; retry after freeing space
    │   ├── StorageIOError           the OS refused; .errno, __cause__ is the OSError
    │   │   └── StoreMovedError      the folder was moved, replaced or deleted under the handle
    │   └── FormatVersionError       not an mldb store, or one written by a newer mldb
    ├── UsageError                   the call cannot be right, whatever the disk says
    │   ├── ClosedError              used after close() or in a forked child
    │   ├── ReentryError             a write inside a write of the same thread
    │   ├── ReadOnlyError            a write on a read-only handle
    │   ├── LimitError               a size, count or number beyond a limit   (ValueError)
    │   ├── InvalidNameError         a name or path that is not allowed       (ValueError)
    │   ├── InvalidValueError        a value of the wrong range               (ValueError)
    │   ├── InvalidTypeError         a value of the wrong type                (TypeError)
    │   ├── EpochOrderError          an epoch lower than the head's           (ValueError)
    │   ├── QueryError               a query that cannot be understood        (ValueError)
    │   └── GpuUnavailableError      the device asked for is not there
    ├── MissingError                 asked for something that is not there    (KeyError)
    │   ├── TensorNotFoundError
    │   └── VersionGoneError         pruned by retention; names the nearest kept commits
    └── RetryableError               try again
        ├── ConflictError            another commit changed what this transaction read
        └── LockedError              another process held the commit lock for too long

A message says what happened, where, what is still safe, and what to do next.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable


class MldbError(Exception):
    """Base of every error raised by mldb."""

    retryable: bool = False
    failed_sync: bool = False
    """An fsync failed. What it was about may be lost, whatever a later one says."""


class StorageError(MldbError):
    """The stored bytes or the operating system failed."""


class CorruptError(StorageError):
    """Stored bytes are damaged.

    ``file`` is relative to the store, ``offset`` in bytes; ``key`` is the affected name when known.
    """

    def __init__(
        self,
        message: str,
        *,
        file: str | None = None,
        offset: int | None = None,
        key: str | None = None,
    ) -> None:
        place = (
            ""
            if file is None
            else f" [file {file}" + ("" if offset is None else f", offset {offset}") + "]"
        )
        super().__init__(message + place)
        self.file = file
        self.offset = offset
        self.key = key


class StorageFullError(StorageError):
    """The disk or quota is full. The commit was not stored; reads still work."""

    def __init__(self, message: str, *, errno: int | None = None) -> None:
        super().__init__(message)
        self.errno = errno


class StorageIOError(StorageError):
    """The operating system refused or failed a call.

    ``errno`` is its code, ``__cause__`` the OSError.
    """

    def __init__(self, message: str, *, errno: int | None = None) -> None:
        super().__init__(message)
        self.errno = errno


class StoreMovedError(StorageIOError):
    """The folder at the store's path is no longer the one that was opened.

    It was renamed, deleted, or another one stands in its place. Nothing was written to what stands
    there now; what was read before stays readable.
    """


class FormatVersionError(StorageError):
    """The folder is no mldb store, or was written by a newer version of mldb."""


class UsageError(MldbError):
    """The call cannot succeed as made."""


class ClosedError(UsageError):
    """The handle was closed, or belongs to the parent of this forked process."""


class ReentryError(UsageError):
    """A write was begun inside a write of the same thread.

    That happens in a signal handler, a finalizer or a callback. Nothing was stored by the inner
    call; the outer one goes on. ``db.save_on_signal`` is the way to save when a signal comes.
    """


class ReadOnlyError(UsageError):
    """A write on a store opened with ``mode="r"`` or on a read-only file system."""


class LimitError(UsageError, ValueError):
    """A size, count or number is beyond a documented limit; checked before allocating anything."""


class InvalidNameError(UsageError, ValueError):
    """A tensor, tag or checkpoint name, or a store path, that is not allowed."""


class InvalidValueError(UsageError, ValueError):
    """An argument has the right type and a value that cannot be used."""


class InvalidTypeError(UsageError, TypeError):
    """An argument has a type that mldb does not store or accept."""


class EpochOrderError(UsageError, ValueError):
    """The epoch is lower than the epoch of the head of this lineage."""


class QueryError(UsageError, ValueError):
    """A query that cannot be parsed or is not allowed."""


class GpuUnavailableError(UsageError):
    """The device that was asked for is not available."""


class MissingError(MldbError, KeyError):
    """Something asked for by name or time is not there."""

    def __str__(self) -> str:
        # KeyError prints repr(args[0]); a message must stay readable.
        return str(self.args[0]) if self.args else ""


class TensorNotFoundError(MissingError):
    """No tensor of this name exists at this commit.

    *suggest* is called by the first who reads the message, and what it returns is the message's
    end. It does not raise. Copies and pickles have the whole message.
    """

    def __init__(self, *args: object, suggest: Callable[[], str] | None = None) -> None:
        super().__init__(*args)
        self._suggest = None if suggest is None else (args, suggest)

    def __str__(self) -> str:
        suggested = self._suggest
        if suggested is not None:  # two threads may both do it: what they set is the same
            (message, *rest), suggest = suggested
            self.args = (f"{message}{suggest()}", *rest)
            self._suggest = None  # and with it the snapshot that was asked
        return super().__str__()

    def __reduce__(self) -> tuple[type, tuple[object, ...], dict[str, object]]:
        """Travel with the message alone."""
        str(self)
        return type(self), self.args, {**self.__dict__}


class VersionGoneError(MissingError):
    """The commit existed and was pruned by retention.

    ``below`` and ``above`` are the nearest kept commits, None where there is none.
    """

    def __init__(self, message: str, *, below: int | None = None, above: int | None = None) -> None:
        super().__init__(message)
        self.below = below
        self.above = above


class RetryableError(MldbError):
    """The same call may succeed when made again."""

    retryable = True


class ConflictError(RetryableError):
    """A name that the transaction read was changed by another commit.

    ``names`` lists up to eight of them.
    """

    def __init__(self, message: str, *, names: tuple[str, ...] = ()) -> None:
        super().__init__(message)
        self.names = names


class LockedError(RetryableError):
    """The commit lock was held by another process for longer than ``lock_timeout``."""
