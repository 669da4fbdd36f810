"""What slots are bound and recorded with: their descriptor sets and command buffers.

They have no memory for batches, so they stay where that of the slots is given back. A set may then
name memory that is gone: nothing runs with it before all of it was written again.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any

from mldb.gpu.vulkan import errors as vk_errors
from mldb.gpu.vulkan.context import Context
from mldb.gpu.vulkan.pipeline import (
    STORAGE,
    TABLE,
    TEXELS,
    UNIFORM,
    WINDOWS,
    Pipelines,
    descriptor_type,
)


class SlotSets:
    """The descriptor set and the command buffer of each of *count* slots, and a spare one.

    A single thread at a time; from the first batch of a device until it is closed. Raises
    GpuUnavailableError.
    """

    def __init__(self, context: Context, pipelines: Pipelines, count: int) -> None:
        self.context = context
        api = context.api
        with (
            ExitStack() as undo,
            vk_errors.translated(api, "prepare commands", device=context.info.label),
        ):
            pool = self._command_pool()
            undo.callback(api.vkDestroyCommandPool, context.device, pool, None)
            *self.commands, self.spare = self._command_buffers(pool, count + 1)
            pool = self._descriptor_pool(count)
            undo.callback(api.vkDestroyDescriptorPool, context.device, pool, None)
            self.descriptors = self._descriptor_sets(pipelines, pool, count)
            self._undo = undo.pop_all()
        self.begin = api.VkCommandBufferBeginInfo()
        """How commands are begun; what was recorded before is forgotten by that."""

    def _command_pool(self) -> Any:
        api = self.context.api
        flags = api.VK_COMMAND_POOL_CREATE_RESET_COMMAND_BUFFER_BIT
        info = api.VkCommandPoolCreateInfo(flags=flags, queueFamilyIndex=self.context.family)
        return api.vkCreateCommandPool(self.context.device, info, None)

    def _command_buffers(self, pool: Any, count: int) -> Any:
        api = self.context.api
        info = api.VkCommandBufferAllocateInfo(
            commandPool=pool,
            level=api.VK_COMMAND_BUFFER_LEVEL_PRIMARY,
            commandBufferCount=count,
        )
        return api.vkAllocateCommandBuffers(self.context.device, info)

    def _descriptor_pool(self, count: int) -> Any:
        api = self.context.api
        sizes = [
            api.VkDescriptorPoolSize(
                type=descriptor_type(api, binding),
                descriptorCount=count * (WINDOWS if binding == TABLE else 1),
            )
            for binding in (*UNIFORM, *STORAGE, *TEXELS)
        ]
        info = api.VkDescriptorPoolCreateInfo(maxSets=count, pPoolSizes=sizes)
        return api.vkCreateDescriptorPool(self.context.device, info, None)

    def _descriptor_sets(self, pipelines: Pipelines, pool: Any, count: int) -> Any:
        api = self.context.api
        layouts = [pipelines.set_layout] * count
        ask = api.VkDescriptorSetAllocateInfo(descriptorPool=pool, pSetLayouts=layouts)
        return api.vkAllocateDescriptorSets(self.context.device, ask)

    def write(self, descriptors: Any, bound: Mapping[int, Any]) -> None:
        """Point bindings of a set that is not in use at views, or at ranges of buffers.

        The structures are those of C, for every pass binds its slots anew: by keyword they take a
        millisecond.
        """
        api = self.context.api
        writes = api.ffi.new("VkWriteDescriptorSet[]", len(bound))
        for number, (binding, places) in enumerate(bound.items()):
            write = writes[number]
            write.sType = api.VK_STRUCTURE_TYPE_WRITE_DESCRIPTOR_SET
            write.dstSet = descriptors
            write.dstBinding = binding
            write.descriptorType = descriptor_type(api, binding)
            write.descriptorCount = len(places)
            if binding in TEXELS:
                write.pTexelBufferView = places
            else:
                write.pBufferInfo = places
        api.lib.vkUpdateDescriptorSets(self.context.device, len(bound), writes, 0, api.ffi.NULL)

    def close(self) -> None:
        """Free them; the device must be idle. Again does nothing."""
        self._undo.close()
