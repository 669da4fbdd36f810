"""Vulkan results handed to CUDA, with the recording runtime in CUDA's place."""

from __future__ import annotations

import importlib
import sys
from typing import Any

import numpy as np
import pytest

from mldb.errors import ClosedError, GpuUnavailableError
from mldb.gpu.device import Dynamics, SelfEnergy
from mldb.gpu.vulkan.cuda import CudaOutput
from mldb.gpu.vulkan.shared import SharedVulkanDevice, open_shared
from tests.support.cuda import FakeRuntime, maker
from tests.support.vulkan import device_of, keys_of, opened, unit_rows


def shared_device(*, copy: bool = True, batch_rows: int = 64) -> tuple[Any, SharedVulkanDevice]:
    device = device_of(exported=True, copy=False, batch_rows=batch_rows)
    runtime = FakeRuntime(device.exported_memory().context.info.uuid)
    output = CudaOutput(device, runtime, maker=maker(runtime))
    return runtime, SharedVulkanDevice(
        device, output, copy=copy, to_device=lambda array, ordinal: array
    )


def test_results_are_those_of_the_device_itself(rng: np.random.Generator) -> None:
    x, keys = unit_rows(rng, 9, 32), keys_of(rng, 9)
    energy = SelfEnergy(x, np.full(9, 50, np.float32))
    chain = Dynamics(steps=3, step_size=1e-3)
    with opened(batch_rows=64) as plain:
        want = plain.isotropic(x, keys, 0.8).result().x.tobytes()
        moved = plain.langevin(x, keys, energy, chain).result().x.tobytes()
        words = plain.words(keys, 1, 8)
    runtime, device = shared_device()
    assert "shared with cuda:1" in device.name
    kept = [device.isotropic(x, keys, 0.8) for _ in range(device.slots)]
    results = [pending.result().x for pending in kept]
    assert device.langevin(x, keys, energy, chain).result().x.tobytes() == moved
    assert all(result.tobytes() == want for result in results)  # copies outlive their slots
    assert (device.words(keys, 1, 8) == words).all()
    assert device.normals(keys, 0, 32).shape == (9, 32)
    table = device.load(x)
    assert (table.rows, table.dim) == (9, 32)
    table.close()
    device.close()
    device.close()
    assert runtime.calls[-3:] == ["synchronize", "free", "destroy_memory"]


def test_a_batch_of_several_slots_comes_through_the_host(rng: np.random.Generator) -> None:
    x, keys = unit_rows(rng, 300, 640), keys_of(rng, 300)
    with opened(batch_rows=64) as plain:
        want = plain.isotropic(x, keys, 0.8).result().x.tobytes()
    _, device = shared_device()
    assert device.isotropic(x, keys, 0.8).result().x.tobytes() == want
    device.close()


def test_without_a_copy_a_late_result_is_refused(rng: np.random.Generator) -> None:
    x, keys = unit_rows(rng, 4, 32), keys_of(rng, 4)
    _, device = shared_device(copy=False)
    late = device.isotropic(x, keys, 0.8)
    for _ in range(device.slots):
        device.isotropic(x, keys, 0.8)
    with pytest.raises(ClosedError, match="gone"):
        late.result()
    device.close()


def test_a_machine_without_one_is_told_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cuda.bindings", None)
    with pytest.raises(GpuUnavailableError, match="cuda-bindings"):
        open_shared()
    vk_shared = importlib.import_module("mldb.gpu.vulkan.shared")
    monkeypatch.setattr(vk_shared, "CudaBindings", lambda: None)
    with opened(batch_rows=64) as here:
        if str(here.stats()["device"]).startswith("discrete"):
            pytest.skip("this machine has a discrete GPU")
    with pytest.raises(GpuUnavailableError, match="no discrete GPU"):
        open_shared()
