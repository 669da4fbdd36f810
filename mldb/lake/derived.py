"""A byte-bounded cache of what was computed of the rows of lakes: graphs, tables, samplers.

What is kept belongs to (lake, commit, settings) and never changes, so all readers share it.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Any, TypeVar

from mldb.log.ownership import OwnedLock

_T = TypeVar("_T")


class Derived:
    """A cache bounded in bytes that drops what was least recently used.

    Any thread; ``_lock`` guards everything but the making, which two threads may do at once. A call
    inside another one of the same thread, as in a signal handler, makes anew and keeps nothing.
    """

    def __init__(self, limit_bytes: int) -> None:
        self.limit_bytes = limit_bytes
        self.used_bytes = 0
        self.hits = 0
        self.misses = 0
        self.dropped = 0
        self._lock = OwnedLock("the cache of what was computed of lakes")
        self._items: OrderedDict[Hashable, tuple[Any, int]] = OrderedDict()

    def get(self, key: Hashable, make: Callable[[], _T], nbytes: Callable[[_T], int]) -> _T:
        """Return the value of *key*, made with *make* when it is absent.

        *nbytes* says what a value counts for; one larger than the limit is not kept. Raises what
        *make* raises, and keeps nothing then.
        """
        found = self.find(key)
        if found is not None:
            return found[0]  # type: ignore[no-any-return]
        value = make()
        self.put(key, value, nbytes(value))
        return value

    def find(self, key: Hashable) -> tuple[Any] | None:
        """Return the value of *key* in a tuple, or None; counted as a hit or a miss."""
        guard = self._lock.hold_unless_inside()
        if guard is None:
            return None
        with guard:
            found = self._items.get(key)
            if found is None:
                self.misses += 1
                return None
            self._items.move_to_end(key)
            self.hits += 1
            return (found[0],)

    def put(self, key: Hashable, value: Any, nbytes: int) -> None:
        """Keep *value*, unless it is larger than the limit."""
        if nbytes > self.limit_bytes:
            return
        guard = self._lock.hold_unless_inside()
        if guard is None:
            return
        with guard:
            self._items[key] = (value, nbytes)
            self._items.move_to_end(key)
            # Counted anew: few things are kept, and an interrupt leaves no wrong sum.
            used = sum(size for _, size in self._items.values())
            while used > self.limit_bytes:
                _, (_, size) = self._items.popitem(last=False)
                self.dropped += 1
                used -= size
            self.used_bytes = used

    def keys(self) -> list[Any]:
        """The keys of what is kept."""
        return list(self._items)

    def adopt(self, other: Derived) -> None:
        """Take over what *other* keeps: that of the process which this one was forked from."""
        for key, (value, nbytes) in list(other._items.items()):
            self.put(key, value, nbytes)

    def clear(self) -> None:
        """Forget everything; inside another call of the same thread, nothing."""
        guard = self._lock.hold_unless_inside()
        if guard is not None:
            with guard:
                self._items.clear()
                self.used_bytes = 0

    def stats(self) -> dict[str, int]:
        """The bound, what is used of it, and how often it served."""
        return {
            "limit_bytes": self.limit_bytes,
            "used_bytes": self.used_bytes,
            "hits": self.hits,
            "misses": self.misses,
            "dropped": self.dropped,
        }
