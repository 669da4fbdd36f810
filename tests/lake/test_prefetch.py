"""Batches made ahead: in order, never too many, errors where they belong, no thread left."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Iterator

import pytest

from mldb.lake.stream.pool import BatchPool
from mldb.lake.stream.prefetch import prefetch


def threads() -> int:
    return sum(thread.name == "mldb-stream" for thread in threading.enumerate())


@pytest.mark.parametrize("depth", [0, 1, 3, 50])
def test_results_come_in_order(depth: int) -> None:
    assert list(prefetch((n * n for n in range(40)), depth)) == [n * n for n in range(40)]
    assert threads() == 0


@pytest.mark.parametrize("depth", [0, 2])
def test_an_error_comes_where_its_batch_would(depth: int) -> None:
    def make() -> Iterator[int]:
        yield from range(3)
        raise RuntimeError("job 3")

    got: list[int] = []
    with pytest.raises(RuntimeError, match="job 3"):
        got.extend(prefetch(make(), depth))
    assert got == [0, 1, 2]
    assert threads() == 0


def test_no_more_is_made_than_may_be() -> None:
    made: list[int] = []

    def make() -> Iterator[int]:
        for number in itertools.count():
            made.append(number)
            yield number

    batches = prefetch(make(), 3)
    assert next(batches) == 0
    time.sleep(0.05)
    assert made == [0, 1, 2]  # the one that was handed out and two ahead
    next(batches)
    time.sleep(0.05)
    assert made == [0, 1, 2, 3]
    batches.close()
    assert len(made) == 4
    assert threads() == 0


def test_memory_is_used_again_when_nobody_holds_it() -> None:
    pool = BatchPool((4, 2))
    kept = [pool.take() for _ in range(3)]
    assert pool.made == 3
    assert len({id(array) for array in kept}) == 3
    view = kept[1][1:]
    kept.clear()
    again = [pool.take() for _ in range(2)]
    assert pool.made == 3
    assert not any(array is view.base for array in again)  # the view still holds that one


def test_a_pool_finds_what_was_dropped_and_nothing_else() -> None:
    """Whatever a call of this Python holds of its own."""
    assert BatchPool.free_count > 0
    pool = BatchPool((4, 2))
    first = pool.take()
    assert pool.take() is not first
    place = first.ctypes.data
    del first
    assert pool.take().ctypes.data == place
    assert pool.made == 2


def test_a_tensor_holds_its_memory() -> None:
    torch = pytest.importorskip("torch")
    pool = BatchPool((4, 2))
    tensor = torch.from_numpy(pool.take())[1:]
    other = pool.take()
    assert other.ctypes.data != tensor.data_ptr() - 8
    assert pool.made == 2
    address = tensor.data_ptr() - 8
    del tensor
    del other
    assert pool.take().ctypes.data == address


def test_the_first_batch_waits_for_no_thread() -> None:
    """Handing it over took longer than reading it; those behind it come from the thread."""

    def make() -> Iterator[str]:
        while True:
            yield threading.current_thread().name

    batches = prefetch(make(), 2, first_here=True)
    assert threads() == 0
    here, *rest = itertools.islice(batches, 3)
    assert here == threading.current_thread().name
    assert rest == ["mldb-stream"] * 2
    batches.close()
    assert list(batches) == []
    assert threads() == 0


@pytest.mark.parametrize("first_here", [False, True])
def test_what_batches_hold_is_let_go_once(first_here: bool) -> None:
    let_go: list[str] = []

    def make() -> Iterator[int]:
        try:
            yield from range(5)
        finally:
            let_go.append("gone")

    for taken in (1, 3, 5, 6):
        batches = prefetch(make(), 2, first_here=first_here)
        assert list(itertools.islice(batches, taken)) == list(range(min(taken, 5)))
        batches.close()
        batches.close()
        assert let_go == ["gone"], taken
        let_go.clear()


def test_batches_are_let_go_when_no_thread_can_be_had(monkeypatch: pytest.MonkeyPatch) -> None:
    """Then the first one is here, and who made it still holds what a batch needs."""
    let_go: list[str] = []

    def make() -> Iterator[int]:
        try:
            yield from range(5)
        finally:
            let_go.append("gone")

    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    batches = prefetch(make(), 2, first_here=True)
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        with pytest.raises(RuntimeError, match="new thread"):
            next(batches)
    assert let_go == ["gone"]
    assert list(batches) == []


def test_ctrl_c_while_the_thread_starts_leaves_none_at_work(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The first batch is asked for before: it may be made, and then the thread ends."""
    let_go: list[str] = []
    made: list[int] = []

    def make() -> Iterator[int]:
        try:
            for number in range(5):
                made.append(number)
                yield number
        finally:
            let_go.append("gone")

    real = threading.Thread.start

    def interrupted(thread: threading.Thread) -> None:
        real(thread)
        raise KeyboardInterrupt

    for _ in range(50):
        batches = prefetch(make(), 2)
        with monkeypatch.context() as patch:
            patch.setattr(threading.Thread, "start", interrupted)
            with pytest.raises(KeyboardInterrupt):
                next(batches)
        assert threads() == 0
        assert made in ([], [0])
        assert let_go == ["gone"]
        assert list(batches) == []
        made.clear()
        let_go.clear()


def test_another_thread_may_close_while_the_first_batch_is_made() -> None:
    entered, leave = threading.Event(), threading.Event()
    let_go: list[str] = []

    def make() -> Iterator[int]:
        try:
            entered.set()
            leave.wait(10)
            yield from range(5)
        finally:
            let_go.append("gone")

    batches = prefetch(make(), 2, first_here=True)
    got: list[int] = []
    asks = threading.Thread(target=lambda: got.extend(batches))
    asks.start()
    assert entered.wait(10)
    batches.close()
    leave.set()
    asks.join(10)
    assert got == [0]
    assert let_go == ["gone"]
    assert threads() == 0
