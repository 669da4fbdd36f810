"""How many segments may be mapped at once.

A mapping holds address space and, in CPython, a duplicate of the file's descriptor, so a store of
thousands of segments must not keep them all. The longest mapped are let go first; arrays that were
handed out keep their mapping alive by themselves, and the next read maps the segment again.
"""

from __future__ import annotations

import weakref
from collections import OrderedDict
from typing import Protocol


class Mapped(Protocol):
    """Something that holds a mapping and can let go of it."""

    def release(self) -> None:
        """Forget the mapping; it is made again when needed."""


class MappingBudget:
    """At most ``limit`` mappings, first in, first out.

    Any thread, and any place in it, also a finalizer: every step is one call of a dictionary, so
    that there is no lock. It keeps nothing alive: a closed store must go, and its descriptors, when
    the last array goes.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.released = 0
        self._held: OrderedDict[int, weakref.ref[Mapped]] = OrderedDict()

    def note(self, item: Mapped) -> None:
        """Tell that *item* has just been mapped; lets the oldest go when there are too many."""
        self._held[id(item)] = weakref.ref(item)
        while len(self._held) > self.limit and self._release_oldest():
            self.released += 1

    def release_all(self) -> bool:
        """Let every mapping go, when the system has no room; tell whether there were any."""
        found = False
        while self._release_oldest():
            found = True
        return found

    def _release_oldest(self) -> bool:
        try:
            _, reference = self._held.popitem(last=False)
        except KeyError:
            return False
        item = reference()
        if item is not None:
            item.release()
        return True

    def __len__(self) -> int:
        """How many mappings are held."""
        return len(self._held)
