"""How much memory a device takes of its own: what its batches need, and nothing at rest."""

from __future__ import annotations

import gc
import logging
from typing import Any

import numpy as np
import pytest

from mldb.errors import ClosedError
from mldb.gpu.device import Dynamics, MixtureEnergy, SelfEnergy
from mldb.gpu.vulkan import errors as vk_errors
from mldb.gpu.vulkan.device import VulkanDevice
from mldb.gpu.vulkan.errors import DeviceMemoryError
from mldb.gpu.vulkan.memory import allocated_bytes
from mldb.gpu.vulkan.sizes import Capacity, RingForm, holds, larger
from mldb.noise.keys import Keys
from tests.gpu.vulkan.test_failures import Answering
from tests.support.vulkan import batch_of, keys_of, opened, unit_rows

SLOTS = 3


def aligned(size: int) -> int:
    return -(-size // 256) * 256


def ring_bytes(rows: int, dim: int, *, inputs: int = 1, extra: int = 0) -> int:
    """The formula, written out again: three slots, host and device sharing one memory."""
    row = 16 * -(-dim // 4)
    regions = (64, 8 * rows, rows * row * inputs, max(16, rows * extra), rows * row, 4 * rows)
    return SLOTS * sum(aligned(max(16, region)) for region in regions)


def work(device: VulkanDevice, rng: np.random.Generator, rows: int, dim: int) -> Any:
    return device.isotropic(unit_rows(rng, rows, dim), keys_of(rng, rows), 0.8).result().x


@pytest.mark.parametrize(("rows", "dim"), [(1, 2), (64, 64), (256, 640), (100, 37), (1024, 640)])
def test_a_ring_is_as_large_as_its_batches(rng: np.random.Generator, rows: int, dim: int) -> None:
    """It had 23 MiB whatever it was for: three slots of 1,024 rows of 640 components."""
    gc.collect()
    before = allocated_bytes()
    with opened(direct=True) as device:
        assert device.stats()["ring_bytes"] == 0
        assert allocated_bytes() == before
        for _ in range(2 * SLOTS):
            work(device, rng, rows, dim)
            assert device.stats()["ring_bytes"] == ring_bytes(rows, dim)
            assert allocated_bytes() - before == ring_bytes(rows, dim)
        work(device, rng, max(1, rows // 2), dim)
        assert allocated_bytes() - before == ring_bytes(rows, dim)
    gc.collect()
    assert allocated_bytes() == before


def test_without_shared_memory_everything_is_there_twice(rng: np.random.Generator) -> None:
    with opened(direct=False) as device:
        work(device, rng, 64, 64)
        assert device.stats()["ring_bytes"] == 2 * ring_bytes(64, 64)


def test_chains_take_what_they_bring_along(rng: np.random.Generator) -> None:
    batch = batch_of(rng, rows=40, dim=64, neighbours=5)
    with opened(direct=True) as device:
        table = device.load(batch.rows)
        energy = MixtureEnergy(table, batch.index, batch.kappas, batch.log_weight)
        device.langevin(batch.x, batch.keys, energy, Dynamics(2, 1e-3)).result()
        assert device.stats()["ring_bytes"] == ring_bytes(40, 64, extra=5 * 12)
        table.close()
        device.rest()
        own = SelfEnergy(batch.mu, batch.kappa)
        device.langevin(batch.x, batch.keys, own, Dynamics(2, 1e-3)).result()
        assert device.stats()["ring_bytes"] == ring_bytes(40, 64, inputs=2, extra=4)


def test_very_large_batches_are_cut_and_take_no_more_than_a_slot_may_hold(
    rng: np.random.Generator,
) -> None:
    with opened(direct=True) as device:
        most = device.stats()["batch_rows"]
        x = work(device, rng, most + 500, 640)
        assert np.isfinite(x).all()
        assert device.stats()["ring_bytes"] == ring_bytes(most, 640)


def test_a_ring_grows_without_changing_a_bit_of_what_is_under_way(
    rng: np.random.Generator,
) -> None:
    x, keys = unit_rows(rng, 200, 64), keys_of(rng, 200)
    counts = (3, 50, 51, 200, 20)
    parts = [
        Keys(keys.seed, keys.pass_number, keys.rows[:count], keys.augmentations[:count])
        for count in counts
    ]
    with opened(batch_rows=256) as device:
        want = [device.isotropic(x[: len(part)], part, 0.8).result().x.tobytes() for part in parts]
    for copy in (True, False):
        with opened(copy=copy) as device:
            pending = [device.isotropic(x[: len(part)], part, 0.8) for part in parts]
            last = len(parts) if copy else SLOTS  # what a view is valid for
            got = [one.result().x.tobytes() for one in pending[-last:]]
            assert got == want[-last:]


def test_views_last_as_long_as_somebody_looks_at_them(rng: np.random.Generator) -> None:
    gc.collect()
    before = allocated_bytes()
    with opened(copy=False, direct=True) as device:
        view = work(device, rng, 8, 64)
        kept = view.copy()
        work(device, rng, 300, 64)
        small, large = ring_bytes(8, 64), ring_bytes(300, 64)
        assert large < allocated_bytes() - before < small + large
        device.rest()
        assert view.tobytes() == kept.tobytes()
        del view
        gc.collect()
        assert allocated_bytes() == before


def test_at_rest_a_device_has_no_memory_of_its_own(rng: np.random.Generator) -> None:
    gc.collect()
    before = allocated_bytes()
    x, keys = unit_rows(rng, 64, 64), keys_of(rng, 64)
    with opened() as device:
        want = device.isotropic(x, keys, 0.8).result().x.tobytes()
        device.rest()
        device.rest()
        assert allocated_bytes() == before
        pipelines = device.stats()["pipelines"]
        pending = device.isotropic(x, keys, 0.8)
        device.rest()  # what is under way is copied out
        assert allocated_bytes() == before
        assert pending.result().x.tobytes() == want
        assert device.isotropic(x, keys, 0.8).result().x.tobytes() == want
        assert device.stats()["pipelines"] == pipelines
    device.rest()
    with pytest.raises(ClosedError):
        device.isotropic(x, keys, 0.8)


def test_a_slot_is_bound_when_it_is_first_used(rng: np.random.Generator) -> None:
    """The first batch of a pass waited until all slots were ready."""
    with opened() as device:
        bound = []
        for _ in range(SLOTS + 2):
            work(device, rng, 16, 32)
            bound.append(len(device._ring.arena.slots))
        assert bound == [1, 2, 3, 3, 3]


def test_after_a_rest_only_memory_is_made_anew(
    rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every pass made pools, descriptor sets and command buffers, in more time than its batch."""
    x, keys = unit_rows(rng, 64, 64), keys_of(rng, 64)
    batch = batch_of(rng, rows=40, dim=64, neighbours=5)
    with opened(slots=SLOTS) as device:
        want = device.isotropic(x, keys, 0.8).result().x.tobytes()
        api, made = device._context.api, []
        for name in ("vkCreateCommandPool", "vkCreateDescriptorPool", "vkAllocateMemory"):
            real = getattr(api, name)

            def counted(*given: Any, name: str = name, real: Any = real) -> Any:
                made.append(name)
                return real(*given)

            monkeypatch.setattr(api, name, counted)
        for _ in range(3):
            table = device.load(batch.rows)
            energy = MixtureEnergy(table, batch.index, batch.kappas, batch.log_weight)
            device.langevin(batch.x, batch.keys, energy, Dynamics(2, 1e-3)).result()
            table.close()  # its views are gone, and the sets that named them stay
            device.rest()
            made.clear()
            for _ in range(2 * SLOTS):
                assert device.isotropic(x, keys, 0.8).result().x.tobytes() == want
            assert set(made) == {"vkAllocateMemory"}
            assert len(made) == (2 if device.stats()["direct"] else 4)
            device.rest()


def test_a_ring_of_a_given_size_stays(rng: np.random.Generator) -> None:
    gc.collect()
    before = allocated_bytes()
    with opened(batch_rows=64, direct=True) as device:
        fixed = allocated_bytes() - before
        assert fixed == ring_bytes(64, 640, inputs=2, extra=384)
        work(device, rng, 300, 640)
        device.rest()
        assert allocated_bytes() - before == fixed


def test_copied_tables_are_counted_and_imported_ones_are_not(rng: np.random.Generator) -> None:
    gc.collect()
    before = allocated_bytes()
    with opened() as device:
        table = device.load(unit_rows(rng, 101, 32)[1:])  # not aligned: it has to be copied
        assert not table.imported
        assert allocated_bytes() - before == 100 * 32 * 4
        table.close()
        gc.collect()
        assert allocated_bytes() == before
        raw = np.empty((1 << 16) + (1 << 20), np.uint8)
        rows = raw[-raw.ctypes.data % (1 << 16) :][: 1 << 20].view(np.float32).reshape(-1, 64)
        rows[:] = unit_rows(rng, len(rows), 64)
        table = device.load(rows)
        assert allocated_bytes() - before == (0 if table.imported else rows.nbytes)
        table.close()


def test_batches_get_smaller_where_memory_does_not_suffice(
    rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    x, keys = unit_rows(rng, 900, 640), keys_of(rng, 900)
    with opened() as device:
        want = device.isotropic(x, keys, 0.8).result().x.tobytes()
        device.rest()
        api = device._context.api
        real, refused = api.vkAllocateMemory, []

        def allocate(handle: Any, info: Any, allocator: Any) -> Any:
            if info.allocationSize > 2 << 20:
                refused.append(info.allocationSize)
                raise api.VkErrorOutOfDeviceMemory
            return real(handle, info, allocator)

        monkeypatch.setattr(api, "vkAllocateMemory", allocate)
        with caplog.at_level(logging.WARNING):
            for _ in range(3):
                assert device.isotropic(x, keys, 0.8).result().x.tobytes() == want
        asked = len(refused)
        assert asked > 0
        device.isotropic(x, keys, 0.8).result()
        assert len(refused) == asked  # it does not ask for too much every time
        assert [record.levelname for record in caplog.records] == ["WARNING"]
        assert device.slots == SLOTS
        device.rest()
        monkeypatch.setattr(api, "vkAllocateMemory", lambda *_: _refuse(api))
        with pytest.raises(DeviceMemoryError, match="batch_rows"):
            device.isotropic(x, keys, 0.8)
        monkeypatch.setattr(api, "vkAllocateMemory", real)
        assert device.isotropic(x, keys, 0.8).result().x.tobytes() == want


def _refuse(api: Any) -> Any:
    raise api.VkErrorOutOfDeviceMemory


@pytest.mark.parametrize("call", ["vkQueueSubmit", "vkWaitSemaphores"])
def test_a_device_that_was_lost_at_rest_does_not_answer(
    rng: np.random.Generator, call: str
) -> None:
    with opened() as device:
        assert device.answers()
        work(device, rng, 4, 32)
        device.rest()
        assert device.answers()
        assert device.stats()["ring_bytes"] == 0
        work(device, rng, 4, 32)  # behind an empty batch
        device._ring._lib = Answering(device._ring._lib, **{call: vk_errors.DEVICE_LOST})
        said = [device.usable, device.answers(), device.usable, device.answers()]
        assert said == [True, False, False, False]
    assert not device.answers()


def test_what_is_smaller_is_tried_in_order() -> None:
    form = RingForm(capacity=Capacity(150), slots=3, direct=True, fixed=True)
    tried = []
    smaller: RingForm | None = form
    while smaller is not None:
        tried.append((smaller.capacity.rows, smaller.slots))
        smaller = smaller.smaller()
    assert tried == [(150, 3), (75, 3), (64, 3), (64, 2)]
    grows = RingForm(capacity=Capacity(64), slots=3, direct=True)
    assert grows.smaller() is None


def test_regions_only_grow() -> None:
    assert larger({1: 8, 2: 0}, None) == {1: 16, 2: 16}
    assert larger({1: 8, 2: 300}, {1: 64, 2: 16}) == {1: 64, 2: 300}
    assert holds({1: 16, 2: 16}, {1: 8, 2: 0})
    assert not holds({1: 16, 2: 16}, {1: 8, 2: 17})
