"""The bridge to CUDA with a runtime that keeps a record, over memory that is really exported.

lavapipe exports memory as a memfd, so the fake runtime can map what it is given and the bytes that
arrive are the ones that the shader wrote.
"""

from __future__ import annotations

import ctypes
import gc
import mmap
import os
import sys
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mldb.errors import ClosedError, GpuUnavailableError, InvalidValueError
from mldb.gpu import vk_cuda
from mldb.gpu.vk_cuda import CudaBindings, CudaOutput, CudaRows
from mldb.gpu.vk_device import VulkanDevice
from tests.support.vulkan import device_of, keys_of, opened, unit_rows

PAYLOAD = 4096
"""Where lavapipe starts an exported allocation inside its memfd."""


class FakeRuntime:
    """A CUDA runtime that maps the descriptor; ``failing`` names the call that fails."""

    def __init__(self, uuid: bytes, failing: str = "") -> None:
        self.calls: list[str] = []
        self.failing = failing
        self._uuid = uuid
        self.descriptors: list[int] = []
        self.mapped: mmap.mmap | None = None
        self.vulkan: list[weakref.ref[Any]] = []

    def _enter(self, name: str) -> None:
        self.calls.append(name)
        if name == self.failing:
            raise GpuUnavailableError(f"CUDA refused {name}")

    def uuids(self) -> list[bytes]:
        self._enter("uuids")
        return [bytes(16), self._uuid]

    def import_memory(self, ordinal: int, descriptor: int, size: int) -> Any:
        assert ordinal == 1
        self.descriptors.append(descriptor)
        self._enter("import_memory")
        self.mapped = mmap.mmap(descriptor, PAYLOAD + size)
        return descriptor

    def map_buffer(self, memory: Any, offset: int, size: int) -> int:
        self._enter("map_buffer")
        assert self.mapped is not None
        return ctypes.addressof(ctypes.c_char.from_buffer(self.mapped)) + PAYLOAD + offset

    def synchronize(self) -> None:
        assert all(one() is not None for one in self.vulkan), "Vulkan's side went first"
        self._enter("synchronize")

    def free(self, pointer: int) -> None:
        self._enter("free")

    def destroy_memory(self, memory: Any) -> None:
        self._enter("destroy_memory")
        os.close(memory)


def _as_array(rows: CudaRows, ordinal: int, copy: bool) -> Any:
    """What torch does with the interface, on the CPU: the array keeps ``rows``."""
    wanted = rows.__cuda_array_interface__
    shape, (pointer, _) = wanted["shape"], wanted["data"]
    held: Any = (ctypes.c_char * (4 * shape[0] * shape[1])).from_address(pointer)
    held.rows = rows
    array = np.frombuffer(held, wanted["typestr"]).reshape(shape)
    return array.copy() if copy else array


def _uuid(device: VulkanDevice) -> bytes:
    return device.exported_memory().context.info.uuid


def _shared(device: VulkanDevice, failing: str = "") -> tuple[FakeRuntime, CudaOutput]:
    runtime = FakeRuntime(_uuid(device), failing)
    return runtime, CudaOutput(device, runtime, as_tensor=_as_array)


@pytest.mark.parametrize("direct", [None, False])
def test_cuda_sees_what_the_shader_wrote(rng: np.random.Generator, direct: bool | None) -> None:
    x, keys = unit_rows(rng, 10, 32), keys_of(rng, 10)
    with opened(exported=True, copy=False, direct=direct, batch_rows=64) as device:
        _, output = _shared(device)
        for _ in range(4):  # every slot, and the first one again
            pending = device.isotropic(x, keys, 0.8)
            assert output.tensor(pending).tobytes() == pending.result().x.tobytes()
        output.close()


def test_calls_come_in_order_and_the_descriptor_is_cudas() -> None:
    with opened(exported=True, copy=False, batch_rows=64) as device:
        runtime, output = _shared(device)
        assert runtime.calls == ["uuids", "import_memory", "map_buffer"]
        os.fstat(runtime.descriptors[0])  # open: CUDA has it
        output.close()
        output.close()
        assert runtime.calls[3:] == ["synchronize", "free", "destroy_memory"]
        with pytest.raises(OSError, match="descriptor"):
            os.fstat(runtime.descriptors[0])


@pytest.mark.parametrize(
    ("failing", "undone"),
    [("uuids", []), ("import_memory", []), ("map_buffer", ["destroy_memory"])],
)
def test_a_failing_step_leaves_nothing_behind(failing: str, undone: list[str]) -> None:
    with opened(exported=True, copy=False, batch_rows=64) as device:
        before = set(os.listdir("/proc/self/fd")) if Path("/proc/self/fd").exists() else set()
        runtime = FakeRuntime(_uuid(device), failing)
        with pytest.raises(GpuUnavailableError, match=failing):
            CudaOutput(device, runtime, as_tensor=_as_array)
        assert runtime.calls[runtime.calls.index(failing) + 1 :] == undone
        for descriptor in runtime.descriptors:
            with pytest.raises(OSError, match="descriptor"):
                os.fstat(descriptor)
        if before:
            runtime.mapped = None
            assert set(os.listdir("/proc/self/fd")) <= before
        # The device goes on working.
        keys = keys_of(np.random.default_rng(1), 2)
        assert device.normals(keys, 0, 8).shape == (2, 8)


def test_a_tensor_keeps_both_sides_alive(rng: np.random.Generator) -> None:
    x, keys = unit_rows(rng, 10, 32), keys_of(rng, 10)
    device = device_of(exported=True, copy=False, batch_rows=64)
    runtime, output = _shared(device)
    runtime.vulkan = [weakref.ref(device), weakref.ref(device.exported_memory())]
    pending = device.isotropic(x, keys, 0.8)
    expected = pending.result().x.copy()
    tensor = output.tensor(pending, copy=False)
    watched = weakref.ref(output)
    del device, output, pending
    gc.collect()
    assert tensor.tobytes() == expected.tobytes()
    assert "free" not in runtime.calls
    del tensor
    gc.collect()
    assert watched() is None
    assert runtime.calls[-3:] == ["synchronize", "free", "destroy_memory"]
    assert all(one() is None for one in runtime.vulkan)


def test_batches_that_are_copied_out_are_refused(rng: np.random.Generator) -> None:
    with opened(exported=True, copy=False, batch_rows=4) as device:
        _, output = _shared(device)
        for rows, dim in ((9, 32), (2, 33)):
            pending = device.isotropic(unit_rows(rng, rows, dim), keys_of(rng, rows), 0.8)
            with pytest.raises(InvalidValueError, match="copy"):
                output.tensor(pending)
        old = [device.isotropic(unit_rows(rng, 2, 32), keys_of(rng, 2), 0.8) for _ in range(4)]
        with pytest.raises(ClosedError):
            output.tensor(old[0])
        output.close()


def test_devices_that_do_not_export_are_refused() -> None:
    runtime = FakeRuntime(b"")
    for copy in (True, False):
        with opened(copy=copy, batch_rows=64) as device:
            refused = pytest.raises(InvalidValueError, match="exported")
            with refused:
                CudaOutput(device, runtime, as_tensor=_as_array)
    assert runtime.calls == []


def test_a_gpu_that_cuda_does_not_have_is_refused() -> None:
    runtime = FakeRuntime(bytes(range(16)))
    assert vk_cuda.ordinal_of(runtime, bytes(range(16))) == 1
    with pytest.raises(GpuUnavailableError, match="UUID"):
        vk_cuda.ordinal_of(runtime, bytes(range(1, 17)))


def test_without_cuda_bindings_the_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cuda.bindings", None)
    with pytest.raises(GpuUnavailableError, match="pip install cuda-bindings"):
        CudaBindings()


class _FakeBindings:
    """The functions of cuda.bindings.runtime: each answers (error, value)."""

    class cudaExternalMemoryHandleDesc:
        def __init__(self) -> None:
            self.handle = type("Handle", (), {})()

    class cudaExternalMemoryBufferDesc:
        pass

    class cudaExternalMemoryHandleType:
        cudaExternalMemoryHandleTypeOpaqueFd = 1

    cudaExternalMemoryDedicated = 1

    def __init__(self) -> None:
        self.seen: list[tuple[str, tuple[Any, ...]]] = []
        self.error = 0

    def __getattr__(self, name: str) -> Any:
        def call(*arguments: Any) -> tuple[Any, ...]:
            self.seen.append((name, arguments))
            return (self.error, 77)

        return call


def test_descriptions_for_cuda_are_filled_in() -> None:
    bindings = CudaBindings.__new__(CudaBindings)
    fake = bindings._runtime = _FakeBindings()
    assert bindings.import_memory(3, 9, 4096) == 77
    assert fake.seen[0] == ("cudaSetDevice", (3,))
    name, (wanted,) = fake.seen[1]
    assert name == "cudaImportExternalMemory"
    assert (wanted.type, wanted.handle.fd, wanted.size, wanted.flags) == (1, 9, 4096, 1)
    assert bindings.map_buffer("memory", 256, 512) == 77
    name, (memory, part) = fake.seen[2]
    assert name == "cudaExternalMemoryGetMappedBuffer"
    assert (memory, part.offset, part.size, part.flags) == ("memory", 256, 512, 0)
    fake.error = 35
    with pytest.raises(GpuUnavailableError, match="cudaFree"):
        bindings.free(77)
