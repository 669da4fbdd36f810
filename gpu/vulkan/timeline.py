"""Timeline semaphores: numbers that only grow, on which host, shaders and CUDA wait."""

from __future__ import annotations

from typing import Any

from mldb.errors import GpuUnavailableError
from mldb.gpu.vulkan import errors as vk_errors
from mldb.gpu.vulkan import instance as vk_instance
from mldb.gpu.vulkan.context import Context


class TimelineSemaphore:
    """One timeline semaphore of a device, at 0 first. A single thread at a time.

    With ``exported`` another API can import it. Raises GpuUnavailableError.
    """

    def __init__(self, context: Context, *, exported: bool = False) -> None:
        api = context.api
        self.context, self.exported = context, exported
        self.promised = 0
        """The largest value that somebody was told to set."""
        shared = None
        if exported:
            shared = api.VkExportSemaphoreCreateInfo(
                handleTypes=api.VK_EXTERNAL_SEMAPHORE_HANDLE_TYPE_OPAQUE_FD_BIT
            )
        kind = api.VkSemaphoreTypeCreateInfo(
            pNext=shared, semaphoreType=api.VK_SEMAPHORE_TYPE_TIMELINE
        )
        info = api.VkSemaphoreCreateInfo(pNext=kind)
        with vk_errors.translated(api, "make a semaphore", device=context.info.label):
            self.handle: Any = api.vkCreateSemaphore(context.device, info, None)

    def reached(self, value: int) -> bool:
        """Whether it stands at a value, or beyond. Raises DeviceLostError."""
        context = self.context
        with vk_errors.translated(context.api, "read a semaphore", device=context.info.label):
            found = context.api.vkGetSemaphoreCounterValue(context.device, self.handle)
        return int(found) >= value

    def export_descriptor(self) -> int:
        """Return a new file descriptor of it; the caller owns it. Raises GpuUnavailableError."""
        context = self.context
        if not self.exported:
            raise GpuUnavailableError(f"{context.info.label} has no {vk_instance.SEMAPHORE_FD}")
        api = context.api
        wanted = api.VkSemaphoreGetFdInfoKHR(
            semaphore=self.handle,
            handleType=api.VK_EXTERNAL_SEMAPHORE_HANDLE_TYPE_OPAQUE_FD_BIT,
        )
        with vk_errors.translated(api, "export a semaphore", device=context.info.label):
            return int(context.procedure("vkGetSemaphoreFdKHR")(context.device, wanted))

    def close(self) -> None:
        """Destroy it; nothing may wait for it any more."""
        self.context.api.vkDestroySemaphore(self.context.device, self.handle, None)


def can_export(context: Context) -> bool:
    """Whether timelines of this device can be imported by another API."""
    if vk_instance.SEMAPHORE_FD not in context.info.extensions:
        return False
    api = context.api
    kind = api.VkSemaphoreTypeCreateInfo(semaphoreType=api.VK_SEMAPHORE_TYPE_TIMELINE)
    asked = api.VkPhysicalDeviceExternalSemaphoreInfo(
        pNext=kind, handleType=api.VK_EXTERNAL_SEMAPHORE_HANDLE_TYPE_OPAQUE_FD_BIT
    )
    found = api.VkExternalSemaphoreProperties()
    api.vkGetPhysicalDeviceExternalSemaphoreProperties(context.info.handle, asked, found)
    return bool(found.externalSemaphoreFeatures & api.VK_EXTERNAL_SEMAPHORE_FEATURE_EXPORTABLE_BIT)
