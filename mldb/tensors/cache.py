"""A byte-bounded cache: of decoded tensors, and of what was computed of the rows of lakes.

Encoded payloads have to be unpacked to be read, and a graph of a lake has to be computed; such a
cache keeps the most recently used ones within ``limit_bytes``, and every reader shares them.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Any, TypeVar

from mldb.log.ownership import OwnedLock

_T = TypeVar("_T")


class ByteCache:
    """A cache bounded in bytes that drops what was least recently used.

    Any thread; ``_lock`` guards everything but the making, which two threads may do at once. What
    it returns is shared by all readers. A call inside another one of the same thread, as in a
    signal handler, makes anew and keeps nothing. *what* names it in messages.
    """

    def __init__(self, limit_bytes: int, what: str = "a cache") -> None:
        self.limit_bytes = limit_bytes
        self.hits = 0
        self.misses = 0
        self.dropped = 0
        self.used_bytes = 0
        self._lock = OwnedLock(what)
        self._changing = False  # still set when Ctrl-C came in the middle of a change
        self._items: OrderedDict[Hashable, tuple[Any, int]] = OrderedDict()

    def get(self, key: Hashable, nbytes: int | Callable[[_T], int], make: Callable[[], _T]) -> _T:
        """Return the value of *key*, made with *make* when it is absent.

        *nbytes* is what the value counts for, or says it of the value; one larger than the limit is
        not kept. Raises what *make* raises, and keeps nothing then.
        """
        found = self.find(key)
        if found is not None:
            return found[0]  # type: ignore[no-any-return]
        value = make()
        self.put(key, value, nbytes if isinstance(nbytes, int) else nbytes(value))
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

    def keeps(self, nbytes: int) -> bool:
        """Whether a value of as many bytes would be kept."""
        return nbytes <= self.limit_bytes

    def put(self, key: Hashable, value: Any, nbytes: int) -> None:
        """Keep *value*, unless it is larger than the limit."""
        if not self.keeps(nbytes):
            return
        guard = self._lock.hold_unless_inside()
        if guard is not None:
            with guard:
                self._put(key, value, nbytes)

    def _put(self, key: Hashable, value: Any, nbytes: int) -> None:
        if self._changing:
            self.used_bytes = sum(size for _, size in self._items.values())
        self._changing = True
        old = self._items.pop(key, None)
        if old is not None:
            self.used_bytes -= old[1]
        self._items[key] = (value, nbytes)
        self.used_bytes += nbytes
        while self.used_bytes > self.limit_bytes:
            _, (_, size) = self._items.popitem(last=False)
            self.used_bytes -= size
            self.dropped += 1
        self._changing = False

    def keys(self) -> list[Any]:
        """The keys of what is kept."""
        return list(self._items)

    def adopt(self, other: ByteCache) -> None:
        """Take over what *other* keeps: that of the process which this one was forked from."""
        for key, (value, nbytes) in list(other._items.items()):
            self.put(key, value, nbytes)

    def clear(self) -> None:
        """Forget everything; inside another call of the same thread, nothing."""
        guard = self._lock.hold_unless_inside()
        if guard is not None:
            with guard:
                self._changing = True
                self._items.clear()
                self.used_bytes = 0
                self._changing = False

    def stats(self) -> dict[str, int]:
        """The bound, what is used of it, and how often it served."""
        return {
            "limit_bytes": self.limit_bytes,
            "used_bytes": self.used_bytes,
            "hits": self.hits,
            "misses": self.misses,
            "dropped": self.dropped,
        }
