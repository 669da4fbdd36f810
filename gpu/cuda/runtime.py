"""The calls of the CUDA runtime that are made, behind a seam: nothing else knows how."""

from __future__ import annotations

from importlib import import_module
from typing import Any, Final, Protocol

from mldb.errors import GpuUnavailableError

NO_BINDINGS: Final = (
    "the package `cuda-bindings` is not installed; `pip install cuda-bindings` of the CUDA version "
    "of torch, or take results as NumPy arrays"
)


class CudaRuntime(Protocol):
    """What is asked of CUDA; each call raises GpuUnavailableError. Streams are their addresses."""

    def uuids(self) -> list[bytes]:
        """Return the UUIDs of 16 bytes of the CUDA devices, by ordinal."""

    def use(self, ordinal: int) -> None:
        """Make every later call on this device, whichever is current for the caller."""

    def import_memory(self, descriptor: int, size: int) -> Any:
        """Import a dedicated allocation of *size* bytes; on success CUDA owns the descriptor."""

    def map_buffer(self, memory: Any, offset: int, size: int) -> int:
        """Return the device pointer of a part of imported memory."""

    def import_timeline(self, descriptor: int) -> Any:
        """Import a timeline semaphore; on success CUDA owns the descriptor."""

    def wait(self, timeline: Any, value: int, stream: int) -> None:
        """Let what is put into a stream from now on wait for a value. Returns at once."""

    def signal(self, timeline: Any, value: int, stream: int) -> None:
        """Set a value once what was put into a stream so far is done. Returns at once."""

    def synchronize_stream(self, stream: int) -> None:
        """Wait until what was put into a stream so far is done."""

    def synchronize(self) -> None:
        """Wait until the device does nothing."""

    def destroy_timeline(self, timeline: Any) -> None:
        """Undo ``import_timeline``; closes the descriptor."""

    def free(self, pointer: int) -> None:
        """Undo ``map_buffer``."""

    def destroy_memory(self, memory: Any) -> None:
        """Undo ``import_memory``; closes the descriptor."""


class CudaBindings:
    """``CudaRuntime`` by the package cuda-bindings. Raises GpuUnavailableError without it.

    Names and fields are those of CUDA's manual, "External Resource Interoperability".
    """

    def __init__(self) -> None:
        try:
            self._runtime: Any = import_module("cuda.bindings.runtime")
        except ImportError as error:
            raise GpuUnavailableError(NO_BINDINGS) from error
        self._ordinal: int | None = None

    def use(self, ordinal: int) -> None:
        """Make every later call on this device."""
        self._ordinal = ordinal

    def uuids(self) -> list[bytes]:
        """Return the UUIDs of the CUDA devices."""
        count = self._call("cudaGetDeviceCount")
        found = (self._call("cudaGetDeviceProperties", ordinal) for ordinal in range(count))
        return [bytes(properties.uuid.bytes) for properties in found]

    def import_memory(self, descriptor: int, size: int) -> Any:
        """Import a dedicated allocation from a descriptor."""
        runtime = self._runtime
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

    def import_timeline(self, descriptor: int) -> Any:
        """Import a timeline semaphore from a descriptor."""
        runtime = self._runtime
        wanted = runtime.cudaExternalSemaphoreHandleDesc()
        kinds = runtime.cudaExternalSemaphoreHandleType
        wanted.type = kinds.cudaExternalSemaphoreHandleTypeTimelineSemaphoreFd
        wanted.handle.fd = descriptor
        wanted.flags = 0
        return self._call("cudaImportExternalSemaphore", wanted)

    def wait(self, timeline: Any, value: int, stream: int) -> None:
        """Put a wait for a value into a stream."""
        wanted = self._runtime.cudaExternalSemaphoreWaitParams()
        wanted.params.fence.value, wanted.flags = value, 0
        self._call("cudaWaitExternalSemaphoresAsync", [timeline], [wanted], 1, stream)

    def signal(self, timeline: Any, value: int, stream: int) -> None:
        """Put the setting of a value into a stream."""
        wanted = self._runtime.cudaExternalSemaphoreSignalParams()
        wanted.params.fence.value, wanted.flags = value, 0
        self._call("cudaSignalExternalSemaphoresAsync", [timeline], [wanted], 1, stream)

    def synchronize_stream(self, stream: int) -> None:
        """Wait for a stream."""
        self._call("cudaStreamSynchronize", stream)

    def synchronize(self) -> None:
        """Wait until the device does nothing."""
        self._call("cudaDeviceSynchronize")

    def destroy_timeline(self, timeline: Any) -> None:
        """Destroy an imported semaphore."""
        self._call("cudaDestroyExternalSemaphore", timeline)

    def free(self, pointer: int) -> None:
        """Free a mapped buffer."""
        self._call("cudaFree", pointer)

    def destroy_memory(self, memory: Any) -> None:
        """Destroy imported memory."""
        self._call("cudaDestroyExternalMemory", memory)

    def _call(self, name: str, *arguments: Any) -> Any:
        """Call a function on the device in use; leave the caller's current one as it is.

        A thread has a current device of its own, and stream 0 means one of that device.
        """
        if self._ordinal is None:
            return self._plain(name, *arguments)
        before = self._plain("cudaGetDevice")
        self._plain("cudaSetDevice", self._ordinal)
        try:
            return self._plain(name, *arguments)
        finally:
            self._plain("cudaSetDevice", before)

    def _plain(self, name: str, *arguments: Any) -> Any:
        """Call a function; its first result is the error code."""
        try:
            error, *values = getattr(self._runtime, name)(*arguments)
        except RuntimeError as missing:  # a driver too old for it
            raise GpuUnavailableError(f"CUDA has no {name}: {missing}") from missing
        if int(error):
            raise GpuUnavailableError(f"CUDA refused {name}: {error}")
        return values[0] if values else None
