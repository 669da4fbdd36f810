"""How many segments may be mapped at once.

A mapping holds address space and, in CPython, a duplicate of the file's descriptor, so a store of
thousands of segments must not keep them all. The longest mapped are let go first; arrays that were
handed out keep their mapping alive by themselves, and the next read maps the segment again.
"""

from __future__ import annotations

import threading
import weakref
from collections import OrderedDict
from typing import Protocol


class Mapped(Protocol):
    """Something that holds a mapping and can let go of it."""

    def release(self) -> None:
        """Forget the mapping; it is made again when needed."""


class MappingBudget:
    """At most ``limit`` mappings, first in, first out. Any thread; ``_lock`` guards the fields.

    It keeps nothing alive: a closed store must go, and its descriptors, when the last array goes.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.released = 0
        self._held: OrderedDict[int, weakref.ref[Mapped]] = OrderedDict()
        self._lock = threading.Lock()

    def note(self, item: Mapped) -> None:
        """Tell that *item* has just been mapped; lets the oldest go when there are too many."""
        evicted: list[weakref.ref[Mapped]] = []
        with self._lock:
            self._held[id(item)] = weakref.ref(item)
            while len(self._held) > self.limit:
                evicted.append(self._held.popitem(last=False)[1])
                self.released += 1
        for old in evicted:
            held = old()
            if held is not None:
                held.release()

    def __len__(self) -> int:
        """How many mappings are held."""
        return len(self._held)
