"""The Vulkan device: the protocol of ``mldb.gpu.device`` over a ring of batches in flight."""

from __future__ import annotations

import logging
import weakref
from dataclasses import replace
from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt

from mldb.arrays import Float32s
from mldb.errors import InvalidValueError, LimitError
from mldb.gpu import checks
from mldb.gpu.device import ChainMethod, Chains, Dynamics, Energy, Pending
from mldb.gpu.reference import Ready, check_table
from mldb.gpu.vulkan import table as vk_table
from mldb.gpu.vulkan.context import Context
from mldb.gpu.vulkan.memory import DeviceBuffer, can_share
from mldb.gpu.vulkan.pending import Piece, VulkanPending, as_words
from mldb.gpu.vulkan.pipeline import WINDOWS, Pipelines, ShaderMode, Variant
from mldb.gpu.vulkan.request import Request, isotropic_request, langevin_request, steps_at_once
from mldb.gpu.vulkan.ring import Ring
from mldb.gpu.vulkan.sizes import SLOTS_MIN, Capacity, RingForm
from mldb.gpu.vulkan.slots import Slot, check_range
from mldb.gpu.vulkan.table import VulkanTable, padded_dim
from mldb.gpu.vulkan.timeline import TimelineSemaphore
from mldb.noise.keys import STEPS_MAX, Keys, check_keys

_logger = logging.getLogger(__name__)

SLOTS_DEFAULT: Final = 3
BATCH_ROWS_CPU: Final = 1024
BATCH_ROWS_GPU: Final = 8192

WORK_MAX: Final = {"cpu": 4_000_000}
WORK_MAX_GPU: Final = 400_000_000
"""How much one batch may be, in ``Request.row_work``: a few seconds of a slow device of its kind.

So a device that does not answer for 30 s hangs, and is not at work on very long chains.
"""

ShaderKind = Literal["isotropic", "self", "mixture"]


class VulkanDevice:
    """One Vulkan device and its ring of ``slots`` batches; made by ``open_vulkan``.

    A single thread at a time. A request of more rows than a slot holds, or of very many steps, runs
    as several batches.
    Closed by its owner or when it is collected; a forked child is refused. With ``copy=False``
    single batches are handed out as views, which stay valid until ``slots`` further batches were
    started.

    Its own memory is that of the ring, as large as the batches that come (the formula is in
    ``mldb.gpu.vulkan.sizes``) and given back by ``rest``, and of tables that were not imported. Its
    pipelines, descriptor sets and command buffers stay: kilobytes, whatever the batches. It starts
    no thread. What else a process has is the driver's. lavapipe takes 50 MiB of memory once
    it is asked for its devices, 25 MiB with the first that is opened, and 8 MiB with each further
    one; of address space some 300 MiB each, for stacks and for arenas of malloc that stay empty.
    Each open device has 2 n + 2 threads (llvmpipe-0 and on, and such as bear the program's name), n
    being LP_NUM_THREADS, or the number of cores. All of that is the same for any size of batch.
    """

    kind = "vulkan"

    def __init__(self, context: Context, pipelines: Pipelines, ring: Ring, *, copy: bool) -> None:
        self.name = f"vulkan ({context.info.name})"
        self.slots = ring.form.slots
        self.copy = copy
        self.window_bytes: int | None = None
        """Lowers the size of a table's windows, which the device decides otherwise."""
        self._context, self._pipelines, self._ring = context, pipelines, ring
        self._shared = False
        self._counts = {"imports": 0, "imports_refused": 0, "copies": 0}
        self._finalizer = weakref.finalize(self, _close, context, pipelines, ring)

    def load(self, rows: Float32s) -> VulkanTable:
        """Make rows [N, d] available to ``MixtureEnergy``.

        Memory that starts at a page is read in place where the driver allows it (NVIDIA may refuse
        file mappings); then it must neither change nor shrink until the table is closed. Other
        memory is copied. After one refusal of an aligned pointer the device copies from then on.
        Raises LimitError, DeviceMemoryError, InvalidTypeError, InvalidValueError.
        """
        self._context.check()
        rows = check_table(rows)
        dim = rows.shape[1]
        row_bytes = padded_dim(dim) * 4
        per_window = vk_table.window_rows(self._context, row_bytes, window_bytes=self.window_bytes)
        vk_table.check_windows(self._context, len(rows), row_bytes, per_window, WINDOWS)
        windows = self._import(rows, per_window)
        imported = windows is not None
        if windows is None:
            direct = self._ring.form.direct
            # A buffer has no size of 0: a table of no rows is one row that nobody can name.
            some = rows if len(rows) else np.zeros((1, dim), np.float32)
            windows = vk_table.copy_windows(self._context, some, per_window, direct=direct)
            self._counts["copies"] += 1
        return VulkanTable(
            self._context,
            windows,
            len(rows),
            dim,
            per_window,
            imported=imported,
            before_close=self._ring.drain,
        )

    def _import(self, rows: Float32s, per_window: int) -> Any:
        """Return windows over the rows' own memory, or None."""
        if self._counts["imports_refused"] or not vk_table.can_import(self._context, rows):
            return None
        windows = vk_table.import_windows(self._context, rows, per_window)
        self._counts["imports" if windows is not None else "imports_refused"] += 1
        return windows

    def words(self, keys: Keys, step: int, blocks: int) -> npt.NDArray[np.uint32]:
        """Return the raw noise words of one step, u32 [B, blocks, 4]."""
        self._context.check()
        check_keys(keys, step)
        checks.check_blocks(blocks)
        request = Request(variant=Variant(ShaderMode.WORDS, 4 * blocks), keys=keys, step=step)
        return as_words(self._start(request, copy=True).result().x, blocks)

    def normals(self, keys: Keys, step: int, dim: int) -> Float32s:
        """Return the standard normals of one step, float32 [B, dim]."""
        self._context.check()
        check_keys(keys, step)
        checks.check_dim(dim)
        request = Request(variant=Variant(ShaderMode.NORMALS, dim), keys=keys, step=step)
        normals: Float32s = self._start(request, copy=True).result().x
        return normals

    def isotropic(self, x: Any, keys: Keys, strength: float) -> Pending:
        """Start x' = rho x + sqrt(1 - rho^2) u, u uniform in the tangent sphere at x (step 0)."""
        self._context.check()
        checks.check_rows(x, keys)
        checks.check_strength(strength)
        return self._start(isotropic_request(np.asarray(x), keys, strength))

    def langevin(self, x: Any, keys: Keys, energy: Energy, dynamics: Dynamics) -> Pending:
        """Start chains at x [B, d], unit rows; the direct form of ULA and of MALA.

        A CPU driver runs long chains in parts, one after the other, before this returns. Raises
        InvalidValueError, InvalidTypeError, LimitError, and what waiting for the oldest batch can
        raise.
        """
        self._context.check()
        checks.check_rows(x, keys)
        checks.check_dynamics(dynamics)
        checks.check_energy(energy, x, dynamics)
        request = langevin_request(self._context, np.asarray(x), keys, energy, dynamics)
        most = self._steps_at_once(request.variant)
        if dynamics.steps <= most or not len(keys):
            return self._start(request)
        accepted, here = np.zeros(len(keys), np.int32), request.x
        assert here is not None
        for first in range(0, dynamics.steps, most):
            part = replace(dynamics, steps=min(most, dynamics.steps - first))
            request = langevin_request(self._context, here, keys, energy, part, first)
            done = self._start(request, copy=True).result()
            here, accepted = done.x, accepted + done.accepted
        return Ready(Chains(here, accepted))

    def _steps_at_once(self, variant: Variant) -> int:
        """How many steps of a chain the driver runs to their end. Raises LimitError for none."""
        if self._context.info.kind != "cpu":
            return STEPS_MAX
        most = steps_at_once(variant, self._context.info.lanes)
        if most < 1:
            raise LimitError(
                f"{self._context.info.label} ends loops as long as a step takes with dim="
                f"{variant.dim} and {variant.neighbours} neighbours; use device='torch'"
            )
        return most

    def prepare(
        self, kind: ShaderKind, dim: int, *, neighbours: int = 1, method: ChainMethod = "ula"
    ) -> None:
        """Compile the shader for requests to come, so that the first one does not wait for it.

        For a mixture over a table of one window; lavapipe compiles at the first dispatch, so one
        splat is moved by no steps.
        """
        self._context.check()
        variant = Variant(ShaderMode[kind.upper()], dim, neighbours, method == "mala")
        if variant not in self._pipelines:
            self._reserve(_one_row(variant, None), 1)
            self._warm(self._ring.acquire(), variant, None)

    def exported_memory(self) -> DeviceBuffer:
        """Return the memory of all slots' results, for ``mldb.gpu.vulkan.cuda``.

        Raises InvalidValueError if the device was not opened with ``exported=True``.
        """
        self._context.check()
        if not self._ring.form.exported:
            raise InvalidValueError("open the device with exported=True to share its results")
        return self._ring.arena.outputs

    def timelines(self) -> tuple[TimelineSemaphore, TimelineSemaphore] | None:
        """Return the timelines "a batch is ready" and "a slot was read", if they can be shared."""
        self._context.check()
        ring = self._ring
        return (ring.ready, ring.freed) if ring.ready.exported else None

    def share(self) -> DeviceBuffer:
        """Return the memory of all slots' results to the one reader there may be.

        Raises InvalidValueError if there is one, or the device was not opened for it.
        """
        buffer = self.exported_memory()
        if self._shared:
            raise InvalidValueError("the results of this device are shared already; close that")
        self._shared = True
        return buffer

    def unshare(self) -> None:
        """Ask nobody any more before a slot is used again: the reader has gone."""
        self._shared = False
        self._ring.forget_readers()

    @property
    def usable(self) -> bool:
        """Whether it can still work: neither closed, nor lost, nor of another process."""
        context = self._context
        return context.failure is None and not (context.closed or context.forked)

    def answers(self) -> bool:
        """Whether it is usable, and ends a batch of nothing: what was lost at rest shows then."""
        return self.usable and self._ring.probe()

    def rest(self) -> None:
        """Wait for what is under way, and give the ring's memory back until a batch is started.

        Pipelines and tables stay, and so does a ring of a fixed size. Raises what waiting does.
        """
        self._ring.rest()

    def stats(self) -> dict[str, Any]:
        """Return counters and the settings in use, for people and tests.

        ``batch_rows`` is the most that a slot may hold, ``ring_bytes`` what there is just now.
        """
        form = self._ring.form
        return {
            "device": self._context.info.label,
            "index": self._context.info.index,
            "direct": form.direct,
            "cuda_export": form.exported,
            "slots": self.slots,
            "batch_rows": form.capacity.rows,
            "ring_bytes": self._ring.nbytes,
            "batches": self._ring.batches,
            "recordings": self._ring.recordings,
            "fetches": self._ring.fetches,
            "pipelines": len(self._pipelines),
            **self._counts,
        }

    def close(self) -> None:
        """Wait for what is under way and give everything back. Closing twice is harmless.

        Results of a device with ``copy=True`` can still be asked for; tables are closed first by
        who loaded them.
        """
        self._finalizer()

    def _start(self, request: Request, *, copy: bool | None = None) -> Pending:
        """Run a request in as many slots as it needs."""
        count, dim = len(request.keys), request.variant.dim
        if not count:
            return Ready(Chains(np.empty((0, dim), np.float32), np.empty(0, np.int32)))
        rows_max = self._reserve(request, count)
        copy = (self.copy if copy is None else copy) or count > rows_max
        pending = VulkanPending(self._ring, count, dim, copy=copy)
        # Rows that another API reads in place come to the host only if they are asked for.
        form = self._ring.form
        readback = pending.copies or form.direct or not form.exported
        for first in range(0, count, rows_max):
            end = min(first + rows_max, count)
            slot = self._ring.acquire()
            self._warm(slot, request.variant, request.table)
            request.write(slot, first, end)
            batch = self._ring.submit(slot, request.shape(end - first, readback=readback))
            pending.add(Piece(slot, batch, first, end, is_here=readback))
        return pending

    def _reserve(self, request: Request, count: int) -> int:
        """Have slots for a request of *count* rows; return how many of them one batch takes."""
        kind, ring = self._context.info.kind, self._ring
        while True:
            most = request.rows_in(ring.form.capacity, WORK_MAX.get(kind, WORK_MAX_GPU))
            if not most:
                raise LimitError(
                    f"a row of this request needs {request.row_bytes + request.extra.row_bytes:,} "
                    f"bytes, which is more than a slot has; open the device with more batch_rows"
                )
            if ring.reserve_or_shrink(request.sizes(min(most, count))):
                return most

    def _warm(self, slot: Slot, variant: Variant, table: VulkanTable | None) -> None:
        """Move one splat by no steps with a pipeline that is new, and wait for it.

        In the slot that is to be used anyway: views of results keep theirs.
        """
        if variant in self._pipelines:
            return
        self._pipelines.get(variant)
        request = _one_row(variant, table)
        request.write(slot, 0, 1)
        self._ring.wait(self._ring.submit(slot, request.shape(1)))


def _one_row(variant: Variant, table: VulkanTable | None) -> Request:
    """Return a request that moves one splat by no steps."""
    none = np.zeros(1, np.uint64)
    return Request(variant=variant, keys=Keys(0, 0, none, none.astype(np.uint16)), table=table)


def _close(context: Context, pipelines: Pipelines, ring: Ring) -> None:
    """Close in reverse order of opening; a forked child and a hanging device are left alone."""
    ring.close()
    if not context.untouchable():
        pipelines.close()
        context.close()


def open_vulkan(
    selector: str | int | None = None,
    *,
    copy: bool = True,
    direct: bool | None = None,
    slots: int = SLOTS_DEFAULT,
    batch_rows: int | None = None,
    subgroups: int | None = None,
    exported: bool = False,
    validation: bool = False,
) -> VulkanDevice:
    """Open a Vulkan device.

    ``selector`` is its index or a part of its name; without it MLDB_VK_DEVICE is asked, and then
    the best device is taken. ``direct`` decides whether the shader works in memory that the host
    sees: None does so on CPU and integrated devices. ``batch_rows`` is how many rows of 640
    dimensions a slot holds, from the start; without it slots are as large as the batches that come,
    up to 1,024 such rows on the CPU and 8,192 elsewhere. What one batch takes is lowered if the
    device has too little memory, and where ``batch_rows`` is given ``slots`` are as well.
    ``subgroups`` is how many splats a workgroup of the shader moves, for measurements.
    ``exported`` makes the results' memory one that CUDA can import (``mldb.gpu.vulkan.cuda``).
    ``validation`` switches the Khronos validation layer on, which prints what it finds.
    Raises GpuUnavailableError, DeviceMemoryError, LimitError, InvalidValueError.
    """
    if slots < SLOTS_MIN:
        raise InvalidValueError(f"slots={slots}; batches overlap from {SLOTS_MIN} up")
    if batch_rows is not None and batch_rows < 1:
        raise InvalidValueError(f"batch_rows={batch_rows}; a slot holds at least one row")
    context = Context.open(selector, validation=validation)
    try:
        rows = BATCH_ROWS_CPU if context.info.kind == "cpu" else BATCH_ROWS_GPU
        form = RingForm(
            capacity=Capacity(rows if batch_rows is None else batch_rows),
            slots=slots,
            direct=can_share(context) if direct is None else direct,
            exported=exported,
            fixed=exported or batch_rows is not None,  # CUDA maps the memory once
        )
        check_range(context, form.capacity)
        pipelines = Pipelines(context, subgroups=subgroups)
        try:
            ring = Ring(context, pipelines, form)
            try:
                while form.fixed and not ring.reserve_or_shrink(ring.form.capacity.sizes):
                    pass
            except BaseException:
                ring.close()
                raise
        except BaseException:
            pipelines.close()
            raise
    except BaseException:
        context.close()
        raise
    _logger.info("mldb computes on vulkan, %s", context.info.label)
    return VulkanDevice(context, pipelines, ring, copy=copy)
