"""A byte-bounded cache of decoded tensors: what cannot be handed out as a view of the log.

Encoded payloads have to be unpacked to be read; the cache keeps the most recently used ones within
``limit_bytes``, as read-only buffers that every reader shares.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable

from mldb.log.ownership import OwnedLock


class DecodedCache:
    """A cache bounded in bytes that drops what was least recently used.

    Any thread; ``_lock`` guards everything but the decoding, which two threads may do at once. What
    it returns is shared by all readers. A call inside another one of the same thread, as in a
    signal handler, decodes anew and keeps nothing.
    """

    def __init__(self, limit_bytes: int) -> None:
        self.limit_bytes = limit_bytes
        self.hits = 0
        self.misses = 0
        self.used_bytes = 0
        self._lock = OwnedLock("the cache of decoded tensors")
        self._changing = False  # still set when Ctrl-C came in the middle of a change
        self._items: OrderedDict[Hashable, tuple[memoryview, int]] = OrderedDict()

    def get(self, key: Hashable, nbytes: int, decode: Callable[[], memoryview]) -> memoryview:
        """Return the value of *key*, made with *decode* when it is absent.

        *nbytes* is what the value counts for; one larger than the limit is not kept. Raises what
        *decode* raises, and keeps nothing then.
        """
        guard = self._lock.hold_unless_inside()
        if guard is None:
            return decode()
        with guard:
            found = self._items.get(key)
            if found is not None:
                self._items.move_to_end(key)
                self.hits += 1
                return found[0]
            self.misses += 1
        value = decode()
        if nbytes <= self.limit_bytes:
            guard = self._lock.hold_unless_inside()
            if guard is not None:
                with guard:
                    self._put(key, value, nbytes)
        return value

    def _put(self, key: Hashable, value: memoryview, nbytes: int) -> None:
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
        self._changing = False

    def clear(self) -> None:
        """Forget everything. Raises ReentryError inside another call of the same thread."""
        with self._lock.hold():
            self._changing = True
            self._items.clear()
            self.used_bytes = 0
            self._changing = False
