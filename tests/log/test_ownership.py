"""Locks that know their owner: no thread waits for itself, Ctrl-C leaves none of them locked."""

from __future__ import annotations

import dis
import gc
import sys
import threading
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from functools import partial
from types import FrameType, SimpleNamespace
from typing import Any

import pytest

from mldb.errors import LockedError, ReentryError
from mldb.log import lock as lock_module
from mldb.log import ownership
from mldb.log.fs.memory import MemoryFileSystem
from mldb.log.lock import GATE, LOCK, CommitLock
from mldb.log.ownership import Guard, OwnedLock, held_by_me
from tests.support.threads import PATIENCE_SECONDS, in_thread

WATCHED = {ownership.__file__, lock_module.__file__}


def owned() -> OwnedLock:
    return OwnedLock("what a test guards")


def commit_lock() -> OwnedLock:
    return CommitLock(MemoryFileSystem(), 30)


@pytest.fixture(params=[owned, commit_lock])
def make(request: pytest.FixtureRequest) -> Callable[[], OwnedLock]:
    made: Callable[[], OwnedLock] = request.param
    return made


def taken_elsewhere(lock: OwnedLock) -> Guard:
    """Let a thread take the lock and end; whoever has the guard may let it go."""
    guard: Guard = in_thread(lock.hold)
    assert lock.holder is guard.key
    return guard


def is_free(lock: OwnedLock) -> bool:
    """Whether nobody holds it or waits, and the kernel's locks of a commit lock are free too."""
    if lock.slot or lock._queue or lock._claims:
        return False
    if not isinstance(lock, CommitLock):
        return True
    for name in (GATE, LOCK):
        other = lock._fs.lock(name)
        if not other.try_acquire():
            return False
        other.close()
    return True


class Waiting:
    """A thread that waits for a lock, notes that it has it, and lets it go."""

    def __init__(self, lock: OwnedLock, order: list[int], number: int = 0) -> None:
        self.lock = lock
        before = len(lock._queue)
        self.thread = threading.Thread(target=self._run, args=(order, number), daemon=True)
        self.thread.start()
        deadline = time.monotonic() + PATIENCE_SECONDS
        while len(lock._queue) == before:
            assert time.monotonic() < deadline
            time.sleep(0)

    def _run(self, order: list[int], number: int) -> None:
        with self.lock.hold():
            order.append(number)

    def join(self) -> None:
        self.thread.join(PATIENCE_SECONDS)
        assert not self.thread.is_alive(), "it waits for ever"


# --- nested calls ---------------------------------------------------------------------------------


def test_a_call_inside_one_of_its_own_thread_never_waits(make: Callable[[], OwnedLock]) -> None:
    """A handler or finalizer starts there: what writes is refused and told what to do instead."""
    lock = make()

    def nested(depth: int) -> None:
        if depth:
            nested(depth - 1)
            return
        assert lock.is_inside()
        with pytest.raises(
            ReentryError, match=r"holds .*nothing was stored.*save_on_signal"
        ) as info:
            lock.hold()
        assert lock.what in str(info.value)
        assert lock.hold_unless_inside() is None
        assert lock.try_hold() is None

    with lock.hold() as guard:
        for depth in range(4):
            nested(depth)
            assert lock.holder is guard.key, "the inner call let it go"
    assert not lock.is_inside()
    assert is_free(lock)


def test_the_lock_is_held_until_the_end_of_the_block_and_may_be_taken_again_behind_it(
    make: Callable[[], OwnedLock],
) -> None:
    lock = make()
    for _ in range(3):
        with lock.hold() as guard:
            assert lock.holder is guard.key
        assert is_free(lock)
    guard = lock.hold()
    guard.free()
    guard.free()
    assert is_free(lock)
    kept: Guard | None = lock.hold_unless_inside()
    assert kept is not None
    in_thread(kept.free)  # any thread may
    assert is_free(lock)


def test_a_guard_that_was_freed_never_frees_what_another_one_holds(
    make: Callable[[], OwnedLock],
) -> None:
    lock = make()
    old = lock.hold()
    old.free()
    with lock.hold() as guard:
        old.free()
        with old:
            pass
        del old
        assert lock.holder is guard.key
    assert is_free(lock)


def test_another_thread_is_not_inside_and_waits_as_long_as_it_may() -> None:
    lock = owned()
    with lock.hold():
        assert not in_thread(lock.is_inside)
        assert in_thread(lock.try_hold) is None
        began = time.monotonic()
        with pytest.raises(LockedError, match=r"another thread .* 0\.03 s. Nothing was stored"):
            in_thread(lock.hold, 0.03)
        assert time.monotonic() - began >= 0.03
        assert lock.is_inside()
    assert is_free(lock)


def test_a_generator_that_holds_a_lock_is_inside_only_while_it_runs() -> None:
    """Its frame is no caller while it is suspended: the lock counts as left over, and is healed."""
    lock = owned()

    def holds() -> Generator[bool, None, None]:
        with lock.hold():
            yield lock.is_inside()

    generator = holds()
    assert next(generator)
    with lock.hold_unless_inside() or pytest.fail("never asked for again"):
        assert lock.is_inside()
    generator.close()
    assert is_free(lock)


# --- who is next ----------------------------------------------------------------------------------


def test_who_waits_gets_the_lock_in_turn(make: Callable[[], OwnedLock]) -> None:
    lock = make()
    order: list[int] = []
    with lock.hold():
        waiting = [Waiting(lock, order, number) for number in range(8)]
    for thread in waiting:
        thread.join()
    assert order == list(range(8))
    assert is_free(lock)


class Noted(dict[int, Any]):
    """A slot that notes who it was passed to, and when it was empty."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Any] = []

    def __setitem__(self, place: int, key: Any) -> None:
        self.seen.append(key)
        super().__setitem__(place, key)

    def pop(self, place: int, default: Any = None) -> Any:
        """Note that it is empty now."""
        self.seen.append("empty")
        return super().pop(place, default)


def test_it_is_handed_over_and_never_free_in_between(make: Callable[[], OwnedLock]) -> None:
    """Who lets go and takes it again at once comes behind those who wait."""
    lock = make()
    lock.slot = noted = Noted()
    order: list[int] = []
    guard = lock.hold()
    waiting = [Waiting(lock, order, number) for number in range(3)]
    keys = [waiter.key for waiter in lock._queue]
    guard.free()
    for thread in waiting:
        thread.join()
    assert noted.seen == [*keys, "empty"]
    assert order == [0, 1, 2]


def test_a_tight_loop_starves_nobody(make: Callable[[], OwnedLock]) -> None:
    """One turn of the loop at most comes before the turn of who waits."""
    lock = make()
    order: list[int] = []
    guard = lock.hold()
    waiting = Waiting(lock, order, 1)
    guard.free()
    for _ in range(50):
        with lock.hold():
            order.append(0)
    waiting.join()
    assert order.index(1) == 0


def test_threads_that_hurry_are_never_in_at_once(make: Callable[[], OwnedLock]) -> None:
    lock = make()
    total = inside = 0
    failures: list[BaseException] = []

    def work() -> None:
        nonlocal total, inside
        try:
            for _ in range(200):
                with lock.hold():
                    assert inside == 0
                    inside += 1
                    seen = total
                    time.sleep(0)
                    total = seen + 1
                    inside -= 1
        except BaseException as error:  # noqa: BLE001 - shown by the main thread
            failures.append(error)

    threads = [threading.Thread(target=work, daemon=True) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(4 * PATIENCE_SECONDS)
    assert (failures, total, is_free(lock)) == ([], 1000, True)


def test_who_waits_for_a_lock_of_mine_is_known_also_by_way_of_others() -> None:
    """Whoever is about to wait for such a thread would wait for ever."""
    mine, between = owned(), owned()
    ready, done = threading.Event(), threading.Event()

    def middle() -> None:
        with between.hold():
            ready.set()
            with mine.hold():
                pass

    def last() -> None:
        with between.hold():
            pass

    def idle() -> None:
        done.wait(PATIENCE_SECONDS)

    with mine.hold():
        threads = [threading.Thread(target=act, daemon=True) for act in (middle, last, idle)]
        threads[0].start()
        assert ready.wait(PATIENCE_SECONDS)
        for thread in threads[1:]:
            thread.start()
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not (mine._queue and between._queue):
            assert time.monotonic() < deadline
            time.sleep(0)
        found = [held_by_me(thread.ident or 0) for thread in threads]
        assert found == [mine, mine, None]
        assert in_thread(held_by_me, threads[1].ident) is None, "not its own"
    done.set()
    for thread in threads:
        thread.join(PATIENCE_SECONDS)
    assert [held_by_me(thread.ident or 0) for thread in threads] == [None] * 3


# --- Ctrl-C ---------------------------------------------------------------------------------------


# Nothing is ever raised at these, and if it were, the interpreter would go on handling the error.
_UNBROKEN = {dis.opmap[name] for name in ("PUSH_EXC_INFO", "POP_EXCEPT")}


class Steps:
    """Counts the bytecodes of the locks' modules; does things at some, raises at one.

    An exception of a trace function ends the tracing, as it should here: clean-up runs in peace.
    """

    def __init__(self, raise_at: int, acts: dict[int, Callable[[], object]] | None = None) -> None:
        self.count = 0
        self.raised = False
        self._raise_at = raise_at
        self._acts = acts or {}

    def _trace(self, frame: FrameType, event: str, argument: object) -> Any:
        if frame.f_code.co_filename not in WATCHED or frame.f_code.co_name == "__del__":
            return None
        frame.f_trace_opcodes = True
        frame.f_trace_lines = False
        if event == "opcode" and frame.f_code.co_code[frame.f_lasti] not in _UNBROKEN:
            self.count += 1
            if self.count in self._acts:
                self._acts[self.count]()
            if self.count == self._raise_at:
                self.raised = True
                raise KeyboardInterrupt
        return self._trace

    @contextmanager
    def traced(self) -> Iterator[None]:
        """Trace the block; what is raised here ends it."""
        before = sys.gettrace()
        sys.settrace(self._trace)
        try:
            yield
        except KeyboardInterrupt:
            assert self.raised, "a real Ctrl-C"
        finally:
            sys.settrace(before)


@contextmanager
def quick_looks(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with monkeypatch.context() as patch:
        patch.setattr(ownership, "_LOOK_SECONDS", 0.001)
        yield


def test_ctrl_c_at_any_bytecode_of_taking_and_letting_go_leaves_nothing_locked(
    make: Callable[[], OwnedLock],
) -> None:
    for number in range(1, 10_000):
        lock = make()
        steps = Steps(number)
        with steps.traced(), lock.hold():
            pass
        assert not lock.is_inside(), number
        assert in_thread(lock.try_hold) is not None, number

        assert is_free(lock), number
        if not steps.raised:
            break
    assert number > 50


def test_ctrl_c_while_letting_go_passes_the_lock_to_those_who_wait(
    make: Callable[[], OwnedLock],
) -> None:
    """At every bytecode, two threads in the queue: both get it, and nobody with anybody else."""
    for number in range(1, 10_000):
        lock = make()
        order: list[int] = []
        steps = Steps(number)
        guard = lock.hold()
        waiting = [Waiting(lock, order, place) for place in range(2)]
        with steps.traced(), guard:
            pass
        raised = steps.raised
        del guard, steps
        for thread in waiting:
            thread.join()
        assert sorted(order) == [0, 1], number
        assert not lock.is_inside()
        with lock.hold():
            pass
        assert is_free(lock), number
        if not raised:
            break
    assert number > 20


@pytest.mark.parametrize("later", [0, 1, 2, 3, 5, 8, 13, 21, 34, 55, 10_000])
def test_who_is_interrupted_while_it_waits_does_not_keep_the_lock(
    make: Callable[[], OwnedLock], later: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The holder lets go at any bytecode of the wait, and Ctrl-C comes *later* bytecodes behind.

    The wait goes on until then, so that the later ones are in its second and third turn.
    """
    reached, me = 0, threading.get_ident()
    with quick_looks(monkeypatch):
        for number in range(1, 200):
            lock = make()
            order: list[int] = []
            held = taken_elsewhere(lock)

            def let_go(held: Guard = held) -> None:
                in_thread(held.free)

            steps = Steps(number + later, {number: let_go})
            with steps.traced(), lock.hold():
                order.append(0)
            held.free()
            reached += steps.raised
            assert steps.count >= number
            assert in_thread(taken_and_not_awaited, lock, me), number
            with lock.hold():
                pass
            assert is_free(lock), number
    assert reached > 100 or later > 50


def taken_and_not_awaited(lock: OwnedLock, thread: int) -> bool:
    """Take the lock, and see that *thread* is not taken for one that waits for it."""
    with lock.hold(PATIENCE_SECONDS):
        return held_by_me(thread) is None


def test_a_clean_up_that_is_interrupted_is_ended_by_the_next_call_of_the_thread(
    make: Callable[[], OwnedLock],
) -> None:
    """Ctrl-C twice: the second at any bytecode of freeing what the first one left."""
    for number in range(1, 10_000):
        lock = make()
        order: list[int] = []
        guard = left_over(lock)
        key = guard.key
        waiting = Waiting(lock, order)
        steps = Steps(number)
        with steps.traced():
            lock.recover(key)
        guard.key = ownership._FREE  # as after its end
        with lock.hold():
            pass
        waiting.join()
        assert order == [0], number
        # A claim that stays is that of this very key: nobody's left-over is ever taken for it.
        assert [place for place in lock._claims if place != id(key)] == []
        assert [kept for _, kept in lock._claims.values() if kept is not key] == []
        lock._claims.clear()
        assert is_free(lock), number
        if not steps.raised:
            break
    assert number > 20


def left_over(lock: OwnedLock) -> Guard:
    """What a call of this thread holds that is no more."""

    def call() -> Guard:
        return lock.hold()

    return call()


# --- what an interrupted call left ----------------------------------------------------------------


def interrupted(lock: OwnedLock) -> KeyboardInterrupt:
    """Ctrl-C right behind the step that took the lock; return it with its traceback."""
    for number in range(1, 1000):
        steps = Steps(number)
        before = sys.gettrace()
        sys.settrace(steps._trace)
        try:
            lock.hold()
        except KeyboardInterrupt as error:
            sys.settrace(before)
            if lock.slot:
                return error
        finally:
            sys.settrace(before)
    raise AssertionError("it was never taken when Ctrl-C came")


def test_what_a_traceback_still_holds_is_free_for_its_own_thread_at_once(
    make: Callable[[], OwnedLock],
) -> None:
    lock = make()
    error = interrupted(lock)
    assert lock.slot, "nothing to heal"
    with lock.hold():
        assert lock.is_inside()
    del error
    assert is_free(lock)


def test_a_traceback_that_is_dropped_frees_the_lock_for_those_who_wait(
    make: Callable[[], OwnedLock],
) -> None:
    lock = make()
    error = interrupted(lock)
    order: list[int] = []
    waiting = Waiting(lock, order)
    time.sleep(0.01)
    assert order == []
    del error
    waiting.join()
    assert order == [0]
    assert is_free(lock)


def test_the_collector_frees_it_whichever_thread_it_runs_in(make: Callable[[], OwnedLock]) -> None:
    """An error that knows itself by way of its frame is a ring: no count drops to zero."""
    gc.collect()
    gc.disable()
    try:
        lock = make()
        error: Any = interrupted(lock)
        error.ring = error
        order: list[int] = []
        waiting = Waiting(lock, order)
        del error
        time.sleep(0.01)
        assert order == []
        in_thread(gc.collect)
        waiting.join()
        assert is_free(lock)
    finally:
        gc.enable()


# --- the end of the time --------------------------------------------------------------------------


def test_who_gets_the_lock_when_the_time_is_over_takes_it_or_passes_it_on(
    make: Callable[[], OwnedLock], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The holder lets go between the last look and the error, which is kept: as a future does."""
    for place in range(1, 12):
        lock = make()
        held = taken_elsewhere(lock)
        times = Times(partial(in_thread, held.free), place)
        with monkeypatch.context() as patch:
            patch.setattr(ownership, "time", SimpleNamespace(monotonic=times))
            if isinstance(lock, CommitLock):
                lock.timeout = 5
            kept: BaseException | None = None
            try:
                lock.hold(5).free()
            except LockedError as error:
                kept = error
        held.free()
        assert in_thread(lock.hold, 5) is not None, place
        with lock.hold():
            pass
        assert is_free(lock), place
        del kept


class Times:
    """A clock that goes on by two seconds; something happens when it is asked the n-th time."""

    def __init__(self, act: Callable[[], object], number: int) -> None:
        self.now = 0.0
        self.left = number
        self.act = act

    def __call__(self) -> float:
        self.left -= 1
        if self.left == 0:
            self.act()
        self.now += 2
        return self.now
