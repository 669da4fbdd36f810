"""The commands of a batch: the shader, between copies where host and device share no memory.

Recorded once for a shape of batch in a slot, and submitted as they are for each batch of it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from mldb.gpu.vulkan.context import Context
from mldb.gpu.vulkan.memory import DeviceBuffer
from mldb.gpu.vulkan.pipeline import (
    ACCEPTED,
    ENDS,
    EXTRA,
    KEYS,
    PARAMETERS,
    ROWS,
    TABLE,
    WINDOWS,
    Pipelines,
    Variant,
)
from mldb.gpu.vulkan.sizes import PARAMETER_BYTES, Sizes
from mldb.gpu.vulkan.slots import Arena, Slot
from mldb.gpu.vulkan.table import VulkanTable


@dataclass(frozen=True, slots=True)
class Shape:
    """What a command buffer is recorded for: equal shapes are submitted as they are."""

    variant: Variant
    rows: int
    row_input_bytes: int
    extra_bytes: int
    end_bytes: int
    """What comes back to the host of where chains end; 0 leaves it on the device."""
    table: VulkanTable | None = None


def record_batch(arena: Arena, pipelines: Pipelines, slot: Slot, shape: Shape) -> None:
    """Record a batch of a shape into the commands of a slot that is not in use."""
    context, commands = arena.context, slot.commands
    api = context.api
    if slot.table is not shape.table:
        views = [slot.row_texels] * WINDOWS
        if shape.table is not None:
            views = shape.table.places(WINDOWS)
        arena.bind_texels(slot, TABLE, views)
        slot.table = shape.table
    pipeline = pipelines.get(shape.variant)
    api.vkBeginCommandBuffer(commands, arena.sets.begin)
    if not arena.direct:
        _record_upload(arena, slot, shape)
    # Straight to the driver: every pass records its slots anew.
    lib, ffi, compute = api.lib, api.ffi, api.VK_PIPELINE_BIND_POINT_COMPUTE
    lib.vkCmdBindPipeline(commands, compute, pipeline)
    sets = ffi.new("VkDescriptorSet[1]", [slot.descriptors])
    lib.vkCmdBindDescriptorSets(commands, compute, pipelines.layout, 0, 1, sets, 0, ffi.NULL)
    groups = -(-shape.rows // pipelines.subgroups)
    wide = min(groups, context.info.limits.groups)
    lib.vkCmdDispatch(commands, wide, -(-groups // wide), 1)
    if arena.direct:
        _barrier(context, commands, "SHADER_WRITE", "HOST_READ", "COMPUTE_SHADER", "HOST")
    else:
        sizes = {ENDS: shape.end_bytes, ACCEPTED: 4 * shape.rows}
        record_readback(arena, slot, commands, sizes)
    api.vkEndCommandBuffer(commands)


def _record_upload(arena: Arena, slot: Slot, shape: Shape) -> None:
    sizes = {
        PARAMETERS: PARAMETER_BYTES,
        KEYS: 8 * shape.rows,
        ROWS: shape.row_input_bytes,
        EXTRA: shape.extra_bytes,
    }
    commands = slot.commands
    _copy(arena.context, slot, sizes, arena.host_inputs, arena.inputs, commands)
    _barrier(
        arena.context,
        commands,
        "TRANSFER_WRITE",
        "SHADER_READ|UNIFORM_READ",
        "TRANSFER",
        "COMPUTE_SHADER",
    )


def record_readback(arena: Arena, slot: Slot, commands: Any, sizes: Sizes) -> None:
    """Record that what a batch left on the device comes to the host: *sizes* by region."""
    _barrier(arena.context, commands, "SHADER_WRITE", "TRANSFER_READ", "COMPUTE_SHADER", "TRANSFER")
    _copy(arena.context, slot, sizes, arena.outputs, arena.host_outputs, commands)
    _barrier(arena.context, commands, "TRANSFER_WRITE", "HOST_READ", "TRANSFER", "HOST")


def _copy(
    context: Context,
    slot: Slot,
    sizes: Sizes,
    source: DeviceBuffer,
    target: DeviceBuffer,
    commands: Any,
) -> None:
    api = context.api
    regions = [
        api.VkBufferCopy(srcOffset=slot.offsets[region], dstOffset=slot.offsets[region], size=size)
        for region, size in sizes.items()
        if size
    ]
    api.vkCmdCopyBuffer(commands, source.handle, target.handle, len(regions), regions)


def _barrier(
    context: Context, commands: Any, before: str, after: str, stage: str, next_stage: str
) -> None:
    """Make writes ``before`` of one stage visible to accesses ``after`` of the next."""
    api = context.api
    after_mask = 0
    for name in after.split("|"):
        after_mask |= getattr(api, f"VK_ACCESS_{name}_BIT")
    ffi = api.ffi
    barrier = ffi.new("VkMemoryBarrier*")
    barrier.sType = api.VK_STRUCTURE_TYPE_MEMORY_BARRIER
    barrier.srcAccessMask = getattr(api, f"VK_ACCESS_{before}_BIT")
    barrier.dstAccessMask = after_mask
    stages = [getattr(api, f"VK_PIPELINE_STAGE_{name}_BIT") for name in (stage, next_stage)]
    none = ffi.NULL
    api.lib.vkCmdPipelineBarrier(commands, *stages, 0, 1, barrier, 0, none, 0, none)
