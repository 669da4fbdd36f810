"""Batches in flight: recorded commands, a timeline semaphore, a wait that ends.

The value of the semaphore is the number of the last finished batch, counted from 1. A slot is used
again once the batch that used it last is finished. Commands are recorded once for a shape of batch
and submitted with structures made once for a slot: per batch only numbers in mapped memory change.
A second timeline tells when somebody else has read a slot's rows; see ``turns``.
"""

from __future__ import annotations

import logging
from contextlib import ExitStack, suppress
from typing import Any, Final

from mldb.errors import GpuUnavailableError
from mldb.gpu.vulkan import errors as vk_errors
from mldb.gpu.vulkan.context import Context
from mldb.gpu.vulkan.pipeline import ENDS, Pipelines
from mldb.gpu.vulkan.recording import Shape, record_batch, record_readback
from mldb.gpu.vulkan.sets import SlotSets
from mldb.gpu.vulkan.sizes import RingForm, Sizes, holds, larger
from mldb.gpu.vulkan.slots import Arena, Slot
from mldb.gpu.vulkan.timeline import TimelineSemaphore, can_export

_logger = logging.getLogger(__name__)

TIMEOUT_S: Final = 30.0


class Ring:
    """The slots of a device in turn. A single thread at a time.

    Its memory is made by ``reserve``, as large as the batches that come (``mldb.gpu.vulkan.sizes``
    has the formula), and given back by ``rest``; the sets and commands of its slots stay.

    Waiting and submitting raise DeviceLostError or DeviceTimeoutError; after either the device is
    dead, and every later call raises the same error.
    """

    def __init__(self, context: Context, pipelines: Pipelines, form: RingForm) -> None:
        self.context, self.pipelines, self.form = context, pipelines, form
        self._arena: Arena | None = None
        self._sets: SlotSets | None = None  # from the first batch on; slots only get fewer
        self.timeout_s = TIMEOUT_S
        self.batches = 0
        self.recordings = 0
        self.fetches = 0
        self._lib: Any = context.api.lib
        shared = form.exported and can_export(context)
        with ExitStack() as undo:
            self.ready = TimelineSemaphore(context, exported=shared)
            undo.callback(self.ready.close)
            self.freed = TimelineSemaphore(context, exported=shared)
            undo.pop_all()
        self._next = 0
        self._has_shrunk = False
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

    @property
    def arena(self) -> Arena:
        """The memory of the slots, which were reserved."""
        assert self._arena is not None
        return self._arena

    @property
    def nbytes(self) -> int:
        """The bytes of the memory of all slots, on the host and on the device."""
        return 0 if self._arena is None else self._arena.nbytes

    def reserve(self, needed: Sizes) -> None:
        """Have slots with room for a batch: made anew where those there are have less.

        Views of earlier results stay as they are: their memory goes with the last of them. Raises
        DeviceMemoryError, and what waiting for batches under way does; then there is no memory.
        """
        had = self._arena
        if had is not None and holds(had.sizes, needed):
            return
        sizes = larger(needed, None if had is None else had.sizes)
        self._give_back()
        form = self.form
        if self._sets is None:
            self._sets = SlotSets(self.context, self.pipelines, form.slots)
        self._arena = Arena(
            self._sets,
            sizes,
            form.slots,
            direct=form.direct,
            fitted=not form.fixed,
            exported=form.exported,
        )

    def reserve_or_shrink(self, needed: Sizes) -> bool:
        """Reserve; False where memory does not suffice and batches are smaller from here on.

        Raises what ``reserve`` does where they cannot be.
        """
        try:
            self.reserve(needed)
        except vk_errors.DeviceMemoryError:
            form = self.form.smaller()
            if form is None:
                raise
            if not self._has_shrunk:
                _logger.warning(
                    "%s has little memory: batches are smaller than %d rows in each of %d slots",
                    self.context.info.label,
                    self.form.capacity.rows,
                    self.form.slots,
                )
            self._has_shrunk, self.form = True, form
            return False
        return True

    def rest(self) -> None:
        """Finish what is under way, and give the memory back until a batch comes.

        Memory of a fixed size stays. Raises what waiting does.
        """
        if not (self.form.fixed or self.context.closed or self.context.untouchable()):
            self._give_back()

    def _give_back(self) -> None:
        """Give the memory of the slots back. Results that are copies are taken out of it first."""
        arena = self._arena
        if arena is None:
            return
        self.wait(self.batches)
        for slot in arena.slots:
            owner, slot.owner = slot.owner, None  # which would keep the slot, as it does the owner
            if owner is not None and owner.copies:
                owner.release(slot)
        self._arena, self._next = None, 0
        arena.close()

    def probe(self) -> bool:
        """Whether the device still takes work and ends it: an empty batch, in some 50 µs.

        One that does not is dead from then on.
        """
        try:
            self.context.check()
            self.wait(self._start(None))
        except GpuUnavailableError:
            return False
        return True

    def acquire(self) -> Slot:
        """Return the next slot once it is free; its last result is collected or expires.

        Where its rows were lent, the shader waits for who reads them, not the host.
        """
        self.context.check()
        slot = self.arena.slot(self._next)
        for stream in list(slot.readers):
            slot.readers[stream]()  # stays if this fails: the rows may still be read
            del slot.readers[stream]
        if slot.owner is not None:
            owner, slot.owner = slot.owner, None
            owner.release(slot)
        self.wait(slot.batch)
        self._next = (self._next + 1) % self.form.slots
        return slot

    def submit(self, slot: Slot, shape: Shape) -> int:
        """Start a batch in an acquired slot and return its number."""
        if slot.recorded != shape:
            slot.recorded = None
            with vk_errors.translated(
                self.context.api, "record commands", device=self.context.info.label
            ):
                self.recordings += 1
                record_batch(self.arena, self.pipelines, slot, shape)
            slot.recorded = shape
        slot.batch = self._start(slot.commands, slot.freed)
        slot.freed = 0
        return slot.batch

    def _start(self, commands: Any, freed: int = 0) -> int:
        """Submit commands, or none, behind a value of ``freed``; return the number of the batch."""
        number = self.batches + 1
        self._signal[0] = number
        if commands is not None:
            self._commands[0] = commands
        self._submit.commandBufferCount = int(commands is not None)
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
        api, commands = self.context.api, self.arena.sets.spare
        with vk_errors.translated(api, "record commands", device=self.context.info.label):
            api.vkBeginCommandBuffer(commands, self.arena.sets.begin)
            record_readback(self.arena, slot, commands, {ENDS: end_bytes})
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
        for slot in self._slots():
            slot.readers.clear()
            slot.freed = 0

    def _slots(self) -> list[Slot]:
        return [] if self._arena is None else self._arena.slots

    def drain(self) -> None:
        """Wait until every batch that was started is finished; does nothing once closed."""
        if not (self.context.closed or self.context.untouchable()):
            self.wait(self.batches)

    def close(self) -> None:
        """Finish what is under way, let its owners take it, and free the slots."""
        if self.context.untouchable():
            return
        for slot in self._slots():
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
        if self._sets is not None:
            self._sets.close()
        if self._arena is not None:
            self._arena.close()

    def _outlast(self) -> None:
        """Wait until a lost device has left the slots alone; that takes no time, or little.

        A driver may go on with what it was given for a moment after it said that the device is
        lost (lavapipe does, and crashed the process when its memory was gone by then). The
        specification has this wait end in finite time (Vulkan 1.3, section 5.2.3, Lost Device).
        """
        api, context = self.context.api, self.context
        with suppress(api.VkErrorDeviceLost):
            api.vkDeviceWaitIdle(context.device)
