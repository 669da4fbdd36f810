"""Device memory: buffers that the host can see, buffers that it cannot, and imported host memory.

Vulkan promises at least one memory type that is both HOST_VISIBLE and HOST_COHERENT, so nothing
here flushes or invalidates. A ``DeviceBuffer`` must outlive the commands that use it; its view must
not be used after ``close``.
"""

from __future__ import annotations

import os
import weakref
from contextlib import ExitStack
from dataclasses import dataclass, field
from enum import Enum
from functools import partial
from typing import Any, Final, TypeAlias

import numpy as np
import numpy.typing as npt

from mldb.errors import GpuUnavailableError
from mldb.gpu.vulkan import errors as vk_errors
from mldb.gpu.vulkan import instance as vk_instance
from mldb.gpu.vulkan.context import Context

Bytes: TypeAlias = npt.NDArray[np.uint8]

BUFFER_ALIGNMENT: Final = 256
"""Of regions inside a buffer; no device asks for more of the offset of a binding."""
HOST_PAGE_BYTES: Final = 4096
"""The smallest page of any machine this runs on: memory up to the next one is mapped too."""


# What this process allocated of its devices, and, after a fork, what its parent had. Each operation
# is atomic: buffers go in finalizers.
_allocated: dict[tuple[int, object], int] = {}


def allocated_bytes() -> int:
    """The bytes that this process holds of all its Vulkan devices; imported memory is not theirs.

    Rings, and tables that were copied. What a driver takes for itself is not known here.
    """
    return sum(size for (pid, _), size in tuple(_allocated.items()) if pid == os.getpid())


class MemoryPlace(Enum):
    """Where a buffer lives: flags that its memory must have, then those that are preferred."""

    SHARED = ("DEVICE_LOCAL", "HOST_VISIBLE", "HOST_COHERENT"), ("HOST_CACHED",)
    UPLOAD = ("HOST_VISIBLE", "HOST_COHERENT"), ()
    READBACK = ("HOST_VISIBLE", "HOST_COHERENT"), ("HOST_CACHED",)
    DEVICE = ("DEVICE_LOCAL",), ()


@dataclass(slots=True, eq=False, weakref_slot=True)
class DeviceBuffer:
    """A VkBuffer with its memory; ``view`` is u8 [size] where the host sees it.

    ``close`` drops the view. Where somebody else still holds an array over the same memory, the
    memory goes when the last of those arrays does: a result that outlives its device stays
    readable.
    """

    context: Context
    handle: Any
    memory: Any
    size: int
    allocated: int
    """Bytes of the allocation, which exported memory has to be imported with."""
    view: Bytes | None = None
    source: object = None
    """What must live as long as the memory: the array it was imported from."""
    _texels: list[Any] = field(default_factory=list)
    _entry: tuple[int, object] = field(default_factory=lambda: (os.getpid(), object()))

    def __post_init__(self) -> None:
        self.context.hold()
        if self.source is None:
            _allocated[self._entry] = self.allocated

    def texels(self, offset: int = 0, size: int | None = None) -> Any:
        """Return a part of the buffer as texels of four float32; destroyed with the buffer.

        Reading texels is what lavapipe is fast at: a storage buffer is read lane by lane there.
        """
        api = self.context.api
        info = api.ffi.new("VkBufferViewCreateInfo*")
        info.sType = api.VK_STRUCTURE_TYPE_BUFFER_VIEW_CREATE_INFO
        info.buffer, info.offset = self.handle, offset
        info.format = api.VK_FORMAT_R32G32B32A32_SFLOAT
        info.range = self.size - offset if size is None else size
        with vk_errors.translated(api, "view a buffer", device=self.context.info.label):
            self._texels.append(api.vkCreateBufferView(self.context.device, info, None))
        return self._texels[-1]

    @property
    def closed(self) -> bool:
        """Whether the memory was given back, or will be with the last array over it."""
        return self.memory is None

    def close(self) -> None:
        """Give the memory back. The device must be done with it; closing twice is harmless."""
        if self.memory is None:
            return
        free = partial(_free, self.context, self._entry, self.handle, self.memory, self._texels)
        self.memory = None
        if self.view is None:
            free()
        else:
            # Views of views share this root, so it lives as long as the last of them.
            weakref.finalize(self.view, free).atexit = False
            self.view = None
        self.source = None


def _free(context: Context, entry: tuple[int, object], *what: Any) -> None:
    if context.free(*what):
        _allocated.pop(entry, None)


def aligned(size: int, alignment: int = BUFFER_ALIGNMENT) -> int:
    """Return *size* rounded up to a multiple of *alignment*."""
    return -(-size // alignment) * alignment


def memory_type(context: Context, place: MemoryPlace, allowed: int = 0xFFFFFFFF) -> int | None:
    """Return the index of the memory type that fits *place* best, or None."""
    needed, preferred = (_flags(context.api, names) for names in place.value)
    best: tuple[int, int] | None = None
    for index in range(context.memory.memoryTypeCount):
        flags = context.memory.memoryTypes[index].propertyFlags
        if allowed >> index & 1 and flags & needed == needed:
            score = (flags & preferred).bit_count()
            if best is None or score > best[0]:
                best = (score, index)
    return None if best is None else best[1]


def _flags(api: Any, names: tuple[str, ...]) -> int:
    total = 0
    for name in names:
        total |= getattr(api, f"VK_MEMORY_PROPERTY_{name}_BIT")
    return total


def can_share(context: Context) -> bool:
    """Whether host and device can use the same memory without copies.

    A discrete GPU may offer a window of such memory as well. Reading it from the host is very slow,
    so only CPU and integrated devices count.
    """
    shared = memory_type(context, MemoryPlace.SHARED) is not None
    return shared and context.info.kind in {"cpu", "integrated", "virtual"}


def allocate(
    context: Context, size: int, place: MemoryPlace, *, option: str, exported: bool = False
) -> DeviceBuffer:
    """Return a new buffer; mapped where the host can see it.

    ``exported`` makes memory that ``vkGetMemoryFdKHR`` can hand to others. ``option`` names what
    a user can lower. Raises DeviceMemoryError, GpuUnavailableError.
    """
    api, device, label = context.api, context.device, context.info.label
    with (
        ExitStack() as undo,
        vk_errors.translated(api, "allocate a buffer", device=label),
        vk_errors.allocating(api, label, size, context.info.limits.heap, option),
    ):
        handle = _create_buffer(context, size, exported)
        undo.callback(api.vkDestroyBuffer, device, handle, None)
        wanted = api.vkGetBufferMemoryRequirements(device, handle)
        index = memory_type(context, place, wanted.memoryTypeBits)
        if index is None:
            needed = " and ".join(place.value[0])
            raise GpuUnavailableError(f"{label} has no memory that is {needed}")
        chained = _export_info(api, handle) if exported else None
        memory = _allocate_memory(context, wanted.size, index, chained)
        undo.callback(api.vkFreeMemory, device, memory, None)
        api.vkBindBufferMemory(device, handle, memory, 0)
        buffer = DeviceBuffer(context, handle, memory, size, wanted.size)
        if "HOST_VISIBLE" in place.value[0]:
            mapped = api.vkMapMemory(device, memory, 0, size, 0)
            buffer.view = np.frombuffer(mapped, np.uint8, size)
        undo.pop_all()
    return buffer


def _create_buffer(context: Context, size: int, exported: bool) -> Any:
    api = context.api
    usage = (
        api.VK_BUFFER_USAGE_STORAGE_BUFFER_BIT
        | api.VK_BUFFER_USAGE_UNIFORM_BUFFER_BIT
        | api.VK_BUFFER_USAGE_UNIFORM_TEXEL_BUFFER_BIT
        | api.VK_BUFFER_USAGE_TRANSFER_SRC_BIT
        | api.VK_BUFFER_USAGE_TRANSFER_DST_BIT
    )
    external: Any = None
    if exported:
        kind = api.VK_EXTERNAL_MEMORY_HANDLE_TYPE_OPAQUE_FD_BIT
        external = api.VkExternalMemoryBufferCreateInfo(handleTypes=kind)
    # The structures of a ring's memory are those of C: by keyword they take longer than the memory.
    info = api.ffi.new("VkBufferCreateInfo*")
    info.sType = api.VK_STRUCTURE_TYPE_BUFFER_CREATE_INFO
    info.pNext = _address(api, external)
    info.size, info.usage = size, usage
    return api.vkCreateBuffer(context.device, info, None)


def _export_info(api: Any, buffer: Any) -> Any:
    """Dedicated, which every driver that exports at all accepts and some demand."""
    return api.VkExportMemoryAllocateInfo(
        pNext=api.VkMemoryDedicatedAllocateInfo(buffer=buffer),
        handleTypes=api.VK_EXTERNAL_MEMORY_HANDLE_TYPE_OPAQUE_FD_BIT,
    )


def _allocate_memory(context: Context, size: int, index: int, chained: Any) -> Any:
    api = context.api
    info = api.ffi.new("VkMemoryAllocateInfo*")
    info.sType = api.VK_STRUCTURE_TYPE_MEMORY_ALLOCATE_INFO
    info.pNext = _address(api, chained)
    info.allocationSize, info.memoryTypeIndex = size, index
    return api.vkAllocateMemory(context.device, info, None)


def _address(api: Any, structure: Any) -> Any:
    """Where a structure is, or nowhere for None. Who asks keeps it."""
    return api.ffi.NULL if structure is None else api.ffi.addressof(structure)


def import_host(context: Context, array: Bytes) -> DeviceBuffer | None:
    """Return a buffer over the memory of *array* u8 [n], without a copy; None where refused.

    The pointer must be aligned to the device's import alignment, and so must the size; a size that
    ends inside a page counts to its end, which is mapped as well. Drivers may refuse single
    pointers, of file mappings above all. The array is kept by the buffer.
    """
    api, device = context.api, context.device
    size = importable_size(context, array)
    if not size:
        return None
    kind = api.VK_EXTERNAL_MEMORY_HANDLE_TYPE_HOST_ALLOCATION_BIT_EXT
    pointer = api.ffi.cast("void*", array.ctypes.data)
    try:
        with ExitStack() as undo:
            ask = context.procedure("vkGetMemoryHostPointerPropertiesEXT")
            found = api.VkMemoryHostPointerPropertiesEXT()  # the package's own lacks its sType
            ask(device, kind, pointer, found)
            allowed = found.memoryTypeBits
            external = api.VkExternalMemoryBufferCreateInfo(handleTypes=kind)
            usage = api.VK_BUFFER_USAGE_UNIFORM_TEXEL_BUFFER_BIT
            info = api.VkBufferCreateInfo(pNext=external, size=size, usage=usage)
            handle = api.vkCreateBuffer(device, info, None)
            undo.callback(api.vkDestroyBuffer, device, handle, None)
            allowed &= api.vkGetBufferMemoryRequirements(device, handle).memoryTypeBits
            if not allowed:
                return None
            chained = api.VkImportMemoryHostPointerInfoEXT(handleType=kind, pHostPointer=pointer)
            lowest = (allowed & -allowed).bit_length() - 1
            memory = _allocate_memory(context, size, lowest, chained)
            undo.callback(api.vkFreeMemory, device, memory, None)
            api.vkBindBufferMemory(device, handle, memory, 0)
            undo.pop_all()
    except (api.VkError, api.VkException):
        return None
    return DeviceBuffer(context, handle, memory, size, size, source=array)


def importable_size(context: Context, array: Bytes) -> int:
    """Return how many bytes from the start of *array* would be imported; 0 if it is not aligned.

    lavapipe takes a misaligned pointer without a word, so this decides and not the driver.
    """
    alignment = context.info.limits.import_alignment
    if not alignment or vk_instance.HOST_IMPORT not in context.info.extensions:
        return 0
    if array.ctypes.data % alignment or not array.nbytes:
        return 0
    size = aligned(array.nbytes, min(alignment, HOST_PAGE_BYTES))
    return 0 if size % alignment else size
