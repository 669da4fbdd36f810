"""The cache of decoded tensors: an LRU bounded in bytes, whatever is asked of it."""

from __future__ import annotations

import threading
from collections import OrderedDict
from functools import partial

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

import mldb
from mldb.log.fs.memory import MemoryFileSystem
from mldb.tensors.cache import DecodedCache


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
    cache = DecodedCache(limit)
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
    cache = DecodedCache(100)
    value = cache.get("a", 40, lambda: cache.get("a", 40, lambda: memoryview(bytes(40))))
    assert cache.used_bytes == 40
    assert cache.get("a", 40, lambda: memoryview(b"")) is value


def _zeros(size: int) -> memoryview:
    return memoryview(bytes(size))


def test_threads_share_it_and_the_bound_holds(seed: int) -> None:
    cache = DecodedCache(1000)
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
