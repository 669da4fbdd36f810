"""The store behind a part of Lightning's: opened when first used, or given open."""

from __future__ import annotations

import os
import posixpath
import threading
import weakref
from collections.abc import Hashable, Iterator
from contextlib import contextmanager
from typing import Any, Final, NamedTuple

from mldb.database import MLDatabase
from mldb.errors import InvalidNameError, InvalidTypeError, InvalidValueError


class _Shared(NamedTuple):
    """One open store of this process, and the holders that use it."""

    db: MLDatabase
    users: set[int]


_shared: Final[dict[Hashable, _Shared]] = {}
_lock: Final = threading.RLock()  # a holder may be dropped in the middle of a call of another


class StoreHolder:
    """A store by its folder, which opens when first asked for, or one that is open already.

    Those of one process with the same folder and options have one handle, so that what a logger has
    waiting is stored in front of a checkpoint; the last one closes it. A store that was given open
    is its owner's to close, and does not travel to other processes. Any thread.
    """

    def __init__(
        self, store: str | os.PathLike[str] | MLDatabase, options: dict[str, Any] | None = None
    ) -> None:
        """*options* are those of ``mldb.open``. Raises InvalidTypeError, InvalidValueError."""
        self._options = dict(options or {})
        self._given = store if isinstance(store, MLDatabase) else None
        self._key: Hashable = None
        if self._given is not None and self._options:
            raise InvalidValueError(
                f"{', '.join(self._options)}: options of a store that is open already"
            )
        self.path = self._given.path if self._given is not None else _folder_of(store)

    def get(self) -> MLDatabase:
        """Return the store, opened now if it was not yet. Raises what opening raises."""
        if self._given is not None:
            return self._given
        # A forked child opens its own.
        key = os.getpid(), self.path, tuple(sorted((k, repr(v)) for k, v in self._options.items()))
        with _lock:
            found = _shared.get(key)
            if found is None:
                found = _shared[key] = _Shared(MLDatabase(self.path, **self._options), set())
            if id(self) not in found.users:
                found.users.add(id(self))
                self._key = key
                weakref.finalize(self, _forget, key, id(self)).atexit = False
            return found.db

    @contextmanager
    def reading(self) -> Iterator[MLDatabase]:
        """Give the store for reading: one that is not open is opened so, and nothing is made."""
        if self._given is not None or self._key in _shared:
            yield self.get()
            return
        with MLDatabase(self.path, **self._options | {"mode": "r"}) as db:
            yield db

    def close(self) -> None:
        """Let go of what was opened here; the next use opens it again."""
        with _lock:
            found = _shared.get(self._key)
            if found is None or id(self) not in found.users:
                return
            found.users.discard(id(self))
            if found.users:
                return
            del _shared[self._key]
        found.db.close()

    def __getstate__(self) -> dict[str, Any]:
        """The folder and the options; a store that was given open refuses."""
        return self.__dict__ | {"_key": None}


def _forget(key: Hashable, user: int) -> None:
    """A holder was dropped without being closed; its store closes as one that was dropped does."""
    with _lock:
        found = _shared.get(key)
        if found is not None:
            found.users.discard(user)
            if not found.users:
                del _shared[key]


def _folder_of(store: object) -> str:
    """The absolute path of a store, as ``mldb.open`` takes it; whether it is one is seen there."""
    text = os.fspath(store) if isinstance(store, str | os.PathLike) else None
    if not isinstance(text, str):
        raise InvalidTypeError(
            f"the store is a {type(store).__name__}; give its folder, or an open database"
        )
    if not text or "://" in text:
        raise InvalidNameError(f"{text[:200]!r} is no folder that a store can lie in")
    return posixpath.abspath(posixpath.expanduser(text))
