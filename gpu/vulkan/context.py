"""An open Vulkan device: the logical device, its queue, and the order in which it is closed."""

from __future__ import annotations

import os
from typing import Any, Final

from mldb.errors import ClosedError, GpuUnavailableError
from mldb.gpu.vulkan import errors as vk_errors
from mldb.gpu.vulkan import instance as vk_instance
from mldb.gpu.vulkan.instance import DeviceInfo

# The structure's name in the specification is longer than a line.
WIDTH_FEATURES: Final = "VkPhysicalDeviceSubgroupSizeControlFeatures"


class Context:
    """Owner of one instance and one logical device with one compute queue.

    A single thread at a time. In a forked child it refuses everything, and closing does nothing:
    the driver's state belongs to the parent.
    """

    def __init__(self, api: Any, info: DeviceInfo, instance: Any) -> None:
        self.api = api
        self.info = info
        self.instance = instance
        self.failure: GpuUnavailableError | None = None
        """Why nothing can run any more; every later call raises it again."""
        self.abandoned = False
        """After a time-out the device may still write its buffers: nothing is freed any more."""
        self._closing = False
        self._buffers = 0
        self._pid = os.getpid()
        self.family = _compute_family(api, info)
        self.sized = _can_size_subgroups(api, info)
        with vk_errors.translated(api, "open the device", device=info.label):
            self.device = _create_device(api, info, self.family, self.sized)
            self.queue = api.vkGetDeviceQueue(self.device, self.family, 0)
        self.memory = api.vkGetPhysicalDeviceMemoryProperties(info.handle)

    @classmethod
    def open(cls, selector: str | int | None = None, *, validation: bool = False) -> Context:
        """Open the device that ``vk_instance.select`` chooses. Raises GpuUnavailableError."""
        api = vk_errors.load_vulkan()
        instance = vk_instance.create_instance(api, validation=validation)
        try:
            info = vk_instance.select(vk_instance.list_devices(api, instance), selector)
            return cls(api, info, instance)
        except BaseException:
            api.vkDestroyInstance(instance, None)
            raise

    @property
    def forked(self) -> bool:
        """Whether this is a child of the process that opened the device."""
        return os.getpid() != self._pid

    def check(self) -> None:
        """Raise ClosedError after close or in a forked child, and the failure of a dead device."""
        if self.forked:
            raise ClosedError(
                "this Vulkan device belongs to the parent of this forked process; open it in the "
                "worker, or set num_workers=0"
            )
        if self._closing:
            raise ClosedError(f"the Vulkan device {self.info.label} was closed; open it again")
        if self.failure is not None:
            raise self.failure

    def untouchable(self) -> bool:
        """Whether nothing may be freed: a forked child, or a device that does not answer."""
        return self.forked or self.abandoned

    @property
    def closed(self) -> bool:
        """Whether ``close`` was called."""
        return self._closing

    def procedure(self, name: str) -> Any:
        """Return a function of a device extension."""
        return self.api.vkGetDeviceProcAddr(self.device, name)

    def fail(self, error: GpuUnavailableError, *, abandoned: bool) -> None:
        """Make the device dead. ``abandoned`` also keeps all its memory, which it may still use."""
        self.failure, self.abandoned = error, abandoned

    def hold(self) -> None:
        """Count a buffer, before whose end the device cannot be destroyed."""
        self._buffers += 1

    def free(self, buffer: Any, memory: Any, views: list[Any]) -> bool:
        """Free a buffer that was held; the last one after ``close`` takes the device with it.

        False where nothing may be freed.
        """
        if self.untouchable():
            return False
        for view in views:
            self.api.vkDestroyBufferView(self.device, view, None)
        self.api.vkDestroyBuffer(self.device, buffer, None)
        self.api.vkFreeMemory(self.device, memory, None)
        self._buffers -= 1
        if self._closing and not self._buffers:
            self._destroy()
        return True

    def close(self) -> None:
        """Destroy device and instance, at once or when the last buffer goes; twice is harmless."""
        if self.untouchable() or self._closing:
            return
        self._closing = True
        if not self._buffers:
            self._destroy()

    def _destroy(self) -> None:
        self.api.vkDestroyDevice(self.device, None)
        self.api.vkDestroyInstance(self.instance, None)


def _compute_family(api: Any, info: DeviceInfo) -> int:
    families = api.vkGetPhysicalDeviceQueueFamilyProperties(info.handle)
    for number, family in enumerate(families):
        if family.queueFlags & api.VK_QUEUE_COMPUTE_BIT:
            return number
    raise GpuUnavailableError(f"{info.label} has no queue for compute shaders")


def _can_size_subgroups(api: Any, info: DeviceInfo) -> bool:
    """Whether a pipeline can ask for full subgroups of a certain width."""
    if vk_instance.SUBGROUP_SIZE not in info.extensions:
        return False
    sizes = getattr(api, WIDTH_FEATURES)()
    api.vkGetPhysicalDeviceFeatures2(info.handle, api.VkPhysicalDeviceFeatures2(pNext=sizes))
    return bool(sizes.subgroupSizeControl and sizes.computeFullSubgroups)


def _create_device(api: Any, info: DeviceInfo, family: int, sized: bool) -> Any:
    """Create the device with every extension of ours that it has."""
    wished = {vk_instance.HOST_IMPORT, vk_instance.MEMORY_FD, vk_instance.SEMAPHORE_FD}
    extensions = sorted(wished & info.extensions)
    features = api.VkPhysicalDeviceTimelineSemaphoreFeatures(timelineSemaphore=True)
    if sized:
        extensions.append(vk_instance.SUBGROUP_SIZE)
        features = getattr(api, WIDTH_FEATURES)(
            subgroupSizeControl=True, computeFullSubgroups=True, pNext=features
        )
    queue = api.VkDeviceQueueCreateInfo(queueFamilyIndex=family, pQueuePriorities=[1.0])
    create = api.VkDeviceCreateInfo(
        pNext=features,
        pQueueCreateInfos=[queue],
        ppEnabledExtensionNames=extensions,
    )
    return api.vkCreateDevice(info.handle, create, None)
