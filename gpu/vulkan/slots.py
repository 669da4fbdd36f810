"""The memory of the ring: equal slots, each with its regions for one batch.

A slot has input regions (parameters, keys, rows, extra) and output regions (ends, accepted). Where
host and device share memory the shader works in what the host sees. Elsewhere each region exists
twice, and the recorded commands copy between the two; the results are the same bytes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from mldb.errors import GpuUnavailableError, LimitError
from mldb.gpu.vulkan.context import Context
from mldb.gpu.vulkan.fresh import take_pages
from mldb.gpu.vulkan.instance import MEMORY_FD
from mldb.gpu.vulkan.memory import DeviceBuffer, MemoryPlace, aligned, allocate
from mldb.gpu.vulkan.pipeline import (
    ACCEPTED,
    ENDS,
    EXTRA,
    KEYS,
    PARAMETERS,
    ROWS,
    STORAGE,
    TABLE,
    TEXELS,
    UNIFORM,
    WINDOWS,
)
from mldb.gpu.vulkan.sets import SlotSets
from mldb.gpu.vulkan.sizes import Capacity, Sizes

SLOTS_OPTION: Final = "batch_rows or slots"


INPUTS: Final = (PARAMETERS, KEYS, ROWS, EXTRA)
OUTPUTS: Final = (ENDS, ACCEPTED)


@dataclass(slots=True, eq=False)
class Slot:
    """One place of the ring; its arrays are views of mapped memory."""

    number: int
    offsets: dict[int, int]
    """Where each region starts, in bytes, in the buffer of the inputs or of the outputs."""
    parameters: memoryview
    keys: npt.NDArray[np.uint64]
    rows: npt.NDArray[np.float32]
    extra: npt.NDArray[np.uint32]
    ends: npt.NDArray[np.float32]
    accepted: npt.NDArray[np.int32]
    descriptors: Any
    commands: Any
    row_texels: Any = None
    """The view of its rows."""
    table: object = None
    """What its table binding points at; None for the rows."""
    recorded: object = None
    """What the command buffer was recorded for."""
    batch: int = 0
    """The last batch that used the slot; 0 for none."""
    owner: Any = field(default=None)
    """Who has to collect that batch before the slot is used again."""
    readers: dict[int, Callable[[], None]] = field(default_factory=dict)
    """By stream, what ends its turn of reading the rows; called before the slot is used again."""
    freed: int = 0
    """What the ring's second timeline must reach before the slot is written; 0 for nothing."""


class Arena:
    """The buffers behind all slots. A slot is bound to its part when it is first asked for.

    Raises DeviceMemoryError, LimitError. ``fitted``: the sizes are those of a batch, and not the
    most that one may have. ``exported`` makes the memory of the ends exportable.
    """

    def __init__(
        self,
        sets: SlotSets,
        sizes: Sizes,
        slots: int,
        *,
        direct: bool,
        fitted: bool,
        exported: bool = False,
    ) -> None:
        self.context, self.sets, self.sizes = sets.context, sets, sizes
        self.direct, self.exported = direct, exported
        # A driver of the CPU takes the memory from the system; of that we take what will be used.
        self._takes_pages = direct and fitted and self.context.info.kind == "cpu"
        self._buffers: list[DeviceBuffer] = []
        self.slots: list[Slot] = []
        """Those that were asked for, in order."""
        try:
            self._allocate(slots, exported)
        except BaseException:
            self.close()
            raise

    def slot(self, number: int) -> Slot:
        """Return a slot; a new one is the next after those there are. Raises GpuUnavailableError.

        A pass that hands out its first batch has waited for one slot, and not for all.
        """
        if number == len(self.slots):
            made = self._slot(number)
            self._bind(made)
            if self._takes_pages:
                take_pages(made.rows)
                take_pages(made.ends)
            self.slots.append(made)
        return self.slots[number]

    def _allocate(self, slots: int, exported: bool) -> None:
        """Make the buffers; ``inputs`` and ``outputs`` are what the shader uses."""
        if exported and MEMORY_FD not in self.context.info.extensions:
            raise GpuUnavailableError(f"{self.context.info.label} cannot export memory")
        in_size, out_size = (slots * self._stride(group) for group in (INPUTS, OUTPUTS))
        if self.direct:
            self.inputs = self.host_inputs = self._new(in_size, MemoryPlace.SHARED)
            self.outputs = self.host_outputs = self._new(out_size, MemoryPlace.SHARED, exported)
            return
        self.inputs = self._new(in_size, MemoryPlace.DEVICE)
        self.outputs = self._new(out_size, MemoryPlace.DEVICE, exported)
        self.host_inputs = self._new(in_size, MemoryPlace.UPLOAD)
        self.host_outputs = self._new(out_size, MemoryPlace.READBACK)

    def _new(self, size: int, place: MemoryPlace, exported: bool = False) -> DeviceBuffer:
        buffer = allocate(self.context, size, place, option=SLOTS_OPTION, exported=exported)
        self._buffers.append(buffer)
        return buffer

    def _stride(self, group: tuple[int, ...]) -> int:
        return sum(aligned(self.sizes[region]) for region in group)

    @property
    def nbytes(self) -> int:
        """The bytes of all its memory, on the host and on the device."""
        return sum(buffer.allocated for buffer in self._buffers)

    def _slot(self, number: int) -> Slot:
        offsets: dict[int, int] = {}
        for group in (INPUTS, OUTPUTS):
            position = number * self._stride(group)
            for region in group:
                offsets[region] = position
                position += aligned(self.sizes[region])
        inputs, outputs = self.host_inputs.view, self.host_outputs.view
        if inputs is None or outputs is None:
            raise LimitError("the ring was made of memory that the host does not see")

        def part(view: npt.NDArray[np.uint8], region: int) -> npt.NDArray[np.uint8]:
            return view[offsets[region] : offsets[region] + self.sizes[region]]

        return Slot(
            number=number,
            offsets=offsets,
            parameters=part(inputs, PARAMETERS).data,
            keys=part(inputs, KEYS).view(np.uint64),
            rows=part(inputs, ROWS).view(np.float32),
            extra=part(inputs, EXTRA).view(np.uint32),
            ends=part(outputs, ENDS).view(np.float32),
            accepted=part(outputs, ACCEPTED).view(np.int32),
            descriptors=self.sets.descriptors[number],
            commands=self.sets.commands[number],
        )

    def _bind(self, slot: Slot) -> None:
        """Point a slot's set at its regions, and its table at the rows.

        What the shader names has to be bound, also where this batch does not look at it. A closed
        table must not stay bound: lavapipe follows the pointer.
        """
        ffi = self.context.api.ffi
        slot.row_texels = self.inputs.texels(slot.offsets[ROWS], self.sizes[ROWS])
        bound: dict[int, Any] = {
            ROWS: ffi.new("VkBufferView[]", [slot.row_texels]),
            TABLE: ffi.new("VkBufferView[]", [slot.row_texels] * WINDOWS),
        }
        for region in (*UNIFORM, *STORAGE):
            buffer = self.inputs if region in INPUTS else self.outputs
            place = (buffer.handle, slot.offsets[region], self.sizes[region])
            bound[region] = ffi.new("VkDescriptorBufferInfo[]", [place])
        self.sets.write(slot.descriptors, bound)

    def bind_texels(self, slot: Slot, binding: int, views: list[Any]) -> None:
        """Point a texel binding of a slot at views; the slot must not be in use."""
        places = self.context.api.ffi.new("VkBufferView[]", views)
        self.sets.write(slot.descriptors, {binding: places})

    def close(self) -> None:
        """Free everything; the device must be idle."""
        # The slots' views would keep the memory alive.
        self.slots = []
        for buffer in reversed(self._buffers):
            buffer.close()
        self._buffers.clear()


def check_range(context: Context, capacity: Capacity) -> None:
    """Refuse slots that no binding can span: Vulkan does not say what happens beyond its range.

    Raises LimitError.
    """
    limits, sizes = context.info.limits, capacity.sizes
    for region in (*STORAGE, ROWS):
        limit = limits.texel_range if region in TEXELS else limits.storage_range
        if sizes[region] > limit:
            raise LimitError(
                f"batch_rows={capacity.rows} needs a buffer of {sizes[region]:,} bytes and "
                f"{context.info.label} binds at most {limit:,}; use at most "
                f"{capacity.rows * limit // sizes[region]:,} rows"
            )
