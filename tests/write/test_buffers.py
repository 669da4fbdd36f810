"""Memory that comes back: bounded, and never in two hands at once."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable
from types import CodeType, FrameType
from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

import mldb
from mldb.log.fs.memory import MemoryFileSystem
from mldb.write.buffers import BufferPool

STEPS = st.lists(st.tuples(st.booleans(), st.integers(0, 3 << 20)), max_size=40)


@given(STEPS, st.integers(0, 4 << 20))
def test_no_byte_is_lent_twice_and_what_is_kept_is_bounded(
    steps: list[tuple[bool, int]], keep_bytes: int
) -> None:
    pool = BufferPool(keep_bytes)
    lent: list[tuple[memoryview, int]] = []
    for number, (take, count) in enumerate(steps):
        if take or not lent:
            part = pool.take(count)
            assert len(part) == count
            part[:] = bytes([number]) * count
            lent.append((part, number))
        else:
            pool.give(lent.pop(count % len(lent))[0])
        assert 0 <= pool.kept_bytes <= keep_bytes
        for part, value in lent:
            assert set(bytes(part[:64])) | set(bytes(part[-64:])) <= {value}


def test_memory_is_used_again() -> None:
    pool = BufferPool()
    first = pool.take(100_000)
    whole = first.obj
    pool.give(first)
    assert pool.take(130_000).obj is whole
    assert pool.kept_bytes == 0


def at_each_line_of(codes: set[CodeType], call: Callable[[], None]) -> Any:
    """Trace these functions: before each of their lines a call is made, and none inside it."""
    busy = False

    def trace(frame: FrameType, event: str, _: object) -> Any:
        nonlocal busy
        if frame.f_code not in codes:
            return None
        if event == "line" and not busy:
            busy = True
            call()
            busy = False
        return trace

    return trace


def test_a_call_inside_another_one_never_gets_the_same_memory() -> None:
    """A signal handler stores something in the middle of a take or a give of its own thread."""
    pool = BufferPool()
    lent: list[memoryview] = []

    def inside() -> None:
        part = pool.take(100_000)
        assert all(part.obj is not other.obj for other in lent)
        pool.give(part)
        taken = pool.take(100_000)
        assert all(taken.obj is not other.obj for other in lent)
        lent.append(taken)
        if len(lent) > 3:
            pool.give(lent.pop(0))

    codes = {BufferPool.take.__code__, BufferPool.give.__code__}
    before = sys.gettrace()
    sys.settrace(at_each_line_of(codes, inside))
    try:
        for _ in range(10):
            part = pool.take(100_000)
            assert all(part.obj is not other.obj for other in lent)
            lent.append(part)
            pool.give(lent.pop())
    finally:
        sys.settrace(before)
    assert len(lent) == 3


def test_threads_never_get_the_same_memory() -> None:
    pool = BufferPool()
    wrong: list[int] = []

    def work(number: int) -> None:
        for turn in range(300):
            part = pool.take(64 << 10)
            part[:8] = mine = bytes([number, turn % 256]) * 4
            time.sleep(0)
            if part[:8] != mine:
                wrong.append(number)
            pool.give(part)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert pool.kept_bytes <= 4 * (64 << 10)


def test_a_value_read_back_in_its_transaction_outlives_the_next_one() -> None:
    """Read-your-writes must copy: the memory behind it belongs to whoever writes next."""
    db = mldb.MLDatabase.on(MemoryFileSystem())
    sizes = (10, 100_000)
    read = []
    with db.transaction() as txn:
        for size in sizes:
            txn.store_tensor(f"x{size}", np.full(size, 1.0))
            read.append(txn[f"x{size}"])
    for _ in range(2):
        with db.transaction() as txn:
            for size in sizes:
                txn.store_tensor(f"y{size}", np.full(size, 2.0))
    assert all((array == 1).all() for array in read)
    for size in sizes:
        assert (db[f"x{size}"] == 1).all()
        assert (db[f"y{size}"] == 2).all()


def test_memory_comes_back_after_commit_rollback_and_overwriting() -> None:
    db = mldb.MLDatabase.on(MemoryFileSystem())
    pool = db._buffers
    with db.transaction() as txn:
        for _ in range(50):
            txn.store_tensor("x", np.ones(100_000))  # 1 MiB of borrowed memory, not 50
        txn.store_tensor("y", np.ones(10))
    assert pool.kept_bytes == (1 << 20) + (1 << 20)
    try:
        with db.transaction() as txn:
            txn.store_tensor("x", np.zeros(100_000))
            assert pool.kept_bytes == 1 << 20
            raise RuntimeError
    except RuntimeError:
        pass
    assert pool.kept_bytes == 2 << 20
    assert (db["x"] == 1).all()
