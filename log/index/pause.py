"""Pause the cycle collector while many small, acyclic objects are made at once.

Building an index of 100,000 entries makes as many tuples and lists, and the collector would walk
all of them again and again: more than half of a recovery's time. Reference counting goes on.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def collection_paused() -> Iterator[None]:
    """Switch the collector off, and back on at the end if it was on. Any thread.

    Two pauses may overlap in two threads: the first to end switches it on early, which costs time
    and nothing else.
    """
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()
