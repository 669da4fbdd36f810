"""The cache of decoded tensors: an LRU bounded in bytes, whatever is asked of it."""

from __future__ import annotations

import threading
from collections import OrderedDict
from functools import partial
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

import mldb
from mldb.log.fs.memory import MemoryFileSystem
from mldb.tensors.cache import ByteCache


@given(
    st.integers(0, 30),
    st.lists(
        st.tuples(st.integers(0, 7), st.integers(0, 20), st.sampled_from([False] * 5 + [True])),
        max_size=60,
    ),
)
@example(3, [(key, 1, False) for key in (0, 1, 2, 0, 3, 0, 1)])
def test_it_keeps_what_was_used_last_within_the_limit(
    limit: int, steps: list[tuple[int, int, bool]]
) -> None:
    cache = ByteCache(limit)
    model: OrderedDict[int, int] = OrderedDict()
    hits = misses = 0
    for key, size, fails in steps:

        def decode(size: int = size, fails: bool = fails) -> memoryview:
            if fails:
                raise MemoryError
            return memoryview(bytes(size))

        if key in model:
            hits += 1
            model.move_to_end(key)
            assert len(cache.get(key, size, decode)) == model[key]
            continue
        misses += 1
        if fails:
            with pytest.raises(MemoryError):
                cache.get(key, size, decode)
            continue
        assert len(cache.get(key, size, decode)) == size
        if size <= limit:
            model[key] = size
            while sum(model.values()) > limit:
                model.popitem(last=False)
        assert cache.used_bytes == sum(model.values()) <= limit
    assert (cache.hits, cache.misses) == (hits, misses)
    cache.clear()
    assert cache.used_bytes == 0


def test_a_value_decoded_twice_at_once_is_counted_once() -> None:
    cache = ByteCache(100)
    value = cache.get("a", 40, lambda: cache.get("a", 40, lambda: memoryview(bytes(40))))
    assert cache.used_bytes == 40
    assert cache.get("a", 40, lambda: memoryview(b"")) is value


def test_a_call_inside_another_one_does_without_the_cache() -> None:
    """A signal handler reads something while the cache is held by the thread it interrupts."""
    cache = ByteCache(100)
    value = cache.get("a", 40, lambda: memoryview(bytes(40)))
    with cache._lock.hold():
        assert bytes(cache.get("a", 40, lambda: memoryview(b"anew"))) == b"anew"
        assert bytes(cache.get("b", 4, lambda: memoryview(b"here"))) == b"here"
    assert cache.get("a", 40, lambda: memoryview(b"")) is value
    assert bytes(cache.get("b", 5, lambda: memoryview(b"again"))) == b"again"
    assert (cache.hits, cache.misses, cache.used_bytes) == (1, 2, 45)


class Interrupted(OrderedDict[object, object]):
    """Raises KeyboardInterrupt at a call of a name, once."""

    def __init__(self, name: str, items: OrderedDict[object, object]) -> None:
        super().__init__(items)
        self.name = name

    def hit(self, name: str) -> None:
        if self.name == name:
            self.name = ""
            raise KeyboardInterrupt

    def pop(self, *arguments: Any) -> Any:
        self.hit("pop")
        found = super().pop(*arguments)
        self.hit("popped")
        return found

    def __setitem__(self, key: object, value: object) -> None:
        super().__setitem__(key, value)
        if hasattr(self, "name"):
            self.hit("set")

    def popitem(self, last: bool = True) -> tuple[object, object]:
        found = super().popitem(last)
        self.hit("popitem")
        return found


@pytest.mark.parametrize("where", ["pop", "popped", "set", "popitem"])
def test_ctrl_c_in_the_middle_of_a_change_leaves_the_count_right(where: str) -> None:
    cache = ByteCache(100)
    for number in range(5):
        cache.get(number, 20, partial(_zeros, 20))
    cache._items = Interrupted(where, cache._items)  # type: ignore[arg-type, assignment]
    with pytest.raises(KeyboardInterrupt):
        cache.get("big", 50, partial(_zeros, 50))
    for number in range(10, 13):
        cache.get(number, 30, partial(_zeros, 30))
        assert cache.used_bytes == sum(size for _, size in cache._items.values()) <= 100


def _zeros(size: int) -> memoryview:
    return memoryview(bytes(size))


def test_threads_share_it_and_the_bound_holds(seed: int) -> None:
    cache = ByteCache(1000)
    failures: list[BaseException] = []

    def run(number: int) -> None:
        rng = np.random.default_rng(seed + number)
        try:
            for key in rng.integers(0, 40, 400):
                size = int(key) * 7
                data = cache.get(int(key), size, partial(_zeros, size))
                assert len(data) == size
                assert cache.used_bytes <= 1000 + 7 * 40  # one value may be in the making
        except BaseException as error:  # noqa: BLE001 - shown by the main thread
            failures.append(error)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert 0 < cache.used_bytes <= 1000
    assert cache.hits + cache.misses == 1600


@pytest.mark.parametrize("limit, hits", [(0, 0), (80_000, 3), (160_000, 6)])
def test_the_bound_of_a_handle_decides_what_is_decoded_again(limit: int, hits: int) -> None:
    fs = MemoryFileSystem()
    with mldb.MLDatabase.on(fs, compression="zstd", cache_bytes=limit) as db:
        db["a"], db["b"] = np.zeros(10_000), np.ones(10_000)  # 80 000 bytes each
        for _ in range(4):
            assert not db["a"].any()
        for _ in range(4):
            assert db["b"].all()
        for name in "ab":
            with pytest.raises(ValueError, match="read-only"):
                db[name][0] = 5
        figures = db.stats()["cache"]
        assert figures["used_bytes"] <= figures["limit_bytes"] == limit
        if limit == 160_000:
            assert (figures["hits"], figures["misses"]) == (hits + 2, 2)
        elif limit == 0:
            assert (figures["hits"], figures["misses"]) == (0, 10)
        else:
            assert figures["misses"] == 4  # a, b, and each again
