"""Items 3 and 4 of ``mldb.gpu.selftest.items``: memory shared with CUDA, and batches in flight."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Final

import numpy as np
import numpy.typing as npt

from mldb.errors import GpuUnavailableError
from mldb.gpu.cuda.runtime import CudaBindings, CudaRuntime
from mldb.gpu.device import Pending
from mldb.gpu.reference import NumpyDevice
from mldb.gpu.selftest.lines import Line, index_of, judged
from mldb.gpu.selftest.rates import DIM, sample_keys, unit_rows
from mldb.gpu.vulkan import cuda as vk_cuda
from mldb.gpu.vulkan.device import VulkanDevice, open_vulkan
from mldb.noise.keys import Keys

BATCHES: Final = 300
CUDA_BATCHES: Final = 10_000
CYCLES: Final = 100


def export(device: VulkanDevice) -> Iterator[Line]:
    """Item 3: memory as a descriptor, and on NVIDIA as a CUDA tensor."""
    shared = open_vulkan(index_of(device), exported=True, copy=False, batch_rows=64)
    try:
        memory = shared.exported_memory()
        descriptor = vk_cuda.export_descriptor(memory)
        vk_cuda.close_descriptor(descriptor)
        yield Line("export", "PASS", f"{memory.allocated:,} bytes as a file descriptor")
        try:
            runtime = CudaBindings()
        except GpuUnavailableError as error:
            yield Line("export", "SKIP", str(error))
        else:
            yield from _as_cuda_tensors(shared, runtime)
    finally:
        shared.close()


def _as_cuda_tensors(shared: VulkanDevice, runtime: CudaRuntime) -> Iterator[Line]:
    keys, x = sample_keys(64), unit_rows(64, DIM)
    output = vk_cuda.CudaOutput(shared, runtime)
    pending = shared.isotropic(x, keys, 0.9)
    tensor = output.tensor(pending, copy=False)
    again = output.tensor(pending, copy=False)
    yield judged("export", tensor.data_ptr() == again.data_ptr(), "torch uses the pointer as it is")
    del again
    same = np.array_equal(tensor.cpu().numpy(), pending.result().x)
    yield judged("export", same, "torch reads what the shader wrote")
    del tensor
    output.close()
    memory = shared.exported_memory()
    seen = set()
    for _ in range(CYCLES):
        handle = vk_cuda.import_owned(
            runtime.import_memory,
            partial(vk_cuda.export_descriptor, memory),
            memory.allocated,
        )
        runtime.destroy_memory(handle)
        descriptor = vk_cuda.export_descriptor(memory)
        vk_cuda.close_descriptor(descriptor)
        seen.add(descriptor)
    yield judged("export", len(seen) <= 2, f"{CYCLES} imports leave no descriptors behind")


def stamps(device: VulkanDevice) -> Iterator[Line]:
    """Item 4: many batches in flight, each looked at: a race shows as another batch's numbers."""
    wrong = _wrong_batches(device, BATCHES, lambda pending: pending.result().x)
    yield judged("batches", not wrong, f"{BATCHES} in flight by {device.slots}, {wrong} wrong")
    try:
        runtime = CudaBindings()
    except GpuUnavailableError as error:
        yield Line("batches", "SKIP", f"shared with CUDA: {error}")
        return
    for shared in (True, False):
        yield _cuda_batches(device, runtime, timelines=shared)


def _cuda_batches(device: VulkanDevice, runtime: CudaRuntime, *, timelines: bool) -> Line:
    shared = open_vulkan(index_of(device), exported=True, copy=False, batch_rows=64)
    try:
        if timelines and shared.timelines() is None:
            return Line("batches", "SKIP", "the device cannot share timelines")
        output = vk_cuda.CudaOutput(shared, runtime, timelines=timelines)
        wrong = _wrong_batches(
            shared, CUDA_BATCHES, lambda pending: output.tensor(pending).cpu().numpy()
        )
        output.close()
        who = "timelines shared with CUDA" if timelines else "the host waits for CUDA"
        return judged("batches", not wrong, f"{CUDA_BATCHES}, {who}, {wrong} wrong")
    finally:
        shared.close()


def _wrong_batches(
    device: VulkanDevice, batches: int, rows_of: Callable[[Pending], npt.NDArray[np.float32]]
) -> int:
    reference, count = NumpyDevice(np.float32), 8
    x = unit_rows(count, 32)
    base = sample_keys(count)
    wrong = 0
    waiting: list[tuple[Keys, Pending]] = []
    for number in range(batches):
        keys = Keys(base.seed, number, base.rows, base.augmentations)
        waiting.append((keys, device.isotropic(x, keys, 0.5)))
        if len(waiting) == device.slots:
            keys, pending = waiting.pop(0)
            expected = reference.isotropic(x, keys, 0.5).result().x
            wrong += not np.allclose(rows_of(pending), expected, atol=1e-5)
    return wrong
