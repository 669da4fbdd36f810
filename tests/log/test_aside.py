"""Calls in a second thread: their result, their error, and no lock in the way of a handler."""

from __future__ import annotations

import _thread
import threading

import pytest

from mldb.log.aside import Aside


def test_the_call_runs_beside_its_maker_and_its_result_is_waited_for() -> None:
    go = threading.Event()
    behind = Aside(lambda: (go.wait(10), threading.get_ident()))
    go.set()
    assert behind.result()[0]
    assert behind.result()[1] != threading.get_ident()  # asked again


def test_what_the_call_raises_is_raised_to_who_asks_each_time() -> None:
    def fail() -> None:
        raise KeyError("gone")

    behind = Aside(fail)
    for _ in range(2):
        with pytest.raises(KeyError, match="gone"):
            behind.result()


def test_where_no_thread_can_start_the_call_is_made_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The interpreter starts none any more once it ends; a checkpoint is written all the same."""

    def refuse(*arguments: object) -> int:
        raise RuntimeError("can't create new thread at interpreter shutdown")

    monkeypatch.setattr(_thread, "start_new_thread", refuse)
    assert Aside(threading.get_ident).result() == threading.get_ident()


def test_a_lock_of_threading_that_this_thread_holds_does_not_matter() -> None:
    """As in a handler that interrupts a thread being started: nothing waits for it."""
    limbo = threading._active_limbo_lock  # type: ignore[attr-defined]  # what Thread.start takes
    with limbo:
        assert Aside(lambda: 7).result() == 7
