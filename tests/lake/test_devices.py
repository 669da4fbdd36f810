"""What streams leave behind of their devices: one idle device, no memory of ours, no thread."""

from __future__ import annotations

import gc
import itertools
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import mldb
from mldb.gpu.reference import NumpyDevice
from mldb.gpu.select import open_device
from mldb.gpu.vulkan import errors as vk_errors
from mldb.gpu.vulkan.memory import allocated_bytes
from mldb.lake.augment import devices
from mldb.lake.states import LakeStates
from tests.gpu.vulkan.test_failures import Answering
from tests.gpu.vulkan.test_sizes import ring_bytes
from tests.support.lakes import BATCH, DIM, ROWS, data, db, fill, raw, stream
from tests.support.threads import PATIENCE_SECONDS
from tests.support.vulkan import give_up

__all__ = ["data", "db"]


@pytest.fixture(autouse=True)
def _no_devices(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(devices, "_idle", {})
    monkeypatch.setattr(devices, "_users", {})
    gc.collect()
    yield
    for free in devices._idle.values():
        for _, device in free:
            device.close()


@pytest.fixture
def vulkan() -> str:
    try:
        open_device("vulkan").close()
    except mldb.GpuUnavailableError as error:
        give_up(str(error))
    return "vulkan"


def our_threads() -> int:
    return sum(thread.name.startswith("mldb") for thread in threading.enumerate())


def all_threads(expected: int | None = None) -> int:
    """Threads of this process, a driver's too: one that was joined may take a moment to go."""
    if expected is None:  # as many as stay
        found = []
        for _ in range(20):
            found.append(len(os.listdir("/proc/self/task")))
            time.sleep(0.01)
        return min(found)
    end = time.monotonic() + PATIENCE_SECONDS
    while (now := len(os.listdir("/proc/self/task"))) != expected and time.monotonic() < end:
        time.sleep(0.005)
    return now


def idle() -> list[Any]:
    return [device for free in devices._idle.values() for _, device in free]


# --- the ring of a stream -------------------------------------------------------------------------


@pytest.mark.parametrize(("batch", "dim"), [(8, 4), (32, 64), (200, 640)])
def test_a_live_stream_holds_what_its_batches_need(
    vulkan: str, store_path: Path, rng: np.random.Generator, batch: int, dim: int
) -> None:
    """A live loader held 23 MiB for batches, whatever they were, and kept them for good."""
    with mldb.open(store_path, durability="os") as store:
        lake = store.lake(dim=dim)
        lake.add_splats(rng.standard_normal((20 * batch, dim)))
        before, threads = allocated_bytes(), our_threads()
        loader = lake.export_to_dataloader(batch, generate_samples=True, device=vulkan)
        assert (allocated_bytes(), our_threads()) == (before, threads)
        iterator = iter(loader)
        for _ in range(4):
            next(iterator)
            assert our_threads() == threads + 1
        (device,) = _shown_devices(loader)
        want = ring_bytes(batch, dim) * (1 if device.stats()["direct"] else 2)
        assert allocated_bytes() - before == want
        assert sum(len(rows) for rows in iterator) == 16 * batch
        assert (allocated_bytes(), our_threads()) == (before, threads)
        next(iter(loader))  # dropped in the middle of a pass
        gc.collect()
        assert (allocated_bytes(), our_threads()) == (before, threads)
        assert len(idle()) == 1


def _shown_devices(loader: Any) -> list[Any]:
    return [loader.dataset._reader().streams._shown._augmenter.device]


def test_several_live_streams_hold_one_ring_each(
    vulkan: str, db: mldb.MLDatabase, data: dict[str, Any]
) -> None:
    lake = fill(db, data)
    want = raw(stream(lake, "isotropic", device=vulkan))
    before, threads = allocated_bytes(), our_threads()
    loaders = [stream(lake, "isotropic", device=vulkan) for _ in range(3)]
    iterators = [iter(loader) for loader in loaders]
    got = [[next(iterator)] for iterator in iterators]
    assert our_threads() == threads + 3
    (device,) = _shown_devices(loaders[0])
    copies = 1 if device.stats()["direct"] else 2
    assert allocated_bytes() - before == 3 * copies * ring_bytes(BATCH, DIM)
    for batches in zip(*iterators, strict=True):
        for have, batch in zip(got, batches, strict=True):
            have.append(batch)
    assert [raw(have) for have in got] == [want] * 3
    assert (allocated_bytes(), our_threads()) == (before, threads)
    assert len(idle()) == 1


@pytest.mark.parametrize("kind", ["isotropic", "langevin"])
def test_ten_loaders_one_after_another_use_one_device(
    vulkan: str,
    db: mldb.MLDatabase,
    data: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
) -> None:
    lake = fill(db, data)
    opened = []

    def counted(*arguments: Any, **named: Any) -> Any:
        opened.append(open_device(*arguments, **named))
        return opened[-1]

    monkeypatch.setattr(devices, "open_device", counted)
    gc.collect()
    before = allocated_bytes()
    raw(stream(lake, kind, device=vulkan))
    threads = all_threads()
    for seed in range(10):
        loader = stream(lake, kind, device=vulkan, seed=seed)
        assert len(raw(loader)) == -(-ROWS // BATCH)
        loader.dataset.batch(1)
        assert loader.stats()["device"] == opened[0].name
        assert (allocated_bytes(), all_threads(threads)) == (before, threads)
    assert len(opened) == 1
    assert idle() == opened


def test_the_threads_of_a_driver_go_with_the_last_store(
    vulkan: str, store_path: Path, rng: np.random.Generator
) -> None:
    """Two devices, with the six threads that lavapipe has for each, stayed to the end."""
    other_path = store_path.with_name("other")
    with mldb.open(store_path) as first, mldb.open(other_path) as other:
        for store in (first, other):
            store.lake(dim=8).add_splats(rng.standard_normal((40, 8)))
        gc.collect()
        before = all_threads()
        loaders = [
            store.lake().export_to_dataloader(16, generate_samples=True, device=vulkan)
            for store in (first, other)
        ]
        for loader in loaders:
            assert len(list(loader)) == 3
        assert len(idle()) == 1
        kept = idle()[0]
        first.close()
        assert idle() == [kept]
        assert kept.usable
        other.close()
        assert idle() == []
        assert not kept.usable
        assert all_threads(before) == before


# --- which device is kept, and until when ---------------------------------------------------------


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    made: list[Any] = []

    def numpy_device(spec: str, *, copy: bool, needs: Any) -> Any:
        made.append(NumpyDevice())
        return made[-1]

    monkeypatch.setattr(devices, "open_device", numpy_device)
    return made


def _lend(spec: str, user: Any) -> Any:
    device = devices.borrow(spec, user=user)
    devices.give_back(spec, device, os.getpid())
    return device


class _Source:
    """Stands for what a closing handle reads from; nothing was changed, so nothing is read."""


@pytest.mark.parametrize("ends", ["closed", "dropped"])
def test_an_idle_device_goes_with_the_last_store_that_asked_for_one(
    opened: list[Any], ends: str
) -> None:
    users = [LakeStates(0, saves=False) for _ in range(2)]

    def end() -> None:
        user = users.pop()
        if ends == "closed":
            user.close(_Source())  # type: ignore[arg-type]

    first = _lend("numpy", users[0])
    assert _lend("numpy", users[1]) is first
    elsewhere = _lend("cpu", users[0])
    assert idle() == [first, elsewhere]
    end()
    gc.collect()
    assert [device._closed for device in opened] == [False, False]
    end()
    gc.collect()
    assert [device._closed for device in opened] == [True, True]
    assert idle() == []


def test_what_comes_back_after_the_last_store_closed_is_closed(opened: list[Any]) -> None:
    user = LakeStates(0, saves=False)
    device: Any = devices.borrow("numpy", user=user)
    user.close(_Source())  # type: ignore[arg-type]
    devices.give_back("numpy", device, os.getpid())
    assert device._closed
    late = _lend("numpy", user)  # a stream may go on over the rows that it has
    assert late._closed
    assert idle() == []


def test_one_device_of_a_spec_waits_however_many_were_used(opened: list[Any]) -> None:
    user = LakeStates(0, saves=False)
    used: list[Any] = [devices.borrow("numpy", user=user) for _ in range(4)]
    for device in used:
        devices.give_back("numpy", device, os.getpid())
    assert idle() == used[-1:]
    assert [device._closed for device in used] == [True, True, True, False]


def test_a_stream_goes_on_over_a_closed_store(db: mldb.MLDatabase, data: dict[str, Any]) -> None:
    lake = fill(db, data)
    want = raw(stream(lake, "isotropic"))
    iterator = iter(stream(lake, "isotropic"))
    got = list(itertools.islice(iterator, 3))
    db.close()
    got.extend(iterator)
    assert raw(got) == want
    assert idle() == []


def test_a_device_that_cannot_rest_is_not_kept(
    opened: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    user = LakeStates(0, saves=False)
    device: Any = devices.borrow("numpy", user=user)

    def lost() -> None:
        monkeypatch.setattr(device, "usable", False)
        raise mldb.GpuUnavailableError("the device was lost")

    monkeypatch.setattr(device, "rest", lost)
    devices.give_back("numpy", device, os.getpid())
    assert device._closed
    assert idle() == []


@pytest.mark.parametrize("call", ["vkQueueSubmit", "vkWaitSemaphores"])
def test_a_device_that_was_lost_while_idle_is_replaced_when_it_is_taken(
    vulkan: str, db: mldb.MLDatabase, data: dict[str, Any], call: str
) -> None:
    """The next stream began with an error, though nothing of it was lost."""
    lake = fill(db, data)
    want = raw(stream(lake, "isotropic", device=vulkan))
    (lost,) = idle()
    lost._ring._lib = Answering(lost._ring._lib, **{call: vk_errors.DEVICE_LOST})
    assert lost.usable  # nobody has noticed yet
    assert raw(stream(lake, "isotropic", device=vulkan)) == want
    (device,) = idle()
    assert device is not lost
    assert not lost.usable


class _Copied(NumpyDevice):
    """A device with memory of its own: tables are copies, and ``rest`` is counted."""

    rests = 0

    def load(self, rows: Any) -> Any:
        table = super().load(rows.copy())
        table.imported = False
        return table

    def rest(self) -> None:
        self.rests += 1


def test_a_device_that_has_a_copy_of_the_rows_stays_with_its_stream(
    db: mldb.MLDatabase, data: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Copying the rows of a large lake again takes longer than a batch; no batch's memory stays."""
    made: list[Any] = []

    def copied(spec: str, *, copy: bool, needs: Any) -> Any:
        made.append(_Copied())
        return made[-1]

    monkeypatch.setattr(devices, "open_device", copied)
    lake = fill(db, data)
    loader = stream(lake, "langevin")
    for rests in (1, 2):
        raw(loader)
        assert [device.rests for device in made] == [rests]
        assert idle() == []
    del loader
    gc.collect()
    assert idle() == made
