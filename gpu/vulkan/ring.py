"""Batches in flight: recorded commands, a timeline semaphore, a wait that ends.

The value of the semaphore is the number of the last finished batch, counted from 1. A slot is used
again once the batch that used it last is finished. Commands are recorded once for a shape of batch
and submitted with structures made once for a slot: per batch only numbers in mapped memory change.
A second timeline tells when somebody else has read a slot's rows; see ``turns``.
"""

from __future__ import annotations

import logging
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from typing import Any, Final

from mldb.errors import GpuUnavailableError
from mldb.gpu.vulkan import errors as vk_errors
from mldb.gpu.vulkan.context import Context
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
from mldb.gpu.vulkan.slots import PARAMETER_BYTES, Arena, Slot
from mldb.gpu.vulkan.table import VulkanTable
from mldb.gpu.vulkan.timeline import TimelineSemaphore, can_export

_logger = logging.getLogger(__name__)

TIMEOUT_S: Final = 30.0


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


class Ring:
    """The slots of a device in turn. A single thread at a time.

    Waiting and submitting raise DeviceLostError or DeviceTimeoutError; after either the device is
    dead, and every later call raises the same error.
    """

    def __init__(self, context: Context, pipelines: Pipelines, arena: Arena) -> None:
        self.context, self.pipelines, self.arena = context, pipelines, arena
        self.timeout_s = TIMEOUT_S
        self.batches = 0
        self.recordings = 0
        self.fetches = 0
        self._lib: Any = context.api.lib
        shared = arena.exported and can_export(context)
        with ExitStack() as undo:
            self.ready = TimelineSemaphore(context, exported=shared)
            undo.callback(self.ready.close)
            self.freed = TimelineSemaphore(context, exported=shared)
            undo.pop_all()
        self._next = 0
        self._owed = 0  # what batches that were submitted wait for on `freed`
        self._make_structures()

    def _make_structures(self) -> None:
        """Make what submit and wait reuse; cffi structures own what they point to only by hand."""
        api, ffi = self.context.api, self.context.api.ffi
        self._semaphores = ffi.new("VkSemaphore[1]", [self.ready.handle])
        self._signal = ffi.new("uint64_t[1]")
        self._timeline = ffi.new("VkTimelineSemaphoreSubmitInfo*")
        self._timeline.sType = api.VK_STRUCTURE_TYPE_TIMELINE_SEMAPHORE_SUBMIT_INFO
        self._timeline.signalSemaphoreValueCount = 1
        self._timeline.pSignalSemaphoreValues = self._signal
        self._commands = ffi.new("VkCommandBuffer[1]")
        self._submit = ffi.new("VkSubmitInfo*")
        self._submit.sType = api.VK_STRUCTURE_TYPE_SUBMIT_INFO
        self._submit.pNext = self._timeline
        self._submit.commandBufferCount = 1
        self._submit.pCommandBuffers = self._commands
        self._submit.signalSemaphoreCount = 1
        self._submit.pSignalSemaphores = self._semaphores
        self._freed = ffi.new("VkSemaphore[1]", [self.freed.handle])
        self._freed_value = ffi.new("uint64_t[1]")
        stage = api.VK_PIPELINE_STAGE_ALL_COMMANDS_BIT
        self._freed_stage = ffi.new("VkPipelineStageFlags[1]", [stage])
        self._timeline.pWaitSemaphoreValues = self._freed_value
        self._submit.pWaitSemaphores = self._freed
        self._submit.pWaitDstStageMask = self._freed_stage
        self._awaited = ffi.new("uint64_t[1]")
        self._wait = ffi.new("VkSemaphoreWaitInfo*")
        self._wait.sType = api.VK_STRUCTURE_TYPE_SEMAPHORE_WAIT_INFO
        self._wait.semaphoreCount = 1
        self._wait.pSemaphores = self._semaphores
        self._wait.pValues = self._awaited

    def acquire(self) -> Slot:
        """Return the next slot once it is free; its last result is collected or expires.

        Where its rows were lent, the shader waits for who reads them, not the host.
        """
        self.context.check()
        slot = self.arena.slots[self._next]
        for stream in list(slot.readers):
            slot.readers[stream]()  # stays if this fails: the rows may still be read
            del slot.readers[stream]
        if slot.owner is not None:
            owner, slot.owner = slot.owner, None
            owner.release(slot)
        self.wait(slot.batch)
        self._next = (self._next + 1) % len(self.arena.slots)
        return slot

    def submit(self, slot: Slot, shape: Shape) -> int:
        """Start a batch in an acquired slot and return its number."""
        if slot.recorded != shape:
            slot.recorded = None
            with vk_errors.translated(
                self.context.api, "record commands", device=self.context.info.label
            ):
                self._record(slot, shape)
            slot.recorded = shape
        slot.batch = self._start(slot.commands, slot.freed)
        slot.freed = 0
        return slot.batch

    def _start(self, commands: Any, freed: int = 0) -> int:
        """Submit commands, behind a value of ``freed``; return the number of the batch."""
        number = self.batches + 1
        self._signal[0] = number
        self._commands[0] = commands
        waits = 1 if freed else 0
        self._timeline.waitSemaphoreValueCount = self._submit.waitSemaphoreCount = waits
        self._freed_value[0] = freed
        self._owed = max(self._owed, freed)
        null = self.context.api.ffi.NULL
        self._judge(self._lib.vkQueueSubmit(self.context.queue, 1, self._submit, null), number)
        self.batches = number
        return number

    def fetch(self, slot: Slot, end_bytes: int) -> None:
        """Bring to the host what a batch left on the device, and wait for it."""
        api, commands = self.context.api, self.arena.spare
        with vk_errors.translated(api, "record commands", device=self.context.info.label):
            api.vkBeginCommandBuffer(commands, api.VkCommandBufferBeginInfo())
            self._record_readback(slot, commands, {ENDS: end_bytes})
            api.vkEndCommandBuffer(commands)
        self.fetches += 1
        self.wait(self._start(commands))

    def wait(self, batch: int) -> None:
        """Wait until a batch is finished; returns at once for 0 and for what is past.

        The time-out is for a device that hangs. A batch whose slot is still being read elsewhere,
        behind other work of the reader's, only waits.
        """
        if not batch:
            return
        self._awaited[0] = batch
        nanoseconds = int(self.timeout_s * 1e9)
        while True:
            result = self._lib.vkWaitSemaphores(self.context.device, self._wait, nanoseconds)
            if result != vk_errors.TIMEOUT or self.freed.reached(self._owed):
                break
            _logger.info("batch %d waits for who reads the rows before it", batch)
        self._judge(result, batch)

    def _judge(self, result: int, batch: int) -> None:
        """Raise for a result code, and make the device dead: nothing later can be trusted."""
        if result != vk_errors.SUCCESS:
            label = self.context.info.label
            error = vk_errors.error_of(result, label, batch, self.timeout_s)
            self.context.fail(error, abandoned=result == vk_errors.TIMEOUT)
            raise error

    def forget_readers(self) -> None:
        """Wait for nobody else any more: who read the slots has ended, or will never."""
        self._owed = 0
        for slot in self.arena.slots:
            slot.readers.clear()
            slot.freed = 0

    def drain(self) -> None:
        """Wait until every batch that was started is finished; does nothing once closed."""
        if not (self.context.closed or self.context.untouchable()):
            self.wait(self.batches)

    def _record(self, slot: Slot, shape: Shape) -> None:
        api, commands = self.context.api, slot.commands
        self.recordings += 1
        if slot.table is not shape.table:
            views = [slot.row_texels] * WINDOWS
            if shape.table is not None:
                views = shape.table.places(WINDOWS)
            self.arena.bind_texels(slot, TABLE, views)
            slot.table = shape.table
        pipeline = self.pipelines.get(shape.variant)
        api.vkBeginCommandBuffer(commands, api.VkCommandBufferBeginInfo())
        if not self.arena.direct:
            self._record_upload(slot, shape)
        api.vkCmdBindPipeline(commands, api.VK_PIPELINE_BIND_POINT_COMPUTE, pipeline)
        api.vkCmdBindDescriptorSets(
            commands,
            api.VK_PIPELINE_BIND_POINT_COMPUTE,
            self.pipelines.layout,
            0,
            1,
            [slot.descriptors],
            0,
            None,
        )
        groups = -(-shape.rows // self.pipelines.subgroups)
        wide = min(groups, self.context.info.limits.groups)
        api.vkCmdDispatch(commands, wide, -(-groups // wide), 1)
        if self.arena.direct:
            self._barrier(commands, "SHADER_WRITE", "HOST_READ", "COMPUTE_SHADER", "HOST")
        else:
            sizes = {ENDS: shape.end_bytes, ACCEPTED: 4 * shape.rows}
            self._record_readback(slot, commands, sizes)
        api.vkEndCommandBuffer(commands)

    def _record_upload(self, slot: Slot, shape: Shape) -> None:
        sizes = {
            PARAMETERS: PARAMETER_BYTES,
            KEYS: 8 * shape.rows,
            ROWS: shape.row_input_bytes,
            EXTRA: shape.extra_bytes,
        }
        commands = slot.commands
        self._copy(slot, commands, sizes, self.arena.host_inputs, self.arena.inputs)
        self._barrier(
            commands, "TRANSFER_WRITE", "SHADER_READ|UNIFORM_READ", "TRANSFER", "COMPUTE_SHADER"
        )

    def _record_readback(self, slot: Slot, commands: Any, sizes: dict[int, int]) -> None:
        self._barrier(commands, "SHADER_WRITE", "TRANSFER_READ", "COMPUTE_SHADER", "TRANSFER")
        self._copy(slot, commands, sizes, self.arena.outputs, self.arena.host_outputs)
        self._barrier(commands, "TRANSFER_WRITE", "HOST_READ", "TRANSFER", "HOST")

    def _copy(
        self, slot: Slot, commands: Any, sizes: dict[int, int], source: Any, target: Any
    ) -> None:
        api = self.context.api
        regions = [
            api.VkBufferCopy(
                srcOffset=slot.offsets[region], dstOffset=slot.offsets[region], size=size
            )
            for region, size in sizes.items()
            if size
        ]
        api.vkCmdCopyBuffer(commands, source.handle, target.handle, len(regions), regions)

    def _barrier(self, commands: Any, before: str, after: str, stage: str, next_stage: str) -> None:
        """Make writes ``before`` of one stage visible to accesses ``after`` of the next."""
        api = self.context.api
        after_mask = 0
        for name in after.split("|"):
            after_mask |= getattr(api, f"VK_ACCESS_{name}_BIT")
        barrier = api.VkMemoryBarrier(
            srcAccessMask=getattr(api, f"VK_ACCESS_{before}_BIT"), dstAccessMask=after_mask
        )
        stages = [getattr(api, f"VK_PIPELINE_STAGE_{name}_BIT") for name in (stage, next_stage)]
        api.vkCmdPipelineBarrier(commands, *stages, 0, 1, [barrier], 0, None, 0, None)

    def close(self) -> None:
        """Finish what is under way, let its owners take it, and free the slots."""
        if self.context.untouchable():
            return
        for slot in self.arena.slots:
            if slot.owner is not None:
                owner, slot.owner = slot.owner, None
                with suppress(GpuUnavailableError):
                    owner.release(slot, "the device was closed")
        try:
            self.drain()
        except vk_errors.DeviceLostError:
            self._outlast()
        except GpuUnavailableError:
            pass  # it hangs, and whoever waits for it hangs as well
        if self.context.untouchable():
            return
        self.ready.close()
        self.freed.close()
        self.arena.close()

    def _outlast(self) -> None:
        """Wait until a lost device has left the slots alone; that takes no time, or little.

        A driver may go on with what it was given for a moment after it said that the device is
        lost (lavapipe does, and crashed the process when its memory was gone by then). The
        specification has this wait end in finite time (Vulkan 1.3, section 5.2.3, Lost Device).
        """
        api, context = self.context.api, self.context
        with suppress(api.VkErrorDeviceLost):
            api.vkDeviceWaitIdle(context.device)
