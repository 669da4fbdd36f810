"""What goes wrong with a device: memory, a lost device, a hang, forks, closing in the middle."""

from __future__ import annotations

import gc
import logging
import os
import subprocess
import sys
from typing import Any

import numpy as np
import pytest

from mldb.errors import ClosedError, GpuUnavailableError, LimitError
from mldb.gpu.device import Dynamics, SelfEnergy
from mldb.gpu.vulkan import errors as vk_errors
from mldb.gpu.vulkan.device import VulkanDevice, open_vulkan
from mldb.gpu.vulkan.errors import DeviceLostError, DeviceMemoryError, DeviceTimeoutError
from mldb.gpu.vulkan.ring import Ring
from tests.support.vulkan import device_of, keys_of, opened, unit_rows


class Answering:
    """The Vulkan library, but for functions that answer a result code."""

    def __init__(self, lib: Any, **codes: int) -> None:
        self._lib, self.codes = lib, codes
        self.calls = 0

    def __getattr__(self, name: str) -> Any:
        if name not in self.codes:
            return getattr(self._lib, name)

        def answer(*_: object) -> int:
            self.calls += 1
            return self.codes[name]

        return answer


def _ring(device: VulkanDevice) -> Ring:
    return device._ring


def _spoil(device: VulkanDevice, **codes: int) -> Answering:
    ring = _ring(device)
    answering = Answering(ring._lib, **codes)
    ring._lib = answering
    return answering


def _work(device: VulkanDevice, rng: np.random.Generator) -> Any:
    x = unit_rows(rng, 4, 32)
    return device.isotropic(x, keys_of(rng, 4), 0.8)


def _limit_memory(device: VulkanDevice, monkeypatch: pytest.MonkeyPatch, most: int) -> list[int]:
    """Refuse allocations above *most* bytes with the driver's answer; return what was asked."""
    api = _ring(device).context.api
    real, asked = api.vkAllocateMemory, []

    def allocate(handle: Any, info: Any, allocator: Any) -> Any:
        asked.append(info.allocationSize)
        if info.allocationSize > most:
            raise api.VkErrorOutOfDeviceMemory
        return real(handle, info, allocator)

    monkeypatch.setattr(api, "vkAllocateMemory", allocate)
    return asked


def test_a_ring_that_does_not_fit_is_made_smaller_and_says_so(
    rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with opened(batch_rows=64) as other:
        asked = _limit_memory(other, monkeypatch, 8 << 20)
        with caplog.at_level(logging.WARNING), opened(batch_rows=8192) as device:
            assert device.stats()["batch_rows"] < 8192
            assert device.slots == 3
            _work(device, rng).result()
        assert max(asked) > 8 << 20
        assert [record.levelname for record in caplog.records] == ["WARNING"]


def test_fewer_slots_are_the_last_resort(monkeypatch: pytest.MonkeyPatch) -> None:
    with opened(batch_rows=64) as other:
        row = 2 * 2560 + 384 + 8
        _limit_memory(other, monkeypatch, 2 * (64 * row + 4096))
        with opened(batch_rows=512, slots=4) as device:
            assert (device.stats()["batch_rows"], device.slots) == (64, 2)


def test_without_memory_for_the_smallest_ring_the_error_has_the_numbers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with opened(batch_rows=64) as other:
        _limit_memory(other, monkeypatch, 1000)
        with pytest.raises(DeviceMemoryError, match="batch_rows") as caught:
            open_vulkan(batch_rows=256)
        assert caught.value.asked_bytes > 1000
        assert f"{caught.value.asked_bytes:,}" in str(caught.value)


def test_a_table_that_does_not_fit_leaves_the_device_working(
    rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    with opened(batch_rows=64) as device:
        rows = unit_rows(rng, 101, 32)[1:]  # not aligned: it has to be copied
        with monkeypatch.context() as patch:
            _limit_memory(device, patch, 1000)
            with pytest.raises(DeviceMemoryError, match="rows of the table"):
                device.load(rows)
        _work(device, rng).result()
        device.load(rows).close()


def test_slots_beyond_what_can_be_bound_are_refused() -> None:
    with opened(batch_rows=64) as device:
        limit = _ring(device).context.info.limits.storage_range
        with pytest.raises(LimitError, match="batch_rows"):
            open_vulkan(batch_rows=limit // 2560 + 1)


def test_memory_of_a_lost_device_goes_when_the_driver_has_left_it(
    rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The process crashed now and then: lavapipe was still writing where memory had been."""
    waited: list[object] = []
    with opened(batch_rows=64) as device:
        api = _ring(device).context.api
        real = api.vkDeviceWaitIdle

        def wait(handle: object) -> None:
            waited.append(handle)
            real(handle)

        monkeypatch.setattr(api, "vkDeviceWaitIdle", wait)
        _spoil(device, vkWaitSemaphores=vk_errors.DEVICE_LOST)
        with pytest.raises(DeviceLostError):
            _work(device, rng).result()
    assert waited


@pytest.mark.parametrize("call", ["vkQueueSubmit", "vkWaitSemaphores"])
def test_a_lost_device_says_so_from_then_on(rng: np.random.Generator, call: str) -> None:
    with opened(batch_rows=64) as device:
        for _ in range(2):
            _work(device, rng).result()
        batches = device.stats()["batches"]
        _spoil(device, **{call: vk_errors.DEVICE_LOST})
        with pytest.raises(DeviceLostError, match="opened again") as caught:
            _work(device, rng).result()
        assert caught.value.batch in {batches - 2, batches - 1, batches, batches + 1}
        assert f"batch {caught.value.batch}" in str(caught.value)
        with pytest.raises(DeviceLostError):
            _work(device, rng)
        with pytest.raises(DeviceLostError):
            device.words(keys_of(rng, 1), 0, 1)


def test_a_hang_ends_in_an_error_and_frees_nothing(
    rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    device = device_of(batch_rows=64)
    _work(device, rng).result()
    pending = _work(device, rng)
    _spoil(device, vkWaitSemaphores=vk_errors.TIMEOUT)
    _ring(device).timeout_s = 0.25
    with pytest.raises(DeviceTimeoutError, match=r"0\.25 s") as caught:
        pending.result()
    assert caught.value.batch == device.stats()["batches"]
    assert device.name.partition("(")[2][:-1] in str(caught.value)
    freed: list[str] = []
    api = _ring(device).context.api
    for name in ("vkFreeMemory", "vkDestroyBuffer", "vkDestroyDevice", "vkDestroyPipeline"):
        monkeypatch.setattr(api, name, lambda *_, name=name: freed.append(name))
    with pytest.raises(DeviceTimeoutError):
        _work(device, rng)
    device.close()
    del pending, device
    gc.collect()
    assert freed == []


def test_an_answer_that_nobody_knows_is_an_error_too(rng: np.random.Generator) -> None:
    with opened(batch_rows=64) as device:
        _spoil(device, vkQueueSubmit=-13)
        with pytest.raises(GpuUnavailableError, match="-13"):
            _work(device, rng)


def test_closing_finishes_what_is_under_way(rng: np.random.Generator) -> None:
    device = device_of(batch_rows=64)
    x, keys = unit_rows(rng, 20, 640), keys_of(rng, 20)
    energy = SelfEnergy(x, np.full(20, 500, np.float32))
    pending = [device.langevin(x, keys, energy, Dynamics(20, 1e-5)) for _ in range(3)]
    device.close()
    device.close()
    assert all(np.isfinite(one.result().x).all() for one in pending)
    for call in (
        lambda: _work(device, rng),
        lambda: device.load(x),
        lambda: device.words(keys, 0, 1),
    ):
        with pytest.raises(ClosedError, match="open it again"):
            call()


def test_views_that_were_not_asked_for_are_gone_after_close(rng: np.random.Generator) -> None:
    device = device_of(batch_rows=64, copy=False)
    pending = _work(device, rng)
    device.close()
    with pytest.raises(ClosedError, match="closed"):
        pending.result()


def test_a_device_that_is_dropped_gives_its_memory_back(rng: np.random.Generator) -> None:
    freed: list[int] = []
    device = device_of(batch_rows=64)
    context = _ring(device).context
    real = context.api.vkDestroyDevice

    def destroy(*arguments: Any) -> None:
        freed.append(1)
        real(*arguments)

    context.api.vkDestroyDevice = destroy
    try:
        _work(device, rng).result()
        del device
        gc.collect()
    finally:
        context.api.vkDestroyDevice = real
    assert freed == [1]


FORK = """
import os, sys
import numpy as np
from mldb.errors import ClosedError
from mldb.noise.keys import Keys
from mldb.gpu.vulkan.device import open_vulkan
device = open_vulkan(batch_rows=64)
keys = Keys(1, 2, np.arange(4, dtype=np.uint64), np.zeros(4, np.uint16))
table = device.load(np.ones((4, 8), np.float32))
before = device.words(keys, 0, 4)
child = os.fork()
if child == 0:
    status = 1
    try:
        device.words(keys, 0, 4)
    except ClosedError as error:
        status = 0 if "num_workers" in str(error) else 2
    table.close()
    device.close()
    os._exit(status)
status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
assert (device.words(keys, 0, 4) == before).all()
device.close()
sys.exit(status)
"""

EXIT = """
import numpy as np
from mldb.gpu.device import Dynamics, SelfEnergy
from mldb.noise.keys import Keys
from mldb.gpu.vulkan.device import open_vulkan
device = open_vulkan(batch_rows=64)
keys = Keys(1, 2, np.arange(64, dtype=np.uint64), np.zeros(64, np.uint16))
x = np.zeros((64, 640), np.float32)
x[:, 0] = 1
energy = SelfEnergy(x, np.ones(64, np.float32))
table = device.load(x)
pending = [device.langevin(x, keys, energy, Dynamics(200, 1e-4)) for _ in range(3)]
"""


@pytest.mark.parametrize("script", [FORK, EXIT], ids=["fork", "exit with work under way"])
def test_processes_end_cleanly(script: str) -> None:
    if script is FORK and not hasattr(os, "fork"):
        pytest.skip("this system has no fork")
    with opened(batch_rows=64):
        pass
    done = subprocess.run(
        [sys.executable, "-W", "ignore::DeprecationWarning", "-c", script],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
