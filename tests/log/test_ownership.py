"""Locks that know their owner: who waits for whom."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import pytest

from mldb.log.ownership import OwnedLock, held_by_me


@contextmanager
def waiting(lock: OwnedLock, holding: OwnedLock | None = None) -> Iterator[int]:
    """A thread that waits for *lock*, and holds another meanwhile."""
    ready = threading.Event()

    def work() -> None:
        with ExitStack() as stack:
            if holding is not None:
                stack.enter_context(holding.hold())
            ready.set()
            with lock.hold():
                pass

    thread = threading.Thread(target=work)
    thread.start()
    assert ready.wait(10)
    assert thread.ident is not None
    yield thread.ident
    thread.join(10)
    assert not thread.is_alive()


def soon(found: Callable[[], OwnedLock | None], lock: OwnedLock) -> None:
    """A thread that is ready waits a moment later."""
    deadline = time.monotonic() + 10
    while found() is not lock:
        assert time.monotonic() < deadline
        time.sleep(0.001)


def test_a_thread_that_waits_for_ours_is_found_out_through_others() -> None:
    ours, between, other = OwnedLock("ours"), OwnedLock("between"), OwnedLock("other")
    with ExitStack() as stack:
        guard = stack.enter_context(ours.hold())
        first = stack.enter_context(waiting(ours, holding=between))
        soon(lambda: held_by_me(first), ours)
        second = stack.enter_context(waiting(between, holding=other))
        soon(lambda: held_by_me(second), ours)
        third = stack.enter_context(waiting(other))
        soon(lambda: held_by_me(third), ours)
        guard.free()
        for thread in (first, second, third):
            assert held_by_me(thread) is None


def test_a_thread_that_waits_for_somebody_else_does_not_count() -> None:
    lock, release = OwnedLock("theirs"), threading.Event()

    def hold() -> None:
        with lock.hold():
            assert release.wait(10)

    holder = threading.Thread(target=hold)
    holder.start()
    while lock.holder is None:
        time.sleep(0.001)
    with waiting(lock) as thread:
        time.sleep(0.02)
        assert held_by_me(thread) is None
        assert holder.ident is not None
        assert held_by_me(holder.ident) is None
        release.set()
    holder.join()


def test_a_left_over_of_ours_is_freed_instead() -> None:
    """Ctrl-C ended the call that held it, and somebody keeps the traceback."""
    lock = OwnedLock("ours")

    def interrupted() -> None:
        guard = lock.hold()
        if guard is not None:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert not lock.slot  # with its frame went what it held
    try:
        interrupted()
    except KeyboardInterrupt as kept:
        assert lock.slot
        with waiting(lock) as thread:
            time.sleep(0.01)
            assert held_by_me(thread) is None
        assert kept.__traceback__ is not None
