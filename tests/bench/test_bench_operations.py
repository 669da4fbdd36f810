"""Single operations under pytest-benchmark, for comparing one commit with another: -m bench."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from tests.bench.peer import Purpose, Store
from tests.bench.peer_mldb import Mldb
from tests.bench.registry import PEERS, able, is_limit
from tests.bench.workloads import QUICK, ROWS_NAME, History, generator, small_tensors, touch

pytestmark = pytest.mark.bench

_BATCH = 100
_EPOCHS = 40
_HISTORY = [p.name for p in able(list(PEERS.values()), "as_of") if p.installed() and not p.reads]
_BATCHES = [p.name for p in able(list(PEERS.values()), "batch") if p.installed()]
_ROWS = [p.name for p in able(list(PEERS.values()), "rows") if p.installed() and not p.reads]


class _Opener:
    """Opens stores of one peer in one folder and closes them after the test."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._open: list[Store] = []

    def open(self, name: str, purpose: Purpose) -> Store:
        store = PEERS[name].open(self._folder, purpose)
        self._open.append(store)
        return store

    def close(self) -> None:
        while self._open:
            self._open.pop().close()


@pytest.fixture
def opener(tmp_path: Path) -> Iterator[_Opener]:
    made = _Opener(tmp_path)
    yield made
    made.close()


@pytest.mark.parametrize("name", _BATCHES)
def test_durable_batch(benchmark: BenchmarkFixture, opener: _Opener, name: str) -> None:
    """100 tensors of 4 KiB in one durable commit; a new name every time."""
    benchmark.group = "durable batch of 100 x 4 KiB"
    store = opener.open(name, "durable")
    _names, values = small_tensors(QUICK)
    turns = itertools.count()

    def put() -> None:
        turn = next(turns)
        store.put_batch({f"t{turn}.{place}": values[place] for place in range(_BATCH)})

    benchmark(put)


@pytest.mark.parametrize("name", _HISTORY)
def test_as_of_read(benchmark: BenchmarkFixture, opener: _Opener, name: str) -> None:
    """One tensor of 256 KiB as of a random epoch, summed."""
    benchmark.group = "as-of read of 256 KiB, summed"
    past = History(QUICK)
    writer = opener.open(name, "durable")
    for epoch, changed, full in past.states():
        writer.commit_epoch(epoch, changed, full)
    opener.close()
    store = opener.open(name, "read")
    reads = past.reads(_EPOCHS)

    def read_all() -> int:
        return sum(touch(store.get_as_of(tensor, epoch)) for tensor, epoch in reads)

    total = benchmark(read_all)
    assert total == sum(touch(past.at(tensor, epoch)) for tensor, epoch in reads)


@pytest.mark.parametrize("name", _ROWS)
def test_row_slice(benchmark: BenchmarkFixture, opener: _Opener, name: str) -> None:
    """64 rows of 4096 fp32 out of 64 MiB, copied into one buffer."""
    benchmark.group = "slice of 64 rows x 4096 fp32"
    data = generator(7).standard_normal((4096, 4096), dtype=np.float32)
    writer = opener.open(name, "bulk")
    writer.put_rows(ROWS_NAME, data)
    opener.close()
    read = opener.open(name, "read").rows(ROWS_NAME, 4096)
    out = np.ones((64, 4096), np.float32)
    benchmark(read, 1000, out)
    assert np.array_equal(out, data[1000:1064])


def test_unsynced_put(benchmark: BenchmarkFixture, opener: _Opener) -> None:
    """One 4 KiB tensor in a commit of its own, durability "os"."""
    benchmark.group = "unsynced put of 4 KiB"
    store = opener.open("mldb", "lazy")
    assert isinstance(store, Mldb)
    _names, values = small_tensors(QUICK)
    benchmark(store.database.store_tensor, "weights", values[0])


def test_query_of_a_verified_tensor(benchmark: BenchmarkFixture, opener: _Opener) -> None:
    """A view of a tensor of 4 MiB that was verified before."""
    benchmark.group = "query_tensor, verified before"
    store = opener.open("mldb", "durable")
    value = generator(12).standard_normal((1024, 1024), dtype=np.float32)
    store.put_batch({"weights": value})
    assert np.array_equal(benchmark(store.get, "weights"), value)


def test_limits_are_marked() -> None:
    """The name alone tells a limit from a product, also in the output of pytest-benchmark."""
    assert {peer.name for peer in PEERS.values() if is_limit(peer.name)} == {
        "limit: log + index + memmap",
        "limit: log, preallocated",
        "limit: log over old blocks",
    }
