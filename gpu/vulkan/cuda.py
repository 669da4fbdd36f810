"""Results of the Vulkan device as CUDA tensors, without a way through the host.

The memory in which the shader leaves its rows is exported as a file descriptor and imported by CUDA
on the same GPU, found by its UUID and never by its index. Calls, in this order::

    vkGetMemoryFdKHR -> cudaImportExternalMemory -> cudaExternalMemoryGetMappedBuffer
    vkGetSemaphoreFdKHR -> cudaImportExternalSemaphore, for each of two timelines
    cudaDeviceSynchronize -> cudaDestroyExternalSemaphore, twice -> cudaFree
                          -> cudaDestroyExternalMemory -> vkFreeMemory

Each export is a new descriptor. It is ours until CUDA has imported it, and CUDA's from then on; so
it is closed here exactly when the import fails. A tensor refers to ``CudaRows``, that to
``CudaMapping`` and that to the Vulkan device, which therefore outlives every tensor over its
memory.

The host waits for a batch, because rows that are no unit vectors are known only then; it never
waits for CUDA where timelines are shared (``turns``).
"""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any

from mldb.errors import ClosedError, GpuUnavailableError, InvalidValueError
from mldb.gpu.cuda.runtime import CudaRuntime
from mldb.gpu.device import Chains, Pending
from mldb.gpu.vulkan import errors as vk_errors
from mldb.gpu.vulkan import instance as vk_instance
from mldb.gpu.vulkan.device import VulkanDevice
from mldb.gpu.vulkan.memory import DeviceBuffer
from mldb.gpu.vulkan.pending import SlotRows, VulkanPending
from mldb.gpu.vulkan.timeline import TimelineSemaphore
from mldb.gpu.vulkan.turns import HostTurns, SharedTurns, Turns, end_when_needed


class CudaMapping:
    """The memory of a Vulkan device's results as CUDA sees it, for as long as anybody holds this.

    At its end CUDA's side is given back, and only then Vulkan's. A forked child leaves both alone.
    """

    def __init__(self, pointer: int, undo: ExitStack) -> None:
        self.pointer = pointer
        weakref.finalize(self, _give_back, undo, os.getpid())


def _give_back(undo: ExitStack, pid: int) -> None:
    if pid == os.getpid():
        undo.close()


class CudaRows:
    """Rows [B, d] in CUDA memory; torch reads ``__cuda_array_interface__`` and keeps this object.

    Valid until ``slots`` further batches were started; the memory itself lives as long as this.
    """

    def __init__(self, mapped: CudaMapping, offset: int, rows: int, dim: int) -> None:
        self.mapped = mapped
        self.__cuda_array_interface__: dict[str, Any] = {
            "shape": (rows, dim),
            "typestr": "<f4",
            "data": (mapped.pointer + offset, False),
            "strides": None,
            "version": 3,
        }


def torch_tensor(rows: CudaRows, ordinal: int, copy: bool) -> Any:
    """Return rows as a tensor on a CUDA device; a copy is made in the current stream."""
    import torch

    # Without a device torch has returned copies on the CPU.
    shared = torch.as_tensor(rows, device=f"cuda:{ordinal}")
    return shared.clone() if copy else shared


def torch_stream(ordinal: int) -> int:
    """Return the address of torch's current stream on a CUDA device."""
    import torch

    return int(torch.cuda.current_stream(ordinal).cuda_stream)


@dataclass(frozen=True, slots=True)
class TensorMaker:
    """What makes tensors and knows the stream they are made in; torch, but for tests."""

    tensor: Callable[[CudaRows, int, bool], Any] = torch_tensor
    stream: Callable[[int], int] = torch_stream


class CudaOutput:
    """What a Vulkan device writes, as CUDA sees it. A single thread at a time, as the device.

    The device must have been opened with ``exported=True`` and ``copy=False``. A device has one at
    a time. ``timelines``
    are shared where the device can do that: then no host waits for a stream.
    """

    def __init__(
        self,
        device: VulkanDevice,
        runtime: CudaRuntime,
        *,
        maker: TensorMaker | None = None,
        timelines: bool = True,
    ) -> None:
        if device.copy:
            raise InvalidValueError(
                "a device that copies to the host has nothing to share; open "
                "it with exported=True and copy=False"
            )
        self._maker = TensorMaker() if maker is None else maker
        with ExitStack() as undo:
            buffer = device.share()
            # The device is kept as well: it frees the memory when it goes.
            undo.callback(device.unshare)
            self.ordinal = ordinal_of(runtime, buffer.context.info.uuid)
            runtime.use(self.ordinal)
            memory = import_owned(
                runtime.import_memory, partial(export_descriptor, buffer), buffer.allocated
            )
            undo.callback(runtime.destroy_memory, memory)
            pointer = runtime.map_buffer(memory, 0, buffer.size)
            undo.callback(runtime.free, pointer)
            self._turns = _turns(runtime, device.timelines() if timelines else None, undo)
            undo.callback(runtime.synchronize)
            self._mapped: CudaMapping | None = CudaMapping(pointer, undo.pop_all())

    def tensor(self, pending: Pending, *, copy: bool = True) -> Any:
        """Return the rows of a batch as a CUDA tensor; see :meth:`chains`."""
        return self.chains(pending, copy=copy).x

    def chains(self, pending: Pending, *, copy: bool = True) -> Chains:
        """Wait for a batch; its rows as a CUDA tensor, for the stream that is current.

        A copy is the caller's own. Without it the tensor is valid until ``slots`` further batches
        were started: what was put into that stream by then still reads these rows, and what other
        streams do must wait for it. The memory lives as long as the tensor.

        Raises what ``Pending.result`` does, ClosedError after close, and InvalidValueError for a
        batch that was copied out: one of several slots, or of rows that are no multiple of 4
        components.
        """
        if self._mapped is None:
            raise ClosedError("these results are shared no longer; the device hands out arrays")
        place = self._place(pending)
        rows = CudaRows(self._mapped, place.offset, place.rows, place.dim)
        stream = self._maker.stream(self.ordinal)
        self._turns.begin(place.batch, stream)
        tensor = self._maker.tensor(rows, self.ordinal, copy)
        if copy:
            self._turns.end(place.slot, stream)
        else:
            end_when_needed(self._turns, place.slot, stream)
        return Chains(tensor, place.accepted.copy())

    def _place(self, pending: Pending) -> SlotRows:
        if not isinstance(pending, VulkanPending):
            raise InvalidValueError("a batch without rows has no place in CUDA memory")
        return pending.place()

    def close(self) -> None:
        """Let go of CUDA's side, which goes with the last tensor over it. Twice is harmless."""
        self._mapped = None


def _turns(
    runtime: CudaRuntime,
    timelines: tuple[TimelineSemaphore, TimelineSemaphore] | None,
    undo: ExitStack,
) -> Turns:
    """Import the timelines where there are any; *undo* gives them back."""
    if timelines is None:
        return HostTurns(runtime)
    known = []
    for timeline in timelines:
        known.append(import_owned(runtime.import_timeline, timeline.export_descriptor))
        undo.callback(runtime.destroy_timeline, known[-1])
    return SharedTurns(runtime, known[0], known[1], timelines[1])


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


def export_descriptor(buffer: DeviceBuffer) -> int:
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


def import_owned(take: Callable[..., Any], export: Callable[[], int], *size: int) -> Any:
    """Let CUDA *take* what *export* returns a descriptor of; a failed import closes it."""
    descriptor = export()
    try:
        return take(descriptor, *size)
    except BaseException:
        close_descriptor(descriptor)
        raise


def close_descriptor(descriptor: int) -> None:
    """Close a descriptor that nobody imported."""
    os.close(descriptor)
