"""Tables on the device: rows that the shader gathers from, imported in place or copied.

A binding spans a limited number of texels (2 GiB on lavapipe and on NVIDIA), so a table is a list
of windows of equally many rows, each a buffer; the shader finds a row's window by division.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from contextlib import suppress
from math import gcd
from typing import Any, Final

import numpy as np

from mldb.arrays import Float32s
from mldb.errors import GpuUnavailableError, LimitError
from mldb.gpu.vulkan import errors as vk_errors
from mldb.gpu.vulkan.context import Context
from mldb.gpu.vulkan.memory import DeviceBuffer, MemoryPlace, allocate, import_host, importable_size

STAGING_BYTES: Final = 16 << 20
TABLE_OPTION: Final = "the number of rows of the table"


class VulkanTable:
    """Rows [N, d] on one device. Close it before the source goes, and before its device.

    ``imported`` tells whether the device reads the source in place; then the source is kept alive,
    and must not change or shrink until ``close``.
    """

    def __init__(
        self,
        context: Context,
        windows: list[DeviceBuffer],
        rows: int,
        dim: int,
        rows_per_window: int,
        *,
        imported: bool,
        before_close: Callable[[], None],
    ) -> None:
        self.rows, self.dim, self.imported = rows, dim, imported
        self.rows_per_window = rows_per_window
        self.context = context
        self.windows = windows
        self._views = [window.texels() for window in windows]
        self._finalizer = weakref.finalize(self, _give_back, windows, before_close)

    def places(self, count: int) -> list[Any]:
        """Return *count* views to bind; the last ones repeat the first window."""
        return self._views + self._views[:1] * (count - len(self._views))

    @property
    def closed(self) -> bool:
        """Whether the memory was given back."""
        return not self._finalizer.alive

    def close(self) -> None:
        """Wait for the batches under way and give the memory back; twice is harmless."""
        self._finalizer()


def _give_back(windows: list[DeviceBuffer], before_close: Callable[[], None]) -> None:
    # What a lost device was doing does not matter any more.
    with suppress(GpuUnavailableError):
        before_close()
    for window in windows:
        window.close()


def can_import(context: Context, rows: Float32s) -> bool:
    """Whether the memory of *rows* [N, d] is of the form that can be read in place."""
    if not rows.flags.c_contiguous or rows.shape[1] % 4:
        return False
    return importable_size(context, rows.reshape(-1).view(np.uint8)) > 0


def window_rows(context: Context, row_bytes: int, *, window_bytes: int | None = None) -> int:
    """Return how many rows one window holds.

    A multiple of what keeps every window's start aligned for an import. ``window_bytes`` lowers
    the limit of the device. Raises LimitError when a row does not fit.
    """
    limits = context.info.limits
    most = min(limits.texel_range, limits.allocation)
    most = most if window_bytes is None else min(most, window_bytes)
    alignment = max(limits.import_alignment, 16)
    step = alignment // gcd(row_bytes, alignment)
    rows = most // row_bytes // step * step
    if not rows:
        raise LimitError(f"a row of {row_bytes:,} bytes does not fit a binding of {most:,} bytes")
    return rows


def spans(rows: int, rows_per_window: int) -> Iterator[tuple[int, int]]:
    """Yield the first row and the end of each window."""
    for first in range(0, rows, rows_per_window):
        yield first, min(first + rows_per_window, rows)


def check_windows(context: Context, rows: int, row_bytes: int, per_window: int, most: int) -> None:
    """Refuse a table of more windows than the shader can bind. Raises LimitError."""
    if -(-rows // per_window) > most:
        raise LimitError(
            f"a table of {rows:,} rows of {row_bytes:,} bytes is more than "
            f"{context.info.label} can bind ({most} buffers of {per_window:,} rows). "
            "Load fewer rows, or use "
            "device='torch' or 'numpy'"
        )


def import_windows(context: Context, rows: Float32s, per_window: int) -> list[DeviceBuffer] | None:
    """Return the windows of *rows* [N, d] read in place, or None where any part is refused."""
    raw = rows.reshape(-1).view(np.uint8)
    row_bytes = rows.shape[1] * 4
    made: list[DeviceBuffer] = []
    for first, end in spans(len(rows), per_window):
        window = import_host(context, raw[first * row_bytes : end * row_bytes])
        if window is None:
            for earlier in made:
                earlier.close()
            return None
        made.append(window)
    return made


def copy_windows(
    context: Context, rows: Float32s, per_window: int, *, direct: bool
) -> list[DeviceBuffer]:
    """Return the windows of a copy of *rows*, each row padded to a multiple of 16 bytes.

    Raises DeviceMemoryError; what was allocated by then is freed.
    """
    made: list[DeviceBuffer] = []
    try:
        for first, end in spans(len(rows), per_window):
            part = rows[first:end]
            size = len(part) * padded_dim(rows.shape[1]) * 4
            place = MemoryPlace.SHARED if direct else MemoryPlace.DEVICE
            window = allocate(context, size, place, option=TABLE_OPTION)
            made.append(window)
            if window.view is not None:
                fill(window.view.view(np.float32), part)
            else:
                _upload(context, window, part)
    except BaseException:
        for window in made:
            window.close()
        raise
    return made


def padded_dim(dim: int) -> int:
    """Return *dim* rounded up to a multiple of 4: the shader reads rows by four components."""
    return -(-dim // 4) * 4


def fill(target: Float32s, rows: Float32s) -> None:
    """Write *rows* [n, d] to the start of flat memory, each row padded with zeros."""
    count, dim = rows.shape
    wide = padded_dim(dim)
    place = target[: count * wide].reshape(count, wide)
    np.copyto(place[:, :dim], rows)
    if wide != dim:
        place[:, dim:] = 0


def _upload(context: Context, window: DeviceBuffer, rows: Float32s) -> None:
    """Copy rows into memory that the host does not see, through a staging buffer of its own."""
    row_bytes = padded_dim(rows.shape[1]) * 4
    step = max(1, STAGING_BYTES // row_bytes)
    staging = allocate(
        context, min(step, len(rows)) * row_bytes, MemoryPlace.UPLOAD, option=TABLE_OPTION
    )
    try:
        if staging.view is None:
            raise LimitError("staging memory is not visible to the host")
        flat = staging.view.view(np.float32)
        for first, end in spans(len(rows), step):
            fill(flat, rows[first:end])
            copy_now(context, staging, window, (end - first) * row_bytes, first * row_bytes)
    finally:
        staging.close()


def copy_now(
    context: Context, source: DeviceBuffer, target: DeviceBuffer, size: int, offset: int
) -> None:
    """Copy *size* bytes from the start of *source* to *offset* of *target*, and wait for it."""
    api, device = context.api, context.device
    with vk_errors.translated(api, "copy rows to the device", device=context.info.label):
        pool_info = api.VkCommandPoolCreateInfo(queueFamilyIndex=context.family)
        pool = api.vkCreateCommandPool(device, pool_info, None)
        try:
            commands = _copy_commands(api, device, pool)
            begin = api.VkCommandBufferBeginInfo()
            api.vkBeginCommandBuffer(commands, begin)
            region = api.VkBufferCopy(dstOffset=offset, size=size)
            api.vkCmdCopyBuffer(commands, source.handle, target.handle, 1, [region])
            api.vkEndCommandBuffer(commands)
            submit = api.VkSubmitInfo(pCommandBuffers=[commands])
            api.vkQueueSubmit(context.queue, 1, [submit], None)
            api.vkQueueWaitIdle(context.queue)
        finally:
            api.vkDestroyCommandPool(device, pool, None)


def _copy_commands(api: Any, device: Any, pool: Any) -> Any:
    info = api.VkCommandBufferAllocateInfo(
        commandPool=pool, level=api.VK_COMMAND_BUFFER_LEVEL_PRIMARY, commandBufferCount=1
    )
    return api.vkAllocateCommandBuffers(device, info)[0]
