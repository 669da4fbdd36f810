"""Results of the Vulkan device as CUDA tensors, without a way through the host.

The memory in which the shader leaves its rows is exported as a file descriptor and imported by CUDA
on the same GPU, found by its UUID and never by its index. Calls, in this order::

    vkGetMemoryFdKHR -> cudaImportExternalMemory -> cudaExternalMemoryGetMappedBuffer
    cudaDeviceSynchronize -> cudaFree -> cudaDestroyExternalMemory -> vkFreeMemory

Each export is a new descriptor. It is ours until CUDA has imported it, and CUDA's from then on; so
it is closed here exactly when the import fails. A tensor refers to ``CudaRows``, that to
``CudaOutput``, and that to the Vulkan memory, which therefore outlives every tensor over it.

The host waits for a batch before CUDA may read it. ``CudaRuntime`` is the seam for tests: nothing
else of this module knows how CUDA is called.
"""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable
from importlib import import_module
from typing import Any, Final, Protocol

from mldb.errors import GpuUnavailableError, InvalidValueError
from mldb.gpu import vk_errors, vk_instance
from mldb.gpu.device import Pending
from mldb.gpu.vk_device import VulkanDevice
from mldb.gpu.vk_memory import Buffer
from mldb.gpu.vk_pending import VulkanPending

NO_BINDINGS: Final = (
    "the package `cuda-bindings` is not installed; `pip install cuda-bindings` of the CUDA version "
    "of torch, or take results as NumPy arrays"
)


class CudaRuntime(Protocol):
    """The calls of the CUDA runtime that are made; each raises GpuUnavailableError."""

    def uuids(self) -> list[bytes]:
        """Return the UUIDs of 16 bytes of the CUDA devices, by ordinal."""

    def import_memory(self, ordinal: int, descriptor: int, size: int) -> Any:
        """Import a dedicated allocation of *size* bytes; on success CUDA owns the descriptor."""

    def map_buffer(self, memory: Any, offset: int, size: int) -> int:
        """Return the device pointer of a part of imported memory."""

    def synchronize(self) -> None:
        """Wait until the device does nothing."""

    def free(self, pointer: int) -> None:
        """Undo ``map_buffer``."""

    def destroy_memory(self, memory: Any) -> None:
        """Undo ``import_memory``; closes the descriptor."""


class CudaBindings:
    """``CudaRuntime`` by the package cuda-bindings. Raises GpuUnavailableError without it."""

    def __init__(self) -> None:
        try:
            self._runtime: Any = import_module("cuda.bindings.runtime")
        except ImportError as error:
            raise GpuUnavailableError(NO_BINDINGS) from error

    def uuids(self) -> list[bytes]:
        """Return the UUIDs of the CUDA devices."""
        count = self._call("cudaGetDeviceCount")
        found = (self._call("cudaGetDeviceProperties", ordinal) for ordinal in range(count))
        return [bytes(properties.uuid.bytes) for properties in found]

    def import_memory(self, ordinal: int, descriptor: int, size: int) -> Any:
        """Import a dedicated allocation from a descriptor."""
        runtime = self._runtime
        self._call("cudaSetDevice", ordinal)
        wanted = runtime.cudaExternalMemoryHandleDesc()
        kinds = runtime.cudaExternalMemoryHandleType
        wanted.type = kinds.cudaExternalMemoryHandleTypeOpaqueFd
        wanted.handle.fd = descriptor
        wanted.size = size
        wanted.flags = runtime.cudaExternalMemoryDedicated
        return self._call("cudaImportExternalMemory", wanted)

    def map_buffer(self, memory: Any, offset: int, size: int) -> int:
        """Return the device pointer of a part of imported memory."""
        wanted = self._runtime.cudaExternalMemoryBufferDesc()
        wanted.offset, wanted.size, wanted.flags = offset, size, 0
        return int(self._call("cudaExternalMemoryGetMappedBuffer", memory, wanted))

    def synchronize(self) -> None:
        """Wait until the device does nothing."""
        self._call("cudaDeviceSynchronize")

    def free(self, pointer: int) -> None:
        """Free a mapped buffer."""
        self._call("cudaFree", pointer)

    def destroy_memory(self, memory: Any) -> None:
        """Destroy imported memory."""
        self._call("cudaDestroyExternalMemory", memory)

    def _call(self, name: str, *arguments: Any) -> Any:
        """Call a function; its first result is the error code."""
        error, *values = getattr(self._runtime, name)(*arguments)
        if int(error):
            raise GpuUnavailableError(f"CUDA refused {name}: {error}")
        return values[0] if values else None


class CudaRows:
    """Rows [B, d] in CUDA memory; torch reads ``__cuda_array_interface__`` and keeps this object.

    Valid until ``slots`` further batches were started; the memory itself lives as long as this.
    """

    def __init__(self, output: CudaOutput, pointer: int, rows: int, dim: int) -> None:
        self.output = output
        self.__cuda_array_interface__: dict[str, Any] = {
            "shape": (rows, dim),
            "typestr": "<f4",
            "data": (pointer, False),
            "strides": None,
            "version": 3,
        }


def torch_tensor(rows: CudaRows, ordinal: int, copy: bool) -> Any:
    """Return rows as a tensor on a CUDA device; a copy is complete when this returns."""
    import torch

    # Without a device torch has returned copies on the CPU.
    shared = torch.as_tensor(rows, device=f"cuda:{ordinal}")
    if not copy:
        return shared
    copied = shared.clone()
    torch.cuda.current_stream(ordinal).synchronize()
    return copied


class CudaOutput:
    """What a Vulkan device writes, as CUDA sees it. A single thread at a time, as the device.

    The device must have been opened with ``exported=True`` and ``copy=False``. ``close`` (or the
    end of this object) gives CUDA's side back and only then lets go of Vulkan's.
    """

    def __init__(
        self,
        device: VulkanDevice,
        runtime: CudaRuntime,
        *,
        as_tensor: Callable[[CudaRows, int, bool], Any] = torch_tensor,
    ) -> None:
        if device.copy:
            raise InvalidValueError(
                "a device that copies to the host has nothing to share; open "
                "it with exported=True and copy=False"
            )
        buffer = device.exported_memory()
        self.ordinal = ordinal_of(runtime, buffer.context.info.uuid)
        self._as_tensor = as_tensor
        memory = import_buffer(runtime, self.ordinal, buffer)
        try:
            self.pointer = runtime.map_buffer(memory, 0, buffer.size)
        except BaseException:
            runtime.destroy_memory(memory)
            raise
        # The device is kept as well: it frees the memory when it goes.
        self._finalizer = weakref.finalize(self, _unmap, runtime, memory, self.pointer, device)

    def rows(self, pending: Pending) -> CudaRows:
        """Wait for a batch and return its rows where they are.

        Raises what ``Pending.result`` does, and InvalidValueError for a batch that was copied out:
        one of several slots, or of rows that are no multiple of 4 components.
        """
        if not isinstance(pending, VulkanPending):
            raise InvalidValueError("a batch without rows has no place in CUDA memory")
        offset, rows, dim = pending.place()
        return CudaRows(self, self.pointer + offset, rows, dim)

    def tensor(self, pending: Pending, *, copy: bool = True) -> Any:
        """Return the rows of a batch as a CUDA tensor.

        A copy is the caller's own. Without it the tensor is valid until ``slots`` further batches
        were started.
        """
        return self._as_tensor(self.rows(pending), self.ordinal, copy)

    def close(self) -> None:
        """Give CUDA's side back; tensors over the memory must be gone. Twice is harmless."""
        self._finalizer()


def _unmap(runtime: CudaRuntime, memory: Any, pointer: int, device: VulkanDevice) -> None:
    """Undo the import in reverse order, with nothing on its way."""
    runtime.synchronize()
    runtime.free(pointer)
    runtime.destroy_memory(memory)
    del device


def ordinal_of(runtime: CudaRuntime, uuid: bytes) -> int:
    """Return the CUDA device with a UUID. Raises GpuUnavailableError."""
    found = runtime.uuids()
    if uuid not in found:
        there = ", ".join(one.hex() for one in found) or "none"
        raise GpuUnavailableError(
            f"no CUDA device has the UUID {uuid.hex()} of the Vulkan device (there are: {there}); "
            "take results as NumPy arrays"
        )
    return found.index(uuid)


def export_descriptor(buffer: Buffer) -> int:
    """Return a new file descriptor of exported memory; the caller owns it.

    Raises GpuUnavailableError when the device cannot export memory.
    """
    context = buffer.context
    if vk_instance.MEMORY_FD not in context.info.extensions:
        raise GpuUnavailableError(f"{context.info.label} has no {vk_instance.MEMORY_FD}")
    api = context.api
    wanted = api.VkMemoryGetFdInfoKHR(
        memory=buffer.memory, handleType=api.VK_EXTERNAL_MEMORY_HANDLE_TYPE_OPAQUE_FD_BIT
    )
    with vk_errors.translated(api, "export memory", device=context.info.label):
        return int(context.procedure("vkGetMemoryFdKHR")(context.device, wanted))


def import_buffer(runtime: CudaRuntime, ordinal: int, buffer: Buffer) -> Any:
    """Return CUDA's handle of a buffer's memory; a failed import closes the descriptor."""
    descriptor = export_descriptor(buffer)
    try:
        return runtime.import_memory(ordinal, descriptor, buffer.allocated)
    except BaseException:
        close_descriptor(descriptor)
        raise


def close_descriptor(descriptor: int) -> None:
    """Close a descriptor that nobody imported."""
    os.close(descriptor)
